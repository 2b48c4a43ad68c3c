//! A node whose device answers from a script: the actors, links and HTTP front are the product's, only the model is replaced.
//!
//! For tests and benches that need streams slower or faster than a real model gives. An answer ends with the request's `max_tokens` or with the
//! model's context.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Parser;
use plexus_actors::args::{DeviceSpec, HttpConfig, Listing, NodeArgs, OpenDevice, RestartBudget, Sockets, StreamsConfig};
use plexus_actors::evictor::core::EvictionConfig;
use plexus_actors::evictor::pins::PinsFile;
use plexus_actors::membership::NetTiming;
use plexus_actors::secret::ClusterSecret;
use plexus_api::{ApiConfig, VersionInfo};
use plexus_engine::scripted::{Fault, FaultKind, Script, ScriptedExecutor};
use plexus_store::StoreConfig;
use plexus_types::{DeviceId, DeviceKind, Generation, ModelId, ModelProfile, ModelSource, NodeFacts, NodeId, NodeName};
use tokio::signal::unix::{SignalKind, signal};

/// "The capital of France is Paris." in the demo model's tokens, said again and again.
const WORDS: [u32; 11] = [308, 370, 307, 433, 728, 521, 271, 515, 288, 520, 13];

/// A node whose device answers from a script.
#[derive(Debug, Parser)]
#[command(name = "scripted-node")]
struct Options {
    /// Name of the node.
    #[arg(long)]
    name: NodeName,
    /// Where it answers HTTP.
    #[arg(long, default_value = "127.0.0.1:0")]
    http: SocketAddr,
    /// Taken for likeness with `plexus start`; this node serves no metrics.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Where it gossips.
    #[arg(long, default_value = "127.0.0.1:0")]
    gossip: SocketAddr,
    /// Where it takes links.
    #[arg(long, default_value = "127.0.0.1:0")]
    link: SocketAddr,
    /// Gossip addresses of other nodes.
    #[arg(long = "seed")]
    seeds: Vec<String>,
    /// File with the cluster's secret; without it the node stays alone.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// The model that it serves, as ID=SOURCE: its tokenizer, template and context are real, only its tokens come from the script.
    #[arg(long, default_value = "pip=embedded:pip", value_parser = parse_model)]
    model: (ModelId, ModelSource),
    /// Lists no model.
    #[arg(long)]
    no_models: bool,
    /// Has no device: the node only passes requests on.
    #[arg(long)]
    no_device: bool,
    /// Tokens that a sequence gains in a step.
    #[arg(long, default_value_t = 1)]
    tokens_per_step: usize,
    /// Time that a step takes.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    step_time: Duration,
    /// Most requests in the batch.
    #[arg(long, default_value_t = 8)]
    running_max: u32,
    /// Most requests that wait for a place in it.
    #[arg(long, default_value_t = 64)]
    waiting_max: u32,
    /// Devices.
    #[arg(long, default_value_t = 1)]
    devices: u32,
    /// Devices that a node must have to hold the model.
    #[arg(long, default_value_t = 1)]
    min_devices: u32,
    /// What goes wrong on each device at a step of its first life; counted from 0.
    #[arg(long, requires = "fault_at")]
    fault: Option<FaultName>,
    /// At which step.
    #[arg(long)]
    fault_at: Option<u64>,
    /// Tokens that a replica may be ahead of the client.
    #[arg(long, default_value_t = 1024)]
    window_tokens: u32,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FaultName {
    /// The device says that it can no longer be trusted.
    Device,
    /// The device's thread panics.
    Panic,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info,ractor=warn,ractor_cluster=warn").init();
    let mut terminated = signal(SignalKind::terminate()).context("signals can be heard")?;
    let args = node_args(Options::parse())?;
    let mut node = plexus_actors::node::start(args).await.context("the node starts")?;
    tokio::select! {
        _ = terminated.recv() => drop(node.drain().await),
        why = node.wait() => {
            tracing::error!(why, "the node gave up");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_model(text: &str) -> anyhow::Result<(ModelId, ModelSource)> {
    let (id, source) = text.split_once('=').context("a model is given as ID=SOURCE")?;
    Ok((id.parse()?, source.parse()?))
}

/// A device that follows the script, which goes wrong in its first life only.
fn device(id: DeviceId, script: Script) -> DeviceSpec {
    let opened = AtomicBool::new(false);
    let open: OpenDevice = Arc::new(move || {
        let faults = if opened.swap(true, Ordering::Relaxed) { Vec::new() } else { script.faults.clone() };
        Ok(Box::new(ScriptedExecutor::new(id, Script { faults, ..script.clone() })))
    });
    DeviceSpec::new(id, open)
}

/// What the options mean for the actors.
fn node_args(options: Options) -> anyhow::Result<NodeArgs> {
    let sockets = Sockets {
        http: Arc::new(TcpListener::bind(options.http).with_context(|| format!("--http {}", options.http))?),
        link: Arc::new(TcpListener::bind(options.link).with_context(|| format!("--link {}", options.link))?),
        gossip: Arc::new(UdpSocket::bind(options.gossip).with_context(|| format!("--gossip {}", options.gossip))?),
    };
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is set")?;
    let facts = NodeFacts {
        id: NodeId { name: options.name, generation: Generation(u64::try_from(since_1970.as_millis())?) },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        link: sockets.link.local_addr()?,
        http: sockets.http.local_addr()?,
        gossip: sockets.gossip.local_addr()?,
    };
    let secret = match &options.secret_file {
        Some(path) => ClusterSecret::parse(&fs::read_to_string(path).with_context(|| format!("--secret-file {}", path.display()))?)?,
        None => ClusterSecret::generate(),
    };
    let faults = options.fault.zip(options.fault_at).map(|(name, at_step)| Fault {
        at_step,
        kind: match name {
            FaultName::Device => FaultKind::Device,
            FaultName::Panic => FaultKind::Panic,
        },
    });
    let script = Script {
        ids: WORDS.to_vec(),
        tokens_per_step: options.tokens_per_step,
        step_time: options.step_time,
        faults: faults.into_iter().collect(),
        ..Script::default()
    };
    let n_devices = if options.no_device { 0 } else { options.devices };
    let devices = (0..n_devices).map(|ordinal| device(DeviceId { kind: DeviceKind::Cpu, ordinal }, script.clone()));
    let (id, source) = options.model;
    let model = ModelProfile {
        running_max: options.running_max,
        waiting_max: options.waiting_max,
        min_devices: options.min_devices,
        preload: true,
        ..ModelProfile::new(id, source)
    };
    Ok(NodeArgs {
        cluster: "plexus".to_owned(),
        facts,
        secret,
        sockets,
        seeds: options.seeds,
        timing: NetTiming::default(),
        devices: devices.collect(),
        catalogue: Listing { models: if options.no_models { Vec::new() } else { vec![model] }, ..Listing::default() },
        eviction: EvictionConfig::default(),
        pins: PinsFile::default(),
        store: StoreConfig::new(std::env::temp_dir().join(format!("plexus-store-{}", std::process::id()))),
        streams: StreamsConfig {
            accept_timeout: Duration::from_secs(2),
            first_token_timeout: Duration::from_secs(120),
            token_timeout: Duration::from_secs(30),
            client_timeout: Duration::from_secs(300),
            load_timeout: Duration::from_secs(300),
            attempts_max: 4,
            window_tokens: options.window_tokens,
            prompt_time_max: None,
        },
        http: HttpConfig {
            api: ApiConfig::new(VersionInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                git_sha: "scripted".to_owned(),
                build_time: String::new(),
                rustc: String::new(),
                profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
                features: Vec::new(),
            }),
            connections_max: 1024,
            header_timeout: Duration::from_secs(10),
        },
        restarts: RestartBudget { restarts_max: 5, within: Duration::from_secs(60) },
        drain_timeout: Duration::from_secs(10),
        test_hooks: false,
    })
}
