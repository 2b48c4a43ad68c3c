//! What happens to a request, on the wire between nodes and towards the client.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{GenerateRequest, NodeName, RequestError};

/// All that is needed to continue a stream on any replica: the request, what it became, and what was drawn so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// What the client asked for.
    pub request: Arc<GenerateRequest>,
    /// Seed of all draws. Fixed by the ingress before the first attempt, so that a retry draws the same tokens.
    pub seed: u64,
    /// The prompt as token ids; empty until a replica has encoded it.
    pub prompt_ids: Vec<u32>,
    /// The token ids sampled so far, in order.
    pub sampled_ids: Vec<u32>,
}

/// From a replica to the ingress, about one attempt at one request. Order is kept; the end is explicit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StreamEvent {
    /// The replica has taken the request: this is the prompt that it will continue. Said again while the request waits there for a place, or its
    /// prompt is being read.
    Accepted {
        /// The prompt as token ids; empty if it was said before.
        prompt_ids: Vec<u32>,
    },
    /// Some tokens were sampled. There may be no delta while a character or a marker is incomplete, and deltas without ids at the end.
    Tokens {
        /// Index of the first of `ids` in the stream, counted from 0. Duplicates are dropped by it and gaps are noticed.
        index: u32,
        /// The sampled ids.
        ids: Vec<u32>,
        /// What they add to the answer.
        deltas: Vec<Delta>,
        /// One for each of `ids` where the request asks for them, else empty.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The stream is complete.
    Done {
        /// Number of ids sampled in all: one beyond the index of the last.
        last_index: u32,
        /// Why it ended.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The attempt failed.
    Failed(RequestError),
}

/// What some tokens add to an answer. The deltas of an answer are a function of its tokens, however these were spread over steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// More of what the model says; never half a character, never empty.
    Text(String),
    /// More of what it thinks before; never empty.
    Reasoning(String),
    /// It begins to call a tool.
    ToolCall {
        /// Which call of the answer, counted from 0.
        index: u32,
        /// Its id, unique within the conversation: a function of the request's seed and `index`.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of the arguments of the call begun last; together they are JSON text.
    ToolArguments {
        /// Which call.
        index: u32,
        /// A piece of the JSON text; never empty.
        json: String,
    },
}

impl Delta {
    /// A piece of text; none if it is empty.
    pub fn of_text(text: String) -> Vec<Self> {
        if text.is_empty() { Vec::new() } else { vec![Self::Text(text)] }
    }

    /// Puts this delta behind others: one without text is left out, and one that goes on with the last becomes part of it.
    pub fn join(self, deltas: &mut Vec<Self>) {
        match (deltas.last_mut(), self) {
            (_, Self::Text(text) | Self::Reasoning(text) | Self::ToolArguments { json: text, .. }) if text.is_empty() => {}
            (Some(Self::Text(last)), Self::Text(more)) | (Some(Self::Reasoning(last)), Self::Reasoning(more)) => last.push_str(&more),
            (Some(Self::ToolArguments { index: last, json }), Self::ToolArguments { index, json: more }) if *last == index => {
                json.push_str(&more);
            }
            (_, delta) => deltas.push(delta),
        }
    }

    /// The text that some deltas add; what is not text is left out.
    pub fn text_of(deltas: &[Self]) -> String {
        let text = |delta: &Self| if let Self::Text(text) = delta { Some(text.clone()) } else { None };
        deltas.iter().filter_map(text).collect()
    }
}

/// How likely a token was, and what else could have been drawn in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token drawn.
    pub token: TokenLogprob,
    /// The likeliest tokens at this place, the likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// What it stands for; not always whole characters. The name of a control token, such as `<|im_end|>`.
    pub bytes: Vec<u8>,
    /// It is a control token: its name is no part of the text.
    pub control: bool,
    /// Natural logarithm of its probability under the model at temperature 1, before any filter or penalty.
    pub logprob: f32,
}

/// From the ingress towards the client's dialect.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerateEvent {
    /// The prompt has been read; tokens follow.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// The node that serves it.
        node: NodeName,
        /// Why there, in a line.
        route: String,
        /// Did it wait for the model to be loaded?
        cold_start: bool,
    },
    /// More of the answer.
    Tokens {
        /// What it adds; never empty unless there are `logprobs`.
        deltas: Vec<Delta>,
        /// Tokens behind it.
        tokens: u32,
        /// One for each token where the request asks for them, else empty.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The answer is complete. The last event of a stream that ended well.
    Done {
        /// Why it ended.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The request failed. The last event of a stream that did not.
    Failed(RequestError),
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model ended its turn.
    Stop,
    /// One of the request's stop texts appeared; this one.
    StopSequence(String),
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The model ended its turn to have tools called.
    ToolCalls,
}

/// What a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens whose state was already in memory.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Where the time went on the serving node.
    pub timing: Timing,
}

/// Where the time of a request went on the serving node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Waiting for a place in the batch, with the encoding of the prompt.
    pub queue: Duration,
    /// Reading the prompt, to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}
