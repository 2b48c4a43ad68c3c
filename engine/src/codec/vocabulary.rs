//! The bytes behind each token id.
//!
//! Decoders of tokenizer files are described as a chain of text operations over a whole answer. Those of the models that we serve
//! come down to one thing: each token has its own bytes, and the text is their concatenation. So they are computed once.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use crate::error::EngineError;

/// Control tokens by their flag that are nevertheless part of the answer: what parses reasoning and tool calls must see them.
const ALWAYS_VISIBLE: [&str; 4] = ["<think>", "</think>", "<tool_call>", "</tool_call>"];

/// The mark that stands for a space in SentencePiece vocabularies.
const SPACE_MARK: char = '\u{2581}';

/// Bytes, kind and meaning of each token.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// All tokens, one after the other.
    bytes: Vec<u8>,
    /// `[vocab_size + 1]` offsets into `bytes`.
    starts: Vec<u32>,
    /// `[vocab_size]`: true for tokens that are not text.
    control: Vec<bool>,
    /// The texts of control tokens.
    control_texts: HashMap<u32, String>,
    /// An answer's first space is the tokenizer's, not the model's.
    pub(super) strip_first_space: bool,
    /// Tokens that end an answer.
    pub(super) stop_ids: HashSet<u32>,
}

/// How the characters of a token stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// One character for each byte, in the alphabet of GPT-2.
    ByteLevel,
    /// Text with a mark for spaces, and `<0x41>` for single bytes.
    SentencePiece,
}

impl Vocabulary {
    /// Reads the vocabulary, the added tokens and the decoder of a `tokenizer.json`.
    pub(super) fn read(path: &Path, json: &Value, vocab_size: usize) -> Result<Self, EngineError> {
        let (scheme, strip_first_space) = decoder_scheme(json.get("decoder").unwrap_or(&Value::Null))?;
        let mut texts: Vec<&str> = vec![""; vocab_size];
        let mut control = vec![false; vocab_size];
        let vocab = json.pointer("/model/vocab").and_then(Value::as_object);
        for (text, id) in vocab.into_iter().flatten() {
            // Ids beyond the embedding cannot be sampled.
            if let Some(slot) = id.as_u64().and_then(|id| texts.get_mut(id as usize)) {
                *slot = text;
            }
        }
        for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let (Some(id), Some(text)) = (token.get("id").and_then(Value::as_u64), token.get("content").and_then(Value::as_str)) else {
                return Err(EngineError::malformed(path, "an added token lacks its id or content"));
            };
            if let Some(slot) = texts.get_mut(id as usize) {
                *slot = text;
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                control[id as usize] = special && !ALWAYS_VISIBLE.contains(&text);
            }
        }
        let alphabet = byte_alphabet();
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        let controls = texts.iter().zip(&control).enumerate().filter(|(_, (_, control))| **control);
        let control_texts = controls.map(|(id, (text, _))| (id as u32, (*text).to_owned())).collect();
        for (text, control) in texts.iter().zip(&control) {
            if !control {
                match scheme {
                    Scheme::ByteLevel => push_byte_level(&alphabet, text, &mut bytes),
                    Scheme::SentencePiece => push_sentence_piece(text, &mut bytes),
                }
            }
            starts.push(bytes.len() as u32);
        }
        Ok(Self { bytes, starts, control, control_texts, strip_first_space, stop_ids: HashSet::new() })
    }

    /// The vocabulary of a model that gives no text.
    pub(super) fn without_text(vocab_size: usize) -> Self {
        Self {
            bytes: Vec::new(),
            starts: vec![0; vocab_size + 1],
            control: vec![true; vocab_size],
            control_texts: HashMap::new(),
            strip_first_space: false,
            stop_ids: HashSet::new(),
        }
    }

    /// What a token adds to the text; nothing for control tokens and unknown ids.
    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        match self.starts.get(id as usize..).and_then(|rest| rest.first_chunk::<2>()) {
            Some([start, end]) => &self.bytes[*start as usize..*end as usize],
            None => &[],
        }
    }

    /// Is this a token that is not text?
    pub(super) fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    /// How a control token is written in templates; none for tokens that are text.
    pub(super) fn control_text(&self, id: u32) -> Option<&str> {
        self.control_texts.get(&id).map(String::as_str)
    }

    /// The text of `ids` with their control tokens written out, as a template wrote them.
    pub(super) fn spell(&self, ids: &[u32]) -> String {
        let bytes = |id: &u32| self.control_text(*id).map_or_else(|| self.bytes_of(*id), str::as_bytes);
        let bytes: Vec<u8> = ids.iter().flat_map(bytes).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The text of `ids` at once.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes_of(*id)).copied().collect();
        let bytes = match bytes.split_first() {
            Some((b' ', rest)) if self.strip_first_space => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// Checks the parts of a `tokenizer.json` on which the tokenizer library would panic, and that the model is of the kind we know.
pub(super) fn check_model(path: &Path, json: &Value) -> Result<(), EngineError> {
    let model = json.get("model").ok_or_else(|| EngineError::malformed(path, "its tokenizer has no model"))?;
    if let Some(kind) = model.get("type").and_then(Value::as_str).filter(|kind| *kind != "BPE") {
        return Err(EngineError::unsupported(format!("a tokenizer of the kind {kind}"), "BPE"));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Err(EngineError::unsupported(format!("a tokenizer with {key}"), "BPE without prefixes and suffixes"));
        }
    }
    let vocab = model.get("vocab").and_then(Value::as_object).ok_or_else(|| EngineError::malformed(path, "its tokenizer has no vocab"))?;
    for merge in model.get("merges").and_then(Value::as_array).into_iter().flatten() {
        let parts = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let known = parts.is_some_and(|(left, right)| {
            vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&format!("{left}{right}"))
        });
        if !known {
            return Err(EngineError::malformed(path, format!("its tokenizer merges tokens that it does not have: {merge}")));
        }
    }
    Ok(())
}

