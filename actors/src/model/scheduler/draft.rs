//! For which sequences a draft model guesses, and how many tokens: so that tokens come fastest, by what was measured.
//!
//! A step in which it guesses takes longer by its rounds, each of which computes one token of every sequence that it guesses for, and by the rows
//! in which the model checks the guesses. It gives more tokens by as many guesses as are right, which is another share for each sequence.
//! Before the draft model guesses for a sequence it has to read what it has not read of it, which pays only where enough is still to come.
//! Where nothing pays, a small share of the time goes into trying again.

use super::measured::Quick;

/// Tokens guessed in each step of a trial.
const TRIAL_LENGTH: u32 = 2;
/// Steps with guesses that a trial has.
const TRIAL_STEPS: u32 = 4;
/// Share of the time that goes into trials. What is not needed while guesses pay is there when they seem to pay no longer: a device that others use
/// for a moment makes them look dear.
const TRIAL_SHARE: f32 = 0.015;
/// One of so many steps is made without guesses, to know how long that takes.
const PERIOD: u32 = 32;
/// How often guesses are right at first.
const RIGHT_FIRST: f32 = 0.7;
/// [`RIGHT_FIRST`] counts as so many guesses of all sequences, and what is known of all as so many of a sequence's own.
const FIRST_WEIGHT: f32 = 2.0;
const ALL_WEIGHT: f32 = 4.0;
/// Weight of earlier guesses after each that is judged: of a sequence, and of all.
const OWN_KEPT: f32 = 0.98;
const ALL_KEPT: f32 = 0.99;
/// A gain below this is not worth beginning with. What has begun goes on while there is any, so that an unlucky row of guesses does not end it.
const GAIN_MIN: f32 = 1.03;
/// What a round, a row and a token that is read are taken to cost before that is measured, as shares of a step without guesses.
const ROUND_FIRST: f32 = 0.15;
const ROW_FIRST: f32 = 0.05;
const READ_FIRST: f32 = 0.01;
/// Reading fewer tokens takes about as long as a round: what one of them costs is measured where there are more.
const READ_MEASURED: u32 = 48;
/// Tokens that are read in a step in any case: what lookup guessed rightly, or a block that was copied.
const READ_MIN: u32 = 17;
/// Reading more than that has to save so many times the time that it takes: what is saved is only expected.
const READ_GAIN_MIN: f32 = 2.0;
/// Most tokens that are read in a step.
const READ_MAX: u32 = 512;
/// Steps in which much is read take at most so many times as long as others, as those beside prompts do.
const READ_SLOWDOWN: f32 = 2.2;

/// A sequence for which a draft model may guess.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// How often a guess is right whose predecessors were.
    pub(super) right: f32,
    /// Tokens to read before the first guess.
    pub(super) n_unread: u32,
    /// Tokens that are expected to come.
    pub(super) n_left: f32,
}

/// What a draft model may do for a sequence in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ration {
    /// Most tokens to guess.
    pub(super) n: u32,
    /// Most tokens to read before.
    pub(super) n_read: u32,
}

/// What a draft model did in a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drafted {
    /// Sequences for which it guessed.
    n_sequences: u32,
    /// Tokens that it guessed for one of them, at most.
    n_rounds: u32,
    /// Tokens that it guessed for all.
    pub(super) n_rows: u32,
    /// Tokens that it read for all.
    n_read: u32,
    /// Guesses that were right, of all sequences.
    n_right: u32,
    /// Guesses that were right or wrong by themselves, not for a wrong one before them.
    n_judged: u32,
    /// Seconds that it computed.
    pub(super) seconds: f32,
}

impl Drafted {
    /// For one sequence of the step `n_read` tokens were read and `n` guessed.
    pub(super) fn on_work(&mut self, n_read: u32, n: u32) {
        self.n_read += n_read;
        self.n_rows += n;
        self.n_rounds = self.n_rounds.max(n);
        self.n_sequences += u32::from(n > 0);
    }

    /// Of the `n` tokens that were guessed for a sequence the first `n_right` were right.
    pub(super) fn on_guess(&mut self, n: u32, n_right: u32) {
        self.n_right += n_right;
        self.n_judged += n_right + u32::from(n_right < n);
    }
}

/// How often a guess is right whose predecessors were, by the latest guesses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Record {
    n_right: f32,
    n_judged: f32,
}

