//! Model folders as Hugging Face libraries write them: `config.json`, `generation_config.json`, `*.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use plexus_types::Sampling;
use serde_json::Value;

use super::config::{
    Activation, Family, FfnConfig, LayerConfig, MAX_LAYERS, ModelConfig, NormKind, NormPlacement, QkNorm, RopeConfig, RopePairs,
};
use super::rope::RopeScaling;
use super::safetensors::read_tensors;
use super::storage::{Storage, read_text};
use super::weights::{TensorEntry, Weights};
use crate::error::EngineError;

const MAX_JSON_LEN: u64 = 64 << 20;
const SUPPORTED_FAMILIES: &str = "llama, mistral, qwen2, qwen3";
const SUPPORTED_SCALINGS: &str = "default, linear, llama3, yarn";

/// Reads a JSON file; `None` if it is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, EngineError> {
    let Some(text) = read_text(path, MAX_JSON_LEN)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| EngineError::malformed(path, error.to_string()))
}

/// Field access that names the file and the field when it fails.
struct Fields<'a> {
    file: &'a Path,
    json: &'a Value,
}

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, what: &str) -> EngineError {
        EngineError::malformed(self.file, format!("{key} is not {what}"))
    }

    fn size(&self, key: &str) -> Result<Option<usize>, EngineError> {
        self.get(key).map(|value| value.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(|| self.wrong(key, "a size"))).transpose()
    }

    fn size_required(&self, key: &str) -> Result<usize, EngineError> {
        self.size(key)?.ok_or_else(|| EngineError::malformed(self.file, format!("{key} is missing")))
    }

    fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        self.size(key)?.map(|n| u32::try_from(n).map_err(|_| self.wrong(key, "a number of 32 bits"))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, EngineError> {
        self.get(key).map(|value| value.as_f64().ok_or_else(|| self.wrong(key, "a number"))).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, EngineError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// One id, or a list of ids.
    fn ids(&self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(key) {
            Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// Token ids under `eos_token_id`, which is one id or a list.
pub(crate) fn eos_ids(file: &Path, json: &Value) -> Vec<u32> {
    Fields { file, json }.ids("eos_token_id")
}

/// The configuration, as transformers 4 or 5 writes it.
pub(crate) fn read_config(file: &Path, json: &Value, has_lm_head: bool) -> Result<ModelConfig, EngineError> {
    let fields = Fields { file, json };
    let family = match fields.text("model_type") {
        Some("llama") => Family::Llama,
        Some("mistral") => Family::Mistral,
        Some("qwen2") => Family::Qwen2,
        Some("qwen3") => Family::Qwen3,
        Some(other) => return Err(EngineError::unsupported(format!("model family {other:?}"), SUPPORTED_FAMILIES)),
        None => return Err(EngineError::malformed(file, "model_type is missing")),
    };
    if let Some(method) = fields.get("quantization_config") {
        let method = method.get("quant_method").and_then(Value::as_str).unwrap_or("of an unknown kind");
        return Err(EngineError::unsupported(
            format!("quantized safetensors ({method})"),
            "f32, f16, bf16, and GGUF for quantized weights",
        ));
    }
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(act) = fields.text(key).filter(|act| !matches!(*act, "silu" | "swish")) {
            return Err(EngineError::unsupported(format!("activation {act:?}"), "silu"));
        }
    }
    if let Some(part) = fields.number("partial_rotary_factor")?.filter(|part| *part != 1.0) {
        return Err(EngineError::unsupported(format!("rotary embedding of {part} of each head"), "1.0"));
    }
    let hidden = fields.size_required("hidden_size")?;
    let heads = fields.size_required("num_attention_heads")?;
    let layers = fields.size_required("num_hidden_layers")?;
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 => 128, // the family's default, which transformers leaves out
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let mut max_context = fields.u32("max_position_embeddings")?.unwrap_or(2048);
    let (rope_theta, rope_scaling) = read_rope(&fields, max_context)?;
    if let RopeScaling::Yarn { factor, original_context, .. } = &rope_scaling {
        max_context = max_context.max((f64::from(*original_context) * factor) as u32);
    }
    // A window of 0 or null is none; where a flag must switch it on, it is read only then. Within it, full attention is the same.
    let windowed = matches!(family, Family::Mistral) || fields.flag("use_sliding_window")?.unwrap_or(false);
    if let Some(window) = fields.u32("sliding_window")?.filter(|window| windowed && *window > 0) {
        max_context = max_context.min(window);
    }
    let tied_embeddings = fields.flag("tie_word_embeddings")?.unwrap_or(!has_lm_head);
    let ffn = FfnConfig::Dense { width: fields.size_required("intermediate_size")? };
    ModelConfig {
        family,
        hidden,
        layers: vec![LayerConfig { window: None, rope: Some(0), ffn }; layers.min(MAX_LAYERS + 1)],
        heads,
        kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab_size: fields.size_required("vocab_size")?,
        ropes: vec![RopeConfig { theta: rope_theta, scaling: rope_scaling, dim: head_dim, pairs: RopePairs::Halves }],
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        qkv_bias: family == Family::Qwen2 || fields.flag("attention_bias")?.unwrap_or(false),
        qk_norm: if family == Family::Qwen3 { QkNorm::Head } else { QkNorm::None },
        tied_embeddings,
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
        max_context,
        eos_ids: fields.ids("eos_token_id"),
    }
    .check(file)
}

/// Base and scaling: in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (4).
fn read_rope(top: &Fields<'_>, max_context: u32) -> Result<(f64, RopeScaling), EngineError> {
    let null = Value::Null;
    let nested = top.get("rope_parameters").or_else(|| top.get("rope_scaling")).unwrap_or(&null);
    let rope = Fields { file: top.file, json: nested };
    let theta = match rope.number("rope_theta")? {
        Some(theta) => theta,
        None => top.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let required = |key: &str| rope.number(key)?.ok_or_else(|| EngineError::malformed(top.file, format!("rope scaling without {key}")));
    let original = rope.u32("original_max_position_embeddings")?.unwrap_or(max_context);
    let scaling = match rope.text("rope_type").or_else(|| rope.text("type")).unwrap_or("default") {
        "default" | "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_context: original,
        },
        "yarn" if rope.get("mscale").is_none() && rope.get("mscale_all_dim").is_none() => RopeScaling::Yarn {
            factor: required("factor")?,
            original_context: original,
            beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
            attention_factor: rope.number("attention_factor")?,
        },
        other => return Err(EngineError::unsupported(format!("rope scaling {other:?}"), SUPPORTED_SCALINGS)),
    };
    Ok((theta, scaling))
}

/// What the makers of a model advise: `generation_config.json` (CX-81).
pub(crate) fn read_sampling(file: &Path, json: &Value) -> Result<Sampling, EngineError> {
    let fields = Fields { file, json };
    let float = |key: &str| Ok::<_, EngineError>(fields.number(key)?.map(|x| x as f32));
    let greedy = fields.flag("do_sample")? == Some(false);
    Ok(Sampling {
        temperature: if greedy { Some(0.0) } else { float("temperature")? },
        top_k: fields.u32("top_k")?,
        top_p: float("top_p")?,
        min_p: float("min_p")?,
        repetition_penalty: float("repetition_penalty")?,
        ..Sampling::default()
    })
}

/// The safetensors files of a folder, headers read; `None` if it has none.
pub(crate) fn read_weights(folder: &Path) -> Result<Option<Weights>, EngineError> {
    let paths = shard_paths(folder)?;
    if paths.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    let mut tensors: BTreeMap<String, TensorEntry> = BTreeMap::new();
    for (file, path) in paths.iter().enumerate() {
        let storage = Storage::open(path)?;
        for (name, entry) in read_tensors(&storage, file)? {
            let name = tensor_name(&name).unwrap_or(name);
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(EngineError::malformed(path, format!("tensor {name:?} is in two files")));
            }
        }
        files.push(storage);
    }
    Ok(Some(Weights::new(files, tensors, false)))
}

/// Our own name for a tensor; none for a foreign one, which keeps its own, so that the check names it.
fn tensor_name(name: &str) -> Option<String> {
    let whole = match name {
        "model.embed_tokens.weight" => "embedding",
        "model.norm.weight" => "norm",
        "lm_head.weight" => "head",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attention_norm",
        "self_attn.q_proj" => "q",
        "self_attn.k_proj" => "k",
        "self_attn.v_proj" => "v",
        "self_attn.o_proj" => "o",
        "self_attn.q_norm" => "q_norm",
        "self_attn.k_norm" => "k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "gate",
        "mlp.up_proj" => "up",
        "mlp.down_proj" => "down",
        _ => return None,
    };
    match kind {
        "weight" => Some(format!("layers.{layer}.{part}")),
        "bias" => Some(format!("layers.{layer}.{part}.bias")),
        _ => None,
    }
}

fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if let Some(index) = read_json(&index_path)? {
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| EngineError::malformed(&index_path, "weight_map is missing"))?;
        let mut names = BTreeSet::new();
        for shard in map.values() {
            let plain = |name: &&str| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
            match shard.as_str().filter(plain) {
                Some(name) => names.insert(name),
                None => return Err(EngineError::malformed(&index_path, format!("{shard} does not name a file of this folder"))),
            };
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    files_ending(folder, "safetensors")
}

/// The files of a folder with this extension, by name.
pub(crate) fn files_ending(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, EngineError> {
    let io = |source| EngineError::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
