//! A file that comes in parts: its bytes so far, and a note beside it that tells how far each part is.
//!
//! The note is written after the bytes that it speaks of and never made durable by itself: after a power cut it may promise too much, which the
//! hash at the end finds out.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk;
use crate::error::FetchError;

/// Bytes of a part. Large against the time that a request takes to be answered, small enough that a large file keeps all connections busy.
pub(super) const PART_LEN: u64 = 32 << 20;
const _: () = assert!(PART_LEN.is_multiple_of(crate::manifest::CHUNK_LEN), "chunks of other nodes are taken over into parts");

/// The file while it is not whole, and its note.
#[derive(Debug, Clone)]
pub(super) struct PartFile {
    file: Arc<File>,
    note: Arc<File>,
    path: PathBuf,
    note_path: PathBuf,
    size: u64,
    /// Held until the last write has ended, which may be after the download was given up.
    _lock: Arc<File>,
}

// Not `<etag>.incomplete`: other clients take that for the first bytes of the file, and these are not in order.
const ENDINGS: [&str; 2] = [".plexus.incomplete", ".plexus-parts.incomplete"];

/// The blob that a file of this name in its folder is a part of, or the note of one.
pub(super) fn etag_of(name: &str) -> Option<&str> {
    ENDINGS.iter().find_map(|ending| name.strip_suffix(ending))
}

/// The names of the file and its note, for a blob.
pub(crate) fn paths(blob: &Path) -> [PathBuf; 2] {
    let with = |ending: &str| {
        let mut name = blob.file_name().unwrap_or_default().to_owned();
        name.push(ending);
        blob.with_file_name(name)
    };
    ENDINGS.map(with)
}

/// How many bytes a file of this size has in its part.
pub(super) fn part_len(size: u64, part: u64) -> u64 {
    (size - part * PART_LEN).min(PART_LEN)
}

/// What the notes say is here of a blob that is not whole.
pub(super) fn bytes_here(blob: &Path, size: u64) -> u64 {
    let [path, note] = paths(blob);
    let whole = fs::metadata(path).is_ok_and(|meta| meta.len() == size);
    fs::read(note).ok().filter(|_| whole).and_then(|note| read_note(&note, size)).map_or(0, |parts| parts.iter().sum())
}

/// Takes a file over that is `size` bytes long, of which the first `done` bytes of each part are there. Under the blob's lock. Does nothing if as
/// much is here already. The file is moved; across disks it is copied.
pub(super) fn take_over(blob: &Path, size: u64, from: &Path, done: &[u64]) -> Result<(), FetchError> {
    if bytes_here(blob, size) >= done.iter().sum() {
        return Ok(());
    }
    let [path, note] = paths(blob);
    let taken = (|| {
        // Without a note, nothing of the file counts until all of it is there.
        match fs::remove_file(&note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(from, &path).or_else(|_| fs::copy(from, &path).map(drop)).inspect_err(|_| drop(fs::remove_file(&path)))?; // half a copy takes room
        fs::write(&note, done.iter().flat_map(|done| done.to_le_bytes()).collect::<Vec<u8>>())
    })();
    taken.map_err(disk::write_error(&path, size))
}

fn read_note(note: &[u8], size: u64) -> Option<Vec<u64>> {
    let parts: Vec<u64> = note.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let fits = |(part, done): (u64, &u64)| *done <= part_len(size, part);
    (note.len() as u64 == size.div_ceil(PART_LEN) * 8 && (0..).zip(&parts).all(fits)).then_some(parts)
}

impl PartFile {
    /// Opens or begins it, under a lock that nobody else holds, and tells how many bytes of each part are here.
    pub(super) fn open(blob: &Path, size: u64, lock: Arc<File>) -> Result<(Self, Vec<u64>), FetchError> {
        let [path, note_path] = paths(blob);
        let open =
            |path: &Path| File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(FetchError::io(path));
        let (file, note) = (open(&path)?, open(&note_path)?);
        let known = fs::read(&note_path).ok().and_then(|note| read_note(&note, size));
        let whole = file.metadata().is_ok_and(|meta| meta.len() == size);
        let n_parts = size.div_ceil(PART_LEN);
        let parts = match known.filter(|_| whole) {
            Some(parts) => parts,
            None => {
                let begin = || {
                    note.set_len(0)?;
                    note.set_len(n_parts * 8)?;
                    file.set_len(0)?;
                    file.set_len(size)
                };
                begin().map_err(disk::write_error(&path, size))?;
                vec![0; n_parts as usize]
            }
        };
        Ok((Self { file: Arc::new(file), note: Arc::new(note), path, note_path, size, _lock: lock }, parts))
    }

    /// Writes bytes of a part behind the `done` that are there, and notes it. Returns how many are there then.
    pub(super) fn write(&self, part: u64, done: u64, bytes: &[Bytes]) -> Result<u64, FetchError> {
        let mut there = done;
        let mut write = || {
            for bytes in bytes {
                disk::write_at(&self.file, bytes, part * PART_LEN + there)?;
                there += bytes.len() as u64;
            }
            disk::write_at(&self.note, &there.to_le_bytes(), part * 8)?;
            io::Result::Ok(there)
        };
        write().map_err(disk::write_error(&self.path, self.size - part * PART_LEN - done))
    }

    /// The bytes, to be checked.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable and gives it its name.
    pub(super) fn finish(self, blob: &Path) -> Result<(), FetchError> {
        let finish = || {
            self.file.sync_all()?;
            fs::rename(&self.path, blob)?;
            disk::sync_folder(blob.parent().unwrap_or(Path::new(".")))
        };
        finish().map_err(disk::write_error(&self.path, 0))?;
        let _gone = fs::remove_file(&self.note_path);
        Ok(())
    }

    /// Throws it away.
    pub(super) fn discard(self) {
        for path in [&self.note_path, &self.path] {
            let _gone = fs::remove_file(path);
        }
    }
}
