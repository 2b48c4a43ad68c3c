//! The decoder: one computation for all families, described by its configuration.

use candle_core::{Device, Result, Tensor};

use super::attention::Attention;
use super::cache::KvCache;
use super::linear::{Linear, Norm};
use super::matrix::Matrix;
use super::network::FeedForward;
use super::rotation::Rotation;
use crate::layout::Span;
use crate::model::{ModelConfig, QkNorm};

/// A model's weights on a device.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// The embedding itself where the two are tied.
    pub(super) head: Matrix,
    pub(super) rotations: Vec<Rotation>,
}

/// The weights of a layer. Norms are there or not as [`ModelConfig::norm_placement`] says.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Option<Norm>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    /// Of queries and keys, where the family has them.
    pub(super) qk_norms: Option<(Norm, Norm)>,
    pub(super) attention_post_norm: Option<Norm>,
    pub(super) ffn_norm: Option<Norm>,
    pub(super) ffn: FeedForward,
    pub(super) ffn_post_norm: Option<Norm>,
}

/// What one step computes: tokens of several sequences, one after the other.
#[derive(Debug)]
pub(super) struct Step<'a> {
    /// `[n_tokens]`
    pub(super) tokens: &'a [u32],
    /// `[n_tokens]`
    pub(super) positions: &'a [u32],
    /// `[n_tokens]` where each token's key and value go.
    pub(super) slots: &'a [u32],
    /// One for each sequence.
    pub(super) spans: &'a [Span],
    /// Rows whose logits are wanted.
    pub(super) rows: &'a [u32],
}

impl Decoder {
    /// Computes a step: writes keys and values to the cache and gives the logits of the wanted rows, `[n_rows, vocab_size]` f32.
    pub(super) fn forward(&self, step: &Step<'_>, cache: &KvCache) -> Result<Tensor> {
        let logits = scaled(self.head.forward(&self.hidden(step, cache)?)?, self.config.logits_scale)?;
        softcapped(logits, self.config.logits_softcap)
    }

    /// The same before the output projection: `[n_rows, hidden]` f32.
    pub(super) fn hidden(&self, step: &Step<'_>, cache: &KvCache) -> Result<Tensor> {
        let config = &self.config;
        let n_tokens = step.tokens.len();
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let angles = self.rotations.iter().map(|rotation| rotation.angles(step.positions, &self.device));
        let angles = angles.collect::<Result<Vec<_>>>()?;
        let mut x = scaled(self.embedding.embed(step.tokens, &self.device)?, config.embedding_scale)?; // [n_tokens, hidden]
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
            cache.write(index, &k, &v, step.slots)?;
            let (keys, values) = cache.layer(index);
            let attention = Attention {
                spans: step.spans,
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
        self.norm.forward(&x.index_select(&Tensor::new(step.rows, &self.device)?, 0)?)
    }

    pub(super) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory of the matrices.
    #[cfg(test)]
    pub(super) fn matrix_bytes(&self) -> u64 {
        let linears = self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o]).map(Linear::matrix_bytes);
        let networks = self.layers.iter().map(|layer| layer.ffn.matrix_bytes());
        let head = if self.config.tied_embeddings { 0 } else { self.head.bytes() };
        self.embedding.bytes() + head + linears.chain(networks).sum::<u64>()
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
