//! How fast texts become vectors.

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::figures::Figure;
use crate::http::Connection;
use crate::node_process::Binaries;
use crate::serving::{MODEL, Setup, words};

/// Texts in one request.
const BATCHES: [usize; 3] = [1, 8, 64];

/// Requests of each size in a run: as many texts each time.
const TEXTS_PER_RUN: usize = 64;

/// How long texts are.
#[derive(Debug, Clone, Copy)]
enum Lengths {
    /// So many words each.
    Same(usize),
    /// From one word to so many, in no order.
    UpTo(usize),
}

impl Lengths {
    /// Words of text number `i`; any 64 in a row have much the same sum.
    fn words(self, i: usize) -> usize {
        match self {
            Self::Same(words) => words,
            Self::UpTo(most) => 1 + (i * 37 % 64) * (most - 1) / 63,
        }
    }
}

/// Texts of each of these numbers of words, and of one word to `mixed`, one request after the other, of every size of request in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup, n_words: &[usize], mixed: NonZeroUsize) -> anyhow::Result<Vec<Figure>> {
    let server = setup.plexus(binaries, "")?;
    let mut connection = Connection::open(server.http)?;
    let same = n_words.iter().map(|words| (format!("texts of {words} words"), Lengths::Same(*words)));
    let kinds = same.chain([(format!("texts of 1 to {mixed} words"), Lengths::UpTo(mixed.get()))]);
    let measured = kinds.map(|(name, lengths)| measure_one(&mut connection, setup.runs, &name, lengths));
    Ok(measured.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn measure_one(connection: &mut Connection, runs: usize, name: &str, lengths: Lengths) -> anyhow::Result<Vec<Figure>> {
    let mut rates = [const { (vec![], vec![]) }; BATCHES.len()];
    for run in 0..=runs {
        for (batch, (texts_per_s, tokens_per_s)) in BATCHES.into_iter().zip(&mut rates) {
            let begun = Instant::now();
            let mut n_tokens = 0;
            for first in (0..TEXTS_PER_RUN).step_by(batch) {
                let texts: Vec<String> = (first..first + batch).map(|i| text(lengths.words(i), (1000 * run + i) as u64)).collect();
                n_tokens += embed(connection, &texts)?;
            }
            let seconds = begun.elapsed().as_secs_f64();
            if run > 0 {
                texts_per_s.push(TEXTS_PER_RUN as f64 / seconds);
                tokens_per_s.push(n_tokens as f64 / seconds);
            }
        }
    }
    let rows = BATCHES.into_iter().zip(&rates).map(|(batch, (texts_per_s, tokens_per_s))| {
        let texts = format!("{:.1} texts a second", crate::figures::median(texts_per_s));
        Figure::tokens_per_s(format!("{name}, {batch} to a request"), "", tokens_per_s).beside(texts)
    });
    Ok(rows.collect())
}

/// Has texts embedded; how many tokens they were.
fn embed(connection: &mut Connection, texts: &[String]) -> anyhow::Result<u64> {
    let body = json!({"model": MODEL, "input": texts, "encoding_format": "base64"});
    let (status, answer) = connection.post("/v1/embeddings", &body)?;
    ensure!(status == 200, "/v1/embeddings answered {status}: {}", String::from_utf8_lossy(&answer));
    let answer: Value = serde_json::from_slice(&answer)?;
    let n_vectors = answer["data"].as_array().map_or(0, Vec::len);
    ensure!(n_vectors == texts.len(), "{} texts gave {n_vectors} vectors", texts.len());
    answer["usage"]["prompt_tokens"].as_u64().context("the answer does not count its tokens")
}

/// Words that make no sense, separated by spaces.
fn text(n_words: usize, seed: u64) -> String {
    let letters = |id: u64| [id / 676 % 26, id / 26 % 26, id % 26].map(|i| char::from(b'a' + i as u8)).iter().collect::<String>();
    words(n_words, seed).into_iter().map(letters).collect::<Vec<_>>().join(" ")
}
