//! The way of a model to the thread of its device.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::embed::EmbedWork;
use plexus_engine::executor::Slot;
use tokio::time::Instant;

use super::Reply;
use super::thread::Job;

/// A model's way to the thread: its steps, one at a time. It outlives neither the thread nor the device's actor: steps are then lost.
#[derive(Debug, Clone)]
pub struct StepQueue {
    jobs: mpsc::Sender<Job>,
    slot: Slot,
    generating: Generating,
}

/// The models that generate on a device now, each with the time that its steps take.
#[derive(Debug, Clone, Default)]
pub(super) struct Generating(Arc<Mutex<Vec<(Slot, Duration)>>>);

impl Generating {
    /// This model generates, in steps that take so long, or it does not.
    pub(super) fn set(&self, slot: Slot, step: Option<Duration>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(other, _)| *other != slot);
        all.extend(step.map(|step| (slot, step)));
    }

    /// Does one generate?
    pub(super) fn any(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn beside(&self, slot: Slot) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(other, _)| *other != slot).map(|(_, step)| *step).min()
    }
}

impl StepQueue {
    /// The way of the model in `slot`.
    pub(super) fn new(jobs: mpsc::Sender<Job>, slot: Slot, generating: Generating) -> Self {
        Self { jobs, slot, generating }
    }

    /// How long the steps of another model take that generates on the device, of several the shortest; absent if none does. What goes between two
    /// of them delays its streams.
    pub fn beside(&self) -> Option<Duration> {
        self.generating.beside(self.slot)
    }

    /// This model generates, in steps that take so long, or it does not: the others heed it.
    pub fn set_generating(&self, step: Option<Duration>) {
        self.generating.set(self.slot, step);
    }

    /// Runs one step of the model. If the thread has ended, the reply says so.
    pub fn step(&self, batch: Batch, reply: Reply<BatchOutput>) {
        let _lost = self.jobs.send(Job::Step { slot: self.slot, batch, given: Instant::now(), reply }); // dropped with its reply, which speaks for itself
    }

    /// Frees what the model holds, unless the thread has ended and freed it. A later life of the device, which numbers its slots anew, hears
    /// nothing of it.
    fn unload(&self) {
        self.generating.set(self.slot, None);
        let _freed_with_the_thread = self.jobs.send(Job::Unload { slot: self.slot });
    }

    /// Goes on with texts to embed by a piece, between two steps of whatever else is on the device. If the thread has ended, the reply says so.
    pub fn embed(&self, work: EmbedWork, reply: Reply<EmbedWork>) {
        let _lost = self.jobs.send(Job::Embed { slot: self.slot, work, reply }); // dropped with its reply
    }
}

/// A model on the device: dropping it frees the device's memory.
#[derive(Debug)]
pub struct OnDevice(StepQueue);

impl OnDevice {
    pub(super) fn new(steps: StepQueue) -> Self {
        Self(steps)
    }

    /// Takes its steps.
    pub fn steps(&self) -> &StepQueue {
        &self.0
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        self.0.unload();
    }
}
