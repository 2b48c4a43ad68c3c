//! Texts or token ids, one or several: the prompts of a completion and the inputs of an embedding, which the vendor spells alike.

use plexus_types::RequestError;
use serde::Deserialize;

use crate::wire::TextOr;

/// An element of an array: one of several texts, a token, or one of several arrays of tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string, a token id or an array of token ids")]
pub(super) enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

/// A text, or the ids of its tokens; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// Reads the field `param`: at least one input.
pub(super) fn read(param: &str, value: Option<TextOr<Element>>) -> Result<Vec<Input>, RequestError> {
    let wrong = |message: &str| Err(RequestError::invalid(param, format!("{param} {message}")));
    let elements = match value {
        None => return wrong("is missing; give a text, an array of token ids, or an array of texts or of such arrays"),
        Some(TextOr::Text(text)) => vec![Element::Text(text)],
        Some(TextOr::Many(elements)) => elements,
    };
    let (mut inputs, mut ids) = (Vec::new(), Vec::new());
    for element in elements {
        match element {
            Element::Text(text) => inputs.push(Input::Text(text)),
            Element::Tokens(ids) => inputs.push(Input::Tokens(ids)),
            Element::Token(id) => ids.push(id),
        }
    }
    match (inputs.is_empty(), ids.is_empty()) {
        (false, false) => return wrong("mixes token ids with other elements; send one or the other"),
        (true, _) => inputs.push(Input::Tokens(ids)),
        (false, true) => {}
    }
    let empty = |input: &Input| match input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(ids) => ids.is_empty(),
    };
    if let Some(at) = inputs.iter().position(empty) {
        let name = if inputs.len() > 1 { format!("{param}[{at}]") } else { param.to_owned() };
        let message =
            format!("{name} is empty; give at least one {}", if matches!(inputs[at], Input::Text(_)) { "character" } else { "token" });
        return Err(RequestError::invalid(&name, message));
    }
    Ok(inputs)
}
