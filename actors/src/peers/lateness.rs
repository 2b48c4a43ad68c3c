//! How late a frame is, without a common clock.

use std::time::Duration;

/// How long the quickest frame is remembered. Long enough to bridge silence, short enough that two clocks do not drift apart within it.
const REMEMBER_MS: u64 = 60_000;

/// Compares the sender's monotonic clock with ours: the quickest frame of the last minute or two shows how far they are apart, and what a
/// frame takes beyond that is time it lay about. A process that was stopped thus knows, when it runs on, how old its mail is.
#[derive(Debug, Default)]
pub(crate) struct Lateness {
    /// Least difference seen in the present minute and in the one before.
    least: [Option<i64>; 2],
    since_ms: u64,
}

impl Lateness {
    /// How much longer than the quickest a frame was under way that was sent at `sent_ms` and taken at `now_ms`.
    pub(crate) fn of(&mut self, sent_ms: u64, now_ms: u64) -> Duration {
        let apart = now_ms.wrapping_sub(sent_ms).cast_signed();
        if now_ms.saturating_sub(self.since_ms) >= REMEMBER_MS {
            self.least = [None, self.least[0].or(self.least[1])];
            self.since_ms = now_ms;
        }
        self.least[0] = Some(self.least[0].map_or(apart, |least| least.min(apart)));
        let least = self.least[1].map_or(apart, |former| former.min(apart)).min(self.least[0].unwrap_or(apart));
        Duration::from_millis(apart.wrapping_sub(least).max(0).cast_unsigned())
    }
}

#[cfg(test)]
mod tests {
    use super::Lateness;

    fn late(lateness: &mut Lateness, sent_ms: u64, now_ms: u64) -> u128 {
        lateness.of(sent_ms, now_ms).as_millis()
    }

    #[test]
    fn mail_that_lay_about_while_the_process_was_stopped_is_late() {
        let mut lateness = Lateness::default();
        assert_eq!(late(&mut lateness, 1_000_000, 500), 0);
        assert_eq!(late(&mut lateness, 1_000_250, 752), 2);
        assert_eq!(late(&mut lateness, 1_000_500, 9_000), 8_000);
        assert_eq!(late(&mut lateness, 1_008_500, 9_000), 0);
    }

    #[test]
    fn a_clock_that_runs_slow_does_not_make_everything_late() {
        let mut lateness = Lateness::default();
        // 100 millionths slow, an hour of frames every 250 ms.
        let worst = (0..4 * 3600).map(|n| late(&mut lateness, n * 250 - n * 250 / 10_000, n * 250)).max();
        assert!(worst.is_some_and(|worst| worst <= 15), "{worst:?} ms late");
    }

    #[test]
    fn any_clock_is_survived() {
        let mut lateness = Lateness::default();
        for (sent, now) in [(u64::MAX, 0), (0, u64::MAX), (5, 5), (u64::MAX, u64::MAX), (0, 0)] {
            late(&mut lateness, sent, now);
        }
    }
}
