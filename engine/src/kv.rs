//! Which blocks of a model's KV pool hold what. Only the numbers: the memory itself is the executor's.
//!
//! ```text
//!          allocate              store (full, computed)         last holder leaves
//!   free ───────────> private ──────────────────────────> held ───────────────────> idle ──evict──> free
//!     └────────<─────────┘ release                          └────────<──────────────┘ found again
//! ```
//! A *stored* block is a node of the tree: it holds the keys and values of certain tokens after those of its parent, is never written again, and
//! may be in the tables of any number of sequences. Who holds a block holds all of its ancestors, so an idle block has idle descendants only,
//! and all of them can be had: the leaf used longest ago is evicted first.

mod tree;

use std::collections::BTreeSet;

use self::tree::PrefixTree;
use crate::batch::{BlockCopy, BlockId};

/// A fixed number of KV blocks, handed out, shared, remembered and taken back.
#[derive(Debug, Clone)]
pub struct BlockPool {
    block_len: u32,
    /// Blocks that hold nothing; the last is handed out next, so that recently used memory is used again.
    free: Vec<BlockId>,
    /// `[n_blocks]` tables that a block is in, and copies that it is the source of.
    holders: Vec<u32>,
    tree: PrefixTree,
    /// `[n_blocks]` when the last holder left, in calls of [`Self::release`].
    left: Vec<u64>,
    clock: u64,
    /// Stored blocks without holders and children, those left longest ago first.
    evictable: BTreeSet<(u64, BlockId)>,
    /// Stored blocks without holders.
    n_idle: u32,
    n_evicted: u64,
}

/// The blocks of one sequence, in order of position. To be given back by [`BlockPool::release`]: dropped, its blocks are lost to the pool.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// The first so many are stored: they are read, never written.
    n_stored: usize,
    /// To be copied to the first block that is not stored before anything of it is read or written.
    copy_from: Option<BlockId>,
}

impl BlockTable {
    /// The blocks.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

/// A stored block with all that comes before it, to be recognised later: see [`BlockPool::still_holds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPrefix {
    block: BlockId,
    number: u64,
}

/// What the pool has of a sequence's tokens.
#[derive(Debug)]
struct Found {
    /// Stored blocks from the start on.
    blocks: Vec<BlockId>,
    /// A stored block of which only so many tokens, less than all, follow there.
    part: Option<(BlockId, u32)>,
}

impl BlockPool {
    /// A pool of `n_blocks` of `block_len` tokens, all free.
    ///
    /// # Panics
    /// If `block_len` is 0.
    pub fn new(n_blocks: u32, block_len: u32) -> Self {
        assert!(block_len > 0, "a block holds tokens");
        Self {
            block_len,
            free: (0..n_blocks).rev().map(BlockId).collect(),
            holders: vec![0; n_blocks as usize],
            tree: PrefixTree::new(n_blocks),
            left: vec![0; n_blocks as usize],
            clock: 0,
            evictable: BTreeSet::new(),
            n_idle: 0,
            n_evicted: 0,
        }
    }

    /// Blocks in all.
    pub fn total(&self) -> u32 {
        self.holders.len() as u32
    }

