//! The root of a node's actors: starts them in order, starts again what ended, and ends the node when that does not help.
//!
//! ```text
//! node ── gateway, tokens          what other nodes speak to
//!      ├─ link, membership         who is there, and the links to them
//!      ├─ evictor, router, streams memory, view, journals
//!      ├─ catalogue                which models are listed, and which are here
//!      ├─ device/…                 one per device, each with its OS thread
//!      ├─ http                     the listener
//!      └─ model/…                  one per replica: they come and go
//! ```
//! Supervised by nobody: when it stops, [`RunningNode::wait`] says why and the process exits.

mod child;
mod replica;
mod restarts;
mod running;
mod tree;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plexus_types::{ActorReport, DeviceId, ModelProfile, NodeId};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::child::Child;
use self::replica::ReplicaKit;
use self::restarts::{FIRST_PAUSE, Plan, Restarts};
pub use self::running::RunningNode;
pub use self::tree::start;
use crate::address::{Address, CallError};
use crate::args::RestartBudget;
use crate::catalogue::CatalogueMsg;
use crate::device::DeviceMsg;
use crate::evictor::EvictorMsg;
use crate::evictor::core::{Ask, Place};
use crate::http_front::HttpFrontMsg;
use crate::membership::MembershipMsg;
use crate::model::{LocalModels, ModelMsg};
use crate::router::RouterMsg;
use crate::streams::StreamsMsg;

/// An actor that takes longer to say how it is counts as not answering.
const INSPECT_DEADLINE: Duration = Duration::from_millis(500);

/// What is to be started anew ends within this. One that did not, as what has failed before does not end with its device, ends for another reason later.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);

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

/// Which child: never used again.
pub type SlotId = u64;

/// What the root is told.
#[derive(Debug, RactorMessage)]
pub enum NodeMsg {
    /// Start this child again.
    Start(SlotId),
    /// Start a replica. One that is there already stays.
    Host(Box<ModelProfile>, DeviceId, Ask),
    /// End a replica for good, unless it was hosted after this.
    Dismiss(Place, Ask),
    /// End the actor of this path, which is then started again: not counted as a failure.
    Restart(String),
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
    /// What replicas need beside their profile and device.
    replica: ReplicaKit,
    end: End,
}

/// Why the node ended, for [`RunningNode::wait`].
type End = Arc<Mutex<Option<String>>>;

/// The addresses that the root tells of each other's restarts.
#[derive(Debug, Clone)]
struct Addresses {
    evictor: Address<EvictorMsg>,
    router: Address<RouterMsg>,
    catalogue: Address<CatalogueMsg>,
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
    Router,
    Device(DeviceId),
    /// A replica, and which of those that were ever there.
    Model(Place, Ask),
    Other,
}

struct Slot {
    path: String,
    role: Role,
    child: Arc<dyn Child>,
    life: Option<ActorCell>,
    restarts: Restarts,
    last_error: Option<String>,
    /// It ends on purpose, and is not started again.
    dismissed: bool,
    /// When it was told to end on purpose, or the device that it is on: it is started again without that counting as a failure.
    renewed: Option<Instant>,
}

impl Slot {
    /// A child that is not started yet.
    fn new(path: String, role: Role, child: impl Child + 'static) -> Self {
        let restarts = Restarts::default();
        Self { path, role, child: Arc::new(child), life: None, restarts, last_error: None, dismissed: false, renewed: None }
    }
}

/// What the root holds.
pub struct NodeState {
    args: NodeActorArgs,
    /// In the order of their start.
    children: BTreeMap<SlotId, Slot>,
    next_slot: SlotId,
}

