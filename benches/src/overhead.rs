//! What a node adds to a request, when it serves many.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::figures::{Figure, median, ms, quantile};
use crate::http::{Connection, request_bytes};
use crate::node_process::{Binaries, CHAT, Place, chat};
use crate::open_loop::{Load, Outcome};

/// Keep-alive connections.
const N_CONNECTIONS: usize = 64;

/// Requests of the measurement without load.
const N_ALONE: usize = 2000;

/// One-token requests and, alike, `GET /version`, in turn, `runs` times, of one node over a scripted device without delay.
pub(crate) fn measure(binaries: &Binaries, runs: usize, seconds: u64, rate: u32) -> anyhow::Result<Vec<Figure>> {
    let place = Place::new(binaries)?;
    let mut node = place.start_scripted("n1", &[], Some(&place.long_model()?), 1)?;
    node.wait_ready(1)?;
    let one_token = request_bytes(node.http, CHAT, Some(&chat(1, false)));
    let version = request_bytes(node.http, "/version", None);

    let load = Load { connections: N_CONNECTIONS, rate, duration: Duration::from_secs(seconds) };
    Load { duration: Duration::from_secs(1), ..load }.run(node.http, &one_token)?; // warm
    let (mut served, mut floor) = (Percentiles::default(), Percentiles::default());
    let (mut alone, mut alone_floor) = (vec![], vec![]);
    for _ in 0..runs {
        floor.add(&load.run(node.http, &version)?)?;
        served.add(&load.run(node.http, &one_token)?)?;
        alone_floor.push(one_at_a_time_ms(node.http, None)?);
        alone.push(one_at_a_time_ms(node.http, Some(&chat(1, false)))?);
    }
    let ratio = |values: &[f64], floor: &[f64]| format!("{:.1} × `GET /version`", median(values) / median(floor));
    let over = format!("{rate}/s over {N_CONNECTIONS} connections");
    Ok(vec![
        Figure::ms(format!("one-token request, {over}, p50"), "≤ 0.5 ms", &served.p50).beside(ratio(&served.p50, &floor.p50)),
        Figure::ms("p90", "", &served.p90).beside(ratio(&served.p90, &floor.p90)),
        Figure::ms("p99", "", &served.p99).beside(ratio(&served.p99, &floor.p99)),
        Figure::ms("p50 since the request was written, without the generator's lateness", "≤ 0.5 ms", &served.since_written)
            .beside(ratio(&served.since_written, &floor.since_written)),
        Figure::ms(format!("`GET /version`, {over}, p50: floor"), "", &floor.p50),
        Figure::ms("p90", "", &floor.p90),
        Figure::ms("p99", "", &floor.p99),
        Figure::ms("p50 since the request was written", "", &floor.since_written),
        Figure::ms("one-token request, one at a time, p50", "", &alone).beside(ratio(&alone, &alone_floor)),
        Figure::ms("`GET /version`, one at a time, p50: floor", "", &alone_floor),
    ])
}

/// Percentiles of latency in milliseconds, one per run.
#[derive(Default)]
struct Percentiles {
    p50: Vec<f64>,
    p90: Vec<f64>,
    p99: Vec<f64>,
    since_written: Vec<f64>,
}

impl Percentiles {
    fn add(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        ensure!(outcome.refused == 0, "{} of {} requests were refused", outcome.refused, outcome.latencies_ms.len());
        for (values, share) in [(&mut self.p50, 0.5), (&mut self.p90, 0.9), (&mut self.p99, 0.99)] {
            values.push(quantile(&outcome.latencies_ms, share));
        }
        self.since_written.push(median(&outcome.since_written_ms));
        Ok(())
    }
}

/// Median of a GET of `/version`, or of a chat, each sent when the one before is answered.
fn one_at_a_time_ms(node: SocketAddr, body: Option<&serde_json::Value>) -> anyhow::Result<f64> {
    let mut connection = Connection::open(node)?;
    let mut latencies = Vec::with_capacity(N_ALONE);
    for _ in 0..N_ALONE {
        let sent = Instant::now();
        match body {
            None => drop(connection.get("/version")?),
            Some(body) => connection.stream(CHAT, body, |_, _| {})?,
        }
        latencies.push(ms(sent.elapsed()));
    }
    Ok(median(&latencies))
}