/// Scheme, and whether an answer's first space is dropped.
fn decoder_scheme(decoder: &Value) -> Result<(Scheme, bool), EngineError> {
    let unsupported = |what: String| {
        Err(EngineError::unsupported(what, "decoders made of ByteLevel, or of Replace, ByteFallback, Fuse, Strip, Metaspace"))
    };
    let steps = match decoder.get("decoders").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(decoder),
    };
    let mut scheme = None;
    let mut strip = false;
    for step in steps {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        match text("type") {
            Some("ByteLevel") => scheme = Some(Scheme::ByteLevel),
            Some("Replace") => match (step.pointer("/pattern/String").and_then(Value::as_str), text("content")) {
                (Some("\u{2581}"), Some(" ")) => scheme = Some(Scheme::SentencePiece),
                _ => return unsupported(format!("the tokenizer decoder step {step}")),
            },
            Some("Metaspace") => {
                scheme = Some(Scheme::SentencePiece);
                strip |= text("prepend_scheme").unwrap_or("always") != "never";
            }
            Some("ByteFallback" | "Fuse") => {}
            Some("Strip") => match (text("content"), step.get("start").and_then(Value::as_u64), step.get("stop").and_then(Value::as_u64)) {
                (Some(" "), Some(0), Some(0)) => {}
                (Some(" "), Some(1), Some(0)) => strip = true,
                _ => return unsupported(format!("the tokenizer decoder step {step}")),
            },
            Some(other) => return unsupported(format!("the tokenizer decoder {other}")),
            None => return unsupported("a tokenizer without a decoder".to_owned()),
        }
    }
    match scheme {
        Some(scheme) => Ok((scheme, strip)),
        None => unsupported("a tokenizer decoder that gives no text".to_owned()),
    }
}

/// The alphabet of byte-level tokenizers: printable Latin-1 characters stand for themselves, the other bytes for characters from
/// U+0100 on, in order. Source: GPT-2.
pub(super) fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let stands_for_itself = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let character = if stands_for_itself {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
            };
            (character, byte)
        })
        .collect()
}

/// A token with a character outside the alphabet is an added one, written as it is.
fn push_byte_level(alphabet: &HashMap<char, u8>, text: &str, bytes: &mut Vec<u8>) {
    match text.chars().map(|c| alphabet.get(&c).copied()).collect::<Option<Vec<u8>>>() {
        Some(decoded) => bytes.extend(decoded),
        None => bytes.extend_from_slice(text.as_bytes()),
    }
}

fn push_sentence_piece(text: &str, bytes: &mut Vec<u8>) {
    let byte = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => bytes.push(byte),
        None => bytes.extend(text.replace(SPACE_MARK, " ").into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'A'], alphabet[&'\u{120}'], alphabet[&'\u{10A}']), (b'A', b' ', b'\n'));
    }
}
