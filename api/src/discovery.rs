//! What the machine of a node is, and what this build can do with it: `GET /discovery` (CX-45).

use std::fmt;
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::Response;
use http::StatusCode;
use plexus_types::{NodeName, ReplicaState};
use serde::Serialize;

use crate::Shared;
use crate::by_hand::HARNESS;
use crate::dialect::Exchange;

/// The machine of a node, and what its build serves. What nobody knows is absent here, and null for clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// What the machine calls itself.
    pub hostname: Option<String>,
    /// Its system, with the release of it.
    pub os: Option<String>,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// Its instruction set, as `uname -m` says it.
    pub architecture: Option<String>,
    /// Its processors.
    pub cpu: Cpu,
    /// Memory of the machine, or of the container in which the node runs, MiB.
    pub memory_total_mb: Option<u64>,
    /// Of that, what could be had now, MiB.
    pub memory_available_mb: Option<u64>,
    /// The CUDA toolkit that the binary was built with.
    pub cuda_version: Option<String>,
    /// The NVIDIA driver.
    pub driver_version: Option<String>,
    /// Why the node serves on no GPU; absent if it does.
    pub cuda_unavailable_reason: Option<String>,
    /// Families of models that this build serves, as `model_type` names them.
    pub families: Vec<String>,
    /// Formats of weights that it reads.
    pub weight_formats: Vec<String>,
}

/// The processors of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// What their maker calls them.
    pub name: Option<String>,
    /// Threads that the node can run at once.
    pub threads: Option<usize>,
    /// Sets of instructions that they have and kernels use, the best last.
    pub instruction_sets: Vec<String>,
}

/// A GPU that a node serves on. What is absent is not known, or not yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its number, as in `cuda-0`.
    pub index: u32,
    /// What its maker calls it.
    pub name: Option<String>,
    /// All of its memory, MiB.
    pub vram_total_mb: Option<u64>,
    /// Such as `9.0`.
    pub compute_capability: Option<String>,
}

/// Looks at the machine, each time anew: its memory is not always the same.
#[derive(Clone)]
pub struct LookAtHost(Arc<dyn Fn() -> Host + Send + Sync>);

impl LookAtHost {
    /// Looks in this way, which must not block for long.
    pub fn new(look: impl Fn() -> Host + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }
}

impl Default for LookAtHost {
    /// Sees nothing.
    fn default() -> Self {
        Self::new(Host::default)
    }
}

impl fmt::Debug for LookAtHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookAtHost")
    }
}

#[derive(Debug, Serialize)]
struct Discovery<'a> {
    node: Option<&'a NodeName>,
    #[serde(flatten)]
    host: Host,
    devices: Vec<Gpu>,
    harnesses: [&'static str; 1],
    /// The largest context of what this node has loaded.
    max_prompt_tokens: Option<u32>,
}

/// `GET /discovery`: of the node that answers.
pub(crate) async fn discovery(State(api): State<Shared>, Extension(exchange): Extension<Exchange>) -> Response {
    let devices = api.inference.gpus().await;
    let cluster = api.inference.cluster().await;
    let me = cluster.nodes.iter().find(|node| node.this_node);
    let loaded = me.iter().flat_map(|node| &node.summary.replicas).filter(|replica| replica.state == ReplicaState::Loaded);
    let discovery = Discovery {
        node: me.map(|node| &node.facts.id.name),
        host: (api.config.host.0)(),
        devices,
        harnesses: [HARNESS],
        max_prompt_tokens: loaded.map(|replica| replica.context_length).max(),
    };
    exchange.json(StatusCode::OK, &discovery)
}
