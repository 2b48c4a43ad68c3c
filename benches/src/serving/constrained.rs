//! What a JSON Schema costs.

use serde_json::{Value, json};

use crate::figures::Figure;
use crate::node_process::{Binaries, CHAT};
use crate::serving::stream::tokens_per_s;
use crate::serving::{Setup, sampled};

/// Streams at a time.
const STREAMS: [usize; 2] = [1, 8];

/// Free and constrained answers of `n_tokens` each, in turn. Only of our own server: the other ends answers early when random weights lead its
/// grammar astray.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup, n_tokens: usize) -> anyhow::Result<Vec<Figure>> {
    let server = setup.plexus(binaries, "")?;
    let mut rates = [const { [vec![], vec![]] }; STREAMS.len()];
    for run in 0..=setup.runs {
        for (n, rates) in STREAMS.into_iter().zip(&mut rates) {
            // The one that comes first may find the machine otherwise than the other: they take turns.
            for constrained in if run % 2 == 0 { [false, true] } else { [true, false] } {
                let bodies: Vec<_> = (0..n).map(|i| chat(constrained, n_tokens, 10 * run + i)).collect();
                let rate = tokens_per_s(server.http, CHAT, &bodies, n_tokens as u64)?;
                rates[usize::from(constrained)].extend((run > 0).then_some(rate));
            }
        }
    }
    let mut figures = vec![];
    for (n, [free, constrained]) in STREAMS.into_iter().zip(&rates) {
        let shares: Vec<f64> = free.iter().zip(constrained).map(|(free, constrained)| constrained / free).collect();
        figures.push(Figure::tokens_per_s(format!("streams at a time: {n}, free"), "", free));
        figures.push(Figure::tokens_per_s(format!("streams at a time: {n}, JSON Schema"), "", constrained));
        figures.push(Figure::times(format!("streams at a time: {n}, JSON Schema to free, of each run"), "≥ 0.95 ×", &shares));
    }
    Ok(figures)
}

/// A chat whose answer, if it is constrained, is a list of records too long to end within a bench. Strings are short, so that random weights,
/// which would hardly ever end one, come through the whole schema.
fn chat(constrained: bool, max_tokens: usize, seed: usize) -> Value {
    let messages = json!([{"role": "user", "content": format!("List people, beginning with number {seed}.")}]);
    let mut body = sampled(("messages", messages), max_tokens, seed as u64);
    if constrained {
        let person = json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 16},
                "role": {"enum": ["admin", "editor", "reader"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "emails": {"type": "array", "items": {"type": "string", "maxLength": 24}, "minItems": 1, "maxItems": 3},
            },
            "required": ["name", "role", "age", "emails"],
            "additionalProperties": false,
        });
        let schema = json!({
            "type": "object",
            "properties": {"people": {"type": "array", "items": person, "minItems": 50}},
            "required": ["people"],
            "additionalProperties": false,
        });
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "people", "strict": true, "schema": schema}});
    }
    body
}
