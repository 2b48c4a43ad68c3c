//! The memory that steps work in, kept from step to step, and operations over its rows.

use plexus_kernels::{Activations, Team};

/// Below so many numbers an operation on rows takes less time than asking another thread.
const TASK_NUMBERS: usize = 1 << 13;

/// Room for one step. Each grows to the largest step seen and is then used again.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// `[n_tokens, hidden]` the residual stream.
    pub(super) x: Vec<f32>,
    /// `[n_tokens, hidden]` what attention or feed-forward network adds to it.
    pub(super) y: Vec<f32>,
    /// `[n_tokens, heads * head_dim]`
    pub(super) q: Vec<f32>,
    /// `[n_tokens, kv_heads * head_dim]`
    pub(super) k: Vec<f32>,
    /// `[n_tokens, kv_heads * head_dim]`
    pub(super) v: Vec<f32>,
    /// `[n_tokens, heads * head_dim]`
    pub(super) attended: Vec<f32>,
    /// `[n_rows, vocab_size]`
    pub(super) logits: Vec<f32>,
    /// The blocks of all sequences.
    pub(super) blocks: Vec<u32>,
    /// The input of the products to come.
    pub(super) input: Activations,
    pub(super) ffn: FfnBuffers,
}

/// Room for a feed-forward network.
#[derive(Debug, Default)]
pub(super) struct FfnBuffers {
    /// `[n_tokens, width]`
    pub(super) gate: Vec<f32>,
    /// `[n_tokens, width]`
    pub(super) up: Vec<f32>,
    /// The input of the last product.
    pub(super) inner: Activations,
    /// `[n_tokens, hidden]` the normed input, where experts gather rows of it.
    pub(super) normed: Vec<f32>,
    /// `[n_tokens, n_experts]`
    pub(super) shares: Vec<f32>,
    /// `[rows of an expert, hidden]`
    pub(super) given: Vec<f32>,
    /// `[n_tokens, 1]`
    pub(super) shared_share: Vec<f32>,
}

/// The first `len` numbers of a buffer, which grows if it must. They hold whatever was there before.
pub(super) fn take(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Runs `f(first row, rows)` over stretches of rows of `width` numbers, on the team if there are many.
pub(super) fn for_rows(team: &Team, data: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let per_task = (TASK_NUMBERS / width).max(1);
    team.run_chunks(data, per_task * width, &|index, rows| f(index * per_task, rows));
}
