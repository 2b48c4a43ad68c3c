//! The memory that steps work in, kept from step to step, and operations over its rows.

use plexus_kernels::{Activations, Team};

/// Below so many numbers an operation on rows takes less time than asking another thread.
const TASK_NUMBERS: usize = 1 << 13;

/// Tokens of a step that go through a layer's products together. Products cut more into stripes of so many themselves, so that more would
/// take memory and save no time.
pub(super) const PIECE: usize = 256;

/// Room for one step. Each grows to the largest step seen and is then used again. A piece is up to [`PIECE`] tokens, or all where there are
/// experts, each of which takes few of them.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// `[n_tokens, hidden]` the residual stream.
    pub(super) x: Vec<f32>,
    /// `[piece, hidden]` what attention or feed-forward network adds to it.
    pub(super) y: Vec<f32>,
    /// What attention works in, and then the feed-forward network: queries, keys, values and what is attended; gate and up projections.
    pub(super) work: Vec<f32>,
    /// `[n_rows, vocab_size]`
    pub(super) logits: Vec<f32>,
    /// The blocks of all sequences.
    pub(super) blocks: Vec<u32>,
    /// The input of the products to come.
    pub(super) input: Activations,
    /// The input of a feed-forward network's last product.
    pub(super) inner: Activations,
    pub(super) experts: ExpertBuffers,
}

/// Room for experts.
#[derive(Debug, Default)]
pub(super) struct ExpertBuffers {
    /// `[n_tokens, hidden]` the normed input, of which experts gather rows.
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
        // What was there is not needed: nothing is copied, and both are never held at once.
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
    &mut buffer[..len]
}

/// Parts of so many numbers each of one buffer, as [`take`] gives them.
pub(super) fn take_parts<const N: usize>(buffer: &mut Vec<f32>, lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = take(buffer, lens.iter().sum());
    lens.map(|len| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        part
    })
}

/// Runs `f(first row, rows)` over stretches of rows of `width` numbers, on the team if there are many.
pub(super) fn for_rows(team: &Team, data: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let per_task = (TASK_NUMBERS / width).max(1);
    team.run_chunks(data, per_task * width, &|index, rows| f(index * per_task, rows));
}
