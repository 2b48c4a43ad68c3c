//! One connection to another node's store.
//!
//! What is asked is HTTP, but it is read here and not by an HTTP library: bytes go from the connection into one of two buffers that are used
//! again and again, and from there to the disk and the hash. A library hands out buffers of its own; making and freeing them cost a tenth of
//! the processor's time of a whole fetch.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use plexus_types::{ModelSource, NodeName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
/// Until a buffer is full, or a manifest is there.
const FILL_MAX: Duration = Duration::from_secs(30);
/// Longest head of an answer, in bytes. Ours have two hundred.
const HEAD_MAX: usize = 8 << 10;
/// Most header lines of it.
const HEADERS_MAX: usize = 32;
/// Longest manifest that is read, in bytes: that of a model of some terabytes.
const MANIFEST_MAX: u64 = 64 << 20;
/// How much is read before it is hashed and written: it is still in the processor's cache then.
const BUFFER_LEN: usize = 512 << 10;

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

/// A connection.
pub(super) struct Session {
    io: Box<dyn Io>,
    /// What was read behind the head of an answer.
    ahead: Vec<u8>,
    /// Buffers that are not in use.
    spare: Vec<Vec<u8>>,
}

/// The head of an answer.
struct Head {
    status: u16,
    /// Bytes that follow.
    len: u64,
}

impl Session {
    pub(super) async fn open(connect: &dyn Connect, peer: &NodeName) -> Result<Self, String> {
        let io = connect.connect(peer).await.map_err(|error| format!("it cannot be reached: {error}"))?;
        Ok(Self { io, ahead: Vec::new(), spare: Vec::new() })
    }

    /// Asks what a model's files are.
    pub(super) async fn manifest(&mut self, source: &ModelSource) -> Result<Answer, String> {
        let head = self.get(&format!("/store/manifest?source={}", encoded(&source.to_string(), false))).await?;
        if head.len > MANIFEST_MAX {
            return Err(format!("its answer has {} bytes", head.len));
        }
        let mut body = Vec::new();
        self.fill(&mut body, head.len as usize).await?;
        let wrong = |error: serde_json::Error| format!("its answer is not understood: {error}");
        match head.status {
            200 => {
                let manifest: Manifest = serde_json::from_slice(&body).map_err(wrong)?;
                manifest.check().map_err(|problem| format!("its manifest is wrong: {problem}"))?;
                if manifest.source != *source {
                    return Err(format!("its manifest is of {}", manifest.source));
                }
                Ok(Answer::Manifest(manifest))
            }
            202 => Ok(Answer::Soon(serde_json::from_slice(&body).map_err(wrong)?)),
            _ => Err(String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()),
        }
    }

    /// Fetches a chunk and writes it at its place. It is whole when this succeeds.
    pub(super) async fn chunk(&mut self, incoming: &Arc<Incoming>, index: usize) -> Result<(), NoChunk> {
        let piece = incoming.piece(index);
        let head = self.get(&format!("/store/chunk/{}", piece.hash)).await.map_err(NoChunk::Lost)?;
        match head.status {
            200 if head.len == piece.len => {}
            200 => return Err(NoChunk::Wrong(format!("its chunk has {} bytes where {} were asked for", head.len, piece.len))),
            404 => {
                let mut body = Vec::new();
                self.fill(&mut body, head.len.min(HEAD_MAX as u64) as usize).await.map_err(NoChunk::Lost)?;
                return Err(NoChunk::Unknown);
            }
            status => return Err(NoChunk::Wrong(format!("it answered a chunk with status {status}"))),
        }
        let mut writer = Writer::default();
        let received = self.receive(incoming, index, &mut writer).await;
        // However it ended: what lands later could land over what another connection has brought and checked by then.
        let rest = writer.rest().await;
        received?;
        let (hasher, written) = rest.map_err(NoChunk::Here)?;
        self.spare.extend(written);
        if ChunkHash::finish(&hasher) != piece.hash {
            return Err(NoChunk::Wrong("it sent a chunk that does not have its hash".to_owned()));
        }
        incoming.set_whole(index).map_err(NoChunk::Here)
    }

