//! The one door between the HTTP dialects and the cluster.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::Stream;
use plexus_types::{
    ActorReport, ClusterReport, DeviceId, DeviceReport, EmbedRequest, Embeddings, Explanation, GenerateEvent, GenerateRequest, ModelId,
    ModelReport, NodeName, ReplicaId, ReplicaReport, RequestError, RequestId,
};
use serde::Serialize;

use crate::discovery::Gpu;

/// The cluster, as the HTTP dialects see it. The real one asks the actors; a scripted one serves the tests of the dialects.
#[async_trait]
pub trait Inference: Send + Sync + 'static {
    /// Starts a generation. Runs inside the request's span, whose trace context goes along to the serving node.
    ///
    /// The first event is [`GenerateEvent::Started`] or [`GenerateEvent::Failed`]; the last is `Done` or `Failed`.
    /// Dropping the [`Generation`] cancels it within one step of the device.
    async fn generate(&self, request: GenerateRequest) -> Generation;

    /// Counts the tokens of a request's prompt, as the model's own template and tokenizer give them.
    async fn count_tokens(&self, request: GenerateRequest) -> Result<u32, RequestError>;

    /// The vectors of some texts, in their order, scaled to length 1. `id` is what the client is told to ask about the request by.
    async fn embed(&self, id: RequestId, request: EmbedRequest) -> Result<Embedded, RequestError>;

    /// The merged catalogue, by id.
    async fn models(&self) -> Vec<ModelReport>;
    /// The same with those that are listed and can be held by no node, and why.
    async fn all_models(&self) -> Vec<ModelReport> {
        self.models().await
    }

    /// The view of the node that answers.
    async fn cluster(&self) -> ClusterReport;

    /// Asks the actors of every reachable node for their state.
    async fn actors(&self) -> Vec<NodeActors>;

    /// Loads a model, or begins to.
    async fn load_model(&self, load: LoadModel) -> Result<LoadedModel, RequestError>;

    /// Brings a model's files to a node, to this one if none is named, without loading it. Answers when they are there.
    async fn pull_model(&self, model: &ModelId, node: Option<&NodeName>) -> Result<(), RequestError>;

    /// Unloads a model from one place, or from everywhere. Says from where.
    ///
    /// Errors: it is nowhere, it is pinned, or it has requests.
    async fn unload_model(&self, model: &ModelId, place: &Place) -> Result<Vec<String>, RequestError>;

    /// Pins a model where it is loaded, on one node or on all, or lets it go again. Says where.
    async fn pin_model(&self, model: &ModelId, node: Option<&NodeName>, pinned: bool) -> Result<Vec<String>, RequestError>;

    /// Why a model is where it is, or not there; or where a request went, and why. `None`: it is unknown, or too long ago.
    async fn explain(&self, subject: &str) -> Option<Explanation>;

    /// Ends the named actor of this node, as a crash would, so that a test can watch it come back.
    /// `None`: test hooks are switched off. `Some(false)`: there is no such actor.
    async fn kill_actor(&self, path: &str) -> Option<bool>;

    /// What the node that answers is able to do now.
    async fn health(&self) -> Health;

    /// The GPUs that the node that answers serves on.
    async fn gpus(&self) -> Vec<Gpu>;
}

/// The vectors of some texts, and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The vectors.
    pub embeddings: Embeddings,
    /// The node that made them; of many texts, the first.
    pub node: NodeName,
    /// Why that node, in a line.
    pub route: String,
}

/// A model to be loaded by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadModel {
    /// Which.
    pub model: ModelId,
    /// Where; wherever it does best if nothing is named.
    pub place: Place,
    /// Answer when it is loaded, rather than when the load has begun.
    pub wait: bool,
}

/// A place in the cluster, as far as somebody names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: Option<NodeName>,
    /// The device.
    pub device: Option<DeviceId>,
}

impl Place {
    /// Is the replica there?
    pub fn holds(&self, replica: &ReplicaId) -> bool {
        self.node.as_ref().is_none_or(|node| *node == replica.node.name) && self.device.is_none_or(|device| device == replica.device)
    }
}

/// What became of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedModel {
    /// Does it answer already?
    pub loaded: bool,
    /// Where it goes, and why there.
    pub explanation: Explanation,
}

