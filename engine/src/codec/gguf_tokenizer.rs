//! The tokenizer from the vocabulary in a GGUF file.

mod split;

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::bpe::{Bpe, Options};
use super::tokenizer::{Added, BpeTokenizer, Parts};
use crate::error::EngineError;
use crate::model::{Gguf, GgufValue, Texts};

/// Kinds of tokens in GGUF files.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Does a vocabulary that does not say so start texts with its beginning-of-sequence token?
pub(super) fn adds_bos_by_default(gguf: &Gguf) -> bool {
    let is_sentence_piece = gguf.text("tokenizer.ggml.model") == Some("llama");
    is_sentence_piece || gguf.text("tokenizer.ggml.pre").and_then(split::of).is_some_and(|split| split.adds_bos)
}

/// The tokenizer of the vocabulary `tokens`, which was taken out of `gguf`, as its merges will be.
pub(super) fn read(path: &Path, gguf: &mut Gguf, tokens: Texts) -> Result<Parts, EngineError> {
    let added = added_tokens(gguf, &tokens);
    let steps = match gguf.text("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(path, gguf, tokens)?,
        Some("llama") => sentence_piece(path, gguf, tokens)?,
        Some(other) => return Err(EngineError::unsupported(format!("the GGUF tokenizer {other:?}"), "gpt2, llama")),
        None => return Err(EngineError::malformed(path, "tokenizer.ggml.model is missing")),
    };
    let decoder = steps.decoder.clone();
    let tokenizer = assemble(steps, &added).map_err(|error| EngineError::malformed(path, format!("its tokenizer is wrong: {error}")))?;
    Ok(Parts { tokenizer, decoder, added })
}

/// The model and what stands around it, in the words of a `tokenizer.json`.
struct Steps {
    model: Bpe,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

fn assemble(steps: Steps, added: &[Added]) -> tokenizers::Result<BpeTokenizer> {
    let mut tokenizer = BpeTokenizer::new(steps.model);
    tokenizer.with_normalizer(serde_json::from_value::<Option<tokenizers::NormalizerWrapper>>(steps.normalizer)?)?;
    tokenizer.with_pre_tokenizer(serde_json::from_value::<Option<tokenizers::PreTokenizerWrapper>>(steps.pre_tokenizer)?);
    tokenizer.with_decoder(serde_json::from_value::<Option<tokenizers::DecoderWrapper>>(steps.decoder)?);
    tokenizer.add_tokens(added.iter().map(|token| AddedToken::from(&*token.content, token.special).normalized(false)))?;
    Ok(tokenizer)
}

fn added_tokens(gguf: &Gguf, tokens: &Texts) -> Vec<Added> {
    let kinds = match gguf.metadata.get("tokenizer.ggml.token_type") {
        Some(GgufValue::Ints(kinds)) => kinds.as_slice(),
        _ => &[],
    };
    let tokens = (0u32..).zip(tokens.iter()).zip(kinds);
    let added = tokens.filter(|((_, token), kind)| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
    added.map(|((id, token), kind)| Added { id, content: token.to_owned(), special: *kind == CONTROL }).collect()
}

fn byte_level(path: &Path, gguf: &mut Gguf, tokens: Texts) -> Result<Steps, EngineError> {
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let split = split::of(pre).ok_or_else(|| EngineError::unsupported(format!("the pre-tokenizer {pre:?}"), split::names()))?;
    let pattern = |split: &&str| json!({"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Value> = split.patterns.iter().map(pattern).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    steps.push(bytes.clone());
    let mut model = Bpe::new(tokens, Options { ignore_merges: split.ignore_merges, ..Options::default() });
    let merges = gguf.take_texts("tokenizer.ggml.merges");
    let merges = merges.ok_or_else(|| EngineError::malformed(path, "tokenizer.ggml.merges is missing"))?;
    // Parts hold no spaces in byte-level vocabularies, so there is one place to cut.
    let pairs: Vec<_> = merges.iter().map(|merge| merge.split_once(' ').unwrap_or((merge, ""))).collect();
    model.merge_texts(&pairs).map_err(|error| EngineError::malformed(path, format!("its tokenizer is wrong: {error}")))?;
    let normalizer = if split.composes { json!({"type": "NFC"}) } else { Value::Null };
    Ok(Steps { model, normalizer, pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}), decoder: bytes })
}

/// A SentencePiece vocabulary has scores in place of merges: two pieces merge where their sum is a piece, the best score first.
fn sentence_piece(path: &Path, gguf: &Gguf, tokens: Texts) -> Result<Steps, EngineError> {
    /// Longer pieces than any vocabulary has would cost quadratic time.
    const MAX_PIECE_LEN: usize = 512;
    let scores = match gguf.metadata.get("tokenizer.ggml.scores") {
        Some(GgufValue::Floats(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err(EngineError::malformed(path, "tokenizer.ggml.scores is not one number for each token")),
    };
    let unknown = gguf.u32("tokenizer.ggml.unknown_token_id").and_then(|id| tokens.get(id as usize)).map(str::to_owned);
    let pieces = tokens.clone();
    let mut model = Bpe::new(tokens, Options { unknown, fuse_unknown: true, byte_fallback: true, ignore_merges: false });
    let mut merges: Vec<(f64, u32, u32, u32)> = Vec::new();
    for (token, score) in pieces.iter().zip(scores).filter(|(token, _)| token.len() <= MAX_PIECE_LEN) {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left), Some(right), Some(whole)) = (model.id_of(left), model.id_of(right), model.id_of(token)) {
                merges.push((*score, left, right, whole));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    model.merge_ids(merges.iter().map(|(_, left, right, whole)| (*left, *right, *whole)));
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
    Ok(Steps { model, normalizer, pre_tokenizer: Value::Null, decoder })
}
