//! One device, one actor, one OS thread.
//!
//! The thread runs jobs in the order in which they come, and loads between them; each resident model has at most one step out at a time, so few wait.
//! The actor loads, and watches how long a step or a part of a load takes; a model frees itself, on the thread that holds it. Supervised by
//! [`crate::node`]; supervises nobody. A restart loses the weights on the device and the jobs held: each of their replies is answered with
//! [`DeviceError::Lost`], and the supervisor tells the models to load again.

mod busy;
mod loads;
mod progress;
mod steps;
mod thread;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use plexus_engine::executor::{DeviceDescription, KvPlan, Slot};
use plexus_engine::model::ModelFiles;
use plexus_types::DeviceId;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::time::Instant;
use tracing::info;

use self::loads::Load;
pub use self::steps::{OnDevice, StepQueue};
use self::thread::{DeviceThread, Job, Report};
use crate::address::Address;
use crate::args::{DeviceSpec, PARTS_LONGER};
use crate::evictor::EvictorMsg;
use crate::inspect::Inspection;

/// How often the job at hand is looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Why a job gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The device's thread or actor ended with the job in hand.
    #[error("the device was lost")]
    Lost,
    /// The job failed.
    #[error("{0}")]
    Engine(String),
}

/// Where the result of a job goes: called exactly once, with [`DeviceError::Lost`] if the job is dropped undone.
pub struct Reply<T>(Option<Receive<T>>);

type Receive<T> = Box<dyn FnOnce(Result<T, DeviceError>) + Send>;

impl<T> Reply<T> {
    /// Wraps the receiver of the result.
    pub fn new(receive: impl FnOnce(Result<T, DeviceError>) + Send + 'static) -> Self {
        Self(Some(Box::new(receive)))
    }

