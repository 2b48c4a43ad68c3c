//! Server-sent events: framing, the body that carries a generation, and the comments that keep it alive.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;
use tokio::time::{Instant, Sleep};
use tracing::Span;

use crate::answer::{ChoiceEvent, Choices};
use crate::dialect::log;
use crate::failure::Failure;
use crate::generate::Render;

/// Longest silence on a stream (CX-72). Half of the shortest idle timeout seen in proxies and clients, 10 s.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A comment: every client must ignore it.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// Room for the largest frame of one token, so that writing it allocates once.
const FRAME_BYTES: usize = 512;

/// Frames under construction.
#[derive(Debug)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(FRAME_BYTES))
    }

    /// One frame of data without a name, as OpenAI sends them. JSON has no line break, which would end the frame's data.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("our frames have text keys, and a vector takes every write");
        self.0.extend_from_slice(b"\n\n");
    }

    /// One frame with a name, as Anthropic sends them.
    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(value);
    }

    /// The frame that ends an OpenAI stream well.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The bytes.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0.into()
    }
}

/// The body of a streamed answer: each event is sent as it comes (CX-71). Dropping it drops the choices, which cancels them.
pub(crate) struct EventBody<R> {
    /// The event that decided the status, not yet sent.
    first: Option<ChoiceEvent>,
    choices: Choices,
    render: R,
    /// Wakes when nothing was sent for [`KEEP_ALIVE`].
    quiet: Pin<Box<Sleep>>,
    /// The request's span: open until the body ends.
    span: Span,
}

impl<R: Render> EventBody<R> {
    /// A body that begins with `first`, or with a comment if the first event is late.
    pub(crate) fn new(choices: Choices, first: Option<ChoiceEvent>, render: R) -> Self {
        let silence = if first.is_some() { KEEP_ALIVE } else { Duration::ZERO };
        Self { first, choices, render, quiet: Box::pin(tokio::time::sleep(silence)), span: Span::current() }
    }

    fn render(&mut self, event: ChoiceEvent) -> Bytes {
        if let ChoiceEvent::Failed(error) = &event {
            self.span.record("otel.status_code", "ERROR");
            log(&Failure::Request(error.clone()));
        }
        self.render.frames(event)
    }
}

impl<R: Render> Stream for EventBody<R> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let span = this.span.clone();
        let _entered = span.enter();
        let next = match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => this.choices.poll_next_unpin(context),
        };
        let bytes = match next {
            Poll::Ready(Some(event)) => this.render(event),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                ready!(this.quiet.as_mut().poll(context));
                Bytes::from_static(COMMENT)
            }
        };
        this.quiet.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready(Some(Ok(bytes)))
    }
}

/// A response that streams `body`, with the headers that keep proxies from holding it back.
pub(crate) fn response<R: Render>(body: EventBody<R>) -> Response {
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
