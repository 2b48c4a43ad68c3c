//! OpenAI's dialect: chat completions, legacy completions, models, errors.

mod chat;
mod completions;
pub(crate) mod error;
mod logprobs;
pub(crate) mod models;
mod reply;
mod request;
mod tools;

pub(crate) use chat::chat;
pub(crate) use completions::completions;
