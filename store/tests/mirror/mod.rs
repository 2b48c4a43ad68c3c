//! A mirror on loopback that speaks the hub's API, and fails as it is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use serde_json::json;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a mirror fails.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Every answer with a file's bytes ends in a cut connection after so many bytes, for so many answers.
    pub(crate) cut: Option<(usize, usize)>,
    /// No file's bytes beyond so many in all are sent while this is set; the connection stays open.
    pub(crate) stall_after: Option<u64>,
    /// Files are shorter than the listing says by so many bytes.
    pub(crate) shorter_by: usize,
    /// One byte of each large file is another.
    pub(crate) corrupt: bool,
    /// The listing tells names only.
    pub(crate) bare_listing: bool,
    /// Nobody says by which hash content goes.
    pub(crate) no_hash: bool,
    /// Ranges are ignored.
    pub(crate) no_ranges: bool,
    /// The listing claims this size for each large file.
    pub(crate) claimed_size: Option<u64>,
    /// Everything is answered with this status and `X-Error-Code`.
    pub(crate) refuse: Option<(u16, &'static str)>,
    /// The listing says how many numbers the model consists of.
    pub(crate) parameters: Option<u64>,
    /// So many requests are answered with status 503 first.
    pub(crate) busy: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) listings: AtomicUsize,
    pub(crate) file_requests: AtomicUsize,
    pub(crate) bytes: AtomicU64,
    /// What the hub, and the place it points to, were told as authorization.
    pub(crate) hub_tokens: Mutex<Vec<Option<String>>>,
    pub(crate) store_tokens: Mutex<Vec<Option<String>>>,
}

#[derive(Clone)]
pub(crate) struct Mirror {
    pub(crate) repo: String,
    pub(crate) files: Arc<BTreeMap<String, Bytes>>,
    pub(crate) faults: Arc<Mutex<Faults>>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) port: u16,
}

impl Mirror {
    pub(crate) async fn start(repo: &str, files: impl IntoIterator<Item = (&str, Vec<u8>)>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mirror = Self {
            repo: repo.to_owned(),
            files: Arc::new(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.into())).collect()),
            faults: Arc::default(),
            seen: Arc::default(),
            port: listener.local_addr().unwrap().port(),
        };
        let app = Router::new()
            .route("/api/models/{org}/{name}", get(exists))
            .route("/api/models/{org}/{name}/revision/{revision}", get(listing))
            .route("/{org}/{name}/resolve/{commit}/{*file}", get(resolve))
            .route("/store/{sha256}", get(stored))
            .with_state(mirror.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        mirror
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn fail(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.seen.bytes.load(Ordering::SeqCst)
    }

    fn refusal(&self) -> Option<Response> {
        let mut faults = self.faults.lock().unwrap();
        if faults.busy > 0 {
            faults.busy -= 1;
            return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
        }
        let (status, code) = faults.refuse?;
        let mut response = StatusCode::from_u16(status).unwrap().into_response();
        if !code.is_empty() {
            response.headers_mut().insert("x-error-code", code.parse().unwrap());
        }
        Some(response)
    }
}

/// Large files go by their SHA-256, and lie elsewhere.
pub(crate) fn is_large(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".safetensors")
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn token(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::AUTHORIZATION)?.to_str().unwrap().to_owned())
}

