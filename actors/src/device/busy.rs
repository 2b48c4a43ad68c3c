//! How much of the last seconds a device's thread was at work: pure.

use std::time::Duration;

use tokio::time::Instant;

/// So many seconds are looked back on, the present one included.
const LOOK_BACK_S: u64 = 10;

/// The work of a thread, by second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Busy {
    /// When the thread was started; seconds are counted from here.
    since: Instant,
    /// The work of a second, at its number modulo their number.
    seconds: [Duration; LOOK_BACK_S as usize],
    /// The number of the last second that was looked at.
    newest: u64,
}

impl Busy {
    /// A thread that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, seconds: [Duration::ZERO; LOOK_BACK_S as usize], newest: 0 }
    }

    /// It was at work from then until then, which is later than all that was told before.
    pub(super) fn on_work(&mut self, from: Instant, until: Instant) {
        let end = until.saturating_duration_since(self.since);
        let first = self.look_at(end);
        let mut at = from.saturating_duration_since(self.since).max(first);
        while at < end {
            let next = Duration::from_secs(at.as_secs() + 1).min(end);
            self.seconds[place(at.as_secs())] += next - at;
            at = next;
        }
    }

    /// The share of the last seconds, or of all since it began, in which it was at work, with what it does since `running`. From 0 to 1.
    pub(super) fn share(mut self, running: Option<Instant>, now: Instant) -> f32 {
        self.on_work(running.unwrap_or(now), now);
        let end = now.saturating_duration_since(self.since);
        let span = end - self.look_at(end);
        let worked: Duration = self.seconds.iter().sum();
        if span.is_zero() { 0.0 } else { (worked.as_secs_f32() / span.as_secs_f32()).min(1.0) }
    }

    /// It is so late: forgets what is too long ago, and says where what is remembered begins.
    fn look_at(&mut self, now: Duration) -> Duration {
        let first = now.as_secs().saturating_sub(LOOK_BACK_S - 1);
        for second in (self.newest + 1).max(first)..=now.as_secs() {
            self.seconds[place(second)] = Duration::ZERO;
        }
        self.newest = self.newest.max(now.as_secs());
        Duration::from_secs(first)
    }
}

fn place(second: u64) -> usize {
    (second % LOOK_BACK_S) as usize
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn percent(share: f32) -> u32 {
        (share * 100.0).round() as u32
    }

    #[test]
    fn work_counts_while_it_lasts_and_is_forgotten_after_some_seconds() {
        // CX-46
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut busy = Busy::new(begun);
        assert_eq!(percent(busy.share(None, begun)), 0);
        assert_eq!(percent(busy.share(Some(at(500)), at(1000))), 50, "it is still at it");
        busy.on_work(at(500), at(1000));
        assert_eq!(percent(busy.share(None, at(2000))), 25);
        assert_eq!(percent(busy.share(None, at(10_000))), 0, "nine seconds and the present one are looked at");
        busy.on_work(at(2000), at(60_000));
        assert_eq!(percent(busy.share(None, at(60_500))), 95, "of the last nine and a half seconds, all but the last half");
        assert_eq!(percent(busy.share(None, at(90_000))), 0);
    }

    #[test]
    fn the_share_is_that_of_the_work_that_lies_within_the_time_looked_back_on() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let begun = Instant::now();
            let (mut busy, mut now_ms, mut jobs) = (Busy::new(begun), 0_u64, Vec::new());
            for _ in 0..200 {
                let from = now_ms + rng.random_range(0..3000);
                now_ms = from + [rng.random_range(0..200), rng.random_range(0..15_000)][rng.random_range(0..2)];
                busy.on_work(begun + Duration::from_millis(from), begun + Duration::from_millis(now_ms));
                jobs.push((from, now_ms));
                let later = now_ms + rng.random_range(0..4000);
                let first = (later / 1000).saturating_sub(LOOK_BACK_S - 1) * 1000;
                let within: u64 = jobs.iter().map(|(from, until)| (*until).max(first) - (*from).max(first)).sum();
                let expected = if later > first { within as f32 / (later - first) as f32 } else { 0.0 };
                let share = busy.share(None, begun + Duration::from_millis(later));
                assert!((share - expected).abs() < 1e-3, "seed {seed}: {share} for {expected}");
            }
        }
    }
}
