//! What other nodes are answered: manifests, and chunks of manifests that were asked for.
//!
//! | request | answer |
//! |---|---|
//! | `GET /store/manifest?source=S` | 200: the [`Manifest`]; 202: [`Soon`], this node is getting or reading the files, or about to; 404: it does not have them |
//! | `GET /store/chunk/HASH` | 200: its bytes; 404: no manifest that this node gave since it started has it, so ask for the manifest first |
//!
//! Nothing else of the disk can be asked for.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use plexus_types::{Bytes as Amount, ModelSource};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, info, warn};

use crate::error::FetchError;
use crate::local::LocalModel;
use crate::manifest::{ChunkHash, Manifest};
use crate::names::decoded;
use crate::progress::{Flight, Stage};
use crate::store::{Inner, Store};

/// What a node says of a model that it has not, or that is not for others.
pub(crate) const NOT_HERE: &str = "it is not on this node";
pub(crate) const NOT_SHARED: &str = "it is not shared";
/// What counts for a node that wants the model as well, and lets this node go first.
pub(crate) const WAITS: &str = "it waits for this node";
/// What is said of a chunk that is not known, or no longer.
const UNKNOWN_CHUNK: &str = "no manifest that was asked for has it";
/// How long a manifest may take before the other node is told to ask again.
const MANIFEST_WAIT: Duration = Duration::from_secs(2);
/// How long a connection may be idle before its next request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Chunks that are read at a time, over all connections; more wait. Bounds the memory and the threads that other nodes can take.
const READS_AT_ONCE: usize = 16;
/// How much of a chunk is read at a time: it is still in the processor's cache when it is encrypted.
const READ_LEN: u64 = 256 << 10;

/// Most buffers that are kept: so many are in use when all reads run.
const BUFFERS_MAX: usize = READS_AT_ONCE * 2;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The body of status 202: ask again, it is on its way, or will be if nobody is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Soon {
    pub(crate) done: Amount,
    pub(crate) total: Amount,
    #[serde(default)]
    pub(crate) stage: Stage,
}

/// What is known of what was asked for.
#[derive(Debug)]
pub(crate) struct Served {
    /// Chunks that may be asked for.
    chunks: Mutex<HashMap<ChunkHash, Place>>,
    /// Manifests that are being made.
    preparing: Mutex<HashMap<ModelSource, Preparing>>,
    reads: Arc<Semaphore>,
    buffers: Buffers,
}

impl Default for Served {
    fn default() -> Self {
        let reads = Arc::new(Semaphore::new(READS_AT_ONCE));
        Self { chunks: Mutex::default(), preparing: Mutex::default(), reads, buffers: Buffers::default() }
    }
}

/// Buffers that were sent and can be used again. Fresh memory for each costs half as much as to encrypt what is in it.
#[derive(Debug, Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn take(&self) -> Lent {
        let buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent { buffer: buffer.unwrap_or_else(|| Vec::with_capacity(READ_LEN as usize)), home: self.clone() }
    }
}

/// A buffer that goes back when nobody reads it any more.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut home = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if home.len() < BUFFERS_MAX {
            home.push(buffer);
        }
    }
}

/// Where the bytes of a chunk are.
#[derive(Debug, Clone)]
struct Place {
    path: Arc<Path>,
    at: u64,
    len: u64,
}

#[derive(Debug, Clone)]
struct Preparing {
    done: Arc<AtomicU64>,
    total: Amount,
    outcome: watch::Receiver<Option<Result<Bytes, String>>>,
}

impl Store {
    /// Answers one connection of another node, which the caller has authenticated, until that node closes it or is idle for a minute.
    pub async fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let inner = Arc::clone(&self.inner);
        let service = service_fn(move |request| {
            let inner = Arc::clone(&inner);
            async move { Ok::<_, Infallible>(inner.answer(request).await) }
        });
        let served =
            http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).serve_connection(TokioIo::new(io), service);
        if let Err(error) = served.await {
            debug!(%error, "a connection to the store ended");
        }
    }
}

