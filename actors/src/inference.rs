//! The cluster behind the HTTP dialects: asks the actors.

mod by_hand;
mod clients;
mod count;
mod embed;
mod explain;
mod health;
mod seek;
mod stopping;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use futures::future::join_all;
use plexus_api::Gpu;
use plexus_api::service::{Embedded, Generation, Health, Inference, LoadModel, LoadedModel, NodeActors, Place};
use plexus_types::{
    ActorReport, ClusterReport, EmbedRequest, Explanation, GenerateEvent, GenerateRequest, Journal, ModelId, ModelKind, ModelReport,
    NodeId, NodeName, RequestError, RequestId,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Span;

use crate::address::{Address, CallError};
use crate::args::StreamsConfig;
use crate::messages::Question;
use crate::metrics::RequestMeter;
use crate::model::{Devices, LocalModels, check_kind};
use crate::node::NodeMsg;
use crate::nodes::Nodes;
use crate::prefix::PromptDigests;
use crate::router::RouterMsg;
use crate::router::view::{ClusterView, SharedView};
use crate::streams::StreamsMsg;

use self::clients::{Clients, Counted};
pub(crate) use self::count::is_of_the_node;
pub(crate) use self::embed::EMBED_DEADLINE;

/// Answers from memory.
pub(crate) const ACTOR_DEADLINE: Duration = Duration::from_secs(2);
/// Asking all actors of another node, each of which may be slow.
const PEER_DEADLINE: Duration = Duration::from_secs(3);
/// Fetching a large model over a slow line.
pub(crate) const PULL_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Encoding a long prompt.
pub(crate) const COUNT_DEADLINE: Duration = Duration::from_secs(30);
/// Events beyond the window that a channel takes: the start, the end, and what a speculating replica sends beyond its credit.
const CHANNEL_SLACK: u32 = 64;

/// The cluster, as one node reaches it.
#[derive(Debug, Clone)]
pub struct ClusterInference {
    /// The root of this node's actors.
    pub node: Address<NodeMsg>,
    /// Follows each stream.
    pub streams: Address<StreamsMsg>,
    /// Picks replicas.
    pub router: Address<RouterMsg>,
    /// The view of this node.
    pub view: SharedView,
    /// All nodes, this one among them.
    pub nodes: Nodes,
    /// The requests whose clients are here.
    pub clients: Arc<Clients>,
    /// The devices of this node.
    pub devices: Devices,
    /// The models of this node.
    pub models: LocalModels,
    /// The size of the window.
    pub config: StreamsConfig,
    /// May actors be killed?
    pub test_hooks: bool,
    /// When the node was started.
    pub started: Instant,
}

impl ClusterInference {
    /// The model that a client's name for it stands for.
    fn resolve(&self, name: &ModelId) -> ModelId {
        self.view.read().resolve(name).clone()
    }

    /// The same, but an alias of a model of which no node tells is refused.
    fn named(&self, name: &ModelId) -> Result<ModelId, RequestError> {
        self.view.read().named(name).cloned()
    }

    /// Refuses, before anything is loaded for it, what the model's files say that it was not made for. Those that nobody has yet say nothing.
    fn check_kind(&self, model: &ModelId, asked_for: ModelKind) -> Result<(), RequestError> {
        let kind = self.view.read().catalogue().models.get(model).and_then(|merged| Some(merged.facts.as_ref()?.kind));
        kind.map_or(Ok(()), |kind| check_kind(model, kind, asked_for))
    }

    /// Takes a request for a model by this name, unless it cannot be answered: that is said before anything is done for it.
    async fn take(&self, id: RequestId, name: &ModelId, request: &GenerateRequest) -> Result<Counted, RequestError> {
        self.named(name)?;
        let counted = self.enter(id)?;
        self.check_kind(&request.model, ModelKind::Generate)?;
        self.check_stopping(&request.model)?;
        self.check_length(request).await?;
        Ok(counted)
    }

    /// Counts a request of a client, unless this node takes no more.
    fn enter(&self, id: RequestId) -> Result<Counted, RequestError> {
        self.clients.enter(id, &self.nodes.me().name)
    }

    async fn actors_of(&self, node: &NodeId) -> NodeActors {
        let (actors, error) = match self.nodes.ask(node, Question::Actors, PEER_DEADLINE).await {
            Ok(actors) => (actors, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        NodeActors { node: node.name.clone(), actors, error }
    }

    /// Refuses, while this node stops, what no other node can serve.
    fn check_stopping(&self, model: &ModelId) -> Result<(), RequestError> {
        stopping::refusal(&self.view.read(), model).map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Inference for ClusterInference {
    async fn generate(&self, mut request: GenerateRequest) -> Generation {
        let resolved = self.resolve(&request.model);
        let name = std::mem::replace(&mut request.model, resolved);
        let id = RequestId(rand::random());
        let is_known = is_known(&self.view.read(), &request.model);
        let meter = RequestMeter::new(request.model.clone(), is_known);
        let seed = request.sampling.seed.unwrap_or_else(rand::random);
        let (events, inbox) = mpsc::channel((self.config.window_tokens + CHANNEL_SLACK) as usize);
        let (lost, counted) = match self.take(id, &name, &request).await {
            Ok(counted) => {
                let prompt = PromptDigests::of(&request.prompt);
                let journal = Box::new(Journal { request: Arc::new(request), seed, prompt_ids: Vec::new(), sampled_ids: Vec::new() });
                (self.streams.cast(StreamsMsg::Open { id, journal, prompt, events, span: Span::current() }).is_err(), Some(counted))
            }
            Err(error) => (events.try_send(GenerateEvent::Failed(error)).is_err(), None), // the channel is empty
        };
        let client = ClientStream {
            id,
            inbox,
            streams: self.streams.clone(),
            unreported: 0,
            report_every: (self.config.window_tokens / 4).max(1),
            ended: false,
            lost,
            meter,
            _counted: counted,
        };
        Generation::new(id, client)
    }

    async fn count_tokens(&self, mut request: GenerateRequest) -> Result<u32, RequestError> {
        request.model = self.named(&request.model)?;
        self.check_kind(&request.model, ModelKind::Generate)?;
        self.counted(request).await
    }

    async fn embed(&self, id: RequestId, mut request: EmbedRequest) -> Result<Embedded, RequestError> {
        request.model = self.named(&request.model)?;
        let _counted = self.enter(id)?;
        self.check_kind(&request.model, ModelKind::Embed)?;
        self.check_stopping(&request.model)?;
        let checked = async {
            self.check_texts(&request).await?;
            self.embed_all(id, request).await
        };
        self.clients.run(checked).await
    }

    async fn models(&self) -> Vec<ModelReport> {
        self.view.read().models()
    }

    async fn all_models(&self) -> Vec<ModelReport> {
        self.view.read().all_models()
    }

    async fn cluster(&self) -> ClusterReport {
        self.view.read().report(Instant::now())
    }

    async fn actors(&self) -> Vec<NodeActors> {
        let me = self.nodes.me().name.clone();
        let own = match own_actors(&self.node).await {
            Ok(actors) => NodeActors { node: me, actors, error: None },
            Err(error) => NodeActors { node: me, actors: Vec::new(), error: Some(error) },
        };
        let others = self.nodes.others();
        let mut all = vec![own];
        all.extend(join_all(others.iter().map(|node| self.actors_of(node))).await);
        all
    }

    async fn load_model(&self, load: LoadModel) -> Result<LoadedModel, RequestError> {
        self.load_by_hand(load).await
    }

    async fn pull_model(&self, model: &ModelId, node: Option<&NodeName>) -> Result<(), RequestError> {
        self.pull_by_hand(model, node).await
    }

    async fn unload_model(&self, model: &ModelId, place: &Place) -> Result<Vec<String>, RequestError> {
        let model = self.resolve(model);
        self.at_each(&model, place, |model, device| Question::Unload(model, Some(device))).await
    }

    async fn pin_model(&self, model: &ModelId, node: Option<&NodeName>, pinned: bool) -> Result<Vec<String>, RequestError> {
        let (model, place) = (self.resolve(model), Place { node: node.cloned(), device: None });
        if pinned {
            return self.at_each(&model, &place, |model, _| Question::Pin(model, true)).await;
        }
        self.unpin_by_hand(&model, &place).await
    }

    async fn explain(&self, subject: &str) -> Option<Explanation> {
        self.explained(subject).await
    }

    async fn kill_actor(&self, path: &str) -> Option<bool> {
        if !self.test_hooks {
            return None;
        }
        let path = path.to_owned();
        Some(self.node.call(|reply| NodeMsg::Kill(path, reply), ACTOR_DEADLINE).await.unwrap_or(false))
    }

    async fn health(&self) -> Health {
        self.own_health().await
    }

    async fn gpus(&self) -> Vec<Gpu> {
        self.own_gpus().await
    }
}

/// Asks the root of this node's actors for all of them.
pub async fn own_actors(node: &Address<NodeMsg>) -> Result<Vec<ActorReport>, String> {
    node.call(NodeMsg::Actors, ACTOR_DEADLINE).await.map_err(|error| error.to_string())
}

/// Does some node list this model, or hold it?
fn is_known(view: &ClusterView, model: &ModelId) -> bool {
    view.catalogue().models.contains_key(model) || view.candidates(model).next().is_some()
}

/// An actor of this node, which need not be the client's, is between two lives, or hangs and will be restarted.
pub(crate) fn restarting(actor: &str, error: CallError) -> RequestError {
    let message = format!("the {actor} of the node did not answer: {error}");
    RequestError::soon(message)
}

/// The events of a request on their way to its client. Tells the streams what was taken, and that the client left when it is dropped.
#[derive(Debug)]
struct ClientStream {
    id: RequestId,
    inbox: mpsc::Receiver<GenerateEvent>,
    streams: Address<StreamsMsg>,
    /// Tokens taken and not yet reported.
    unreported: u32,
    report_every: u32,
    ended: bool,
    /// The streams' actor was not there to take the request.
    lost: bool,
    meter: RequestMeter,
    /// Until the client has all of it.
    _counted: Option<Counted>,
}

impl Stream for ClientStream {
    type Item = GenerateEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GenerateEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = match self.inbox.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(event)) => event,
            // The channel closed before the end: the streams' actor was restarted.
            Poll::Ready(None) if self.lost => {
                GenerateEvent::Failed(RequestError::soon("this node is restarting a part of itself; ask again"))
            }
            Poll::Ready(None) => GenerateEvent::Failed(RequestError::Lost { message: "this node lost the stream; ask again".into() }),
        };
        self.meter.on_event(&event);
        match &event {
            GenerateEvent::Tokens { tokens, .. } => {
                self.unreported += tokens;
                if self.unreported >= self.report_every {
                    let tokens = std::mem::take(&mut self.unreported);
                    self.streams.tell(StreamsMsg::Consumed { id: self.id, tokens });
                }
            }
            GenerateEvent::Done { .. } | GenerateEvent::Failed(_) => self.ended = true,
            GenerateEvent::Started { .. } => {}
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if !self.ended {
            self.streams.tell(StreamsMsg::ClientGone(self.id));
        }
    }
}
