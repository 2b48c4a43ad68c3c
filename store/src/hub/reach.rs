//! Whether the hub could be reached of late, here or by other nodes, and so how patiently it is asked.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::tries::AllTries;

/// A hub that could not be reached is asked in a hurry for so long.
const HURRIED_FOR: Duration = Duration::from_secs(60);

/// What is known of the way to the hub.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    known: Mutex<Known>,
    /// What went wrong of late, of what is still tried.
    pub(crate) tries: AllTries,
}

#[derive(Debug, Default)]
struct Known {
    /// When somebody last waited for it in vain, if it has not answered since.
    unreached: Option<Instant>,
    /// When it last answered this node.
    reached: Option<Instant>,
}

impl Reach {
    /// This node could not reach the hub.
    pub(super) fn on_unreached(&self, now: Instant) {
        self.known().unreached = Some(now);
    }

    /// Another node could not. What this one has seen itself of late says more.
    pub(crate) fn on_told(&self, now: Instant) {
        let mut known = self.known();
        if !is_of_late(known.reached, now) {
            known.unreached = Some(now);
        }
    }

    /// It has answered this node, whatever it said.
    pub(super) fn on_reached(&self, now: Instant) {
        *self.known() = Known { unreached: None, reached: Some(now) };
    }

    /// Has somebody waited for it in vain not long ago? Then it is still asked, since its way may be open again or only this node's may be, but once.
    pub(super) fn is_hurried(&self, now: Instant) -> bool {
        is_of_late(self.known().unreached, now)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_late(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < HURRIED_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_could_not_be_reached_is_asked_in_a_hurry_until_it_answers_or_that_is_long_ago() {
        let (reach, now) = (Reach::default(), Instant::now());
        assert!(!reach.is_hurried(now));
        for unreached in [Reach::on_unreached, Reach::on_told] {
            let reach = Reach::default();
            unreached(&reach, now);
            assert!(reach.is_hurried(now + HURRIED_FOR / 2) && !reach.is_hurried(now + HURRIED_FOR));
            reach.on_reached(now);
            assert!(!reach.is_hurried(now));
        }
    }

    #[test]
    fn what_others_say_counts_less_than_what_a_node_has_seen_of_late() {
        let (reach, now) = (Reach::default(), Instant::now());
        reach.on_reached(now);
        reach.on_told(now + HURRIED_FOR / 2);
        assert!(!reach.is_hurried(now + HURRIED_FOR / 2));
        reach.on_told(now + HURRIED_FOR);
        assert!(reach.is_hurried(now + HURRIED_FOR), "that it has answered is long ago");
        reach.on_reached(now + HURRIED_FOR);
        reach.on_unreached(now + HURRIED_FOR);
        assert!(reach.is_hurried(now + HURRIED_FOR), "its own failure counts at once");
    }
}
