//! Tells a client that takes nothing any more from one that is slow.

use std::time::Duration;

use tokio::time::Instant;

/// What a client has taken of its answer.
#[derive(Debug)]
pub(super) struct Patience {
    /// Events that were handed to the client's channel, and those of them that it had taken when it was looked at last.
    n_delivered: u64,
    n_taken: u64,
    /// When it was last seen to take something, or to have taken all.
    since: Instant,
}

impl Patience {
    /// For an answer that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { n_delivered: 0, n_taken: 0, since: now }
    }

    /// An event was handed to the client's channel.
    pub(super) fn on_delivered(&mut self) {
        self.n_delivered += 1;
    }

    /// `n_queued` events are in the client's channel: has it left all of them there for `client_timeout`?
    pub(super) fn is_over(&mut self, n_queued: usize, client_timeout: Duration, now: Instant) -> bool {
        let n_taken = self.n_delivered.saturating_sub(n_queued as u64);
        if n_queued == 0 || n_taken > self.n_taken {
            (self.n_taken, self.since) = (n_taken, now);
        }
        now.saturating_duration_since(self.since) >= client_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(300);

    #[test]
    fn who_takes_nothing_is_given_up_and_who_takes_one_event_in_time_is_not() {
        let begun = Instant::now();
        let after = |s| begun + Duration::from_secs(s);
        let mut patience = Patience::new(begun);
        (0..10).for_each(|_| patience.on_delivered());
        assert!(!patience.is_over(10, TIMEOUT, after(299)));
        assert!(!patience.is_over(9, TIMEOUT, after(300)), "it took one");
        patience.on_delivered();
        assert!(!patience.is_over(10, TIMEOUT, after(599)), "what is added is not what is taken");
        assert!(patience.is_over(10, TIMEOUT, after(600)));
    }

    #[test]
    fn who_has_taken_all_may_wait_for_as_long_as_the_model_needs() {
        let begun = Instant::now();
        let mut patience = Patience::new(begun);
        assert!(!patience.is_over(0, TIMEOUT, begun + 2 * TIMEOUT), "nothing has come yet");
        patience.on_delivered();
        assert!(!patience.is_over(1, TIMEOUT, begun + 2 * TIMEOUT), "it has only just come");
        assert!(patience.is_over(1, TIMEOUT, begun + 3 * TIMEOUT));
    }
}
