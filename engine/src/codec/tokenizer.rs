//! What splits text into token ids.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use super::bpe::Bpe;
use crate::error::EngineError;

/// The library's tokenizer around our model.
pub(super) type BpeTokenizer = TokenizerImpl<Bpe, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A decoder's tokenizer, or an encoder's, which is of any kind.
#[derive(Debug)]
pub(crate) enum Tokenizer {
    Bpe(Box<BpeTokenizer>),
    Library(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// The ids of a text. Errors: a character that the vocabulary has no way to write.
    pub(crate) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let encoding = match self {
            Self::Bpe(tokenizer) => tokenizer.encode_fast(text, add_special_tokens),
            Self::Library(tokenizer) => tokenizer.encode_fast(text, add_special_tokens),
        };
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|error| error.to_string())
    }

    /// The id of a token by its name.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Bpe(tokenizer) => tokenizer.token_to_id(token),
            Self::Library(tokenizer) => tokenizer.token_to_id(token),
        }
    }

    /// The name of a token.
    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Bpe(tokenizer) => tokenizer.id_to_token(id),
            Self::Library(tokenizer) => tokenizer.id_to_token(id),
        }
    }

    /// The text of ids as the library's decoders give it.
    #[cfg(test)]
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Bpe(tokenizer) => tokenizer.decode(ids, true).unwrap(),
            Self::Library(tokenizer) => tokenizer.decode(ids, true).unwrap(),
        }
    }
}

/// What a decoder's files say of its tokenizer.
pub(super) struct Parts {
    pub(super) tokenizer: BpeTokenizer,
    /// The decoder in the words of a `tokenizer.json`.
    pub(super) decoder: Value,
    pub(super) added: Vec<Added>,
}

/// A token that is found in texts before they are split.
#[derive(Debug, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    /// Is it a control token?
    #[serde(default)]
    pub(super) special: bool,
}

/// A `tokenizer.json` but for its vocabulary and what is around it.
#[derive(Debug, Deserialize)]
struct Facts {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    decoder: Value,
    model: Option<ModelFacts>,
}

/// What our model has no place for.
#[derive(Debug, Deserialize)]
struct ModelFacts {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

impl Parts {
    /// Reads a `tokenizer.json`: once for what we must know of it, once by the library, whose deserializer asks our model for its own part.
    pub(super) fn from_json(path: &Path, text: &str) -> Result<Self, EngineError> {
        let wrong = |error: &dyn std::fmt::Display| EngineError::malformed(path, format!("its tokenizer is wrong: {error}"));
        let facts: Facts = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        facts.model.ok_or_else(|| EngineError::malformed(path, "its tokenizer has no model"))?.check()?;
        let mut tokenizer: BpeTokenizer = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        // Both are for training; a prompt is never cut or filled.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
        Ok(Self { tokenizer, decoder: facts.decoder, added: facts.added_tokens })
    }
}

impl ModelFacts {
    fn check(&self) -> Result<(), EngineError> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| *kind != "BPE") {
            return Err(EngineError::unsupported(format!("a tokenizer of the kind {kind}"), "BPE"));
        }
        for (key, affix) in
            [("continuing_subword_prefix", &self.continuing_subword_prefix), ("end_of_word_suffix", &self.end_of_word_suffix)]
        {
            if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
                return Err(EngineError::unsupported(format!("a tokenizer with {key}"), "BPE without prefixes and suffixes"));
            }
        }
        match self.dropout {
            Some(share) if share != 0.0 => {
                Err(EngineError::unsupported(format!("a tokenizer that leaves out {share} of its merges by chance"), "dropout null"))
            }
            _ => Ok(()),
        }
    }
}
