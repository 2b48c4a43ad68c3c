//! Models that are not loaded when they are asked for: one alone, and two that take turns on a device with room for one.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::stream::{self, Answer};
use super::{COMPLETIONS, EMBEDDED, words};
use crate::bandwidth;
use crate::figures::{Figure, median, ms};
use crate::http::Connection;
use crate::node_process::{Binaries, Node, Place, get};

/// Tokens of context, for one sequence: so few that keys and values take next to nothing. With more, a second model would be given what room is left.
pub(super) const CONTEXT_LENGTH: usize = 512;
/// Words of a prompt.
const N_WORDS: usize = 4;
/// A small model is there at once, whatever its share of the bandwidth.
const AT_ONCE_MS: f64 = 150.0;
/// A model that was told to go goes within this.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: f64 = (1 << 20) as f64;
/// Memory that a node is given to see what it keeps of it for serving: enough for that and the embedded model.
const ASKED: u64 = 256 << 20;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Models: GGUF files, or `embedded:pip`.
    #[arg(long = "model", required = true)]
    models: Vec<String>,
    /// Threads that compute.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// How many times each is loaded, after one time that does not count.
    #[arg(long, default_value_t = 7)]
    runs: usize,
}

/// From a request to its first token, for a model that is not loaded and whose files are in the page cache.
pub(crate) fn cold_load(binaries: &Binaries, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let copy = bandwidth::copy_gb_per_s(options.threads, 5);
    let mut figures = vec![Figure::gb_per_s(format!("memory copied by {} threads", options.threads), "", &copy)];
    for model in &options.models {
        let node = ColdNode::start(binaries, options.threads, &[("one", model)], "")?;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for run in 0..=options.runs {
            node.unload("one")?;
            let first = node.ask("one", run as u64)?;
            let second = node.ask("one", 1000 + run as u64)?;
            if run > 0 {
                cold.push(first);
                warm.push(second);
            }
        }
        let name = Path::new(model).file_name().and_then(|name| name.to_str()).unwrap_or(model);
        let figure = Figure::ms(format!("{name}: cold, to the first token"), "≤ 150 ms, or as below", &cold);
        figures.push(figure.beside(format!("{:.1} ms once it is loaded", median(&warm))));
        if model != EMBEDDED {
            let bytes = fs::metadata(model)?.len() as f64;
            let shares: Vec<f64> = cold.iter().map(|took| bytes / (took / 1e3) / 1e9 / median(&copy)).collect();
            let met = if median(&shares) >= 0.6 || median(&cold) <= AT_ONCE_MS { "met" } else { "not met" };
            let figure = Figure::times(format!("{name}: share of the bandwidth of copying"), "≥ 0.6 ×", &shares);
            figures.push(figure.beside(format!("{:.0} MiB; {met}", bytes / MIB)));
            let read: Vec<f64> = bandwidth::file_gb_per_s(Path::new(model), options.threads, options.runs)?;
            let shares: Vec<f64> = read.iter().map(|read| read / median(&copy)).collect();
            let figure = Figure::times(format!("{name}: the same, if it were only read into a buffer: limit"), "", &shares);
            figures.push(figure.beside(format!("{:.0} ms", bytes / median(&read) / 1e6)));
        }
    }
    Ok(figures)
}

