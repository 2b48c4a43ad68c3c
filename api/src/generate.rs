//! From a request to a response, the same for every dialect: the first event decides between a status and a stream.

use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, StatusCode};
use plexus_types::{Delta, FinishReason, GenerateEvent, GenerateRequest, NodeName, RequestError, RequestId, Usage};
use serde::Serialize;
use tokio::time::timeout;
use tracing::Span;

use crate::Api;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::service::Generation;
use crate::sse;

/// How long a stream's status waits for the first event. Longer, and proxies and clients take the silence for a dead server: the stream
/// then begins with comments, and a late failure becomes an event in it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The header that names the node which serves a request.
const NODE_HEADER: &str = "x-plexus-node";

/// A dialect's spelling of one generation. Pure: events in, bytes out.
pub(crate) trait Render: Send + Unpin + 'static {
    /// What the whole answer looks like.
    type Whole<'a>: Serialize
    where
        Self: 'a;

    /// The event as frames of a stream; never empty. `Failed` and `Done` are the last.
    fn frames(&mut self, event: GenerateEvent) -> Bytes;

    /// The answer in one piece.
    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a>;
}

/// A generation that ended well, in one piece.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) node: Option<NodeName>,
    pub(crate) text: String,
    pub(crate) reason: FinishReason,
    pub(crate) usage: Usage,
}

/// Runs `request` and answers it as `render` spells it. Dropping the future, or the body of the response, cancels the generation.
pub(crate) async fn respond<R: Render>(
    api: &Api,
    exchange: Exchange,
    request: GenerateRequest,
    stream: bool,
    render: impl FnOnce(RequestId) -> R + Send,
) -> Response {
    let span = Span::current();
    span.record("model", request.model.as_str());
    let generation = api.inference.generate(request).await;
    let exchange = Exchange { id: generation.id(), ..exchange };
    span.record("request_id", tracing::field::display(exchange.id));
    let render = render(exchange.id);
    let result = if stream { streamed(exchange, generation, render).await } else { whole(exchange, generation, &render).await };
    result.unwrap_or_else(|error| exchange.failure(&Failure::from(error)))
}

async fn streamed<R: Render>(exchange: Exchange, mut generation: Generation, render: R) -> Result<Response, RequestError> {
    let first = match timeout(PATIENCE, generation.next()).await {
        Ok(Some(GenerateEvent::Failed(error))) => return Err(error),
        Ok(None) => return Err(ended_early()),
        Ok(Some(event)) => Some(event),
        Err(_) => None,
    };
    let node = match &first {
        Some(GenerateEvent::Started { node, .. }) => Some(node.clone()),
        _ => None,
    };
    let mut response = sse::response(sse::EventBody::new(generation, first, render));
    exchange.mark(&mut response);
    mark_node(&mut response, node.as_ref());
    Ok(response)
}

async fn whole<R: Render>(exchange: Exchange, generation: Generation, render: &R) -> Result<Response, RequestError> {
    let answer = collect(generation).await?;
    let mut response = exchange.json(StatusCode::OK, &render.whole(&answer));
    mark_node(&mut response, answer.node.as_ref());
    Ok(response)
}

fn mark_node(response: &mut Response, node: Option<&NodeName>) {
    if let Some(node) = node {
        let name = HeaderValue::from_str(node.as_str()).expect("a node's name is a DNS label");
        response.headers_mut().insert(NODE_HEADER, name);
    }
}

async fn collect(mut generation: Generation) -> Result<Answer, RequestError> {
    let (mut node, mut text) = (None, String::new());
    while let Some(event) = generation.next().await {
        match event {
            GenerateEvent::Started { node: by, .. } => node = Some(by),
            GenerateEvent::Tokens { deltas, .. } => text.push_str(&Delta::text_of(&deltas)),
            GenerateEvent::Done { reason, usage } => return Ok(Answer { node, text, reason, usage }),
            GenerateEvent::Failed(error) => return Err(error),
        }
    }
    Err(ended_early())
}

/// A generation whose events stop without an end: whoever made them died.
pub(crate) fn ended_early() -> RequestError {
    RequestError::Lost { message: "the generation stopped without an end; ask again".to_owned() }
}
