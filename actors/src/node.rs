//! The root of a node's actors: starts them in order, starts again what ended, and ends the node when that does not help.
//!
//! ```text
//! node ── gateway, tokens          what other nodes speak to
//!      ├─ link, membership         who is there, and the links to them
//!      ├─ evictor, router, streams memory, view, journals
//!      ├─ device/…                 one per device, each with its OS thread
//!      ├─ model/…                  one per replica
//!      └─ http                     the listener
//! ```
//! Supervised by nobody: when it stops, [`RunningNode::wait`] says why and the process exits.

mod child;
mod restarts;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plexus_types::{ActorReport, DeviceId, ModelId, NodeId};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::child::{Ask, Child, Kind};
use self::restarts::{Plan, Restarts};
use crate::address::{Address, CallError};
use crate::args::{NodeArgs, RestartBudget};
use crate::device::{self, DeviceActor, DeviceArgs, DeviceMsg};
use crate::dispatch::Dispatch;
use crate::evictor::{EvictorActor, EvictorArgs, EvictorMsg};
use crate::gateway::{GatewayActor, GatewayArgs, TokenSinkActor, TokenSinkArgs, Traffic};
use crate::http_front::{HttpFrontActor, HttpFrontArgs, HttpFrontMsg};
use crate::inbound::Inbound;
use crate::inference::ClusterInference;
use crate::link::{LinkActor, LinkArgs, LinkMsg};
use crate::membership::{KnownNodes, MembershipActor, MembershipArgs, MembershipMsg};
use crate::model::sink::Ingresses;
use crate::model::{Devices, LocalModels, ModelActor, ModelArgs, ModelMsg};
use crate::peers::Peers;
use crate::router::view::{ClusterView, SharedView};
use crate::router::{RouterActor, RouterArgs, RouterMsg};
use crate::streams::{StreamsActor, StreamsArgs, StreamsMsg};

/// An actor that takes longer to say how it is counts as not answering.
const INSPECT_DEADLINE: Duration = Duration::from_millis(500);
/// How often a node that stops looks whether its streams have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Time for the clients to be told that their streams broke off.
const FLUSH: Duration = Duration::from_millis(200);
/// Telling the others that this node goes takes a few rounds of gossip.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An actor did not start.
    #[error("{path} did not start")]
    Actor {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: SpawnErr,
    },
    /// The root itself did not start.
    #[error("the node's actors did not start: {0}")]
    Root(String),
}

/// What the root is told.
#[derive(Debug, RactorMessage)]
pub enum NodeMsg {
    /// Start this child again.
    Start(usize),
    /// How are all actors?
    Actors(RpcReplyPort<Vec<ActorReport>>),
    /// End this actor as a crash would. Answered with whether there is one.
    Kill(String, RpcReplyPort<bool>),
    /// A newer life of this node's name was seen elsewhere.
    Replaced(NodeId),
}

/// The root: see the module.
#[derive(Debug)]
pub struct NodeActor;

/// What the root is started with.
pub struct NodeActorArgs {
    address: Address<NodeMsg>,
    budget: RestartBudget,
    children: Vec<Slot>,
    addresses: Addresses,
    end: End,
}

/// Why the node ended, for [`RunningNode::wait`].
type End = Arc<Mutex<Option<String>>>;

/// The addresses that the root tells of each other's restarts.
#[derive(Debug, Clone)]
struct Addresses {
    router: Address<RouterMsg>,
    streams: Address<StreamsMsg>,
    membership: Address<MembershipMsg>,
    http: Address<HttpFrontMsg>,
    devices: Vec<Address<DeviceMsg>>,
    models: LocalModels,
}

/// What else is to be done when a child ends or starts again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Evictor,
    Device(DeviceId),
    Model(ModelId),
    Other,
}

struct Slot {
    path: String,
    role: Role,
    child: Arc<dyn Child>,
    life: Option<ActorCell>,
    restarts: Restarts,
    last_error: Option<String>,
}

/// What the root holds.
pub struct NodeState {
    args: NodeActorArgs,
}

impl std::fmt::Debug for NodeActorArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeActorArgs").field("children", &self.children.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.args.fmt(f)
    }
}

impl Actor for NodeActor {
    type Msg = NodeMsg;
    type State = NodeState;
    type Arguments = NodeActorArgs;

