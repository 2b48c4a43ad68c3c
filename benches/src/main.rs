//! Measures real Plexus nodes, each a process of its own, and prints a Markdown table per bench.
//!
//! Every figure is wall-clock time, taken several times, printed as least, median and greatest, beside a target and a floor measured in the
//! same run. Nothing is asserted about time: a busy machine makes a figure worse, never a bench fail.
#![allow(clippy::print_stdout, reason = "a program whose output is its tables")]

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

mod bandwidth;
mod drafting;
mod engine;
mod figures;
mod first_token;
mod http;
mod machine;
mod mesh;
mod node_process;
mod open_loop;
mod overhead;
mod ping_pong;
mod placement;
mod routing;
mod scripted_node;
mod serving;
mod stalls;
mod startup;
mod store;
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
    /// The engine alone: loads a model, reads prompts and decodes, without actors and HTTP.
    Engine(engine::Options),
    /// What draft models gain, each with a model that it guesses for and without, by how often it is right.
    Draft(drafting::Options),
    /// How fast this machine reads memory.
    Bandwidth {
        /// Numbers of threads.
        #[arg(long, value_delimiter = ',', default_value = "1,2")]
        threads: Vec<NonZeroUsize>,
        /// Passes over the memory.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Prints one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// How long this machine's cores stand still by themselves, while nothing else runs.
    Stalls {
        /// Threads that look.
        #[arg(long, default_value = "2")]
        threads: NonZeroUsize,
        /// Seconds for which they do.
        #[arg(long, default_value_t = 100)]
        seconds: u64,
    },
    /// Tokens per second of one stream and of several at a time.
    EightStreams {
        #[command(flatten)]
        setup: serving::Setup,
        /// Streams at a time.
        #[arg(long, default_value_t = 8)]
        streams: usize,
        /// Tokens of each.
        #[arg(long, default_value_t = 128)]
        tokens: usize,
    },
    /// The longest gap between tokens of running streams while a long prompt is read, and without it.
    PrefillGap {
        #[command(flatten)]
        setup: serving::Setup,
        /// Streams at a time, 8 at most.
        #[arg(long, default_value_t = 8)]
        streams: usize,
        /// Tokens of the prompt.
        #[arg(long, default_value_t = 4000)]
        prompt: usize,
    },
    /// Time to the first token of a second prompt with the same beginning.
    Prefix {
        #[command(flatten)]
        setup: serving::Setup,
        /// Tokens that the prompts share.
        #[arg(long, default_value_t = 2000)]
        shared: usize,
    },
    /// Tokens per second under a JSON Schema and without, for 1 and 8 streams.
    Constrained {
        #[command(flatten)]
        setup: serving::Setup,
        /// Tokens of each answer.
        #[arg(long, default_value_t = 128)]
        tokens: usize,
    },
    /// What guessing tokens from the text so far gains, on tasks of the embedded model or, with another, on a text that repeats itself.
    Lookup {
        #[command(flatten)]
        setup: serving::Setup,
    },
    /// How fast an embedding model takes texts, 1, 8 and 64 to a request.
    Embeddings {
        #[command(flatten)]
        setup: serving::Setup,
        /// Words of each text; several numbers are measured one after the other.
        #[arg(long, value_delimiter = ',', default_values_t = [3, 32, 100, 200])]
        words: Vec<usize>,
        /// Most words of a text where they have from one on.
        #[arg(long, default_value = "200")]
        mixed: NonZeroUsize,
    },
    /// Time to the first token of models that are not loaded, whose files are in the page cache.
    ColdLoad(serving::cold::Options),
    /// The same where another model must go first.
    Swap(serving::cold::Options),
    /// How long a running stream stands still while another model is loaded on its device.
    LoadGap(serving::load_gap::Options),
    /// How long it takes to say where a request goes, in a cluster of 100 nodes with 200 models.
    Routing {
        /// Requests.
        #[arg(long, default_value_t = 100_000)]
        requests: usize,
    },
    /// How long clients wait for models that come and go on sixteen simulated nodes, and how many loads that takes, beside a fixed number of models
    /// per node at random places.
    Placement {
        /// Traces.
        #[arg(long, default_value_t = 5)]
        seeds: u64,
        /// Requests of each.
        #[arg(long, default_value_t = 2000)]
        requests: usize,
    },
    /// How fast a model's files go from one node to two others.
    Store(store::Options),
    /// All that need no file but the product itself, each with its defaults.
    All,
    /// A node over a scripted device, as the benches start it.
    #[command(hide = true)]
    ScriptedNode(scripted_node::Options),
    /// A node of the bench of files, which has no actors.
    #[command(hide = true)]
    StoreNode(store::NodeOptions),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.bench {
        Bench::ScriptedNode(options) => return scripted_node::run(options),
        Bench::StoreNode(options) => return store::run(options),
        Bench::Engine(options) if options.json => {
            println!("{}", engine::measure(&options)?.json());
            return Ok(());
        }
        Bench::Bandwidth { threads, runs, json: true } => {
            let values = threads.iter().map(|n| (n.to_string(), json!(bandwidth::gb_per_s(*n, runs)))).collect::<Value>();
            println!("{values}");
            return Ok(());
        }
        _ => {}
    }
    println!("{}\n", machine::describe());
    match &cli.bench {
        Bench::Engine(options) => {
            println!("{}", figures::table(&engine::measure(options)?.figures()));
            return Ok(());
        }
        Bench::Draft(options) => {
            println!("{}", figures::table(&drafting::measure(options)?));
            return Ok(());
        }
        Bench::Store(options) => {
            println!("{}", figures::table(&store::measure(options)?));
            return Ok(());
        }
        Bench::Routing { requests } => {
            println!("{}", figures::table(&routing::measure(*requests)));
            return Ok(());
        }
        Bench::Placement { seeds, requests } => {
            println!("{}", figures::table(&placement::measure(*seeds, *requests)?));
            return Ok(());
        }
        Bench::Bandwidth { threads, runs, .. } => {
            println!("{}", figures::table(&bandwidth::measure(threads, *runs)));
            return Ok(());
        }
        Bench::Stalls { threads, seconds } => {
            println!("{}", figures::table(&stalls::measure(*threads, Duration::from_secs(*seconds))));
            return Ok(());
        }
        _ => {}
    }
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
            Bench::EightStreams { setup, streams, tokens } => serving::eight_streams::measure(&binaries, &setup, streams, tokens)?,
            Bench::PrefillGap { setup, streams, prompt } => serving::prefill_gap::measure(&binaries, &setup, streams, prompt)?,
            Bench::Prefix { setup, shared } => serving::prefix::measure(&binaries, &setup, shared)?,
            Bench::Constrained { setup, tokens } => serving::constrained::measure(&binaries, &setup, tokens)?,
            Bench::Lookup { setup } => serving::lookup::measure(&binaries, &setup)?,
            Bench::ColdLoad(options) => serving::cold::cold_load(&binaries, &options)?,
            Bench::Swap(options) => serving::cold::swap(&binaries, &options)?,
            Bench::LoadGap(options) => serving::load_gap::measure(&binaries, &options)?,
            Bench::Embeddings { setup, words, mixed } => serving::embeddings::measure(&binaries, &setup, &words, mixed)?,
            Bench::All
            | Bench::Routing { .. }
            | Bench::Placement { .. }
            | Bench::Engine(_)
            | Bench::Draft(_)
            | Bench::Bandwidth { .. }
            | Bench::Stalls { .. }
            | Bench::Store(_)
            | Bench::ScriptedNode(_)
            | Bench::StoreNode(_) => {
                continue;
            } // dealt with above
        };
        println!("{}", figures::table(&figures));
    }
    Ok(())
}