/// Two models take turns where there is room for one: what a turn takes, against a load where there is room.
pub(crate) fn swap(binaries: &Binaries, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let serving = taken_by_serving(binaries, options)?;
    for model in &options.models {
        let memory = {
            let node = ColdNode::start(binaries, options.threads, &[("one", model)], "")?;
            node.ask("one", 0)?;
            node.memory_promised()?
        };
        let room_for_one = format!("cpu_memory = \"{}\"", serving + memory + memory / 2);
        let node = ColdNode::start(binaries, options.threads, &[("one", model), ("two", model)], &room_for_one)?;
        let (mut alone, mut turns, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..=options.runs {
            for id in ["one", "two"] {
                node.unload("one")?;
                node.unload("two")?;
                let load = node.ask(id, run as u64)?;
                let other = if id == "one" { "two" } else { "one" };
                let turn = node.ask(other, run as u64)?;
                ensure!(node.loaded()? == [other], "only {other} has room");
                if run > 0 {
                    alone.push(load);
                    turns.push(turn);
                    ratios.push(turn / load);
                }
            }
        }
        let name = Path::new(model).file_name().and_then(|name| name.to_str()).unwrap_or(model);
        figures.push(Figure::ms(format!("{name}: cold, where there is room"), "", &alone));
        figures.push(Figure::ms(format!("{name}: cold, and another must go first"), "", &turns));
        figures.push(Figure::times(format!("{name}: the second to the first"), "≤ 1.3 ×", &ratios));
    }
    Ok(figures)
}

/// A streamed answer of so many tokens, which a small model gives, too: the embedded one has no other words, and no token whose text is nothing.
pub(super) fn question(id: &str, max_tokens: usize, seed: u64) -> Value {
    let prompt: Vec<u64> = words(N_WORDS, seed).into_iter().map(|word| word % 1000 + super::FIRST_WORD).collect();
    json!({
        "model": id, "prompt": prompt, "max_tokens": max_tokens, "temperature": 1.0, "top_k": 40, "seed": seed, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
    })
}

/// Bytes of the memory that a node may take which it keeps for serving: what models do not get.
fn taken_by_serving(binaries: &Binaries, options: &Options) -> anyhow::Result<u64> {
    let node = ColdNode::start(binaries, options.threads, &[("one", EMBEDDED)], &format!("cpu_memory = \"{ASKED}\""))?;
    let left = node.summary()?["devices"][0]["memory_total"].as_u64().context("no memory is told")?;
    ASKED.checked_sub(left).context("models have more memory than was asked for")
}

/// A node that lists some models and has loaded none.
pub(super) struct ColdNode {
    node: Node,
    _place: Place,
}

impl ColdNode {
    /// `models`: ids and where they come from. `devices` are further lines of that section.
    pub(super) fn start(binaries: &Binaries, threads: NonZeroUsize, models: &[(&str, &str)], devices: &str) -> anyhow::Result<Self> {
        let place = Place::new(binaries)?;
        let mut config = format!("[devices]\ncpu_threads = {threads}\n{devices}\n");
        for (id, model) in models {
            let source = if *model == EMBEDDED {
                (*model).to_owned()
            } else {
                let path = Path::new(model).canonicalize().with_context(|| format!("the model {model}"))?;
                fs::read(&path)?; // into the page cache
                path.to_str().context("the model's path is not UTF-8")?.to_owned()
            };
            config += &format!(
                "[[models]]\nid = {id:?}\nsource = {source:?}\ncontext_length = {CONTEXT_LENGTH}\nrunning_max = 1\npreload = false\n"
            );
        }
        let mut node = place.start_configured(binaries, "n1", &config, &[])?;
        // Known are models whose files were looked at.
        let known = |at| {
            let (_, body) = get(at, "/v1/models")?;
            let report: Value = serde_json::from_slice(&body).ok()?;
            let listed = report["data"].as_array()?;
            (listed.len() == models.len() && listed.iter().all(|model| model["max_model_len"].as_u64() > Some(0))).then_some(())
        };
        node.wait_for("the models' files", known)?;
        let open = |at| {
            let (_, body) = get(at, "/v1/cluster")?;
            let report: Value = serde_json::from_slice(&body).ok()?;
            (!report["nodes"][0]["summary"]["devices"].as_array()?.is_empty()).then_some(())
        };
        node.wait_for("the device", open)?;
        Ok(Self { node, _place: place })
    }

    pub(super) fn at(&self) -> SocketAddr {
        self.node.http
    }

    /// Milliseconds from a request to its first token.
    pub(super) fn ask(&self, id: &str, seed: u64) -> anyhow::Result<f64> {
        let answer: Answer = stream::ask(self.at(), COMPLETIONS, &question(id, 8, seed))?;
        Ok(ms(answer.first_token()?))
    }

    /// Unloads a model, if it is loaded, and waits until its memory is free.
    pub(super) fn unload(&self, id: &str) -> anyhow::Result<()> {
        if !self.loaded()?.iter().any(|loaded| loaded == id) {
            return Ok(());
        }
        let (deadline, promised) = (Instant::now() + PATIENCE, self.memory_promised()?);
        loop {
            let (status, body) = Connection::open(self.at())?.post("/v1/models/unload", &json!({"model": id}))?;
            if self.memory_promised()? < promised {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{id} is not unloaded: {status} {}", String::from_utf8_lossy(&body));
        }
    }

    fn summary(&self) -> anyhow::Result<Value> {
        let (_, body) = get(self.at(), "/v1/cluster").context("the node does not answer")?;
        let mut report: Value = serde_json::from_slice(&body)?;
        Ok(report["nodes"][0]["summary"].take())
    }

    fn loaded(&self) -> anyhow::Result<Vec<String>> {
        let summary = self.summary()?;
        let replicas = summary["replicas"].as_array().context("no replicas are told")?;
        let loaded = replicas.iter().filter(|replica| replica["state"] == "loaded");
        Ok(loaded.filter_map(|replica| replica["model"].as_str().map(str::to_owned)).collect())
    }

    fn memory_promised(&self) -> anyhow::Result<u64> {
        self.summary()?["devices"][0]["memory_used"].as_u64().context("no memory is told")
    }
}