    async fn pre_start(&self, myself: ActorRef<NodeMsg>, mut args: NodeActorArgs) -> Result<NodeState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        for slot in &mut args.children {
            let started = slot.child.start(myself.get_cell()).await;
            let life = started.map_err(|source| StartError::Actor { path: slot.path.clone(), source })?;
            slot.life = Some(life);
        }
        Ok(NodeState { args })
    }

    async fn handle(&self, myself: ActorRef<NodeMsg>, message: NodeMsg, state: &mut NodeState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            NodeMsg::Start(i) => state.start_again(&myself, i).await,
            NodeMsg::Actors(reply) => state.on_actors(reply),
            NodeMsg::Kill(path, reply) => drop(reply.send(state.on_kill(&path))),
            NodeMsg::Replaced(by) => {
                let why =
                    format!("another node took over the name '{}' (generation {}): give this one another name", by.name, by.generation.0);
                state.give_up(&myself, why);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<NodeMsg>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        let (child, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell.get_id(), error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell.get_id(), reason.unwrap_or_else(|| "stopped".into())),
            _ => return Ok(()),
        };
        state.on_child_gone(&myself, child, why);
        Ok(())
    }
}

impl NodeState {
    fn on_child_gone(&mut self, myself: &ActorRef<NodeMsg>, child: ActorId, why: String) {
        let is_it = |slot: &Slot| slot.life.as_ref().is_some_and(|life| life.get_id() == child);
        let Some(i) = self.args.children.iter().position(is_it) else { return };
        let slot = &mut self.args.children[i];
        slot.life = None;
        slot.child.detach(); // before anything else: from here on whoever speaks to it learns that it is gone
        slot.last_error = Some(why.clone());
        if let Role::Model(model) = &slot.role {
            self.args.addresses.router.tell(RouterMsg::OwnReplicaGone(model.clone()));
        }
        match slot.restarts.on_end(&self.args.budget, Instant::now()) {
            Plan::Restart { after } => {
                warn!(actor = slot.path, why, restarts = slot.restarts.total(), "actor ended; starting it again");
                self.args.address.tell_after(after, NodeMsg::Start(i));
            }
            Plan::GiveUp => {
                let why = format!("{} ended too often, last: {why}", slot.path);
                self.give_up(myself, why);
            }
        }
    }

    fn give_up(&self, myself: &ActorRef<NodeMsg>, why: String) {
        error!(why, "the node ends");
        *self.args.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        myself.stop(Some(why));
    }

    async fn start_again(&mut self, myself: &ActorRef<NodeMsg>, i: usize) {
        let slot = &mut self.args.children[i];
        match slot.child.start(myself.get_cell()).await {
            Ok(life) => {
                info!(actor = slot.path, "actor started again");
                slot.life = Some(life);
                let role = slot.role.clone();
                self.args.addresses.on_started_again(&role);
            }
            Err(error) => {
                let why = format!("it did not start: {error}");
                slot.last_error = Some(why.clone());
                match slot.restarts.on_end(&self.args.budget, Instant::now()) {
                    Plan::Restart { after } => self.args.address.tell_after(after, NodeMsg::Start(i)),
                    Plan::GiveUp => {
                        let why = format!("{}: {why}", slot.path);
                        self.give_up(myself, why);
                    }
                }
            }
        }
    }

    /// Asks all at once, in a task: a child that hangs must not hold up its supervisor.
    fn on_actors(&self, reply: RpcReplyPort<Vec<ActorReport>>) {
        let root = ActorReport {
            path: "node".into(),
            state: "supervising".into(),
            restarts: 0,
            waiting: self.args.address.waiting(),
            stalled: self.args.address.stalled(),
            last_error: None,
            counters: BTreeMap::from([("children".to_owned(), self.args.children.len() as u64)]),
        };
        let asked = self.args.children.iter().map(|slot| {
            let (path, restarts, last_error) = (slot.path.clone(), slot.restarts.total(), slot.last_error.clone());
            let child = Arc::clone(&slot.child);
            async move {
                let inspection = child.inspect(INSPECT_DEADLINE).await;
                let (waiting, stalled) = child.mailbox();
                let (state, counters) = match inspection {
                    Ok(inspection) => (inspection.state, inspection.counters),
                    Err(CallError::Gone) => ("restarting".to_owned(), BTreeMap::new()),
                    Err(CallError::Late(_)) => ("not answering".to_owned(), BTreeMap::new()),
                };
                ActorReport { path, state, restarts, waiting, stalled, last_error, counters }
            }
        });
        let asked = futures::future::join_all(asked.collect::<Vec<_>>());
        tokio::spawn(async move {
            let mut all = vec![root];
            all.extend(asked.await);
            let _asker_left = reply.send(all);
        });
    }

    fn on_kill(&self, path: &str) -> bool {
        match self.args.children.iter().find(|slot| slot.path == path).and_then(|slot| slot.life.as_ref()) {
            Some(life) => {
                life.kill();
                true
            }
            None => false,
        }
    }
}

impl Addresses {
    /// What others have to know of an actor that was started again.
    fn on_started_again(&self, role: &Role) {
        match role {
            Role::Evictor => {
                self.devices.iter().for_each(|device| device.tell(DeviceMsg::Announce));
                self.models.list().iter().for_each(|model| model.tell(ModelMsg::Announce));
            }
            Role::Device(id) => self.models.list().iter().for_each(|model| model.tell(ModelMsg::DeviceLost(*id))),
            Role::Model(_) | Role::Other => {}
        }
    }
}

