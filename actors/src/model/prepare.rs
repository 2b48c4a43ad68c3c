//! What a request needs before it can wait for a place: its prompt as token ids, and the grammar of its answer. Not quick; the blocking pool
//! does it.

use plexus_engine::codec::Codec;
use plexus_engine::grammar::Grammar;
use plexus_types::{Constraint, GenerateRequest, RequestError};

use crate::prefix::PromptDigests;

/// A request, ready to wait for a place.
#[derive(Debug)]
pub struct Prepared {
    /// Its prompt.
    pub prompt: Vec<u32>,
    /// What its text begins with.
    pub digests: PromptDigests,
    /// What its answer must look like; absent: anything.
    pub grammar: Option<Grammar>,
}

/// Encodes the prompt, unless it is `known` from a journal, and compiles the grammar, if there is one.
///
/// Errors: the client's, named by the field at fault.
pub(super) fn prepare(codec: &Codec, request: &GenerateRequest, known: Vec<u32>) -> Result<Prepared, RequestError> {
    let prompt = if known.is_empty() { codec.encode(&request.prompt)? } else { known };
    let constraint = codec.constraint(request, &prompt)?;
    if constraint.is_some() && request.sampling.ignore_eos {
        return Err(RequestError::invalid("ignore_eos", "an answer that must follow a grammar ends where that ends: leave ignore_eos out"));
    }
    // The field that a grammar comes from: the request's own constraint, or else a tool that must be called.
    let field = if request.constraint.is_some() { Constraint::FIELD } else { "tool_choice" };
    let grammar = constraint.map(|constraint| codec.grammar(&constraint, field)).transpose()?;
    Ok(Prepared { prompt, digests: PromptDigests::of(&request.prompt), grammar })
}