impl Inner {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is known here");
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if let Some(hash) = path.strip_prefix("/store/chunk/") {
            return match ChunkHash::try_from(hash.to_owned()) {
                Ok(hash) => self.chunk(hash).await,
                Err(problem) => text(StatusCode::BAD_REQUEST, &problem),
            };
        }
        let source = query.strip_prefix("source=").and_then(decoded);
        match source.map(|source| source.parse::<ModelSource>()) {
            Some(Ok(source)) if path == "/store/manifest" => self.manifest(source).await,
            Some(Err(problem)) => text(StatusCode::BAD_REQUEST, &problem.to_string()),
            _ => text(StatusCode::NOT_FOUND, "known here are /store/manifest?source= and /store/chunk/"),
        }
    }

    async fn manifest(self: Arc<Self>, source: ModelSource) -> Response<Body> {
        if !self.is_shared(&source) {
            return text(StatusCode::NOT_FOUND, NOT_SHARED);
        }
        // What it only hopes for is nothing to others, unless it may have to fetch it for them.
        let is_for_others = |flight: &Flight| flight.stage == Stage::Coming || self.may_go_outside(&source);
        if let Some(Flight { progress, stage, .. }) = self.flight_of(&source).filter(is_for_others) {
            return json(StatusCode::ACCEPTED, &Soon { done: progress.done, total: progress.total, stage });
        }
        let (inner, looked_for) = (Arc::clone(&self), source.clone());
        let Ok(Some(model)) = tokio::task::spawn_blocking(move || inner.model(&looked_for)).await else {
            return text(StatusCode::NOT_FOUND, NOT_HERE);
        };
        let asked = source.clone();
        let mut preparing = self.prepare(source, model);
        match tokio::time::timeout(MANIFEST_WAIT, preparing.outcome.wait_for(Option::is_some))
            .await
            .map(|ended| ended.map(|done| done.clone()))
        {
            Ok(Ok(Some(Ok(manifest)))) => with_type(StatusCode::OK, "application/json", manifest),
            Ok(Ok(Some(Err(problem)))) => text(StatusCode::INTERNAL_SERVER_ERROR, &problem),
            Ok(_) => {
                // Whoever read them is gone without a word; the next who asks begins anew.
                self.served.preparing.lock().unwrap_or_else(PoisonError::into_inner).remove(&asked);
                text(StatusCode::INTERNAL_SERVER_ERROR, "its files could not be read")
            }
            Err(_elapsed) => {
                let done = Amount(preparing.done.load(Ordering::Relaxed));
                json(StatusCode::ACCEPTED, &Soon { done, total: preparing.total, stage: Stage::Coming })
            }
        }
    }

    /// Reads the files, unless that is being done.
    fn prepare(self: &Arc<Self>, source: ModelSource, model: LocalModel) -> Preparing {
        let mut all = self.served.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(preparing) = all.get(&source) {
            return preparing.clone();
        }
        let (sender, outcome) = watch::channel(None);
        let total = model.files.iter().filter_map(|(_, path)| Some(Amount(path.metadata().ok()?.len()))).sum();
        let preparing = Preparing { done: Arc::default(), total, outcome };
        all.insert(source.clone(), preparing.clone());
        let (inner, done) = (Arc::clone(self), Arc::clone(&preparing.done));
        tokio::task::spawn_blocking(move || {
            let read = |n_bytes| _ = done.fetch_add(n_bytes, Ordering::Relaxed);
            let made = inner.hashes.manifest(&source, &model, &read);
            if let Ok(manifest) = &made {
                inner.served.know(manifest, &model);
                info!(model = %source, total = %manifest.total(), "a model is offered to other nodes");
            }
            let outcome = made.map(|manifest| serde_json::to_vec(&manifest).expect("plain data is JSON").into());
            inner.served.preparing.lock().unwrap_or_else(PoisonError::into_inner).remove(&source);
            sender.send_replace(Some(outcome.map_err(|error: FetchError| error.to_string())));
        });
        preparing
    }

    async fn chunk(&self, hash: ChunkHash) -> Response<Body> {
        let place = self.served.chunks.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        let Some(place) = place else { return text(StatusCode::NOT_FOUND, UNKNOWN_CHUNK) };
        let permit = Arc::clone(&self.served.reads).acquire_owned().await.expect("the semaphore is never closed");
        let opened = place.clone();
        let file = match tokio::task::spawn_blocking(move || File::open(&opened.path)).await {
            Ok(Ok(file)) => file,
            failed => {
                // There may be a copy of it, which is found when a manifest is asked for again.
                info!(path = %place.path.display(), ?failed, "a file that was offered to other nodes cannot be opened any more");
                self.served.forget(|path| *path == *place.path);
                return text(StatusCode::NOT_FOUND, UNKNOWN_CHUNK);
            }
        };
        let (len, buffers) = (place.len, self.served.buffers.clone());
        // One piece is sent while the next are read.
        let (sender, mut pieces) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let read = || -> io::Result<()> {
                let mut file = file;
                file.seek(SeekFrom::Start(place.at))?;
                let mut left = place.len;
                while left > 0 {
                    let wanted = left.min(READ_LEN);
                    let mut piece = buffers.take();
                    (&file).take(wanted).read_to_end(&mut piece.buffer)?;
                    if piece.buffer.len() as u64 != wanted {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    left -= wanted;
                    if sender.blocking_send(Ok(Frame::data(Bytes::from_owner(piece)))).is_err() {
                        return Ok(()); // the other node is gone
                    }
                }
                Ok(())
            };
            if let Err(error) = read() {
                warn!(path = %place.path.display(), %error, "a chunk of a model could not be read");
                let _gone = sender.blocking_send(Err(error));
            }
        });
        let body = StreamBody::new(stream::poll_fn(move |context| pieces.poll_recv(context))).boxed_unsync();
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
        response
    }
}

impl Served {
    /// Forgets chunks of files that are not there any more. Reads the disk.
    pub(crate) fn forget_deleted(&self) {
        let places = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let paths: BTreeSet<Arc<Path>> = places.values().map(|place| Arc::clone(&place.path)).collect();
        drop(places);
        let deleted: BTreeSet<Arc<Path>> = paths.into_iter().filter(|path| !path.exists()).collect();
        if !deleted.is_empty() {
            self.forget(|path| deleted.contains(path));
        }
    }

    /// Forgets chunks of these files.
    fn forget(&self, which: impl Fn(&Path) -> bool) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, place| !which(&place.path));
    }

    fn know(&self, manifest: &Manifest, model: &LocalModel) {
        let paths: Vec<Arc<Path>> = model.files.iter().map(|(_, path)| PathBuf::as_path(path).into()).collect();
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in manifest.pieces() {
            chunks.insert(piece.hash, Place { path: Arc::clone(&paths[piece.file]), at: piece.at, len: piece.len });
        }
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(message.as_bytes()))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    with_type(status, "application/json", serde_json::to_vec(value).expect("plain data is JSON").into())
}