/// A node at work.
#[derive(Debug)]
pub struct RunningNode {
    root: ActorRef<NodeMsg>,
    task: JoinHandle<()>,
    addresses: Addresses,
    view: SharedView,
    peers: Peers,
    inference: Arc<ClusterInference>,
    end: End,
    drain_timeout: Duration,
}

impl RunningNode {
    /// The cluster as the HTTP dialects see it through this node.
    pub fn inference(&self) -> &ClusterInference {
        &self.inference
    }

    /// What this node believes of the cluster.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// The nodes to which links stand.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Waits until the node ends by itself, and says why.
    pub async fn wait(&mut self) -> String {
        let panicked = (&mut self.task).await.is_err();
        let why = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        why.unwrap_or_else(|| if panicked { "the root of the actors panicked".into() } else { "the root of the actors stopped".into() })
    }

    /// Stops gracefully (CX-51): takes nothing new, lets running streams end within the drain timeout, tells the others, ends.
    ///
    /// Returns the number of streams that were still running and were broken off with an error.
    pub async fn drain(self) -> usize {
        info!(timeout = ?self.drain_timeout, "stopping: nothing new is taken, running streams may end");
        self.addresses.router.tell(RouterMsg::Drain);
        self.addresses.http.tell(HttpFrontMsg::Drain);
        let deadline = Instant::now() + self.drain_timeout;
        let mut n_left = self.n_at_work().await;
        while n_left > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_POLL).await;
            n_left = self.n_at_work().await;
        }
        if n_left > 0 {
            warn!(streams = n_left, "streams broken off");
            // Its channels close with it, and each client is told.
            if let Some(streams) = self.addresses.streams.actor() {
                streams.stop(Some("the node stops".into()));
            }
        }
        let left = self.addresses.membership.call(|reply| MembershipMsg::Leave { reply }, LEAVE_DEADLINE).await;
        if let Err(error) = left {
            warn!(%error, "the other nodes were not told");
        }
        tokio::time::sleep(FLUSH).await;
        self.root.stop(Some("drained".into()));
        let _ended = self.task.await;
        n_left
    }

    /// Streams of this node's clients, and of other nodes' clients that this node serves.
    async fn n_at_work(&self) -> usize {
        let mut n = self.addresses.streams.call(StreamsMsg::Count, INSPECT_DEADLINE).await.unwrap_or(0);
        for model in self.addresses.models.list() {
            if let Ok(inspection) = model.call(ModelMsg::Inspect, INSPECT_DEADLINE).await {
                n += ["running", "waiting"].iter().filter_map(|name| inspection.counters.get(*name)).sum::<u64>() as usize;
            }
        }
        n
    }
}

