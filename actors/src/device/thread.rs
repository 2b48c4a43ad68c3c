//! The OS thread that alone touches a device (CX-60, CX-61). Jobs go in, plain values come out; tensors never leave it.
//!
//! A step goes from a model's actor straight to the thread and its outcome straight back: each hand-over between threads costs more than
//! everything else that is done for a token beside the model's own work. What the device's actor must know, it reads from [`Progress`].
//!
//! Jobs are done in their order, but for loads: a model is read part by part, and what else there is to do comes between two parts, so that the
//! models that are there go on however long it takes to read another. While one of them generates, a load has half of the time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use plexus_engine::DraftingExecutor;
use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::embed::EmbedWork;
use plexus_engine::error::EngineError;
use plexus_engine::executor::{DeviceDescription, Slot};
use plexus_types::{DeviceId, chain};
use tokio::time::Instant;

use super::loads::{Load, Loads};
use super::progress::Progress;
use super::steps::{Generating, StepQueue};
use super::{DeviceError, Reply};
use crate::args::OpenDevice;

/// How long the thread looks for the next job before it sleeps: about what two wake-ups through the kernel cost, within which the actor of a
/// model that generates sends its next step.
const SPIN: Duration = Duration::from_micros(40);

/// A model that makes room for another is followed by it within this; the memory that it left is given back after that, between two jobs if need
/// be.
const KEPT: Duration = Duration::from_millis(500);

/// Work for the device.
pub(super) enum Job {
    Load(Load),
    Unload { slot: Slot },
    Step { slot: Slot, batch: Batch, given: Instant, reply: Reply<BatchOutput> },
    Embed { slot: Slot, work: EmbedWork, reply: Reply<EmbedWork> },
    End,
}

/// What the thread tells its actor.
#[derive(Debug)]
pub(super) enum Report {
    /// The device is open.
    Opened(DeviceDescription),
    /// The device cannot be trusted any more, or could not be opened.
    Broken(String),
}

/// The actor's side of the thread. Dropping it ends the thread after the job at hand; what the device holds is freed there.
#[derive(Debug)]
pub(super) struct DeviceThread {
    jobs: mpsc::Sender<Job>,
    generating: Generating,
    progress: Arc<Progress>,
}

impl DeviceThread {
    /// Starts the thread, which opens the device and reports.
    pub(super) fn spawn(id: DeviceId, open: OpenDevice, report: impl Fn(Report) + Send + 'static) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let progress = Arc::new(Progress::new(Instant::now()));
        let kind = match id.kind {
            plexus_types::DeviceKind::Cpu => "cpu",
            plexus_types::DeviceKind::Cuda => "cuda",
        };
        let (shared, generating) = (Arc::clone(&progress), Generating::default());
        let loads = Loads::new(generating.clone());
        thread::Builder::new().name(format!("{kind}-dev-{}", id.ordinal)).spawn(move || run(id, &open, &inbox, loads, &shared, &report))?;
        Ok(Self { jobs, generating, progress })
    }

    /// Hands over a job. Fails if the thread has ended.
    pub(super) fn give(&self, job: Job) -> Result<(), DeviceError> {
        self.jobs.send(job).map_err(|_| DeviceError::Lost)
    }

    /// The way to the thread for the model in `slot`.
    pub(super) fn steps_of(&self, slot: Slot) -> StepQueue {
        StepQueue::new(self.jobs.clone(), slot, self.generating.clone())
    }

    /// What the thread is doing.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        let _has_ended = self.jobs.send(Job::End);
    }
}

