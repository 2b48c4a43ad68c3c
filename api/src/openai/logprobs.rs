//! Log probabilities in OpenAI's two shapes: a list of tokens for chats, parallel lists for legacy completions.

use std::collections::BTreeMap;

use plexus_types::{RequestError, TokenLogprob, TokenLogprobs};
use serde::Serialize;
use serde_json::Value;

use crate::params::{out_of_range, short};

/// Most alternatives of a token in a chat.
const CHAT_TOP_MAX: i64 = 20;
/// Most alternatives of a token in a legacy completion.
const LEGACY_TOP_MAX: u64 = 5;

/// A chat's `logprobs` and `top_logprobs`: how many alternatives, if any are wanted.
pub(crate) fn of_chat(logprobs: Option<bool>, top: Option<i64>) -> Result<Option<u32>, RequestError> {
    let remedy = format!("between 0 and {CHAT_TOP_MAX}");
    let n = top.map(|top| u32::try_from(top).ok().filter(|_| top <= CHAT_TOP_MAX).ok_or_else(|| out_of_range("top_logprobs", top, remedy)));
    match (logprobs.unwrap_or(false), n.transpose()?) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(RequestError::invalid("top_logprobs", "top_logprobs is given without logprobs; send \"logprobs\": true with it"))
        }
    }
}

/// A completion's `logprobs`: the number of alternatives itself.
pub(crate) fn of_completion(logprobs: Option<&Value>) -> Result<Option<u32>, RequestError> {
    match logprobs {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(top @ ..=LEGACY_TOP_MAX) => Ok(Some(top as u32)),
            _ => Err(out_of_range("logprobs", short(value), format!("an integer between 0 and {LEGACY_TOP_MAX}"))),
        },
    }
}

/// The tokens of a chat, or of one chunk of it; those of thoughts and of the marks round tool calls are among them, and the one that ends the
/// answer, under their names, as vLLM has it.
#[derive(Debug, Serialize)]
pub(crate) struct ChatLogprobs<'a> {
    content: Vec<Drawn<'a>>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Drawn<'a> {
    #[serde(flatten)]
    token: Token<'a>,
    top_logprobs: Vec<Token<'a>>,
}

#[derive(Debug, Serialize)]
struct Token<'a> {
    /// Half a character shows as the mark for it; `bytes` are exact.
    token: String,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> ChatLogprobs<'a> {
    /// `None` where there are none.
    pub(crate) fn of(tokens: &'a [TokenLogprobs]) -> Option<Self> {
        let drawn =
            |token: &'a TokenLogprobs| Drawn { token: Token::of(&token.token), top_logprobs: token.top.iter().map(Token::of).collect() };
        (!tokens.is_empty()).then(|| Self { content: tokens.iter().map(drawn).collect(), refusal: None })
    }
}

impl<'a> Token<'a> {
    fn of(token: &'a TokenLogprob) -> Self {
        Self { token: String::from_utf8_lossy(&token.bytes).into_owned(), logprob: token.logprob, bytes: &token.bytes }
    }
}

/// The tokens of a completion, or of one chunk of it.
#[derive(Debug, Serialize)]
pub(crate) struct LegacyLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins, in characters from the begin of the choice's text.
    text_offset: Vec<usize>,
}

impl LegacyLogprobs {
    /// `None` where there are none. `chars` counts the characters of the text so far and is moved on.
    pub(crate) fn of(tokens: &[TokenLogprobs], chars: &mut usize) -> Option<Self> {
        let mut text_offset = Vec::with_capacity(tokens.len());
        for token in tokens {
            text_offset.push(*chars);
            if token.token.control {
                continue;
            }
            *chars += token.token.bytes.iter().filter(|byte| !is_continuation(**byte)).count();
        }
        // The token drawn is among its alternatives, even if it is not one of the likeliest.
        let top = |token: &TokenLogprobs| token.top.iter().chain([&token.token]).map(|token| (legacy(token), token.logprob)).collect();
        (!tokens.is_empty()).then(|| Self {
            tokens: tokens.iter().map(|token| legacy(&token.token)).collect(),
            token_logprobs: tokens.iter().map(|token| token.token.logprob).collect(),
            top_logprobs: tokens.iter().map(top).collect(),
            text_offset,
        })
    }
}

/// A byte that is not the first of its character in UTF-8.
fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// A token as the legacy endpoint spells it: what is not text shows its bytes.
fn legacy(token: &TokenLogprob) -> String {
    match str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => token.bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprob {
        TokenLogprob { id: 0, bytes: bytes.to_vec(), control: bytes.starts_with(b"<|"), logprob }
    }

    #[test]
    fn alternatives_are_counted_within_the_vendors_limits() {
        assert_eq!((of_chat(None, None), of_chat(Some(false), Some(0)), of_chat(Some(true), None)), (Ok(None), Ok(None), Ok(Some(0))));
        assert_eq!(of_chat(Some(true), Some(20)), Ok(Some(20)));
        for (logprobs, top) in [(true, 21), (true, -1), (false, 1)] {
            let refusal = of_chat(Some(logprobs), Some(top)).unwrap_err();
            assert!(matches!(&refusal, RequestError::Invalid { param: Some(param), .. } if param == "top_logprobs"), "{refusal}");
        }
        for (json, expected) in
            [("null", Some(None)), ("0", Some(Some(0))), ("5", Some(Some(5))), ("6", None), ("-1", None), ("true", None)]
        {
            assert_eq!(of_completion(Some(&json.parse().unwrap())).ok(), expected, "{json}");
        }
    }

    #[test]
    fn a_legacy_token_begins_where_its_first_character_does() {
        // An emoji of four bytes over two tokens, and a control token, which is no text.
        let tokens = ["é".as_bytes(), &[0xF0, 0x9F], &[0x98, 0x80], b"<|mark|>", b"!"];
        let tokens: Vec<_> = tokens.iter().map(|bytes| TokenLogprobs { token: token(bytes, -1.0), top: vec![token(b"x", -0.5)] }).collect();
        let mut chars = 3;
        let shown = LegacyLogprobs::of(&tokens, &mut chars).unwrap();
        assert_eq!(shown.text_offset, [3, 4, 5, 5, 5]);
        assert_eq!(chars, 6);
        assert_eq!(shown.tokens, ["é", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "<|mark|>", "!"]);
        assert_eq!(shown.top_logprobs[4], [("!".to_owned(), -1.0), ("x".to_owned(), -0.5)].into());
    }
}
