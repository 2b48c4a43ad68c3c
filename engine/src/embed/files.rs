//! What an encoder's folder says about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plexus_types::Bytes;
use serde_json::Value;

use crate::error::EngineError;
use crate::model::{read_json, read_safetensors_shapes, step_tokens};

/// Largest sizes taken, as for decoders.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1024;

/// Longest text taken, in tokens. A text is computed in one go: one of 8,192 tokens takes 9 GB and minutes, in which nothing else is served.
const TEXT_MAX: u32 = 2048;

/// The families of encoders that are taken, as `model_type` names them.
pub(crate) const FAMILIES: [&str; 3] = ["bert", "xlm-roberta", "roberta"];

/// Which encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncoderFamily {
    Bert,
    /// XLM-R and RoBERTa, whose positions begin behind that of the padding.
    Roberta,
}

/// An encoder's files: the configuration read and checked, the weights found.
#[derive(Debug, Clone)]
pub(crate) struct EncoderFiles {
    pub(crate) family: EncoderFamily,
    /// `config.json`, with defaults filled in.
    pub(crate) config: Value,
    pub(crate) weights: PathBuf,
    /// What stands before the names of all tensors.
    pub(crate) prefix: String,
    pub(crate) weights_bytes: Bytes,
    pub(crate) hidden: usize,
    pub(crate) vocab_size: usize,
    /// Tokens of a text at most.
    pub(crate) max_context: u32,
    /// What the longest text, or a piece of short ones, is computed in.
    pub(crate) working: Bytes,
}

impl EncoderFamily {
    /// The one that `model_type` names.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "xlm-roberta" | "roberta" => Some(Self::Roberta),
            _ => None,
        }
    }
}

impl EncoderFiles {
    /// Opens the encoder in `folder`; `None` if its `config.json` tells of another kind of model.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, EngineError> {
        let path = folder.join("config.json");
        let Some(mut config) = read_json(&path)? else { return Ok(None) };
        let Some(family) = config.get("model_type").and_then(Value::as_str).and_then(EncoderFamily::of) else { return Ok(None) };
        fill_defaults(&mut config);
        for (key, usual) in [("position_embedding_type", "absolute".into()), ("is_decoder", Value::Bool(false))] {
            if let Some(other) = config.get(key).filter(|value| **value != usual) {
                return Err(EngineError::unsupported(format!("an encoder with {key} = {other}"), format!("{key} = {usual}")));
            }
        }
        let size = |key: &str, max: u64| match config.get(key).and_then(Value::as_u64) {
            Some(size) if (1..=max).contains(&size) => Ok(size),
            Some(size) => Err(EngineError::malformed(&path, format!("{key} is {size}; 1 to {max} is possible"))),
            None => Err(EngineError::malformed(&path, format!("{key} is missing or not a size"))),
        };
        let (hidden, heads) = (size("hidden_size", MAX_SIZE)?, size("num_attention_heads", MAX_SIZE)?);
        if !hidden.is_multiple_of(heads) {
            return Err(EngineError::malformed(&path, format!("a width of {hidden} cannot be shared by {heads} heads")));
        }
        size("num_hidden_layers", MAX_LAYERS)?;
        let inner = size("intermediate_size", MAX_SIZE)?;
        size("type_vocab_size", MAX_SIZE)?;
        let positions = size("max_position_embeddings", MAX_SIZE)?;
        let skipped = match family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1) + 1,
        };
        let max_context = positions.checked_sub(skipped).filter(|context| *context > 0);
        let max_context = max_context.ok_or_else(|| EngineError::malformed(&path, "there are no positions beside the padding's"))?;
        let max_context = max_context.min(u64::from(TEXT_MAX)) as u32;
        let weights = folder.join("model.safetensors");
        if !weights.exists() {
            return Err(EngineError::unsupported(format!("an encoder without {}", weights.display()), "weights in model.safetensors"));
        }
        let shapes = read_safetensors_shapes(&weights)?;
        let prefix = prefix(&weights, &shapes)?;
        let elements = shapes.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, shape)| shape.iter().product::<usize>() as u64);
        Ok(Some(Self {
            family,
            hidden: hidden as usize,
            vocab_size: size("vocab_size", MAX_SIZE)? as usize,
            working: working(u64::from(max_context), hidden, heads, inner),
            weights_bytes: Bytes(elements.sum::<u64>() * 4),
            max_context,
            config,
            weights,
            prefix,
        }))
    }
}

/// What texts of up to `longest` tokens are computed in, one or a piece of shorter ones, from above: scores of each token for each other one of its
/// text, before and after the softmax and while it is taken, and some copies of the hidden state and of what is inside the feed-forward network,
/// in f32.
fn working(longest: u64, hidden: u64, heads: u64, inner: u64) -> Bytes {
    let tokens = longest.max(step_tokens(false) as u64);
    let scores = tokens.saturating_mul(longest).saturating_mul(heads).saturating_mul(3);
    let states = hidden.saturating_mul(8).saturating_add(inner.saturating_mul(2)).saturating_mul(tokens);
    Bytes(scores.saturating_add(states).saturating_mul(4))
}

/// What transformers takes where `config.json` is silent.
fn fill_defaults(config: &mut Value) {
    let defaults = serde_json::json!({
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2, "position_embedding_type": "absolute",
    });
    let (Value::Object(config), Value::Object(defaults)) = (config, defaults) else { return };
    for (key, value) in defaults {
        if config.get(&key).is_none_or(Value::is_null) {
            config.insert(key, value);
        }
    }
}

fn prefix(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<String, EngineError> {
    let first = "embeddings.word_embeddings.weight";
    let name = shapes.keys().find(|name| name.ends_with(first));
    let name = name.ok_or_else(|| EngineError::malformed(path, format!("tensor {first:?} is missing")))?;
    Ok(name[..name.len() - first.len()].to_owned())
}
