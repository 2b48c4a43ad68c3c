//! Tokens per second of one stream across a hop.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::figures::{Figure, median};
use crate::http::{Connection, find};
use crate::node_process::{Binaries, CHAT, CONTEXT_LENGTH, Place, chat, has_text};
use crate::ping_pong;

/// Tokens that the scripted device gives a step; more than one is what speculation does.
const STEPS: [usize; 3] = [1, 8, 16];

/// For each step size two nodes, of which one holds the model; streams of `tokens` tokens through each of them in turn, `runs` times.
pub(crate) fn measure(binaries: &Binaries, runs: usize, tokens: usize) -> anyhow::Result<Vec<Figure>> {
    ensure!(tokens < CONTEXT_LENGTH, "a stream holds fewer than {CONTEXT_LENGTH} tokens");
    let mut hand_overs = vec![];
    let mut figures = vec![];
    for step in STEPS {
        let place = Place::new(binaries)?;
        let mut serving = place.start_scripted("serving", &[], Some(&place.long_model()?), step)?;
        serving.wait_ready(1)?;
        let mut ingress = place.start_scripted("ingress", &[&serving], None, step)?;
        ingress.wait_ready(2)?;
        let (mut local, mut remote) = (vec![], vec![]);
        for node in [serving.http, ingress.http] {
            tokens_per_s(node, tokens.min(2000))?; // warm
        }
        for _ in 0..runs {
            local.push(tokens_per_s(serving.http, tokens)?);
            remote.push(tokens_per_s(ingress.http, tokens)?);
            hand_overs.push(ping_pong::hand_overs_per_s(20_000)?);
        }
        let share = 100.0 * median(&remote) / median(&local);
        let plural = if step == 1 { "token" } else { "tokens" };
        figures.push(Figure::tokens_per_s(format!("one stream without a hop, {step} {plural} a step: peer"), "", &local));
        figures.push(
            Figure::tokens_per_s(format!("one stream across a hop, {step} {plural} a step"), "≥ 100,000 tok/s", &remote)
                .beside(format!("{share:.0} % of the same without a hop")),
        );
    }
    figures.push(Figure::tokens_per_s(
        "one token per hand-over from a task to a thread and back: to compare 1 token a step with",
        "",
        &hand_overs,
    ));
    Ok(figures)
}

/// The speed of one stream, from its first piece of text to its end.
fn tokens_per_s(node: SocketAddr, tokens: usize) -> anyhow::Result<f64> {
    let mut body = chat(tokens, true);
    body["stream_options"] = json!({"include_usage": true});
    let (mut first, mut last, mut usage) = (None, Instant::now(), None);
    Connection::open(node)?.stream(CHAT, &body, |data, arrived| {
        last = arrived;
        if first.is_none() {
            first = has_text(data).then_some(arrived);
        } else if find(data, b"\"completion_tokens\"").is_some() {
            usage = serde_json::from_slice::<Value>(data).ok();
        }
    })?;
    let counted = usage.as_ref().and_then(|chunk| chunk["usage"]["completion_tokens"].as_u64()).context("the stream told no usage")?;
    ensure!(counted == tokens as u64, "asked for {tokens} tokens, got {counted}");
    Ok(tokens as f64 / last.duration_since(first.context("the stream had no text")?).as_secs_f64())
}
