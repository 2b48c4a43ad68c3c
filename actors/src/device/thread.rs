//! The OS thread that alone touches a device (CX-60, CX-61). Jobs go in, plain values come out; tensors never leave it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::error::EngineError;
use plexus_engine::executor::{DeviceDescription, Executor, KvPlan, Slot};
use plexus_engine::model::ModelFiles;
use plexus_types::DeviceId;

use super::{DeviceError, Reply};
use crate::args::OpenDevice;
use std::sync::Arc;

/// Work for the device.
pub(super) enum Job {
    Load { slot: Slot, files: Arc<ModelFiles>, kv: KvPlan, reply: Reply<Slot> },
    Unload { slot: Slot },
    Step { slot: Slot, batch: Batch, reply: Reply<BatchOutput> },
}

/// What the thread tells its actor.
#[derive(Debug)]
pub(super) enum Report {
    /// The device is open.
    Opened(DeviceDescription),
    /// A job ended, well or not; the device can take the next.
    Finished,
    /// The device cannot be trusted any more, or could not be opened.
    Broken(String),
}

/// The sending side. Dropping it ends the thread after the job at hand; what the device holds is freed there.
#[derive(Debug)]
pub(super) struct DeviceThread {
    jobs: mpsc::Sender<Job>,
}

impl DeviceThread {
    /// Starts the thread, which opens the device and reports.
    pub(super) fn spawn(id: DeviceId, open: OpenDevice, report: impl Fn(Report) + Send + 'static) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let kind = match id.kind {
            plexus_types::DeviceKind::Cpu => "cpu",
            plexus_types::DeviceKind::Cuda => "cuda",
        };
        thread::Builder::new().name(format!("{kind}-dev-{}", id.ordinal)).spawn(move || run(id, &open, &inbox, &report))?;
        Ok(Self { jobs })
    }

    /// Hands over a job. Fails if the thread has ended.
    pub(super) fn give(&self, job: Job) -> Result<(), DeviceError> {
        self.jobs.send(job).map_err(|_| DeviceError::Lost)
    }
}

fn run(id: DeviceId, open: &OpenDevice, inbox: &mpsc::Receiver<Job>, report: &impl Fn(Report)) {
    let mut executor = match catch_unwind(AssertUnwindSafe(|| open())) {
        Ok(Ok(executor)) => executor,
        Ok(Err(error)) => return report(Report::Broken(format!("{id} could not be opened: {}", chain(&error)))),
        Err(_) => return report(Report::Broken(format!("opening {id} panicked"))),
    };
    report(Report::Opened(executor.describe()));
    while let Ok(job) = inbox.recv() {
        // The executor is not used again after a panic: the thread ends and the device is opened anew.
        match catch_unwind(AssertUnwindSafe(|| perform(executor.as_mut(), job))) {
            Ok(Ok(())) => report(Report::Finished),
            Ok(Err(why)) => return report(Report::Broken(why)),
            Err(_) => return report(Report::Broken(format!("a job on {id} panicked"))),
        }
    }
}

/// `Err`: the device can no longer be trusted. Anything else that fails concerns the asker alone.
fn perform(executor: &mut dyn Executor, job: Job) -> Result<(), String> {
    match job {
        Job::Load { slot, files, kv, reply } => settle(reply, executor.load(slot, &files, kv).map(|()| slot)),
        Job::Unload { slot } => {
            executor.unload(slot);
            Ok(())
        }
        Job::Step { slot, batch, reply } => settle(reply, executor.step(slot, &batch)),
    }
}

fn settle<T>(reply: Reply<T>, result: Result<T, EngineError>) -> Result<(), String> {
    match result {
        Ok(value) => reply.send(Ok(value)),
        Err(error @ EngineError::Device { .. }) => return Err(chain(&error)), // the reply is dropped: lost
        Err(error) => reply.send(Err(DeviceError::Engine(chain(&error)))),
    }
    Ok(())
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
