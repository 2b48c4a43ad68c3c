//! `config.json`, as transformers 4 and 5 write it, for every family.

use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::rope::read_ropes;
use crate::error::EngineError;
use crate::model::config::{Activation, Family, FfnConfig, MAX_LAYERS, ModelConfig};
use crate::model::facts::{Facts, LayerFacts, slides_by_period};
use crate::model::rope::RopeScaling;

/// The families of decoders that are taken, as `model_type` names them.
pub(crate) const FAMILIES: [&str; 17] = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "glm4",
    "starcoder2",
];

/// The part of a configuration that describes the decoder of text: models that also see have it in an object of its own.
pub(super) fn text_part<'a>(file: &'a Path, json: &'a Value) -> Fields<'a> {
    let fields = Fields { file, json };
    let text = fields.object("text_config");
    if text.json.is_null() { fields } else { text }
}

/// The family.
pub(crate) fn family(file: &Path, json: &Value) -> Result<Family, EngineError> {
    let top = Fields { file, json };
    let text = text_part(file, json);
    let name = text.text("model_type").or_else(|| top.text("model_type")).ok_or_else(|| top.missing("model_type"))?;
    Ok(match name {
        "llama" => Family::Llama,
        "mistral" => Family::Mistral,
        "mixtral" => Family::Mixtral,
        "qwen2" => Family::Qwen2,
        "qwen2_moe" => Family::Qwen2Moe,
        "qwen3" => Family::Qwen3,
        "qwen3_moe" => Family::Qwen3Moe,
        "gemma" => Family::Gemma,
        "gemma2" => Family::Gemma2,
        "gemma3" | "gemma3_text" => Family::Gemma3,
        "phi3" => Family::Phi3,
        "smollm3" => Family::SmolLm3,
        "olmo2" => Family::Olmo2,
        "granite" => Family::Granite,
        "glm4" => Family::Glm4,
        "starcoder2" => Family::Starcoder2,
        other => return Err(EngineError::unsupported(format!("model family {other:?}"), FAMILIES.join(", "))),
    })
}

