//! From a request to a response, the same for every dialect: the first event decides between a status and a stream.

use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use http::{HeaderValue, StatusCode};
use plexus_types::{RequestError, RequestId};
use serde::Serialize;
use tokio::time::timeout;
use tracing::Span;

use crate::Api;
use crate::answer::{Answer, ChoiceEvent, Choices, Order, Served, collect};
use crate::constraint;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::sse;

/// How long a stream's status waits for the first event, which comes late where a model is being loaded or a long prompt read. Longer, and
/// proxies and clients take the silence for a dead server: the stream then begins with comments, and a late failure becomes an event in it.
/// The shortest time after which a common client gives up on a silent connection, unless it is told otherwise, is 10 s (OkHttp); the SDKs of
/// both vendors wait for 10 min, usual proxies for 30 s to 100 s. Shorter, and more failures come too late for a status.
const PATIENCE: Duration = sse::KEEP_ALIVE;

/// The header that names the node which serves a request.
const NODE_HEADER: &str = "x-plexus-node";
/// The header that says why it does.
const ROUTE_HEADER: &str = "x-plexus-route";
/// Proxies take 4 KiB or 8 KiB of headers altogether; `plexus cluster explain` tells what does not fit.
const ROUTE_CHARS_MAX: usize = 2000;

/// A dialect's spelling of one answer. Pure: events in, bytes out.
pub(crate) trait Render: Send + Unpin + 'static {
    /// What the whole answer looks like.
    type Whole<'a>: Serialize
    where
        Self: 'a;

    /// The event as frames of a stream; never empty. `Failed`, and `Finished` with a total, are the last.
    fn frames(&mut self, event: ChoiceEvent) -> Bytes;

    /// The answer in one piece.
    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a>;
}

/// Runs `order` and answers it as `render` spells it. Dropping the future, or the body of the response, cancels all its choices.
/// The answer goes by the id of the first choice.
pub(crate) async fn respond<R: Render>(
    api: &Api,
    exchange: Exchange,
    order: Order,
    stream: bool,
    render: impl FnOnce(RequestId) -> R + Send,
) -> Response {
    let span = Span::current();
    let (n, constraint_field) = (order.n, order.constraint_field);
    let mut requests = order.requests();
    requests.iter_mut().for_each(|request| request.principal = exchange.principal);
    if let Some(request) = requests.first() {
        span.record("model", request.model.as_str());
    }
    let generations = join_all(requests.into_iter().map(|request| api.inference.generate(request))).await;
    let exchange = Exchange { id: generations.first().map_or(exchange.id, |generation| generation.id()), ..exchange };
    span.record("request_id", tracing::field::display(exchange.id));
    let choices = Choices::new(generations, n);
    let render = render(exchange.id);
    let result = if stream { streamed(exchange, choices, render).await } else { whole(exchange, choices, &render).await };
    result.unwrap_or_else(|error| exchange.unanswered(&Failure::from(constraint::rename(error, constraint_field))))
}

async fn streamed<R: Render>(exchange: Exchange, mut choices: Choices, render: R) -> Result<Response, RequestError> {
    let first = match timeout(PATIENCE, choices.next()).await {
        Ok(Some(ChoiceEvent::Failed(error))) => return Err(error),
        Ok(event) => event,
        Err(_) => None,
    };
    let served = match &first {
        Some(ChoiceEvent::Started { served, .. }) => Some(served.clone()),
        _ => None,
    };
    let mut response = sse::response(sse::EventBody::new(choices, first, render));
    exchange.mark(&mut response);
    mark_served(&mut response, served.as_ref());
    Ok(response)
}

async fn whole<R: Render>(exchange: Exchange, choices: Choices, render: &R) -> Result<Response, RequestError> {
    let answer = collect(choices).await?;
    let mut response = exchange.json(StatusCode::OK, &render.whole(&answer));
    mark_served(&mut response, answer.served.as_ref());
    Ok(response)
}

/// Tells in the headers which node serves the request and why, if that is known.
pub(crate) fn mark_served(response: &mut Response, served: Option<&Served>) {
    let Some(Served { node, route }) = served else { return };
    let name = HeaderValue::from_str(node.as_str()).expect("a node's name is a DNS label");
    response.headers_mut().insert(NODE_HEADER, name);
    mark_route(response, route);
}

/// Tells in the headers where the request went and why, or why nowhere.
pub(crate) fn mark_route(response: &mut Response, route: &str) {
    if let Ok(route) = HeaderValue::from_str(&header_text(route)) {
        response.headers_mut().insert(ROUTE_HEADER, route);
    }
}

/// A text as a header can hold it: of printable ASCII, and no longer than proxies take.
fn header_text(text: &str) -> String {
    let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let mut header: String = text.chars().take(ROUTE_CHARS_MAX).map(printable).collect();
    if text.chars().nth(ROUTE_CHARS_MAX).is_some() {
        header.push_str("...");
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_told_in_printable_ascii_and_no_longer_than_proxies_take() {
        assert_eq!(header_text("it goes to a/cpu-0 (/models/Größe.gguf\n)"), "it goes to a/cpu-0 (/models/Gr??e.gguf?)");
        let long = header_text(&"reason; ".repeat(1000));
        assert!(long.len() == ROUTE_CHARS_MAX + 3 && long.ends_with("..."), "{} bytes", long.len());
        assert!(HeaderValue::from_str(&long).is_ok());
    }
}
