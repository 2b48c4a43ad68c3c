//! A node whose device answers from a script: its actors, links and HTTP front are the product's, only the model costs nothing.
//!
//! It differs from the scripted node of the tests in what it may hold: any number of models, also none, from any source.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use plexus_actors::args::{DeviceSpec, HttpConfig, Listing, NodeArgs, OpenDevice, RestartBudget, Sockets, StreamsConfig};
use plexus_actors::evictor::core::EvictionConfig;
use plexus_actors::evictor::pins::PinsFile;
use plexus_actors::membership::NetTiming;
use plexus_actors::secret::ClusterSecret;
use plexus_api::{ApiConfig, VersionInfo};
use plexus_engine::scripted::{Script, ScriptedExecutor};
use plexus_store::StoreConfig;
use plexus_types::{Bytes, DeviceId, DeviceKind, Generation, ModelProfile, ModelSource, NodeFacts, NodeId, NodeName};

/// "The capital of France is Paris." in the tokens of the embedded model, said again and again.
const WORDS: [u32; 11] = [308, 370, 307, 433, 728, 521, 271, 515, 288, 520, 13];

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Name of the node.
    #[arg(long)]
    name: NodeName,
    /// File with the secret of the cluster.
    #[arg(long)]
    secret_file: PathBuf,
    /// Where it answers HTTP.
    #[arg(long)]
    http: SocketAddr,
    /// Where it gossips.
    #[arg(long)]
    gossip: SocketAddr,
    /// Where it takes links.
    #[arg(long)]
    link: SocketAddr,
    /// Gossip addresses of other nodes.
    #[arg(long = "seed")]
    seeds: Vec<String>,
    /// Folder of the model `pip`, of which the device reads no weights; without it the node holds no model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Tokens that a sequence gains in a step.
    #[arg(long, default_value_t = 1)]
    tokens_per_step: usize,
}

/// Runs the node until it gives up or is killed.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info,ractor=warn,ractor_cluster=warn").init();
    metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().context("metrics are recorded as in the product")?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut node = plexus_actors::node::start(node_args(options)?).await?;
        bail!("the node gave up: {}", node.wait().await)
    })
}

/// The product's defaults, but for the device, and for a batch that takes all connections of a bench.
fn node_args(options: Options) -> anyhow::Result<NodeArgs> {
    let sockets = Sockets {
        http: Arc::new(TcpListener::bind(options.http)?),
        link: Arc::new(TcpListener::bind(options.link)?),
        gossip: Arc::new(UdpSocket::bind(options.gossip)?),
    };
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let facts = NodeFacts {
        id: NodeId { name: options.name, generation: Generation(u64::try_from(since_1970.as_millis())?) },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        link: options.link,
        http: options.http,
        gossip: options.gossip,
    };
    let id = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
    let memory_total = Bytes::mib(32 << 10); // claimed, never touched: room for many long contexts
    let script = Script { memory_total, ids: WORDS.to_vec(), tokens_per_step: options.tokens_per_step, ..Script::default() };
    let open: OpenDevice = Arc::new(move || Ok(Box::new(ScriptedExecutor::new(id, script.clone()))));
    let profile = |folder| ModelProfile {
        running_max: 64,
        waiting_max: 1024,
        preload: true,
        ..ModelProfile::new("pip".parse().expect("a model id"), ModelSource::Path(folder))
    };
    let version = VersionInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_sha: "scripted".to_owned(),
        build_time: String::new(),
        rustc: String::new(),
        profile: "release".to_owned(),
        features: Vec::new(),
    };
    Ok(NodeArgs {
        cluster: "plexus".to_owned(),
        facts,
        secret: ClusterSecret::parse(fs::read_to_string(options.secret_file)?.trim())?,
        sockets,
        seeds: options.seeds,
        timing: NetTiming::default(),
        devices: vec![DeviceSpec::new(id, open)],
        catalogue: Listing { models: options.model.map(profile).into_iter().collect(), ..Listing::default() },
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
            window_tokens: 1024,
            prompt_time_max: None,
        },
        http: HttpConfig { api: ApiConfig::new(version), connections_max: 1024, header_timeout: Duration::from_secs(10) },
        restarts: RestartBudget { restarts_max: 5, within: Duration::from_secs(60) },
        drain_timeout: Duration::from_secs(10),
        test_hooks: false,
    })
}
