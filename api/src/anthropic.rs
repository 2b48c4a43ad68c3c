//! Anthropic's dialect: messages, token counts, models, errors.

pub(crate) mod error;
mod messages;
pub(crate) mod models;
mod request;
mod stream;
mod tools;
mod turns;

pub(crate) use messages::{count_tokens, messages};
