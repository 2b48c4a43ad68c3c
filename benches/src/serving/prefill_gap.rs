//! How long running streams stand still while a long prompt is read.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::figures::{Figure, median, ms, quantile};
use crate::node_process::Binaries;
use crate::serving::stream::{ask, ask_while};
use crate::serving::{COMPLETIONS, Setup, completion, words};

/// How long the streams are watched by themselves, once all of them run.
const ALONE: Duration = Duration::from_secs(5);

/// Parts of each stream that come before it counts as running.
const PARTS_FIRST: usize = 4;

/// When the parts of each answer of a stream arrived, one answer after the other.
type Arrivals = Mutex<Vec<Vec<Instant>>>;

/// What one run saw.
struct Gaps {
    alone_ms: Vec<f64>,
    beside_ms: Vec<f64>,
    first_token_ms: f64,
}

/// `n_streams` streams, watched alone and while a prompt of `n_prompt` tokens is read, of every server in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup, n_streams: usize, n_prompt: usize) -> anyhow::Result<Vec<Figure>> {
    let servers = setup.servers(binaries)?;
    let mut seen: Vec<Vec<Gaps>> = servers.iter().map(|_| vec![]).collect();
    for run in 0..setup.runs {
        for (server, seen) in servers.iter().zip(&mut seen) {
            seen.push(watch(server.http, n_streams, n_prompt, 1000 * run as u64)?);
        }
    }
    let mut figures = vec![];
    for (server, seen) in servers.iter().zip(&seen) {
        let each = |value: fn(&Gaps) -> f64| seen.iter().map(value).collect::<Vec<_>>();
        let longest_alone = each(|gaps| quantile(&gaps.alone_ms, 1.0));
        let longest_beside = each(|gaps| quantile(&gaps.beside_ms, 1.0));
        let ratio: Vec<f64> = longest_beside.iter().zip(&longest_alone).map(|(beside, alone)| beside / alone).collect();
        let name = server.name;
        let target = if name == "plexus" { "≤ 3 ×" } else { "" };
        let n = seen.iter().map(|gaps| gaps.beside_ms.len()).sum::<usize>();
        figures.extend([
            Figure::ms(format!("{name}: middle gap of {n_streams} streams"), "", &each(|gaps| median(&gaps.alone_ms))),
            Figure::ms(format!("{name}: longest gap of {n_streams} streams"), "", &longest_alone),
            Figure::ms(format!("{name}: middle gap beside a prompt of {n_prompt}"), "", &each(|gaps| median(&gaps.beside_ms))),
            Figure::ms(format!("{name}: longest gap beside a prompt of {n_prompt}"), "", &longest_beside).beside(format!("{n} gaps")),
            Figure::times(format!("{name}: longest gap, beside the prompt to without it"), target, &ratio),
            Figure::ms(format!("{name}: first token of that prompt"), "", &each(|gaps| gaps.first_token_ms)),
        ]);
    }
    Ok(figures)
}

fn watch(to: SocketAddr, n_streams: usize, n_prompt: usize, seed: u64) -> anyhow::Result<Gaps> {
    let arrivals: Vec<Arrivals> = (0..n_streams).map(|_| Mutex::default()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let streams: Vec<_> = (seed..)
            .zip(&arrivals)
            .map(|(seed, arrivals)| {
                let over = &over;
                scope.spawn(move || {
                    // Given up when the long prompt has been read; where a model is so fast that the answer ends before, the next follows.
                    while !over.load(Ordering::Relaxed) {
                        arrivals.lock().expect("nobody panics").push(vec![]);
                        let answer = ask_while(to, COMPLETIONS, &completion(&words(16, seed), 4000, seed), |arrived| {
                            arrivals.lock().expect("nobody panics").last_mut().expect("just pushed").push(arrived);
                            !over.load(Ordering::Relaxed)
                        })?;
                        ensure!(!answer.arrivals.is_empty() || over.load(Ordering::Relaxed), "a stream was answered with no text");
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let watched = beside_prompt(to, n_prompt, seed, &arrivals, &|| streams.iter().any(|stream| stream.is_finished()));
        over.store(true, Ordering::Relaxed);
        for stream in streams {
            stream.join().expect("a client does not panic")?;
        }
        watched
    })
}

fn beside_prompt(to: SocketAddr, n_prompt: usize, seed: u64, arrivals: &[Arrivals], ended: &dyn Fn() -> bool) -> anyhow::Result<Gaps> {
    let runs = |arrivals: &Arrivals| arrivals.lock().expect("nobody panics").iter().map(Vec::len).sum::<usize>() >= PARTS_FIRST;
    while !arrivals.iter().all(runs) {
        ensure!(!ended(), "a stream ended before all of them ran");
        thread::sleep(Duration::from_millis(5));
    }
    let running = Instant::now();
    thread::sleep(ALONE);
    let sent = Instant::now();
    let answer = ask(to, COMPLETIONS, &completion(&words(n_prompt, seed + 999), 1, seed))?;
    ensure!(!ended(), "a stream ended before the prompt of {n_prompt} tokens was read");
    let read = *answer.arrivals.first().context("the long prompt was not answered with text")?;
    let (mut alone_ms, mut beside_ms) = (vec![], vec![]);
    for arrivals in arrivals {
        let (alone, beside) = gaps(&arrivals.lock().expect("nobody panics"), running, sent..read);
        alone_ms.extend(alone);
        beside_ms.extend(beside);
    }
    Ok(Gaps { alone_ms, beside_ms, first_token_ms: ms(read - sent) })
}

/// Milliseconds between the parts of each answer of a stream that has been running since then, before and during a time in which something else was
/// done. Between two answers is no gap.
pub(super) fn gaps(answers: &[Vec<Instant>], running: Instant, other: Range<Instant>) -> (Vec<f64>, Vec<f64>) {
    let (mut alone_ms, mut beside_ms) = (vec![], vec![]);
    for pair in answers.iter().flat_map(|answer| answer.windows(2)).filter(|pair| pair[0] >= running) {
        let gap = ms(pair[1] - pair[0]);
        // A gap that reaches into that time belongs to it.
        if pair[1] < other.start {
            alone_ms.push(gap);
        } else if pair[0] < other.end {
            beside_ms.push(gap);
        }
    }
    (alone_ms, beside_ms)
}
