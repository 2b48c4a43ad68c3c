//! Whether the hub could be reached of late, here or by other nodes, and so how patiently it is asked.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A hub that could not be reached is asked in a hurry for so long.
const HURRIED_FOR: Duration = Duration::from_secs(60);

/// What is known of the way to the hub.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Option<Instant>>);

impl Reach {
    /// The hub could not be reached.
    pub(crate) fn on_unreached(&self, now: Instant) {
        *self.known() = Some(now);
    }

    /// It has answered, whatever it said.
    pub(super) fn on_reached(&self) {
        *self.known() = None;
    }

    /// Has somebody waited for it in vain not long ago? Then it is still asked, since its way may be open again or only this node's may be, but once.
    pub(super) fn is_hurried(&self, now: Instant) -> bool {
        self.known().is_some_and(|since| now.saturating_duration_since(since) < HURRIED_FOR)
    }

    fn known(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_could_not_be_reached_is_asked_in_a_hurry_until_it_answers_or_that_is_long_ago() {
        let (reach, now) = (Reach::default(), Instant::now());
        assert!(!reach.is_hurried(now));
        reach.on_unreached(now);
        assert!(reach.is_hurried(now + HURRIED_FOR / 2) && !reach.is_hurried(now + HURRIED_FOR));
        reach.on_reached();
        assert!(!reach.is_hurried(now));
    }
}
