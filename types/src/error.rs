//! Why a request is not answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ModelId;

/// May a request that failed so be sent to another replica?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Yes: this replica refused before any work, or is gone.
    Elsewhere,
    /// No: every replica would answer the same.
    Never,
}

/// Why a request is not answered, in words for the client. Each dialect maps it to its own status and envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum RequestError {
    /// The request itself is wrong.
    #[error("{message}")]
    Invalid {
        /// What is wrong and what would be right.
        message: String,
        /// The field at fault, in the words of the dialect.
        param: Option<String>,
    },
    /// No node of the cluster serves this model.
    #[error("the model '{model}'{} does not exist in this cluster; GET /v1/models lists those that do", named_by(.alias))]
    ModelNotFound {
        /// The model asked for.
        model: String,
        /// The other name by which it was asked for, if it was.
        alias: Option<String>,
    },
    /// Prompt and answer do not fit the model's context.
    #[error("{}", too_long(.prompt_tokens, .max_tokens))]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens that the model holds.
        max_tokens: u32,
    },
    /// The model cannot take this kind of input (images, audio, tools without a template for them).
    #[error("{message}")]
    WrongModality {
        /// What was sent and what the model takes.
        message: String,
        /// The field at fault, in the words of the dialect.
        param: Option<String>,
    },
    /// All places and the queue are taken.
    #[error("{message}")]
    Overloaded {
        /// What is full.
        message: String,
        /// When a place is expected.
        retry_after: Duration,
    },
    /// Nothing can serve the model now, but something is going to: it is being loaded, or waits for what others use.
    #[error("{message}")]
    Unavailable {
        /// What is missing.
        message: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The replica went away, hung or was stopped while it had the request.
    #[error("{message}")]
    Lost {
        /// What happened, as far as is known.
        message: String,
    },
    /// Something failed that should not: a bug or a broken device.
    #[error("{message}")]
    Internal {
        /// What failed. No paths, no addresses.
        message: String,
    },
    /// Nothing can serve the model before somebody has mended something.
    #[error("{message}")]
    Unservable {
        /// What is missing, at each place.
        message: String,
    },
    /// One of several texts does not fit the model's context.
    #[error(
        "this model's maximum context length is {max_tokens} tokens, but {input} does not fit it: the prompt is too long: {tokens} tokens > \
         {max_tokens} maximum"
    )]
    TextLength {
        /// What the client calls the text.
        input: String,
        /// Tokens of the text.
        tokens: u32,
        /// Tokens that the model holds.
        max_tokens: u32,
    },
}

/// How a model that does not exist was called, if it was by another name.
fn named_by(alias: &Option<String>) -> String {
    alias.as_ref().map_or_else(String::new, |alias| format!(", for which the alias '{alias}' stands,"))
}

/// Clients look for "maximum context length is" and for "prompt is too long: N tokens > M maximum".
fn too_long(prompt_tokens: &u32, max_tokens: &u32) -> String {
    let begin = format!("this model's maximum context length is {max_tokens} tokens, but the prompt is too long");
    if prompt_tokens == max_tokens {
        let needed = u64::from(*prompt_tokens) + 1;
        return format!("{begin}: {needed} tokens > {max_tokens} maximum, {prompt_tokens} of the prompt and at least one of the answer");
    }
    format!("{begin}: {prompt_tokens} tokens > {max_tokens} maximum")
}

impl RequestError {
    /// A request that is wrong, with the field at fault.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), param: Some(param.to_owned()) }
    }

    /// A model that is not there.
    pub fn model_not_found(model: &ModelId) -> Self {
        Self::ModelNotFound { model: model.to_string(), alias: None }
    }

    /// Nothing can serve it just now, and a second later something may.
    pub fn soon(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), retry_after: Duration::from_secs(1) }
    }

    /// May the request be sent elsewhere, as long as no token has reached the client?
    pub fn retry(&self) -> Retry {
        match self {
            // A peer may know less than we do: its view of a model may be older than ours.
            Self::ModelNotFound { .. }
            | Self::Overloaded { .. }
            | Self::Unavailable { .. }
            | Self::Unservable { .. }
            | Self::Lost { .. }
            | Self::Internal { .. } => Retry::Elsewhere,
            Self::Invalid { .. } | Self::ContextLength { .. } | Self::TextLength { .. } | Self::WrongModality { .. } => Retry::Never,
        }
    }
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_leaves_no_room_for_an_answer_is_not_called_longer_than_it_is() {
        let error = |prompt_tokens| RequestError::ContextLength { prompt_tokens, max_tokens: 512 }.to_string();
        let begin = "this model's maximum context length is 512 tokens, but the prompt is too long: ";
        assert_eq!(error(600), format!("{begin}600 tokens > 512 maximum"));
        assert_eq!(error(512), format!("{begin}513 tokens > 512 maximum, 512 of the prompt and at least one of the answer"));
    }
}
