//! What a hub calls a file's content by, and whether a file has that content.

use std::fs::{self, File};
use std::path::Path;

use aws_lc_rs::digest;
use tracing::debug;

use crate::disk;
use crate::error::FetchError;
use crate::names::is_plain;

/// How much is read at a time when a file is checked.
const READ_LEN: usize = 1 << 20;

/// What a hub calls a file's content by, and what it can be checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Etag {
    /// SHA-256 of the content.
    Sha256(String),
    /// SHA-1 of git's blob.
    Git(String),
    /// A mirror's own; nothing can be checked with it but the size.
    Opaque(String),
}

impl Etag {
    /// Takes an `ETag` header, an id of a listing, or the name of a blob. `None` if it cannot be the name of a file.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        if text.contains('/') || !is_plain(text) {
            return None;
        }
        let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        Some(match text.len() {
            64 if hex => Self::Sha256(text.to_ascii_lowercase()),
            40 if hex => Self::Git(text.to_ascii_lowercase()),
            _ => Self::Opaque(text.to_owned()),
        })
    }

    /// What the hub called the content of a file in a cache: the name of the blob that the file links to.
    pub(crate) fn of_link(path: &Path) -> Option<Self> {
        let target = fs::read_link(path).ok()?;
        let in_blobs = target.parent().is_some_and(|folder| folder.ends_with("blobs"));
        target.file_name().filter(|_| in_blobs)?.to_str().and_then(Self::new)
    }

    pub(crate) fn as_str(&self) -> &str {
        let (Self::Sha256(text) | Self::Git(text) | Self::Opaque(text)) = self;
        text
    }

    /// Can content be checked with it?
    pub(crate) fn is_hash(&self) -> bool {
        match self {
            Self::Sha256(_) | Self::Git(_) => true,
            Self::Opaque(_) => false,
        }
    }

    /// Has this file, of `size` bytes, the content? The inner error says how it is not. Reads all of it.
    pub(crate) fn check(&self, file: &File, size: u64) -> Result<Result<(), String>, FetchError> {
        let (wanted, mut context) = match self {
            Self::Sha256(wanted) => (wanted, digest::Context::new(&digest::SHA256)),
            Self::Git(wanted) => {
                let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                (wanted, context)
            }
            Self::Opaque(etag) => {
                debug!(etag, "a mirror names no hash; only the size was checked");
                return Ok(Ok(()));
            }
        };
        let mut buffer = vec![0; READ_LEN];
        for at in (0..size).step_by(READ_LEN) {
            let part = &mut buffer[..(size - at).min(READ_LEN as u64) as usize];
            disk::read_at(file, part, at).map_err(FetchError::io(self.as_str()))?;
            context.update(part);
        }
        let found: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(if found == *wanted { Ok(()) } else { Err(format!("its hash is {found} where {wanted} was announced")) })
    }
}