fn run(id: DeviceId, open: &OpenDevice, inbox: &mpsc::Receiver<Job>, mut loads: Loads, progress: &Progress, report: &impl Fn(Report)) {
    let mut executor = match catch_unwind(AssertUnwindSafe(|| open())) {
        Ok(Ok(executor)) => DraftingExecutor::new(executor),
        Ok(Err(error)) => return report(Report::Broken(format!("{id} could not be opened: {}", chain(&error)))),
        Err(_) => return report(Report::Broken(format!("opening {id} panicked"))),
    };
    report(Report::Opened(executor.describe()));
    // Until then memory is kept for a model that is loaded next: of those that went, of a load that failed, of a thread before this one.
    let mut kept_until = Some(Instant::now() + KEPT);
    loop {
        if loads.is_empty() && kept_until.take_if(|until| Instant::now() >= *until).is_some() {
            executor.rest();
        }
        let job = match next_job(inbox, &loads, kept_until) {
            Ok(Job::End) | Err(NoJob::Ended) => break,
            Ok(Job::Load(load)) => {
                progress.begin_load();
                loads.add(load);
                None
            }
            Ok(job) => Some(job),
            Err(NoJob::Idle) => None,
        };
        if !loads.is_empty() || matches!(job, Some(Job::Unload { .. })) {
            kept_until = Some(Instant::now() + KEPT);
        }
        // The executor is not used again after a panic: the thread ends and the device is opened anew.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(job) = job {
                progress.begin(matches!(job, Job::Step { .. } | Job::Embed { .. }));
                perform(&mut executor, job, progress)?;
                progress.end();
            }
            if loads.is_next(Instant::now()) {
                progress.begin(false);
                loads.go_on(&mut executor, progress)?;
                progress.end();
            }
            Ok(())
        }));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return report(Report::Broken(why)),
            Err(_) => return report(Report::Broken(format!("a job on {id} panicked"))),
        }
    }
}

/// Why there is no job.
enum NoJob {
    /// None came until then.
    Idle,
    /// There will be none.
    Ended,
}

/// The next job, which is not waited for while a part of a load is next.
fn next_job(inbox: &mpsc::Receiver<Job>, loads: &Loads, until: Option<Instant>) -> Result<Job, NoJob> {
    let since = Instant::now();
    loop {
        match inbox.try_recv() {
            Ok(job) => return Ok(job),
            Err(mpsc::TryRecvError::Disconnected) => return Err(NoJob::Ended),
            Err(mpsc::TryRecvError::Empty) if loads.is_next(Instant::now()) => return Err(NoJob::Idle),
            Err(mpsc::TryRecvError::Empty) if since.elapsed() < SPIN => thread::yield_now(),
            Err(mpsc::TryRecvError::Empty) => break,
        }
    }
    match loads.wait(Instant::now()).or(until) {
        None => inbox.recv().map_err(|_| NoJob::Ended),
        Some(until) => match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(job) => Ok(job),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(NoJob::Idle),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(NoJob::Ended),
        },
    }
}

/// `Err`: the device can no longer be trusted. Anything else that fails concerns the asker alone.
fn perform(executor: &mut DraftingExecutor, job: Job, progress: &Progress) -> Result<(), String> {
    match job {
        Job::Unload { slot } => {
            executor.unload(slot);
            progress.note_held(&executor.holds());
            Ok(())
        }
        Job::Step { slot, batch, given, reply } => {
            let queued = given.elapsed();
            settle(reply, executor.step(slot, &batch).map(|output| BatchOutput { queued, ..output }))
        }
        Job::Embed { slot, mut work, reply } => {
            let done = executor.embed(slot, &mut work);
            settle(reply, done.map(|()| work))
        }
        Job::Load(_) | Job::End => Ok(()), // are not for the executor
    }
}

