//! Holds the view of the cluster and says where each request goes.
//!
//! [`policy::route`] decides. What this node's devices and models tell of themselves goes into the view and, when it changed, to every peer.
//! Supervised by [`crate::node`]; supervises nobody. The view outlives a restart, so nothing is lost but the questions in the mailbox, which are
//! asked again.

pub mod policy;
pub mod view;

use std::time::{Duration, SystemTime};

use plexus_types::{
    DeviceReport, EmbedInput, EmbedRequest, GenerateRequest, ModelId, NodeId, NodeState, NodeSummary, Prompt, ReplicaId, ReplicaReport,
    RequestError, RequestId,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, info};

use self::policy::{Decision, route};
use self::view::SharedView;
use crate::address::Address;
use crate::inbound::{ClusterChange, PeerChange};
use crate::inspect::Inspection;
use crate::messages::Notice;
use crate::peers::{Peer, PeerError, Peers};
use crate::streams::StreamsMsg;

/// Changes of load alone are gathered for so long before the peers are told.
const LOAD_DELAY: Duration = Duration::from_millis(100);
/// Bytes of text that make a token, to estimate the length of a prompt before it is encoded.
const BYTES_PER_TOKEN: usize = 4;

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct RouterArgs {
    /// Its own address.
    pub address: Address<RouterMsg>,
    /// The view, which outlives the actor.
    pub view: SharedView,
    /// The other nodes, to be told of changes.
    pub peers: Peers,
    /// Told which nodes are lost.
    pub streams: Address<StreamsMsg>,
}

/// A request to be routed.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    /// The model asked for.
    pub model: ModelId,
    /// How long the prompt will be, about, tokens.
    pub prompt_tokens: u32,
    /// Replicas that have failed the request.
    pub tried: Vec<ReplicaId>,
}

impl RouteRequest {
    /// Where a generation goes.
    pub fn generate(request: &GenerateRequest, tried: Vec<ReplicaId>) -> Self {
        let bytes = match &request.prompt {
            Prompt::Chat(chat) => chat.messages.iter().map(|message| message.content.len()).sum(),
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(ids) => ids.len() * BYTES_PER_TOKEN,
        };
        Self { model: request.model.clone(), prompt_tokens: (bytes / BYTES_PER_TOKEN) as u32, tried }
    }

    /// Where some texts go to be embedded.
    pub fn embed(request: &EmbedRequest, tried: Vec<ReplicaId>) -> Self {
        let bytes = request.inputs.iter().map(|input| match input {
            EmbedInput::Text(text) => text.len(),
            EmbedInput::Tokens(ids) => ids.len() * BYTES_PER_TOKEN,
        });
        Self { model: request.model.clone(), prompt_tokens: (bytes.sum::<usize>() / BYTES_PER_TOKEN) as u32, tried }
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
    /// Where would this request go?
    Pick(RouteRequest, RpcReplyPort<Result<Decision, RequestError>>),
    /// Gossip changed its mind.
    ClusterChange(ClusterChange),
    /// A link came or went.
    PeerChange(PeerChange),
    /// A peer said what it holds.
    Summary(NodeId, NodeSummary),
    /// A replica of this node changed.
    OwnReplica(ReplicaReport),
    /// The actor of a replica of this node ended and will be started again.
    OwnReplicaGone(ModelId),
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
    rng: SmallRng,
    publish_waiting: bool,
    n_routed: u64,
    n_refused: u64,
}

impl Actor for RouterActor {
    type Msg = RouterMsg;
    type State = RouterState;
    type Arguments = RouterArgs;

    async fn pre_start(&self, myself: ActorRef<RouterMsg>, args: RouterArgs) -> Result<RouterState, ActorProcessingErr> {
        args.address.attach(myself);
        let mut state = RouterState { args, rng: SmallRng::from_os_rng(), publish_waiting: false, n_routed: 0, n_refused: 0 };
        state.publish(); // a former life may have died before it did
        Ok(state)
    }

