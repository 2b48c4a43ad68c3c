//! Which models there are, and how each is to be served.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Bytes, DeviceId, DeviceKind, FilesDigest, ModelId, ModelKind, ModelSource, NodeName, Quantization};

/// How a model is to be served: an entry of a catalogue (CX-23).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// What clients call it.
    pub id: ModelId,
    /// Where its files come from.
    pub source: ModelSource,
    /// Hold its weights in fewer bits than its files do; absent: as they are.
    pub quant: Option<Quantization>,
    /// A small model with the same vocabulary that guesses tokens for it, where that pays; absent: none.
    pub draft: Option<ModelSource>,
    /// Guess tokens from a sequence's own text, where that pays.
    pub prompt_lookup: bool,
    /// Tokens that its context holds, if fewer than the model can.
    pub context_length: Option<u32>,
    /// Most requests in its batch.
    pub running_max: u32,
    /// Most requests that wait for a place in it.
    pub waiting_max: u32,
    /// Longest wait for a place in the batch.
    pub waiting_time: Duration,
    /// Most requests of one principal that run or wait; absent: as many as fit.
    pub principal_max: Option<u32>,
    /// Most requests without a key that run or wait, all together; absent: as many as one principal may.
    pub anonymous_max: Option<u32>,
    /// Load it at the start of each node that lists it, rather than when it is first asked for.
    pub preload: bool,
    /// Memory that it takes, as its owner reckons; counts until its files are known.
    pub memory: Option<Bytes>,
    /// The kind and number of the device to hold it; absent: any.
    pub device: Option<DeviceId>,
    /// Only nodes with so many devices...
    pub min_devices: u32,
    /// ...of at least so much memory each, of what models may use of a device, may hold it (CX-24).
    pub min_device_memory: Option<Bytes>,
    /// Only these nodes may hold it; empty: any.
    pub pinned_on: Vec<NodeName>,
    /// A replica of it is never unloaded but by hand.
    pub pinned: bool,
    /// Its class: a model may displace residents of its own class or below, none above (CX-26).
    pub residency_priority: u32,
    /// Most replicas in the cluster.
    pub replicas_max: u32,
    /// What clients are told of its limits, where that is less than what follows from its files.
    pub limit: Limits,
    /// What it costs.
    pub cost: Cost,
    /// What it can do beside what its files tell, in words of the owner.
    pub capabilities: Vec<String>,
}

impl ModelProfile {
    /// The class of a model that says nothing (CX-23).
    pub const DEFAULT_PRIORITY: u32 = 100;
    /// Most requests in the batch of a model that says nothing.
    pub const DEFAULT_RUNNING_MAX: u32 = 8;
    /// Most requests that wait for a model that says nothing.
    pub const DEFAULT_WAITING_MAX: u32 = 64;
    /// Longest wait for a place in a model that says nothing.
    pub const DEFAULT_WAITING_TIME: Duration = Duration::from_secs(120);
    /// Most replicas of a model that says nothing.
    pub const DEFAULT_REPLICAS_MAX: u32 = 4;

    /// The keys of an entry in which this one differs from another of the same model.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            id: _,
            source,
            quant,
            draft,
            prompt_lookup,
            context_length,
            running_max,
            waiting_max,
            waiting_time,
            principal_max,
            anonymous_max,
            preload,
            memory,
            device,
            min_devices,
            min_device_memory,
            pinned_on,
            pinned,
            residency_priority,
            replicas_max,
            limit,
            cost,
            capabilities,
        } = self; // all of them, so that a new one is not forgotten
        let same = [
            ("source", *source == other.source),
            ("quant", *quant == other.quant),
            ("draft", *draft == other.draft),
            ("prompt_lookup", *prompt_lookup == other.prompt_lookup),
            ("context_length", *context_length == other.context_length),
            ("running_max", *running_max == other.running_max),
            ("waiting_max", *waiting_max == other.waiting_max),
            ("waiting_time", *waiting_time == other.waiting_time),
            ("principal_max", *principal_max == other.principal_max),
            ("anonymous_max", *anonymous_max == other.anonymous_max),
            ("preload", *preload == other.preload),
            ("memory", *memory == other.memory),
            ("device", *device == other.device),
            ("min_devices", *min_devices == other.min_devices),
            ("min_device_memory", *min_device_memory == other.min_device_memory),
            ("pinned_on", *pinned_on == other.pinned_on),
            ("pinned", *pinned == other.pinned),
            ("residency_priority", *residency_priority == other.residency_priority),
            ("replicas_max", *replicas_max == other.replicas_max),
            ("limit", *limit == other.limit),
            ("cost", *cost == other.cost),
            ("capabilities", *capabilities == other.capabilities),
        ];
        same.into_iter().filter_map(|(key, same)| (!same).then_some(key)).collect()
    }

    /// A model of which no more is said than its name and where it comes from.
    pub fn new(id: ModelId, source: ModelSource) -> Self {
        Self {
            id,
            source,
            quant: None,
            draft: None,
            prompt_lookup: true,
            context_length: None,
            running_max: Self::DEFAULT_RUNNING_MAX,
            waiting_max: Self::DEFAULT_WAITING_MAX,
            waiting_time: Self::DEFAULT_WAITING_TIME,
            principal_max: None,
            anonymous_max: None,
            preload: false,
            memory: None,
            device: None,
            min_devices: 1,
            min_device_memory: None,
            pinned_on: Vec::new(),
            pinned: false,
            residency_priority: Self::DEFAULT_PRIORITY,
            replicas_max: Self::DEFAULT_REPLICAS_MAX,
            limit: Limits::default(),
            cost: Cost::default(),
            capabilities: Vec::new(),
        }
    }
}

