//! How fast the device is, and how much of prompts and guesses a step may compute for that.

use std::time::Duration;

use super::draft::{Candidate, DraftSpeed, Drafted, Ration, Record};
use super::measured::{Means, Quick};

/// Weight of the newest measurement.
const WEIGHT: f32 = 0.2;
/// While a prompt is read, the tokens of those who generate are meant to come so many times slower. The promise is 3 at most; measured speeds are
/// never quite those of the next step, and some steps take longer for reasons of their own.
const SLOWDOWN: f32 = 2.2;
/// Prompt tokens of a step at least: as many rows as products compute at once. As many are read while the speeds are not known.
const PROMPT_TOKENS_MIN: u32 = 8;
/// Weights of the newest measurement of what a prompt token costs beside those who generate: it is believed sooner where it is dearer, as it
/// becomes with each token that the next ones attend to.
const COST_WEIGHT_UP: f32 = 0.5;
const COST_WEIGHT_DOWN: f32 = 0.15;
/// Share of a mixed step that reading its prompt takes at least, whatever generating alone takes.
const PROMPT_SHARE_MIN: f32 = 0.1;

/// Rows up to which a step that generates costs about as much as with one, while that is not measured: weights are read once for all.
const ROWS_UNKNOWN: u32 = 8;
/// Where guesses do not pay, one of so many steps may have one, to see whether they do by now. Beside eight streams a row more takes a sixth of a step.
const GUESS_PERIOD: u32 = 16;
/// How often guesses are right at first.
const RIGHT_FIRST: f32 = 0.7;
/// Weight of one guess in how often they are right.
const RIGHT_WEIGHT: f32 = 0.03;
/// A gain below this is not worth a guess.
const GAIN_MIN: f32 = 1.03;
/// A step without guesses must have been measured so often before a draft model guesses: the first is often longer than the others.
const PLAIN_MIN: usize = 2;
/// Most rows of a step in which something is guessed.
const ROWS_MAX: u32 = 16;

/// What a step did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Did {
    /// Prompt tokens read.
    pub(super) n_prompt: u32,
    /// Sequences that generated.
    pub(super) n_generating: u32,
    /// Tokens guessed for them from their own texts.
    pub(super) n_guessed: u32,
    /// Of them, those that were right, and those that were judged: right or wrong by themselves, not for a wrong one before them.
    pub(super) n_right: u32,
    pub(super) n_judged: u32,
    /// What a draft model guessed for them.
    pub(super) drafted: Drafted,
    /// Tokens sampled.
    pub(super) n_sampled: u32,
    /// Seconds that it waited for other models on the device.
    pub(super) queued: f32,
}

/// Measured speeds; 0 while unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speeds {
    /// Prompt tokens read in a second.
    prefill: f32,
    /// Seconds that a prompt token adds to a step in which others generate. Small chunks cost more, and long contexts do.
    prompt_token: f32,
    /// Tokens generated in a second, over the whole batch.
    decode: f32,
    /// Seconds that a step takes in which nothing but generating happens, without guesses.
    decode_step: Means,
    /// The same, without what disturbed some of them: what guesses of a draft model are compared with.
    undisturbed: Quick,
    /// What a guess adds to such a step, as a share of it.
    guess: f32,
    /// How often a guess is right whose predecessors were.
    right: Rightness,
    /// Steps in which nothing but generating happened, guesses or not.
    n_decodes: u32,
    draft: DraftSpeed,
}

/// How often a guess is right whose predecessors were: a mean over the latest.
#[derive(Debug, Clone, Copy)]
struct Rightness(f32);

impl Default for Rightness {
    fn default() -> Self {
        Self(RIGHT_FIRST)
    }
}

impl Rightness {
    /// Of so many guesses that were judged so many were right.
    fn on_guesses(&mut self, n_right: u32, n_judged: u32) {
        if n_judged > 0 {
            let weight = 1.0 - (1.0 - RIGHT_WEIGHT).powi(n_judged as i32);
            self.0 += weight * (n_right as f32 / n_judged as f32 - self.0);
        }
    }

