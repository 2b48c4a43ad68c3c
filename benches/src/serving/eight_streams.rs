//! Tokens per second of several streams at a time.

use crate::figures::{Figure, median};
use crate::node_process::Binaries;
use crate::serving::stream::tokens_per_s;
use crate::serving::{Setup, completion, words};

/// Path of the endpoint that takes tokens.
const COMPLETIONS: &str = "/v1/completions";

/// Tokens of each prompt.
const PROMPT_LEN: usize = 32;

/// One stream and `n_streams` streams of `n_tokens` each, of every server in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup, n_streams: usize, n_tokens: usize) -> anyhow::Result<Vec<Figure>> {
    let servers = setup.servers(binaries)?;
    let bodies = |run: usize, n: usize| -> Vec<_> {
        let seed = |i: usize| (run * n_streams + i) as u64;
        (0..n).map(|i| completion(&words(PROMPT_LEN, seed(i)), n_tokens, seed(i))).collect()
    };
    let mut rates = vec![[vec![], vec![]]; servers.len()];
    for run in 0..=setup.runs {
        for (server, rates) in servers.iter().zip(&mut rates) {
            for (n, rates) in [1, n_streams].into_iter().zip(rates) {
                let rate = tokens_per_s(server.http, COMPLETIONS, &bodies(run, n), n_tokens as u64)?;
                rates.extend((run > 0).then_some(rate));
            }
        }
    }
    let mut figures = vec![];
    for (i, n) in [1, n_streams].into_iter().enumerate() {
        for (server, own) in servers.iter().zip(&rates) {
            let ratio = format!("ours is {:.2} × this", median(&rates[0][i]) / median(&own[i]));
            let name = format!("{}: streams at a time: {n}, tokens of all together", server.name);
            let beside = if server.name == servers[0].name { String::new() } else { ratio };
            figures.push(Figure::tokens_per_s(name, "", &own[i]).beside(beside));
        }
    }
    Ok(figures)
}
