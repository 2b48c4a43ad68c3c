//! What is left of a model that other nodes did not give to its end, for the hub's download to go on with.
//!
//! Chunks were checked against the manifest of a node, and the hub knows nothing of that manifest: what it describes may be another commit of the
//! repository. Nothing is believed for that. A file is taken over only if the hub names a hash of its whole content, its name and length are those
//! of the hub's list, and the manifest does not name another hash; and what is made of it is checked against that hash before it counts, as any
//! download that was resumed: if it does not have it, all of it comes anew. Where a mirror names no hash, the chunks are left where they are, and
//! the whole file comes from the mirror: a mixture could not be told from the file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;

use plexus_types::ModelSource;

use super::incoming::noted;
use super::{incoming_folder, incoming_lock};
use crate::config::StoreConfig;
use crate::digest::Etag;
use crate::disk;
use crate::manifest::{CHUNK_LEN, Manifest};

/// The folder of such a model, which nobody else works at while this lives.
#[derive(Debug)]
pub(crate) struct Leftover {
    folder: PathBuf,
    manifest: Manifest,
    whole: BTreeSet<usize>,
    _lock: File,
}

impl Leftover {
    /// `None` if nothing is left, or another process goes on with it.
    pub(crate) fn open(config: &StoreConfig, source: &ModelSource) -> Option<Self> {
        let folder = incoming_folder(config, source);
        let lock = disk::try_lock(&incoming_lock(&folder)).ok().flatten().filter(|_| folder.is_dir())?;
        let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok()?;
        manifest.check().ok()?;
        let whole = noted(&folder.join("whole"));
        Some(Self { folder, manifest, whole, _lock: lock })
    }

    /// A file, if it may be of this content: where it is, at its full length, and which of its chunks are whole, in order.
    pub(crate) fn file(&self, name: &str, size: u64, etag: &Etag) -> Option<(PathBuf, Vec<bool>)> {
        let index = self.manifest.files.iter().position(|file| file.name == name && file.size == size)?;
        if !etag.is_hash() || self.manifest.files[index].digest().is_some_and(|known| known != *etag) {
            return None;
        }
        let before: usize = self.manifest.files[..index].iter().map(|file| file.chunks.len()).sum();
        let chunks = before..before + self.manifest.files[index].chunks.len();
        let path = self.folder.join("files").join(name);
        let whole: Vec<bool> = chunks.map(|chunk| self.whole.contains(&chunk)).collect();
        (path.is_file() && whole.contains(&true)).then_some((path, whole))
    }

    /// Throws away what was not taken.
    pub(crate) fn remove(self) {
        let _gone = fs::remove_dir_all(&self.folder);
    }
}

/// How many bytes from `start` on, of at most `len`, are in whole chunks without a gap. `start` is the start of a chunk.
pub(crate) fn whole_from(chunks: &[bool], start: u64, len: u64) -> u64 {
    let first = (start / CHUNK_LEN) as usize;
    let n_whole = chunks.iter().skip(first).take_while(|whole| **whole).count() as u64;
    (n_whole * CHUNK_LEN).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_without_a_gap_counts() {
        let chunks = [true, true, false, true, false, true];
        let at = |chunk: u64, n_chunks: u64| whole_from(&chunks, chunk * CHUNK_LEN, n_chunks * CHUNK_LEN) / CHUNK_LEN;
        assert_eq!([at(0, 4), at(0, 1), at(1, 4), at(2, 2), at(3, 2), at(5, 1)], [2, 1, 1, 0, 1, 1]);
        assert_eq!(whole_from(&chunks, 5 * CHUNK_LEN, 7), 7, "the last chunk is short");
        assert_eq!(whole_from(&[], 0, 0), 0);
    }
}