/// Tokens that a request may have; absent: as many as the model holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Prompt and answer together.
    pub context: Option<u32>,
    /// The prompt.
    pub input: Option<u32>,
    /// The answer.
    pub output: Option<u32>,
}

/// Dollars per million tokens. Absent is unknown; zero is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Of prompts.
    pub input: Option<f64>,
    /// Of answers.
    pub output: Option<f64>,
    /// Of prompt tokens that were still in memory.
    pub cache_read: Option<f64>,
    /// Of prompt tokens that are kept.
    pub cache_write: Option<f64>,
}

/// What one node knows of models: what its files list, and what lies in its folders.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    /// Grows with each change, so that an older catalogue never replaces a newer one.
    pub revision: u64,
    /// When the newest of the files that it was read from was written, milliseconds since 1970.
    pub modified_ms: u64,
    /// By id, each once.
    pub entries: Vec<CatalogueEntry>,
    /// Further names of models.
    pub aliases: BTreeMap<ModelId, ModelId>,
}

/// A model in the eyes of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// How it is to be served.
    pub profile: ModelProfile,
    /// True if nobody listed it: it lay in a model folder.
    pub found: bool,
    /// Its files on this node.
    pub files: FilesState,
}

/// A model's files on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesState {
    /// They have not been looked at yet.
    Unknown,
    /// They are not on this node.
    Absent,
    /// They are coming.
    Fetching(FilesFetch),
    /// They are here, and say this.
    Present(ModelFacts),
    /// They are here, or were to be fetched, and cannot be served; this is why.
    Refused(String),
}

/// How far files are that are being fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesFetch {
    /// Bytes that are here.
    pub done: Bytes,
    /// Bytes in all; 0 while unknown.
    pub total: Bytes,
    /// Bytes that came in a second of late; absent if none did.
    pub per_second: Option<Bytes>,
    /// Where they come from.
    pub from: FilesFrom,
    /// What went wrong at the last try, if nothing has come since.
    pub failure: Option<String>,
}

impl FilesFetch {
    /// The share of the bytes that is here, from 0 to 1; 0 while it is unknown how many they are.
    pub fn share(&self) -> f64 {
        self.done.0 as f64 / self.total.0.max(1) as f64
    }
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesFrom {
    /// Not decided yet.
    Unknown,
    /// The hub, or its mirror, at this address.
    Hub(String),
    /// So many other nodes.
    Nodes(u32),
    /// This node, once it has them itself.
    Awaited(NodeName),
}

impl fmt::Display for FilesFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("somewhere that is still looked for"),
            Self::Hub(address) => f.write_str(address),
            Self::Nodes(1) => f.write_str("another node"),
            Self::Nodes(n) => write!(f, "{n} other nodes"),
            Self::Awaited(node) => write!(f, "the node '{node}', once it has them itself"),
        }
    }
}

/// A sentence about the files, such as `its files are being fetched from http://hub: 40 % of 1.50 GiB`.
impl fmt::Display for FilesFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its files are being fetched from {}", self.from)?;
        if self.total > Bytes(0) {
            write!(f, ": {:.0} % of {}", 100.0 * self.share(), self.total)?;
        }
        self.failure.as_ref().map_or(Ok(()), |why| write!(f, "; the last try failed: {why}"))
    }
}

/// What a model's files say that others want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// What it is for.
    pub kind: ModelKind,
    /// Tokens that the model can hold.
    pub context_length: u32,
    /// Memory on the host's processors.
    pub cpu: Footprint,
    /// Memory on a GPU.
    pub cuda: Footprint,
    /// Bytes of its files.
    pub file_bytes: Bytes,
    /// Does it call tools?
    pub tools: bool,
    /// Does it think before it answers?
    pub reasoning: bool,
    /// What its files hold, in short; absent where nothing was compared, as of what is in the binary.
    pub digest: Option<FilesDigest>,
    /// They are a copy that came from other nodes, rather than where the model's source says.
    pub is_copy: bool,
}

impl ModelFacts {
    /// Memory on a device of this kind.
    pub fn footprint(&self, kind: DeviceKind) -> Footprint {
        match kind {
            DeviceKind::Cpu => self.cpu,
            DeviceKind::Cuda => self.cuda,
        }
    }
}

/// Memory that a model takes on a kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Its weights, resident.
    pub weights: Bytes,
    /// Keys and values of one token.
    pub kv_per_token: Bytes,
    /// What steps work in, and the vocabulary.
    pub working: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_says_from_whom_how_far_and_what_failed() {
        let unknown = FilesFetch { done: Bytes(0), total: Bytes(0), per_second: None, from: FilesFrom::Unknown, failure: None };
        assert_eq!(unknown.to_string(), "its files are being fetched from somewhere that is still looked for");
        let hub = FilesFetch { done: Bytes(30), total: Bytes(100), from: FilesFrom::Hub("http://hub".into()), ..unknown.clone() };
        assert_eq!(hub.to_string(), "its files are being fetched from http://hub: 30 % of 100 B");
        let awaited = FilesFetch { from: FilesFrom::Awaited("b".parse().unwrap()), failure: Some("x".into()), ..unknown };
        let wanted = "its files are being fetched from the node 'b', once it has them itself; the last try failed: x";
        assert_eq!(awaited.to_string(), wanted);
    }
}
