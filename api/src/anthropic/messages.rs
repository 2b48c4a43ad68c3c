//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;
use plexus_types::RequestId;
use serde::Serialize;

use super::request;
use super::stream::MessageRender;
use crate::Shared;
use crate::body;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::generate::respond;

/// `POST /v1/messages`
pub(crate) async fn messages(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let parsed = body::read(&api.config, request).await.and_then(|json| request::message(&json));
    let (order, stream) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return exchange.failure(&failure),
    };
    let model = order.prompts.first().map(|request| request.model.to_string()).unwrap_or_default();
    let render = move |id: RequestId| MessageRender::new(id, model);
    respond(&api, exchange, order, stream, render).await
}

#[derive(Debug, Serialize)]
struct Count {
    input_tokens: u32,
}

/// `POST /v1/messages/count_tokens`
pub(crate) async fn count_tokens(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let count = async {
        let request = request::count(&body::read(&api.config, request).await?)?;
        tracing::Span::current().record("model", request.model.as_str());
        Ok::<_, Failure>(api.inference.count_tokens(request).await?)
    };
    match count.await {
        Ok(input_tokens) => exchange.json(StatusCode::OK, &Count { input_tokens }),
        Err(failure) => exchange.failure(&failure),
    }
}
