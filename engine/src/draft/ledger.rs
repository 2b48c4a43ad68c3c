//! Which places of the KV pool a draft model has computed.

use crate::batch::{BlockCopy, BlockId};
use crate::executor::KvPlan;

/// The token of each place of the pool, and how much of each block the draft model has computed for the tokens that it holds now.
///
/// A block is written from its start on, and again only from where its sequence went another way: so what is computed of it is its beginning.
/// A *slot* is a place of the pool: see [`KvPlan::slot`].
#[derive(Debug)]
pub(super) struct Ledger {
    block_len: u32,
    /// `[n_blocks * block_len]`
    tokens: Vec<u32>,
    /// `[n_blocks]` places from the block's start on.
    n_drafted: Vec<u32>,
}

impl Ledger {
    /// Nothing is computed.
    pub(super) fn new(kv: KvPlan) -> Self {
        Self {
            block_len: kv.block_len,
            tokens: vec![0; kv.n_blocks as usize * kv.block_len as usize],
            n_drafted: vec![0; kv.n_blocks as usize],
        }
    }

    /// The model copies blocks. The draft model computes what it needs of them anew: that is less than a block.
    pub(super) fn copy(&mut self, copies: &[BlockCopy]) {
        for BlockCopy { from, to } in copies {
            let (from, to) = ((from.0 * self.block_len) as usize, (to.0 * self.block_len) as usize);
            self.tokens.copy_within(from..from + self.block_len as usize, to);
            self.n_drafted[to / self.block_len as usize] = 0;
        }
    }

    /// These slots hold these tokens from now on, which the draft model has yet to compute.
    pub(super) fn record(&mut self, written: impl IntoIterator<Item = (u32, u32)>) {
        for (slot, token) in written {
            self.tokens[slot as usize] = token;
            let n = &mut self.n_drafted[(slot / self.block_len) as usize];
            *n = (*n).min(slot % self.block_len);
        }
    }

    /// The draft model computes a slot, and has computed or computes before it all that lie before it in the sequence.
    pub(super) fn mark(&mut self, slot: u32) {
        let n = &mut self.n_drafted[(slot / self.block_len) as usize];
        *n = (*n).max(slot % self.block_len + 1);
    }

    /// Of the first `n` positions of a sequence with these blocks, how many from the first on the draft model has computed.
    pub(super) fn n_drafted(&self, table: &[BlockId], n: u32) -> u32 {
        for (block, before) in table.iter().zip((0..n).step_by(self.block_len as usize)) {
            let drafted = self.n_drafted[block.0 as usize];
            if drafted < self.block_len.min(n - before) {
                return before + drafted;
            }
        }
        n
    }

    /// The token of a slot.
    pub(super) fn token(&self, slot: u32) -> u32 {
        self.tokens[slot as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_anew_is_computed_anew_and_what_lies_before_it_is_not() {
        let kv = KvPlan { n_blocks: 4, block_len: 4 };
        let mut ledger = Ledger::new(kv);
        let table = [BlockId(2), BlockId(0)];
        let slots: Vec<u32> = (0..6).map(|position| kv.slot(&table, position)).collect();
        assert_eq!(slots, [8, 9, 10, 11, 0, 1]);
        ledger.record(slots.iter().map(|slot| (*slot, 70 + slot)));
        assert_eq!(ledger.n_drafted(&table, 6), 0);
        slots.iter().for_each(|slot| ledger.mark(*slot));
        assert_eq!((ledger.n_drafted(&table, 6), ledger.token(9)), (6, 79));
        ledger.record([(1, 5)]);
        assert_eq!((ledger.n_drafted(&table, 6), ledger.token(1)), (5, 5));
        ledger.record([(10, 5)]);
        assert_eq!(ledger.n_drafted(&table, 6), 2);
    }

    #[test]
    fn a_copied_block_has_its_tokens_and_is_computed_anew() {
        let mut ledger = Ledger::new(KvPlan { n_blocks: 2, block_len: 4 });
        ledger.record((0..4).map(|slot| (slot, slot)));
        (0..4).for_each(|slot| ledger.mark(slot));
        ledger.copy(&[BlockCopy { from: BlockId(0), to: BlockId(1) }]);
        assert_eq!((ledger.n_drafted(&[BlockId(1)], 2), ledger.n_drafted(&[BlockId(0)], 2), ledger.token(6)), (0, 2, 2));
    }
}
