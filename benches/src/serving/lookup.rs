//! What guessing the next tokens from the text so far gains, where an answer repeats its prompt. The answers must be the very same.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::figures::{Figure, median};
use crate::node_process::{Binaries, CHAT};
use crate::serving::stream::{Answer, ask};
use crate::serving::{MODEL, Setup, completion, words};

/// Path of the endpoint that takes tokens.
const COMPLETIONS: &str = "/v1/completions";

/// The line of a `[[models]]` entry that turns guessing off.
const WITHOUT: &str = "prompt_lookup = false";

/// What is asked of the embedded model: to copy, or to write what is there in another way.
const TASKS: [&str; 8] = [
    "Repeat after me: river stone apple window garden table music",
    "Say \"green house little bird morning water paper\".",
    "Repeat: 48213",
    "Echo this: orange cloud bridge winter silver lamp forest",
    "How do you spell elephant?",
    "Sort these numbers: 41, 7, 23, 88, 15",
    "Reverse the word garden.",
    "Tell me a story about a fox named Ruby.",
];

/// Each task if the model is the embedded one, else a text that comes to repeat itself, with guesses and without, in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup) -> anyhow::Result<Vec<Figure>> {
    if setup.is_embedded() {
        let tasks: Vec<(String, Value)> = TASKS.iter().map(|task| ((*task).to_owned(), chat(task))).collect();
        return compare(binaries, setup, CHAT, &tasks);
    }
    let mut body = completion(&words(200, 1), 256, 1);
    body["temperature"] = json!(0);
    compare(binaries, setup, COMPLETIONS, &[("random weights, always the likeliest token".to_owned(), body)])
}

fn compare(binaries: &Binaries, setup: &Setup, path: &str, tasks: &[(String, Value)]) -> anyhow::Result<Vec<Figure>> {
    let (with, without) = (setup.plexus(binaries, "")?, setup.plexus(binaries, WITHOUT)?);
    let mut figures = vec![];
    for (name, body) in tasks {
        let (mut fast, mut slow, mut per_part) = (vec![], vec![], 0.0);
        for run in 0..=setup.runs {
            // The first of a pair finds the processor as the second of the pair before left it: they take turns.
            let (a, b) = if run % 2 == 0 {
                let a = ask(with.http, path, body)?;
                (a, ask(without.http, path, body)?)
            } else {
                let b = ask(without.http, path, body)?;
                (ask(with.http, path, body)?, b)
            };
            ensure!(a.text == b.text, "{name}: with guesses {:?}, without {:?}", a.text, b.text);
            if run > 0 {
                fast.push(tokens_per_s(&a)?);
                slow.push(tokens_per_s(&b)?);
                per_part = a.n_tokens as f64 / a.arrivals.len() as f64;
            }
        }
        let gain = format!("{:.2} × without, {per_part:.1} tokens a step that reached the client", median(&fast) / median(&slow));
        figures.push(Figure::tokens_per_s(format!("{name}: without guesses"), "", &slow));
        figures.push(Figure::tokens_per_s(format!("{name}: with guesses"), "", &fast).beside(gain));
    }
    Ok(figures)
}

/// From the request to the last part: prompts are short.
fn tokens_per_s(answer: &Answer) -> anyhow::Result<f64> {
    let last = answer.arrivals.last().context("the answer had no text")?;
    Ok(answer.n_tokens as f64 / last.duration_since(answer.sent).as_secs_f64())
}

fn chat(task: &str) -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": task}],
        "max_tokens": 200,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}
