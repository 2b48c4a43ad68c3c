//! A generation in Anthropic's words: one message, or the events that build it (CX-74, CX-75).
//!
//! Thoughts, text and calls are blocks, in the order in which the model says them; a stream opens a block with its first delta and closes
//! it before the next. The vendor signs thoughts, so that it can tell its own when they come back; nothing here needs that, and the
//! signature is empty.

use bytes::Bytes;
use plexus_types::{Delta, FinishReason, RequestId, ToolCall, Usage};
use serde::Serialize;
use serde_json::Value;

use super::error::envelope;
use crate::answer::{Answer, Block, ChoiceEvent};
use crate::failure::Failure;
use crate::generate::Render;
use crate::sse::Frames;

/// Spells one message.
#[derive(Debug)]
pub(crate) struct MessageRender {
    request: RequestId,
    id: String,
    /// As the client asked for it.
    model: String,
    /// The message is open.
    begun: bool,
    /// What the open block holds.
    open: Option<Kind>,
    /// Blocks that were opened, the open one included.
    n_blocks: u32,
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    ToolUse,
}

impl MessageRender {
    /// The message that answers `request`.
    pub(crate) fn new(request: RequestId, model: String) -> Self {
        Self { request, id: format!("msg_{request}"), model, begun: false, open: None, n_blocks: 0 }
    }

    /// `message_start` and `ping`. The count of the prompt must be in the first: some clients end without it.
    fn begin(&mut self, prompt_tokens: u32, frames: &mut Frames) {
        if !std::mem::replace(&mut self.begun, true) {
            let usage = Usage { prompt_tokens, ..Usage::default() };
            let message = self.message(Vec::new(), None, &usage);
            frames.event("message_start", &Start { kind: "message_start", message });
            frames.event("ping", &Bare { kind: "ping" });
        }
    }

    fn open(&mut self, kind: Kind, content_block: WireBlock<'_>, frames: &mut Frames) {
        self.close(frames);
        let index = self.n_blocks;
        self.n_blocks += 1;
        self.open = Some(kind);
        frames.event("content_block_start", &BlockStart { kind: "content_block_start", index, content_block });
    }

    fn close(&mut self, frames: &mut Frames) {
        let Some(kind) = self.open else { return };
        if kind == Kind::Thinking {
            self.delta(WireDelta::Signature { signature: "" }, frames);
        }
        self.open = None;
        frames.event("content_block_stop", &BlockStop { kind: "content_block_stop", index: self.n_blocks - 1 });
    }

    /// A piece of the open block.
    fn delta(&self, delta: WireDelta<'_>, frames: &mut Frames) {
        frames.event("content_block_delta", &BlockDelta { kind: "content_block_delta", index: self.n_blocks - 1, delta });
    }

    fn on_delta(&mut self, delta: &Delta, frames: &mut Frames) {
        match delta {
            Delta::Reasoning(thinking) => {
                if self.open != Some(Kind::Thinking) {
                    self.open(Kind::Thinking, WireBlock::Thinking { thinking: "", signature: "" }, frames);
                }
                self.delta(WireDelta::Thinking { thinking }, frames);
            }
            Delta::Text(text) => {
                if self.open != Some(Kind::Text) {
                    self.open(Kind::Text, WireBlock::Text { text: "" }, frames);
                }
                self.delta(WireDelta::Text { text }, frames);
            }
            Delta::ToolCall { id, name, .. } => {
                self.open(Kind::ToolUse, WireBlock::ToolUse { id, name, input: Input::Empty {} }, frames);
            }
            Delta::ToolArguments { json, .. } => {
                debug_assert_eq!(self.open, Some(Kind::ToolUse), "arguments follow the call that they belong to");
                self.delta(WireDelta::InputJson { partial_json: json }, frames);
            }
        }
    }

