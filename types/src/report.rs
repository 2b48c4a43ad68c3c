//! What nodes say about themselves and what one node believes of all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::seconds;
use crate::{Bytes, Cost, DeviceId, FilesDigest, FilesFetch, Limits, ModelId, ModelKind, NodeId, NodeName, Quantization};

/// What a node tells everybody by gossip: small, slow to change, and only a hint until its certificate confirms who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Who it is.
    pub id: NodeId,
    /// Version of its binary.
    pub version: String,
    /// Where it takes links from other nodes.
    pub link: SocketAddr,
    /// Where it answers HTTP.
    pub http: SocketAddr,
    /// Where it gossips.
    pub gossip: SocketAddr,
}

/// What a node tells its peers over their links whenever it changes: devices and replicas in full.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// Grows with each change, so that an older summary never replaces a newer one.
    pub revision: u64,
    /// True once the node takes no new requests.
    pub draining: bool,
    /// Its devices.
    pub devices: Vec<DeviceReport>,
    /// Its replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// A device and its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Which device of its node.
    pub id: DeviceId,
    /// What its maker calls it.
    pub name: String,
    /// Memory that models may use.
    pub memory_total: Bytes,
    /// Of that, promised to replicas.
    pub memory_used: Bytes,
}

/// What a replica is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Weights are being read.
    Loading,
    /// It answers.
    Loaded,
    /// Its actor or device failed and is being brought back.
    Recovering,
    /// It could not be loaded; this is why.
    Failed(String),
}

impl ReplicaState {
    /// The state in one word, as `/v1/models` shows it (CX-22).
    pub fn word(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Recovering => "recovering",
            Self::Failed(_) => "failed",
        }
    }
}

/// A replica, with what a router wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The model.
    pub model: ModelId,
    /// The device that holds it.
    pub device: DeviceId,
    /// What it is doing.
    pub state: ReplicaState,
    /// Tokens that its context holds, prompt and answer together; 0 while unknown.
    pub context_length: u32,
    /// Memory promised to it.
    pub memory: Bytes,
    /// How busy it is.
    pub load: ReplicaLoad,
    /// What it is for; [`ModelKind::Generate`] while unknown.
    pub kind: ModelKind,
    /// Its class: a model may displace residents of its own class or below.
    pub residency_priority: u32,
    /// It goes by hand only.
    pub pinned: bool,
    /// How long nobody has used it, when this was said; absent while it has requests, or is not loaded.
    #[serde(rename = "idle_s", with = "seconds::option")]
    pub idle: Option<Duration>,
    /// How long it took to load, once its files were here; absent until it is.
    #[serde(rename = "load_s", with = "seconds::option")]
    pub load_time: Option<Duration>,
    /// How far its load is, from 0 to 1.
    pub progress: f32,
    /// Digests of the beginnings of prompts that are still in its prefix cache, sorted; absent: as said before. Not shown to people.
    pub prefixes: Option<Arc<[u32]>>,
    /// What the files hold that it was loaded from, in short; absent while it is not loaded, or where nothing was compared.
    pub digest: Option<FilesDigest>,
    /// Does it call tools? False while it is not loaded.
    #[serde(default)]
    pub tools: bool,
    /// Does it think before it answers? False while it is not loaded.
    #[serde(default)]
    pub reasoning: bool,
}

/// How busy and how fast a replica is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaLoad {
    /// Requests in the batch.
    pub running: u32,
    /// Most requests that the batch takes.
    pub running_max: u32,
    /// Requests that wait for a place.
    pub waiting: u32,
    /// Most requests that may wait.
    pub waiting_max: u32,
    /// Measured speed of reading prompts, tokens per second; 0 while unknown.
    pub prefill_tokens_per_s: f32,
    /// Measured speed of generating, tokens per second over the whole batch; 0 while unknown.
    pub decode_tokens_per_s: f32,
    /// Tokens of an answer, in the mean of the last; 0 while unknown.
    #[serde(default)]
    pub answer_tokens: f32,
}

/// What the node that answers believes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It answers, and requests may go there.
    Up,
    /// Gossip says that it lives, but there is no link to it: nothing is sent there.
    Unreachable,
    /// It finishes what it has and takes nothing new.
    Draining,
}

