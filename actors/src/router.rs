//! Holds the view of the cluster and says where each request goes.
//!
//! [`policy::route`] picks a replica. Where none is loaded, the model's home is asked for one: [`home::Home`] and [`place::place`] decide there.
//! What this node's devices and models tell of themselves goes into the view and, when it changed, to every peer.
//! Supervised by [`crate::node`]; supervises nobody. The view outlives a restart, and what it was not told of meanwhile is made good: the router
//! looks who is known and linked, and has peers and the actors of this node say anew what they have. Lost are the questions in the mailbox, which
//! streams ask again after [`crate::streams::core::ROUTE_TIMEOUT`], and what was decided, which is decided anew.

pub mod catalogue;
pub(crate) mod decisions;
mod expected;
mod explain;
pub mod home;
mod loads;
mod named;
mod others;
pub mod place;
pub mod policy;
mod publish;
pub mod view;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use plexus_api::service::Place;
use plexus_types::{
    Catalogue, DeviceId, DeviceReport, EmbedInput, EmbedRequest, Explanation, FilesDigest, ModelId, NodeId, NodeState, NodeSummary,
    ReplicaId, ReplicaReport, ReplicaState, RequestError, RequestId,
};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, info};

use self::decisions::Decisions;
use self::home::Home;
use self::policy::{Decision, NoReplica, goes_on, replicas_wanted, route};
use self::view::SharedView;
use crate::address::Address;
use crate::evictor::plan::EvictionPolicy;
use crate::inbound::{ClusterChange, PeerChange};
use crate::inspect::Inspection;
use crate::membership::KnownNodes;
use crate::messages::{Ensure, Question};
use crate::model::LocalModels;
use crate::nodes::Nodes;
use crate::prefix::PromptDigests;
use crate::streams::StreamsMsg;

/// How often loads under way, preloads and spare replicas are looked at.
const TICK: Duration = Duration::from_secs(1);
/// The others are told every so many ticks for how long models have been idle.
const IDLE_TICKS: u32 = 5;
/// A home, or a node that is told to load, answers from memory. Less than what the node itself waits for its evictor: so what is only late is not
/// taken for a refusal.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct RouterArgs {
    /// Its own address.
    pub address: Address<RouterMsg>,
    /// The view, which outlives the actor.
    pub view: SharedView,
    /// All nodes, this one among them: the others are told of changes.
    pub nodes: Nodes,
    /// Told which nodes are lost.
    pub streams: Address<StreamsMsg>,
    /// The replicas of this node.
    pub models: LocalModels,
    /// The nodes that gossip counts as living.
    pub known: KnownNodes,
    /// Who goes for whom.
    pub policy: EvictionPolicy,
    /// Devices that this node was started with.
    pub n_devices: usize,
    /// Was it told of others to join?
    pub has_seeds: bool,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Routed {
    /// To this replica.
    To(ReplicaId),
    /// Nowhere yet: the model is being loaded, or waits for room. The error is for those who cannot wait longer.
    Wait(RequestError),
    /// Nowhere.
    Refused(RequestError),
}

/// A request to be routed.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    /// The model asked for.
    pub model: ModelId,
    /// How long the prompt is, and what it begins with.
    pub prompt: PromptDigests,
    /// Replicas that have failed the request.
    pub tried: Vec<ReplicaId>,
    /// Replicas that were sent other parts of the same request.
    pub begun: Vec<ReplicaId>,
    /// What the files hold by which the answer was begun, if it was.
    pub files: Option<FilesDigest>,
}

