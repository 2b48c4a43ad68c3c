//! Pages of our own: health, version, the cluster and its actors.

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use plexus_types::RequestError;
use serde::{Deserialize, Serialize};

use crate::Shared;
use crate::body;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::service::HealthStatus;

/// What `GET /` says.
const GREETING: &str = "\
Plexus. Any node answers for the whole cluster.

POST /v1/chat/completions          OpenAI
POST /v1/completions               OpenAI, legacy
POST /v1/embeddings                OpenAI
POST /v1/messages                  Anthropic
POST /v1/messages/count_tokens     Anthropic
GET  /v1/models                    both; one model: /v1/models/{id}
GET  /v1/models/{id}/endpoint      which node serves it now, and its URL
GET  /v1/models/{id}/capabilities  what it can do
POST /v1/models/load               load a model by hand; so pull, unload, pin, unpin
GET  /v1/cluster                   nodes, devices and replicas
GET  /v1/cluster/actors            the actors of every node
GET  /v1/cluster/explain/{what}    why a model, or a request, is where it is
GET  /health                       200 if something can be served
GET  /discovery                    the machine of this node, and what it can serve
GET  /version                      which build this is
";

/// What is said of a subject that nobody knows.
const UNEXPLAINED: &str = "nothing is known of that: name a model as GET /v1/models lists it, or one of the last requests of a node that \
                           is still there by its x-request-id (req_..., chatcmpl-..., cmpl-..., msg_...)";

/// `GET /` and `HEAD /`: some clients look whether anybody is there before they ask.
pub(crate) async fn greeting() -> &'static str {
    GREETING
}

/// `GET /health`: serviceability, not mere reachability (CX-49).
pub(crate) async fn health(State(api): State<Shared>, Extension(exchange): Extension<Exchange>) -> Response {
    let health = api.inference.health().await;
    if health.status == HealthStatus::Ok {
        return exchange.json(StatusCode::OK, &health);
    }
    let mut response = exchange.json(StatusCode::SERVICE_UNAVAILABLE, &health);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// `GET /version` (CX-12)
pub(crate) async fn version(State(api): State<Shared>, Extension(exchange): Extension<Exchange>) -> Response {
    exchange.json(StatusCode::OK, &api.config.version)
}

/// `GET /v1/cluster`
pub(crate) async fn report(State(api): State<Shared>, Extension(exchange): Extension<Exchange>) -> Response {
    exchange.json(StatusCode::OK, &api.inference.cluster().await)
}

/// `GET /v1/cluster/actors`
pub(crate) async fn actors(State(api): State<Shared>, Extension(exchange): Extension<Exchange>) -> Response {
    exchange.json(StatusCode::OK, &api.inference.actors().await)
}

/// `GET /v1/cluster/explain/{subject}`: of a model, or of a request by the id in its headers or its answer.
pub(crate) async fn explain(
    State(api): State<Shared>,
    Extension(exchange): Extension<Exchange>,
    subject: Result<Path<String>, PathRejection>,
) -> Response {
    let explained = match &subject {
        Ok(Path(subject)) => api.inference.explain(subject).await,
        Err(_) => None,
    };
    match explained {
        Some(explanation) => exchange.json(StatusCode::OK, &explanation),
        None => exchange.failure(&Failure::NotFound(UNEXPLAINED.to_owned())),
    }
}

#[derive(Debug, Deserialize)]
struct KillBody {
    path: Option<String>,
}

#[derive(Debug, Serialize)]
struct Killed<'a> {
    killed: &'a str,
}

/// `POST /v1/cluster/actors/kill`: for tests that watch an actor come back.
pub(crate) async fn kill_actor(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let kill = async {
        let path = body::parse::<KillBody>(&body::read(&api.config, request).await?)?.path;
        let path =
            path.ok_or_else(|| RequestError::invalid("path", "path is missing; GET /v1/cluster/actors lists the paths of this node"))?;
        match api.inference.kill_actor(&path).await {
            None => Err(Failure::NotFound("test hooks are switched off".to_owned())),
            Some(false) => {
                Err(Failure::NotFound("this node has no actor of that path; GET /v1/cluster/actors lists those that it has".to_owned()))
            }
            Some(true) => Ok(path),
        }
    };
    match kill.await {
        Ok(path) => exchange.json(StatusCode::OK, &Killed { killed: &path }).into_response(),
        Err(failure) => exchange.failure(&failure),
    }
}
