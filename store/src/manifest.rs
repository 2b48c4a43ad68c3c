//! What a model's files are, as nodes tell each other: names, sizes, and the hash of each chunk.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use plexus_types::{Bytes, ModelSource};
use serde::{Deserialize, Serialize};

use crate::digest::Etag;
use crate::disk;
use crate::error::FetchError;
use crate::local::LocalModel;
use crate::names::is_plain;

/// Bytes of a chunk; the last of a file may be shorter. Large enough that asking for it costs nothing beside sending it, small enough that little
/// is lost with it, and that several nodes share even a small model.
pub const CHUNK_LEN: u64 = 8 << 20;
/// Most files of a manifest that is believed: all are open at a time. The largest models have less than two hundred.
const FILES_MAX: usize = 500;
/// How much of a file is read at a time: it stays in the processor's cache until it is hashed.
const READ_LEN: usize = 512 << 10;

/// BLAKE3 of a chunk. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkHash([u8; 32]);

impl ChunkHash {
    pub(crate) fn finish(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }

    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ChunkHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match blake3::Hash::from_hex(&text) {
            Ok(hash) => Ok(Self(*hash.as_bytes())),
            Err(_) => Err(format!("{text:?} is not 64 hexadecimal digits")),
        }
    }
}

impl From<ChunkHash> for String {
    fn from(hash: ChunkHash) -> String {
        hash.to_string()
    }
}

/// The files of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the model is asked for by.
    pub source: ModelSource,
    /// Bytes of a chunk: [`CHUNK_LEN`].
    pub chunk_len: u64,
    /// Its files; the first is what an engine opens, if it is a GGUF file, else their folder is.
    pub files: Vec<ManifestFile>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative to the model's folder, with `/`.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The hashes of its chunks, in order.
    pub chunks: Vec<ChunkHash>,
    /// What the hub called its content when the first of the nodes fetched it: SHA-256, or git's SHA-1 of small files, in hexadecimal digits.
    /// Absent for what did not come from a hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl ManifestFile {
    /// What all of the file can be checked with.
    pub(crate) fn digest(&self) -> Option<Etag> {
        self.etag.as_deref().and_then(Etag::new)
    }
}

/// A chunk of a manifest: which file, where in it, how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: usize,
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) hash: ChunkHash,
}

impl Manifest {
    /// Bytes of all files.
    pub fn total(&self) -> Bytes {
        self.files.iter().map(|file| Bytes(file.size)).sum()
    }

    /// Is this a manifest that can be followed: safe names, each once, and as many hashes as the sizes need?
    ///
    /// Errors with what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.chunk_len != CHUNK_LEN {
            return Err(format!("chunks of {} bytes, where this version has {CHUNK_LEN}", self.chunk_len));
        }
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return Err(format!("{} files", self.files.len()));
        }
        let mut names = BTreeSet::new();
        let mut total = 0_u64;
        for file in &self.files {
            if !is_plain(&file.name) {
                return Err(format!("{:?} is no name of a model's file", file.name));
            }
            if !names.insert(file.name.to_lowercase()) {
                return Err(format!("{:?} is there twice", file.name));
            }
            if file.size.div_ceil(CHUNK_LEN) != file.chunks.len() as u64 {
                return Err(format!("{:?} of {} bytes has {} chunks", file.name, file.size, file.chunks.len()));
            }
            if file.etag.is_some() && !file.digest().is_some_and(|etag| etag.is_hash()) {
                return Err(format!("the hub's hash of {:?} is {:?}", file.name, file.etag));
            }
            total = total.checked_add(file.size).ok_or("more bytes than can be counted")?;
        }
        let folder_of = |name: &str| name.rsplit_once('/').is_some_and(|(folder, _)| names.contains(&folder.to_lowercase()));
        match self.files.iter().find(|file| folder_of(&file.name)) {
            Some(file) => Err(format!("{:?} lies in a file", file.name)),
            None => Ok(()),
        }
    }

    /// All chunks, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.files.iter().enumerate().flat_map(|(index, file)| {
            (0..).step_by(CHUNK_LEN as usize).zip(&file.chunks).map(move |(at, hash)| Piece {
                file: index,
                at,
                len: (file.size - at).min(CHUNK_LEN),
                hash: *hash,
            })
        })
    }
}

