//! The words that every part of Plexus shares: identities, units, requests, events, errors and reports. No I/O, no async.

mod catalogue;
mod digest;
mod embed;
mod error;
mod event;
mod ids;
mod quantization;
mod report;
mod request;
mod source;
mod units;

pub use catalogue::{Catalogue, CatalogueEntry, Cost, FilesFetch, FilesFrom, FilesState, Footprint, Limits, ModelFacts, ModelProfile};
pub use digest::{FilesDigest, InvalidDigest};
pub use embed::{EmbedInput, EmbedRequest, Embeddings, ModelKind};
pub use error::{RequestError, Retry, chain};
pub use event::{Delta, FinishReason, GenerateEvent, Journal, StreamEvent, Timing, TokenLogprob, TokenLogprobs, Usage};
pub use ids::{DeviceId, DeviceKind, Generation, InvalidId, ModelId, NodeId, NodeName, ReplicaId, RequestId};
pub use quantization::{InvalidQuantization, Quantization};
pub use report::{
    ActorReport, ClusterReport, ConsideredPlace, DeviceReport, Explanation, ModelFetch, ModelLocation, ModelReport, ModelState, NodeFacts,
    NodeReport, NodeState, NodeSummary, ReplicaLoad, ReplicaReport, ReplicaState,
};
pub use request::{Chat, Constraint, GenerateRequest, Message, Prompt, Role, Sampling, Tool, ToolCall, ToolChoice, TraceContext};
pub use source::{HubSource, InvalidModelSource, ModelSource};
pub use units::Bytes;