    /// As a share of all guesses.
    fn share(self) -> f32 {
        self.0
    }
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

    /// A step did this and took so long on the device.
    pub(super) fn on_step(&mut self, did: Did, time: Duration) {
        let seconds = time.as_secs_f32();
        let n_generating = did.n_generating as usize;
        let plain = self.decode_step.get(n_generating);
        if did.n_prompt > 0 {
            let others = if n_generating == 0 { 0.0 } else { plain };
            let reading = (seconds - others).max(seconds * PROMPT_SHARE_MIN);
            blend(&mut self.prefill, did.n_prompt as f32 / reading);
            if others > 0.0 {
                self.on_prompt_token(reading / did.n_prompt as f32);
            }
            return;
        }
        self.n_decodes = self.n_decodes.wrapping_add(1);
        blend(&mut self.decode, did.n_sampled as f32 / (seconds + did.queued));
        self.right.on_guesses(did.n_right, did.n_judged);
        let Did { n_guessed, drafted, .. } = did;
        let of_model = (seconds - drafted.seconds).max(f32::EPSILON);
        if n_guessed + drafted.n_rows == 0 {
            self.decode_step.blend(n_generating, of_model);
            self.undisturbed.push(n_generating, of_model);
        } else if plain > 0.0 && n_guessed > 0 && drafted.n_rows == 0 {
            blend(&mut self.guess, ((of_model / plain - 1.0) / n_guessed as f32).max(f32::EPSILON));
        }
        let undisturbed = self.undisturbed.get(n_generating);
        let alone = (undisturbed > 0.0 && n_guessed == 0).then_some(undisturbed);
        self.draft.on_step(drafted, n_generating, alone, of_model);
    }

    /// How often a draft model's guesses are right for a sequence.
    pub(super) fn drafts_right(&self, own: Record) -> f32 {
        self.draft.right(own)
    }

    /// What a draft model may do for each of the `candidates`, of `n_generating` sequences: guess `max` tokens at most.
    pub(super) fn drafts(&mut self, n_generating: usize, candidates: &[Candidate], max: u32) -> Vec<Ration> {
        let is_known = self.undisturbed.n_measured(n_generating) >= PLAIN_MIN;
        self.draft.rations(n_generating, self.undisturbed.get(n_generating), candidates, if is_known { max } else { 0 })
    }

    /// A prompt token was seen to cost so many seconds beside those who generate.
    fn on_prompt_token(&mut self, measured: f32) {
        let cost = &mut self.prompt_token;
        let weight = if measured > *cost { COST_WEIGHT_UP } else { COST_WEIGHT_DOWN };
        *cost = if *cost == 0.0 { measured } else { *cost + weight * (measured - *cost) };
    }

    /// How many tokens may be guessed in a step in which `n_generating` sequences generate.
    pub(super) fn guesses(&self, n_generating: usize) -> u32 {
        let left_of = |rows: u32| rows.saturating_sub(n_generating as u32);
        if self.guess == 0.0 {
            return left_of(ROWS_UNKNOWN);
        }
        // Now and then one may, or a cost once measured would never be measured again.
        let least = u32::from(self.n_decodes.is_multiple_of(GUESS_PERIOD));
        let each = best_length(self.guess * n_generating as f32, self.right.share(), ROWS_MAX);
        (each * n_generating as u32).max(least).min(left_of(ROWS_MAX))
    }

    /// How many prompt tokens a step may have in which `n_generating` sequences generate: so many that the step takes [`SLOWDOWN`] times as long as
    /// without them; `max` if none does. Then the device may have another model that generates, whose steps take as long as `beside` says: a step
    /// between two of them takes [`SLOWDOWN`] times as long as theirs, or as the shortest that this model has.
    pub(super) fn prompt_tokens(&self, n_generating: usize, beside: Option<Duration>, max: u32) -> u32 {
        let n = match (n_generating, beside) {
            (0, None) => return max,
            (0, Some(theirs)) => SLOWDOWN * theirs.as_secs_f32().max(self.undisturbed.get(1)) * self.prefill,
            (n, _) if self.prompt_token > 0.0 => (SLOWDOWN - 1.0) * self.decode_step.get(n) / self.prompt_token,
            _ => 0.0,
        };
        (n as u32).clamp(PROMPT_TOKENS_MIN.min(max), max)
    }