    fn message<'a>(&'a self, content: Vec<WireBlock<'a>>, reason: Option<&'a FinishReason>, usage: &Usage) -> Message<'a> {
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

    fn frames(&mut self, event: ChoiceEvent) -> Bytes {
        let mut frames = Frames::new();
        match event {
            ChoiceEvent::Started { prompt_tokens, .. } => self.begin(prompt_tokens, &mut frames),
            ChoiceEvent::Tokens { deltas, .. } => {
                self.begin(0, &mut frames);
                deltas.iter().for_each(|delta| self.on_delta(delta, &mut frames));
            }
            ChoiceEvent::Finished { reason, total, .. } => {
                let usage = total.unwrap_or_default().usage;
                self.begin(usage.prompt_tokens, &mut frames);
                if self.n_blocks == 0 {
                    // Clients read the first block of every message.
                    self.open(Kind::Text, WireBlock::Text { text: "" }, &mut frames);
                }
                self.close(&mut frames);
                let delta = EndDelta { stop_reason: stop_reason(&reason), stop_sequence: stop_sequence(&reason) };
                frames.event("message_delta", &End { kind: "message_delta", delta, usage: usage_body(&usage) });
                frames.event("message_stop", &Bare { kind: "message_stop" });
            }
            ChoiceEvent::Failed(error) => {
                frames.event("error", &envelope(&Failure::Request(error), self.request));
            }
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Message<'a> {
        let blocks = answer.choices.iter().flat_map(|choice| &choice.blocks);
        let mut content: Vec<_> = blocks.map(WireBlock::of).collect();
        if content.is_empty() {
            content.push(WireBlock::Text { text: "" });
        }
        let reason = answer.choices.iter().find_map(|choice| choice.reason.as_ref());
        self.message(content, reason, &answer.cost.usage)
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
    content: Vec<WireBlock<'a>>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: UsageBody,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireBlock<'a> {
    Text { text: &'a str },
    Thinking { thinking: &'a str, signature: &'static str },
    ToolUse { id: &'a str, name: &'a str, input: Input },
}

/// The arguments of a call.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Input {
    /// None, or not yet.
    Empty {},
    /// As the model wrote them; what is whole of them, where the limit of tokens cut them off.
    Json(Value),
    /// What is no JSON object: the vendor's shape has no place for it, and its guide wraps it so.
    Invalid {
        #[serde(rename = "INVALID_JSON")]
        text: String,
    },
}

impl<'a> WireBlock<'a> {
    fn of(block: &'a Block) -> Self {
        match block {
            Block::Text(text) => Self::Text { text },
            Block::Reasoning(thinking) => Self::Thinking { thinking, signature: "" },
            Block::Call(ToolCall { id, name, arguments }) => Self::ToolUse { id, name, input: Input::of(arguments) },
        }
    }
}

impl Input {
    fn of(arguments: &str) -> Self {
        match serde_json::from_str(arguments) {
            Ok(object @ Value::Object(_)) => Self::Json(object),
            Err(error) if error.is_eof() => whole_members(arguments).map_or(Self::Empty {}, Self::Json),
            _ => Self::Invalid { text: arguments.to_owned() },
        }
    }
}

/// What is whole of an object that was cut off, as the vendor's clients make of a stream that ends so: members up to the one that is cut.
fn whole_members(cut: &str) -> Option<Value> {
    let (mut open, mut in_text, mut escaped) = (Vec::new(), false, false);
    let mut whole = None;
    for (at, letter) in cut.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            _ if in_text => {}
            ',' => whole = Some((at, open.clone())),
            '{' | '[' => {
                open.push(if letter == '{' { '}' } else { ']' });
                whole = Some((at + 1, open.clone()));
            }
            '}' | ']' => {
                open.pop();
                whole = Some((at + 1, open.clone()));
            }
            _ => {}
        }
    }
    let (end, open) = whole?;
    let closed: String = cut[..end].chars().chain(open.into_iter().rev()).collect();
    serde_json::from_str(&closed).ok().filter(Value::is_object)
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
    content_block: WireBlock<'a>,
}

#[derive(Debug, Serialize)]
struct BlockDelta<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
    delta: WireDelta<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type")]
enum WireDelta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_arguments_that_are_cut_off_the_whole_members_are_left_and_wrong_ones_are_shown() {
        for (cut, expected) in [
            (r#"{"city"#, json!({})),
            (r#"{"city": "Os"#, json!({})),
            (r#"{"city": "Oslo"#, json!({})),
            (r#"{"city": "a,\"{b", "days": 1"#, json!({"city": "a,\"{b"})),
            (r#"{"a": {"b": 1, "c": [1, 2"#, json!({"a": {"b": 1, "c": [1]}})),
            (r#"{"a": [{"b": 1}], "c"#, json!({"a": [{"b": 1}]})),
            ("{", json!({})),
            ("", json!({})),
            ("[1, 2", json!({})),
            ("Oslo", json!({"INVALID_JSON": "Oslo"})),
            (r#"{"a": 1, b}"#, json!({"INVALID_JSON": "{\"a\": 1, b}"})),
        ] {
            assert_eq!(serde_json::to_value(Input::of(cut)).unwrap(), expected, "{cut}");
        }
        assert_eq!(serde_json::to_value(Input::of(r#"{"a": 1}"#)).unwrap(), json!({"a": 1}));
    }
}
