//! The names of all metrics, and what is measured of each request at its ingress (CX-90). Labels: `model`, `node` (the one that served), and
//! `cold_start` where it changes what is to be expected: whether the request waited for the model to be loaded (CX-41).

use std::time::{Duration, Instant};

use metrics::{counter, describe_counter, describe_histogram, histogram};
use plexus_types::{GenerateEvent, ModelId, NodeName, RequestError};

use crate::model::scheduler::Counts;

/// Requests that were asked for, whatever became of them, by `cold_start` too.
pub const REQUESTS: &str = "plexus_requests_total";
/// Time from the request's arrival to its last event.
pub const REQUEST_DURATION: &str = "plexus_request_duration_seconds";
/// Requests that ended with an error, by `reason`.
pub const REQUEST_ERRORS: &str = "plexus_request_errors_total";
/// Tokens of prompts.
pub const PROMPT_TOKENS: &str = "plexus_prompt_tokens_total";
/// Tokens of prompts whose state was already in memory.
pub const CACHED_PROMPT_TOKENS: &str = "plexus_cached_prompt_tokens_total";
/// Tokens generated.
pub const COMPLETION_TOKENS: &str = "plexus_completion_tokens_total";
/// Time from the request's arrival to its first text, by `cold_start` too.
pub const TIME_TO_FIRST_TOKEN: &str = "plexus_time_to_first_token_seconds";
/// Tokens per second of one request, from its first text to its last event.
pub const TOKENS_PER_SECOND: &str = "plexus_tokens_per_second";
/// Requests that waited for a model to be loaded and were then begun.
pub const COLD_STARTS: &str = "plexus_cold_starts_total";
/// Models unloaded to make room for others, by `model` and `node`.
pub const EVICTIONS: &str = "plexus_evictions_total";

/// Times that a running request had to wait again because the memory for keys and values was full, or because another waited while its client was
/// behind, by `model`.
pub const PREEMPTIONS: &str = "plexus_preemptions_total";
/// Tokens guessed from a request's own text, by `model`.
pub const GUESSED_TOKENS: &str = "plexus_guessed_tokens_total";
/// Of them, those that were right, by `model`.
pub const RIGHT_GUESSES: &str = "plexus_right_guesses_total";
/// Tokens guessed by a draft model, by `model`.
pub const DRAFTED_TOKENS: &str = "plexus_drafted_tokens_total";
/// Of them, those that were right, by `model`.
pub const RIGHT_DRAFTS: &str = "plexus_right_drafts_total";

/// The model's label for names that no node knows: each would else be a time series of its own, of a stranger's making.
const UNKNOWN_MODEL: &str = "unknown";

/// Gives the metrics their help texts, and the counters that may stay at zero their first value.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests by model and serving node");
    describe_histogram!(REQUEST_DURATION, "Seconds from the request's arrival to its last event");
    describe_counter!(REQUEST_ERRORS, "Requests that ended with an error, by reason");
    describe_counter!(PROMPT_TOKENS, "Tokens of prompts");
    describe_counter!(CACHED_PROMPT_TOKENS, "Tokens of prompts whose state was already in memory");
    describe_counter!(COMPLETION_TOKENS, "Tokens generated");
    describe_histogram!(TIME_TO_FIRST_TOKEN, "Seconds from the request's arrival to its first text");
    describe_histogram!(TOKENS_PER_SECOND, "Tokens per second of one request, from its first text to its last event");
    describe_counter!(COLD_STARTS, "Requests that waited for a model to be loaded and were then begun");
    describe_counter!(EVICTIONS, "Models unloaded to make room for others");
    describe_counter!(
        PREEMPTIONS,
        "Times that a running request had to wait again: for memory, or for another while its client was behind"
    );
    describe_counter!(GUESSED_TOKENS, "Tokens guessed from a request's own text");
    describe_counter!(RIGHT_GUESSES, "Guessed tokens that were right");
    describe_counter!(DRAFTED_TOKENS, "Tokens guessed by a draft model");
    describe_counter!(RIGHT_DRAFTS, "Of a draft model's tokens, those that were right");
    counter!(COLD_STARTS).absolute(0);
    counter!(EVICTIONS).absolute(0);
}

/// Counts what the scheduler of a model's replica did between `before` and `after`.
pub fn on_schedule(model: &ModelId, before: Counts, after: Counts) {
    let changes = [
        (PREEMPTIONS, after.preemptions - before.preemptions),
        (GUESSED_TOKENS, after.guessed - before.guessed),
        (RIGHT_GUESSES, after.guessed_right - before.guessed_right),
        (DRAFTED_TOKENS, after.drafted - before.drafted),
        (RIGHT_DRAFTS, after.drafted_right - before.drafted_right),
    ];
    for (name, n) in changes.into_iter().filter(|(_, n)| *n > 0) {
        counter!(name, "model" => model.to_string()).increment(n);
    }
}

/// Counts a request for `model` that waited for it to be loaded, and was then begun on `node`.
pub fn on_cold_start(model: &str, node: &str) {
    counter!(COLD_STARTS, "model" => model.to_owned(), "node" => node.to_owned()).increment(1);
}