    /// How long a step takes in which so many sequences generate and nothing else happens; zero while that is not known.
    pub(super) fn decode_step(&self, n_generating: usize) -> Duration {
        Duration::try_from_secs_f32(self.decode_step.get(n_generating)).unwrap_or_default()
    }
}

/// The length with which most tokens come in a time: of `n` guesses, each right with probability `right` if those before it were, a step gives
/// `1 + right + ... + right^n` tokens, and takes `1 + n * cost` as long.
fn best_length(cost: f32, right: f32, max: u32) -> u32 {
    let (mut best, mut best_gain) = (0, GAIN_MIN);
    let (mut tokens, mut all_right) = (1.0, 1.0);
    for n in 1..=max {
        all_right *= right;
        tokens += all_right;
        let gain = tokens / (1.0 + n as f32 * cost);
        if gain > best_gain {
            (best, best_gain) = (n, gain);
        }
    }
    best
}

/// Moves a mean towards what was measured; the first measurement is taken as it is.
pub(super) fn blend(speed: &mut f32, measured: f32) {
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
    fn cheap_right_guesses_become_many_and_dear_or_wrong_ones_none() {
        let lengths = [(0.05, 0.95), (0.05, 0.5), (0.5, 0.8), (0.9, 0.8), (0.05, 0.05)].map(|(cost, right)| best_length(cost, right, 8));
        assert_eq!(lengths, [8, 3, 2, 0, 0]);
    }

    #[test]
    fn guesses_are_as_many_as_cost_little_and_few_where_many_generate() {
        let mut speeds = Speeds::default();
        assert_eq!([1, 4, 8, 20].map(|n| speeds.guesses(n)), [7, 4, 0, 0]);
        speeds.on_step(decoded(1), Duration::from_millis(100));
        let guessed = |n| Did { n_guessed: n, n_right: n, n_judged: n, ..decoded(1) };
        speeds.right.on_guesses(200, 200);
        let mut cheap = speeds;
        cheap.on_step(guessed(7), Duration::from_millis(107));
        assert_eq!([1, 10, 20].map(|n| cheap.guesses(n)), [15, 6, 0]);
        speeds.on_step(guessed(7), Duration::from_millis(800));
        assert_eq!([1, 10, 20].map(|n| speeds.guesses(n)), [0, 0, 0]);
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
                let n = speeds.prompt_tokens(n_generating, None, 512);
                gap = decode_ms + n as f32 * per_token_ms;
                speeds.on_step(Did { n_prompt: n, ..decoded(n_generating as u32) }, Duration::from_secs_f32(gap / 1e3));
            }
            let least = decode_ms + PROMPT_TOKENS_MIN as f32 * per_token_ms;
            prop_assert!(gap <= (2.3 * decode_ms).max(least * 1.001), "{gap} ms between tokens instead of {decode_ms}");
        }
    }

    #[test]
    fn with_nobody_generating_a_step_is_as_large_as_it_may_be() {
        let mut speeds = Speeds::default();
        let tokens = |speeds: &Speeds, n_generating, max| speeds.prompt_tokens(n_generating, None, max);
        assert_eq!((tokens(&speeds, 0, 512), tokens(&speeds, 1, 512), tokens(&speeds, 1, 8)), (512, PROMPT_TOKENS_MIN, 8));
        speeds.on_step(Did { n_prompt: 512, n_sampled: 1, ..Did::default() }, Duration::from_secs(1));
        speeds.on_step(decoded(1), Duration::from_millis(100));
        assert_eq!((tokens(&speeds, 0, 512), tokens(&speeds, 3, 512)), (512, PROMPT_TOKENS_MIN));
        assert_eq!((speeds.prefill_tokens_per_s(), speeds.decode_tokens_per_s()), (512.0, 10.0));
        speeds.on_step(Did { n_prompt: 16, ..decoded(3) }, Duration::from_millis(132));
        assert!((59..=60).contains(&tokens(&speeds, 3, 512)));
    }

    #[test]
    fn beside_another_model_that_generates_a_prompt_is_read_in_steps_about_as_long_as_its_own() {
        let mut speeds = Speeds::default();
        let beside = |ms| Some(Duration::from_millis(ms));
        assert_eq!(speeds.prompt_tokens(0, beside(50), 512), PROMPT_TOKENS_MIN, "nothing is known yet");
        speeds.on_step(Did { n_prompt: 500, n_sampled: 1, ..Did::default() }, Duration::from_secs(1));
        let tokens = [1, 100, 1000].map(|ms| speeds.prompt_tokens(0, beside(ms), 512));
        assert!(tokens[0] == PROMPT_TOKENS_MIN && (109..=110).contains(&tokens[1]) && tokens[2] == 512, "{tokens:?}");
        speeds.on_step(Did { queued: 0.96, ..decoded(1) }, Duration::from_millis(40));
        assert!((0.99..1.01).contains(&speeds.decode_tokens_per_s()), "what others took is a part of the time, but not of the step");
        assert!((43..=44).contains(&speeds.prompt_tokens(0, beside(1), 512)), "no step of this model is shorter than its own");
        assert_eq!(speeds.prompt_tokens(0, None, 512), 512);
        assert_eq!((speeds.decode_step(1).as_secs_f32(), Speeds::default().decode_step(1)), (0.04, Duration::ZERO));
    }

    #[test]
    fn guesses_that_are_seldom_right_are_few() {
        let mut speeds = Speeds::default();
        speeds.on_step(decoded(1), Duration::from_millis(100));
        speeds.on_step(Did { n_guessed: 4, n_right: 0, n_judged: 60, ..decoded(1) }, Duration::from_millis(140));
        let seen = (0..10 * GUESS_PERIOD).map(|_| {
            let n = speeds.guesses(1);
            speeds.on_step(decoded(1), Duration::from_millis(100));
            n
        });
        assert_eq!(seen.sum::<u32>(), 10, "one now and then");
    }

    #[test]
    fn a_chunk_grows_where_more_tokens_cost_no_more_and_shrinks_with_what_was_read_before() {
        let mut speeds = Speeds::default();
        speeds.on_step(decoded(8), Duration::from_millis(40));
        let mut read = |cost_ms: fn(u32) -> u32| {
            let chunks = (0..60).map(|_| {
                let n = speeds.prompt_tokens(8, None, 512);
                speeds.on_step(Did { n_prompt: n, ..decoded(8) }, Duration::from_millis(u64::from(40 + cost_ms(n))));
                n
            });
            chunks.last()
        };
        assert_eq!(read(|_| 5), Some(512), "a product of few rows takes as long as one of many");
        assert_eq!(read(|n| 8 * n), Some(PROMPT_TOKENS_MIN), "late in a long prompt each token attends to many");
        assert!(read(|n| 2 * n).is_some_and(|n| (20..=24).contains(&n)), "the next prompt begins anew");
    }

    #[test]
    fn a_step_that_was_quick_by_chance_does_not_make_the_next_one_long() {
        let mut speeds = Speeds::default();
        speeds.on_step(decoded(8), Duration::from_millis(40));
        let mixed = |ms| (Did { n_prompt: 40, ..decoded(8) }, Duration::from_millis(ms));
        (0..20).for_each(|_| speeds.on_step(mixed(80).0, mixed(80).1));
        assert!((47..=48).contains(&speeds.prompt_tokens(8, None, 512)));
        speeds.on_step(mixed(42).0, mixed(42).1);
        assert!(speeds.prompt_tokens(8, None, 512) < 58);
        speeds.on_step(mixed(160).0, mixed(160).1);
        assert!(speeds.prompt_tokens(8, None, 512) < 30, "a dear one is believed");
    }
}
