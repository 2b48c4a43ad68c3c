//! OpenAI's dialect: chat completions, legacy completions, models, errors.

mod chat;
mod completions;
pub(crate) mod error;
pub(crate) mod models;
mod reply;
mod request;

pub(crate) use chat::chat;
pub(crate) use completions::completions;
