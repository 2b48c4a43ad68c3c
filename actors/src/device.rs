//! One device, one actor, one OS thread.
//!
//! The thread runs jobs in the order in which they come; the actor bounds how many wait and watches how long one takes. Supervised by
//! [`crate::node`]; supervises nobody. A restart loses the weights on the device and the jobs held: each of their replies is answered with
//! [`DeviceError::Lost`], and the supervisor tells the models to load again.

mod thread;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::executor::{DeviceDescription, KvPlan, Slot};
use plexus_engine::model::ModelFiles;
use plexus_types::DeviceId;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::time::Instant;
use tracing::info;

pub(crate) use self::thread::chain;
use self::thread::{DeviceThread, Job, Report};
use crate::address::Address;
use crate::args::DeviceSpec;
use crate::evictor::EvictorMsg;
use crate::inspect::Inspection;

/// Most jobs that wait: each resident model has one step out at a time, so this is many.
const JOBS_MAX: usize = 64;
/// A step that takes longer hangs: the largest chunk of a prompt takes seconds even on a slow processor.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the running step is looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Why a job gave no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Too many jobs wait; nothing was done.
    #[error("the device's queue is full")]
    Full,
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
    /// Bring a model onto the device. The slot in the answer names it from then on.
    Load {
        /// The model's files.
        files: Arc<ModelFiles>,
        /// Size of its KV pool.
        kv: KvPlan,
        /// Gets the slot.
        reply: Reply<Slot>,
    },
    /// Free what a slot holds.
    Unload(Slot),
    /// Run one step of the model in a slot.
    Step {
        /// Which model.
        slot: Slot,
        /// What to compute.
        batch: Batch,
        /// Gets the sampled tokens.
        reply: Reply<BatchOutput>,
    },
    /// From the thread.
    Thread(ThreadReport),
    /// Look at the running job.
    WatchDue,
    /// Tell the evictor of the device again.
    Announce,
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
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
    /// Jobs given to the thread and not finished: whether it is a step, and when it was given or, for the first, begun.
    outstanding: VecDeque<(bool, Instant)>,
    next_slot: u32,
    n_steps: u64,
    n_loads: u64,
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
        Ok(DeviceState { args, thread, description: None, outstanding: VecDeque::new(), next_slot: 0, n_steps: 0, n_loads: 0 })
    }

    async fn handle(&self, _myself: ActorRef<DeviceMsg>, message: DeviceMsg, state: &mut DeviceState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            DeviceMsg::Load { files, kv, reply } => state.on_load(files, kv, reply)?,
            DeviceMsg::Unload(slot) => state.give(false, Job::Unload { slot })?,
            DeviceMsg::Step { slot, batch, reply } => state.on_step(slot, batch, reply)?,
            DeviceMsg::Thread(ThreadReport(report)) => state.on_report(report)?,
            DeviceMsg::WatchDue => state.on_watch()?,
            DeviceMsg::Announce => state.announce(),
            DeviceMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

/// `Err` from here means "restart me", never "this job failed".
impl DeviceState {
    fn on_load(&mut self, files: Arc<ModelFiles>, kv: KvPlan, reply: Reply<Slot>) -> Result<(), DeviceError> {
        let slot = Slot(self.next_slot);
        self.next_slot += 1;
        self.n_loads += 1;
        self.give(false, Job::Load { slot, files, kv, reply })
    }

    fn on_step(&mut self, slot: Slot, batch: Batch, reply: Reply<BatchOutput>) -> Result<(), DeviceError> {
        if self.outstanding.len() >= JOBS_MAX {
            reply.send(Err(DeviceError::Full));
            return Ok(());
        }
        self.n_steps += 1;
        self.give(true, Job::Step { slot, batch, reply })
    }

    fn give(&mut self, is_step: bool, job: Job) -> Result<(), DeviceError> {
        self.outstanding.push_back((is_step, Instant::now()));
        self.thread.give(job)
    }

    fn on_report(&mut self, report: Report) -> Result<(), ActorProcessingErr> {
        match report {
            Report::Opened(description) => {
                info!(device = %description.id, name = description.name, memory = %description.memory_total, "device open");
                self.description = Some(description);
                self.announce();
            }
            Report::Finished => {
                self.outstanding.pop_front();
                if let Some((_, begun)) = self.outstanding.front_mut() {
                    *begun = Instant::now();
                }
            }
            Report::Broken(why) => return Err(why.into()),
        }
        Ok(())
    }

    fn on_watch(&self) -> Result<(), ActorProcessingErr> {
        self.args.address.tell_after(WATCH_PERIOD, DeviceMsg::WatchDue);
        match self.outstanding.front() {
            Some((true, begun)) if begun.elapsed() > STEP_TIMEOUT => Err(format!("a step hangs since {:?}", begun.elapsed()).into()),
            _ => Ok(()),
        }
    }

    fn announce(&self) {
        if let Some(description) = &self.description {
            self.args.evictor.tell(EvictorMsg::DeviceUp(description.clone()));
        }
    }

    fn inspect(&self) -> Inspection {
        let state = match (&self.description, self.outstanding.front()) {
            (None, _) => "opening",
            (Some(_), None) => "idle",
            (Some(_), Some((true, _))) => "stepping",
            (Some(_), Some((false, _))) => "loading",
        };
        let running_ms = self.outstanding.front().map_or(0, |(_, begun)| begun.elapsed().as_millis() as u64);
        Inspection::new(
            state,
            [("steps", self.n_steps), ("loads", self.n_loads), ("jobs", self.outstanding.len() as u64), ("running_ms", running_ms)],
        )
    }
}

/// The id under which a device's actor is known to people.
pub fn path(id: DeviceId) -> String {
    format!("node/device/{id}")
}