impl std::fmt::Debug for NodeActorArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeActorArgs").finish_non_exhaustive()
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
        let mut children = BTreeMap::new();
        for (id, mut slot) in std::mem::take(&mut args.children).into_iter().enumerate() {
            let started = slot.child.start(myself.get_cell()).await;
            let life = started.map_err(|source| StartError::Actor { path: slot.path.clone(), source })?;
            slot.life = Some(life);
            children.insert(id as SlotId, slot);
        }
        let next_slot = children.len() as SlotId;
        Ok(NodeState { args, children, next_slot })
    }

    async fn handle(&self, myself: ActorRef<NodeMsg>, message: NodeMsg, state: &mut NodeState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            NodeMsg::Start(id) => state.start_again(&myself, id).await,
            NodeMsg::Host(profile, device, since) => state.on_host(&myself, *profile, device, since).await,
            NodeMsg::Dismiss(place, ask) => state.on_dismiss(&place, ask),
            NodeMsg::Restart(path) => state.on_restart(&path),
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
        let Some(id) = self.children.iter().find(|(_, slot)| is_it(slot)).map(|(id, _)| *id) else { return };
        let Some(slot) = self.children.get_mut(&id) else { return };
        slot.life = None;
        slot.child.detach(); // before anything else: from here on whoever speaks to it learns that it is gone
        if slot.dismissed {
            return self.on_dismissed(id);
        }
        if let Role::Model((model, device), _) = &slot.role {
            self.args.addresses.router.tell(RouterMsg::OwnReplicaGone(model.clone(), *device));
        }
        if slot.renewed.take().is_some_and(|at| at.elapsed() < RENEWED_WITHIN) {
            return self.args.address.tell_after(FIRST_PAUSE, NodeMsg::Start(id));
        }
        slot.last_error = Some(why.clone());
        self.plan_restart(myself, id, why);
    }

    fn plan_restart(&mut self, myself: &ActorRef<NodeMsg>, id: SlotId, why: String) {
        let Some(slot) = self.children.get_mut(&id) else { return };
        match (slot.restarts.on_end(&self.args.budget, Instant::now()), &slot.role) {
            (Plan::Restart { after }, _) => {
                warn!(actor = slot.path, why, restarts = slot.restarts.total(), "actor ended; starting it again");
                self.args.address.tell_after(after, NodeMsg::Start(id));
            }
            // A model that cannot be served is no reason to lose all others.
            (Plan::GiveUp, Role::Model(..)) => {
                error!(actor = slot.path, why, "the model ended too often; it is given up");
                self.on_dismissed(id);
            }
            (Plan::GiveUp, _) => {
                let why = format!("{} ended too often, last: {why}", slot.path);
                self.give_up(myself, why);
            }
        }
    }

    /// A replica is gone for good. Another for the same place may have been started already.
    fn on_dismissed(&mut self, id: SlotId) {
        let Some(slot) = self.children.remove(&id) else { return };
        let Role::Model(place, since) = slot.role else { return };
        if self.slot_of(&place).is_none() {
            self.args.addresses.models.remove(&place.0, place.1);
            // The router first: whoever hears from the evictor that it is gone must not be sent to it.
            self.args.addresses.router.tell(RouterMsg::OwnReplicaLeft(place.0.clone(), place.1));
            self.args.addresses.evictor.tell(EvictorMsg::Dismissed(place, since));
        }
    }

    /// The replica at a place that is not on its way out, and which of those that were ever there.
    fn slot_of(&mut self, place: &Place) -> Option<(SlotId, Ask, &mut Slot)> {
        self.children.iter_mut().filter(|(_, slot)| !slot.dismissed).find_map(|(id, slot)| match &slot.role {
            Role::Model(at, since) if at == place => Some((*id, *since, slot)),
            Role::Model(..) | Role::Evictor | Role::Router | Role::Device(_) | Role::Other => None,
        })
    }

    async fn on_host(&mut self, myself: &ActorRef<NodeMsg>, profile: ModelProfile, device: DeviceId, since: Ask) {
        let place = (profile.id.clone(), device);
        if self.slot_of(&place).is_some() {
            // The evictor does not know of it, or it would not have asked: the one it asked for is not there, this one is.
            self.args.addresses.evictor.tell(EvictorMsg::Dismissed(place.clone(), since));
            if let Some(model) = self.args.addresses.models.get(&place.0, place.1) {
                model.tell(ModelMsg::Announce);
            }
            return;
        }
        let mut slot = self.args.replica.slot(profile, device, since);
        match slot.child.start(myself.get_cell()).await {
            Ok(life) => {
                slot.life = Some(life);
                self.children.insert(self.next_slot, slot);
                self.next_slot += 1;
            }
            Err(error) => {
                error!(actor = slot.path, %error, "the model's actor did not start");
                self.args.addresses.models.remove(&place.0, place.1);
                self.args.addresses.evictor.tell(EvictorMsg::Dismissed(place, since));
            }
        }
    }

    fn on_dismiss(&mut self, place: &Place, ask: Ask) {
        let models = self.args.addresses.models.clone();
        let Some((id, _, slot)) = self.slot_of(place).filter(|(_, since, _)| *since <= ask) else {
            return self.args.addresses.evictor.tell(EvictorMsg::Dismissed(place.clone(), ask)); // it is gone, or goes already
        };
        slot.dismissed = true;
        models.remove(&place.0, place.1);
        match &slot.life {
            Some(life) => life.stop(Some("unloaded".into())),
            None => self.on_dismissed(id), // it is between two lives
        }
    }

    fn on_restart(&mut self, path: &str) {
        let Some(slot) = self.children.values_mut().find(|slot| slot.path == path) else { return };
        let Some(life) = &slot.life else { return };
        slot.renewed = Some(Instant::now());
        life.stop(Some("renewed".into()));
        // Those that a device holds lose it, and are started again with it: that is no failure of theirs.
        if let Role::Device(device) = slot.role {
            let on_it = |slot: &&mut Slot| matches!(&slot.role, Role::Model((_, at), _) if *at == device);
            self.children.values_mut().filter(on_it).for_each(|slot| slot.renewed = Some(Instant::now()));
        }
    }

    fn give_up(&self, myself: &ActorRef<NodeMsg>, why: String) {
        error!(why, "the node ends");
        *self.args.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.clone());
        myself.stop(Some(why));
    }

    async fn start_again(&mut self, myself: &ActorRef<NodeMsg>, id: SlotId) {
        let Some(slot) = self.children.get_mut(&id).filter(|slot| !slot.dismissed && slot.life.is_none()) else { return };
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
                self.plan_restart(myself, id, why);
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
            counters: BTreeMap::from([("children".to_owned(), self.children.len() as u64)]),
        };
        let asked = self.children.values().map(|slot| {
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
        match self.children.values().find(|slot| slot.path == path).and_then(|slot| slot.life.as_ref()) {
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
            // What was said to its former life may be lost. It sees by itself who is gone; the others say anew what they have.
            Role::Router => {
                self.evictor.tell(EvictorMsg::Announce);
                self.catalogue.tell(CatalogueMsg::TellDue);
                self.models.list().iter().for_each(|model| model.tell(ModelMsg::Announce));
            }
            Role::Device(id) => self.models.list().iter().for_each(|model| model.tell(ModelMsg::DeviceLost(*id))),
            Role::Model(..) | Role::Other => {}
        }
    }
}
