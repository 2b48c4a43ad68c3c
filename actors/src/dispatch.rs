//! Where what other nodes say is delivered: each message to the actor that it concerns.

use std::time::Duration;

use async_trait::async_trait;
use plexus_types::{GenerateRequest, NodeId, RequestError};
use ractor::RpcReplyPort;

use crate::address::Address;
use crate::catalogue::CatalogueMsg;
use crate::evictor::EvictorMsg;
use crate::inbound::{ClusterChange, Inbound, PeerChange};
use crate::inference::{ACTOR_DEADLINE, COUNT_DEADLINE, EMBED_DEADLINE, PULL_DEADLINE, is_of_the_node, own_actors, restarting};
use crate::link::LinkMsg;
use crate::messages::{Answer, Notice, Question, StreamNotice};
use crate::model::sink::Ingresses;
use crate::model::{LocalModels, ModelMsg, has_gone};
use crate::node::NodeMsg;
use crate::router::RouterMsg;
use crate::streams::StreamsMsg;

/// Delivers to the actors of this node.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The root.
    pub node: Address<NodeMsg>,
    /// Links to the other nodes.
    pub link: Address<LinkMsg>,
    /// The view.
    pub router: Address<RouterMsg>,
    /// The memory of this node.
    pub evictor: Address<EvictorMsg>,
    /// The files of this node.
    pub catalogue: Address<CatalogueMsg>,
    /// Streams whose client is here.
    pub streams: Address<StreamsMsg>,
    /// The models of this node.
    pub models: LocalModels,
    /// Where their events go.
    pub ingresses: Ingresses,
}

/// The actors answer from memory; a model that is unloaded may have to end a step first. More than those wait who have a model loaded: they see then
/// that the answer is late, and not that it is refused.
const ORDER_DEADLINE: Duration = Duration::from_secs(10);

impl Dispatch {
    async fn to_evictor(&self, question: impl FnOnce(RpcReplyPort<Result<(), RequestError>>) -> EvictorMsg) -> Result<(), RequestError> {
        self.evictor.call(question, ORDER_DEADLINE).await.map_err(|error| restarting("evictor", error)).flatten()
    }

    /// The tokens of a prompt, by a replica of this node or by the files that it has.
    async fn count_tokens(&self, request: Box<GenerateRequest>) -> Result<u32, RequestError> {
        if let Some(model) = self.models.any(&request.model) {
            let counted = model.call(|reply| ModelMsg::CountTokens(request.clone(), reply), COUNT_DEADLINE).await;
            let counted = counted.map_err(|_| RequestError::Lost { message: "the model is being restarted".into() }).flatten();
            if !counted.as_ref().is_err_and(is_of_the_node) {
                return counted;
            }
        }
        let counted = self.catalogue.call(|reply| CatalogueMsg::CountTokens(request, reply), COUNT_DEADLINE).await;
        counted.map_err(|error| restarting("catalogue", error)).flatten()
    }
}

#[async_trait]
impl Inbound for Dispatch {
    async fn answer(&self, _from: &NodeId, question: Question) -> Answer {
        match question {
            Question::Ping => Answer::Pong,
            Question::Actors => Answer::Actors(own_actors(&self.node).await.unwrap_or_default()),
            Question::CountTokens(request) => Answer::CountTokens(self.count_tokens(request).await),
            Question::Embed(id, device, request) => {
                let Some(model) = self.models.get(&request.model, device) else {
                    return Answer::Embed(Err(has_gone(&request.model)));
                };
                let name = request.model.clone();
                let lost = |error| RequestError::Lost { message: format!("the model '{name}' was lost while it embedded: {error}") };
                let embedded = model.call(|reply| ModelMsg::Embed(id, request, reply), EMBED_DEADLINE).await;
                Answer::Embed(embedded.map_err(lost).flatten())
            }
            Question::EmbeddedPieces(model, device) => {
                let Some(model) = self.models.get(&model, device) else { return Answer::EmbeddedPieces(None) };
                Answer::EmbeddedPieces(model.call(ModelMsg::EmbeddedPieces, ACTOR_DEADLINE).await.ok())
            }
            Question::CheckTexts(request, max_tokens) => {
                let checked = self.catalogue.call(|reply| CatalogueMsg::CheckTexts(request, max_tokens, reply), COUNT_DEADLINE).await;
                Answer::Done(checked.map_err(|error| restarting("catalogue", error)).flatten())
            }
            Question::Ensure(ensure) => {
                let ensured = self.router.call(|reply| RouterMsg::Ensure(ensure, reply), ORDER_DEADLINE).await;
                Answer::Ensure(ensured.map_err(|error| restarting("router", error)).flatten())
            }
            Question::Load(order) => Answer::Done(self.to_evictor(|reply| EvictorMsg::Load(order, reply)).await),
            Question::Unload(model, device) => {
                self.router.tell(RouterMsg::LetGo(model.clone())); // before it goes, or it would be loaded again from the start
                Answer::Done(self.to_evictor(|reply| EvictorMsg::Unload(model, device, reply)).await)
            }
            Question::Pin(model, pinned) => Answer::Done(self.to_evictor(|reply| EvictorMsg::Pin(model, pinned, reply)).await),
            Question::Pull(model) => {
                let pulled = self.catalogue.call(|reply| CatalogueMsg::Pull(model, reply), PULL_DEADLINE).await;
                Answer::Done(pulled.map_err(|error| restarting("catalogue", error)).flatten())
            }
            Question::Placement(model) => {
                let placed = self.router.call(|reply| RouterMsg::ExplainPlacement(model, reply), ORDER_DEADLINE).await;
                Answer::Explain(placed.unwrap_or_default())
            }
            Question::Explain(request) => {
                let explained = self.router.call(|reply| RouterMsg::ExplainRequest(request, reply), ORDER_DEADLINE).await;
                Answer::Explain(explained.unwrap_or_default())
            }
        }
    }

    fn notice(&self, from: &NodeId, notice: Notice) {
        match notice {
            Notice::Summary(summary) => self.router.tell(RouterMsg::Summary(from.clone(), summary)),
            Notice::Catalogue(catalogue) => self.router.tell(RouterMsg::Catalogue(from.clone(), catalogue)),
            Notice::Announce => self.router.tell(RouterMsg::Announce(from.clone())),
            order @ (Notice::Generate(_) | Notice::Cancel { .. } | Notice::Credit { .. } | Notice::Forget) => {
                self.models.order(&self.ingresses, from, order);
            }
        }
    }

    fn events(&self, from: &NodeId, events: Vec<StreamNotice>) {
        self.streams.tell(StreamsMsg::Events { from: from.clone(), events });
    }

    fn cluster_changed(&self, change: ClusterChange) {
        self.link.tell(LinkMsg::ClusterChange(change.clone()));
        self.router.tell(RouterMsg::ClusterChange(change));
    }

    fn peer_changed(&self, change: PeerChange) {
        if let PeerChange::Down { id, .. } = &change {
            self.models.ingress_lost(id);
        }
        self.router.tell(RouterMsg::PeerChange(change));
    }
}
