//! Every endpoint in both dialects, driven through the router with a scripted cluster behind it.

#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed")]

mod by_hand;
mod chat;
mod clients;
mod completions;
mod embeddings;
mod errors;
mod messages;
mod scripted;
mod streams;
mod surface;