    /// Reads the bytes of a chunk and hands them to the writer, which has the last of them when this ends.
    async fn receive(&mut self, incoming: &Arc<Incoming>, index: usize, writer: &mut Writer) -> Result<(), NoChunk> {
        let len = incoming.piece(index).len;
        let mut at = 0;
        while at < len {
            let mut buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN));
            self.fill(&mut buffer, (len - at).min(BUFFER_LEN as u64) as usize).await.map_err(NoChunk::Lost)?;
            let (hasher, written) = mem::take(writer).rest().await.map_err(NoChunk::Here)?;
            self.spare.extend(written);
            let n_bytes = buffer.len() as u64;
            *writer = Writer::start(Arc::clone(incoming), index, at, buffer, hasher);
            at += n_bytes;
        }
        Ok(())
    }

    /// Sends a request and reads the head of its answer.
    async fn get(&mut self, path: &str) -> Result<Head, String> {
        let exchange = async {
            let request = format!("GET {path} HTTP/1.1\r\nhost: store\r\n\r\n");
            self.io.write_all(request.as_bytes()).await?;
            self.io.flush().await?;
            loop {
                if let Some(end) = self.ahead.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    let rest = self.ahead.split_off(end + 4);
                    return Ok(mem::replace(&mut self.ahead, rest));
                }
                let left = HEAD_MAX.saturating_sub(self.ahead.len()) as u64;
                if (&mut self.io).take(left).read_buf(&mut self.ahead).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let head: std::io::Result<Vec<u8>> = timeout(ANSWER_MAX, exchange).await.map_err(|_elapsed| "it does not answer".to_owned())?;
        let head = head.map_err(|error| format!("the connection ended: {error}"))?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed.parse(&head).map_err(|error| format!("its answer is not HTTP: {error}"))?;
        let len = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let len = len.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
        let (status, len) = parsed.code.zip(len).ok_or("its answer has no length")?;
        Ok(Head { status, len })
    }

    /// Reads so many bytes into an empty buffer.
    async fn fill(&mut self, buffer: &mut Vec<u8>, len: usize) -> Result<(), String> {
        buffer.clear();
        buffer.extend(self.ahead.drain(..self.ahead.len().min(len)));
        let reading = async {
            while buffer.len() < len {
                let left = (len - buffer.len()) as u64;
                if (&mut self.io).take(left).read_buf(buffer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(())
        };
        let read: std::io::Result<()> = timeout(FILL_MAX, reading).await.map_err(|_elapsed| "it stopped in the middle".to_owned())?;
        read.map_err(|error| format!("the connection ended: {error}"))
    }
}

/// The hash so far, and the buffer to use again.
type Written = Result<(Box<blake3::Hasher>, Vec<u8>), FetchError>;

/// Hashes and writes a chunk where blocking is allowed, while the next bytes come.
enum Writer {
    Idle(Box<blake3::Hasher>),
    Busy(JoinHandle<Written>),
}

impl Default for Writer {
    fn default() -> Self {
        Self::Idle(Box::default())
    }
}

impl Writer {
    fn start(incoming: Arc<Incoming>, index: usize, at: u64, buffer: Vec<u8>, mut hasher: Box<blake3::Hasher>) -> Self {
        Self::Busy(tokio::task::spawn_blocking(move || {
            hasher.update(&buffer);
            incoming.write(index, at, &buffer)?;
            Ok((hasher, buffer))
        }))
    }

    /// Waits for what is being written, and gives its buffer back.
    async fn rest(self) -> Result<(Box<blake3::Hasher>, Option<Vec<u8>>), FetchError> {
        match self {
            Self::Idle(hasher) => Ok((hasher, None)),
            Self::Busy(running) => {
                let (hasher, buffer) = running.await.unwrap_or_else(|error| Err(FetchError::Lost(error.to_string())))?;
                Ok((hasher, Some(buffer)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc;

    use futures::future::{self, Either};
    use tokio::io::duplex;

    use super::*;
    use crate::manifest::{CHUNK_LEN, ManifestFile};

    #[test]
    fn a_chunk_that_breaks_off_is_given_up_only_when_what_came_of_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = vec![7; BUFFER_LEN * 2];
        let file = ManifestFile { name: "m.gguf".to_owned(), size: bytes.len() as u64, chunks: vec![ChunkHash::of(&bytes)], etag: None };
        let manifest = Manifest { source: "hf:org/name".parse().unwrap(), chunk_len: CHUNK_LEN, files: vec![file] };
        let lock = File::create(folder.path().join("lock")).unwrap();
        let incoming = Arc::new(Incoming::open(folder.path().join("m"), manifest, lock).unwrap());
        // The only thread that may block is busy, so that nothing is written until it is let go.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (let_go, busy) = mpsc::channel::<()>();
            let blocked = tokio::task::spawn_blocking(move || busy.recv().unwrap());
            let (near, mut far) = duplex(BUFFER_LEN * 4);
            far.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len()).as_bytes()).await.unwrap();
            far.write_all(&bytes[..BUFFER_LEN + 1]).await.unwrap();
            far.shutdown().await.unwrap();
            let mut session = Session { io: Box::new(near), ahead: Vec::new(), spare: Vec::new() };
            let chunk = Box::pin(session.chunk(&incoming, 0));
            let turns = Box::pin(async {
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                let_go.send(()).unwrap();
            });
            let lost = match future::select(chunk, turns).await {
                Either::Left((ended, _)) => ended,
                Either::Right(((), chunk)) => chunk.await,
            };
            assert!(matches!(lost, Err(NoChunk::Lost(_))), "{lost:?}");
            let mut there = vec![0; BUFFER_LEN];
            crate::disk::read_at(&File::open(folder.path().join("m/files/m.gguf")).unwrap(), &mut there, 0).unwrap();
            assert!(there == bytes[..BUFFER_LEN], "what came of it is written by now");
            drop(let_go);
            blocked.await.unwrap();
        });
    }
}
