//! Which blocks of a model's KV pool are taken. Only the numbers: the memory itself is the executor's.

use crate::batch::BlockId;

/// A fixed number of KV blocks, handed out and taken back.
///
/// Every id is below `n_blocks`, and at any time is either free or handed out once.
#[derive(Debug, Clone)]
pub struct BlockPool {
    /// Free ids; the last is handed out next, so that recently used memory is used again.
    free: Vec<BlockId>,
    /// `[n_blocks]`: true while handed out.
    taken: Vec<bool>,
}

impl BlockPool {
    /// A pool of `n_blocks`, all free.
    pub fn new(n_blocks: u32) -> Self {
        Self { free: (0..n_blocks).rev().map(BlockId).collect(), taken: vec![false; n_blocks as usize] }
    }

    /// Blocks in all.
    pub fn total(&self) -> u32 {
        self.taken.len() as u32
    }

    /// Blocks that can be had.
    pub fn available(&self) -> u32 {
        self.free.len() as u32
    }

    /// Takes `n` blocks, or none at all if there are fewer.
    pub fn allocate(&mut self, n: u32) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(n as usize)?;
        let mut blocks = self.free.split_off(rest);
        blocks.reverse();
        for block in &blocks {
            self.taken[block.0 as usize] = true;
        }
        Some(blocks)
    }

    /// Takes blocks back.
    ///
    /// # Panics
    /// If a block is not handed out: two sequences would come to share it and answer from each other's memory.
    pub fn free(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        for block in blocks {
            let taken = self.taken.get_mut(block.0 as usize).expect("blocks come from this pool");
            assert!(std::mem::take(taken), "block {} was freed twice", block.0);
            self.free.push(block);
        }
    }

    /// Panics unless every block is either free or taken, and none is free twice.
    pub fn check_invariants(&self) {
        let mut free = vec![false; self.taken.len()];
        for block in &self.free {
            let seen = &mut free[block.0 as usize];
            assert!(!*seen, "block {} is free twice", block.0);
            *seen = true;
        }
        for (id, (free, taken)) in free.iter().zip(&self.taken).enumerate() {
            assert_ne!(free, taken, "block {id} is both free and taken, or neither");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn allocation_is_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.allocate(4), None);
        assert_eq!(pool.available(), 3);
        assert_eq!(pool.allocate(3).map(|blocks| blocks.len()), Some(3));
        assert_eq!(pool.allocate(1), None);
        assert_eq!(pool.allocate(0), Some(Vec::new()));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_is_caught() {
        let mut pool = BlockPool::new(2);
        let blocks = pool.allocate(1).unwrap();
        pool.free(blocks.clone());
        pool.free(blocks);
    }

    proptest! {
        #[test]
        fn blocks_are_never_shared_nor_lost(n_blocks in 0u32..12, steps in prop::collection::vec((any::<bool>(), 0u32..6), 0..60)) {
            let mut pool = BlockPool::new(n_blocks);
            let mut held: Vec<Vec<BlockId>> = Vec::new();
            for (take, n) in steps {
                if take {
                    held.extend(pool.allocate(n));
                } else if !held.is_empty() {
                    let blocks = held.swap_remove(n as usize % held.len());
                    pool.free(blocks);
                }
                pool.check_invariants();
                let mut ids: Vec<BlockId> = held.iter().flatten().copied().collect();
                prop_assert_eq!(ids.len() as u32 + pool.available(), n_blocks);
                prop_assert!(ids.iter().all(|id| id.0 < n_blocks));
                ids.sort();
                ids.dedup();
                prop_assert_eq!(ids.len() as u32 + pool.available(), n_blocks);
            }
        }
    }
}
