//! Keeps the memory of this node's devices: who was promised what, who goes for whom, and who must be refused.
//!
//! [`core`] decides, this actor carries out. Supervised by [`crate::node`]; supervises nobody. A restart loses the ledger, which is rebuilt from
//! the truth: the supervisor asks devices and replicas, those that are loading, have failed or are going among them, to announce themselves
//! again, and nothing is promised before they have. Loads that waited for room are told that the evictor is gone, and ask again.

pub mod core;
pub mod ledger;
pub mod pins;
pub mod plan;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plexus_engine::executor::DeviceDescription;
use plexus_types::{Bytes, DeviceId, ModelId, ModelProfile, NodeName, RequestError};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::time::Instant;
use tracing::{debug, info};

use self::core::{Ask, Asker, Effect, Event, EvictionConfig, EvictorCore, Grant, Place, Standing, Verdict};
use self::ledger::Lease;
use self::pins::PinsFile;
use self::plan::{Needs, NoRoom};
use crate::address::Address;
use crate::inspect::Inspection;
use crate::messages::LoadOrder;
use crate::metrics;
use crate::model::{LocalModels, ModelMsg};
use crate::node::NodeMsg;
use crate::router::RouterMsg;

/// How often idle models and fragmented devices are looked for.
const TICK: Duration = Duration::from_secs(1);
/// A replica that does not say within this time whether it can go stays, for now.
const RETIRE_DEADLINE: Duration = Duration::from_secs(2);
/// One life of the actor hosts replicas and asks them to go less often than this: so the numbers of a later life are greater.
const ASKS_OF_A_LIFE: u64 = 1 << 32;

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct EvictorArgs {
    /// Its own address.
    pub address: Address<EvictorMsg>,
    /// How models go.
    pub config: EvictionConfig,
    /// Starts and ends replicas.
    pub node: Address<NodeMsg>,
    /// Told of the devices' memory.
    pub router: Address<RouterMsg>,
    /// The replicas of this node.
    pub models: LocalModels,
    /// Where what is pinned by hand is kept.
    pub pins: PinsFile,
    /// This node.
    pub me: NodeName,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum EvictorMsg {
    /// A device was opened.
    DeviceUp(DeviceDescription),
    /// Bring a model onto a device. Answered once it is begun, or refused.
    Load(Box<LoadOrder>, RpcReplyPort<Result<(), RequestError>>),
    /// A replica that is being loaded asks for its memory, and waits for as long as others take to go for it.
    Room {
        /// Which.
        place: Place,
        /// By which promise it will hold it.
        lease: Lease,
        /// What it takes.
        needs: Needs,
        /// What it gets.
        reply: RpcReplyPort<Result<Grant, NoRoom>>,
    },
    /// Could a model with weights of so many bytes ever get room in a place, were all others idle?
    CouldFit(Place, Bytes, RpcReplyPort<Result<(), NoRoom>>),
    /// A replica answers.
    Loaded(Place),
    /// A replica could not be loaded.
    Failed(Place),
    /// A model's files came, or were replaced.
    FilesCame(ModelId),
    /// A replica found no room in time, and goes.
    GaveUp(Place),
    /// A replica got its first request, or ended its last.
    Used(Place, bool),
    /// A replica says that it is there, and how far it is: when it begins, and to an evictor that was restarted.
    Here {
        /// Which.
        place: Place,
        /// Which of those that were ever there.
        since: Ask,
        /// How it is served.
        profile: Box<ModelProfile>,
        /// How far it is.
        standing: Standing,
    },
    /// A load says what it was promised: by an evictor that may have ended since.
    Holds {
        /// Whose load.
        place: Place,
        /// By which promise.
        lease: Lease,
        /// How much.
        bytes: Bytes,
    },
    /// A replica that was asked to go says whether it does, or nothing.
    Retired(Place, Ask, Verdict),
    /// A replica no longer needs what it was promised.
    Release(Place, Lease),
    /// A replica is no longer on this node. One that was hosted after this is another.
    Dismissed(Place, Ask),
    /// What a replica was loaded from is not what counts any more: it goes once it has no requests, pinned or not.
    Outdated(ModelId, DeviceId),
    /// Unload by hand; answered when it is gone.
    Unload(ModelId, Option<DeviceId>, RpcReplyPort<Result<(), RequestError>>),
    /// Pin by hand, or let go again.
    Pin(ModelId, bool, RpcReplyPort<Result<(), RequestError>>),
    /// Look for idle models.
    TickDue,
    /// Tell the router of the devices again.
    Announce,
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct EvictorActor;

/// Hears what a replica gets.
type GrantPort = RpcReplyPort<Result<Grant, NoRoom>>;

/// What the actor holds.
#[derive(Debug)]
pub struct EvictorState {
    args: EvictorArgs,
    core: EvictorCore,
    next_asker: Asker,
    rooms: HashMap<Asker, (GrantPort, Place, Lease)>,
    answers: HashMap<Asker, RpcReplyPort<Result<(), RequestError>>>,
}

impl Actor for EvictorActor {
    type Msg = EvictorMsg;
    type State = EvictorState;
    type Arguments = EvictorArgs;

    async fn pre_start(&self, myself: ActorRef<EvictorMsg>, args: EvictorArgs) -> Result<EvictorState, ActorProcessingErr> {
        args.address.attach(myself);
        args.address.tell_after(TICK, EvictorMsg::TickDue);
        static LIVES: AtomicU64 = AtomicU64::new(0);
        let core = EvictorCore::new(args.config, args.pins.load())
            .after(Ask(LIVES.fetch_add(1, Ordering::Relaxed) * ASKS_OF_A_LIFE))
            .of(args.me.clone())
            .awaiting(args.models.places(), Instant::now());
        Ok(EvictorState { args, core, next_asker: 0, rooms: HashMap::new(), answers: HashMap::new() })
    }

    async fn handle(&self, _myself: ActorRef<EvictorMsg>, message: EvictorMsg, state: &mut EvictorState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        let event = match message {
            EvictorMsg::DeviceUp(device) => Event::DeviceUp { id: device.id, name: device.name, total: device.memory_total },
            EvictorMsg::Load(order, reply) => {
                let LoadOrder { profile, device, facts, in_turn } = *order;
                Event::Load { profile: Box::new(profile), device, facts, in_turn, asker: state.ask(reply) }
            }
            EvictorMsg::Room { place, lease, needs, reply } => {
                state.next_asker += 1;
                state.rooms.insert(state.next_asker, (reply, place.clone(), lease));
                Event::Room { place, lease, needs, asker: state.next_asker }
            }
            EvictorMsg::Loaded(place) => Event::Loaded(place),
            EvictorMsg::Failed(place) => Event::Failed(place),
            EvictorMsg::FilesCame(model) => Event::FilesCame(model),
            EvictorMsg::GaveUp(place) => Event::GaveUp(place),
            EvictorMsg::Used(place, busy) => Event::Used { place, busy },
            EvictorMsg::Here { place, since, profile, standing } => Event::Here { place, since, profile, standing },
            EvictorMsg::Holds { place, lease, bytes } => Event::Holds { place, lease, bytes },
            EvictorMsg::Retired(place, ask, verdict) => Event::Retired { place, ask, verdict },
            EvictorMsg::Release(place, lease) => Event::Released { place, lease },
            EvictorMsg::Dismissed(place, ask) => Event::Dismissed(place, ask),
            EvictorMsg::Outdated(model, device) => Event::Outdated((model, device)),
            EvictorMsg::Unload(model, device, reply) => Event::Unload { model, device, asker: state.ask(reply) },
            EvictorMsg::Pin(model, pinned, reply) => Event::Pin { model, pinned, asker: state.ask(reply) },
            EvictorMsg::TickDue => {
                state.args.address.tell_after(TICK, EvictorMsg::TickDue);
                Event::Tick
            }
            EvictorMsg::Announce => {
                state.args.router.tell(RouterMsg::OwnDevices(state.core.ledger().report()));
                return Ok(());
            }
            EvictorMsg::CouldFit(place, weights, reply) => {
                let _asker_left = reply.send(state.core.could_fit(&place, weights, Instant::now()));
                return Ok(());
            }
            EvictorMsg::Inspect(reply) => {
                let _asker_left = reply.send(state.inspect());
                return Ok(());
            }
        };
        state.apply(event);
        Ok(())
    }
}

impl EvictorState {
    fn ask(&mut self, reply: RpcReplyPort<Result<(), RequestError>>) -> Asker {
        self.next_asker += 1;
        self.answers.insert(self.next_asker, reply);
        self.next_asker
    }

    fn apply(&mut self, event: Event) {
        if let Event::Retired { place, verdict: Verdict::Goes, .. } = &event
            && self.core.makes_room(place)
        {
            metrics::on_eviction(&place.0, &self.args.me);
        }
        let mut saved = None;
        for effect in self.core.on_event(event, Instant::now()) {
            match effect {
                Effect::KeepPins(pins) => saved = Some(self.args.pins.save(pins)),
                Effect::Answer { asker, result } => self.answer(asker, result, saved.take()),
                effect => self.carry_out(effect),
            }
        }
        if let Some(saved) = saved {
            tokio::spawn(saved); // nobody waits for it
        }
    }

    /// Answers once what is to be kept is on the disk, for which nobody else waits.
    fn answer(
        &mut self,
        asker: Asker,
        result: Result<(), RequestError>,
        saved: Option<impl Future<Output = Result<(), String>> + Send + 'static>,
    ) {
        let Some(reply) = self.answers.remove(&asker) else { return };
        let Some(saved) = saved else {
            let _asker_left = reply.send(result);
            return;
        };
        tokio::spawn(async move {
            let kept = saved.await.map_err(|why| {
                let message = format!("it is so until this node is started again, and cannot be kept over that: {why}");
                RequestError::Internal { message }
            });
            let _asker_left = reply.send(result.and(kept));
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Host { profile, device, since } => self.args.node.tell(NodeMsg::Host(profile, device, since)),
            Effect::Retire(place, ask) => self.retire(place, ask),
            Effect::Dismiss(place, ask) => {
                info!(model = %place.0, device = %place.1, "model goes");
                self.args.node.tell(NodeMsg::Dismiss(place, ask));
            }
            Effect::Granted { asker, grant } => {
                let Some((reply, place, lease)) = self.rooms.remove(&asker) else { return };
                let granted = grant.is_ok();
                if reply.send(grant).is_err() && granted {
                    self.apply(Event::Released { place, lease }); // whoever asked has gone
                }
            }
            Effect::Forget(asker) => drop(self.rooms.remove(&asker)),
            Effect::Answer { asker, result } => self.answer(asker, result, None::<std::future::Ready<Result<(), String>>>),
            Effect::Pinned(place, pinned) => {
                if let Some(model) = self.args.models.get(&place.0, place.1) {
                    model.tell(ModelMsg::Pinned(pinned));
                }
            }
            Effect::GiveWay(place, gives_way) => {
                debug!(model = %place.0, device = %place.1, gives_way, "others wait for its room");
                if let Some(model) = self.args.models.get(&place.0, place.1) {
                    model.tell(ModelMsg::GiveWay(gives_way));
                }
            }
            Effect::KeepPins(pins) => drop(tokio::spawn(self.args.pins.save(pins))),
            Effect::RestartDevice(device) => {
                info!(%device, "opened anew, after so many loads and unloads");
                self.args.node.tell(NodeMsg::Restart(crate::device::path(device)));
            }
            Effect::Publish(devices) => self.args.router.tell(RouterMsg::OwnDevices(devices)),
        }
    }

    /// Asks in a task: a replica that hangs must not hold up all others. The task waits on after the deadline, for as long as the question lies
    /// with the replica: one that agrees late has given up its memory, and must go.
    fn retire(&self, place: Place, ask: Ask) {
        let address = self.args.address.clone();
        let told = move |place, verdict| address.tell(EvictorMsg::Retired(place, ask, verdict));
        let (reply, mut answer) = ractor::concurrency::oneshot();
        let model = self.args.models.get(&place.0, place.1);
        if model.is_none_or(|model| model.cast(ModelMsg::Retire(reply.into())).is_err()) {
            return told(place, Verdict::Silent);
        }
        tokio::spawn(async move {
            let in_time = tokio::time::timeout(RETIRE_DEADLINE, &mut answer).await;
            let answered = match in_time {
                Ok(answered) => answered,
                Err(_elapsed) => {
                    told(place.clone(), Verdict::Silent);
                    answer.await
                }
            };
            match answered {
                Ok(true) => told(place, Verdict::Goes),
                Ok(false) => told(place, Verdict::Stays),
                Err(_it_ended) => told(place, Verdict::Silent),
            }
        });
    }

    fn inspect(&self) -> Inspection {
        let used: Bytes = self.core.ledger().report().iter().map(|device| device.memory_used).sum();
        let counters = [
            ("residents", self.core.ledger().residents().count() as u64),
            ("evicted", self.core.n_evicted),
            ("refused", self.core.n_refused),
            ("bytes_promised", used.0),
            ("waiting_for_room", self.rooms.len() as u64),
        ];
        Inspection::new("keeping", counters)
    }
}
