//! How many tokens a draft model is to guess: as many as make tokens come fastest, by what was measured.

use super::speed::ByCount;

/// Tokens guessed for a sequence while the cost is not known.
const LENGTH_FIRST: u32 = 3;
/// Tokens guessed for a sequence where guessing does not pay, to see whether it does by now.
const LENGTH_PROBE: u32 = 2;
/// Every so many steps one is made without a draft model, to know how long that takes, or, where it does not pay, some with it.
const PERIOD: u32 = 64;
/// Steps of a probe: in the first of them the draft model makes up for what it has not computed, which is not measured.
const PROBE_STEPS: u32 = 4;
/// How often guesses are right at first.
const RIGHT_FIRST: f32 = 0.7;
/// Weight of one guess in how often they are right.
const RIGHT_WEIGHT: f32 = 0.03;
/// A gain below this is not worth it.
const GAIN_MIN: f32 = 1.03;

/// What a draft model guessed in a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drafted {
    /// Tokens that it was to guess for a sequence, at most.
    pub(super) n_wanted: u32,
    /// Tokens that it guessed for a sequence, at most.
    length: u32,
    /// Guesses that were right, of all sequences.
    n_right: u32,
    /// Guesses that were right or wrong by themselves, not for a wrong one before them.
    n_judged: u32,
}

impl Drafted {
    /// For one sequence of the step `n` of `n_wanted` tokens were guessed, and the first `n_right` were right.
    pub(super) fn on_guess(&mut self, n_wanted: u32, n: u32, n_right: u32) {
        self.n_wanted = self.n_wanted.max(n_wanted);
        if n > 0 {
            self.length = self.length.max(n);
            self.n_right += n_right;
            self.n_judged += n_right + u32::from(n_right < n);
        }
    }
}

/// What guesses of the draft model cost and bring.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DraftSpeed {
    /// What a guess for each sequence adds to the time of a step, as a share of it.
    cost: ByCount,
    right: Rightness,
    /// Steps so far, without those that read prompts.
    n_steps: u32,
    /// The step before guessed too.
    is_warm: bool,
}

/// How often a guess is right whose predecessors were: a mean over the latest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rightness(f32);

impl Default for Rightness {
    fn default() -> Self {
        Self(RIGHT_FIRST)
    }
}

impl Rightness {
    /// Of so many guesses that were judged so many were right.
    pub(super) fn on_guesses(&mut self, n_right: u32, n_judged: u32) {
        if n_judged > 0 {
            let weight = 1.0 - (1.0 - RIGHT_WEIGHT).powi(n_judged as i32);
            self.0 += weight * (n_right as f32 / n_judged as f32 - self.0);
        }
    }

    /// As a share of all guesses.
    pub(super) fn share(self) -> f32 {
        self.0
    }
}

impl DraftSpeed {
    /// A step ended that took by `added` longer than without guesses, as a share; absent: not known, or not only for the draft model.
    pub(super) fn on_step(&mut self, did: Drafted, n_generating: usize, added: Option<f32>) {
        self.n_steps = self.n_steps.wrapping_add(1);
        if let Some(added) = added.filter(|_| self.is_warm && did.length > 0) {
            self.cost.blend(n_generating, (added / did.length as f32).max(f32::EPSILON));
        }
        self.right.on_guesses(did.n_right, did.n_judged);
        self.is_warm = did.length > 0;
    }

    /// A step read prompts.
    pub(super) fn on_other_step(&mut self) {
        self.is_warm = false;
    }

    /// Tokens to guess for each of so many sequences, `max` at most.
    pub(super) fn length(&self, n_generating: usize, max: u32) -> u32 {
        let turn = self.n_steps % PERIOD;
        let cost = self.cost.exactly(n_generating);
        if cost == 0.0 {
            return LENGTH_FIRST.min(max);
        }
        match (best_length(cost, self.right.share(), max), turn) {
            (0, 1..=PROBE_STEPS) => LENGTH_PROBE.min(max),
            (_, 0) => 0,
            (best, _) => best,
        }
    }
}

/// The length with which most tokens come in a time: of `n` guesses, each right with probability `right` if those before it were, a step gives
/// `1 + right + ... + right^n` tokens, and takes `1 + n * cost` as long.
pub(super) fn best_length(cost: f32, right: f32, max: u32) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn step(speed: &mut DraftSpeed, n: u32, n_right: u32, added: f32) {
        let mut did = Drafted::default();
        did.on_guess(n, n, n_right);
        speed.on_step(did, 1, Some(added));
    }

    #[test]
    fn cheap_right_guesses_become_many_and_dear_or_wrong_ones_none() {
        let lengths = [(0.05, 0.95), (0.05, 0.5), (0.5, 0.8), (0.9, 0.8), (0.05, 0.05)].map(|(cost, right)| best_length(cost, right, 8));
        assert_eq!(lengths, [8, 3, 2, 0, 0]);
    }

    #[test]
    fn where_it_does_not_pay_it_is_tried_again_now_and_then_and_where_it_does_it_is_left_out_now_and_then() {
        let guessed_of = |right_of: fn(u32) -> u32| {
            let mut speed = DraftSpeed::default();
            let lengths = (0..640).map(|_| {
                let n = speed.length(1, 8);
                step(&mut speed, n, right_of(n), 0.2 * n as f32);
                n
            });
            lengths.collect::<Vec<u32>>()
        };
        let wrong = guessed_of(|_| 0);
        let n_tried = wrong[200..].iter().filter(|n| **n > 0).count();
        assert!((20..50).contains(&n_tried), "{n_tried} of 440 steps were spent on wrong guesses");
        let right = guessed_of(|n| n);
        assert_eq!(right[200..].iter().filter(|n| **n == 0).count(), 6);
        assert_eq!(right[200..].iter().max(), Some(&8));
    }

    #[test]
    fn the_first_guesses_after_a_pause_are_not_measured() {
        let mut speed = DraftSpeed::default();
        step(&mut speed, 3, 3, 50.0);
        assert_eq!(speed.length(1, 8), LENGTH_FIRST);
        step(&mut speed, 3, 3, 0.3);
        assert_eq!(speed.length(1, 8), 5);
    }
}