/// Counts a replica on `node` that went so that another model has its room.
pub fn on_eviction(model: &ModelId, node: &NodeName) {
    counter!(EVICTIONS, "model" => model.to_string(), "node" => node.to_string()).increment(1);
}

/// Measures one request. A client that leaves still counts with what it had (CX-92).
#[derive(Debug)]
pub struct RequestMeter {
    /// The model that is asked for, by the client's own word for it.
    asked: ModelId,
    /// Does any node know that model?
    is_known: bool,
    node: String,
    arrived: Instant,
    first_text: Option<Instant>,
    tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    cold_start: bool,
    error: Option<&'static str>,
}

impl RequestMeter {
    /// Begins to measure a request for a model, which is counted by its name only if some node knows it.
    pub fn new(model: ModelId, is_known: bool) -> Self {
        Self {
            asked: model,
            is_known,
            node: "none".into(),
            arrived: Instant::now(),
            first_text: None,
            tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            cold_start: false,
            error: Some("client_gone"),
        }
    }

    /// The client was handed this.
    pub fn on_event(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Started { prompt_tokens, node, cold_start, .. } => {
                self.is_known = true;
                self.cold_start = *cold_start;
                self.node = node.to_string();
                self.prompt_tokens = u64::from(*prompt_tokens);
            }
            GenerateEvent::Tokens { tokens, .. } => {
                self.first_text.get_or_insert_with(Instant::now);
                self.tokens += u64::from(*tokens);
            }
            GenerateEvent::Done { usage, .. } => {
                self.error = None;
                self.tokens = u64::from(usage.completion_tokens);
                self.cached_tokens = u64::from(usage.cached_tokens);
            }
            GenerateEvent::Failed(error) => {
                self.error = Some(reason(error));
                self.is_known &= !matches!(error, RequestError::ModelNotFound { .. });
            }
        }
    }

    /// The label `model`.
    fn model(&self) -> &str {
        if self.is_known { self.asked.as_str() } else { UNKNOWN_MODEL }
    }
}

impl Drop for RequestMeter {
    fn drop(&mut self) {
        let labels = [("model", self.model().to_owned()), ("node", self.node.clone())];
        let [model, node] = labels.clone();
        let by_start = [model, node, ("cold_start", self.cold_start.to_string())];
        counter!(REQUESTS, &by_start).increment(1);
        if self.cold_start {
            on_cold_start(self.model(), &self.node);
        }
        histogram!(REQUEST_DURATION, &labels).record(self.arrived.elapsed().as_secs_f64());
        counter!(PROMPT_TOKENS, &labels).increment(self.prompt_tokens);
        counter!(CACHED_PROMPT_TOKENS, &labels).increment(self.cached_tokens);
        counter!(COMPLETION_TOKENS, &labels).increment(self.tokens);
        if let Some(first_text) = self.first_text {
            histogram!(TIME_TO_FIRST_TOKEN, &by_start).record((first_text - self.arrived).as_secs_f64());
            let decoding = first_text.elapsed();
            if decoding > Duration::ZERO && self.tokens > 1 {
                histogram!(TOKENS_PER_SECOND, &labels).record((self.tokens - 1) as f64 / decoding.as_secs_f64());
            }
        }
        if let Some(reason) = self.error {
            let [model, node] = labels;
            counter!(REQUEST_ERRORS, &[model, node, ("reason", reason.to_owned())]).increment(1);
        }
    }
}

fn reason(error: &RequestError) -> &'static str {
    match error {
        RequestError::Invalid { .. } => "invalid",
        RequestError::ModelNotFound { .. } => "model_not_found",
        RequestError::ContextLength { .. } | RequestError::TextLength { .. } => "context_length",
        RequestError::WrongModality { .. } => "wrong_modality",
        RequestError::Overloaded { .. } => "overloaded",
        RequestError::Unavailable { .. } => "unavailable",
        RequestError::Unservable { .. } => "unservable",
        RequestError::Lost { .. } => "lost",
        RequestError::Internal { .. } => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_node_knows_is_no_label_even_if_its_client_leaves_before_it_hears_so() {
        let id: ModelId = "made-up-by-a-stranger".parse().unwrap();
        assert_eq!(RequestMeter::new(id.clone(), false).model(), UNKNOWN_MODEL);
        let mut known = RequestMeter::new(id.clone(), true);
        assert_eq!(known.model(), "made-up-by-a-stranger");
        known.on_event(&GenerateEvent::Failed(RequestError::model_not_found(&id)));
        assert_eq!(known.model(), UNKNOWN_MODEL, "it was forgotten meanwhile");
        let mut found = RequestMeter::new(id, false);
        let node = "a".parse().unwrap();
        found.on_event(&GenerateEvent::Started { prompt_tokens: 1, node, route: String::new(), cold_start: true });
        assert_eq!(found.model(), "made-up-by-a-stranger", "a node that joined just now has it");
    }
}
