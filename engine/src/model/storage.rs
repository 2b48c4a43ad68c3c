//! Bytes of a model, read on demand: a file, or memory inside the binary.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::EngineError;

/// A file or embedded bytes, read by offset. Reads copy: nothing is mapped, so a file cut short later is an error and not a signal.
#[derive(Debug)]
pub(crate) struct Storage {
    path: PathBuf,
    len: u64,
    bytes: Kind,
}

#[derive(Debug)]
enum Kind {
    Embedded(&'static [u8]),
    File(Mutex<File>),
}

impl Storage {
    /// Bytes inside the binary, under a name for messages.
    pub(crate) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: PathBuf::from(name), len: bytes.len() as u64, bytes: Kind::Embedded(bytes) }
    }

    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let io = |source| EngineError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(EngineError::malformed(path, "it is not a regular file"));
        }
        Ok(Self { path: path.to_owned(), len: metadata.len(), bytes: Kind::File(Mutex::new(file)) })
    }

    /// Name for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length when opened, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), EngineError> {
        let result = match &self.bytes {
            Kind::Embedded(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|start| bytes.get(start..start.checked_add(out.len())?));
                match from {
                    Some(from) => {
                        out.copy_from_slice(from);
                        Ok(())
                    }
                    None => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            Kind::File(file) => {
                // A panic while the lock was held leaves at worst another cursor, and each read sets its own.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(out))
            }
        };
        result.map_err(|source| EngineError::Io { path: self.path.clone(), source })
    }
}

/// Reads a small text file of a model folder; `None` if it is not there.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<Option<String>, EngineError> {
    let io = |source| EngineError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut text = String::new();
    file.take(max_bytes + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > max_bytes {
        return Err(EngineError::malformed(path, format!("it is larger than {max_bytes} bytes")));
    }
    Ok(Some(text))
}
