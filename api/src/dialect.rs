//! Which vendor's words a request is answered in.

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use plexus_types::{RequestError, RequestId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::endpoint::endpoint;
use crate::failure::Failure;
use crate::generate::mark_route;
use crate::{Api, Shared, anthropic, openai};

/// Tells the vendors' own clients whether to ask again by themselves; without it they do after any 503.
const SHOULD_RETRY: &str = "x-should-retry";

/// A vendor's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// The dialect of a path. Only the model list is shared by both vendors: there the header that Anthropic's clients send decides.
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        let anthropic = path.starts_with("/v1/messages") || (path.starts_with("/v1/models") && headers.contains_key("anthropic-version"));
        if anthropic { Self::Anthropic } else { Self::OpenAi }
    }

    /// The header in which this vendor's clients look for the request's id.
    pub(crate) fn id_header(self) -> &'static str {
        match self {
            Self::OpenAi => "x-request-id",
            Self::Anthropic => "request-id",
        }
    }
}

/// One request and what its answer must carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    /// The id that the client sees; that of the generation, once there is one.
    pub(crate) id: RequestId,
    pub(crate) dialect: Dialect,
    /// The field of the request that models read.
    pub(crate) input: &'static str,
    /// Whose key came with it, as a hash.
    pub(crate) principal: Option<u64>,
}

impl Exchange {
    /// A request for `path`, with these headers.
    pub(crate) fn new(id: RequestId, path: &str, headers: &HeaderMap) -> Self {
        let input = match path {
            "/v1/embeddings" => "input",
            "/v1/completions" => "prompt",
            _ => "messages",
        };
        Self { id, dialect: Dialect::of(path, headers), input, principal: principal(headers) }
    }

    /// The response that says why there is no answer.
    pub(crate) fn failure(&self, failure: &Failure) -> Response {
        log(failure);
        let mut response = match self.dialect {
            Dialect::OpenAi => self.json(openai::error::status(failure), &openai::error::envelope(failure, Some(self.input))),
            Dialect::Anthropic => self.json(anthropic::error::status(failure), &anthropic::error::envelope(failure, self.id)),
        };
        if let Some(after) = failure.retry_after() {
            // Whole seconds, rounded up: a client that comes early is refused again.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if matches!(failure, Failure::Request(RequestError::Unservable { .. })) {
            response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }

    /// The response that says why a model has not answered: in a header, too, if no replica has taken the request.
    pub(crate) fn unanswered(&self, failure: &Failure) -> Response {
        let mut response = self.failure(failure);
        if let Some(why) = failure.why_not_routed() {
            mark_route(&mut response, &why);
        }
        response
    }

    /// A response of JSON.
    pub(crate) fn json(&self, status: StatusCode, value: &impl Serialize) -> Response {
        let json = serde_json::to_vec(value).expect("our answers have text keys and no failing serializer");
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.mark(&mut response);
        response
    }

    /// Puts the request's id into the response's headers.
    pub(crate) fn mark(&self, response: &mut Response) {
        let id = HeaderValue::from_str(&format!("req_{}", self.id)).expect("hexadecimal digits are visible ASCII");
        response.headers_mut().insert(self.dialect.id_header(), id);
    }
}

/// Tells clients apart by the key that they send, whether it opens anything or not. The key itself is not kept.
fn principal(headers: &HeaderMap) -> Option<u64> {
    let key = headers.get("x-api-key").or_else(|| headers.get(header::AUTHORIZATION)).filter(|key| !key.is_empty())?;
    let digest = Sha256::digest(key.as_bytes());
    Some(u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")))
}

/// Logs what somebody should look at: the client alone knows of everything else.
pub(crate) fn log(failure: &Failure) {
    use plexus_types::RequestError::{Internal, Lost};
    if let Failure::Request(error @ (Internal { .. } | Lost { .. })) = failure {
        tracing::warn!(%error, "a request failed");
    }
}

/// What may be said behind the `?` of `GET /v1/models`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ModelsQuery {
    /// Also what no node can hold, with the reason.
    #[serde(default)]
    all: bool,
}

/// `GET /v1/models`
pub(crate) async fn models(
    State(api): State<Shared>,
    Extension(exchange): Extension<Exchange>,
    query: Result<Query<ModelsQuery>, QueryRejection>,
) -> Response {
    // Clients of either vendor may send words of their own there (`limit`, `after_id`).
    let all = query.is_ok_and(|Query(query)| query.all);
    let models = if all { api.inference.all_models().await } else { api.inference.models().await };
    match exchange.dialect {
        Dialect::OpenAi => exchange.json(StatusCode::OK, &openai::models::list(&models)),
        Dialect::Anthropic => exchange.json(StatusCode::OK, &anthropic::models::list(&models)),
    }
}

/// `GET /v1/models/{id}`, `GET /v1/models/{id}/endpoint` and `GET /v1/models/{id}/capabilities`; an id may contain a slash.
pub(crate) async fn model(
    State(api): State<Shared>,
    Extension(exchange): Extension<Exchange>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(id)) = id else {
        return exchange.failure(&Failure::NotFound("the model's name in the path is not valid UTF-8".to_owned()));
    };
    show_model(&api, exchange, &id).await
}

/// `GET /v1/models/load` and the like: what is done by hand has these paths for other methods, and a model may be called so.
pub(crate) async fn model_named_so(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, uri: Uri) -> Response {
    show_model(&api, exchange, uri.path().rsplit('/').next().unwrap_or_default()).await
}

/// What may be asked of a model, behind its id in the path.
const ENDPOINT: &str = "endpoint";
const CAPABILITIES: &str = "capabilities";

/// A model's entry, or what is asked of it behind its id. An id comes first: a model may be called `some/endpoint`.
async fn show_model(api: &Api, exchange: Exchange, path: &str) -> Response {
    let models = api.inference.all_models().await; // whoever names one is told what is wrong with it
    let find = |id: &str| models.iter().find(|model| model.id.as_str() == id);
    if let Some(model) = find(path) {
        return match exchange.dialect {
            Dialect::OpenAi => exchange.json(StatusCode::OK, &openai::models::one(model)),
            Dialect::Anthropic => exchange.json(StatusCode::OK, &anthropic::models::one(model)),
        };
    }
    let (id, asked) = match path.rsplit_once('/') {
        Some((id, asked @ (ENDPOINT | CAPABILITIES))) => (id, asked),
        Some(_) | None => (path, ""),
    };
    let not_found = || exchange.failure(&crate::params::model_not_found(id).into());
    match find(id) {
        Some(model) if asked == CAPABILITIES => exchange.json(StatusCode::OK, &openai::models::abilities(model)),
        Some(model) => {
            let cluster = api.inference.cluster().await;
            endpoint(model, &cluster).map_or_else(not_found, |endpoint| exchange.json(StatusCode::OK, &endpoint))
        }
        None => not_found(),
    }
}

/// Any path that is not ours.
pub(crate) async fn no_route(Extension(exchange): Extension<Exchange>, method: Method, uri: Uri) -> Response {
    exchange.failure(&Failure::NotFound(format!("there is no {method} {}; GET / lists the endpoints", uri.path())))
}

/// A path that is ours, with another method.
pub(crate) async fn wrong_method(Extension(exchange): Extension<Exchange>, method: Method, uri: Uri) -> Response {
    exchange.failure(&Failure::WrongMethod { method, path: uri.path().to_owned() })
}
