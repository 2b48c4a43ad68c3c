//! The models that are being brought onto a device, part by part.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use plexus_engine::DraftingExecutor;
use plexus_engine::executor::{KvPlan, Slot};
use plexus_engine::model::ModelFiles;
use tokio::time::Instant;

use super::Reply;
use super::progress::Progress;
use super::steps::Generating;
use super::thread::settle;

/// A model to be brought onto the device.
pub(super) struct Load {
    pub(super) slot: Slot,
    pub(super) files: Arc<ModelFiles>,
    pub(super) draft: Option<Arc<ModelFiles>>,
    pub(super) kv: KvPlan,
    /// Given up once nobody holds this any more.
    pub(super) wanted: Weak<()>,
    pub(super) reply: Reply<Slot>,
}

/// What is yet to be loaded.
pub(super) struct Loads {
    /// The first is being read, if that has begun.
    queue: VecDeque<(Load, bool)>,
    generating: Generating,
    /// Until then models that generate have the device to themselves, for as long as the last part took.
    others_until: Instant,
}

impl Loads {
    /// None yet, on a device on which these generate.
    pub(super) fn new(generating: Generating) -> Self {
        Self { queue: VecDeque::new(), generating, others_until: Instant::now() }
    }

    /// Is nothing to be loaded?
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// One more, behind those that wait.
    pub(super) fn add(&mut self, load: Load) {
        self.queue.push_back((load, false));
    }

    /// Until when others go first; absent if a part is next, or nothing is to be loaded.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        (!self.queue.is_empty() && now < self.others_until && self.generating.any()).then_some(self.others_until)
    }

    /// Is a part of a load next?
    pub(super) fn is_next(&self, now: Instant) -> bool {
        !self.queue.is_empty() && self.wait(now).is_none()
    }

    /// Goes on with the first by a part. `Err`: the device can no longer be trusted.
    pub(super) fn go_on(&mut self, executor: &mut DraftingExecutor, progress: &Progress) -> Result<(), String> {
        let Some((load, begun)) = self.queue.front_mut() else { return Ok(()) };
        if load.wanted.strong_count() == 0 {
            executor.unload(load.slot); // what was read of it
            self.queue.pop_front();
            return Ok(());
        }
        let since = Instant::now();
        let is_there = match std::mem::replace(begun, true) {
            false => executor.begin_load(load.slot, &load.files, load.draft.as_deref(), load.kv).map(|()| false),
            true => executor.load_part(load.slot),
        };
        let now = Instant::now();
        self.others_until = now + (now - since);
        if matches!(is_there, Ok(false)) {
            return Ok(());
        }
        progress.note_held(&executor.holds()); // before the reply: whoever hears that a model is there finds it here
        match self.queue.pop_front() {
            Some((load, _)) => settle(load.reply, is_there.map(|_| load.slot)),
            None => Ok(()),
        }
    }
}
