//! Models come and go by hand: `POST /v1/models/load`, `pull`, `unload`, `pin` and `unpin` (CX-44).

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use http::StatusCode;
use plexus_types::{ConsideredPlace, DeviceId, DeviceKind, ModelId, ModelReport, RequestError};
use serde::{Deserialize, Serialize};

use crate::body;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::params;
use crate::service::{LoadModel, LoadedModel, Place};
use crate::{Api, Shared};

/// How our way of running models is called where clients can choose between several, as `GET /discovery` lists it.
pub(crate) const HARNESS: &str = "plexus";
/// Another name for it.
const HARNESS_TOO: &str = "candle";
/// Longest text of a client's that an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 80;

/// What any of the five is told; each refuses what it cannot do.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandBody {
    model_id: Option<String>,
    model: Option<String>,
    node: Option<String>,
    device: Option<DeviceName>,
    devices: Option<Vec<DeviceName>>,
    wait: Option<bool>,
    harness: Option<String>,
    quant: Option<String>,
    tensor_parallel: Option<i64>,
}

/// A device as clients write it: `cuda-1`, or the number of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a device such as \"cuda-1\", or the number of a GPU")]
enum DeviceName {
    Number(u32),
    Text(String),
}

impl DeviceName {
    fn device(&self, param: &str) -> Result<DeviceId, RequestError> {
        match self {
            Self::Number(ordinal) => Ok(DeviceId { kind: DeviceKind::Cuda, ordinal: *ordinal }),
            Self::Text(text) => text.parse().map_err(|_| {
                let text = echo(text);
                RequestError::invalid(param, format!("{param}: {text} is no device; write cpu-0 or cuda-1, as GET /v1/cluster lists them"))
            }),
        }
    }
}

impl HandBody {
    fn model(&self) -> Result<ModelId, RequestError> {
        if let (Some(id), Some(model)) = (&self.model_id, &self.model)
            && id != model
        {
            let message = format!("model_id is {}, but model is {}; one of them is enough", echo(id), echo(model));
            return Err(RequestError::invalid("model_id", message));
        }
        let Some(id) = self.model_id.clone().or_else(|| self.model.clone()) else {
            let message = "model_id is missing; name one of those that GET /v1/models lists";
            return Err(RequestError::invalid("model_id", message));
        };
        params::model(Some(id))
    }

    fn place(&self) -> Result<Place, RequestError> {
        let node = self.node.as_ref().map(|name| {
            name.parse().map_err(|_| {
                let message = format!("node: {} is not the name of a node; GET /v1/cluster lists them", echo(name));
                RequestError::invalid("node", message)
            })
        });
        let mut devices = Vec::new();
        for name in self.devices.iter().flatten() {
            devices.push(name.device("devices")?);
        }
        if let Some(name) = &self.device {
            devices.push(name.device("device")?);
        }
        devices.sort_unstable();
        devices.dedup();
        if let [_, _, ..] = devices[..] {
            let names: Vec<String> = devices.iter().map(DeviceId::to_string).collect();
            let message = format!(
                "devices are {}, but a model lies on one; name one, and load the model once on each that is to have a replica",
                names.join(" and ")
            );
            return Err(RequestError::invalid("devices", message));
        }
        Ok(Place { node: node.transpose()?, device: devices.first().copied() })
    }

    /// What is to be loaded, as far as the request says it; [`Self::check_quant`] asks the catalogue.
    fn load(&self) -> Result<LoadModel, RequestError> {
        if let Some(harness) = self.harness.as_deref().filter(|harness| ![HARNESS, HARNESS_TOO].contains(harness)) {
            let message = format!("harness is {}, but {HARNESS} is the only one there is; leave it out", echo(harness));
            return Err(RequestError::invalid("harness", message));
        }
        if let Some(shards) = self.tensor_parallel.filter(|shards| *shards != 1) {
            let message = format!(
                "tensor_parallel is {shards}, but a model lies on one device; leave it out, and if the model does not fit, give its \
                 [[models]] entry fewer bits (quant)"
            );
            return Err(RequestError::invalid("tensor_parallel", message));
        }
        Ok(LoadModel { model: self.model()?, place: self.place()?, wait: self.wait.unwrap_or(true) })
    }

