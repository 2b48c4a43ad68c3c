//! What guessing the next tokens from the text so far gains, where an answer repeats what was said. The answers must be the very same.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::figures::Figure;
use crate::node_process::{Binaries, CHAT};
use crate::serving::stream::{Answer, ask};
use crate::serving::{MODEL, Server, Setup, completion, words};

/// Path of the endpoint that takes tokens.
const COMPLETIONS: &str = "/v1/completions";

/// The line of a `[[models]]` entry that turns guessing off.
const WITHOUT: &str = "prompt_lookup = false";

/// The gain aimed at, over all tasks of a kind.
const TARGET: &str = "≥ 1.5 ×";

/// What is asked of the embedded model, in two turns: it answers the first, and what is measured is the answer to the second.
/// Here the second answer comes to the same words as the first...
const COPYING: [[&str; 2]; 4] = [
    ["Count from 1 to 30.", "Count from 1 to 30."],
    ["What is gravity?", "What is gravity?"],
    ["What is a whale?", "Tell me about the whale."],
    ["Spell elephant.", "Spell elephant."],
];

/// ...and here to some of them, with other words between.
const EDITING: [[&str; 2]; 4] = [
    ["Count from 1 to 30.", "Count from 1 to 40."],
    ["Tell me a story about a fox named Ruby.", "Tell me a story about a fox named Ruby."],
    ["Tell me a story about a fox named Ruby.", "Tell me a story about a cat named Tom."],
    ["Return JSON with the name Anna, the age 31 and the city Paris.", "Return JSON with the name Tom, the age 32 and the city Paris."],
];

/// The tasks above if the model is the embedded one, else a text that comes to repeat itself, with guesses and without, in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup) -> anyhow::Result<Vec<Figure>> {
    let pair = Pair { with: setup.plexus(binaries, "")?, without: setup.plexus(binaries, WITHOUT)? };
    if setup.is_embedded() {
        let mut figures = vec![];
        for (kind, tasks) in [("copying", COPYING), ("editing", EDITING)] {
            let bodies: Vec<Value> = tasks.iter().map(|task| second_turn(&pair.without, task)).collect::<anyhow::Result<_>>()?;
            figures.extend(pair.compare(kind, TARGET, setup.runs, CHAT, &bodies)?);
        }
        return Ok(figures);
    }
    let mut body = completion(&words(200, 1), 256, 1);
    body["temperature"] = json!(0);
    pair.compare("random weights, always the likeliest token", "", setup.runs, COMPLETIONS, &[body])
}

/// Two servers of the same model.
struct Pair {
    with: Server,
    without: Server,
}

impl Pair {
    /// Every request to both, `n_runs` times and once that does not count.
    fn compare(&self, kind: &str, target: &'static str, n_runs: usize, path: &str, bodies: &[Value]) -> anyhow::Result<Vec<Figure>> {
        let (mut fast, mut slow, mut parts) = (vec![], vec![], Decoding::default());
        for run in 0..=n_runs {
            let mut sums = [Decoding::default(); 2];
            for (i, body) in bodies.iter().enumerate() {
                // The first of a pair finds the processor as the second of the pair before left it: they take turns.
                let (a, b) = if (run + i) % 2 == 0 {
                    let a = ask(self.with.http, path, body)?;
                    (a, ask(self.without.http, path, body)?)
                } else {
                    let b = ask(self.without.http, path, body)?;
                    (ask(self.with.http, path, body)?, b)
                };
                ensure!(a.text == b.text, "{kind}: with guesses {:?}, without {:?}", a.text, b.text);
                sums[0].add(&a)?;
                sums[1].add(&b)?;
            }
            if run > 0 {
                fast.push(sums[0].tokens_per_s());
                slow.push(sums[1].tokens_per_s());
                parts = sums[0];
            }
        }
        let gains: Vec<f64> = fast.iter().zip(&slow).map(|(fast, slow)| fast / slow).collect();
        let (n_tokens, n_parts) = (parts.n_tokens, parts.n_parts);
        Ok(vec![
            Figure::tokens_per_s(format!("{kind}: without guesses"), "", &slow),
            Figure::tokens_per_s(format!("{kind}: with guesses"), "", &fast).beside(format!("{n_tokens} tokens came in {n_parts} parts")),
            Figure::times(format!("{kind}: with guesses to without, of each run"), target, &gains).beside("the same text"),
        ])
    }
}

/// What decoding several answers took, from the first part of each to its last: prompts are not what is measured.
#[derive(Debug, Clone, Copy, Default)]
struct Decoding {
    n_tokens: u64,
    n_parts: usize,
    seconds: f64,
}

impl Decoding {
    /// Adds an answer. Its first part is the token that the prompt's step drew.
    fn add(&mut self, answer: &Answer) -> anyhow::Result<()> {
        let (first, last) = answer.arrivals.first().zip(answer.arrivals.last()).context("the answer had no text")?;
        ensure!(answer.n_tokens > 1, "an answer of {} tokens is too short: {:?}", answer.n_tokens, answer.text);
        self.n_tokens += answer.n_tokens - 1;
        self.n_parts += answer.arrivals.len() - 1;
        self.seconds += last.duration_since(*first).as_secs_f64();
        Ok(())
    }

    fn tokens_per_s(self) -> f64 {
        self.n_tokens as f64 / self.seconds
    }
}

/// The request of a task's second turn: the first is answered by the model itself.
fn second_turn(server: &Server, [first, second]: &[&str; 2]) -> anyhow::Result<Value> {
    let answer = ask(server.http, CHAT, &chat(&[json!({"role": "user", "content": first})]))?.text;
    Ok(chat(&[
        json!({"role": "user", "content": first}),
        json!({"role": "assistant", "content": answer}),
        json!({"role": "user", "content": second}),
    ]))
}

fn chat(messages: &[Value]) -> Value {
    json!({
        "model": MODEL,
        "messages": messages,
        "max_tokens": 200,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}
