//! What the node tells the HTTP front.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use plexus_types::Bytes;
use serde::Serialize;
use tracing::Span;

use crate::discovery::LookAtHost;

/// Called with the span of each request before it is entered, and with the request's headers: the place to set its remote parent.
pub type OnSpan = Arc<dyn Fn(&Span, &HeaderMap) + Send + Sync>;

/// How the HTTP front behaves.
#[derive(Clone)]
pub struct ApiConfig {
    /// Largest body that is read. 16 MiB hold the longest context of any model served, with room for escapes.
    pub body_max: Bytes,
    /// Names by which this node may be called in the `Host` header, beside IP addresses and `localhost`: a page on the web that makes
    /// its own name point here (DNS rebinding) is refused. `None` switches the check off, for a node behind a proxy that does it.
    pub host_names: Option<Vec<String>>,
    /// Origins of web pages that may call this node from a browser, each exactly as the `Origin` header has it
    /// (`https://chat.example.org`). Empty: none may.
    pub cors_origins: Vec<String>,
    /// What `GET /version` says.
    pub version: VersionInfo,
    /// What `GET /discovery` says of the machine.
    pub host: LookAtHost,
    /// Sets the remote parent of a request's span from its `traceparent` and `tracestate` headers.
    pub on_span: Option<OnSpan>,
    /// The time that answers carry as `created`.
    pub now: fn() -> SystemTime,
}

impl ApiConfig {
    /// A front for loopback: bodies up to 16 MiB, `Host` checked, no web pages, the real time.
    pub fn new(version: VersionInfo) -> Self {
        Self {
            body_max: Bytes::mib(16),
            host_names: Some(Vec::new()),
            cors_origins: Vec::new(),
            version,
            host: LookAtHost::default(),
            on_span: None,
            now: SystemTime::now,
        }
    }

    /// Now, in seconds since 1970.
    pub(crate) fn now_s(&self) -> u64 {
        (self.now)().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConfig")
            .field("body_max", &self.body_max)
            .field("host_names", &self.host_names)
            .field("cors_origins", &self.cors_origins)
            .field("version", &self.version)
            .field("on_span", &self.on_span.is_some())
            .finish_non_exhaustive()
    }
}

/// Which build answers (CX-12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// Version of the release.
    pub version: String,
    /// Commit that it was built from; `-dirty` at its end if the work tree had changes.
    pub git_sha: String,
    /// When it was built, RFC 3339.
    pub build_time: String,
    /// The compiler.
    pub rustc: String,
    /// The profile: `debug` or `release`.
    pub profile: String,
    /// Features switched on.
    pub features: Vec<String>,
}

impl VersionInfo {
    /// What OpenAI's `system_fingerprint` says: answers of one build with one seed are comparable.
    pub(crate) fn fingerprint(&self) -> String {
        let sha: String = self.git_sha.chars().take(12).collect();
        format!("plexus-{}-{sha}", self.version)
    }
}