/// The configuration. `has` says whether there is a tensor of one of our own names.
pub(super) fn read_config(file: &Path, json: &Value, has: &dyn Fn(&str) -> bool) -> Result<ModelConfig, EngineError> {
    let top = Fields { file, json };
    let fields = text_part(file, json);
    let family = family(file, json)?;
    if let Some(method) = top.get("quantization_config") {
        let method = method.get("quant_method").and_then(Value::as_str).unwrap_or("of an unknown kind");
        return Err(EngineError::unsupported(
            format!("quantized safetensors ({method})"),
            "f32, f16, bf16, and GGUF for quantized weights",
        ));
    }
    for part in [&top, &fields] {
        let both_ways = part.get("use_bidirectional_attention").filter(|value| **value != Value::Bool(false));
        let (key, value) = match (both_ways, part.get("is_causal")) {
            (Some(value), _) => ("use_bidirectional_attention", value),
            (None, Some(value @ Value::Bool(false))) => ("is_causal", value),
            (None, _) => continue,
        };
        let what = format!("{key} = {value}, a decoder whose tokens see those behind them");
        return Err(EngineError::unsupported(what, "tokens that see those before them"));
    }
    // What Gemma 3 leaves out where its decoder is a part of a model that also sees.
    let usual = |size: usize| (family == Family::Gemma3).then_some(size);
    let size = |key: &str, default: Option<usize>| fields.size(key)?.or(default).ok_or_else(|| fields.missing(key));
    let hidden = size("hidden_size", None)?;
    let heads = size("num_attention_heads", usual(8))?;
    let n_layers = size("num_hidden_layers", None)?;
    if n_layers > MAX_LAYERS {
        return Err(EngineError::malformed(file, format!("the number of layers is {n_layers}; 1 to {MAX_LAYERS} is possible")));
    }
    let head_dim = fields.size("head_dim")?.unwrap_or_else(|| family.default_head_dim(hidden, heads));
    let mut max_context = fields.u32("max_position_embeddings")?.unwrap_or(if family == Family::Gemma3 { 131_072 } else { 2048 });
    let ropes = read_ropes(&fields, family, head_dim, max_context)?;
    if let RopeScaling::Yarn { factor, original_context, .. } = &ropes.scaling {
        max_context = max_context.max((f64::from(*original_context) * factor) as u32);
    }
    let (window, slides) = read_windows(&fields, family, n_layers)?;
    let rotates = read_rotations(&fields, family, n_layers)?;
    let ffn = read_networks(&fields, family, n_layers)?;
    let layers = slides.into_iter().zip(rotates).zip(ffn).map(|((slides, rotates), ffn)| LayerFacts { slides, rotates, ffn });
    let norm_eps = if family == Family::Starcoder2 { fields.number("norm_epsilon")?.unwrap_or(1e-5) } else { 1e-6 };
    let attention_scale = match family {
        Family::Gemma2 | Family::Gemma3 => Some(1.0 / fields.number("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt() as f32),
        Family::Granite => fields.f32("attention_multiplier")?,
        _ => None,
    };
    // Some write the family's own scale though it is of no use to others: only Granite reads them.
    let granite = |key: &str| if family == Family::Granite { fields.f32(key) } else { Ok(None) };
    let gemma2 = |key: &str| if matches!(family, Family::Gemma2 | Family::Gemma3) { fields.f32(key) } else { Ok(None) };
    Facts {
        family,
        hidden,
        heads,
        kv_heads: fields.size("num_key_value_heads")?.or(usual(4)).unwrap_or(heads),
        head_dim,
        vocab_size: size("vocab_size", usual(262_208))?,
        max_context,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(norm_eps),
        norm_differences: true,
        rope_theta: ropes.theta,
        local_rope_theta: ropes.local_theta,
        rope_scaling: ropes.scaling,
        rope_amplitude: ropes.amplitude,
        rope_dim: ropes.dim,
        window,
        layers: layers.collect(),
        activation: read_activation(&fields, family)?,
        qkv_bias: fields.flag("attention_bias")?.unwrap_or(false) || has("layers.0.q.bias") || has("layers.0.qkv.bias"),
        output_bias: has("layers.0.o.bias"),
        ffn_bias: fields.flag("mlp_bias")?.unwrap_or(false) || has("layers.0.down.bias"),
        attention_scale,
        attention_softcap: gemma2("attn_logit_softcapping")?,
        logits_softcap: gemma2("final_logit_softcapping")?,
        embedding_scale: granite("embedding_multiplier")?,
        residual_scale: granite("residual_multiplier")?,
        logits_divisor: granite("logits_scaling")?,
        tied_embeddings: fields.flag("tie_word_embeddings")?.or(top.flag("tie_word_embeddings")?).unwrap_or(!has("head")),
        eos_ids: if fields.get("eos_token_id").is_some() { fields.ids("eos_token_id") } else { top.ids("eos_token_id") },
    }
    .describe()
    .check(file)
}

fn read_activation(fields: &Fields<'_>, family: Family) -> Result<Activation, EngineError> {
    // The first files of Gemma say "gelu" and mean its approximation, as was found out after their release.
    if family == Family::Gemma {
        return Ok(Activation::GeluTanh);
    }
    let name = fields.text("hidden_activation").or_else(|| fields.text("hidden_act"));
    Ok(match name {
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
        Some("gelu") => Activation::Gelu,
        Some(other) => {
            return Err(EngineError::unsupported(format!("activation {other:?}"), "silu, gelu, gelu_pytorch_tanh"));
        }
        None if matches!(family, Family::Gemma2 | Family::Gemma3 | Family::Starcoder2) => Activation::GeluTanh,
        None => Activation::Silu,
    })
}

/// The sliding window, and for each layer whether it has it. A window of 0 or null is none.
fn read_windows(fields: &Fields<'_>, family: Family, n_layers: usize) -> Result<(Option<u32>, Vec<bool>), EngineError> {
    let switched_on = match family {
        Family::Mistral | Family::Mixtral | Family::Gemma2 | Family::Gemma3 | Family::Phi3 | Family::Starcoder2 => true,
        Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe | Family::SmolLm3 => {
            fields.flag("use_sliding_window")?.unwrap_or(false)
        }
        Family::Llama | Family::Gemma | Family::Olmo2 | Family::Granite | Family::Glm4 | Family::Encoder => false,
    };
    // What is meant where nothing is said; null says that there is none.
    let said = fields.json.get("sliding_window").is_some();
    let default = match family {
        Family::Gemma2 | Family::Gemma3 => Some(4096),
        Family::Mistral | Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe if !said => Some(4096),
        _ => None,
    };
    let window = fields.u32("sliding_window")?.or(default).filter(|window| switched_on && *window > 0);
    let first = || Ok::<_, EngineError>(fields.size("max_window_layers")?.unwrap_or(28));
    let slides = match fields.list("layer_types")? {
        Some(list) if list.len() == n_layers => {
            let slides = list.iter().map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(EngineError::unsupported(format!("layer type {kind}"), "full_attention, sliding_attention")),
            });
            slides.collect::<Result<_, _>>()?
        }
        Some(list) => {
            return Err(EngineError::malformed(fields.file, format!("layer_types lists {} of {n_layers} layers", list.len())));
        }
        None => match family {
            Family::Qwen2 | Family::Qwen3 => {
                let first = first()?;
                (0..n_layers).map(|layer| layer >= first).collect()
            }
            // Of the others in this family those from the first on see a window, here those before it, and only each second of them.
            Family::Qwen2Moe => {
                let first = first()?;
                (0..n_layers).map(|layer| layer % 2 == 0 && layer < first).collect()
            }
            Family::SmolLm3 => read_rotations(fields, family, n_layers)?.into_iter().map(|rotates| !rotates).collect(),
            _ => {
                let key = ["sliding_window_pattern", "_sliding_window_pattern"].into_iter().find(|key| fields.get(key).is_some());
                let period = key.map(|key| fields.u32(key)).transpose()?.flatten();
                let period = period.filter(|_| family == Family::Gemma3).unwrap_or(family.default_window_period());
                (0..n_layers).map(|layer| slides_by_period(period, layer)).collect()
            }
        },
    };
    Ok((window, slides))
}

