//! The words that every part of Plexus shares: identities, units, requests, events, errors and reports. No I/O, no async.

mod embed;
mod error;
mod event;
mod ids;
mod report;
mod request;
mod units;

pub use embed::{EmbedInput, EmbedRequest, Embeddings, ModelKind};
pub use error::{RequestError, Retry};
pub use event::{Delta, FinishReason, GenerateEvent, Journal, StreamEvent, Timing, TokenLogprob, TokenLogprobs, Usage};
pub use ids::{DeviceId, DeviceKind, Generation, InvalidId, ModelId, NodeId, NodeName, ReplicaId, RequestId};
pub use report::{
    ActorReport, ClusterReport, DeviceReport, ModelLocation, ModelReport, NodeFacts, NodeReport, NodeState, NodeSummary, ReplicaLoad,
    ReplicaReport, ReplicaState,
};
pub use request::{Chat, Constraint, GenerateRequest, Message, Prompt, Role, Sampling, Tool, ToolCall, ToolChoice, TraceContext};
pub use units::Bytes;
