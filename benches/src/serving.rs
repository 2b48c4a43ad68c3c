//! Serving a model to many: the product and, where its path is given, llama.cpp's server, both over HTTP, in turn.

pub(crate) mod cold;
pub(crate) mod constrained;
pub(crate) mod eight_streams;
pub(crate) mod embeddings;
pub(crate) mod load_gap;
pub(crate) mod lookup;
mod peer;
pub(crate) mod prefill_gap;
pub(crate) mod prefix;
mod stream;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::node_process::{Binaries, Node, Place};
use peer::LlamaServer;

/// Path of the endpoint that takes tokens.
const COMPLETIONS: &str = "/v1/completions";

/// The model's id.
const MODEL: &str = "model";

/// Sequences that either server computes together: eight streams, and one that comes between.
const RUNNING_MAX: usize = 9;

/// Tokens of context of a sequence.
const CONTEXT_LENGTH: usize = 8192;

/// The lowest id of those that `make_gguf.py` gives to words, each of which a client sees as text of its own.
const FIRST_WORD: u64 = 258;

/// How many of those words every vocabulary measured has.
const N_WORDS: u64 = 120_000;

#[derive(Debug, Clone, Args)]
pub(crate) struct Setup {
    /// The model: a GGUF file of `cpu-vs-llamacpp/make_gguf.py`, a folder of `make_encoder.py`, or `embedded:pip`.
    #[arg(long)]
    model: String,
    /// llama.cpp's `llama-server`, to measure in turn with ours.
    #[arg(long)]
    llama_server: Option<PathBuf>,
    /// Threads that compute, in either server.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// How many times each is measured, after one time that does not count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// A server that is ready. Ends when dropped.
#[derive(Debug)]
struct Server {
    name: &'static str,
    http: SocketAddr,
    _process: Process,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for what dropping them does")]
enum Process {
    Plexus(Node, Place),
    Llama(LlamaServer),
}

/// Source of the model that every binary carries.
const EMBEDDED: &str = "embedded:pip";

impl Setup {
    fn is_embedded(&self) -> bool {
        self.model == EMBEDDED
    }

    /// Starts what is measured: ours first.
    fn servers(&self, binaries: &Binaries) -> anyhow::Result<Vec<Server>> {
        let mut servers = vec![self.plexus(binaries, "")?];
        if let Some(binary) = &self.llama_server {
            let server = LlamaServer::start(binary, Path::new(&self.model), self.threads, RUNNING_MAX, RUNNING_MAX * CONTEXT_LENGTH / 4)?;
            servers.push(Server { name: "llama-server", http: server.http, _process: Process::Llama(server) });
        }
        Ok(servers)
    }

    /// A node that serves the model; `more` are further lines of its `[[models]]` entry.
    fn plexus(&self, binaries: &Binaries, more: &str) -> anyhow::Result<Server> {
        let place = Place::new(binaries)?;
        // The embedded model and encoders have less context than is asked of the others.
        let (source, context_length) = if self.is_embedded() {
            (self.model.clone(), 0)
        } else {
            let path = Path::new(&self.model).canonicalize().with_context(|| format!("the model {}", self.model))?;
            (path.to_str().context("the model's path is not UTF-8")?.to_owned(), if path.is_file() { CONTEXT_LENGTH } else { 0 })
        };
        let config = format!(
            "[devices]\ncpu_threads = {}\n\
             [[models]]\nid = {MODEL:?}\nsource = {source:?}\ncontext_length = {context_length}\nrunning_max = {RUNNING_MAX}\n{more}\n",
            self.threads
        );
        // Encoders compute on candle's threads.
        let mut node = place.start_configured(binaries, "n1", &config, &[("RAYON_NUM_THREADS", self.threads.to_string())])?;
        node.wait_ready(1)?;
        Ok(Server { name: "plexus", http: node.http, _process: Process::Plexus(node, place) })
    }
}

/// A prompt of `n` words of the random vocabulary that no prompt of another `seed` resembles.
fn words(n: usize, seed: u64) -> Vec<u64> {
    // An affine generator with the constants of MMIX (Knuth 1999): its high bits pick the words.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        FIRST_WORD + (state >> 33) % N_WORDS
    };
    (0..n).map(|_| next()).collect()
}

/// A completion of tokens.
fn completion(prompt: &[u64], max_tokens: usize, seed: u64) -> Value {
    sampled(("prompt", json!(prompt)), max_tokens, seed)
}

/// A request with this question, streamed, drawn among the 40 likeliest: random weights that always took the likeliest might repeat themselves,
/// which speculation would profit from.
fn sampled((key, question): (&str, Value), max_tokens: usize, seed: u64) -> Value {
    json!({
        "model": MODEL,
        key: question,
        "max_tokens": max_tokens,
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": seed,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

#[cfg(test)]
mod tests {
    use super::{FIRST_WORD, N_WORDS, words};

    #[test]
    fn prompts_of_different_seeds_differ_and_stay_in_the_vocabulary() {
        let (one, other) = (words(500, 1), words(500, 2));
        assert!(one.iter().chain(&other).all(|id| (FIRST_WORD..FIRST_WORD + N_WORDS).contains(id)));
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < 5, "{same} of 500 words are the same");
        assert_eq!(one, words(500, 1));
    }
}
