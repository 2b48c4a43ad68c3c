//! One connection to another node's store.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming as Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use plexus_types::{ModelSource, NodeName};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::incoming::Incoming;
use crate::error::FetchError;
use crate::manifest::{ChunkHash, Manifest};
use crate::names::encoded;
use crate::serve::Soon;
use crate::store::{Connect, Io};

/// Until an answer begins. The other node may have to read first.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Until more of an answer comes.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Longest manifest that is read, in bytes: that of a model of some terabytes.
const MANIFEST_MAX: usize = 64 << 20;
/// How much is gathered before it is written and hashed.
const WRITE_LEN: usize = 512 << 10;

/// What a node says of a model.
#[derive(Debug)]
pub(super) enum Answer {
    Manifest(Manifest),
    Soon(Soon),
}

/// Why a chunk did not come.
#[derive(Debug)]
pub(super) enum NoChunk {
    /// The connection ended or the node does not answer: it may be asked again.
    Lost(String),
    /// It does not know the chunk (any more).
    Unknown,
    /// It sent something else.
    Wrong(String),
    /// This node cannot take it.
    Here(FetchError),
}

/// A connection. It works only while one of its futures is polled, in one task with what reads from it.
pub(super) struct Session {
    requests: http1::SendRequest<Empty<Bytes>>,
    connection: Pin<Box<http1::Connection<TokioIo<Box<dyn Io>>, Empty<Bytes>>>>,
}

impl Session {
    pub(super) async fn open(connect: &dyn Connect, peer: &NodeName) -> Result<Self, String> {
        let io = connect.connect(peer).await.map_err(|error| format!("it cannot be reached: {error}"))?;
        let (requests, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        Ok(Self { requests, connection: Box::pin(connection) })
    }

    /// Asks what a model's files are.
    pub(super) async fn manifest(&mut self, source: &ModelSource) -> Result<Answer, String> {
        let path = format!("/store/manifest?source={}", encoded(&source.to_string(), false));
        let asked = async |requests: &mut http1::SendRequest<_>| {
            let response = get(requests, &path).await?;
            let status = response.status();
            let body = timeout(ANSWER_MAX, Limited::new(response.into_body(), MANIFEST_MAX).collect()).await;
            let body = body.map_err(|_elapsed| "its answer does not end".to_owned())?.map_err(|error| error.to_string())?.to_bytes();
            let wrong = |error: serde_json::Error| format!("its answer is not understood: {error}");
            match status {
                StatusCode::OK => {
                    let manifest: Manifest = serde_json::from_slice(&body).map_err(wrong)?;
                    manifest.check().map_err(|problem| format!("its manifest is wrong: {problem}"))?;
                    if manifest.source != *source {
                        return Err(format!("its manifest is of {}", manifest.source));
                    }
                    Ok(Answer::Manifest(manifest))
                }
                StatusCode::ACCEPTED => Ok(Answer::Soon(serde_json::from_slice(&body).map_err(wrong)?)),
                _ => Err(String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()),
            }
        };
        tokio::select! {
            answer = asked(&mut self.requests) => answer,
            ended = &mut self.connection => Err(lost(ended)),
        }
    }

    /// Fetches a chunk and writes it at its place. It is whole when this succeeds.
    pub(super) async fn chunk(&mut self, incoming: &Arc<Incoming>, index: usize) -> Result<(), NoChunk> {
        tokio::select! {
            done = take_chunk(&mut self.requests, incoming, index) => done,
            ended = &mut self.connection => Err(NoChunk::Lost(lost(ended))),
        }
    }
}

fn lost(ended: hyper::Result<()>) -> String {
    ended.err().map_or_else(|| "it closed the connection".to_owned(), |error| format!("the connection ended: {error}"))
}

async fn get(requests: &mut http1::SendRequest<Empty<Bytes>>, path: &str) -> Result<hyper::Response<Body>, String> {
    let request = Request::get(path).header(header::HOST, "store").body(Empty::new()).map_err(|error| error.to_string())?;
    let answered = async {
        requests.ready().await?;
        requests.send_request(request).await
    };
    timeout(ANSWER_MAX, answered).await.map_err(|_elapsed| "it does not answer".to_owned())?.map_err(|error| error.to_string())
}

async fn take_chunk(requests: &mut http1::SendRequest<Empty<Bytes>>, incoming: &Arc<Incoming>, index: usize) -> Result<(), NoChunk> {
    let piece = incoming.piece(index);
    let response = get(requests, &format!("/store/chunk/{}", piece.hash)).await.map_err(NoChunk::Lost)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(NoChunk::Unknown),
        status => return Err(NoChunk::Wrong(format!("it answered a chunk with status {status}"))),
    }
    let mut body = response.into_body();
    let mut writer = Writer::new(Arc::clone(incoming), index);
    let mut left = piece.len;
    while left > 0 {
        let frame = timeout(SILENCE_MAX, body.frame()).await.map_err(|_elapsed| NoChunk::Lost("it stopped in the middle".to_owned()))?;
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(NoChunk::Lost(error.to_string())),
            None => return Err(NoChunk::Wrong(format!("its chunk ended {left} bytes early"))),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        let longer = || NoChunk::Wrong("its chunk is too long".to_owned());
        left = left.checked_sub(bytes.len() as u64).ok_or_else(longer)?;
        writer.take(bytes).await.map_err(NoChunk::Here)?;
    }
    if writer.finish().await.map_err(NoChunk::Here)? != piece.hash {
        return Err(NoChunk::Wrong("it sent a chunk that does not have its hash".to_owned()));
    }
    // Reads the end of the body, so that the connection is free for the next.
    while let Ok(Some(_)) = timeout(SILENCE_MAX, body.frame()).await {}
    incoming.set_whole(index).map_err(NoChunk::Here)
}

