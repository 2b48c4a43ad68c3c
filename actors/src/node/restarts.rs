//! When a child that ended is started again, and when the node gives up.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::args::RestartBudget;

/// Pause before the first restart: long enough for what the former life held to be freed.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// What becomes of a child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is started again after a pause.
    Restart {
        /// The pause: doubled with each restart that the budget still remembers.
        after: Duration,
    },
    /// It ended too often: the node ends, so that whoever runs it starts it anew.
    GiveUp,
}

/// The restarts of one child.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    recent: VecDeque<Instant>,
    total: u32,
}

impl Restarts {
    /// The child ended.
    pub(super) fn on_end(&mut self, budget: &RestartBudget, now: Instant) -> Plan {
        while self.recent.front().is_some_and(|at| now - *at > budget.within) {
            self.recent.pop_front();
        }
        if self.recent.len() as u32 >= budget.restarts_max {
            return Plan::GiveUp;
        }
        let after = FIRST_PAUSE * 2u32.saturating_pow(self.recent.len() as u32).min(64);
        self.recent.push_back(now);
        self.total += 1;
        Plan::Restart { after }
    }

    /// Restarts in all.
    pub(super) fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> RestartBudget {
        RestartBudget { restarts_max: 2, within: Duration::from_secs(60) }
    }

    #[test]
    fn the_pause_doubles_and_a_child_that_ends_too_often_ends_the_node() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        assert_eq!(restarts.on_end(&budget(), now), Plan::Restart { after: FIRST_PAUSE });
        assert_eq!(restarts.on_end(&budget(), now), Plan::Restart { after: FIRST_PAUSE * 2 });
        assert_eq!(restarts.on_end(&budget(), now), Plan::GiveUp);
    }

    #[test]
    fn restarts_long_ago_are_forgiven() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        restarts.on_end(&budget(), now);
        restarts.on_end(&budget(), now);
        assert_eq!(restarts.on_end(&budget(), now + Duration::from_secs(61)), Plan::Restart { after: FIRST_PAUSE });
        assert_eq!(restarts.total(), 3);
    }
}