async fn exists(State(mirror): State<Mirror>, Path((org, name)): Path<(String, String)>) -> StatusCode {
    if format!("{org}/{name}") == mirror.repo { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn listing(
    State(mirror): State<Mirror>,
    Path((org, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    mirror.seen.listings.fetch_add(1, Ordering::SeqCst);
    mirror.seen.hub_tokens.lock().unwrap().push(token(&headers));
    if let Some(refusal) = mirror.refusal() {
        return refusal;
    }
    if format!("{org}/{name}") != mirror.repo {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    }
    if revision != "main" && revision != COMMIT {
        return StatusCode::NOT_FOUND.into_response();
    }
    let faults = mirror.faults.lock().unwrap().clone();
    let sibling = |(name, bytes): (&String, &Bytes)| {
        let size = faults.claimed_size.filter(|_| is_large(name)).unwrap_or(bytes.len() as u64);
        match (faults.bare_listing, is_large(name)) {
            _ if faults.no_hash => json!({"rfilename": name, "size": size, "blobId": "v1"}),
            (true, _) => json!({"rfilename": name}),
            (false, true) => json!({"rfilename": name, "size": size, "blobId": "f".repeat(40),
                "lfs": {"sha256": sha256(bytes), "size": size, "pointerSize": 135}}),
            (false, false) => json!({"rfilename": name, "size": size, "blobId": git_sha1(bytes)}),
        }
    };
    let siblings: Vec<_> = mirror.files.iter().map(sibling).collect();
    let counted = faults.parameters.map(|total| json!({"total": total}));
    axum::Json(json!({"id": mirror.repo, "sha": COMMIT, "siblings": siblings, "gguf": counted})).into_response()
}

async fn resolve(
    State(mirror): State<Mirror>,
    Path((_, _, commit, name)): Path<(String, String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    mirror.seen.hub_tokens.lock().unwrap().push(token(&headers));
    if let Some(refusal) = mirror.refusal() {
        return refusal;
    }
    let Some(bytes) = mirror.files.get(&name).filter(|_| commit == COMMIT) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    if is_large(&name) {
        // Another host as a client sees it, which must not be shown the token.
        let location = format!("http://localhost:{}/store/{}", mirror.port, sha256(bytes));
        let etag = format!("\"{}\"", sha256(bytes));
        let headers = [("location", location), ("x-linked-etag", etag), ("x-linked-size", bytes.len().to_string())];
        return (StatusCode::FOUND, headers).into_response();
    }
    if method == Method::HEAD {
        let headers = [("etag", format!("\"{}\"", git_sha1(bytes))), ("content-length", bytes.len().to_string())];
        return (StatusCode::OK, headers).into_response();
    }
    file(&mirror, bytes.clone(), &headers)
}

async fn stored(State(mirror): State<Mirror>, Path(wanted): Path<String>, headers: HeaderMap) -> Response {
    mirror.seen.store_tokens.lock().unwrap().push(token(&headers));
    let found = mirror.files.values().find(|bytes| sha256(bytes) == wanted).cloned();
    let Some(bytes) = found else { return StatusCode::NOT_FOUND.into_response() };
    let bytes = match mirror.faults.lock().unwrap().corrupt {
        true => bytes.iter().enumerate().map(|(at, byte)| if at == 7 { !byte } else { *byte }).collect(),
        false => bytes,
    };
    file(&mirror, bytes, &headers)
}

fn file(mirror: &Mirror, bytes: Bytes, headers: &HeaderMap) -> Response {
    mirror.seen.file_requests.fetch_add(1, Ordering::SeqCst);
    let mut faults = mirror.faults.lock().unwrap();
    let bytes = bytes.slice(..bytes.len() - faults.shorter_by.min(bytes.len()));
    let size = bytes.len();
    let range = headers.get(header::RANGE).filter(|_| !faults.no_ranges && size > 0).map(|range| {
        let (from, to) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap().min(size - 1))
    });
    let (status, part) = match range {
        Some((from, to)) if from <= to => (StatusCode::PARTIAL_CONTENT, bytes.slice(from..=to)),
        Some(_) => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        None => (StatusCode::OK, bytes),
    };
    let cut = match &mut faults.cut {
        Some((after, times)) if *times > 0 && part.len() > *after => {
            *times -= 1;
            Some(*after)
        }
        _ => None,
    };
    drop(faults);
    let (faults, seen) = (Arc::clone(&mirror.faults), Arc::clone(&mirror.seen));
    let mut response = Response::builder().status(status).header(header::CONTENT_LENGTH, part.len());
    if let Some((from, to)) = range {
        response = response.header(header::CONTENT_RANGE, format!("bytes {from}-{to}/{size}"));
    }
    let pieces: Vec<Bytes> = part.chunks(64 << 10).map(|piece| part.slice_ref(piece)).collect();
    let body = stream::unfold((pieces.into_iter(), 0), move |(mut pieces, sent)| {
        let (faults, seen) = (Arc::clone(&faults), Arc::clone(&seen));
        async move {
            let piece = pieces.next()?;
            if cut.is_some_and(|after| sent >= after) {
                return Some((Err(std::io::Error::other("cut")), (pieces, sent)));
            }
            while faults.lock().unwrap().stall_after.is_some_and(|after| seen.bytes.load(Ordering::SeqCst) >= after) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let sent = sent + piece.len();
            seen.bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
            Some((Ok(piece), (pieces, sent)))
        }
    });
    response.body(Body::from_stream(body)).unwrap()
}
