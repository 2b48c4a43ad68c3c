//! How fast long prompts are read: pure.

use std::time::Duration;

use tokio::time::Instant;

use super::speed::blend;

/// Steps that read fewer tokens say little of long prompts: each of their tokens costs more.
const LONG_STEP: u32 = 128;
/// A speed is believed for so long. A device that was slow for a while is measured anew, however few prompts it is thought to be fast enough for.
pub(in crate::model) const SPEED_BELIEVED: Duration = Duration::from_secs(60);
/// Share of a step that reading takes at least, whatever is generated in it.
const SHARE_MIN: f32 = 0.1;

/// The speed at which long prompts were read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// Tokens in a second; 0 while unknown.
    speed: f32,
    measured: Option<Instant>,
}

impl Reading {
    /// A step ended that read so many tokens of prompts and took so long, `others` of it for those who generate.
    pub(super) fn on_step(&mut self, n_prompt: u32, time: Duration, others: Duration, now: Instant) {
        if n_prompt < LONG_STEP || time.is_zero() {
            return;
        }
        if self.speed(now).is_none() {
            self.speed = 0.0;
        }
        let seconds = time.saturating_sub(others).max(time.mul_f32(SHARE_MIN)).as_secs_f32();
        blend(&mut self.speed, n_prompt as f32 / seconds);
        self.measured = Some(now);
    }

    /// Tokens in a second; absent while nothing was measured of late.
    pub(super) fn speed(&self, now: Instant) -> Option<f32> {
        self.measured.filter(|at| now.saturating_duration_since(*at) < SPEED_BELIEVED).map(|_| self.speed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_steps_are_measured_and_believed_for_a_while() {
        // CX-30
        let begun = Instant::now();
        let (ms, mut reading) = (Duration::from_millis, Reading::default());
        reading.on_step(8, ms(100), Duration::ZERO, begun);
        assert_eq!(reading.speed(begun), None, "a short one says nothing");
        reading.on_step(512, ms(500), Duration::ZERO, begun);
        assert_eq!(reading.speed(begun), Some(1024.0));
        reading.on_step(256, ms(500), ms(250), begun);
        assert_eq!(reading.speed(begun), Some(1024.0), "what others took of a step is not counted");
        assert_eq!(reading.speed(begun + SPEED_BELIEVED), None);
        let later = begun + 2 * SPEED_BELIEVED;
        reading.on_step(512, ms(1000), Duration::ZERO, later);
        assert_eq!(reading.speed(later), Some(512.0), "what was measured long ago is forgotten");
    }
}
