//! Measures real Plexus nodes, each a process of its own, and prints a Markdown table per bench.
//!
//! Every figure is wall-clock time, taken several times, printed as least, median and greatest, beside a target and a floor measured in the
//! same run. Nothing is asserted about time: a busy machine makes a figure worse, never a bench fail.
#![allow(clippy::print_stdout, reason = "a program whose output is its tables")]

use clap::{Parser, Subcommand};

mod figures;
mod first_token;
mod http;
mod machine;
mod mesh;
mod node_process;
mod open_loop;
mod overhead;
mod ping_pong;
mod scripted_node;
mod startup;
mod stream_rate;

/// Measures Plexus nodes and prints the results as Markdown tables.
///
/// Builds the release binaries first, with the cargo that runs this. Works on free ports of the loopback interface in a temporary folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Takes the release build of `plexus` as it lies beside this program, instead of bringing it up to date.
    #[arg(long)]
    no_build: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Clone, Subcommand)]
enum Bench {
    /// From `plexus start` to the first HTTP answer, to readiness, and to the first answer of the embedded model.
    Startup {
        /// How many times a node is started.
        #[arg(long, default_value_t = 15)]
        runs: usize,
    },
    /// Three nodes: from the start of the last to a full mesh, in which each lists three nodes as up.
    Mesh {
        /// How many meshes are formed.
        #[arg(long, default_value_t = 10)]
        runs: usize,
    },
    /// What a hop between nodes adds to the time to the first token; a bare TCP ping-pong is the floor.
    RemoteFirstToken {
        /// How many times both ways are measured.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Pairs of requests per run, one served where it enters and one a hop away.
        #[arg(long, default_value_t = 500)]
        pairs: usize,
    },
    /// Tokens per second of one stream across a hop, at 1, 8 and 16 tokens a step; the same stream without the hop beside it.
    RemoteStream {
        /// Streams measured per way and step size.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Tokens of a stream.
        #[arg(long, default_value_t = 30_000)]
        tokens: usize,
    },
    /// Latency of one-token requests at 1,000 per second over 64 connections, open loop; `GET /version` alike is the floor.
    HttpOverhead {
        /// How many times both are measured.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Seconds of load per run.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Requests per second.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
    },
    /// All of them, each with its defaults.
    All,
    /// A node over a scripted device, as the benches start it.
    #[command(hide = true)]
    ScriptedNode(scripted_node::Options),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if let Bench::ScriptedNode(options) = cli.bench {
        return scripted_node::run(options);
    }
    println!("{}\n", machine::describe());
    let binaries = node_process::Binaries::find(!cli.no_build)?;
    let benches = match cli.bench {
        Bench::All => ["startup", "mesh", "remote-first-token", "remote-stream", "http-overhead"]
            .into_iter()
            .map(|name| Ok(Cli::try_parse_from(["plexus-benches", name])?.bench))
            .collect::<anyhow::Result<Vec<_>>>()?,
        one => vec![one],
    };
    for bench in benches {
        let figures = match bench {
            Bench::Startup { runs } => startup::measure(&binaries, runs)?,
            Bench::Mesh { runs } => mesh::measure(&binaries, runs)?,
            Bench::RemoteFirstToken { runs, pairs } => first_token::measure(&binaries, runs, pairs)?,
            Bench::RemoteStream { runs, tokens } => stream_rate::measure(&binaries, runs, tokens)?,
            Bench::HttpOverhead { runs, seconds, rate } => overhead::measure(&binaries, runs, seconds, rate)?,
            Bench::All | Bench::ScriptedNode(_) => continue, // dealt with above
        };
        println!("{}", figures::table(&figures));
    }
    Ok(())
}
