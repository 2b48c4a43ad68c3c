//! The model list in OpenAI's shape, with our own fields beside it (CX-20, CX-22, CX-28). What nobody knows is left out, never zero.

use plexus_types::{DeviceId, ModelId, ModelKind, ModelReport, ModelState, Quantization, ReplicaState};
use serde::Serialize;

use crate::limits::TokenLimits;

/// `GET /v1/models`
#[derive(Debug, Serialize)]
pub(crate) struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// One model of the merged catalogue.
#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    id: &'a ModelId,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    loaded: bool,
    status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// How far its load is, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f32>,
    /// How far its files are, while a node fetches them.
    #[serde(skip_serializing_if = "Option::is_none")]
    fetch: Option<Fetch<'a>>,
    #[serde(flatten)]
    does: Does<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quant: Option<Quantization>,
    feasible_on: &'a [String],
    locations: Vec<Location<'a>>,
    /// Why no node could load it again once it is unloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'a str>,
}

/// What a model can do, as in its entry, and what goes in and comes out (CX-44).
#[derive(Debug, Serialize)]
pub(crate) struct Abilities<'a> {
    model_id: &'a ModelId,
    #[serde(flatten)]
    does: Does<'a>,
    modalities: Modalities,
}

/// What both of them say.
#[derive(Debug, Serialize)]
struct Does<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    alias_of: Option<&'a ModelId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_input_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    /// What it is for, `generate` or `embed`; then `tools`, `reasoning`, and the words of its owner.
    capabilities: Vec<&'a str>,
    tool_call: bool,
    reasoning: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<Cost>,
}

/// Kinds of data.
#[derive(Debug, Serialize)]
struct Modalities {
    input: [&'static str; 1],
    output: [&'static str; 1],
}

/// What its owner says of its limits, tokens.
#[derive(Debug, Serialize)]
struct Limit {
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<u32>,
}

/// Dollars per million tokens; what is absent is unknown, and 0.0 is free.
#[derive(Debug, Serialize)]
struct Cost {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_read: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_write: Option<f64>,
}

/// Files on their way to a node.
#[derive(Debug, Serialize)]
struct Fetch<'a> {
    /// In words: an address, or so many nodes.
    from: String,
    done_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    /// What went wrong at the last try, if nothing has come since.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Location<'a> {
    node: &'a str,
    device: DeviceId,
    status: &'static str,
    /// Why it failed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    memory_bytes: u64,
    pinned: bool,
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
        reason: if let ReplicaState::Failed(why) = &location.state { Some(why) } else { None },
        memory_bytes: location.memory.0,
        pinned: location.pinned,
    });
    Model {
        id: &model.id,
        object: "model",
        created: model.created,
        owned_by: "plexus",
        loaded: model.loaded,
        status: model.state.word(),
        reason: if let ModelState::Failed(why) = &model.state { Some(why) } else { None },
        progress: if let ModelState::Loading(progress) = &model.state { Some(*progress) } else { None },
        fetch: model.fetch.as_ref().map(|fetch| Fetch {
            from: fetch.from.to_string(),
            done_bytes: fetch.done.0,
            total_bytes: Some(fetch.total.0).filter(|total| *total > 0),
            bytes_per_second: fetch.per_second.map(|speed| speed.0),
            failure: fetch.failure.as_deref(),
        }),
        does: Does::of(model),
        quant: model.quant,
        feasible_on: &model.feasible_on,
        locations: locations.collect(),
        warning: model.warning.as_deref(),
    }
}

/// What a model can do. Nothing is loaded for that.
pub(crate) fn abilities(model: &ModelReport) -> Abilities<'_> {
    let written = match model.kind {
        ModelKind::Generate => "text",
        ModelKind::Embed => "embedding",
    };
    Abilities { model_id: &model.id, does: Does::of(model), modalities: Modalities { input: ["text"], output: [written] } }
}

impl<'a> Does<'a> {
    fn of(model: &'a ModelReport) -> Self {
        let TokenLimits { context, input, output } = TokenLimits::of(model);
        Self {
            alias_of: model.alias_of.as_ref(),
            max_model_len: context,
            max_input_tokens: input,
            max_output_tokens: output,
            capabilities: capabilities(model),
            tool_call: model.tools,
            reasoning: model.reasoning,
            limit: limit(model),
            cost: cost(model),
        }
    }
}

/// Each word once.
fn capabilities(model: &ModelReport) -> Vec<&str> {
    let kind = match model.kind {
        ModelKind::Generate => "generate",
        ModelKind::Embed => "embed",
    };
    let from_files = [(true, kind), (model.tools, "tools"), (model.reasoning, "reasoning")];
    let mut words: Vec<&str> = from_files.into_iter().filter_map(|(able, word)| able.then_some(word)).collect();
    for word in &model.capabilities {
        if !words.contains(&word.as_str()) {
            words.push(word);
        }
    }
    words
}

fn limit(model: &ModelReport) -> Option<Limit> {
    let plexus_types::Limits { context, input, output } = model.limit;
    [context, input, output].iter().any(Option::is_some).then_some(Limit { context, input, output })
}

fn cost(model: &ModelReport) -> Option<Cost> {
    let plexus_types::Cost { input, output, cache_read, cache_write } = model.cost;
    [input, output, cache_read, cache_write].iter().any(Option::is_some).then_some(Cost { input, output, cache_read, cache_write })
}
