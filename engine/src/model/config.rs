//! One description for every decoder that we compute, whatever its family and format.

use std::path::Path;

use plexus_types::Bytes;

use super::rope::RopeScaling;
use crate::error::EngineError;

/// Largest sizes taken; far above any model, and small enough that no product of two overflows.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;

/// Which family a model says it belongs to. It changes names and defaults, never the computation: that follows the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3 and what is built like them.
    Llama,
    /// Mistral 7B and what is built like it.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

/// A decoder with RMS norms before attention and before a gated SiLU feed-forward network, rotary positions, grouped heads.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What the model says it is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head; even. Not always `hidden / heads`.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub ffn: usize,
    /// Rows of the embedding; may be more than the tokenizer's tokens.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How they are stretched.
    pub rope_scaling: RopeScaling,
    /// Added to the mean square in RMS norms.
    pub rms_eps: f64,
    /// Do the query, key and value projections have biases?
    pub qkv_bias: bool,
    /// Is each head's query and key normed before it is rotated?
    pub qk_norm: bool,
    /// Is the output projection the embedding?
    pub tied_embeddings: bool,
    /// Tokens that the context holds. Not more than a sliding window, within which full attention is the same.
    pub max_context: u32,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
}

/// A tensor that the decoder has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) optional: bool,
}

impl ModelConfig {
    /// Keys and values of one token in all layers, as f32.
    pub fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(2 * 4 * self.layers as u64 * self.kv_heads as u64 * self.head_dim as u64)
    }

    /// Checks that the numbers make a decoder.
    pub(crate) fn check(self, file: &Path) -> Result<Self, EngineError> {
        let wrong = |reason: String| Err(EngineError::malformed(file, reason));
        let sizes = [
            ("hidden size", self.hidden, MAX_SIZE),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of heads", self.heads, MAX_SIZE),
            ("number of key-value heads", self.kv_heads, MAX_SIZE),
            ("head size", self.head_dim, MAX_HEAD_DIM),
            ("feed-forward size", self.ffn, MAX_SIZE),
            ("vocabulary size", self.vocab_size, MAX_SIZE),
            ("context length", self.max_context as usize, MAX_SIZE),
        ];
        for (what, size, max) in sizes {
            if size == 0 || size > max {
                return wrong(format!("the {what} is {size}; 1 to {max} is possible"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!("{} heads cannot share {} key-value heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong(format!("the head size {} is odd", self.head_dim));
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !(positive(self.rope_theta) && self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return wrong(format!("rope base {} or norm epsilon {} is impossible", self.rope_theta, self.rms_eps));
        }
        let sound = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive(*factor) && positive(*low_freq_factor) && high_freq_factor > low_freq_factor && *original_context > 0
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                positive(*factor)
                    && positive(*beta_slow)
                    && positive(*beta_fast)
                    && *original_context > 0
                    && self.rope_theta > 1.0
                    && attention_factor.is_none_or(positive)
            }
            RopeScaling::Divisors { divisors } => {
                divisors.len() == self.head_dim / 2 && divisors.iter().all(|divisor| positive(f64::from(*divisor)))
            }
        };
        if sound { Ok(self) } else { wrong(format!("the rope scaling {:?} is impossible", self.rope_scaling)) }
    }

    /// Every tensor of the decoder, by its name in Hugging Face checkpoints.
    pub(crate) fn tensors(&self) -> Vec<ExpectedTensor> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], optional: bool| {
            tensors.push(ExpectedTensor { name, shape: shape.to_vec(), optional });
        };
        add("model.embed_tokens.weight".into(), &[self.vocab_size, self.hidden], false);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            add(name("input_layernorm.weight"), &[self.hidden], false);
            let projections = [
                ("self_attn.q_proj", q, self.hidden, self.qkv_bias),
                ("self_attn.k_proj", kv, self.hidden, self.qkv_bias),
                ("self_attn.v_proj", kv, self.hidden, self.qkv_bias),
                ("self_attn.o_proj", self.hidden, q, false),
                ("mlp.gate_proj", self.ffn, self.hidden, false),
                ("mlp.up_proj", self.ffn, self.hidden, false),
                ("mlp.down_proj", self.hidden, self.ffn, false),
            ];
            for (part, rows, columns, has_bias) in projections {
                add(name(&format!("{part}.weight")), &[rows, columns], false);
                add(name(&format!("{part}.bias")), &[rows], !has_bias);
            }
            if self.qk_norm {
                add(name("self_attn.q_norm.weight"), &[self.head_dim], false);
                add(name("self_attn.k_norm.weight"), &[self.head_dim], false);
            }
            add(name("post_attention_layernorm.weight"), &[self.hidden], false);
        }
        add("model.norm.weight".into(), &[self.hidden], false);
        if !self.tied_embeddings {
            add("lm_head.weight".into(), &[self.vocab_size, self.hidden], false);
        }
        tensors
    }
}