/// The actors of one node, or why they could not be asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeActors {
    /// The node.
    pub node: NodeName,
    /// Its actors, in the order of the supervision tree; empty if the node did not answer.
    pub actors: Vec<ActorReport>,
    /// Why the node could not be asked.
    pub error: Option<String>,
}

/// Serviceability, not mere reachability (CX-49).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// `ok` if some model can be served through this node, `loading` while the first models are read, `draining`, else `unavailable`.
    pub status: HealthStatus,
    /// The node that answers.
    pub node: NodeName,
    /// Nodes that it can reach, itself included.
    pub nodes_up: usize,
    /// Models that can be served.
    pub models_loaded: usize,
    /// Requests whose client is connected here.
    pub streams: usize,
    /// Since it was started.
    pub uptime_s: u64,
    /// What it is to hold from its start.
    pub activation: Activation,
    /// Its devices.
    pub devices: Vec<DeviceHealth>,
    /// Its replicas, with how busy and how fast each is (CX-46).
    pub replicas: Vec<ReplicaHealth>,
}

/// A device of the node that answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceHealth {
    /// What everybody knows of it.
    #[serde(flatten)]
    pub report: DeviceReport,
    /// The share of the last seconds in which its thread was at work, percent; absent while it is not open, or does not answer.
    pub utilization_pct: Option<f32>,
}

/// A replica of the node that answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplicaHealth {
    /// What everybody knows of it.
    #[serde(flatten)]
    pub report: ReplicaReport,
    /// What only its own node knows; absent if it does not answer.
    #[serde(flatten)]
    pub vitals: Option<ReplicaVitals>,
}

/// What a replica says of itself when it is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ReplicaVitals {
    /// Requests that it did not take.
    #[serde(flatten)]
    pub rejected: Rejected,
    /// Memory for keys and values, MiB; absent while it is not loaded.
    pub kv_budget_mb: Option<f64>,
    /// Of that, what no running request holds, MiB.
    pub kv_available_mb: Option<f64>,
}

/// Requests that a replica did not take since it was started, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Batch and queue were full, or one with a key took the place of one without.
    #[serde(rename = "rejected_full")]
    pub full: u64,
    /// Whoever asked had as many requests as each may.
    #[serde(rename = "rejected_key_limit")]
    pub key_limit: u64,
    /// They have waited for a place for as long as they may.
    #[serde(rename = "rejected_late")]
    pub late: u64,
    /// Their prompts do not fit.
    #[serde(rename = "rejected_too_long")]
    pub too_long: u64,
    /// It was not loaded, or not any more.
    #[serde(rename = "rejected_not_loaded")]
    pub not_loaded: u64,
}

impl Rejected {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self { full, key_limit, late, too_long, not_loaded } = self;
        full + key_limit + late + too_long + not_loaded
    }
}

/// The models that a node is to hold from its start, as far as it has not held them yet (CX-50).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Activation {
    /// Being fetched or loaded, or next.
    pub pending: Vec<ModelId>,
    /// Not to be had: one does not keep the others waiting.
    pub failed: Vec<NotActivated>,
}

/// A model that a node is to hold from its start, and cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotActivated {
    /// Which.
    pub model: ModelId,
    /// Why.
    pub reason: String,
}

/// The word that `/health` says. Only `Ok` is answered with status 200, all others with 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Some model can be served.
    Ok,
    /// Models are being read.
    Loading,
    /// The node is stopping.
    Draining,
    /// Nothing can be served.
    Unavailable,
}

/// A generation under way: its id and its events.
pub struct Generation {
    id: RequestId,
    events: Pin<Box<dyn Stream<Item = GenerateEvent> + Send>>,
}

impl Generation {
    /// Wraps the events of the request `id`.
    pub fn new(id: RequestId, events: impl Stream<Item = GenerateEvent> + Send + 'static) -> Self {
        Self { id, events: Box::pin(events) }
    }

    /// The request's id, the same in headers, logs and traces.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Stream for Generation {
    type Item = GenerateEvent;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GenerateEvent>> {
        self.events.as_mut().poll_next(context)
    }
}
