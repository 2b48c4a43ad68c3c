//! OpenAI's error envelope: `{"error":{"message","type","param","code"}}` (CX-76).

use http::StatusCode;
use plexus_types::RequestError;
use serde::Serialize;

use crate::failure::Failure;

/// The envelope.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope {
    error: Detail,
}

#[derive(Debug, Serialize)]
struct Detail {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The envelope for `failure` of a request whose field `input` is what models read.
pub(crate) fn envelope(failure: &Failure, input: Option<&str>) -> Envelope {
    let (_, kind, code) = classify(failure);
    let param = match failure {
        Failure::Request(RequestError::Invalid { param, .. } | RequestError::WrongModality { param, .. }) => param.clone(),
        Failure::Request(RequestError::ModelNotFound { .. }) => Some("model".to_owned()),
        Failure::Request(RequestError::TextLength { input, .. }) => Some(input.clone()),
        Failure::Request(RequestError::ContextLength { .. }) => input.map(str::to_owned),
        _ => None,
    };
    Envelope { error: Detail { message: failure.to_string(), kind, param, code } }
}

/// The status for `failure`.
pub(crate) fn status(failure: &Failure) -> StatusCode {
    classify(failure).0
}

/// Status, type and code. Clients act on them: 404 tries another model, `context_length_exceeded` compacts, 429 and 5xx ask again.
fn classify(failure: &Failure) -> (StatusCode, &'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    match failure {
        Failure::Request(error) => match error {
            RequestError::Invalid { .. } => (StatusCode::BAD_REQUEST, INVALID, None),
            RequestError::ModelNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            RequestError::ContextLength { .. } | RequestError::TextLength { .. } => {
                (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded"))
            }
            RequestError::WrongModality { .. } => (StatusCode::UNPROCESSABLE_ENTITY, INVALID, Some("wrong_modality")),
            RequestError::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded")),
            RequestError::Unavailable { .. } | RequestError::Unservable { .. } | RequestError::Lost { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("service_unavailable"))
            }
            RequestError::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("server_error")),
        },
        Failure::Json(_) => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_json")),
        Failure::ContentType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_content_type")),
        Failure::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
        Failure::BodyMissing(_) => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout")),
        Failure::NotFound(_) => (StatusCode::NOT_FOUND, INVALID, Some("not_found")),
        Failure::WrongMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_supported")),
        Failure::Forbidden(_) => (StatusCode::FORBIDDEN, INVALID, Some("forbidden")),
    }
}
