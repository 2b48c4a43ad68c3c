//! What both OpenAI endpoints say alike: the head of each object and chunk, usage, and the end of a stream.

use std::time::Duration;

use bytes::Bytes;
use plexus_types::{FinishReason, RequestError, Timing};
use serde::Serialize;

use super::error::envelope;
use crate::answer::Cost;
use crate::failure::Failure;
use crate::sse::Frames;

/// What is the same in every chunk of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The request's id behind the endpoint's prefix.
    pub(crate) id: String,
    pub(crate) created: u64,
    /// As the client asked for it.
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    /// The client wants a last chunk with the usage (CX-80).
    pub(crate) include_usage: bool,
}

/// An answer, or one chunk of it.
#[derive(Debug, Serialize)]
pub(crate) struct Object<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<C>,
    /// Absent, `null`, or the figures: chunks say `null` until the last if the usage was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plexus_timing: Option<TimingBody>,
}

#[derive(Debug, Serialize)]
struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
    audio_tokens: u32,
}

#[derive(Debug, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
    audio_tokens: u32,
    accepted_prediction_tokens: u32,
    rejected_prediction_tokens: u32,
}

/// Where the time went, in milliseconds (CX-80).
#[derive(Debug, Serialize)]
struct TimingBody {
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
}

impl Head {
    /// The answer in one piece.
    pub(crate) fn whole<C>(&self, object: &'static str, choices: Vec<C>, cost: &Cost) -> Object<'_, C> {
        Object { usage: Some(Some(usage_body(cost))), plexus_timing: Some(timing_body(&cost.usage.timing)), ..self.bare(object, choices) }
    }

    /// A chunk with a piece of the answer.
    pub(crate) fn chunk<C>(&self, object: &'static str, choice: C) -> Object<'_, C> {
        Object { usage: self.include_usage.then_some(None), ..self.bare(object, vec![choice]) }
    }

    /// Appends what ends a stream well, after the chunk with the finish reason: the usage if it was asked for, and the mark of the end.
    pub(crate) fn end<C: Serialize>(&self, object: &'static str, cost: &Cost, frames: &mut Frames) {
        if self.include_usage {
            let last: Object<'_, C> = Object {
                usage: Some(Some(usage_body(cost))),
                plexus_timing: Some(timing_body(&cost.usage.timing)),
                ..self.bare(object, Vec::new())
            };
            frames.data(&last);
        }
        frames.done();
    }

    /// The frame that ends a stream badly. No `[DONE]` follows: a client that looks for it must not take this for the whole answer.
    pub(crate) fn failed(error: RequestError) -> Bytes {
        let mut frames = Frames::new();
        frames.data(&envelope(&Failure::Request(error), None));
        frames.into_bytes()
    }

    fn bare<C>(&self, object: &'static str, choices: Vec<C>) -> Object<'_, C> {
        Object {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage: None,
            plexus_timing: None,
        }
    }
}

/// OpenAI's word for why it ended; it does not tell which stop text it was.
pub(crate) fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopSequence(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn usage_body(cost: &Cost) -> UsageBody {
    let usage = &cost.usage;
    UsageBody {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
        completion_tokens_details: CompletionDetails {
            reasoning_tokens: cost.reasoning_tokens,
            audio_tokens: 0,
            accepted_prediction_tokens: 0,
            rejected_prediction_tokens: 0,
        },
    }
}

fn timing_body(timing: &Timing) -> TimingBody {
    let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    TimingBody { queue_ms: ms(timing.queue), prefill_ms: ms(timing.prefill), decode_ms: ms(timing.decode) }
}
