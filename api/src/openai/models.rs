//! The model list in OpenAI's shape, with our own fields beside it (CX-20, CX-22, CX-28).

use plexus_types::{DeviceId, ModelKind, ModelReport, ReplicaState};
use serde::Serialize;

/// `GET /v1/models`
#[derive(Debug, Serialize)]
pub(crate) struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// One model of the merged catalogue.
#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    loaded: bool,
    status: &'static str,
    max_model_len: u32,
    /// What it is for: `generate` or `embed`.
    capabilities: [ModelKind; 1],
    locations: Vec<Location<'a>>,
}

#[derive(Debug, Serialize)]
struct Location<'a> {
    node: &'a str,
    device: DeviceId,
    status: &'static str,
    memory_bytes: u64,
}

/// The whole catalogue.
pub(crate) fn list(models: &[ModelReport]) -> List<'_> {
    List { object: "list", data: models.iter().map(one).collect() }
}

/// One model.
pub(crate) fn one(model: &ModelReport) -> Model<'_> {
    let locations = model.locations.iter().map(|location| Location {
        node: &location.node,
        device: location.device,
        status: location.state.word(),
        memory_bytes: location.memory.0,
    });
    Model {
        id: model.id.as_str(),
        object: "model",
        created: model.created,
        owned_by: "plexus",
        loaded: model.loaded,
        status: status(model),
        max_model_len: model.context_length,
        capabilities: [model.kind],
        locations: locations.collect(),
    }
}

/// The best that any replica can say.
fn status(model: &ModelReport) -> &'static str {
    let rank = |state: &&ReplicaState| match state {
        ReplicaState::Loaded => 3,
        ReplicaState::Loading => 2,
        ReplicaState::Recovering => 1,
        ReplicaState::Failed(_) => 0,
    };
    model.locations.iter().map(|location| &location.state).max_by_key(rank).map_or("unloaded", ReplicaState::word)
}
