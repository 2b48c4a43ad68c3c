//! `POST /v1/chat/completions`

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;
use plexus_types::{GenerateEvent, RequestId};
use serde::Serialize;

use super::reply::{Head, Object, finish_reason};
use super::request;
use crate::Shared;
use crate::body;
use crate::dialect::Exchange;
use crate::generate::{Answer, Render, respond};
use crate::sse::Frames;

const WHOLE: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";

/// `POST /v1/chat/completions`
pub(crate) async fn chat(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let parsed = body::read(&api.config, request).await.and_then(|json| request::chat(&json));
    let (request, reply) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return exchange.failure(&failure),
    };
    let (created, fingerprint, model) = (api.config.now_s(), api.config.version.fingerprint(), request.model.to_string());
    let render = move |id: RequestId| {
        let head = Head { id: format!("chatcmpl-{id}"), created, model, fingerprint, include_usage: reply.include_usage };
        ChatRender { head, begun: false }
    };
    respond(&api, exchange, request, reply.stream, render).await
}

/// Spells one chat completion.
pub(crate) struct ChatRender {
    head: Head,
    /// The chunk with the role is sent.
    begun: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct WholeChoice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl ChatRender {
    fn chunk(&self, delta: Delta<'_>, finish_reason: Option<&'static str>, frames: &mut Frames) {
        frames.data(&self.head.chunk(CHUNK, ChunkChoice { index: 0, delta, logprobs: None, finish_reason }));
    }
}

impl Render for ChatRender {
    type Whole<'a> = Object<'a, WholeChoice<'a>>;

    fn frames(&mut self, event: GenerateEvent) -> Bytes {
        let mut frames = Frames::new();
        if !matches!(event, GenerateEvent::Failed(_)) && !std::mem::replace(&mut self.begun, true) {
            self.chunk(Delta { role: Some("assistant"), content: Some("") }, None, &mut frames);
        }
        match event {
            GenerateEvent::Started { .. } => {}
            GenerateEvent::Tokens { deltas, .. } => {
                self.chunk(Delta { role: None, content: Some(&plexus_types::Delta::text_of(&deltas)) }, None, &mut frames)
            }
            GenerateEvent::Done { reason, usage } => {
                self.chunk(Delta::default(), Some(finish_reason(&reason)), &mut frames);
                self.head.end::<ChunkChoice<'_>>(CHUNK, &usage, &mut frames);
            }
            GenerateEvent::Failed(error) => return Head::failed(error),
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a> {
        let message = Message { role: "assistant", content: &answer.text, refusal: None };
        let choice = WholeChoice { index: 0, message, logprobs: None, finish_reason: finish_reason(&answer.reason) };
        self.head.whole(WHOLE, choice, &answer.usage)
    }
}
