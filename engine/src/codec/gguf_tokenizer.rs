//! A `tokenizer.json` from the vocabulary in a GGUF file, so that both formats are read by the same code.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::EngineError;
use crate::model::{Gguf, GgufValue};

/// Kinds of tokens in GGUF files.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How GPT-2 splits text before it merges bytes.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3: up to three digits together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2: digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SUPPORTED_SPLITS: &str = "default, gpt-2, llama-bpe, qwen2, smollm";

/// Does a vocabulary that does not say so start texts with its beginning-of-sequence token?
pub(super) fn adds_bos_by_default(gguf: &Gguf) -> bool {
    let is_sentence_piece = gguf.text("tokenizer.ggml.model") == Some("llama");
    is_sentence_piece || matches!(gguf.text("tokenizer.ggml.pre"), Some("llama-bpe" | "llama3" | "llama-v3"))
}

/// The tokenizer.
pub(super) fn tokenizer_json(path: &Path, gguf: &Gguf) -> Result<Value, EngineError> {
    let tokens = gguf.texts("tokenizer.ggml.tokens").filter(|tokens| !tokens.is_empty());
    let tokens = tokens.ok_or_else(|| EngineError::malformed(path, "tokenizer.ggml.tokens is missing"))?;
    let mut vocab = serde_json::Map::new();
    for (id, token) in tokens.iter().enumerate() {
        // Of equal tokens the first counts, as in the reference implementation.
        vocab.entry(token.as_str()).or_insert_with(|| json!(id));
    }
    let (normalizer, pre_tokenizer, decoder, model) = match gguf.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(path, gguf, &vocab)?,
        Some("llama") => sentence_piece(path, gguf, tokens, &vocab)?,
        Some(other) => return Err(EngineError::unsupported(format!("the GGUF tokenizer {other:?}"), "gpt2, llama")),
        None => return Err(EngineError::malformed(path, "tokenizer.ggml.model is missing")),
    };
    let mut model = model;
    model["vocab"] = Value::Object(vocab);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens(gguf, tokens), "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    }))
}

fn added_tokens(gguf: &Gguf, tokens: &[String]) -> Vec<Value> {
    let kinds = match gguf.metadata.get("tokenizer.ggml.token_type") {
        Some(GgufValue::Ints(kinds)) => kinds.as_slice(),
        _ => &[],
    };
    let added =
        tokens.iter().zip(kinds).enumerate().filter(|(_, (token, kind))| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
    added
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": *kind == CONTROL})
        })
        .collect()
}

type Parts = (Value, Value, Value, Value);

fn byte_level(path: &Path, gguf: &Gguf, vocab: &serde_json::Map<String, Value>) -> Result<Parts, EngineError> {
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let (normalizer, splits): (Value, &[&str]) = match pre {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" => (Value::Null, &[GPT2]),
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" => (Value::Null, &[LLAMA3]),
        "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), &[QWEN2]),
        "smollm" => (Value::Null, &[r"\p{N}", GPT2]),
        "default" | "" => (Value::Null, &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        other => return Err(EngineError::unsupported(format!("the pre-tokenizer {other:?}"), SUPPORTED_SPLITS)),
    };
    let mut steps: Vec<Value> =
        splits.iter().map(|split| json!({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false})).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    steps.push(bytes.clone());
    let merges = gguf.texts("tokenizer.ggml.merges").ok_or_else(|| EngineError::malformed(path, "tokenizer.ggml.merges is missing"))?;
    let merges = merges.iter().map(|merge| split_merge(merge, vocab).map(|(left, right)| json!([left, right])));
    let merges: Option<Vec<Value>> = merges.collect();
    let merges = merges.ok_or_else(|| EngineError::malformed(path, "its tokenizer merges tokens that it does not have"))?;
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": splits == [LLAMA3], "merges": merges,
    });
    Ok((normalizer, json!({"type": "Sequence", "pretokenizers": steps}), bytes, model))
}

/// The two parts of a merge. Parts hold no spaces in byte-level vocabularies, so there is one place to cut.
fn split_merge<'a>(merge: &'a str, vocab: &serde_json::Map<String, Value>) -> Option<(&'a str, &'a str)> {
    let (left, right) = merge.split_once(' ')?;
    (vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&format!("{left}{right}"))).then_some((left, right))
}

/// A SentencePiece vocabulary has scores in place of merges: two pieces merge where their sum is a piece, the best score first.
fn sentence_piece(path: &Path, gguf: &Gguf, tokens: &[String], vocab: &serde_json::Map<String, Value>) -> Result<Parts, EngineError> {
    /// Longer pieces than any vocabulary has would cost quadratic time.
    const MAX_PIECE_LEN: usize = 512;
    let scores = match gguf.metadata.get("tokenizer.ggml.scores") {
        Some(GgufValue::Floats(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err(EngineError::malformed(path, "tokenizer.ggml.scores is not one number for each token")),
    };
    let ids: HashMap<&str, u64> = vocab.iter().filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?))).collect();
    let mut merges: Vec<(f64, u64, u64, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        if token.len() > MAX_PIECE_LEN {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *left_id, *right_id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<Value> = merges.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prefixed = gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let normalizer = if prefixed {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]})
    } else {
        json!({"type": "Sequence", "normalizers": [replace]})
    };
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": u8::from(prefixed), "stop": 0},
    ]});
    let unknown = gguf.u32("tokenizer.ggml.unknown_token_id").and_then(|id| tokens.get(id as usize));
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "merges": merges,
    });
    Ok((normalizer, Value::Null, decoder, model))
}
