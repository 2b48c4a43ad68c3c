//! Streamed answers of either server, with the time at which each part arrived.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::http::Connection;

/// A streamed answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// When the request left.
    pub(super) sent: Instant,
    /// When each part with text arrived.
    pub(super) arrivals: Vec<Instant>,
    /// All the text.
    pub(super) text: String,
    /// Tokens of the answer, as the server counts them.
    pub(super) n_tokens: u64,
    /// Tokens of the prompt that the server did not compute again.
    pub(super) n_cached: u64,
}

impl Answer {
    /// From the request to the first part with text.
    pub(super) fn first_token(&self) -> anyhow::Result<Duration> {
        Ok(self.arrivals.first().context("the answer had no text")?.duration_since(self.sent))
    }
}

/// The answer to a request that asks for a stream with its usage.
pub(super) fn ask(to: SocketAddr, path: &str, body: &Value) -> anyhow::Result<Answer> {
    ask_while(to, path, body, |_| true)
}

/// The same, given up as soon as `go_on`, shown the time of each part, says so. What is given up tells no usage.
pub(super) fn ask_while(to: SocketAddr, path: &str, body: &Value, mut go_on: impl FnMut(Instant) -> bool) -> anyhow::Result<Answer> {
    let mut connection = Connection::open(to)?;
    let mut answer = Answer { sent: Instant::now(), arrivals: vec![], text: String::new(), n_tokens: 0, n_cached: 0 };
    let mut error = None;
    connection.stream_while(path, body, |data, arrived| {
        let Ok(chunk) = serde_json::from_slice::<Value>(data) else { return true }; // [DONE]
        if !chunk["error"].is_null() {
            error = Some(chunk["error"].to_string());
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str()).filter(|text| !text.is_empty()) {
            answer.text += text;
            answer.arrivals.push(arrived);
        }
        if let Some(n) = chunk["usage"]["completion_tokens"].as_u64() {
            answer.n_tokens = n;
            answer.n_cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        }
        go_on(arrived)
    })?;
    if let Some(error) = error {
        bail!("the answer of {to} broke off with {error} behind {:?}", answer.text);
    }
    Ok(answer)
}

/// Sends all requests at once, each on a connection of its own; tokens per second of all answers together, from the first request to the
/// last part. Each answer must have `n_tokens`.
pub(super) fn tokens_per_s(to: SocketAddr, path: &str, bodies: &[Value], n_tokens: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let answers: Vec<Answer> = thread::scope(|scope| {
        let asking: Vec<_> = bodies.iter().map(|body| scope.spawn(move || ask(to, path, body))).collect();
        asking.into_iter().map(|one| one.join().expect("a client does not panic")).collect::<anyhow::Result<_>>()
    })?;
    for answer in &answers {
        ensure!(answer.n_tokens == n_tokens, "asked for {n_tokens} tokens, got {}: {:?}", answer.n_tokens, answer.text);
    }
    let last = answers.iter().filter_map(|answer| answer.arrivals.last()).max().context("no answer had text")?;
    Ok((n_tokens * answers.len() as u64) as f64 / last.duration_since(begun).as_secs_f64())
}
