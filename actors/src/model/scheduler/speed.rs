//! How fast the device is, and how much of prompts and guesses a step may compute for that.

use std::time::Duration;

/// Weight of the newest measurement.
const WEIGHT: f32 = 0.2;
/// While a prompt is read, the tokens of those who generate come at most so many times slower. The promise is 3; measured speeds are never quite
/// those of the next step.
const SLOWDOWN: f32 = 2.5;
/// Prompt tokens of a step at least: below, the weights are read for too little.
const PROMPT_TOKENS_MIN: u32 = 16;
/// Prompt tokens of a step beside those who generate, while the speeds are not known.
const PROMPT_TOKENS_UNKNOWN: u32 = 64;
/// Share of a mixed step that reading its prompt takes at least, whatever generating alone takes.
const PROMPT_SHARE_MIN: f32 = 0.1;

/// Rows up to which a step that generates costs about as much as with one, while that is not measured: weights are read once for all.
const ROWS_UNKNOWN: u32 = 8;
/// Most rows of a step in which something is guessed.
const ROWS_MAX: u32 = 16;
/// What all guesses of a step may add to its time, as a share of it. Guesses are made longer only where they were right, and then gain more.
const GUESSES_SHARE: f32 = 0.5;

/// What a step did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Did {
    /// Prompt tokens read.
    pub(super) n_prompt: u32,
    /// Sequences that generated.
    pub(super) n_generating: u32,
    /// Tokens guessed for them.
    pub(super) n_guessed: u32,
    /// Tokens sampled.
    pub(super) n_sampled: u32,
}

/// Measured speeds; 0 while unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speeds {
    /// Prompt tokens read in a second.
    prefill: f32,
    /// Tokens generated in a second, over the whole batch.
    decode: f32,
    /// Seconds that a step takes in which nothing but generating happens, without guesses.
    decode_step: f32,
    /// What a guess adds to such a step, as a share of it.
    guess: f32,
}

impl Speeds {
    /// Prompt tokens read in a second; 0 while unknown.
    pub fn prefill_tokens_per_s(&self) -> f32 {
        self.prefill
    }

    /// Tokens generated in a second, over the whole batch; 0 while unknown.
    pub fn decode_tokens_per_s(&self) -> f32 {
        self.decode
    }

    /// A step did this and took so long.
    pub(super) fn on_step(&mut self, did: Did, time: Duration) {
        let seconds = time.as_secs_f32();
        if did.n_prompt > 0 {
            let others = if did.n_generating == 0 { 0.0 } else { self.decode_step };
            blend(&mut self.prefill, did.n_prompt as f32 / (seconds - others).max(seconds * PROMPT_SHARE_MIN));
            return;
        }
        blend(&mut self.decode, did.n_sampled as f32 / seconds);
        if did.n_guessed == 0 {
            blend(&mut self.decode_step, seconds);
        } else if self.decode_step > 0.0 {
            let added = (seconds / self.decode_step - 1.0) / did.n_guessed as f32;
            blend(&mut self.guess, added.max(f32::EPSILON));
        }
    }

    /// How many tokens may be guessed in a step in which `n_generating` sequences generate.
    pub(super) fn guesses(&self, n_generating: usize) -> u32 {
        let left_of = |rows: u32| rows.saturating_sub(n_generating as u32);
        if self.guess == 0.0 {
            return left_of(ROWS_UNKNOWN);
        }
        // One always may, or a cost once measured would never be measured again.
        ((GUESSES_SHARE / self.guess) as u32).max(1).min(left_of(ROWS_MAX))
    }

    /// How many prompt tokens a step may have in which `n_generating` sequences generate: `max` if none does; else so many that the step takes
    /// [`SLOWDOWN`] times as long as without them.
    pub(super) fn prompt_tokens(&self, n_generating: usize, max: u32) -> u32 {
        if n_generating == 0 {
            return max;
        }
        let spare = self.decode_step * (SLOWDOWN - 1.0) * self.prefill;
        let n = if spare > 0.0 { spare as u32 } else { PROMPT_TOKENS_UNKNOWN };
        n.clamp(PROMPT_TOKENS_MIN.min(max), max)
    }
}

fn blend(speed: &mut f32, measured: f32) {
    *speed = if *speed == 0.0 { measured } else { *speed + WEIGHT * (measured - *speed) };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(n_generating: u32) -> Did {
        Did { n_generating, n_sampled: n_generating, ..Did::default() }
    }

    #[test]
    fn guesses_are_as_many_as_cost_little_and_few_where_many_generate() {
        let mut speeds = Speeds::default();
        assert_eq!([1, 4, 8, 20].map(|n| speeds.guesses(n)), [7, 4, 0, 0]);
        speeds.on_step(decoded(1), Duration::from_millis(100));
        let guessed = |n_guessed| Did { n_guessed, ..decoded(1) };
        let mut cheap = speeds;
        cheap.on_step(guessed(7), Duration::from_millis(107));
        assert_eq!([1, 10, 20].map(|n| cheap.guesses(n)), [15, 6, 0]);
        speeds.on_step(guessed(7), Duration::from_millis(800));
        assert_eq!([1, 10, 20].map(|n| speeds.guesses(n)), [1, 1, 0]);
        (0..50).for_each(|_| speeds.on_step(guessed(1), Duration::from_millis(101)));
        assert!(speeds.guesses(1) > 10, "a cost that was measured wrongly is measured again");
    }

    proptest! {
        #[test]
        fn beside_those_who_generate_a_prompt_slows_them_down_by_no_more_than_three(
            decode_ms in 5.0f32..200.0, per_token_ms in 0.05f32..5.0, n_generating in 1usize..8,
        ) {
            let mut speeds = Speeds::default();
            (0..20).for_each(|_| speeds.on_step(decoded(n_generating as u32), Duration::from_secs_f32(decode_ms / 1e3)));
            let mut gap = 0.0;
            for _ in 0..40 {
                let n = speeds.prompt_tokens(n_generating, 512);
                gap = decode_ms + n as f32 * per_token_ms;
                speeds.on_step(Did { n_prompt: n, ..decoded(n_generating as u32) }, Duration::from_secs_f32(gap / 1e3));
            }
            let least = decode_ms + PROMPT_TOKENS_MIN as f32 * per_token_ms;
            prop_assert!(gap <= (3.0 * decode_ms).max(least * 1.001), "{gap} ms between tokens instead of {decode_ms}");
        }
    }

    #[test]
    fn with_nobody_generating_a_step_is_as_large_as_it_may_be() {
        let mut speeds = Speeds::default();
        assert_eq!(
            (speeds.prompt_tokens(0, 512), speeds.prompt_tokens(1, 512), speeds.prompt_tokens(1, 8)),
            (512, PROMPT_TOKENS_UNKNOWN, 8)
        );
        speeds.on_step(Did { n_prompt: 512, n_sampled: 1, ..Did::default() }, Duration::from_secs(1));
        speeds.on_step(decoded(1), Duration::from_millis(100));
        assert_eq!((speeds.prompt_tokens(0, 512), speeds.prompt_tokens(3, 512)), (512, 76));
        assert_eq!((speeds.prefill_tokens_per_s(), speeds.decode_tokens_per_s()), (512.0, 10.0));
    }
}
