//! The decoder: one computation for all families, described by its configuration.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::silu;
use candle_nn::rotary_emb::rope_thd;

use crate::error::EngineError;
use crate::layers::{Attention, KvCache, Linear, Matrix, Norm, Span};
use crate::model::{ModelConfig, ModelFiles, QkNorm, Rope};

/// A model's weights on a device.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Norm,
    /// The embedding itself where the two are tied.
    head: Matrix,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Of each head's query and key, where the family has them.
    qk_norms: Option<(Norm, Norm)>,
    ffn_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What one step computes: tokens of several sequences, one after the other.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    /// `[n_tokens]`
    pub(crate) tokens: &'a [u32],
    /// `[n_tokens]`
    pub(crate) positions: &'a [u32],
    /// `[n_tokens]` where each token's key and value go.
    pub(crate) slots: &'a [u32],
    /// One for each sequence.
    pub(crate) spans: &'a [Span],
    /// Rows whose logits are wanted.
    pub(crate) rows: &'a [u32],
}

impl Decoder {
    /// Reads all weights onto the device, one tensor at a time. `failed` names the device in errors of the computation.
    pub(crate) fn load(
        files: &ModelFiles,
        device: &Device,
        failed: &dyn Fn(candle_core::Error) -> EngineError,
    ) -> std::result::Result<Self, EngineError> {
        let config = &files.config;
        let weights = files.weights();
        let matrix = |name: &str| Matrix::new(weights.read(name, config)?, device).map_err(failed);
        let vector = |name: &str| {
            let raw = weights.read(name, config)?;
            raw.to_f32().ok_or_else(|| EngineError::malformed(weights.path(), format!("tensor {name:?} is quantized")))
        };
        let norm = |name: &str| Norm::new(vector(name)?, config.norm_eps, device).map_err(failed);
        let linear = |name: &str| {
            let bias = format!("{name}.bias");
            let bias = if weights.has(&bias) { Some(vector(&bias)?) } else { None };
            Linear::new(matrix(name)?, bias, device).map_err(failed)
        };
        let layer = |index: usize| -> std::result::Result<Layer, EngineError> {
            let name = |part: &str| format!("layers.{index}.{part}");
            let qk_norms = if config.qk_norm == QkNorm::Head { Some((norm(&name("q_norm"))?, norm(&name("k_norm"))?)) } else { None };
            Ok(Layer {
                attention_norm: norm(&name("attention_norm"))?,
                q: linear(&name("q"))?,
                k: linear(&name("k"))?,
                v: linear(&name("v"))?,
                o: linear(&name("o"))?,
                qk_norms,
                ffn_norm: norm(&name("ffn_norm"))?,
                gate: linear(&name("gate"))?,
                up: linear(&name("up"))?,
                down: linear(&name("down"))?,
            })
        };
        let embedding = matrix("embedding")?;
        let head = if config.tied_embeddings { embedding.clone() } else { matrix("head")? };
        Ok(Self {
            layers: (0..config.layers.len()).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: norm("norm")?,
            rope: Rope::new(&config.ropes[0]),
            config: config.clone(),
            device: device.clone(),
            embedding,
            head,
        })
    }

    /// Computes a step: writes keys and values to the cache and gives the logits of the wanted rows, `[n_rows, vocab_size]` f32.
    pub(crate) fn forward(&self, step: &Step<'_>, cache: &KvCache) -> Result<Tensor> {
        let n_tokens = step.tokens.len();
        let (heads, kv_heads, head_dim) = (self.config.heads, self.config.kv_heads, self.config.head_dim);
        let attention = Attention { spans: step.spans, heads, kv_heads, head_dim };
        let (cos, sin) = self.rope.angles(step.positions);
        let cos = Tensor::from_vec(cos, (n_tokens, head_dim / 2), &self.device)?;
        let sin = Tensor::from_vec(sin, (n_tokens, head_dim / 2), &self.device)?;
        // [1, n_tokens, n_heads, head_dim] in, [n_tokens, n_heads, head_dim] out
        let rotate = |x: Tensor, norm: Option<&Norm>| {
            let x = match norm {
                Some(norm) => norm.forward(&x)?,
                None => x,
            };
            rope_thd(&x, &cos, &sin)?.squeeze(0)
        };
        let mut x = self.embedding.embed(step.tokens, &self.device)?; // [n_tokens, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            let h = layer.attention_norm.forward(&x)?;
            let q = layer.q.forward(&h)?.reshape((1, n_tokens, heads, head_dim))?;
            let k = layer.k.forward(&h)?.reshape((1, n_tokens, kv_heads, head_dim))?;
            let v = layer.v.forward(&h)?.reshape((n_tokens, kv_heads, head_dim))?;
            let q = rotate(q, layer.qk_norms.as_ref().map(|(q, _)| q))?;
            let k = rotate(k, layer.qk_norms.as_ref().map(|(_, k)| k))?;
            cache.write(index, &k, &v, step.slots)?;
            let (keys, values) = cache.layer(index);
            x = (x + layer.o.forward(&attention.forward(&q, keys, values)?)?)?;
            let h = layer.ffn_norm.forward(&x)?;
            let gated = (silu(&layer.gate.forward(&h)?)? * layer.up.forward(&h)?)?;
            x = (x + layer.down.forward(&gated)?)?;
        }
        let x = x.index_select(&Tensor::new(step.rows, &self.device)?, 0)?;
        self.head.forward(&self.norm.forward(&x)?)
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory of the matrices.
    #[cfg(test)]
    pub(crate) fn matrix_bytes(&self) -> u64 {
        let layers = self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]).map(Linear::matrix_bytes);
        let head = if self.config.tied_embeddings { 0 } else { self.head.bytes() };
        self.embedding.bytes() + head + layers.sum::<u64>()
    }
}
