//! The decoder: one computation for all families, described by its configuration.

use candle_core::{Device, Result, Tensor};

use super::attention::Attention;
use super::cache::KvCache;
use super::matrix::Matrix;
use super::rotation::Angles;
use crate::batch::Batch;
use crate::decoder;
use crate::layout::Layout;
use crate::model::QkNorm;

pub(super) type Decoder = decoder::Decoder<Matrix, Tensor>;
pub(super) type FeedForward = decoder::FeedForward<Matrix, Tensor>;
pub(super) type Network = decoder::Network<Matrix, Tensor>;
pub(super) type Experts = decoder::Experts<Matrix, Tensor>;
pub(super) type Linear = decoder::Linear<Matrix, Tensor>;
pub(super) type Norm = decoder::Norm<Tensor>;

impl Decoder {
    /// Computes a step: writes keys and values to the cache and gives the logits of `rows`, `[n_rows, vocab_size]` f32.
    pub(super) fn forward(&self, device: &Device, batch: &Batch, layout: &Layout<'_>, rows: &[u32], cache: &KvCache) -> Result<Tensor> {
        let hidden = self.hidden(device, batch, layout, rows, cache)?;
        softcapped(scaled(self.head().forward(&hidden)?, self.config.logits_scale)?, self.config.logits_softcap)
    }

    /// The same before the output projection: `[n_rows, hidden]` f32.
    pub(super) fn hidden(&self, device: &Device, batch: &Batch, layout: &Layout<'_>, rows: &[u32], cache: &KvCache) -> Result<Tensor> {
        let config = &self.config;
        let n_tokens = batch.tokens.len();
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let slots: Vec<Vec<u32>> = layout.spans.iter().map(|span| span.slots(cache.plan)).collect();
        let angles = self.ropes.iter().map(|rope| Angles::new(rope, &batch.positions, device));
        let angles = angles.collect::<Result<Vec<_>>>()?;
        let mut x = scaled(self.embedding.embed(&batch.tokens, device)?, config.embedding_scale)?; // [n_tokens, hidden]
        for (index, (layer, layer_config)) in self.layers.iter().zip(&config.layers).enumerate() {
            let h = normed(layer.attention_norm.as_ref(), &x)?;
            // [n_tokens, n_heads * head_dim] in, [n_tokens, n_heads, head_dim] out
            let prepare = |x: Tensor, n_heads: usize, norm: Option<&Norm>| {
                let shape = (n_tokens, n_heads, head_dim);
                let x = match config.qk_norm {
                    QkNorm::Whole => normed(norm, &x)?.reshape(shape)?,
                    QkNorm::None | QkNorm::Head => normed(norm, &x.reshape(shape)?)?,
                };
                match layer_config.rope {
                    Some(rope) => angles[rope].turn(&x),
                    None => Ok(x),
                }
            };
            let q = prepare(layer.q.forward(&h)?, heads, layer.qk_norms.as_ref().map(|(q, _)| q))?;
            let k = prepare(layer.k.forward(&h)?, kv_heads, layer.qk_norms.as_ref().map(|(_, k)| k))?;
            let v = layer.v.forward(&h)?.reshape((n_tokens, kv_heads, head_dim))?;
            cache.write(index, &k, &v, &layout.slots)?;
            let (keys, values) = cache.layer(index);
            let attention = Attention {
                spans: &layout.spans,
                slots: &slots,
                heads,
                kv_heads,
                head_dim,
                scale: config.attention_scale,
                softcap: config.attention_softcap,
                window: layer_config.window,
            };
            let h = layer.o.forward(&attention.forward(&q, keys, values)?)?;
            x = (x + scaled(normed(layer.attention_post_norm.as_ref(), &h)?, config.residual_scale)?)?;
            let h = layer.ffn.forward(&normed(layer.ffn_norm.as_ref(), &x)?)?;
            x = (x + scaled(normed(layer.ffn_post_norm.as_ref(), &h)?, config.residual_scale)?)?;
        }
        self.norm.forward(&x.index_select(&Tensor::new(rows, device)?, 0)?)
    }
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

fn scaled(x: Tensor, scale: f32) -> Result<Tensor> {
    if scale == 1.0 { Ok(x) } else { x * f64::from(scale) }
}

/// `cap * tanh(x / cap)`.
pub(super) fn softcapped(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / f64::from(cap))?.tanh()? * f64::from(cap),
        None => Ok(x),
    }
}
