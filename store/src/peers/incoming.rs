//! A model that is on its way from other nodes: its files at their full length, and a note of the chunks that are whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use plexus_types::Bytes as Amount;

use crate::disk;
use crate::error::FetchError;
use crate::manifest::{HashCache, Manifest, ManifestFile, Piece, hash_chunk};

/// The folder of such a model.
#[derive(Debug)]
pub(super) struct Incoming {
    folder: PathBuf,
    manifest: Manifest,
    pieces: Vec<Piece>,
    files: Vec<File>,
    /// Numbers of whole chunks, four bytes each, in the order in which they came.
    note: File,
    whole: Mutex<Whole>,
    /// Held until the last write has ended, which may be after the fetch was given up.
    _lock: File,
}

#[derive(Debug)]
struct Whole {
    is: Vec<bool>,
    n_noted: u64,
    bytes: Amount,
}

impl Incoming {
    /// Opens what is left of an earlier attempt at the same manifest, or begins. `lock` is held by nobody else.
    pub(super) fn open(folder: PathBuf, manifest: Manifest, lock: File) -> Result<Self, FetchError> {
        let wanted = serde_json::to_vec(&manifest).expect("plain data is JSON");
        let manifest_path = folder.join("manifest.json");
        if fs::read(&manifest_path).ok().as_deref() != Some(&wanted) {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FetchError::io(&folder)(error)),
                _ => {}
            }
        }
        fs::create_dir_all(&folder).map_err(FetchError::io(&folder))?;
        let note_path = folder.join("whole");
        let pieces: Vec<Piece> = manifest.pieces().collect();
        let candidates: Vec<usize> = noted(&note_path).into_iter().filter(|index| *index < pieces.len()).collect();
        let here: Amount = candidates.iter().map(|index| Amount(pieces[*index].len)).sum();
        disk::make_sure_of(manifest.total().saturating_sub(here), &folder)?;

        disk::write_whole(&manifest_path, &wanted).map_err(disk::write_error(&manifest_path, manifest.total().0))?;
        let mut files = Vec::new();
        for file in &manifest.files {
            let path = folder.join("files").join(&file.name);
            fs::create_dir_all(path.parent().unwrap_or(&folder)).map_err(FetchError::io(&path))?;
            let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let opened = opened.and_then(|opened| opened.set_len(file.size).map(|()| opened));
            files.push(opened.map_err(disk::write_error(&path, manifest.total().0))?);
        }
        let note = File::options().write(true).create(true).truncate(true).open(&note_path).map_err(FetchError::io(&note_path))?;
        let whole = Mutex::new(Whole { is: vec![false; pieces.len()], n_noted: 0, bytes: Amount(0) });
        let incoming = Self { folder, manifest, pieces, files, note, whole, _lock: lock };
        let mut buffer = Vec::new();
        for index in candidates {
            let Piece { file, at, len, hash } = incoming.pieces[index];
            if hash_chunk(&incoming.files[file], at, len, &mut buffer).is_ok_and(|found| found == hash) {
                incoming.set_whole(index)?;
            }
        }
        Ok(incoming)
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn piece(&self, index: usize) -> Piece {
        self.pieces[index]
    }

    /// Bytes of whole chunks.
    pub(super) fn here(&self) -> Amount {
        self.lock().bytes
    }

    pub(super) fn is_whole(&self) -> bool {
        self.lock().is.iter().all(|whole| *whole)
    }

    /// Chunks that have to come.
    pub(super) fn missing(&self) -> Vec<usize> {
        self.lock().is.iter().enumerate().filter(|(_, whole)| !**whole).map(|(index, _)| index).collect()
    }

    /// Writes bytes of a chunk, from its byte `at` on. They do not count before [`Incoming::set_whole`].
    pub(super) fn write(&self, index: usize, at: u64, bytes: &[u8]) -> Result<(), FetchError> {
        let piece = self.pieces[index];
        disk::write_at(&self.files[piece.file], bytes, piece.at + at).map_err(|error| {
            let path = self.folder.join("files").join(&self.manifest.files[piece.file].name);
            disk::write_error(&path, (self.manifest.total() - self.here()).0)(error)
        })
    }

    /// Notes that a chunk is here and was checked.
    pub(super) fn set_whole(&self, index: usize) -> Result<(), FetchError> {
        let mut whole = self.lock();
        if !std::mem::replace(&mut whole.is[index], true) {
            let number = (index as u32).to_le_bytes();
            disk::write_at(&self.note, &number, whole.n_noted * 4).map_err(disk::write_error(&self.folder.join("whole"), 0))?;
            whole.n_noted += 1;
            whole.bytes = whole.bytes + Amount(self.pieces[index].len);
        }
        Ok(())
    }

    /// Makes all of it durable and moves it to where it is kept. Its hashes are remembered, so that this node can pass it on at once.
    ///
    /// If that fails, or the process ends meanwhile, all of it is either there or here still, with the note of what is whole.
    pub(super) fn finish(&self, kept: &Path, hashes: &HashCache) -> Result<(), FetchError> {
        for file in &self.files {
            file.sync_all().map_err(disk::write_error(&self.folder, 0))?;
        }
        let parent = kept.parent().unwrap_or(kept);
        let moved = (|| {
            fs::create_dir_all(parent)?;
            match fs::remove_dir_all(kept) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error), // what was there was no whole model
                _ => {}
            }
            disk::sync_folder(&self.folder)?;
            fs::rename(&self.folder, kept)?;
            disk::sync_folder(parent)?;
            fs::remove_file(kept.join("whole"))
        })();
        moved.map_err(FetchError::io(kept))?;
        self.manifest
            .files
            .iter()
            .try_for_each(|file| hashes.remember(&kept.join("files").join(&file.name), file.chunks.clone(), file.etag.clone()))
    }

    /// Has a file, all of whose chunks are here, the content by which the hub called it? Says how it is not. Reads all of it.
    pub(super) fn check(&self, file: usize) -> Result<Result<(), String>, FetchError> {
        let ManifestFile { name, size, .. } = &self.manifest.files[file];
        let Some(etag) = self.manifest.files[file].digest() else { return Ok(Ok(())) };
        Ok(etag.check(&self.files[file], *size)?.map_err(|problem| format!("its {name} is damaged: {problem}")))
    }

    /// Throws all of it away.
    pub(super) fn discard(&self) -> Result<(), FetchError> {
        fs::remove_dir_all(&self.folder).map_err(FetchError::io(&self.folder))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Whole> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of the chunks that a note speaks of.
pub(super) fn noted(note: &Path) -> BTreeSet<usize> {
    let note = fs::read(note).unwrap_or_default();
    note.as_chunks::<4>().0.iter().map(|index| u32::from_le_bytes(*index) as usize).collect()
}
