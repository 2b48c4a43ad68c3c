//! The HTTP dialects. No actors, no models: the cluster is seen through [`service::Inference`] alone.
//!
//! [`router`] answers the OpenAI and the Anthropic API and a few pages of our own. The way of a request through this crate:
//!
//! ```text
//! span (id, trace, log) -> guard (Host, Origin) -> body (limits, JSON) -> openai | anthropic (JSON -> GenerateRequest)
//!      -> generate (the first event decides: status or stream) -> openai | anthropic (events -> JSON or SSE)
//! ```
//!
//! Translations are pure functions of the body and of the events. Whatever fails becomes a `Failure`, which each dialect turns
//! into its vendor's envelope in one `match`. Nothing here logs a prompt, an answer or a key.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps in vain has failed"))]

mod answer;
mod anthropic;
mod body;
mod by_hand;
mod cluster;
mod config;
mod constraint;
mod dialect;
mod discovery;
mod endpoint;
mod failure;
mod generate;
mod guard;
mod limits;
mod openai;
mod params;
pub mod service;
mod span;
mod sse;
mod thinking;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub use config::{ApiConfig, OnSpan, VersionInfo};
pub use discovery::{Cpu, Gpu, Host, LookAtHost};
use service::Inference;

/// What every handler holds.
pub(crate) struct Api {
    pub(crate) inference: Arc<dyn Inference>,
    pub(crate) config: ApiConfig,
}

/// The state of the router.
pub(crate) type Shared = Arc<Api>;

/// Every endpoint of a node, over the cluster seen through `inference`.
pub fn router(inference: Arc<dyn Inference>, config: ApiConfig) -> Router {
    let api: Shared = Arc::new(Api { inference, config });
    Router::new()
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/models", get(dialect::models))
        .route("/v1/models/{*id}", get(dialect::model))
        .route("/v1/models/load", post(by_hand::load).get(dialect::model_named_so))
        .route("/v1/models/pull", post(by_hand::pull).get(dialect::model_named_so))
        .route("/v1/models/unload", post(by_hand::unload).get(dialect::model_named_so))
        .route("/v1/models/pin", post(by_hand::pin).get(dialect::model_named_so))
        .route("/v1/models/unpin", post(by_hand::unpin).get(dialect::model_named_so))
        .route("/models", get(dialect::models))
        .route("/models/{*id}", get(dialect::model))
        .route("/models/load", post(by_hand::load))
        .route("/models/unload", post(by_hand::unload))
        .route("/v1/cluster", get(cluster::report))
        .route("/v1/cluster/actors", get(cluster::actors))
        .route("/v1/cluster/explain/{*subject}", get(cluster::explain))
        .route("/v1/cluster/actors/kill", post(cluster::kill_actor))
        .route("/", get(cluster::greeting))
        .route("/health", get(cluster::health))
        .route("/discovery", get(discovery::discovery))
        .route("/version", get(cluster::version))
        .method_not_allowed_fallback(dialect::wrong_method)
        .fallback(dialect::no_route)
        // The last layer is the outermost: what the guard refuses has a span and an id, too.
        .layer(from_fn_with_state(Arc::clone(&api), guard::check))
        .layer(from_fn_with_state(Arc::clone(&api), span::follow))
        .with_state(api)
}