/// One node, as the node that answers sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Addresses and version.
    #[serde(flatten)]
    pub facts: NodeFacts,
    /// May requests go there?
    pub state: NodeState,
    /// True for the node that answers.
    pub this_node: bool,
    /// Age of what follows.
    #[serde(rename = "age_s", with = "seconds")]
    pub age: Duration,
    /// Round trip of the last ping; absent for the node that answers and for unreachable ones.
    #[serde(rename = "round_trip_s", with = "seconds::option")]
    pub round_trip: Option<Duration>,
    /// Devices and replicas.
    pub summary: NodeSummary,
}

/// The whole cluster, as one node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Name of the cluster.
    pub cluster: String,
    /// Every node that is not gone, the answering one first, then by name.
    pub nodes: Vec<NodeReport>,
    /// Where the catalogues of nodes contradict each other, and which counts.
    pub conflicts: Vec<String>,
    /// Models whose files nodes are fetching.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetches: Vec<ModelFetch>,
}

/// A model whose files a node is fetching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFetch {
    /// The model.
    pub model: ModelId,
    /// The node.
    pub node: NodeName,
    /// How far they are.
    #[serde(flatten)]
    pub fetch: FilesFetch,
}

/// One actor of a node, asked in person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActorReport {
    /// Its place in the supervision tree, for example `node/device/cpu-0`.
    pub path: String,
    /// Name of its state; `not answering` when it did not reply in time, `restarting` between two lives.
    pub state: String,
    /// How often it was restarted.
    pub restarts: u32,
    /// Messages in its mailbox.
    pub waiting: u64,
    /// How long its mailbox has made no progress while messages wait.
    #[serde(rename = "stalled_s", with = "seconds")]
    pub stalled: Duration,
    /// Why it last ended.
    pub last_error: Option<String>,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelLocation {
    /// The node.
    pub node: String,
    /// The device.
    pub device: DeviceId,
    /// What the replica is doing.
    pub state: ReplicaState,
    /// Memory promised to it.
    pub memory: Bytes,
    /// It goes by hand only.
    pub pinned: bool,
}

/// A model of the merged catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// What clients call it.
    pub id: ModelId,
    /// True if some replica answers.
    pub loaded: bool,
    /// The best that any of its replicas can say.
    pub state: ModelState,
    /// Tokens that its context holds; the tightest over its replicas (CX-29).
    pub context_length: u32,
    /// When it was first seen, seconds since 1970.
    pub created: u64,
    /// What it is for.
    pub kind: ModelKind,
    /// Does it call tools?
    pub tools: bool,
    /// Does it think before it answers?
    pub reasoning: bool,
    /// What else it can do, in words of its owner.
    pub capabilities: Vec<String>,
    /// What its owner says of its limits.
    pub limit: Limits,
    /// What it costs.
    pub cost: Cost,
    /// The model that this is another name of.
    pub alias_of: Option<ModelId>,
    /// The fewer bits in which its weights are held, if its entry says so.
    pub quant: Option<Quantization>,
    /// The nodes that can hold it, or do.
    pub feasible_on: Vec<String>,
    /// Its replicas.
    pub locations: Vec<ModelLocation>,
    /// How far its files are, while a node fetches them.
    pub fetch: Option<FilesFetch>,
    /// Why no node could load it again once it is unloaded, if that is so.
    pub warning: Option<String>,
}

/// What a model of the merged catalogue is doing (CX-22).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Some replica answers.
    Loaded,
    /// It is being loaded; so far, from 0 to 1.
    Loading(f32),
    /// Its replica failed and is being brought back.
    Recovering,
    /// It is loaded when it is asked for.
    Unloaded,
    /// It could not be loaded; this is why.
    Failed(String),
}

impl ModelState {
    /// The state in one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Loading(_) => "loading",
            Self::Recovering => "recovering",
            Self::Unloaded => "unloaded",
            Self::Failed(_) => "failed",
        }
    }
}

/// Why something went where it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The model.
    pub model: ModelId,
    /// What was decided, in a sentence.
    pub decision: String,
    /// Every place that was considered, the best first.
    pub considered: Vec<ConsideredPlace>,
    /// How long ago.
    #[serde(rename = "age_s", with = "seconds")]
    pub age: Duration,
}

/// A place in the eyes of whoever decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsideredPlace {
    /// `node/device`.
    pub place: String,
    /// What it would cost, or why not there.
    pub verdict: String,
    /// Was it chosen?
    pub chosen: bool,
}