    /// A model is held in the bits that its entry says, or that its files have: a request may repeat that, not change it.
    fn check_quant(&self, model: &ModelReport) -> Result<(), RequestError> {
        let Some(asked) = self.quant.as_deref() else { return Ok(()) };
        let said = model.quant.map(|quant| quant.to_string());
        let tag = model.id.as_str().split_once(':').map(|(_, tag)| tag);
        if said.as_deref().is_some_and(|said| said.eq_ignore_ascii_case(asked)) || tag.is_some_and(|tag| tag.eq_ignore_ascii_case(asked)) {
            return Ok(());
        }
        let has =
            said.map_or_else(|| "has no quant, so it is served as its files are".to_owned(), |said| format!("has quant = \"{said}\""));
        let message = format!(
            "quant is {}, but the entry of the model '{}' {has}; leave quant out, or change the [[models]] entry and start its nodes anew",
            echo(asked),
            model.id
        );
        Err(RequestError::invalid("quant", message))
    }
}

fn echo(text: &str) -> String {
    format!("{:?}", text.chars().take(ECHO_CHARS_MAX).collect::<String>())
}

async fn read(api: &Api, request: Request) -> Result<HandBody, Failure> {
    body::parse(&body::read(&api.config, request).await?)
}

/// The model, if the cluster has heard of it.
async fn known(api: &Api, model: &ModelId) -> Result<ModelReport, RequestError> {
    tracing::Span::current().record("model", model.as_str());
    let found = api.inference.all_models().await.into_iter().find(|known| known.id == *model);
    found.ok_or_else(|| RequestError::model_not_found(model))
}

#[derive(Debug, Serialize)]
struct Loaded<'a> {
    status: &'static str,
    model_id: &'a ModelId,
    decision: &'a str,
    considered: &'a [ConsideredPlace],
}

/// `POST /v1/models/load`: answered when the model answers, or as soon as the load has begun if the client does not wait. A client that
/// leaves meanwhile does not stop the load.
pub(crate) async fn load(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let load = async {
        let hand = read(&api, request).await?;
        let load = hand.load()?;
        hand.check_quant(&known(&api, &load.model).await?)?;
        Ok::<_, Failure>(api.inference.load_model(load).await?)
    };
    match load.await {
        Ok(LoadedModel { loaded, explanation }) => {
            let status = if loaded { "loaded" } else { "loading" };
            let (model_id, decision) = (&explanation.model, explanation.decision.as_str());
            exchange.json(StatusCode::OK, &Loaded { status, model_id, decision, considered: &explanation.considered })
        }
        Err(failure) => exchange.failure(&failure),
    }
}

#[derive(Debug, Serialize)]
struct Pulled<'a> {
    status: &'static str,
    model_id: &'a ModelId,
}

/// `POST /v1/models/pull`: answered when the model's files are on the node, which does not load it.
pub(crate) async fn pull(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let pull = async {
        let hand = read(&api, request).await?;
        let (model, place) = (hand.model()?, hand.place()?);
        if place.device.is_some() {
            let message = "files lie on a node, whichever device loads them; leave device out";
            return Err(RequestError::invalid("device", message).into());
        }
        known(&api, &model).await?;
        api.inference.pull_model(&model, place.node.as_ref()).await?;
        Ok::<_, Failure>(model)
    };
    match pull.await {
        Ok(model) => exchange.json(StatusCode::OK, &Pulled { status: "pulled", model_id: &model }),
        Err(failure) => exchange.failure(&failure),
    }
}

#[derive(Debug, Serialize)]
struct Unloaded<'a> {
    status: &'static str,
    model_id: &'a ModelId,
    from: &'a [String],
}

/// `POST /v1/models/unload`: from one place, or from everywhere.
pub(crate) async fn unload(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let unload = async {
        let hand = read(&api, request).await?;
        let (model, place) = (hand.model()?, hand.place()?);
        known(&api, &model).await?;
        let from = api.inference.unload_model(&model, &place).await?;
        Ok::<_, Failure>((model, from))
    };
    match unload.await {
        Ok((model, from)) => exchange.json(StatusCode::OK, &Unloaded { status: "unloaded", model_id: &model, from: &from }),
        Err(failure) => exchange.failure(&failure),
    }
}

