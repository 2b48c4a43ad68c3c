//! The first token of a prompt whose beginning was read before.

use crate::figures::{Figure, median, ms};
use crate::node_process::Binaries;
use crate::serving::stream::ask;
use crate::serving::{Setup, completion, words};

/// Path of the endpoint that takes tokens.
const COMPLETIONS: &str = "/v1/completions";

/// Tokens of each prompt after what two of them share.
const TAIL_LEN: usize = 16;

/// Pairs of prompts with the same first `n_shared` tokens, one after the other, of every server in turn.
pub(crate) fn measure(binaries: &Binaries, setup: &Setup, n_shared: usize) -> anyhow::Result<Vec<Figure>> {
    let servers = setup.servers(binaries)?;
    let mut seen = vec![(vec![], vec![], vec![]); servers.len()];
    for run in 0..=setup.runs as u64 {
        for (server, (first, second, cached)) in servers.iter().zip(&mut seen) {
            let shared = words(n_shared, 100 * run);
            let ask = |tail: u64| {
                let prompt = [shared.clone(), words(TAIL_LEN, 100 * run + tail)].concat();
                ask(server.http, COMPLETIONS, &completion(&prompt, 4, run))
            };
            let (one, other) = (ask(1)?, ask(2)?);
            if run > 0 {
                first.push(ms(one.first_token()?));
                second.push(ms(other.first_token()?));
                cached.push(other.n_cached as f64);
            }
        }
    }
    let mut figures = vec![];
    for (server, (first, second, cached)) in servers.iter().zip(&seen) {
        let name = server.name;
        let ratio = format!("1/{:.0} of the first", median(first) / median(second));
        figures.extend([
            Figure::ms(format!("{name}: first token of a new prompt of {n_shared} tokens and {TAIL_LEN}"), "", first),
            Figure::ms(format!("{name}: first token of the next with the same {n_shared}"), "", second).beside(ratio),
            Figure::count(format!("{name}: tokens that it says were cached"), "", cached),
        ]);
    }
    Ok(figures)
}