impl Record {
    /// A sequence's own guesses: of `n` the first `n_right` were right.
    pub(super) fn on_guess(&mut self, n: u32, n_right: u32) {
        self.on_judged(n_right + u32::from(n_right < n), n_right, OWN_KEPT);
    }

    fn on_judged(&mut self, n_judged: u32, n_right: u32, kept: f32) {
        let kept = kept.powi(n_judged as i32);
        self.n_right = self.n_right * kept + n_right as f32;
        self.n_judged = self.n_judged * kept + n_judged as f32;
    }

    /// As a share of all guesses, where `prior` was to be expected, which counts as `weight` guesses.
    fn share(self, prior: f32, weight: f32) -> f32 {
        (weight * prior + self.n_right) / (weight + self.n_judged)
    }
}

/// What guesses of the draft model cost and bring.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DraftSpeed {
    /// Seconds of a round, for so many sequences.
    round: Quick,
    /// Seconds that a guess adds to the model's part of a step in which so many generate.
    row: Quick,
    /// Seconds that a token takes which is read; 0 while unknown.
    read: f32,
    right: Record,
    /// Steps so far, without those that read prompts.
    n_steps: u32,
    /// It guessed for the gain in the step before.
    is_on: bool,
    /// Seconds that trials may take; less than 0 where they took more.
    for_trials: f32,
    /// Steps with guesses that are left of a trial.
    trial_left: u32,
}

impl DraftSpeed {
    /// A step ended in which `n_generating` sequences generated and no prompt was read. Of its time the model took `seconds`, and would have taken
    /// `plain` without guesses; absent: that is not known, or not only the draft model guessed.
    pub(super) fn on_step(&mut self, did: Drafted, n_generating: usize, plain: Option<f32>, seconds: f32) {
        self.n_steps = self.n_steps.wrapping_add(1);
        self.right.on_judged(did.n_judged, did.n_right, ALL_KEPT);
        let round = self.round.get(did.n_sequences as usize);
        if did.n_read >= READ_MEASURED {
            let in_rounds = round * did.n_rounds.saturating_sub(1) as f32;
            let measured = ((did.seconds - in_rounds) / did.n_read as f32).max(f32::EPSILON);
            self.read = if self.read == 0.0 { measured } else { 0.5 * (self.read + measured) };
        } else if did.n_rounds > 0 && did.n_read <= 2 * did.n_sequences {
            self.round.push(did.n_sequences as usize, did.seconds / did.n_rounds as f32);
        }
        let Some(plain) = plain else { return };
        let added = (seconds - plain).max(0.0);
        if did.n_rows > 0 {
            self.row.push(n_generating, added / did.n_rows as f32);
        }
        self.for_trials += TRIAL_SHARE * plain;
        if self.trial_left > 0 {
            self.for_trials -= did.seconds + if did.n_rows > 0 { added } else { 0.0 };
            self.trial_left -= u32::from(did.n_rows > 0);
        }
    }

    /// How often the guesses of a sequence are right.
    pub(super) fn right(&self, own: Record) -> f32 {
        own.share(self.right.share(RIGHT_FIRST, FIRST_WEIGHT), ALL_WEIGHT)
    }

    /// What the draft model does for each of the `candidates`, of `n_generating` sequences that take `plain` seconds in a step without guesses.
    pub(super) fn rations(&mut self, n_generating: usize, plain: f32, candidates: &[Candidate], max: u32) -> Vec<Ration> {
        let none = vec![Ration::default(); candidates.len()];
        if max == 0 || candidates.is_empty() || self.n_steps.is_multiple_of(PERIOD) {
            return none;
        }
        let known = |measured: f32, first: f32| if measured > 0.0 { measured } else { first * plain };
        let costs = Costs {
            plain,
            n_generating: n_generating as f32,
            round: known(self.round.get(candidates.len()), ROUND_FIRST),
            row: known(self.row.get(n_generating), ROW_FIRST),
            read: known(self.read, READ_FIRST),
        };
        let rights: Vec<f32> =
            candidates.iter().map(|candidate| if costs.is_worth_reading(candidate, max) { candidate.right } else { 0.0 }).collect();
        let lengths = costs.lengths(&rights, max, if self.is_on { 1.0 } else { GAIN_MIN });
        self.is_on = lengths.iter().any(|n| *n > 0);
        if self.is_on {
            self.trial_left = 0;
            return costs.rations(candidates, &lengths);
        }
        let Some((place, nearest)) = candidates.iter().enumerate().min_by_key(|(_, candidate)| candidate.n_unread) else { return none };
        // What a guess was measured to cost may be wrong, which a trial is to show.
        let cost = costs.read * nearest.n_unread as f32 + (TRIAL_STEPS * TRIAL_LENGTH) as f32 * (ROUND_FIRST + ROW_FIRST) * plain;
        if self.trial_left == 0 && self.for_trials >= cost {
            (self.trial_left, self.for_trials) = (TRIAL_STEPS, cost);
        }
        let mut lengths = vec![0; candidates.len()];
        lengths[place] = if self.trial_left > 0 { TRIAL_LENGTH.min(max) } else { 0 };
        costs.rations(candidates, &lengths)
    }
}

