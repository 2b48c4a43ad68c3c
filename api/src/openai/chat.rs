//! `POST /v1/chat/completions`

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;
use plexus_types::{Delta, RequestId, TokenLogprobs, ToolCall};
use serde::Serialize;

use super::logprobs::ChatLogprobs;
use super::reply::{Head, Object, finish_reason};
use super::request;
use crate::Shared;
use crate::answer::{Answer, Choice, ChoiceEvent};
use crate::body;
use crate::dialect::Exchange;
use crate::generate::{Render, respond};
use crate::sse::Frames;

const WHOLE: &str = "chat.completion";
const CHUNK: &str = "chat.completion.chunk";

/// `POST /v1/chat/completions`
pub(crate) async fn chat(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let parsed = body::read(&api.config, request).await.and_then(|json| request::chat(&json));
    let (order, reply) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return exchange.failure(&failure),
    };
    let (created, fingerprint) = (api.config.now_s(), api.config.version.fingerprint());
    let model = order.prompts.first().map(|request| request.model.to_string()).unwrap_or_default();
    let render = move |id: RequestId| {
        let head = Head { id: format!("chatcmpl-{id}"), created, model, fingerprint, include_usage: reply.include_usage };
        ChatRender { head, begun: Vec::new() }
    };
    respond(&api, exchange, order, reply.stream, render).await
}

/// Spells one chat completion.
pub(crate) struct ChatRender {
    head: Head,
    /// Choices whose chunk with the role is sent.
    begun: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct WholeChoice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: &'static str,
}

/// `content` is null only where a tool is called instead.
#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    /// What was thought: the name that most servers of open models have given it.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WholeCall<'a>>,
}

#[derive(Debug, Serialize)]
struct WholeCall<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Debug, Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: ChunkDelta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ChunkCall<'a>; 1]>,
}

/// The first chunk of a call has its id, its type and its name; the others have pieces of its arguments.
#[derive(Debug, Serialize)]
struct ChunkCall<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "type")]
    kind: Option<&'static str>,
    function: Function<'a>,
}

impl<'a> ChunkDelta<'a> {
    fn of(delta: &'a Delta) -> Self {
        let none = Self::default();
        match delta {
            Delta::Text(text) => Self { content: Some(text), ..none },
            Delta::Reasoning(text) => Self { reasoning_content: Some(text), ..none },
            Delta::ToolCall { index, id, name } => {
                let function = Function { name: Some(name), arguments: "" };
                Self { tool_calls: Some([ChunkCall { index: *index, id: Some(id), kind: Some("function"), function }]), ..none }
            }
            Delta::ToolArguments { index, json } => {
                let function = Function { name: None, arguments: json };
                Self { tool_calls: Some([ChunkCall { index: *index, id: None, kind: None, function }]), ..none }
            }
        }
    }
}

impl ChatRender {
    /// The first chunk of a choice has the role, and no text.
    fn begin(&mut self, choice: u32, frames: &mut Frames) {
        if !self.begun.contains(&choice) {
            self.begun.push(choice);
            let delta = ChunkDelta { role: Some("assistant"), content: Some(""), ..ChunkDelta::default() };
            self.chunk(choice, delta, &[], None, frames);
        }
    }

    fn chunk(&self, index: u32, delta: ChunkDelta<'_>, drawn: &[TokenLogprobs], reason: Option<&'static str>, frames: &mut Frames) {
        frames.data(&self.head.chunk(CHUNK, ChunkChoice { index, delta, logprobs: ChatLogprobs::of(drawn), finish_reason: reason }));
    }
}

impl Render for ChatRender {
    type Whole<'a> = Object<'a, WholeChoice<'a>>;

    fn frames(&mut self, event: ChoiceEvent) -> Bytes {
        let mut frames = Frames::new();
        match event {
            ChoiceEvent::Started { choice, .. } => self.begin(choice, &mut frames),
            ChoiceEvent::Tokens { choice, deltas, logprobs } => {
                self.begin(choice, &mut frames);
                // The tokens of a step belong to all that they add; they go with the first of it.
                let mut drawn = logprobs.as_slice();
                for delta in &deltas {
                    self.chunk(choice, ChunkDelta::of(delta), std::mem::take(&mut drawn), None, &mut frames);
                }
                if deltas.is_empty() {
                    self.chunk(choice, ChunkDelta { content: Some(""), ..ChunkDelta::default() }, drawn, None, &mut frames);
                }
            }
            ChoiceEvent::Finished { choice, reason, total } => {
                self.begin(choice, &mut frames);
                self.chunk(choice, ChunkDelta::default(), &[], Some(finish_reason(&reason)), &mut frames);
                if let Some(cost) = total {
                    self.head.end::<ChunkChoice<'_>>(CHUNK, &cost, &mut frames);
                }
            }
            ChoiceEvent::Failed(error) => return Head::failed(error),
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a> {
        let choices = answer.choices.iter().zip(0..).map(|(choice, index)| WholeChoice {
            index,
            message: message(choice),
            logprobs: ChatLogprobs::of(&choice.logprobs),
            finish_reason: choice.reason.as_ref().map_or("stop", finish_reason),
        });
        self.head.whole(WHOLE, choices.collect(), &answer.cost)
    }
}

fn message(choice: &Choice) -> Message<'_> {
    let tool_calls: Vec<_> = choice.calls().map(WholeCall::of).collect();
    let content = Some(choice.text()).filter(|text| !text.is_empty() || tool_calls.is_empty());
    Message { role: "assistant", content, refusal: None, reasoning_content: choice.reasoning(), tool_calls }
}

impl<'a> WholeCall<'a> {
    fn of(call: &'a ToolCall) -> Self {
        let ToolCall { id, name, arguments } = call;
        Self { id, kind: "function", function: Function { name: Some(name), arguments } }
    }
}