    async fn handle(&self, _myself: ActorRef<RouterMsg>, message: RouterMsg, state: &mut RouterState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            RouterMsg::Route { id, request, reply_to } => {
                let result = state.on_route(&request).map(|decision| decision.replica);
                reply_to.tell(StreamsMsg::Routed { id, result });
            }
            RouterMsg::Pick(request, reply) => drop(reply.send(state.decide(&request))),
            RouterMsg::ClusterChange(change) => state.on_cluster_change(change),
            RouterMsg::PeerChange(change) => state.on_peer_change(&change),
            RouterMsg::Summary(from, summary) => {
                state.args.view.write().on_summary(&from, summary, Instant::now(), SystemTime::now());
            }
            RouterMsg::OwnReplica(report) => state.on_own_replica(report),
            RouterMsg::OwnReplicaGone(model) => {
                state.args.view.write().on_own_replica_gone(&model);
                state.publish();
            }
            RouterMsg::OwnDevices(devices) => {
                state.args.view.write().on_own_devices(devices);
                state.publish();
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
    fn decide(&mut self, request: &RouteRequest) -> Result<Decision, RequestError> {
        let view = self.args.view.read();
        route(&view, &request.model, request.prompt_tokens, &request.tried, &mut self.rng)
    }

    fn on_route(&mut self, request: &RouteRequest) -> Result<Decision, RequestError> {
        let decision = self.decide(request);
        match &decision {
            Ok(decision) => {
                self.n_routed += 1;
                self.args.view.write().on_sent(&decision.replica);
                debug!(replica = %decision.replica, considered = decision.considered.len(), "routed");
            }
            Err(error) => {
                self.n_refused += 1;
                debug!(%error, "refused");
            }
        }
        decision
    }

    fn on_cluster_change(&mut self, change: ClusterChange) {
        match &change {
            ClusterChange::Up(facts) => info!(node = %facts.id, link = %facts.link, "a node is alive"),
            ClusterChange::Gone(id) => {
                info!(node = %id, "a node is gone");
                self.args.streams.tell(StreamsMsg::NodeLost(id.clone()));
            }
            ClusterChange::Changed(_) => {}
        }
        self.args.view.write().on_cluster_change(change);
    }

    fn on_peer_change(&mut self, change: &PeerChange) {
        self.args.view.write().on_peer_change(change, Instant::now());
        match change {
            PeerChange::Up(id) => {
                info!(node = %id, "linked");
                if let Some(peer) = self.args.peers.get(id)
                    && !self.send_summary(&peer)
                {
                    self.publish_later();
                }
            }
            PeerChange::Down { id, why } => {
                info!(node = %id, why, "link lost");
                self.args.streams.tell(StreamsMsg::NodeLost(id.clone()));
            }
            PeerChange::RoundTrip(..) => {}
        }
    }

    fn on_own_replica(&mut self, report: ReplicaReport) {
        let changed = self.args.view.write().on_own_replica(report, SystemTime::now());
        if changed {
            self.publish();
        } else {
            self.publish_later();
        }
    }

    fn publish(&mut self) {
        let refused = self.args.peers.list().iter().filter(|peer| !self.send_summary(peer)).count();
        if refused > 0 {
            self.publish_later(); // else a peer would not know what this node holds until it changes again
        }
    }

    fn publish_later(&mut self) {
        if !self.publish_waiting {
            self.publish_waiting = true;
            self.args.address.tell_after(LOAD_DELAY, RouterMsg::PublishDue);
        }
    }

    /// False if the peer takes none now, but may later.
    fn send_summary(&self, peer: &Peer) -> bool {
        let summary = self.args.view.read().own().clone();
        let Err(error) = peer.notify(Notice::Summary(summary)) else { return true };
        debug!(node = %peer.id(), %error, "summary not sent");
        error != PeerError::Congested // when the link is gone, the next one brings it
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
                ("nodes_up", count(NodeState::Up)),
                ("nodes_unreachable", count(NodeState::Unreachable)),
            ],
        )
    }
}
