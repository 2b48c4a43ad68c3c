//! Causal attention over paged keys and values, grouped heads.

use candle_core::quantized::GgmlType;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_transformers::utils::{build_additive_causal_mask, repeat_kv};
use rayon::prelude::*;

/// Below so many multiplications attention takes less time than waking other threads.
const PARALLEL_WORK: usize = 1 << 18;

/// The tokens of one sequence in a step.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Its first row among the step's tokens.
    pub(crate) start: usize,
    /// Its tokens in this step.
    pub(crate) len: usize,
    /// Position of the first of them.
    pub(crate) first_position: usize,
    /// Slots of positions 0 to the last of this step.
    pub(crate) slots: Vec<u32>,
}

/// Shapes that stay the same over all layers of a step.
#[derive(Debug)]
pub(crate) struct Attention<'a> {
    pub(crate) spans: &'a [Span],
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Attention<'_> {
    /// `softmax(q k^T / sqrt(head_dim)) v` for each token over the positions up to its own.
    ///
    /// * `q`: `[n_tokens, heads, head_dim]`; `keys`, `values`: `[n_slots, kv_heads, head_dim]`, all f32, contiguous
    /// * result: `[n_tokens, heads * head_dim]`
    pub(crate) fn forward(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        if q.device().is_cpu() { q.apply_op3_no_bwd(keys, values, self) } else { self.gathered(q, keys, values) }
    }

    /// The same in plain tensor operations: gathers each sequence's keys and values. For GPUs, and the reference for the CPU.
    fn gathered(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let mut outs = Vec::with_capacity(self.spans.len());
        for span in self.spans {
            let slots = Tensor::new(span.slots.as_slice(), q.device())?;
            // [1, kv_heads, n_positions, head_dim]
            let gather = |pool: &Tensor| pool.index_select(&slots, 0)?.transpose(0, 1)?.contiguous()?.unsqueeze(0);
            let (k, v) = (repeat_kv(gather(keys)?, group)?, repeat_kv(gather(values)?, group)?);
            let q = q.narrow(0, span.start, span.len)?.transpose(0, 1)?.contiguous()?.unsqueeze(0)?; // [1, heads, len, head_dim]
            let scores = (q.matmul(&k.t()?)? * scale)?;
            let mask = build_additive_causal_mask(span.len, span.first_position, None, q.device(), DType::F32)?;
            let weights = softmax_last_dim(&scores.broadcast_add(&mask)?)?;
            let out = weights.matmul(&v)?; // [1, heads, len, head_dim]
            outs.push(out.squeeze(0)?.transpose(0, 1)?.reshape((span.len, self.heads * self.head_dim))?);
        }
        Tensor::cat(&outs, 0)
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
}

impl Head<'_> {
    /// One token: two passes over its positions, always in their order. `scores` is room to work in.
    fn attend(&self, q: &[f32], slots: &[u32], scores: &mut Vec<f32>, out: &mut [f32]) {
        let at = |slot: u32| slot as usize * self.stride + self.start;
        let scale = 1.0 / (self.dim as f32).sqrt();
        scores.clear();
        scores.extend(slots.iter().map(|slot| f32::vec_dot(self.dim, &self.keys[at(*slot)..][..self.dim], q) * scale));
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
        for span in self.spans {
            rows.extend((1..=span.len).map(|i| &span.slots[..span.first_position + i]));
        }
        if rows.len() != n_tokens || heads != self.heads || dim != self.head_dim {
            candle_core::bail!("queries of the shape {:?} do not fit the step", q_layout.shape());
        }
        let group = self.heads / self.kv_heads;
        let mut out = vec![0f32; n_tokens * heads * dim];
        let attend = |scores: &mut Vec<f32>, (i, (out, q)): (usize, (&mut [f32], &[f32]))| {
            let (token, head) = (i / heads, i % heads);
            let head = Head { keys, values, stride: self.kv_heads * dim, start: head / group * dim, dim };
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
        let spans = [
            Span { start: 0, len: 1, first_position: 20, slots: (0..21).map(|i| (i * 5 + 3) % 64).collect() },
            Span { start: 1, len: 7, first_position: 0, slots: (40..47).collect() },
            Span { start: 8, len: 3, first_position: 4, slots: (10..17).rev().collect() },
        ];
        let attention = Attention { spans: &spans, heads, kv_heads, head_dim };
        let random = |shape: (usize, usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (q, keys, values) =
            (random((11, heads, head_dim)), random((n_slots, kv_heads, head_dim)), random((n_slots, kv_heads, head_dim)));
        let fast = attention.forward(&q, &keys, &values).unwrap();
        let plain = attention.gathered(&q, &keys, &values).unwrap();
        assert_eq!(fast.dims(), plain.dims());
        let error = (fast - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < TOLERANCE, "{error}");
    }
}
