//! Bytes of a model, read on demand: a file, or memory inside the binary.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use super::mapping::Mapping;
use crate::error::EngineError;

/// A file or embedded bytes, by offset. Headers are read, which copies them; weights are viewed where they lie.
///
/// **A model's file must not be written to while it is loaded; replace it by another of the same name.** A renamed or deleted file stays as it
/// is for whoever has it open. One that is cut short or written over is refused, by its length and the time of its last change, when a
/// tensor is about to be viewed; if it is cut short in the moments between that and the end of the view, the system ends the process with SIGBUS.
/// Once a model is loaded on the CPU or a GPU its files are not looked at again.
#[derive(Debug)]
pub(crate) struct Storage {
    path: PathBuf,
    len: u64,
    bytes: Kind,
}

#[derive(Debug)]
enum Kind {
    Embedded(&'static [u8]),
    File {
        file: Mutex<File>,
        /// When it was last written to, when opened; absent where the system does not tell.
        modified: Option<SystemTime>,
        /// Made when the first tensor is viewed.
        mapping: OnceLock<Mapping>,
    },
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
        let bytes = Kind::File { file: Mutex::new(file), modified: metadata.modified().ok(), mapping: OnceLock::new() };
        Ok(Self { path: path.to_owned(), len: metadata.len(), bytes })
    }

    /// Name for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length when opened, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn failed(&self, source: io::Error) -> EngineError {
        EngineError::Io { path: self.path.clone(), source }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), EngineError> {
        match &self.bytes {
            Kind::Embedded(bytes) => {
                out.copy_from_slice(part(bytes, offset, out.len() as u64).ok_or_else(|| self.failed(io::ErrorKind::UnexpectedEof.into()))?);
                Ok(())
            }
            Kind::File { file, .. } => {
                // A panic while the lock was held leaves at worst another cursor, and each read sets its own.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(out)).map_err(|error| self.failed(error))
            }
        }
    }

    /// The `len` bytes from `offset` on, where they lie.
    ///
    /// Errors: [`EngineError::Malformed`] if the file is no longer the one that was opened.
    pub(crate) fn view(&self, offset: u64, len: u64) -> Result<&[u8], EngineError> {
        let bytes = match &self.bytes {
            Kind::Embedded(bytes) => *bytes,
            Kind::File { file, modified, mapping } => {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let metadata = file.metadata().map_err(|error| self.failed(error))?;
                self.check_unchanged(&metadata, *modified)?;
                match mapping.get() {
                    Some(mapping) => mapping.bytes(),
                    None => {
                        let new = Mapping::new(&file).map_err(|error| self.failed(error))?;
                        mapping.get_or_init(|| new).bytes()
                    }
                }
            }
        };
        part(bytes, offset, len).ok_or_else(|| self.failed(io::ErrorKind::UnexpectedEof.into()))
    }

    fn check_unchanged(&self, now: &Metadata, modified: Option<SystemTime>) -> Result<(), EngineError> {
        let remedy = "replace a model's file by another of the same name, never write over it";
        if now.len() != self.len {
            let (then, now) = (self.len, now.len());
            return Err(EngineError::malformed(&self.path, format!("it had {then} bytes when it was opened and has {now} now; {remedy}")));
        }
        match now.modified() {
            Ok(now) if modified.is_some_and(|then| then != now) => {
                Err(EngineError::malformed(&self.path, format!("it was written to since it was opened; {remedy}")))
            }
            _ => Ok(()),
        }
    }

    /// Says that bytes that were viewed will not be looked at again soon, so that they no longer count as this process's memory.
    pub(crate) fn release(&self, offset: u64, len: u64) {
        if let Kind::File { mapping, .. } = &self.bytes
            && let Some(mapping) = mapping.get()
            && let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len))
        {
            mapping.release(offset..offset.saturating_add(len));
        }
    }
}

fn part(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_view_is_the_file_and_stays_so_when_its_name_goes_to_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let storage = Storage::open(&path).unwrap();
        assert_eq!(storage.view(5, 70_000).unwrap(), &bytes[5..70_005]);
        storage.release(0, 100_000);
        assert_eq!(storage.view(99_990, 10).unwrap(), &bytes[99_990..]);
        assert!(storage.view(99_990, 11).is_err() && storage.view(u64::MAX, 2).is_err());
        let other = folder.path().join("other");
        fs::write(&other, b"others").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(storage.view(5, 70_000).unwrap(), &bytes[5..70_005]);
    }

    #[test]
    fn a_file_cut_short_or_written_over_since_it_was_opened_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        fs::write(&path, [1; 100_000]).unwrap();
        let storage = Storage::open(&path).unwrap();
        assert!(storage.view(0, 100_000).is_ok());
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(10).unwrap();
        let error = storage.view(0, 10).unwrap_err().to_string();
        assert!(error.contains("had 100000 bytes") && error.contains("never write over"), "{error}");
        file.set_len(100_000).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(storage.view(0, 10).unwrap_err().to_string().contains("written to since"));
    }
}