impl RouteRequest {
    /// Where some texts go to be embedded.
    pub fn embed(request: &EmbedRequest) -> Self {
        let bytes = request.inputs.iter().map(|input| match input {
            EmbedInput::Text(text) => text.len(),
            EmbedInput::Tokens(ids) => size_of_val(ids.as_slice()),
        });
        let prompt = PromptDigests::of_length(bytes.sum::<usize>() as u64);
        Self { model: request.model.clone(), prompt, tried: Vec::new(), begun: Vec::new(), files: None }
    }
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum RouterMsg {
    /// Where does this stream go? Answered by [`StreamsMsg::Routed`].
    Route {
        /// Which stream.
        id: RequestId,
        /// What it asks.
        request: RouteRequest,
        /// Who asks.
        reply_to: Address<StreamsMsg>,
    },
    /// Where does this request go, and why, in a line? Remembered for those who ask, if the request has an id that its client knows.
    Pick(Option<RequestId>, RouteRequest, RpcReplyPort<(Routed, String)>),
    /// See that a model is loaded: this node is its home.
    Ensure(Ensure, RpcReplyPort<Result<Explanation, RequestError>>),
    /// Load a model at a place that somebody names. Answered once it is begun, or refused.
    LoadAt(ModelId, Place, RpcReplyPort<Result<Explanation, RequestError>>),
    /// From a task: the home of a model has answered.
    Ensured(ModelId, Result<Explanation, RequestError>),
    /// From a task: a node that was told to load a model has answered, or not in time.
    Ordered(ModelId, loads::Ordered),
    /// Why is a model where it is, or not there? Answered as if somebody asked for it now.
    ExplainModel(ModelId, RpcReplyPort<Option<Explanation>>),
    /// Why was a model placed where it was placed last, as far as this node decided or heard?
    ExplainPlacement(ModelId, RpcReplyPort<Option<Explanation>>),
    /// From a task: it was decided where a model is loaded.
    Placed(Explanation),
    /// The client of a request was told that it has failed.
    Failed(RequestId, ModelId, RequestError),
    /// The client of a request has left before it was sent anywhere.
    Left(RequestId),
    /// Where did a request go, and why?
    ExplainRequest(RequestId, RpcReplyPort<Option<Explanation>>),
    /// Look at loads under way.
    TickDue,
    /// A peer that was congested is to have the catalogue.
    CatalogueDue(NodeId),
    /// A peer that was congested is to be asked what it has.
    AskDue(NodeId),
    /// A peer wants to hear all anew: it was restarted in part.
    Announce(NodeId),
    /// Gossip changed its mind.
    ClusterChange(ClusterChange),
    /// A link came or went.
    PeerChange(PeerChange),
    /// A peer said what it holds.
    Summary(NodeId, NodeSummary),
    /// A replica of this node changed.
    OwnReplica(ReplicaReport),
    /// The actor of a replica of this node ended and will be started again.
    OwnReplicaGone(ModelId, DeviceId),
    /// A replica left this node.
    OwnReplicaLeft(ModelId, DeviceId),
    /// A model is unloaded from this node by hand, loaded or not.
    LetGo(ModelId),
    /// What this node lists, or has of it, changed.
    OwnCatalogue(Catalogue),
    /// A peer said what it lists.
    Catalogue(NodeId, Catalogue),
    /// The memory of this node's devices changed.
    OwnDevices(Vec<DeviceReport>),
    /// This node takes no new requests from now on.
    Drain,
    /// Tell the peers of changed loads.
    PublishDue,
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct RouterActor;

/// What the actor holds.
#[derive(Debug)]
pub struct RouterState {
    args: RouterArgs,
    life: ActorId,
    rng: SmallRng,
    home: Home,
    next_asker: home::Asker,
    /// Those who wait for this node to have a model loaded somewhere.
    askers: HashMap<home::Asker, RpcReplyPort<Result<Explanation, RequestError>>>,
    /// What homes said of models that this node asked for.
    ensured: HashMap<ModelId, Ensured>,
    /// When homes were asked for more replicas.
    asked_for_more: HashMap<ModelId, Instant>,
    decisions: Decisions,
    started: Instant,
    /// Models of whose missing files it has warned.
    missing: BTreeSet<ModelId>,
    publish_waiting: bool,
    n_routed: u64,
    n_refused: u64,
    n_cold: u64,
    n_ticks: u32,
}

/// What is known of a model that its home was asked for.
#[derive(Debug)]
enum Ensured {
    Asked,
    Answered(Instant, Result<Explanation, RequestError>),
}

impl Actor for RouterActor {
    type Msg = RouterMsg;
    type State = RouterState;
    type Arguments = RouterArgs;

    async fn pre_start(&self, myself: ActorRef<RouterMsg>, args: RouterArgs) -> Result<RouterState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        args.address.tell_after(TICK, RouterMsg::TickDue);
        let mut state = RouterState {
            home: Home::new(args.policy),
            args,
            life: myself.get_id(),
            rng: SmallRng::from_os_rng(),
            next_asker: 0,
            askers: HashMap::new(),
            ensured: HashMap::new(),
            asked_for_more: HashMap::new(),
            decisions: Decisions::default(),
            started: Instant::now(),
            missing: BTreeSet::new(),
            publish_waiting: false,
            n_routed: 0,
            n_refused: 0,
            n_cold: 0,
            n_ticks: 0,
        };
        state.catch_up();
        Ok(state)
    }

    async fn handle(&self, _myself: ActorRef<RouterMsg>, message: RouterMsg, state: &mut RouterState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            RouterMsg::Route { id, request, reply_to } => {
                let (result, route) = state.on_route(id, &request);
                let files = if let Routed::To(replica) = &result { state.args.view.read().digest_of(replica) } else { None };
                reply_to.tell(StreamsMsg::Routed { id, result, route, files });
            }
            RouterMsg::Pick(Some(id), request, reply) => drop(reply.send(state.on_route(id, &request))),
            RouterMsg::Pick(None, request, reply) => {
                let routed = state.pick(&request).map_or_else(|no| no, |decision| Routed::To(decision.replica));
                drop(reply.send((routed, String::new())));
            }
            RouterMsg::Ensure(ensure, reply) => state.on_ensure(&ensure, reply),
            RouterMsg::LoadAt(model, place, reply) => state.on_load_at(&model, &place, reply),
            RouterMsg::Ensured(model, result) => state.on_ensured(model, result),
            RouterMsg::Ordered(model, ordered) => state.on_ordered(&model, ordered),
            RouterMsg::ExplainModel(model, reply) => drop(reply.send(state.explain(&model))),
            RouterMsg::ExplainPlacement(model, reply) => drop(reply.send(state.decisions.placement(&model, Instant::now()))),
            RouterMsg::Placed(explanation) => state.decisions.on_placed(&explanation, Instant::now()),
            RouterMsg::Failed(id, model, error) => state.decisions.on_failed(id, &model, &error, Instant::now()),
            RouterMsg::Left(id) => state.decisions.on_left(id, Instant::now()),
            RouterMsg::ExplainRequest(id, reply) => drop(reply.send(state.decisions.get(id, Instant::now()))),
            RouterMsg::TickDue => state.on_tick(),
            RouterMsg::CatalogueDue(node) => {
                if let Some(peer) = state.args.nodes.peers.get(&node) {
                    state.send_catalogue(&peer);
                }
            }
            RouterMsg::AskDue(node) => {
                if let Some(peer) = state.args.nodes.peers.get(&node) {
                    state.ask_for_all(&peer);
                }
            }
            RouterMsg::Announce(node) => {
                if let Some(peer) = state.args.nodes.peers.get(&node) {
                    state.introduce(&peer);
                }
            }
            RouterMsg::ClusterChange(change) => state.on_cluster_change(change),
            RouterMsg::PeerChange(change) => state.on_peer_change(&change),
            RouterMsg::Summary(from, summary) => state.on_summary(&from, summary),
            RouterMsg::Catalogue(from, catalogue) => state.args.view.write().on_catalogue(&from, catalogue, SystemTime::now()),
            RouterMsg::OwnCatalogue(catalogue) => state.on_own_catalogue(catalogue),
            RouterMsg::OwnReplica(report) => state.on_own_replica(report),
            RouterMsg::OwnReplicaGone(model, device) => {
                state.args.view.write().on_own_replica_gone(&model, device);
                state.publish();
            }
            RouterMsg::OwnReplicaLeft(model, device) => {
                state.args.view.write().on_own_replica_left(&model, device);
                state.publish();
            }
            RouterMsg::LetGo(model) => state.args.view.write().on_let_go(model),
            RouterMsg::OwnDevices(devices) => {
                state.args.view.write().on_own_devices(devices);
                state.publish();
                state.preload();
            }
            RouterMsg::Drain => {
                state.args.view.write().on_draining();
                state.publish();
            }
            RouterMsg::PublishDue => {
                state.publish_waiting = false;
                state.publish();
            }
            RouterMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl RouterState {
    fn pick(&mut self, request: &RouteRequest) -> Result<Decision, Routed> {
        let rest = |view: &view::ClusterView| goes_on(view, &request.model, &request.tried, &request.begun, request.files);
        let (decision, wanted) = {
            let view = self.args.view.read();
            if let Some(error) = replaced(&view, request) {
                return rest(&view).ok_or(Routed::Refused(error));
            }
            let tried = [request.tried.clone(), view.with_other_files(&request.model, request.files)].concat();
            let decision = route(&view, &request.model, &request.prompt, &tried, &mut self.rng);
            let wanted = decision.is_ok().then(|| replicas_wanted(&view, &request.model)).flatten();
            (decision, wanted)
        };
        if let Some(replicas) = wanted {
            self.want_more(&request.model, replicas); // this request need not wait for it
        }
        let otherwise = match decision {
            Ok(decision) => return Ok(decision),
            Err(NoReplica::Loading(error)) => Routed::Wait(error),
            Err(NoReplica::Refused(error)) => Routed::Refused(error),
            Err(NoReplica::Cold) => self.on_cold(&request.model), // also for what goes on where it is until another is loaded
        };
        rest(&self.args.view.read()).ok_or(otherwise)
    }

    /// Where a request goes, and why, in a line for its client.
    fn on_route(&mut self, id: RequestId, request: &RouteRequest) -> (Routed, String) {
        match self.pick(request) {
            Ok(decision) => {
                self.n_routed += 1;
                self.args.view.write().on_sent(&decision.replica);
                debug!(replica = %decision.replica, considered = decision.considered.len(), "routed");
                let replica = decision.replica.clone();
                // What goes on at a node that stops is not served by what its home was asked for.
                let is_served = decision.considered.iter().any(|one| one.verdict.is_ok());
                let said = match if is_served { self.ensured.remove(&request.model) } else { None } {
                    Some(Ensured::Answered(at, Ok(explanation))) => Some((at, explanation)),
                    Some(Ensured::Answered(_, Err(_)) | Ensured::Asked) | None => None,
                };
                let route = self.decisions.on_routed(id, &request.model, decision, said, Instant::now());
                (Routed::To(replica), route)
            }
            Err(wait) => {
                self.on_not_routed(id, &request.model, &wait);
                (wait, String::new())
            }
        }
    }

    fn on_tick(&mut self) {
        self.args.address.tell_after(TICK, RouterMsg::TickDue);
        self.n_ticks += 1;
        if self.n_ticks.is_multiple_of(IDLE_TICKS) {
            self.args.view.write().on_own_time(TICK * IDLE_TICKS);
            self.publish_later();
        }
        self.warn_of_missing();
        self.forget_old();
        self.on_view();
        let spares = self.home.spares(&self.args.view.read(), Instant::now());
        for spare in spares {
            info!(replica = %spare, "a spare replica that nobody uses goes");
            let nodes = self.args.nodes.clone();
            tokio::spawn(async move {
                let _stays = nodes.order(&spare.node, Question::Unload(spare.model, Some(spare.device)), ORDER_DEADLINE).await;
            });
        }
        self.preload();
    }

    fn on_own_catalogue(&mut self, catalogue: Catalogue) {
        self.args.view.write().on_own_catalogue(catalogue, SystemTime::now());
        for peer in self.args.nodes.peers.list() {
            self.send_catalogue(&peer);
        }
        self.preload();
    }

    fn on_own_replica(&mut self, report: ReplicaReport) {
        let me = self.args.nodes.peers.me().clone();
        let answers = report.state == ReplicaState::Loaded && !is_loaded(&self.args.view.read(), &me, &report);
        let model = report.model.clone();
        let changed = self.args.view.write().on_own_replica(report, SystemTime::now());
        self.on_view();
        if changed {
            self.publish();
        } else {
            self.publish_later();
        }
        if answers {
            self.tell_of(model);
        }
    }

    /// Wakes those who wait for a model: it was loaded somewhere, or cannot be.
    fn tell_of(&self, model: ModelId) {
        self.args.view.tell_of(model.clone());
        self.args.streams.tell(StreamsMsg::ModelChanged(model));
    }

    fn inspect(&self) -> Inspection {
        let view = self.args.view.read();
        let report = view.report(Instant::now());
        let count = |state| report.nodes.iter().filter(|node| node.state == state).count() as u64;
        Inspection::new(
            if view.own().draining { "draining" } else { "routing" },
            [
                ("routed", self.n_routed),
                ("refused", self.n_refused),
                ("cold", self.n_cold),
                ("orders", self.home.n_orders() as u64),
                ("prefixes_known", view.n_prefixes() as u64),
                ("nodes_up", count(NodeState::Up)),
                ("nodes_unreachable", count(NodeState::Unreachable)),
            ],
        )
    }
}

/// Was an answer begun by other files than count now? Then it cannot go on: half of it would be another model's.
fn replaced(view: &view::ClusterView, request: &RouteRequest) -> Option<RequestError> {
    let model = view.catalogue().models.get(&request.model).filter(|model| !model.fits(request.files))?;
    let message = format!("the files of the model '{}' were replaced while it answered; ask again", model.profile.id);
    Some(RequestError::Unservable { message })
}

/// Did the view show this replica as loaded already?
fn is_loaded(view: &view::ClusterView, node: &NodeId, replica: &ReplicaReport) -> bool {
    view.candidates(&replica.model)
        .any(|known| known.id.node == *node && known.id.device == replica.device && known.report.state == ReplicaState::Loaded)
}
