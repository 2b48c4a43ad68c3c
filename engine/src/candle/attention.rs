//! Causal attention over paged keys and values, grouped heads.

use candle_core::quantized::GgmlType;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_transformers::utils::repeat_kv;
use rayon::prelude::*;

use super::decoder::softcapped;
use crate::layout::Span;

/// Below so many multiplications attention takes less time than waking other threads.
const PARALLEL_WORK: usize = 1 << 18;

/// What attention computes in a layer, but for the numbers.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    pub(super) spans: &'a [Span<'a>],
    /// For each span the slots of positions 0 to its last.
    pub(super) slots: &'a [Vec<u32>],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Multiplies the products of queries and keys.
    pub(super) scale: f32,
    /// They become `cap * tanh(x / cap)`.
    pub(super) softcap: Option<f32>,
    /// A token sees the last so many tokens, itself included.
    pub(super) window: Option<u32>,
}

impl Attention<'_> {
    /// `softmax(softcap(q k^T * scale)) v` for each token over the positions up to its own that lie within the window.
    ///
    /// * `q`: `[n_tokens, heads, head_dim]`; `keys`, `values`: `[n_slots, kv_heads, head_dim]`, all f32, contiguous
    /// * result: `[n_tokens, heads * head_dim]`
    pub(super) fn forward(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        if q.device().is_cpu() { q.apply_op3_no_bwd(keys, values, self) } else { self.gathered(q, keys, values) }
    }

    /// The same in plain tensor operations: gathers each sequence's keys and values. For GPUs, and the reference for the CPU.
    fn gathered(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let mut outs = Vec::with_capacity(self.spans.len());
        for (span, slots) in self.spans.iter().zip(self.slots) {
            let slots = Tensor::new(slots.as_slice(), q.device())?;
            // [1, kv_heads, n_positions, head_dim]
            let gather = |pool: &Tensor| pool.index_select(&slots, 0)?.transpose(0, 1)?.contiguous()?.unsqueeze(0);
            let (k, v) = (repeat_kv(gather(keys)?, group)?, repeat_kv(gather(values)?, group)?);
            let q = q.narrow(0, span.start, span.len)?.transpose(0, 1)?.contiguous()?.unsqueeze(0)?; // [1, heads, len, head_dim]
            let scores = softcapped((q.matmul(&k.t()?)? * f64::from(self.scale))?, self.softcap)?;
            let weights = softmax_last_dim(&scores.broadcast_add(&self.mask(span, q.device())?)?)?;
            let out = weights.matmul(&v)?; // [1, heads, len, head_dim]
            outs.push(out.squeeze(0)?.transpose(0, 1)?.reshape((span.len, self.heads * self.head_dim))?);
        }
        Tensor::cat(&outs, 0)
    }

    /// The first position that the token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    /// `[len, n_positions]`: 0 where a token sees a position, else negative infinity.
    fn mask(&self, span: &Span<'_>, device: &Device) -> Result<Tensor> {
        let n_positions = span.first_position + span.len;
        let row = |token: usize| {
            let position = span.first_position + token;
            let seen = self.first_seen(position)..=position;
            (0..n_positions).map(move |other| if seen.contains(&other) { 0f32 } else { f32::NEG_INFINITY })
        };
        Tensor::from_vec((0..span.len).flat_map(row).collect(), (span.len, n_positions), device)
    }
}

/// Keys and values of one head, slot by slot.
struct Head<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// Numbers from one slot to the next.
    stride: usize,
    /// Where the head begins in a slot, and its width.
    start: usize,
    dim: usize,
    scale: f32,
    softcap: Option<f32>,
}

impl Head<'_> {
    /// One token: two passes over its positions, always in their order. `scores` is room to work in.
    fn attend(&self, q: &[f32], slots: &[u32], scores: &mut Vec<f32>, out: &mut [f32]) {
        let at = |slot: u32| slot as usize * self.stride + self.start;
        scores.clear();
        scores.extend(slots.iter().map(|slot| {
            let score = f32::vec_dot(self.dim, &self.keys[at(*slot)..][..self.dim], q) * self.scale;
            self.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        }));
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = (*score - max).exp();
            sum += *score;
        }
        out.fill(0.0);
        for (slot, weight) in slots.iter().zip(&*scores) {
            for (out, value) in out.iter_mut().zip(&self.values[at(*slot)..][..self.dim]) {
                *out += weight * value;
            }
        }
        for out in out {
            *out /= sum;
        }
    }
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_tokens, heads, dim) = q_layout.shape().dims3()?;
        let (q, keys, values) = (contiguous(q, q_layout)?, contiguous(keys, keys_layout)?, contiguous(values, values_layout)?);
        // Each row of the step's tokens with the slots that it may see.
        let mut rows: Vec<&[u32]> = Vec::with_capacity(n_tokens);
        for (span, slots) in self.spans.iter().zip(self.slots) {
            let positions = span.first_position..span.first_position + span.len;
            rows.extend(positions.map(|position| &slots[self.first_seen(position)..=position]));
        }
        if rows.len() != n_tokens || heads != self.heads || dim != self.head_dim {
            candle_core::bail!("queries of the shape {:?} do not fit the step", q_layout.shape());
        }
        let group = self.heads / self.kv_heads;
        let mut out = vec![0f32; n_tokens * heads * dim];
        let attend = |scores: &mut Vec<f32>, (i, (out, q)): (usize, (&mut [f32], &[f32]))| {
            let (token, head) = (i / heads, i % heads);
            let (start, stride) = (head / group * dim, self.kv_heads * dim);
            let head = Head { keys, values, stride, start, dim, scale: self.scale, softcap: self.softcap };
            head.attend(q, rows[token], scores, out);
        };
        let work = rows.iter().map(|slots| slots.len()).sum::<usize>() * heads * dim;
        if work < PARALLEL_WORK {
            let mut scores = Vec::new();
            out.chunks_mut(dim).zip(q.chunks(dim)).enumerate().for_each(|row| attend(&mut scores, row));
        } else {
            out.par_chunks_mut(dim).zip(q.par_chunks(dim)).enumerate().for_each_init(Vec::new, attend);
        }
        Ok((CpuStorage::F32(out), (n_tokens, heads * dim).into()))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("attention takes contiguous tensors"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Sums of some tens of products of numbers near 1 in another order.
    const TOLERANCE: f32 = 1e-5;

    #[test]
    fn the_paged_rows_agree_with_gathered_tensor_operations() {
        let (heads, kv_heads, head_dim, n_slots) = (6, 2, 32, 64);
        let span = |start, len, first_position| Span { start, len, first_position, blocks: &[] };
        let spans = [span(0, 1, 20), span(1, 7, 0), span(8, 3, 4)];
        let slots = [(0..21).map(|i| (i * 5 + 3) % 64).collect(), (40..47).collect(), (10..17).rev().collect()];
        let random = |shape: (usize, usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (q, keys, values) =
            (random((11, heads, head_dim)), random((n_slots, kv_heads, head_dim)), random((n_slots, kv_heads, head_dim)));
        for (scale, softcap, window) in [(0.2, None, None), (0.5, Some(2.0), None), (0.2, None, Some(3)), (0.3, Some(5.0), Some(1))] {
            let attention = Attention { spans: &spans, slots: &slots, heads, kv_heads, head_dim, scale, softcap, window };
            let fast = attention.forward(&q, &keys, &values).unwrap();
            let plain = attention.gathered(&q, &keys, &values).unwrap();
            assert_eq!(fast.dims(), plain.dims());
            let error = (fast - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < TOLERANCE, "{error} with a cap of {softcap:?} and a window of {window:?}");
        }
    }
}
