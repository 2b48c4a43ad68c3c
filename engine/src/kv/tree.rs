//! Which tokens the stored blocks hold: a tree with a block for each node, whose root is the empty sequence.
//!
//! The children of a node are ordered by their tokens. So a block is found by comparing tokens, never by trusting a hash; and of all children the
//! one that agrees longest with a given continuation is a neighbour of where that continuation would stand.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::batch::BlockId;

#[derive(Debug, Clone)]
pub(super) struct PrefixTree {
    /// `[n_blocks + 1]` the children of each block by their tokens, then those of the root.
    children: Vec<BTreeMap<Arc<[u32]>, BlockId>>,
    /// `[n_blocks]` where each stored block is.
    places: Vec<Option<Place>>,
    /// Blocks stored so far.
    n_stored: u64,
}

#[derive(Debug, Clone)]
struct Place {
    parent: Option<BlockId>,
    tokens: Arc<[u32]>,
    /// Never the same again, though the block may be.
    number: u64,
}

impl PrefixTree {
    pub(super) fn new(n_blocks: u32) -> Self {
        Self { children: vec![BTreeMap::new(); n_blocks as usize + 1], places: vec![None; n_blocks as usize], n_stored: 0 }
    }

    fn index(&self, parent: Option<BlockId>) -> usize {
        parent.map_or(self.places.len(), |block| block.0 as usize)
    }

    /// The child of `parent`, or of the root, that holds exactly these tokens.
    pub(super) fn child(&self, parent: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        self.children[self.index(parent)].get(tokens).copied()
    }

    /// The child that begins with the most of `tokens`, and with how many; `None` if none begins with the first.
    pub(super) fn nearest_child(&self, parent: Option<BlockId>, tokens: &[u32]) -> Option<(BlockId, u32)> {
        let children = &self.children[self.index(parent)];
        let after = children.range::<[u32], _>((Bound::Included(tokens), Bound::Unbounded)).next();
        let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens))).next_back();
        let agreeing = |held: &[u32]| held.iter().zip(tokens).take_while(|(a, b)| a == b).count() as u32;
        let neighbours = before.into_iter().chain(after).map(|(held, block)| (*block, agreeing(held)));
        neighbours.max_by_key(|(_, n)| *n).filter(|(_, n)| *n > 0)
    }

    /// Is the block stored?
    pub(super) fn holds(&self, block: BlockId) -> bool {
        self.places[block.0 as usize].is_some()
    }

    /// The number that a block got when it was stored, unless it has been forgotten since.
    pub(super) fn number(&self, block: BlockId) -> Option<u64> {
        self.places[block.0 as usize].as_ref().map(|place| place.number)
    }

    pub(super) fn is_leaf(&self, block: BlockId) -> bool {
        self.children[block.0 as usize].is_empty()
    }

    pub(super) fn parent(&self, block: BlockId) -> Option<BlockId> {
        self.places[block.0 as usize].as_ref().and_then(|place| place.parent)
    }

    /// Stores a block that is not stored, under a parent that is.
    pub(super) fn insert(&mut self, parent: Option<BlockId>, tokens: Arc<[u32]>, block: BlockId) {
        let index = self.index(parent);
        self.children[index].insert(Arc::clone(&tokens), block);
        self.places[block.0 as usize] = Some(Place { parent, tokens, number: self.n_stored });
        self.n_stored += 1;
    }

    /// Forgets a leaf. Gives its parent.
    pub(super) fn remove(&mut self, block: BlockId) -> Option<BlockId> {
        debug_assert!(self.is_leaf(block), "its children would be left without a way to them");
        let Place { parent, tokens, .. } = self.places[block.0 as usize].take()?;
        let index = self.index(parent);
        self.children[index].remove(&tokens);
        parent
    }
}