/// For each layer whether its queries and keys are turned: all, but in SmolLM 3.
fn read_rotations(fields: &Fields<'_>, family: Family, n_layers: usize) -> Result<Vec<bool>, EngineError> {
    if family != Family::SmolLm3 {
        return Ok(vec![true; n_layers]);
    }
    let Some(list) = fields.list("no_rope_layers")? else {
        let interval = fields.u32("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((0..n_layers).map(|layer| slides_by_period(interval, layer)).collect());
    };
    // In spite of the name 1 means that the layer rotates.
    let rotates: Option<Vec<bool>> = list.iter().map(|flag| flag.as_u64().map(|flag| flag != 0)).collect();
    rotates.filter(|list| list.len() == n_layers).ok_or_else(|| fields.wrong("no_rope_layers", "a list of 0 or 1 for each layer"))
}

/// The feed-forward network of each layer.
fn read_networks(fields: &Fields<'_>, family: Family, n_layers: usize) -> Result<Vec<FfnConfig>, EngineError> {
    let dense = || Ok::<_, EngineError>(FfnConfig::Dense { width: fields.size_required("intermediate_size")? });
    let n_experts = match fields.size("num_local_experts")? {
        Some(n) => Some(n),
        None => fields.size("num_experts")?,
    };
    let (width, normalized, shared) = match family {
        Family::Mixtral => (fields.size_required("intermediate_size")?, true, None),
        Family::Qwen2Moe | Family::Qwen3Moe => {
            let shared = fields.size("shared_expert_intermediate_size")?.filter(|_| family == Family::Qwen2Moe);
            (fields.size_required("moe_intermediate_size")?, fields.flag("norm_topk_prob")?.unwrap_or(false), shared)
        }
        _ => return Ok(vec![dense()?; n_layers]),
    };
    let experts = FfnConfig::Experts {
        n_experts: n_experts.ok_or_else(|| fields.missing("num_experts"))?,
        n_active: fields.size_required("num_experts_per_tok")?,
        width,
        normalized,
        shared,
    };
    let step = fields.size("decoder_sparse_step")?.unwrap_or(1);
    let dense_layers = fields.list("mlp_only_layers")?.unwrap_or_default();
    let is_dense = |layer: usize| {
        let listed = dense_layers.iter().any(|listed| listed.as_u64() == Some(layer as u64));
        family != Family::Mixtral && (listed || !(layer + 1).is_multiple_of(step))
    };
    (0..n_layers).map(|layer| if is_dense(layer) { dense() } else { Ok(experts) }).collect()
}
