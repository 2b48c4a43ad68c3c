//! Files written so that they are either whole or not there.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plexus_types::Bytes;

use crate::error::FetchError;

/// How often a lock that another process holds is tried again.
const LOCK_EVERY: Duration = Duration::from_millis(200);

/// Bytes that may still be written where `folder` lies.
pub(crate) fn free(folder: &Path) -> io::Result<Bytes> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

/// Errors: [`FetchError::NoSpace`] if `needed` bytes have no room in `folder`.
pub(crate) fn make_sure_of(needed: Bytes, folder: &Path) -> Result<(), FetchError> {
    let available = free(folder).map_err(FetchError::io(folder))?;
    if needed > available { Err(FetchError::NoSpace { needed, available, folder: folder.to_owned() }) } else { Ok(()) }
}

/// Tells a full disk from other errors of a file with `left` bytes to go.
pub(crate) fn write_error(path: &Path, left: u64) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let folder = path.parent().unwrap_or(&path).to_owned();
            FetchError::NoSpace { needed: Bytes(left), available: free(&folder).unwrap_or_default(), folder }
        }
        _ => FetchError::Io { path, source },
    }
}

/// Writes at a place, whatever the position of the file is.
pub(crate) fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)
}

/// Reads from a place until `buffer` is full.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(buffer, at)
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a small file whole or not at all, and its folder if it is not there. It is durable when this returns.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let beside = beside(path);
    let written = (|| {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _gone = fs::remove_file(&beside);
    }
    written?;
    sync_folder(folder)
}

/// A name for what is not whole yet, of this call alone.
pub(crate) fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.incomplete", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Waits until no other process of this machine works at what `path` stands for. Let go when the file is dropped.
pub(crate) async fn lock(path: &Path) -> Result<File, FetchError> {
    loop {
        if let Some(file) = try_lock(path).map_err(FetchError::io(path))? {
            return Ok(file);
        }
        tokio::time::sleep(LOCK_EVERY).await;
    }
}

/// The lock, unless somebody on this machine holds it.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        // Whoever held it may have deleted it: then it locks nothing any more.
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Is this file the one that has the name?
fn is_at(file: &File, path: &Path) -> bool {
    let which = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().is_ok_and(|own| fs::metadata(path).is_ok_and(|there| which(own) == which(there)))
}

/// Runs what blocks where it may. A panic of it ends the caller's task as an error.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, FetchError> + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(FetchError::Lost(error.to_string())))
}
