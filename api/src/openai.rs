//! OpenAI's dialect: chat completions, legacy completions, embeddings, models, errors.

mod chat;
mod completions;
mod embeddings;
pub(crate) mod error;
mod input;
mod logprobs;
pub(crate) mod models;
mod reply;
mod request;
mod tools;
mod turns;

pub(crate) use chat::chat;
pub(crate) use completions::completions;
pub(crate) use embeddings::embeddings;