/// Hashes that were computed before, by path, valid while a file has the same size and time of change.
#[derive(Debug, Clone)]
pub(crate) struct HashCache {
    folder: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    size: u64,
    modified_ns: u128,
    chunks: Vec<ChunkHash>,
    /// As in [`ManifestFile`], for files whose place does not tell.
    #[serde(default)]
    etag: Option<String>,
}

impl HashCache {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Describes a model. Reads files that are not remembered; `read` is told of each stretch that is done.
    pub(crate) fn manifest(&self, source: &ModelSource, model: &LocalModel, read: &dyn Fn(u64)) -> Result<Manifest, FetchError> {
        let file = |(name, path): &(String, PathBuf)| {
            let (size, chunks, noted) = self.hashes(path, read)?;
            let linked = Etag::of_link(path).filter(Etag::is_hash).map(|etag| etag.as_str().to_owned());
            Ok(ManifestFile { name: name.clone(), size, chunks, etag: linked.or(noted) })
        };
        let files = model.files.iter().map(file).collect::<Result<_, FetchError>>()?;
        Ok(Manifest { source: source.clone(), chunk_len: CHUNK_LEN, files })
    }

    fn hashes(&self, path: &Path, read: &dyn Fn(u64)) -> Result<(u64, Vec<ChunkHash>, Option<String>), FetchError> {
        let (size, modified_ns) = stamp(path)?;
        let remembered = fs::read(self.place(path)).ok().and_then(|text| serde_json::from_slice::<Remembered>(&text).ok());
        if let Some(known) = remembered.filter(|known| known.path == path && known.size == size && known.modified_ns == modified_ns) {
            read(size);
            return Ok((size, known.chunks, known.etag));
        }
        let chunks = hash_file(path, size, read).map_err(FetchError::io(path))?;
        if stamp(path)? != (size, modified_ns) {
            return Err(FetchError::Corrupted { file: path.display().to_string(), problem: "it changed while it was read".to_owned() });
        }
        self.remember(path, chunks.clone(), None)?;
        Ok((size, chunks, None))
    }

    /// Notes the hashes of a file as it is now.
    pub(crate) fn remember(&self, path: &Path, chunks: Vec<ChunkHash>, etag: Option<String>) -> Result<(), FetchError> {
        let (size, modified_ns) = stamp(path)?;
        let place = self.place(path);
        let text = serde_json::to_vec(&Remembered { path: path.to_owned(), size, modified_ns, chunks, etag }).expect("plain data is JSON");
        disk::write_whole(&place, &text).map_err(FetchError::io(place))
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.folder.join(format!("{}.json", blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex()))
    }
}

/// Size and time of the last change, nanoseconds since 1970.
fn stamp(path: &Path) -> Result<(u64, u128), FetchError> {
    let read = fs::metadata(path).and_then(|meta| Ok((meta.len(), meta.modified()?)));
    let (size, modified) = read.map_err(FetchError::io(path))?;
    Ok((size, modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()))
}

fn hash_file(path: &Path, size: u64, read: &dyn Fn(u64)) -> std::io::Result<Vec<ChunkHash>> {
    let file = File::open(path)?;
    let mut buffer = vec![0; READ_LEN];
    let mut chunks = Vec::new();
    for start in (0..size).step_by(CHUNK_LEN as usize) {
        let len = (size - start).min(CHUNK_LEN);
        chunks.push(hash_chunk(&file, start, len, &mut buffer)?);
        read(len);
    }
    Ok(chunks)
}

/// The hash of a stretch of a file.
pub(crate) fn hash_chunk(file: &File, start: u64, len: u64, buffer: &mut Vec<u8>) -> std::io::Result<ChunkHash> {
    buffer.resize(READ_LEN, 0);
    let mut hasher = blake3::Hasher::new();
    for at in (0..len).step_by(READ_LEN) {
        let part = &mut buffer[..(len - at).min(READ_LEN as u64) as usize];
        disk::read_at(file, part, start + at)?;
        hasher.update(part);
    }
    Ok(ChunkHash::finish(&hasher))
}
