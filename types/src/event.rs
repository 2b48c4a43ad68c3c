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
    /// The replica has taken the request: this is the prompt that it will continue.
    Accepted {
        /// The prompt as token ids.
        prompt_ids: Vec<u32>,
    },
    /// Some tokens were sampled. `text` may be empty while a character is incomplete, and may come without ids at the end.
    Tokens {
        /// Index of the first of `ids` in the stream, counted from 0. Duplicates are dropped by it and gaps are noticed.
        index: u32,
        /// The sampled ids.
        ids: Vec<u32>,
        /// The text that they complete.
        text: String,
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

/// From the ingress towards the client's dialect.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerateEvent {
    /// The prompt has been read; tokens follow.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// The node that serves it.
        node: NodeName,
    },
    /// More of the answer.
    Text {
        /// The text; never half a character, never empty.
        text: String,
        /// Tokens behind it.
        tokens: u32,
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