    /// Blocks that can be had: free ones, and idle ones, which would be forgotten.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.n_idle
    }

    /// Blocks that nobody holds and whose content is remembered.
    pub fn idle(&self) -> u32 {
        self.n_idle
    }

    /// A table with room for all of `tokens`, and how many of them need not be computed: what is stored is shared; where only a part of a stored
    /// block is of use, that block is to be copied (see [`Self::take_copy`]). The last token always has to be computed: its logits are wanted.
    ///
    /// `None`, and nothing has changed, if fewer than `reserve` blocks would be left.
    pub fn open(&mut self, tokens: &[u32], reserve: u32) -> Option<(BlockTable, u32)> {
        let mut found = self.find(&tokens[..tokens.len().saturating_sub(1)]);
        let n_blocks = tokens.len().div_ceil(self.block_len as usize);
        let n_new = (n_blocks - found.blocks.len()) as u32;
        let is_idle = |block: &BlockId| self.holders[block.0 as usize] == 0;
        let n_woken = found.blocks.iter().filter(|block| is_idle(block)).count() as u32;
        let needed = n_new + n_woken + reserve;
        if needed > self.available() {
            return None;
        }
        found.part = found.part.filter(|(block, _)| needed + u32::from(is_idle(block)) <= self.available());
        found.blocks.iter().chain(found.part.iter().map(|(block, _)| block)).for_each(|block| self.hold(*block));
        let n_stored = found.blocks.len();
        let n_cached = n_stored as u32 * self.block_len + found.part.map_or(0, |(_, n)| n);
        let mut table = BlockTable { blocks: found.blocks, n_stored, copy_from: found.part.map(|(block, _)| block) };
        let extended = self.extend(&mut table, tokens.len() as u32);
        debug_assert!(extended, "what is available was counted");
        Some((table, n_cached))
    }

    /// How many of the first of `tokens` [`Self::open`] would find, were they all to be had.
    pub fn n_found(&self, tokens: &[u32]) -> u32 {
        let found = self.find(&tokens[..tokens.len().saturating_sub(1)]);
        found.blocks.len() as u32 * self.block_len + found.part.map_or(0, |(_, n)| n)
    }

    fn find(&self, tokens: &[u32]) -> Found {
        let mut blocks: Vec<BlockId> = Vec::new();
        let mut rest = tokens;
        while let Some((head, tail)) = rest.split_at_checked(self.block_len as usize) {
            let Some(block) = self.tree.child(blocks.last().copied(), head) else { break };
            blocks.push(block);
            rest = tail;
        }
        let part = self.tree.nearest_child(blocks.last().copied(), rest);
        Found { blocks, part }
    }

    /// Gives a table room for `n_tokens` in all, evicting what is idle. False, and nothing has changed, if too few blocks can be had.
    #[must_use]
    pub fn extend(&mut self, table: &mut BlockTable, n_tokens: u32) -> bool {
        let wanted = n_tokens.div_ceil(self.block_len).saturating_sub(table.blocks.len() as u32);
        if wanted > self.available() {
            return false;
        }
        for _ in 0..wanted {
            if self.free.is_empty() {
                self.evict();
            }
            let block = self.free.pop().expect("a block is free or was evicted: they were counted");
            self.holders[block.0 as usize] = 1;
            table.blocks.push(block);
        }
        true
    }

    /// The copy that a table waits for, to be made in the next step before anything is computed, in the order in which copies are taken.
    ///
    /// Its source may be evicted at once: whoever gets it writes to it by a later copy, or after all copies.
    pub fn take_copy(&mut self, table: &mut BlockTable) -> Option<BlockCopy> {
        let from = table.copy_from.take()?;
        self.let_go(from);
        Some(BlockCopy { from, to: table.blocks[table.n_stored] })
    }

    /// Remembers the blocks of a table that are full with the first `n_tokens` of its sequence, all of which are computed. From now on they are
    /// found by others. A block that somebody else stored meanwhile for the same tokens takes the place of this one.
    pub fn store(&mut self, table: &mut BlockTable, n_tokens: u32, token: impl Fn(u32) -> u32) {
        debug_assert!(table.copy_from.is_none() || n_tokens <= table.n_stored as u32 * self.block_len, "a copy comes before what follows");
        while (table.n_stored as u32 + 1) * self.block_len <= n_tokens {
            let i = table.n_stored;
            let first = i as u32 * self.block_len;
            let tokens: Vec<u32> = (first..first + self.block_len).map(&token).collect();
            let parent = i.checked_sub(1).map(|before| table.blocks[before]);
            let own = table.blocks[i];
            match self.tree.child(parent, &tokens) {
                Some(stored) => {
                    self.hold(stored);
                    table.blocks[i] = stored;
                    self.let_go(own);
                }
                None => self.tree.insert(parent, tokens.into(), own),
            }
            table.n_stored += 1;
        }
    }

    /// The first `n_tokens` of a table, as far as they fill blocks, or else its first block; `None` while not all of that is stored.
    pub fn stored_prefix(&self, table: &BlockTable, n_tokens: u32) -> Option<StoredPrefix> {
        let last = (n_tokens / self.block_len).saturating_sub(1) as usize;
        let block = *table.blocks[..table.n_stored].get(last)?;
        Some(StoredPrefix { block, number: self.tree.number(block)? })
    }

    /// Is the block still stored, with the tokens that it had then? So are all before it, then.
    pub fn still_holds(&self, prefix: StoredPrefix) -> bool {
        self.tree.number(prefix.block) == Some(prefix.number)
    }

    /// Stored blocks that had to go for others so far.
    pub fn n_evicted(&self) -> u64 {
        self.n_evicted
    }

    /// Takes the blocks of a sequence back. What was stored is remembered until its memory is needed.
    pub fn release(&mut self, table: BlockTable) {
        self.clock += 1;
        table.copy_from.into_iter().chain(table.blocks.into_iter().rev()).for_each(|block| self.let_go(block));
    }

    fn hold(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        *holders += 1;
        if *holders == 1 {
            self.n_idle -= 1;
            self.evictable.remove(&(self.left[block.0 as usize], block));
        }
    }

    fn let_go(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        *holders = holders.checked_sub(1).expect("a block is let go by one of its holders");
        if *holders > 0 {
            return;
        }
        if !self.tree.holds(block) {
            return self.free.push(block);
        }
        self.left[block.0 as usize] = self.clock;
        self.n_idle += 1;
        if self.tree.is_leaf(block) {
            self.evictable.insert((self.clock, block));
        }
    }

    fn evict(&mut self) {
        let Some((_, block)) = self.evictable.pop_first() else { return };
        let parent = self.tree.remove(block);
        self.n_idle -= 1;
        self.n_evicted += 1;
        self.free.push(block);
        if let Some(parent) = parent.filter(|parent| self.holders[parent.0 as usize] == 0 && self.tree.is_leaf(*parent)) {
            self.evictable.insert((self.left[parent.0 as usize], parent));
        }
    }

    /// What must hold, given all tables that are out.
    ///
    /// Errors: a block is neither free, stored nor in a table, or two of them; it is counted wrongly; or two sequences may write to it.
    pub fn check_invariants<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut holders = vec![0; self.holders.len()];
        let mut writers = vec![0; self.holders.len()];
        for table in tables {
            table.blocks.iter().chain(&table.copy_from).for_each(|block| holders[block.0 as usize] += 1);
            table.blocks[table.n_stored..].iter().for_each(|block| writers[block.0 as usize] += 1);
            if let Some(block) = table.blocks[..table.n_stored].iter().find(|block| !self.tree.holds(**block)) {
                return Err(format!("block {} should be stored and is not", block.0));
            }
            let parents = table.blocks[..table.n_stored].windows(2).all(|pair| self.tree.parent(pair[1]) == Some(pair[0]));
            if !parents {
                return Err("the stored blocks of a table are no way down the tree".into());
            }
        }
        let mut free = vec![0; self.holders.len()];
        self.free.iter().for_each(|block| free[block.0 as usize] += 1);
        let mut n_idle = 0;
        for (i, counted) in holders.iter().enumerate() {
            let block = BlockId(i as u32);
            let (stored, held) = (self.tree.holds(block), *counted > 0);
            if self.holders[i] != *counted {
                return Err(format!("block {i} has {counted} holders and {} are counted", self.holders[i]));
            }
            if free[i] != u32::from(!stored && !held) {
                return Err(format!("block {i} is free {} times; stored: {stored}, held: {held}", free[i]));
            }
            if writers[i] > 1 || (writers[i] == 1 && stored) {
                return Err(format!("block {i} has {} writers; stored: {stored}", writers[i]));
            }
            let idle = stored && !held;
            n_idle += u32::from(idle);
            let evictable = self.evictable.contains(&(self.left[i], block));
            if evictable != (idle && self.tree.is_leaf(block)) {
                return Err(format!("block {i} can be evicted: {evictable}; idle: {idle}"));
            }
            if held && self.tree.parent(block).is_some_and(|parent| self.holders[parent.0 as usize] == 0) {
                return Err(format!("block {i} is held and its parent is not"));
            }
        }
        if n_idle != self.n_idle || self.evictable.len() as u32 > n_idle {
            return Err(format!("{n_idle} blocks are idle, {} are counted and {} can be evicted", self.n_idle, self.evictable.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
