//! From the metadata and tensor names of a GGUF file to our own words.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

use super::config::{
    Activation, Family, FfnConfig, LayerConfig, MAX_LAYERS, ModelConfig, NormKind, NormPlacement, QkNorm, RopeConfig, RopePairs,
};
use super::gguf::{Gguf, Value};
use super::rope::RopeScaling;
use super::storage::Storage;
use super::weights::{TensorEntry, Weights};
use crate::error::EngineError;

const SUPPORTED: &str = "GGUF architectures llama, qwen2, qwen3 (dense)";

/// The configuration.
pub(crate) fn read_config(storage: &Storage, gguf: &Gguf) -> Result<ModelConfig, EngineError> {
    let file = storage.path();
    let arch = gguf.text("general.architecture").ok_or_else(|| EngineError::malformed(file, "general.architecture is missing"))?;
    let family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => return Err(EngineError::unsupported(format!("GGUF architecture {other:?}"), SUPPORTED)),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str| gguf.u32(&key(name)).map(|n| n as usize);
    let required =
        |name: &str| size(name).ok_or_else(|| EngineError::malformed(file, format!("{} is missing or differs between layers", key(name))));
    if gguf.u32("split.count").is_some_and(|n| n > 1) {
        return Err(EngineError::unsupported("a GGUF file split into several", "one file"));
    }
    if size("expert_count").is_some_and(|n| n > 0) {
        return Err(EngineError::unsupported(format!("{arch} with experts"), SUPPORTED));
    }
    let hidden = required("embedding_length")?;
    let heads = required("attention.head_count")?;
    let kv_heads = if gguf.metadata.contains_key(&key("attention.head_count_kv")) { required("attention.head_count_kv")? } else { heads };
    let head_dim = size("attention.key_length").unwrap_or(hidden.checked_div(heads).unwrap_or(0));
    for (name, value) in
        [("attention.value_length", size("attention.value_length")), ("rope.dimension_count", size("rope.dimension_count"))]
    {
        if let Some(value) = value.filter(|value| *value != head_dim) {
            return Err(EngineError::unsupported(format!("{} = {value} beside heads of {head_dim}", key(name)), "equal sizes"));
        }
    }
    let mut max_context = required("context_length")? as u32;
    let original_context = gguf.u32(&key("rope.scaling.original_context_length")).unwrap_or(max_context);
    let factor = gguf.f64(&key("rope.scaling.factor")).unwrap_or(1.0);
    let rope_scaling = match gguf.text(&key("rope.scaling.type")).unwrap_or("none") {
        _ if gguf.tensors.contains_key("rope_freqs.weight") => RopeScaling::Divisors { divisors: read_divisors(storage, gguf)? },
        "none" | "" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast: gguf.f64(&key("rope.scaling.yarn_beta_fast")).unwrap_or(32.0),
            beta_slow: gguf.f64(&key("rope.scaling.yarn_beta_slow")).unwrap_or(1.0),
            attention_factor: gguf.f64(&key("rope.scaling.attn_factor")),
        },
        other => {
            return Err(EngineError::unsupported(format!("rope scaling {other:?}"), "none, linear, yarn, and llama3 by rope_freqs.weight"));
        }
    };
    if let Some(window) = gguf.u32(&key("attention.sliding_window")).filter(|window| *window > 0) {
        max_context = max_context.min(window);
    }
    let embedding = gguf.tensors.get("token_embd.weight").ok_or_else(|| EngineError::malformed(file, "token_embd.weight is missing"))?;
    let special = |name: &str| gguf.u32(&format!("tokenizer.ggml.{name}_token_id"));
    let theta = gguf.f64(&key("rope.freq_base")).unwrap_or(10_000.0);
    let ffn = FfnConfig::Dense { width: required("feed_forward_length")? };
    ModelConfig {
        family,
        hidden,
        layers: vec![LayerConfig { window: None, rope: Some(0), ffn }; required("block_count")?.min(MAX_LAYERS + 1)],
        heads,
        kv_heads,
        head_dim,
        vocab_size: embedding.shape[0],
        ropes: vec![RopeConfig { theta, scaling: rope_scaling, dim: head_dim, pairs: RopePairs::Halves }],
        norm_eps: gguf.f64(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-6),
        qkv_bias: family == Family::Qwen2,
        qk_norm: if family == Family::Qwen3 { QkNorm::Head } else { QkNorm::None },
        embedding_scale: 1.0,
        norm: NormKind::Rms,
        norm_offset: 0.0,
        norm_placement: NormPlacement::Before,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: None,
        output_bias: false,
        ffn_bias: false,
        activation: Activation::Silu,
        gated: true,
        residual_scale: 1.0,
        logits_scale: 1.0,
        logits_softcap: None,
        tied_embeddings: !gguf.tensors.contains_key("output.weight"),
        max_context,
        eos_ids: ["eos", "eot", "eom"].into_iter().filter_map(special).collect(),
    }
    .check(file)
}

/// The numbers by which each rotary frequency is divided: how GGUF files carry the scaling of Llama 3.
fn read_divisors(storage: &Storage, gguf: &Gguf) -> Result<Vec<f32>, EngineError> {
    let tensor = &gguf.tensors["rope_freqs.weight"];
    if tensor.dtype != GgmlDType::F32 || tensor.len > 64 << 10 {
        return Err(EngineError::malformed(storage.path(), "rope_freqs.weight is not a short list of F32"));
    }
    let mut bytes = vec![0; tensor.len as usize];
    storage.read_at(tensor.offset, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The weights under our own names. Unknown tensors keep their own, so that the check names them.
pub(crate) fn read_weights(storage: Storage, gguf: &Gguf) -> Weights {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &gguf.tensors {
        if name == "rope_freqs.weight" {
            continue;
        }
        let entry = TensorEntry { file: 0, dtype: tensor.dtype, shape: tensor.shape.clone(), offset: tensor.offset, len: tensor.len };
        tensors.insert(tensor_name(name).unwrap_or_else(|| name.clone()), entry);
    }
    let interleaved = gguf.metadata.get("general.architecture") == Some(&Value::Text("llama".into()));
    Weights::new(vec![storage], tensors, interleaved)
}

fn tensor_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => "embedding",
        "output_norm.weight" => "norm",
        "output.weight" => "head",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "attn_norm" => "attention_norm",
        "attn_q" => "q",
        "attn_k" => "k",
        "attn_v" => "v",
        "attn_output" => "o",
        "attn_q_norm" => "q_norm",
        "attn_k_norm" => "k_norm",
        "ffn_norm" => "ffn_norm",
        "ffn_gate" => "gate",
        "ffn_up" => "up",
        "ffn_down" => "down",
        _ => return None,
    };
    match kind {
        "weight" => Some(format!("layers.{layer}.{part}")),
        "bias" => Some(format!("layers.{layer}.{part}.bias")),
        _ => None,
    }
}
