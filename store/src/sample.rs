//! What a model's files hold, in short: whether two nodes have the same, told without reading all of them.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use plexus_types::{FilesDigest, ModelSource};

use crate::disk;
use crate::local::parts_of;
use crate::names::GgufName;
use crate::store::{Located, Store};

/// Files up to this length are read whole.
const WHOLE_MAX: u64 = 1 << 20;
/// Of longer ones so much is read of their beginning, where their header is.
const HEAD_LEN: u64 = 64 << 10;
/// And so many samples, spread evenly, of all files together, but at least [`SAMPLES_MIN`] of each.
const SAMPLES: u64 = 64;
const SAMPLES_MIN: u64 = 4;
const SAMPLE_LEN: u64 = 4 << 10;

impl Store {
    /// The digest of a model's files: of small ones all, of others their length, beginning, and samples of the rest, some hundred kilobytes in all.
    /// Weights that were trained, converted or quantized otherwise differ all over. `None` if the files are not on this node, or in the binary.
    ///
    /// Names do not count, but for a folder's order. Of a hub's repository only what a model cannot be without counts: who fetched it may have left
    /// out the rest. Reads the disk: not for an async thread.
    pub fn digest(&self, source: &ModelSource) -> io::Result<Option<FilesDigest>> {
        let Located::Here(entry) = self.locate(source) else { return Ok(None) };
        let mut files = match self.inner.model(source) {
            Some(model) => model.files,
            None => parts_of(&entry).into_iter().map(|path| (String::new(), path)).collect(),
        };
        files.retain(|(name, _)| !matches!(source, ModelSource::Hub(_)) || is_essential(name));
        if files.iter().any(|(name, _)| GgufName::parse(name).is_none()) {
            files.sort(); // a folder's, which have no order of their own
        }
        let mut hasher = blake3::Hasher::new();
        let n_samples = (SAMPLES / files.len().max(1) as u64).max(SAMPLES_MIN);
        for (_, path) in &files {
            sample(&mut hasher, path, n_samples)
                .map_err(|error| io::Error::new(error.kind(), format!("{} cannot be read: {error}", path.display())))?;
        }
        let digest = hasher.finalize();
        Ok(Some(FilesDigest::new(digest.as_bytes()[..16].try_into().expect("a digest has 32 bytes"))))
    }

    /// Is what is here of a model a copy that came from other nodes?
    pub fn is_copy(&self, source: &ModelSource) -> bool {
        matches!(self.locate(source), Located::Here(entry) if entry.starts_with(self.inner.kept(source)))
    }

    /// Takes a copy away that came from other nodes, whole or not; what is loaded from it goes on. Nothing, if there is none.
    pub fn discard_copy(&self, source: &ModelSource) -> io::Result<()> {
        let kept = self.inner.kept(source);
        // What says that it is whole goes first: what is left of it, if this is cut short, is no model.
        for gone in [std::fs::remove_file(kept.join("manifest.json")), std::fs::remove_dir_all(&kept)] {
            gone.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }
}

fn is_essential(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".safetensors") || name == "config.json" || name == "tokenizer.json"
}

fn sample(hasher: &mut blake3::Hasher, path: &PathBuf, n_samples: u64) -> io::Result<()> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    hasher.update(&len.to_le_bytes());
    let mut stretch = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        disk::read_at(&file, &mut bytes, at)?;
        hasher.update(&bytes);
        Ok::<_, io::Error>(())
    };
    if len <= WHOLE_MAX {
        return stretch(0, len);
    }
    stretch(0, HEAD_LEN)?;
    let last = len - SAMPLE_LEN;
    (0..n_samples).try_for_each(|i| stretch(HEAD_LEN + (last - HEAD_LEN) / (n_samples - 1) * i, SAMPLE_LEN))
}