/// Seconds that a step takes at present.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Without guesses.
    plain: f32,
    n_generating: f32,
    /// For a round of the draft model.
    round: f32,
    /// For a guess that the model checks.
    row: f32,
    /// For a token that the draft model reads.
    read: f32,
}

impl Costs {
    /// Will guesses save so much of the time of the tokens to come that it is worth to read what has not been read?
    fn is_worth_reading(&self, candidate: &Candidate, max: u32) -> bool {
        let Candidate { right, n_unread, n_left } = *candidate;
        if n_unread <= READ_MIN {
            return true;
        }
        let (mut extra, mut all_right) = (0.0, 1.0);
        let saved = (1..=max).map(|n| {
            all_right *= right;
            extra += all_right;
            let in_a_step = (extra * self.plain - n as f32 * self.round) / self.n_generating - n as f32 * self.row;
            in_a_step * n_left / (1.0 + extra)
        });
        saved.fold(0.0, f32::max) > READ_GAIN_MIN * n_unread as f32 * self.read
    }

    /// Tokens to guess for each sequence, by how often they are right there: as many as make most tokens come in a time, and none
    /// unless that is more than `gain_min` times as many as come without. The `n`-th guess for a sequence brings `right^n` tokens and takes a row;
    /// rounds are shared.
    fn lengths(&self, rights: &[f32], max: u32, gain_min: f32) -> Vec<u32> {
        let mut best = vec![0; rights.len()];
        let mut best_rate = gain_min * self.n_generating / self.plain;
        for n_rounds in 1..=max {
            // How many of the guesses for a sequence bring more than their rows would at the best rate so far.
            let length = |right: f32| (1..=n_rounds).take_while(|n| right.powi(*n as i32) > best_rate * self.row).count() as u32;
            let lengths: Vec<u32> = rights.iter().map(|right| length(*right)).collect();
            if lengths.iter().all(|n| *n < n_rounds) {
                break;
            }
            let gained = |(right, n): (&f32, &u32)| (1..=*n).map(|n| right.powi(n as i32)).sum::<f32>();
            let tokens = self.n_generating + rights.iter().zip(&lengths).map(gained).sum::<f32>();
            let seconds = self.plain + self.row * lengths.iter().sum::<u32>() as f32 + self.round * n_rounds as f32;
            if tokens / seconds > best_rate {
                (best, best_rate) = (lengths, tokens / seconds);
            }
        }
        best
    }

    /// What is to be guessed, and what is to be read for it in this step, the least first.
    fn rations(&self, candidates: &[Candidate], lengths: &[u32]) -> Vec<Ration> {
        let mut room = ((READ_SLOWDOWN - 1.0) * self.plain / self.read).clamp(READ_MIN as f32, READ_MAX as f32) as u32;
        let mut order: Vec<usize> = (0..candidates.len()).filter(|i| lengths[*i] > 0).collect();
        order.sort_by_key(|i| candidates[*i].n_unread);
        let mut rations = vec![Ration::default(); candidates.len()];
        for i in order {
            let n_unread = candidates[i].n_unread;
            // A step in which much is read is long enough.
            let (n, n_read) = if n_unread <= READ_MIN { (lengths[i], n_unread) } else { (1, n_unread.min(room)) };
            room = room.saturating_sub(n_read);
            if n_read > 0 {
                rations[i] = Ration { n, n_read };
            }
        }
        rations
    }
}

#[cfg(test)]
mod tests;
