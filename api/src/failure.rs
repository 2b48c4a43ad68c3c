//! Whatever can keep a request from its answer, before a dialect gives it a status and an envelope.

use std::time::Duration;

use http::Method;
use plexus_types::{Bytes, RequestError};

/// When to ask again for what somebody has to mend first.
const MENDED_AFTER: Duration = Duration::from_secs(60);

/// Why a request is not answered: by the cluster, or already at the door.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The cluster, or a translation, refused it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Json(String),
    /// The body says that it is something else. Required because a browser sends JSON to another site only after a preflight.
    #[error("the content-type is {given}; send the body as JSON with the header 'content-type: application/json'")]
    ContentType {
        /// What the header says.
        given: String,
    },
    /// The body is too large.
    #[error("the body is larger than {limit}, the most that this server reads; send less")]
    BodyTooLarge {
        /// The limit.
        limit: Bytes,
    },
    /// The body did not arrive in time, or the connection broke.
    #[error("the body did not arrive: {0}")]
    BodyMissing(&'static str),
    /// There is nothing here.
    #[error("{0}")]
    NotFound(String),
    /// There is something here, but not for this method.
    #[error("{method} is not possible on {path}; GET / lists the endpoints and their methods")]
    WrongMethod {
        /// The method used.
        method: Method,
        /// The path.
        path: String,
    },
    /// The guard refused it.
    #[error("{0}")]
    Forbidden(String),
}

impl Failure {
    /// Why no replica has taken the request, if it got as far as that.
    pub(crate) fn why_not_routed(&self) -> Option<String> {
        match self {
            Self::Request(
                error @ (RequestError::Overloaded { .. }
                | RequestError::Unavailable { .. }
                | RequestError::Unservable { .. }
                | RequestError::ModelNotFound { .. }),
            ) => Some(format!("it is refused: {error}")),
            _ => None,
        }
    }

    /// When to ask again, if that may help.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Request(RequestError::Overloaded { retry_after, .. } | RequestError::Unavailable { retry_after, .. }) => {
                Some(*retry_after)
            }
            Self::Request(RequestError::Unservable { .. }) => Some(MENDED_AFTER),
            // Another replica may answer at once.
            Self::Request(RequestError::Lost { .. }) => Some(Duration::from_secs(1)),
            Self::Request(
                RequestError::Invalid { .. }
                | RequestError::ModelNotFound { .. }
                | RequestError::ContextLength { .. }
                | RequestError::TextLength { .. }
                | RequestError::WrongModality { .. }
                | RequestError::Internal { .. },
            )
            | Self::Json(_)
            | Self::ContentType { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyMissing(_)
            | Self::NotFound(_)
            | Self::WrongMethod { .. }
            | Self::Forbidden(_) => None,
        }
    }
}
