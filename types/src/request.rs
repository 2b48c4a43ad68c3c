//! What a client asks for, free of any dialect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ModelId;

/// One generation, as every part behind the HTTP dialects sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// The model asked for.
    pub model: ModelId,
    /// What it continues.
    pub prompt: Prompt,
    /// How tokens are drawn. What is absent is filled from the model's `generation_config.json`, then from fallbacks.
    pub sampling: Sampling,
    /// Most tokens to generate; absent: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// Texts that end the generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// What the answer must look like; absent: anything.
    pub constraint: Option<Constraint>,
    /// Give the log probability of each token, and of so many of the likeliest beside it; absent: none.
    pub logprobs: Option<u32>,
    /// Who asks, as far as the request tells: all that come with one key share what one of them may have. A hash, from which no key can be had;
    /// absent: nobody in particular.
    pub principal: Option<u64>,
}

/// What an answer must look like: tokens that would lead elsewhere cannot be drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Constraint {
    /// Some JSON object.
    JsonObject,
    /// JSON that follows this JSON Schema, given as JSON text.
    JsonSchema(String),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// Text of this grammar, in the Lark dialect of `llguidance`.
    Lark(String),
}

impl Constraint {
    /// What errors call the field that a constraint comes from: each dialect has names of its own for it, and puts them in its place.
    pub const FIELD: &str = "constraint";
}

/// What the model continues.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Prompt {
    /// A conversation, rendered by the model's chat template.
    Chat(Chat),
    /// Text, encoded as it is.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Bytes of the texts in it, tools included.
    pub fn text_len(&self) -> u64 {
        let bytes = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let len = match self {
            Self::Chat(chat) => {
                let messages = chat.messages.iter().map(|message| {
                    let calls: usize = message.tool_calls.iter().map(|call| call.arguments.len()).sum();
                    message.content.len() + bytes(&message.reasoning) + calls
                });
                let tools = chat.tools.iter().map(|tool| bytes(&tool.description) + bytes(&tool.parameters));
                messages.chain(tools).sum()
            }
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        };
        len as u64
    }
}

/// A conversation: every message reaches the template verbatim and in order; nothing is added, merged or dropped (CX-77).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// Tools that the model may call.
    pub tools: Vec<Tool>,
    /// Whether it may, or must.
    pub tool_choice: ToolChoice,
    /// At most one call in this turn.
    pub single_tool_call: bool,
    /// Further variables for the template, each as JSON text (`chat_template_kwargs`).
    pub template_kwargs: BTreeMap<String, String>,
    /// The last turn is the model's own and is not over: the answer goes on where its text ends.
    pub continues: bool,
}

/// Whether the model calls a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not.
    None,
    /// Some tool, at least once.
    Required,
    /// This tool.
    Named(String),
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the application.
    System,
    /// Instructions of the application, in the newer word of some clients.
    Developer,
    /// The person, or the program in their place.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// The word that templates and dialects use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty where a turn only calls tools.
    pub content: String,
    /// What the model thought before it answered, when the client sends it back.
    pub reasoning: Option<String>,
    /// Tools called in this turn (assistant only).
    pub tool_calls: Vec<ToolCall>,
    /// Which call this answers (tool only).
    pub tool_call_id: Option<String>,
    /// Name of the speaker or of the tool, when given.
    pub name: Option<String>,
}

impl Message {
    /// A turn of plain text.
    pub fn text(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), reasoning: None, tool_calls: Vec::new(), tool_call_id: None, name: None }
    }
}

/// A tool call that the model made in an earlier turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Its id, chosen by whoever made it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments, as JSON text.
    pub arguments: String,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments, as JSON text.
    pub parameters: Option<String>,
}

/// How tokens are drawn from the model's distribution. Absent fields are the model's own defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Only the `top_k` likeliest tokens may be drawn; 0 switches it off.
    pub top_k: Option<u32>,
    /// Only the likeliest tokens whose probabilities sum to `top_p` may be drawn.
    pub top_p: Option<f32>,
    /// Only tokens at least `min_p` times as likely as the likeliest may be drawn.
    pub min_p: Option<f32>,
    /// Divides (or, below zero, multiplies) the logits of tokens seen in the last `repeat_last_n`; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// How far back `repetition_penalty` looks, in tokens; absent: over everything.
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logits of tokens generated before.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logits of tokens generated before, once for each time.
    pub frequency_penalty: Option<f32>,
    /// Makes the draw repeatable; absent: drawn at random by the ingress.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens, by id.
    pub logit_bias: Vec<(u32, f32)>,
    /// The answer does not end by itself before it has so many tokens.
    pub min_tokens: Option<u32>,
    /// The answer does not end by itself at all.
    pub ignore_eos: bool,
}

/// W3C trace context, carried beside a request over every border.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: Option<String>,
    /// The `tracestate` header.
    pub tracestate: Option<String>,
}