#[derive(Debug, Serialize)]
struct Pinned<'a> {
    status: &'static str,
    model_id: &'a ModelId,
    on: &'a [String],
}

/// `POST /v1/models/pin`: wherever the model is loaded, or on one node, it stays until it is unpinned.
pub(crate) async fn pin(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    set_pinned(&api, exchange, request, true).await
}

/// `POST /v1/models/unpin`
pub(crate) async fn unpin(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    set_pinned(&api, exchange, request, false).await
}

async fn set_pinned(api: &Api, exchange: Exchange, request: Request, pinned: bool) -> Response {
    let pin = async {
        let hand = read(api, request).await?;
        let model = hand.model()?;
        let place = hand.place()?;
        if place.device.is_some() {
            let message = "a model is pinned on a node, whichever of its devices hold it; leave device out";
            return Err(RequestError::invalid("device", message).into());
        }
        known(api, &model).await?;
        let on = api.inference.pin_model(&model, place.node.as_ref(), pinned).await?;
        Ok::<_, Failure>((model, on))
    };
    match pin.await {
        Ok((model, on)) => {
            let status = if pinned { "pinned" } else { "unpinned" };
            exchange.json(StatusCode::OK, &Pinned { status, model_id: &model, on: &on })
        }
        Err(failure) => exchange.failure(&failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> HandBody {
        body::parse(format!(r#"{{"model_id":"m"{fields}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn a_place_is_a_node_and_one_device_however_it_is_spelled() {
        // CX-44
        let device = |text: &str| Some(text.parse().unwrap());
        for (fields, node, expected) in [
            ("", None, None),
            (r#","node":"n2""#, Some("n2"), None),
            (r#","device":"cpu-0""#, None, device("cpu-0")),
            (r#","devices":[]"#, None, None),
            (r#","devices":[1]"#, None, device("cuda-1")),
            (r#","device":"cuda-1","devices":["cuda-1",1]"#, None, device("cuda-1")),
        ] {
            let place = read(fields).place().unwrap();
            assert_eq!((place.node, place.device), (node.map(|node| node.parse().unwrap()), expected), "{fields}");
        }
    }

    #[test]
    fn what_a_node_does_not_do_is_refused_by_name_with_the_remedy() {
        for (fields, param, remedy) in [
            (r#","devices":[0,1]"#, "devices", "name one"),
            (r#","device":"gpu""#, "device", "cuda-1"),
            (r#","node":"N 1""#, "node", "GET /v1/cluster"),
            (r#","model":"other""#, "model_id", "one of them is enough"),
            (r#","harness":"llamacpp""#, "harness", "leave it out"),
            (r#","tensor_parallel":2"#, "tensor_parallel", "quant"),
        ] {
            let Err(RequestError::Invalid { message, param: found }) = read(fields).load() else { panic!("{fields} was taken") };
            assert!(found.as_deref() == Some(param) && message.contains(param) && message.contains(remedy), "{fields}: {message}");
        }
        let unknown = body::parse::<HandBody>(br#"{"model_id":"m","nod":"n2"}"#).unwrap_err();
        let Failure::Request(RequestError::Invalid { message, param }) = unknown else { panic!("{unknown:?}") };
        assert!(message.starts_with("there is no field `nod`; there are `model_id`, ") && param.as_deref() == Some("nod"), "{message}");
        let nameless: HandBody = body::parse(b"{}").unwrap();
        let refusal = nameless.load().unwrap_err();
        assert!(matches!(&refusal, RequestError::Invalid { param: Some(param), .. } if param == "model_id"), "{refusal:?}");
        for fields in [r#","harness":"plexus""#, r#","harness":"candle""#, r#","tensor_parallel":1"#, r#","wait":false"#] {
            assert_eq!(read(fields).load().unwrap().wait, !fields.contains("wait"));
        }
    }
}