    fn send(mut self, result: Result<T, DeviceError>) {
        if let Some(receive) = self.0.take() {
            receive(result);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(receive) = self.0.take() {
            receive(Err(DeviceError::Lost));
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct DeviceArgs {
    /// Its own address.
    pub address: Address<DeviceMsg>,
    /// The device and how to open it.
    pub spec: DeviceSpec,
    /// Told of the device's memory.
    pub evictor: Address<EvictorMsg>,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum DeviceMsg {
    /// Bring a model onto the device.
    Load {
        /// The model's files.
        files: Arc<ModelFiles>,
        /// Those of its draft model, if it has one.
        draft: Option<Arc<ModelFiles>>,
        /// Size of its KV pool.
        kv: KvPlan,
        /// The load is given up once nobody holds this any more.
        wanted: Weak<()>,
        /// Gets the model's place there.
        reply: Reply<OnDevice>,
    },
    /// From the thread.
    Thread(ThreadReport),
    /// Look at the running job.
    WatchDue,
    /// Tell the evictor of the device again.
    Announce,
    /// What is the device, and how busy?
    Vitals(RpcReplyPort<DeviceVitals>),
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// What a device's actor says of it.
#[derive(Debug, Clone)]
pub struct DeviceVitals {
    /// What it is; absent while it is being opened.
    pub description: Option<DeviceDescription>,
    /// The share of the last seconds in which its thread was at work, from 0 to 1.
    pub utilization: f32,
}

/// What the device's thread tells its actor.
#[derive(Debug)]
pub struct ThreadReport(Report);

/// The actor: see the module.
#[derive(Debug)]
pub struct DeviceActor;

/// What the actor holds.
#[derive(Debug)]
pub struct DeviceState {
    args: DeviceArgs,
    thread: DeviceThread,
    description: Option<DeviceDescription>,
    next_slot: u32,
}

impl Actor for DeviceActor {
    type Msg = DeviceMsg;
    type State = DeviceState;
    type Arguments = DeviceArgs;

    async fn pre_start(&self, myself: ActorRef<DeviceMsg>, args: DeviceArgs) -> Result<DeviceState, ActorProcessingErr> {
        // Returns at once: the device is opened on the thread, or the supervisor would wait here.
        args.address.attach(myself.clone());
        let (address, life) = (args.address.clone(), myself.get_id());
        let report = move |report| address.tell_life(life, DeviceMsg::Thread(ThreadReport(report)));
        let thread = DeviceThread::spawn(args.spec.id, args.spec.open.clone(), report)?;
        args.address.tell_after(WATCH_PERIOD, DeviceMsg::WatchDue);
        Ok(DeviceState { args, thread, description: None, next_slot: 0 })
    }

    async fn handle(&self, _myself: ActorRef<DeviceMsg>, message: DeviceMsg, state: &mut DeviceState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            DeviceMsg::Load { files, draft, kv, wanted, reply } => state.on_load(files, draft, kv, wanted, reply)?,
            DeviceMsg::Thread(ThreadReport(report)) => state.on_report(report)?,
            DeviceMsg::WatchDue => state.on_watch()?,
            DeviceMsg::Announce => state.announce(),
            DeviceMsg::Vitals(reply) => drop(reply.send(state.vitals())),
            DeviceMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

/// `Err` from here means "restart me", never "this job failed".
impl DeviceState {
    fn on_load(
        &mut self,
        files: Arc<ModelFiles>,
        draft: Option<Arc<ModelFiles>>,
        kv: KvPlan,
        wanted: Weak<()>,
        reply: Reply<OnDevice>,
    ) -> Result<(), DeviceError> {
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        let steps = self.thread.steps_of(slot);
        let reply = Reply::new(move |loaded: Result<Slot, DeviceError>| reply.send(loaded.map(|_slot| OnDevice::new(steps))));
        self.thread.give(Job::Load(Load { slot, files, draft, kv, wanted, reply }))
    }

    fn on_report(&mut self, report: Report) -> Result<(), ActorProcessingErr> {
        match report {
            Report::Opened(description) => {
                info!(device = %description.id, name = description.name, memory = %description.memory_total, "device open");
                self.description = Some(description);
                self.announce();
            }
            Report::Broken(why) => return Err(why.into()),
        }
        Ok(())
    }

    fn on_watch(&self) -> Result<(), ActorProcessingErr> {
        self.args.address.tell_after(WATCH_PERIOD, DeviceMsg::WatchDue);
        let hang_after = self.args.spec.hang_after;
        match self.thread.progress().running() {
            Some((true, time)) if time > hang_after => Err(format!("a step hangs since {time:?}").into()),
            Some((false, time)) if time > hang_after * PARTS_LONGER => Err(format!("the load of a model hangs since {time:?}").into()),
            Some(_) | None => Ok(()),
        }
    }

    fn announce(&self) {
        if let Some(description) = &self.description {
            self.args.evictor.tell(EvictorMsg::DeviceUp(description.clone()));
        }
    }

    fn vitals(&self) -> DeviceVitals {
        DeviceVitals { description: self.description.clone(), utilization: self.thread.progress().utilization(Instant::now()) }
    }

    fn inspect(&self) -> Inspection {
        let running = self.thread.progress().running();
        let state = match (&self.description, running) {
            (None, _) => "opening",
            (Some(_), None) => "idle",
            (Some(_), Some((true, _))) => "stepping",
            (Some(_), Some((false, _))) => "loading",
        };
        let running_ms = running.map_or(0, |(_, time)| time.as_millis() as u64);
        let (steps, loads) = self.thread.progress().counts();
        let (models, held) = self.thread.progress().held();
        let counters = [
            ("steps", steps),
            ("loads", loads),
            ("running_ms", running_ms),
            ("held_models", models as u64),
            ("held_weights_bytes", held.weights.0),
            ("held_kv_bytes", held.kv.0),
        ];
        Inspection::new(state, counters)
    }
}

/// The id under which a device's actor is known to people.
pub fn path(id: DeviceId) -> String {
    format!("node/device/{id}")
}
