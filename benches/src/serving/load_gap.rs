//! How long a running stream stands still while another model is loaded on its device.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;

use super::COMPLETIONS;
use super::cold::{CONTEXT_LENGTH, ColdNode, question};
use super::prefill_gap::gaps;
use super::stream::ask_while;
use crate::figures::{Figure, median, quantile};
use crate::node_process::Binaries;

/// How long the stream is watched by itself.
const ALONE: Duration = Duration::from_secs(2);
/// A device keeps the memory of a model that went for the next, but not for so long, and a host takes it back after a while: neither load finds any.
const KEPT: Duration = Duration::from_secs(3);
/// Parts of the stream that come before it counts as running.
const PARTS_FIRST: usize = 4;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The model that answers: a GGUF file, or `embedded:pip`.
    #[arg(long)]
    model: String,
    /// The one that is loaded meanwhile.
    #[arg(long)]
    beside: String,
    /// Threads that compute.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// How many times it is loaded, after one time that does not count.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// What one run saw.
struct Gaps {
    alone_ms: Vec<f64>,
    beside_ms: Vec<f64>,
    /// From the request for the other model to its first token.
    cold_ms: f64,
}

/// A stream of one model, watched alone and while another one is loaded because somebody asks for it.
pub(crate) fn measure(binaries: &Binaries, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let models = [("one", options.model.as_str()), ("two", options.beside.as_str())];
    let node = ColdNode::start(binaries, options.threads, &models, "")?;
    let (mut seen, mut alone) = (Vec::new(), Vec::new());
    for run in 0..=options.runs as u64 {
        node.ask("one", run)?;
        thread::sleep(KEPT);
        let cold = node.ask("two", run)?;
        node.unload("two")?;
        let gaps = watch(&node, 1000 + run)?;
        node.unload("two")?;
        if run > 0 {
            alone.push(cold);
            seen.push(gaps);
        }
    }
    let each = |value: fn(&Gaps) -> f64| seen.iter().map(value).collect::<Vec<_>>();
    let longest_beside = each(|gaps| quantile(&gaps.beside_ms, 1.0));
    let cold = each(|gaps| gaps.cold_ms);
    let share: Vec<f64> = longest_beside.iter().zip(&cold).map(|(gap, cold)| gap / cold).collect();
    let slower: Vec<f64> = cold.iter().zip(&alone).map(|(beside, alone)| beside / alone).collect();
    Ok(vec![
        Figure::ms("middle gap of the stream".to_owned(), "", &each(|gaps| median(&gaps.alone_ms))),
        Figure::ms("longest gap of the stream".to_owned(), "", &each(|gaps| quantile(&gaps.alone_ms, 1.0))),
        Figure::ms("middle gap beside the load".to_owned(), "", &each(|gaps| median(&gaps.beside_ms))),
        Figure::ms("longest gap beside the load".to_owned(), "", &longest_beside),
        Figure::times("the longest to the whole load".to_owned(), "", &share),
        Figure::ms("the other model: cold, to the first token, with the device to itself".to_owned(), "", &alone),
        Figure::ms("the other model: cold, to the first token, beside the stream".to_owned(), "", &cold),
        Figure::times("the second to the first".to_owned(), "", &slower),
    ])
}

fn watch(node: &ColdNode, seed: u64) -> anyhow::Result<Gaps> {
    let arrivals: Mutex<Vec<Vec<Instant>>> = Mutex::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stream = scope.spawn(|| {
            // Where an answer ends before the other model is there, the next follows.
            while !over.load(Ordering::Relaxed) {
                arrivals.lock().expect("nobody panics").push(vec![]);
                ask_while(node.at(), COMPLETIONS, &question("one", CONTEXT_LENGTH - 16, seed), |arrived| {
                    arrivals.lock().expect("nobody panics").last_mut().expect("just pushed").push(arrived);
                    !over.load(Ordering::Relaxed)
                })?;
            }
            anyhow::Ok(())
        });
        let loaded =
            beside_load(node, seed, &|| arrivals.lock().expect("nobody panics").iter().map(Vec::len).sum(), &|| stream.is_finished());
        over.store(true, Ordering::Relaxed);
        stream.join().expect("a client does not panic")?;
        let (running, sent, cold_ms) = loaded?;
        let there = sent + Duration::from_secs_f64(cold_ms / 1e3);
        let (alone_ms, beside_ms) = gaps(&arrivals.lock().expect("nobody panics"), running, sent..there);
        Ok(Gaps { alone_ms, beside_ms, cold_ms })
    })
}

/// Since when the stream is running, when the other model was asked for, and in how many milliseconds its first token came.
fn beside_load(
    node: &ColdNode,
    seed: u64,
    n_parts: &dyn Fn() -> usize,
    ended: &dyn Fn() -> bool,
) -> anyhow::Result<(Instant, Instant, f64)> {
    while n_parts() < PARTS_FIRST {
        ensure!(!ended(), "the stream ended before it ran");
        thread::sleep(Duration::from_millis(5));
    }
    let running = Instant::now();
    thread::sleep(ALONE);
    let sent = Instant::now();
    let cold_ms = node.ask("two", seed)?;
    ensure!(!ended(), "the stream ended before the other model was there");
    Ok((running, sent, cold_ms))
}