/// Writes and hashes a chunk where blocking is allowed, while the next bytes come. No bytes are copied on the way.
struct Writer {
    incoming: Arc<Incoming>,
    index: usize,
    gathered: Vec<Bytes>,
    n_gathered: usize,
    written: u64,
    hasher: Option<blake3::Hasher>,
    running: Option<JoinHandle<Result<blake3::Hasher, FetchError>>>,
}

impl Writer {
    fn new(incoming: Arc<Incoming>, index: usize) -> Self {
        let hasher = Some(blake3::Hasher::new());
        Self { incoming, index, gathered: Vec::new(), n_gathered: 0, written: 0, hasher, running: None }
    }

    async fn take(&mut self, bytes: Bytes) -> Result<(), FetchError> {
        self.n_gathered += bytes.len();
        self.gathered.push(bytes);
        if self.n_gathered >= WRITE_LEN { self.start().await } else { Ok(()) }
    }

    async fn start(&mut self) -> Result<(), FetchError> {
        let mut hasher = self.rest().await?;
        let (incoming, index, at) = (Arc::clone(&self.incoming), self.index, self.written);
        let gathered = std::mem::take(&mut self.gathered);
        self.written += std::mem::take(&mut self.n_gathered) as u64;
        self.running = Some(tokio::task::spawn_blocking(move || {
            for bytes in &gathered {
                hasher.update(bytes);
            }
            incoming.write(index, at, &gathered)?;
            Ok(hasher)
        }));
        Ok(())
    }

    /// Waits for what is being written.
    async fn rest(&mut self) -> Result<blake3::Hasher, FetchError> {
        match (self.running.take(), self.hasher.take()) {
            (Some(running), _) => running.await.unwrap_or_else(|error| Err(FetchError::Lost(error.to_string()))),
            (None, Some(hasher)) => Ok(hasher),
            (None, None) => Err(FetchError::Lost(io::Error::other("a chunk was written after an error").to_string())),
        }
    }

    async fn finish(mut self) -> Result<ChunkHash, FetchError> {
        self.start().await?;
        Ok(ChunkHash::finish(&self.rest().await?))
    }
}
