//! One span and one id for each request, from its first byte to the end of its body.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use plexus_types::RequestId;
use tracing::{Instrument, field, info_span};

use crate::Shared;
use crate::dialect::Exchange;

/// Opens the request's span, lets the node set its remote parent, and gives the request an id until a generation brings its own.
pub(crate) async fn follow(State(api): State<Shared>, mut request: Request, next: Next) -> Response {
    let exchange = Exchange::new(RequestId(rand::random()), request.uri().path(), request.headers());
    request.extensions_mut().insert(exchange);
    // The pattern, not the path: few names, and nothing of the client's in them.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = info_span!(
        "http.request",
        method = %request.method(),
        route,
        status = field::Empty,
        request_id = field::Empty,
        model = field::Empty,
        cold_start = field::Empty,
        otel.kind = "server",
        otel.name = format!("{} {route}", request.method()),
        otel.status_code = field::Empty,
    );
    if let Some(on_span) = &api.config.on_span {
        on_span(&span, request.headers());
    }
    let mut response = next.run(request).instrument(span.clone()).await;
    if !response.headers().contains_key(exchange.dialect.id_header()) {
        exchange.mark(&mut response);
    }
    let status = response.status();
    span.record("status", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    span.in_scope(|| tracing::debug!(status = status.as_u16(), "answered"));
    // A streamed body holds the span on and works inside it; any other body is complete already.
    response
}
