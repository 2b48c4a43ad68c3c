//! The sections of `cluster.toml`, each with its defaults. What a key means is said once, in `cluster.toml` itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use plexus_types::{Bytes, ModelId, NodeName};
use serde::Deserialize;

use super::model::ModelSection;
use super::units::{ByteSize, CudaDevices, Fraction, unset_if_empty, unset_if_zero};

/// Everything that a node can be told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) cluster: ClusterSection,
    pub(crate) node: NodeSection,
    pub(crate) http: HttpSection,
    pub(crate) metrics: MetricsSection,
    pub(crate) gossip: GossipSection,
    pub(crate) link: LinkSection,
    pub(crate) devices: DevicesSection,
    pub(crate) models: Vec<ModelSection>,
    pub(crate) aliases: BTreeMap<ModelId, ModelId>,
    pub(crate) eviction: EvictionSection,
    pub(crate) store: StoreSection,
    pub(crate) streams: StreamsSection,
    pub(crate) supervision: SupervisionSection,
    pub(crate) shutdown: ShutdownSection,
    pub(crate) telemetry: TelemetrySection,
    pub(crate) debug: DebugSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: ClusterSection::default(),
            node: NodeSection::default(),
            http: HttpSection::default(),
            metrics: MetricsSection::default(),
            gossip: GossipSection::default(),
            link: LinkSection::default(),
            devices: DevicesSection::default(),
            models: vec![ModelSection::pip()],
            aliases: BTreeMap::new(),
            eviction: EvictionSection::default(),
            store: StoreSection::default(),
            streams: StreamsSection::default(),
            supervision: SupervisionSection::default(),
            shutdown: ShutdownSection::default(),
            telemetry: TelemetrySection::default(),
            debug: DebugSection::default(),
        }
    }
}

/// Which cluster the node belongs to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterSection {
    pub(crate) name: String,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) secret_file: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) secret: Option<Hidden>,
    pub(crate) seeds: Vec<String>,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self { name: "plexus".to_owned(), secret_file: None, secret: None, seeds: Vec::new() }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hidden(String);

impl Hidden {
    /// The text, for whoever has to compute with it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Hidden {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Who the node is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NodeSection {
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) name: Option<NodeName>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) data_dir: Option<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) advertise: Option<IpAddr>,
}

/// An address on this machine only.
const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Where clients are answered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HttpSection {
    pub(crate) listen: SocketAddr,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) body_limit: ByteSize,
    pub(crate) connections_max: usize,
    #[serde(with = "humantime_serde")]
    pub(crate) header_timeout: Duration,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self {
            listen: loopback(31313),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            body_limit: ByteSize(Bytes::mib(16)),
            connections_max: 1024,
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// Where Prometheus reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MetricsSection {
    pub(crate) enabled: bool,
    pub(crate) listen: SocketAddr,
}

impl Default for MetricsSection {
    fn default() -> Self {
        Self { enabled: true, listen: loopback(31314) }
    }
}

/// Who is there: the gossip between nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GossipSection {
    pub(crate) listen: SocketAddr,
    #[serde(with = "humantime_serde")]
    pub(crate) interval: Duration,
}

impl Default for GossipSection {
    fn default() -> Self {
        Self { listen: loopback(31315), interval: Duration::from_millis(200) }
    }
}

/// The links over which nodes work together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LinkSection {
    pub(crate) listen: SocketAddr,
    #[serde(with = "humantime_serde")]
    pub(crate) ping_interval: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) ping_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) handshake_timeout: Duration,
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            listen: loopback(31316),
            ping_interval: Duration::from_millis(250),
            ping_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(3),
        }
    }
}

/// What the node may serve on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DevicesSection {
    pub(crate) cpu: bool,
    pub(crate) cpu_memory_share: Fraction,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) cpu_memory: Option<ByteSize>,
    #[serde(deserialize_with = "unset_if_zero")]
    pub(crate) cpu_threads: Option<u32>,
    pub(crate) cuda: CudaDevices,
    pub(crate) cuda_memory_share: Fraction,
}

impl Default for DevicesSection {
    fn default() -> Self {
        let share = |share| Fraction::new(share).expect("a share between 0 and 1");
        Self {
            cpu: true,
            cpu_memory_share: share(0.7),
            cpu_memory: None,
            cpu_threads: None,
            cuda: CudaDevices::Auto,
            cuda_memory_share: share(0.9),
        }
    }
}

/// How models go when room is needed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvictionSection {
    pub(crate) strategy: StrategyName,
    #[serde(with = "humantime_serde")]
    pub(crate) keep_warm: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) idle_unload: Duration,
    pub(crate) defrag_after_cycles: u32,
}

impl Default for EvictionSection {
    fn default() -> Self {
        Self { strategy: StrategyName::Lru, keep_warm: Duration::ZERO, idle_unload: Duration::ZERO, defrag_after_cycles: 50 }
    }
}

/// Where models' files lie and come from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreSection {
    pub(crate) folders: Vec<PathBuf>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) endpoint: Option<String>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) auth_env: Option<String>,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) hf_cache: Option<PathBuf>,
    pub(crate) offline: bool,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StrategyName {
    Lru,
    Priority,
}

/// Deadlines and windows of streams.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StreamsSection {
    #[serde(with = "humantime_serde")]
    pub(crate) accept_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) first_token_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) token_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) client_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(crate) load_timeout: Duration,
    pub(crate) attempts_max: u32,
    pub(crate) window_tokens: u32,
    #[serde(with = "humantime_serde")]
    pub(crate) prompt_time_max: Duration,
}

impl Default for StreamsSection {
    fn default() -> Self {
        Self {
            accept_timeout: Duration::from_secs(2),
            first_token_timeout: Duration::from_secs(120),
            token_timeout: Duration::from_secs(30),
            client_timeout: Duration::from_secs(300),
            load_timeout: Duration::from_secs(300),
            attempts_max: 4,
            window_tokens: 1024,
            prompt_time_max: Duration::ZERO,
        }
    }
}

/// How often an actor may be restarted.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SupervisionSection {
    pub(crate) restarts_max: u32,
    #[serde(with = "humantime_serde")]
    pub(crate) within: Duration,
}

impl Default for SupervisionSection {
    fn default() -> Self {
        Self { restarts_max: 5, within: Duration::from_secs(60) }
    }
}

/// How a node stops.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ShutdownSection {
    #[serde(with = "humantime_serde")]
    pub(crate) drain_timeout: Duration,
}

impl Default for ShutdownSection {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(10) }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// What is told about the node's work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TelemetrySection {
    pub(crate) log_filter: String,
    pub(crate) log_format: LogFormat,
    #[serde(deserialize_with = "unset_if_empty")]
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) otlp_sample_ratio: f64,
    pub(crate) service_name: String,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self {
            log_filter: "info".to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            otlp_sample_ratio: 1.0,
            service_name: "plexus".to_owned(),
        }
    }
}

/// For tests only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DebugSection {
    pub(crate) test_hooks: bool,
}
