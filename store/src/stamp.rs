//! Whether a model's files are still the same, without reading them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use plexus_types::ModelSource;

use crate::found::is_certain;
use crate::local::{list, parts_of};
use crate::store::{Located, Store};

/// Names, lengths and times of change of all files of a model, as one hash: another where any of them was written, replaced, added or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; 32]);

impl Store {
    /// The stamp of a model's files as they are now; `None` if they are not on this node. Asks for each file once: not for an async thread.
    ///
    /// Errors: what the disk says if it cannot tell.
    pub fn stamp(&self, source: &ModelSource) -> io::Result<Option<Stamp>> {
        if let ModelSource::Path(path) = source
            && let Err(error) = fs::metadata(path)
            && !is_certain(&error)
        {
            return Err(named(path, &error));
        }
        let files = match self.locate(source) {
            Located::Embedded => Vec::new(),
            Located::Here(entry) => files_of(&entry)?,
            Located::Absent => return Ok(None),
        };
        let mut hasher = blake3::Hasher::new();
        for path in files {
            hasher.update(path.as_os_str().as_encoded_bytes());
            match fs::metadata(&path) {
                Ok(about) => {
                    // A file that takes the place of another may have its time of change, but not of its own last move.
                    let numbers = [about.len() as i64, about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
                    for number in numbers {
                        hasher.update(&number.to_le_bytes());
                    }
                }
                Err(error) if is_certain(&error) => {}
                Err(error) => return Err(named(&path, &error)),
            }
        }
        Ok(Some(Stamp(*hasher.finalize().as_bytes())))
    }
}

/// The files of what an engine opens: all in the folder, or all parts of a `.gguf` file.
fn files_of(entry: &Path) -> io::Result<Vec<PathBuf>> {
    if !entry.is_dir() {
        return Ok(parts_of(entry));
    }
    let names = list(entry).map_err(|error| named(entry, &error))?;
    Ok(names.into_iter().map(|name| entry.join(name)).collect())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be looked at: {error}", path.display()))
}
