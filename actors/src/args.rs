//! All that a node is told at its start. Built from `cluster.toml` by the binary, or by hand in tests and benches.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plexus_api::ApiConfig;
use plexus_engine::error::EngineError;
use plexus_engine::executor::Executor;
use plexus_store::{NamesFile, StoreConfig};
use plexus_types::{DeviceId, ModelId, ModelProfile, NodeFacts};

use crate::evictor::core::EvictionConfig;
use crate::evictor::pins::PinsFile;
use crate::membership::NetTiming;
use crate::secret::ClusterSecret;

/// All that a node is told at its start. Sockets are bound already: what cannot be bound is refused before anything runs.
#[derive(Debug, Clone)]
pub struct NodeArgs {
    /// Name of the cluster: nodes of another name are not heard.
    pub cluster: String,
    /// Who this node is and where it can be reached.
    pub facts: NodeFacts,
    /// The secret that all nodes of the cluster share.
    pub secret: ClusterSecret,
    /// Sockets, bound by the caller, kept over restarts of the actors that use them.
    pub sockets: Sockets,
    /// Where to look for other nodes at first: `host:port` of their gossip.
    pub seeds: Vec<String>,
    /// Intervals and deadlines of membership and links.
    pub timing: NetTiming,
    /// Devices to serve on.
    pub devices: Vec<DeviceSpec>,
    /// The models that this node lists.
    pub catalogue: Listing,
    /// How models go when room is needed.
    pub eviction: EvictionConfig,
    /// Where what is pinned by hand is kept.
    pub pins: PinsFile,
    /// Where models' files are kept, and where they come from.
    pub store: StoreConfig,
    /// Deadlines and windows of streams.
    pub streams: StreamsConfig,
    /// The HTTP front.
    pub http: HttpConfig,
    /// How often an actor may be restarted before the node gives up.
    pub restarts: RestartBudget,
    /// Longest wait for running streams when the node stops.
    pub drain_timeout: Duration,
    /// May actors be killed over HTTP? For tests only.
    pub test_hooks: bool,
}

/// The models that a node lists, before their files have been looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// When the newest of the files that it was read from was written, milliseconds since 1970.
    pub modified_ms: u64,
    /// What is listed.
    pub models: Vec<ModelProfile>,
    /// Further names of models.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Folders whose models are served without being listed.
    pub folders: Vec<PathBuf>,
    /// Where it is kept by which names those were found.
    pub names: NamesFile,
}

/// The sockets of a node.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// Takes HTTP connections.
    pub http: Arc<TcpListener>,
    /// Takes links from other nodes.
    pub link: Arc<TcpListener>,
    /// Gossips.
    pub gossip: Arc<UdpSocket>,
}

/// Opens a device, on the thread that will own it; called again when the device is restarted.
pub type OpenDevice = Arc<dyn Fn() -> Result<Box<dyn Executor>, EngineError> + Send + Sync>;

/// A device to serve on.
#[derive(Clone)]
pub struct DeviceSpec {
    /// Which device.
    pub id: DeviceId,
    /// How to open it.
    pub open: OpenDevice,
    /// A step that takes longer hangs, and so does a part of a load that takes [`PARTS_LONGER`] times as long: the device is opened anew.
    pub hang_after: Duration,
}

impl DeviceSpec {
    /// A device that has the usual time.
    pub fn new(id: DeviceId, open: OpenDevice) -> Self {
        Self { id, open, hang_after: Self::HANG_AFTER }
    }

    /// A usual `hang_after`: the largest chunk of a prompt takes seconds even on a slow processor.
    const HANG_AFTER: Duration = Duration::from_secs(120);
}

/// A part of a load, which reads up to a layer from whatever disk there is, may take so many times as long as a step.
pub const PARTS_LONGER: u32 = 5;

impl fmt::Debug for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSpec").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Deadlines and windows of streams.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamsConfig {
    /// A replica that has not said `Accepted` within this time is given up.
    pub accept_timeout: Duration,
    /// A replica that has not sent the first token within this time after it accepted is given up.
    pub first_token_timeout: Duration,
    /// A replica that falls silent for so long between two tokens is given up.
    pub token_timeout: Duration,
    /// An answer of which its client has taken nothing for this long, while there was some, is broken off.
    pub client_timeout: Duration,
    /// A model that is not loaded within this time, or finds no room, is no longer waited for.
    pub load_timeout: Duration,
    /// Most replicas tried for one request.
    pub attempts_max: u32,
    /// Tokens that a replica may be ahead of the client.
    pub window_tokens: u32,
    /// A prompt that a replica of this node would read for longer, at the speed that it has measured, is refused; absent: none is.
    pub prompt_time_max: Option<Duration>,
}

/// The HTTP front.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The dialects.
    pub api: ApiConfig,
    /// Most connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// A client that has not sent its request's headers within this time is cut off.
    pub header_timeout: Duration,
}

/// How often an actor may be restarted before the node gives up and ends, so that whoever runs it starts it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartBudget {
    /// Most restarts of one actor...
    pub restarts_max: u32,
    /// ...within this time.
    pub within: Duration,
}
