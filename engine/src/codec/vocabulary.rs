//! The bytes behind each token id.
//!
//! Decoders of tokenizer files are described as a chain of text operations over a whole answer. Those of the models that we serve
//! come down to one thing: each token has its own bytes, and the text is their concatenation. So they are computed once.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::tokenizer::{Added, Parts};
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
    /// The vocabulary that a model's files describe: ids from `vocab_size` on cannot be sampled, and are left out.
    pub(super) fn read(parts: &Parts, vocab_size: usize) -> Result<Self, EngineError> {
        let (scheme, strip_first_space) = decoder_scheme(&parts.decoder)?;
        let mut texts: Vec<&str> = vec![""; vocab_size];
        let mut control = vec![false; vocab_size];
        for (id, text) in parts.tokenizer.get_model().tokens() {
            if let Some(slot) = texts.get_mut(id as usize) {
                *slot = text;
            }
        }
        for Added { id, content, special } in &parts.added {
            if let Some(slot) = texts.get_mut(*id as usize) {
                *slot = content;
                control[*id as usize] = *special && !ALWAYS_VISIBLE.contains(&content.as_str());
            }
        }
        let alphabet = ByteAlphabet::new();
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(vocab_size + 1);
        starts.push(0);
        let controls = texts.iter().zip(&control).enumerate().filter(|(_, (_, control))| **control);
        let control_texts = controls.map(|(id, (text, _))| (id as u32, (*text).to_owned())).collect();
        for (text, control) in texts.iter().zip(&control) {
            if !control {
                match scheme {
                    Scheme::ByteLevel => alphabet.push(text, &mut bytes),
                    Scheme::SentencePiece => push_sentence_piece(text, &mut bytes),
                }
            }
            starts.push(bytes.len() as u32);
        }
        bytes.shrink_to_fit();
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
pub(super) fn byte_alphabet() -> impl Iterator<Item = (char, u8)> {
    let mut next = 0x100;
    (0..=255u8).map(move |byte| {
        let stands_for_itself = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let character = if stands_for_itself {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
        };
        (character, byte)
    })
}

/// The byte that each character stands for.
struct ByteAlphabet([Option<u8>; 0x144]);

impl ByteAlphabet {
    fn new() -> Self {
        let mut bytes = [None; 0x144];
        byte_alphabet().for_each(|(character, byte)| bytes[character as usize] = Some(byte));
        Self(bytes)
    }

    /// Adds the bytes of a token. One with a character outside the alphabet is an added one, written as it is.
    fn push(&self, text: &str, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        for character in text.chars() {
            match self.0.get(character as usize) {
                Some(Some(byte)) => bytes.push(*byte),
                _ => {
                    bytes.truncate(start);
                    return bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
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
        let alphabet: HashMap<char, u8> = byte_alphabet().collect();
        assert_eq!(alphabet.len(), 256);
        assert_eq!((alphabet[&'A'], alphabet[&'\u{120}'], alphabet[&'\u{10A}']), (b'A', b' ', b'\n'));
    }
}
