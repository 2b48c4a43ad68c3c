//! A batch, checked, and where its tokens lie in the KV pool.

use crate::batch::{Batch, BlockId};
use crate::error::EngineError;
use crate::executor::KvPlan;

/// The tokens of one sequence in a step.
#[derive(Debug, Clone)]
pub(crate) struct Span<'a> {
    /// Its first row among the step's tokens.
    pub(crate) start: usize,
    /// Its tokens in this step.
    pub(crate) len: usize,
    /// Position of the first of them.
    pub(crate) first_position: usize,
    /// Its block table.
    pub(crate) blocks: &'a [BlockId],
}

impl Span<'_> {
    /// Slots of positions 0 to the last of this step.
    pub(crate) fn slots(&self, pool: KvPlan) -> Vec<u32> {
        (0..self.first_position + self.len).map(|position| pool.slot(self.blocks, position as u32)).collect()
    }
}

/// A batch, checked and laid out over the KV pool.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// `[n_tokens]` where each token's key and value go.
    pub(crate) slots: Vec<u32>,
    /// One for each sequence.
    pub(crate) spans: Vec<Span<'a>>,
    /// Rows whose logits are wanted: for each draw its guesses' and its own, in order.
    pub(crate) rows: Vec<u32>,
}

impl<'a> Layout<'a> {
    /// Errors: [`EngineError::Shape`], before anything is computed, if any index would leave its array, table or pool.
    pub(crate) fn new(batch: &'a Batch, vocab_size: usize, pool: KvPlan) -> Result<Self, EngineError> {
        let wrong = |reason: String| Err(EngineError::shape(reason));
        if let Some(copy) = batch.copies.iter().find(|copy| copy.from.0 >= pool.n_blocks || copy.to.0 >= pool.n_blocks) {
            return wrong(format!("{copy:?} leaves the pool of {}", pool.n_blocks));
        }
        let n_seqs = batch.len();
        if n_seqs == 0 && batch.tokens.is_empty() {
            return Ok(Self { slots: Vec::new(), spans: Vec::new(), rows: Vec::new() });
        }
        let rises = |starts: &[u32], end: usize| {
            starts.len() == n_seqs + 1 && starts[0] == 0 && starts.is_sorted() && starts[n_seqs] as usize == end
        };
        if !rises(&batch.seq_starts, batch.tokens.len()) || !rises(&batch.block_starts, batch.blocks.len()) {
            return wrong("sequence or block offsets do not cover the batch".into());
        }
        if batch.positions.len() != batch.tokens.len() {
            return wrong(format!("{} positions for {} tokens", batch.positions.len(), batch.tokens.len()));
        }
        if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= vocab_size) {
            return wrong(format!("token {token} is beyond the vocabulary of {vocab_size}"));
        }
        if let Some(block) = batch.blocks.iter().find(|block| block.0 >= pool.n_blocks) {
            return wrong(format!("block {} is beyond the pool of {}", block.0, pool.n_blocks));
        }
        let mut layout = Self { slots: Vec::new(), spans: Vec::new(), rows: Vec::new() };
        for sequence in 0..n_seqs {
            let range = |starts: &[u32]| starts[sequence] as usize..starts[sequence + 1] as usize;
            let tokens = range(&batch.seq_starts);
            let blocks = &batch.blocks[range(&batch.block_starts)];
            let positions = &batch.positions[tokens.clone()];
            let Some(first) = positions.first() else { return wrong(format!("sequence {sequence} has no tokens")) };
            if positions.iter().zip(u64::from(*first)..).any(|(position, expected)| u64::from(*position) != expected) {
                return wrong(format!("positions of sequence {sequence} are not consecutive"));
            }
            let n_positions = *first as usize + positions.len();
            if n_positions > blocks.len() * pool.block_len as usize {
                return wrong(format!("sequence {sequence} has {n_positions} tokens and {} blocks of {}", blocks.len(), pool.block_len));
            }
            layout.slots.extend(positions.iter().map(|position| pool.slot(blocks, *position)));
            if let Some(draw) = &batch.draws[sequence] {
                let n_guesses = draw.n_guesses as usize;
                if n_guesses >= tokens.len() {
                    return wrong(format!("sequence {sequence} has {n_guesses} guesses among {} tokens", tokens.len()));
                }
                layout.rows.extend((tokens.end - 1 - n_guesses..tokens.end).map(|row| row as u32));
            }
            layout.spans.push(Span { start: tokens.start, len: tokens.len(), first_position: *first as usize, blocks });
        }
        Ok(layout)
    }
}