/// Answers. `Err`: as for [`perform`].
pub(super) fn settle<T>(reply: Reply<T>, result: Result<T, EngineError>) -> Result<(), String> {
    match result {
        Ok(value) => reply.send(Ok(value)),
        Err(error @ EngineError::Device { .. }) => return Err(chain(&error)), // the reply is dropped: lost
        Err(error) => reply.send(Err(DeviceError::Engine(chain(&error)))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use plexus_engine::executor::KvPlan;
    use plexus_engine::model::{ModelFiles, ModelPath};
    use plexus_engine::scripted::{Script, ScriptedExecutor};
    use plexus_types::DeviceKind;

    use super::super::OnDevice;
    use super::*;

    const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

    fn life() -> DeviceThread {
        let open: OpenDevice = Arc::new(|| Ok(Box::new(ScriptedExecutor::new(CPU, Script::default()))));
        DeviceThread::spawn(CPU, open, |_| {}).unwrap()
    }

    type Outcome<T> = mpsc::Receiver<Result<T, DeviceError>>;

    fn reply<T: Send + 'static>() -> (Reply<T>, Outcome<T>) {
        let (reply, outcome) = mpsc::channel();
        (Reply::new(move |result| reply.send(result).unwrap()), outcome)
    }

    fn begin_load(thread: &DeviceThread, slot: u32, wanted: &Arc<()>) -> Outcome<Slot> {
        let files = Arc::new(ModelFiles::open(&ModelPath::Embedded).unwrap());
        let (reply, loaded) = reply();
        let (slot, kv) = (Slot(slot), KvPlan { n_blocks: 4, block_len: 16 });
        thread.give(Job::Load(Load { slot, files, draft: None, kv, wanted: Arc::downgrade(wanted), reply })).unwrap();
        loaded
    }

    fn load(thread: &DeviceThread, slot: u32) -> OnDevice {
        let wanted = Arc::new(());
        let slot = begin_load(thread, slot, &wanted).recv().unwrap().unwrap();
        OnDevice::new(thread.steps_of(slot))
    }

    #[test]
    fn while_a_model_is_read_there_are_steps_and_what_nobody_wants_any_more_is_given_up() {
        let script = Script { load_parts: u64::MAX, ..Script::default() };
        let open: OpenDevice = Arc::new(move || Ok(Box::new(ScriptedExecutor::new(CPU, script.clone()))));
        let thread = DeviceThread::spawn(CPU, open, |_| {}).unwrap();
        let (wanted, waits) = (Arc::new(()), Arc::new(()));
        let (endless, next) = (begin_load(&thread, 1, &wanted), begin_load(&thread, 2, &waits));
        for _ in 0..3 {
            let (reply, stepped) = reply();
            thread.steps_of(Slot(1)).step(Batch::default(), reply);
            let Err(DeviceError::Engine(why)) = stepped.recv().unwrap() else { panic!("it is not there yet") };
            assert!(why.contains("the slot holds no model"), "{why}");
        }
        assert_eq!(endless.try_recv(), Err(mpsc::TryRecvError::Empty), "it is being read");
        drop(wanted);
        assert_eq!(endless.recv().unwrap(), Err(DeviceError::Lost));
        assert_eq!(next.try_recv(), Err(mpsc::TryRecvError::Empty), "the next has its turn");
        assert_eq!(thread.progress().counts(), (3, 2));
        drop(thread);
        assert_eq!(next.recv().unwrap(), Err(DeviceError::Lost));
    }

    #[test]
    fn what_was_on_an_earlier_life_of_a_device_frees_nothing_on_the_next() {
        let (former, next) = (life(), life());
        let (old, new) = (load(&former, 0), load(&next, 0)); // each life numbers its slots anew
        drop(old);
        // Jobs are done in their order: behind a further load, what was freed is.
        let _more = [load(&former, 1), load(&next, 1)];
        assert_eq!((former.progress().held().0, next.progress().held().0), (1, 2));
        drop(new);
        let _even_more = load(&next, 2);
        assert_eq!(next.progress().held().0, 2);
    }

    #[test]
    fn a_model_of_a_device_that_has_ended_goes_without_it() {
        let thread = life();
        let model = load(&thread, 0);
        drop(thread);
        drop(model); // its thread ends, or has: nobody is left to be told
    }
}
