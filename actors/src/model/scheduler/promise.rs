//! Blocks set aside for those that run, so that nobody runs out of memory in the middle of an answer (CX-93).
//!
//! Who gets a place is promised room for an answer as long as nine in ten were lately, or as its request allows, whichever is less: what requests
//! allow at most says little, as many clients always send the same high number. Whoever runs within its promise always finds a block. For one that
//! goes beyond, more are kept as far as there are any; of all that have gone beyond, the youngest is the first to lose its place.

use std::collections::VecDeque;

use super::{Entry, Scheduler};

/// Answers that are remembered.
const N_REMEMBERED: usize = 64;
/// What an answer is taken to need while none has ended, in tokens.
pub(super) const UNKNOWN: u32 = 256;

/// How long answers were lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers(VecDeque<u32>);

impl Answers {
    /// An answer of so many tokens ended.
    pub(super) fn on_end(&mut self, n_tokens: u32) {
        if self.0.len() == N_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(n_tokens);
    }

    /// Tokens that they had in the mean; absent while none has ended.
    pub(super) fn mean(&self) -> Option<f32> {
        let sum: f32 = self.0.iter().map(|n| *n as f32).sum();
        (!self.0.is_empty()).then(|| sum / self.0.len() as f32)
    }

    /// Tokens that nine in ten did not exceed.
    pub(super) fn expected(&self) -> u32 {
        let mut lengths: Vec<u32> = self.0.iter().copied().collect();
        let place = lengths.len() * 9 / 10;
        if lengths.is_empty() { UNKNOWN } else { *lengths.select_nth_unstable(place).1 }
    }
}

impl<T> Scheduler<T> {
    /// Tokens in all that an entry is to have room for.
    pub(super) fn promise_to(&self, entry: &Entry<T>) -> u32 {
        (entry.sequence.n_known() + self.answers.expected().max(1)).min(entry.sequence.n_max())
    }

    /// Blocks that are kept for those that run and not taken yet.
    pub(super) fn set_aside(&self) -> u32 {
        self.running.iter().map(|entry| self.limits.blocks(entry.kept).saturating_sub(entry.n_blocks())).sum()
    }

    /// Gives one that runs blocks for `n_tokens` in all: those kept for it, and others as far as they are kept for nobody. False, and nothing has
    /// changed, if that is not enough.
    #[must_use]
    pub(super) fn extend(&mut self, place: usize, n_tokens: u32) -> bool {
        let entry = &self.running[place];
        let own = self.limits.blocks(entry.kept).max(entry.n_blocks());
        let n_beyond = self.limits.blocks(n_tokens).saturating_sub(own);
        if n_beyond > 0 && n_beyond + self.set_aside() > self.pool.available() {
            return false;
        }
        self.pool.extend(self.running[place].sequence.table_mut(), n_tokens)
    }

    /// Keeps more for one that has used up what was kept for it, if there are as many blocks kept for nobody.
    pub(super) fn keep_more(&mut self, place: usize) {
        let entry = &self.running[place];
        if entry.sequence.n_known() <= entry.kept {
            return;
        }
        let kept = self.promise_to(entry);
        let n_more = self.limits.blocks(kept).saturating_sub(entry.n_blocks());
        if n_more + self.set_aside() <= self.pool.available() {
            self.running[place].kept = kept;
        }
    }
}

impl<T> Entry<T> {
    /// It has more tokens than it was promised room for.
    pub(super) fn is_beyond_promise(&self) -> bool {
        self.sequence.n_known() > self.promised
    }

    fn n_blocks(&self) -> u32 {
        self.sequence.table().blocks().len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_expected_to_be_as_long_as_nine_in_ten_were_lately() {
        let mut answers = Answers::default();
        assert_eq!((answers.expected(), answers.mean()), (UNKNOWN, None));
        answers.on_end(5);
        assert_eq!((answers.expected(), answers.mean()), (5, Some(5.0)));
        (0..90).for_each(|_| answers.on_end(1_000));
        (1..=N_REMEMBERED as u32).rev().for_each(|n| answers.on_end(n));
        assert_eq!((answers.expected(), answers.mean()), (58, Some(32.5)), "of 1 to 64");
    }
}
