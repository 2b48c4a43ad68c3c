//! What a device's thread is doing: written by it, read by the device's actor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plexus_engine::executor::{Held, Slot};
use plexus_types::Bytes;
use tokio::time::Instant;

use super::busy::Busy;

/// What the thread is doing, written by it and read by the actor.
#[derive(Debug)]
pub(super) struct Progress {
    steps: AtomicU64,
    loads: AtomicU64,
    /// What the device holds, of so many models.
    held: Mutex<(usize, Held)>,
    work: Mutex<Work>,
}

#[derive(Debug)]
struct Work {
    /// The job at hand: whether it is a step, and since when.
    running: Option<(bool, Instant)>,
    /// Those before it.
    busy: Busy,
}

impl Progress {
    /// That of a thread that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            steps: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            held: Mutex::default(),
            work: Mutex::new(Work { running: None, busy: Busy::new(now) }),
        }
    }

    /// One more load begins.
    pub(super) fn begin_load(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps and loads begun so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.steps.load(Ordering::Relaxed), self.loads.load(Ordering::Relaxed))
    }

    /// Whether the job at hand is a step, and how long it takes already.
    pub(super) fn running(&self) -> Option<(bool, Duration)> {
        let running = self.work().running;
        running.map(|(is_step, since)| (is_step, since.elapsed()))
    }

    /// The share of the last seconds in which the thread was at work, from 0 to 1.
    pub(super) fn utilization(&self, now: Instant) -> f32 {
        let work = self.work();
        work.busy.share(work.running.map(|(_, since)| since), now)
    }

    /// How many models the device holds, and how many bytes for them all.
    pub(super) fn held(&self) -> (usize, Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It holds so much, of each model.
    pub(super) fn note_held(&self, held: &[(Slot, Held)]) {
        let sum = |bytes: fn(&Held) -> Bytes| held.iter().map(|(_, held)| bytes(held)).sum();
        let all = Held { weights: sum(|held| held.weights), kv: sum(|held| held.kv) };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = (held.len(), all);
    }

    /// A job begins.
    pub(super) fn begin(&self, is_step: bool) {
        self.steps.fetch_add(u64::from(is_step), Ordering::Relaxed);
        self.work().running = Some((is_step, Instant::now()));
    }

    /// The job at hand has ended.
    pub(super) fn end(&self) {
        let mut work = self.work();
        if let Some((_, since)) = work.running.take() {
            work.busy.on_work(since, Instant::now());
        }
    }
}
