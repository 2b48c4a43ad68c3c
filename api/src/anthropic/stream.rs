//! A generation in Anthropic's words: one message, or the events that build it (CX-74, CX-75).

use bytes::Bytes;
use plexus_types::{Delta, FinishReason, GenerateEvent, RequestId, Usage};
use serde::Serialize;

use super::error::envelope;
use crate::failure::Failure;
use crate::generate::{Answer, Render};
use crate::sse::Frames;

/// Spells one message.
#[derive(Debug)]
pub(crate) struct MessageRender {
    request: RequestId,
    id: String,
    /// As the client asked for it.
    model: String,
    /// The message and its one block are open.
    begun: bool,
}

impl MessageRender {
    /// The message that answers `request`.
    pub(crate) fn new(request: RequestId, model: String) -> Self {
        Self { request, id: format!("msg_{request}"), model, begun: false }
    }

    /// `message_start`, `content_block_start`, `ping`. The count of the prompt must be in the first: some clients end without it.
    fn begin(&mut self, prompt_tokens: u32, frames: &mut Frames) {
        self.begun = true;
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let message = self.message(Vec::new(), None, &usage);
        frames.event("message_start", &Start { kind: "message_start", message });
        let content_block = Block { kind: "text", text: "" };
        frames.event("content_block_start", &BlockStart { kind: "content_block_start", index: 0, content_block });
        frames.event("ping", &Bare { kind: "ping" });
    }

    fn message<'a>(&'a self, content: Vec<Block<'a>>, reason: Option<&'a FinishReason>, usage: &Usage) -> Message<'a> {
        Message {
            id: &self.id,
            kind: "message",
            role: "assistant",
            model: &self.model,
            content,
            stop_reason: reason.map(stop_reason),
            stop_sequence: reason.and_then(stop_sequence),
            usage: usage_body(usage),
        }
    }
}

impl Render for MessageRender {
    type Whole<'a> = Message<'a>;

    fn frames(&mut self, event: GenerateEvent) -> Bytes {
        let mut frames = Frames::new();
        match event {
            GenerateEvent::Started { prompt_tokens, .. } => self.begin(prompt_tokens, &mut frames),
            GenerateEvent::Tokens { deltas, .. } => {
                let text = Delta::text_of(&deltas);
                if !self.begun {
                    self.begin(0, &mut frames);
                }
                let delta = TextDelta { kind: "text_delta", text: &text };
                frames.event("content_block_delta", &BlockDelta { kind: "content_block_delta", index: 0, delta });
            }
            GenerateEvent::Done { reason, usage } => {
                if !self.begun {
                    self.begin(usage.prompt_tokens, &mut frames);
                }
                frames.event("content_block_stop", &BlockStop { kind: "content_block_stop", index: 0 });
                let delta = EndDelta { stop_reason: stop_reason(&reason), stop_sequence: stop_sequence(&reason) };
                frames.event("message_delta", &End { kind: "message_delta", delta, usage: usage_body(&usage) });
                frames.event("message_stop", &Bare { kind: "message_stop" });
            }
            GenerateEvent::Failed(error) => {
                frames.event("error", &envelope(&Failure::Request(error), self.request));
            }
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Message<'a> {
        self.message(vec![Block { kind: "text", text: &answer.text }], Some(&answer.reason), &answer.usage)
    }
}

fn stop_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "end_turn",
        FinishReason::StopSequence(_) => "stop_sequence",
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
    }
}

fn stop_sequence(reason: &FinishReason) -> Option<&str> {
    match reason {
        FinishReason::StopSequence(text) => Some(text),
        FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls => None,
    }
}

/// As the vendor counts: `input_tokens` are those that were read anew; the whole prompt is the sum of the three.
fn usage_body(usage: &Usage) -> UsageBody {
    UsageBody {
        input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: usage.cached_tokens,
        output_tokens: usage.completion_tokens,
    }
}

/// The message, whole or at its start.
#[derive(Debug, Serialize)]
pub(crate) struct Message<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block<'a>>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: UsageBody,
}

#[derive(Debug, Serialize)]
struct Block<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

#[derive(Debug, Serialize)]
struct UsageBody {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

#[derive(Debug, Serialize)]
struct Start<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: Message<'a>,
}

#[derive(Debug, Serialize)]
struct BlockStart<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
    content_block: Block<'a>,
}

#[derive(Debug, Serialize)]
struct BlockDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
    delta: TextDelta<'a>,
}

#[derive(Debug, Serialize)]
struct TextDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

#[derive(Debug, Serialize)]
struct BlockStop {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
}

#[derive(Debug, Serialize)]
struct End<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    delta: EndDelta<'a>,
    usage: UsageBody,
}

#[derive(Debug, Serialize)]
struct EndDelta<'a> {
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Bare {
    #[serde(rename = "type")]
    kind: &'static str,
}
