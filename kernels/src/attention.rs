//! Causal attention over paged keys and values, grouped heads.
//!
//! The pool keeps keys and values in groups of 16 positions, in words of 32 bits: one f32, or two bfloat16 numbers that are multiplied
//! together. A query's positions are visited in tiles of 64, counted from the start of its sequence; each tile updates the query's largest
//! score, sum of weights and weighted sum of values (online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867). Tiles, and the order
//! of sums within one, depend on positions only. So a query gets the same bits alone, among others, and however its prompt was cut.

#![allow(unsafe_code, reason = "entries that enable the processor's vector instructions")]

mod pool;
mod tile;

pub use pool::{KvElement, KvPool};

use std::cell::RefCell;

use crate::simd::{OpsIsa, on_isa};
use crate::team::{SharedMut, Team};
use tile::{Scratch, Task, attend_bf16, attend_f32};

/// Rows (tokens times heads of a group) that one task computes, about.
const TASK_ROWS: usize = 32;

/// The tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// Its first row among the step's tokens.
    pub start: usize,
    /// Its tokens in this step.
    pub len: usize,
    /// Position of the first of them.
    pub first_position: usize,
    /// The pool's blocks of its positions, in order; enough for the last of them.
    pub blocks: &'a [u32],
}

/// What attention computes, in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads: a multiple of the pool's heads.
    pub heads: usize,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// They become `cap * tanh(x / cap)`.
    pub softcap: Option<f32>,
    /// A token sees the last so many tokens, itself included.
    pub window: Option<u32>,
}

impl Attention {
    /// `softmax(scale * q k^T) v` for each token over the positions up to its own, which the pool must hold.
    ///
    /// * `q`, `out`: `[n_tokens, heads * head_dim]`
    /// * `spans`: in the order of their tokens; the `out` of tokens in no span is kept
    ///
    /// # Panics
    /// If the shapes contradict each other, spans overlap, or a span's blocks do not reach its last position or lie beyond the pool.
    pub fn run(&self, team: &Team, pool: &KvPool, spans: &[Span<'_>], q: &[f32], out: &mut [f32]) {
        self.run_on_isa(OpsIsa::best(), team, pool, spans, q, out);
    }

    fn run_on_isa(&self, isa: OpsIsa, team: &Team, pool: &KvPool, spans: &[Span<'_>], q: &[f32], out: &mut [f32]) {
        let width = self.heads * pool.head_dim();
        let n_tokens = q.len() / width;
        assert!(q.len() == out.len() && n_tokens * width == q.len(), "queries of {} numbers do not fit heads of {width}", q.len());
        assert!(self.heads.is_multiple_of(pool.kv_heads()), "{} heads cannot share {}", self.heads, pool.kv_heads());
        let group = self.heads / pool.kv_heads();
        let per_task = (TASK_ROWS / group).max(1);
        let (mut n_parts, mut free) = (0, 0);
        for span in spans {
            let n_blocks = span.first_position.saturating_add(span.len).div_ceil(pool.block_len());
            // Each token belongs to one span: two would be computed by two threads, into one place.
            assert!(span.start >= free && span.start <= n_tokens, "a span begins at token {}, not from {free} to {n_tokens}", span.start);
            assert!(span.len <= n_tokens - span.start && n_blocks <= span.blocks.len(), "a span reaches beyond its tokens or blocks");
            free = span.start + span.len;
            assert!(span.blocks.iter().all(|block| (*block as usize) < pool.n_blocks()), "a block lies beyond the pool");
            n_parts += span.len.div_ceil(per_task);
        }
        thread_local! {
            /// Kept from step to step: some tens of KiB a thread.
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let out = SharedMut(out.as_mut_ptr());
        // Head by head: threads, each of which begins with neighbouring tasks, get equal shares. Within a head the last tokens come first: they see
        // most, and prompts come last in a step, so that no long task is the last to end.
        team.run(n_parts * pool.kv_heads(), &|index| {
            let (kv_head, mut part) = (index / n_parts, n_parts - 1 - index % n_parts);
            let mut span = 0;
            while part >= spans[span].len.div_ceil(per_task) {
                part -= spans[span].len.div_ceil(per_task);
                span += 1;
            }
            let span = &spans[span];
            let first = part * per_task;
            let task = Task { attention: self, pool, span, q, out, group, kv_head, first, len: per_task.min(span.len - first) };
            SCRATCH.with_borrow_mut(|scratch| match pool.element() {
                KvElement::F32 => on_isa!(isa, attend_f32(task: &Task<'_>, scratch: &mut Scratch) using (&task, scratch)),
                KvElement::Bf16 => on_isa!(isa, attend_bf16(task: &Task<'_>, scratch: &mut Scratch) using (&task, scratch)),
            });
        });
    }
}

#[cfg(test)]
mod tests;
