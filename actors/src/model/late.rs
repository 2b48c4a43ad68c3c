//! Who waits for a place in the batch for too long is refused, with a time to come back.

use std::time::Duration;

use plexus_types::{ModelProfile, RequestError};
use tokio::time::Instant;

use super::{ModelMsg, ModelState, Phase};

/// Whoever is refused for want of a place is told to come back after so long at least, and at most.
const PLACE_WAIT_MIN: Duration = Duration::from_secs(1);
const PLACE_WAIT_MAX: Duration = Duration::from_secs(60);

impl ModelState {
    /// Refuses those that have waited for too long, and looks again when the next of them will have: a step that does not come to its end, or none
    /// that could begin, lets nobody wait for longer.
    pub(super) fn refuse_late(&mut self) {
        let (place_wait, now) = (self.place_wait(), Instant::now());
        let profile = &self.args.profile;
        let Phase::Loaded { batcher, .. } = &mut self.phase else { return };
        let n_late = batcher.refuse_late(now, profile.waiting_time, || late(profile, place_wait));
        self.rejected.late += n_late as u64;
        if !self.late_is_due
            && let Some(left) = batcher.time_to_late(now, profile.waiting_time)
        {
            self.late_is_due = true;
            self.args.address.tell_after(left, ModelMsg::LateDue);
        }
    }

    pub(super) fn on_late_due(&mut self) {
        self.late_is_due = false;
        self.refuse_late();
        self.report();
    }

    /// When a place in the queue is expected to be free: when one of those that run ends, by what was measured of speed and length of answers, or of
    /// the time that texts took.
    pub(super) fn place_wait(&self) -> Duration {
        let Phase::Loaded { batcher, .. } = &self.phase else { return PLACE_WAIT_MIN };
        let time = batcher.time_of_answer().or_else(|| self.embeds.time_to_next_end());
        time.unwrap_or_default().clamp(PLACE_WAIT_MIN, PLACE_WAIT_MAX)
    }
}

/// It has waited for as long as it may.
pub(super) fn late(profile: &ModelProfile, retry_after: Duration) -> RequestError {
    let message = format!("the model '{}' is busy: no place within {:?}", profile.id, profile.waiting_time);
    RequestError::Overloaded { message, retry_after }
}

/// There is no place in the queue.
pub(super) fn overloaded(profile: &ModelProfile, present: u32, retry_after: Duration) -> RequestError {
    let message = format!(
        "the model '{}' is busy: {present} requests run or wait, {} and {} may",
        profile.id, profile.running_max, profile.waiting_max
    );
    RequestError::Overloaded { message, retry_after }
}
