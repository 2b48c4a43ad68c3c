//! Anthropic's error envelope: `{"type":"error","error":{"type","message"},"request_id"}` (CX-76).

use http::StatusCode;
use plexus_types::{RequestError, RequestId};
use serde::Serialize;

use crate::failure::Failure;

/// The envelope.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope {
    #[serde(rename = "type")]
    kind: &'static str,
    error: Detail,
    request_id: String,
}

#[derive(Debug, Serialize)]
struct Detail {
    #[serde(rename = "type")]
    kind: &'static str,
    message: String,
}

/// The envelope for `failure` of the request `id`.
pub(crate) fn envelope(failure: &Failure, id: RequestId) -> Envelope {
    let error = Detail { kind: classify(failure).1, message: failure.to_string() };
    Envelope { kind: "error", error, request_id: format!("req_{id}") }
}

/// The status for `failure`.
pub(crate) fn status(failure: &Failure) -> StatusCode {
    classify(failure).0
}

/// Status and type. The vendor has no status for the wrong kind of input: it is an invalid request there.
fn classify(failure: &Failure) -> (StatusCode, &'static str) {
    const INVALID: &str = "invalid_request_error";
    match failure {
        Failure::Request(error) => match error {
            RequestError::Invalid { .. }
            | RequestError::ContextLength { .. }
            | RequestError::TextLength { .. }
            | RequestError::WrongModality { .. } => (StatusCode::BAD_REQUEST, INVALID),
            RequestError::ModelNotFound { .. } => (StatusCode::NOT_FOUND, "not_found_error"),
            RequestError::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            RequestError::Unavailable { .. } | RequestError::Lost { .. } => (overloaded(), "overloaded_error"),
            RequestError::Unservable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "api_error"),
            RequestError::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
        },
        Failure::Json(_) => (StatusCode::BAD_REQUEST, INVALID),
        Failure::ContentType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID),
        Failure::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
        Failure::BodyMissing(_) => (StatusCode::REQUEST_TIMEOUT, "timeout_error"),
        Failure::NotFound(_) => (StatusCode::NOT_FOUND, "not_found_error"),
        Failure::WrongMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, INVALID),
        Failure::Forbidden(_) => (StatusCode::FORBIDDEN, "permission_error"),
    }
}

/// The vendor's own status for "not now".
fn overloaded() -> StatusCode {
    StatusCode::from_u16(529).expect("three digits make a status")
}