/// Starts a node. It serves as soon as its models are loaded, which this does not wait for.
pub async fn start(args: NodeArgs) -> Result<RunningNode, StartError> {
    let me = args.facts.id.clone();
    let peers = Peers::new(me.clone());
    let view = SharedView::new(ClusterView::new(args.cluster.clone(), args.facts.clone()));
    let models = LocalModels::default();
    let node: Address<NodeMsg> = Address::new();
    let (link, membership) = (Address::new(), Address::new());
    let (evictor, router, streams, http) = (Address::new(), Address::new(), Address::new(), Address::new());
    let ingresses = Ingresses { me: me.clone(), streams: streams.clone(), peers: peers.clone() };
    let inbound: Arc<dyn Inbound> = Arc::new(Dispatch {
        node: node.clone(),
        link: link.clone(),
        router: router.clone(),
        streams: streams.clone(),
        models: models.clone(),
        ingresses: ingresses.clone(),
    });

    let mut children = Children::default();
    let traffic = Traffic::default();
    let counted = traffic.clone();
    let address = Address::new();
    children.add(
        "gateway",
        Role::Other,
        Kind {
            actor: || GatewayActor,
            address: address.clone(),
            args: GatewayArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
            ask: Ask::Shared(Box::new(move || counted.inspection())),
        },
    );
    let traffic = Traffic::default();
    let counted = traffic.clone();
    let address = Address::new();
    children.add(
        "tokens",
        Role::Other,
        Kind {
            actor: || TokenSinkActor,
            address: address.clone(),
            args: TokenSinkArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
            ask: Ask::Shared(Box::new(move || counted.inspection())),
        },
    );
    let known = KnownNodes::default();
    children.add(
        "link",
        Role::Other,
        Kind {
            actor: || LinkActor,
            address: link.clone(),
            args: LinkArgs {
                address: link,
                me: me.clone(),
                secret: args.secret.clone(),
                listener: args.sockets.link.clone(),
                timing: args.timing.clone(),
                peers: peers.clone(),
                known: known.clone(),
                inbound: inbound.clone(),
            },
            ask: Ask::Message(LinkMsg::Inspect),
        },
    );
    children.add(
        "evictor",
        Role::Evictor,
        Kind {
            actor: || EvictorActor,
            address: evictor.clone(),
            args: EvictorArgs { address: evictor.clone(), router: router.clone() },
            ask: Ask::Message(EvictorMsg::Inspect),
        },
    );
    children.add(
        "router",
        Role::Other,
        Kind {
            actor: || RouterActor,
            address: router.clone(),
            args: RouterArgs { address: router.clone(), view: view.clone(), peers: peers.clone(), streams: streams.clone() },
            ask: Ask::Message(RouterMsg::Inspect),
        },
    );
    children.add(
        "streams",
        Role::Other,
        Kind {
            actor: || StreamsActor,
            address: streams.clone(),
            args: StreamsArgs {
                address: streams.clone(),
                me: me.clone(),
                config: args.streams.clone(),
                router: router.clone(),
                models: models.clone(),
                peers: peers.clone(),
                ingresses: ingresses.clone(),
            },
            ask: Ask::Message(StreamsMsg::Inspect),
        },
    );
    let devices: BTreeMap<DeviceId, Address<DeviceMsg>> = args.devices.iter().map(|spec| (spec.id, Address::new())).collect();
    for spec in args.devices {
        let address = devices[&spec.id].clone();
        let id = spec.id;
        children.add_path(
            device::path(id),
            Role::Device(id),
            Kind {
                actor: || DeviceActor,
                address: address.clone(),
                args: DeviceArgs { address, spec, evictor: evictor.clone() },
                ask: Ask::Message(DeviceMsg::Inspect),
            },
        );
    }
    for profile in args.models {
        let address: Address<ModelMsg> = Address::new();
        models.insert(profile.id.clone(), address.clone());
        children.add(
            &format!("model/{}", profile.id),
            Role::Model(profile.id.clone()),
            Kind {
                actor: || ModelActor,
                address: address.clone(),
                args: ModelArgs {
                    address,
                    profile,
                    devices: Devices::new(devices.clone()),
                    evictor: evictor.clone(),
                    router: router.clone(),
                    ingresses: ingresses.clone(),
                },
                ask: Ask::Message(ModelMsg::Inspect),
            },
        );
    }
    let inference = Arc::new(ClusterInference {
        node: node.clone(),
        streams: streams.clone(),
        router: router.clone(),
        view: view.clone(),
        models: models.clone(),
        peers: peers.clone(),
        config: args.streams,
        test_hooks: args.test_hooks,
    });
    let answers = plexus_api::router(inference.clone(), args.http.api.clone());
    children.add(
        "http",
        Role::Other,
        Kind {
            actor: || HttpFrontActor,
            address: http.clone(),
            args: HttpFrontArgs { address: http.clone(), listener: args.sockets.http.clone(), router: answers, config: args.http },
            ask: Ask::Message(HttpFrontMsg::Inspect),
        },
    );
    let replaced = node.clone();
    children.add(
        "membership",
        Role::Other,
        Kind {
            actor: || MembershipActor,
            address: membership.clone(),
            args: MembershipArgs {
                address: membership.clone(),
                facts: args.facts,
                cluster: args.cluster,
                secret: args.secret,
                socket: args.sockets.gossip.clone(),
                seeds: args.seeds,
                timing: args.timing,
                known,
                inbound,
                on_replaced: Arc::new(move |by| replaced.tell(NodeMsg::Replaced(by))),
            },
            ask: Ask::Message(MembershipMsg::Inspect),
        },
    );

    let end = End::default();
    let addresses = Addresses { router, streams, membership, http, devices: devices.into_values().collect(), models };
    let root_args =
        NodeActorArgs { address: node, budget: args.restarts, children: children.0, addresses: addresses.clone(), end: Arc::clone(&end) };
    let (root, task) = Actor::spawn(None, NodeActor, root_args).await.map_err(|error| StartError::Root(error.to_string()))?;
    Ok(RunningNode { root, task, addresses, view, peers, inference, end, drain_timeout: args.drain_timeout })
}

/// The children, in the order of their start.
#[derive(Default)]
struct Children(Vec<Slot>);

impl Children {
    fn add(&mut self, name: &str, role: Role, child: impl Child + 'static) {
        self.add_path(format!("node/{name}"), role, child);
    }

    fn add_path(&mut self, path: String, role: Role, child: impl Child + 'static) {
        self.0.push(Slot { path, role, child: Arc::new(child), life: None, restarts: Restarts::default(), last_error: None });
    }
}
