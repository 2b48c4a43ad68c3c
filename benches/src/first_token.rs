//! What a hop between nodes adds to the time to the first token.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;

use crate::figures::{Figure, median, ms, quantile};
use crate::http::Connection;
use crate::node_process::{Binaries, CHAT, Place, chat, has_text};
use crate::ping_pong;

/// Requests that are not counted: they fill caches and let the links settle.
const N_WARM: usize = 50;

/// Two nodes, of which one holds the model, over a scripted device without delay. Sends `pairs` pairs of requests, one of each to the node that
/// serves and one to the other, in turn; each run gives the medians of both and their difference.
pub(crate) fn measure(binaries: &Binaries, runs: usize, pairs: usize) -> anyhow::Result<Vec<Figure>> {
    let place = Place::new(binaries)?;
    let mut serving = place.start_scripted("serving", &[], Some(&place.long_model()?), 1)?;
    serving.wait_ready(1)?;
    let mut ingress = place.start_scripted("ingress", &[&serving], None, 1)?;
    ingress.wait_ready(2)?;

    let mut here = Asker::new(serving.http)?;
    let mut there = Asker::new(ingress.http)?;
    let (mut local, mut remote, mut added, mut remote_p99, mut floor) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..N_WARM {
        here.first_token_ms()?;
        there.first_token_ms()?;
    }
    for _ in 0..runs {
        let (mut direct, mut hopped) = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
        for pair in 0..pairs {
            // The order changes so that neither always follows the other.
            if pair % 2 == 0 {
                direct.push(here.first_token_ms()?);
                hopped.push(there.first_token_ms()?);
            } else {
                hopped.push(there.first_token_ms()?);
                direct.push(here.first_token_ms()?);
            }
        }
        floor.push(ping_pong::round_trip_ms(2000)?);
        local.push(median(&direct));
        remote.push(median(&hopped));
        remote_p99.push(quantile(&hopped, 0.99));
        added.push(median(&hopped) - median(&direct));
    }
    let ratio = median(&added) / median(&floor);
    Ok(vec![
        Figure::ms("first token, served where it enters (p50)", "", &local),
        Figure::ms("first token, served a hop away (p50)", "", &remote),
        Figure::ms("first token, served a hop away (p99)", "", &remote_p99),
        Figure::ms("added by the hop (difference of p50)", "≤ 0.5 ms", &added).beside(format!("{ratio:.1} × the floor")),
        Figure::ms("bare TCP ping-pong over loopback (p50): floor", "", &floor),
    ])
}

/// Asks one node over one connection.
struct Asker(Connection);

impl Asker {
    fn new(node: SocketAddr) -> anyhow::Result<Self> {
        Connection::open(node).map(Self)
    }

    /// Milliseconds from the request to the first piece of text.
    fn first_token_ms(&mut self) -> anyhow::Result<f64> {
        let mut first = None;
        let sent = Instant::now();
        self.0.stream(CHAT, &chat(2, true), |data, arrived| {
            if first.is_none() && has_text(data) {
                first = Some(arrived);
            }
        })?;
        Ok(ms(first.context("the answer had no text")?.duration_since(sent)))
    }
}
