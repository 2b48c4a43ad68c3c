//! What fetches left behind that nobody will go on with.
//!
//! A fetch that is given up keeps what came, for the next. Thrown away is what no fetch has touched for [`KEPT_FOR`], and what is superseded: the
//! blob, or the model, is here by now. Whatever somebody works at, in this process or another, is locked and left alone; so is whatever
//! other clients of the hub have left, whose rules are theirs, and the lock files of their cache.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plexus_types::{Bytes, ModelSource};
use tracing::{info, warn};

use crate::cache::{self, CachedRepo};
use crate::disk;
use crate::hub::{blobs_in_parts, part_paths};
use crate::manifest::Manifest;
use crate::peers::{incoming_folder, incoming_lock};
use crate::store::{Inner, Store};

/// How long a fetch that was given up may be gone on with: longer than a weekend.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most folders that are looked at, in each place.
const ENTRIES_MAX: usize = 10_000;
/// How often a node that goes on running is tidied.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Tidies now and once a day, until every other clone of this store is gone.
    pub async fn keep_tidy(self) {
        let store = Arc::downgrade(&self.inner);
        drop(self);
        while let Some(inner) = store.upgrade() {
            let store = Self { inner };
            if let Err(error) = tokio::task::spawn_blocking(move || store.tidy(SystemTime::now())).await {
                warn!(%error, "tidying the store failed");
            }
            tokio::time::sleep(TIDY_EVERY).await;
        }
    }

    /// Deletes what earlier fetches left behind and nobody will go on with, and returns how much that was. Reads the disk: not for an async thread.
    pub fn tidy(&self, now: SystemTime) -> Bytes {
        self.inner.served.forget_deleted();
        let freed = self.inner.tidy_caches(now) + self.inner.tidy_incoming(now);
        if freed > Bytes(0) {
            info!(%freed, "downloads that were never ended are deleted");
        }
        freed
    }
}

impl Inner {
    /// Parts of files from a hub.
    fn tidy_caches(&self, now: SystemTime) -> Bytes {
        let mut freed = Bytes(0);
        let under_way: BTreeSet<PathBuf> = self.roots_under_way();
        let repos = self.config.hub_caches.iter().flat_map(|cache| cache::repos(cache, ENTRIES_MAX));
        for repo in repos.filter(|repo| !under_way.contains(&repo.root())) {
            for etag in blobs_in_parts(&repo) {
                let blob = repo.blob(&etag);
                let Some(_held) = free_to_take(&repo.lock(&etag)) else { continue };
                let files = part_paths(&blob);
                if blob.is_file() || files.iter().all(|file| is_old(file, now)) {
                    freed = freed + files.iter().map(|file| remove(file)).sum();
                }
            }
        }
        freed
    }

    /// The repositories in the caches that fetches under way may be about to go on with.
    fn roots_under_way(&self) -> BTreeSet<PathBuf> {
        let caches = &self.config.hub_caches;
        let roots = |source| match source {
            ModelSource::Hub(hub) => caches.iter().map(|cache| CachedRepo::new(cache, &hub.repo).root()).collect(),
            ModelSource::Path(_) | ModelSource::Embedded => Vec::new(),
        };
        self.under_way().into_iter().flat_map(roots).collect()
    }

    /// Chunks from other nodes.
    fn tidy_incoming(&self, now: SystemTime) -> Bytes {
        let mut freed = Bytes(0);
        let under_way: BTreeSet<PathBuf> = self.under_way().iter().map(|source| incoming_folder(&self.config, source)).collect();
        let entries = fs::read_dir(self.config.folder.join("incoming")).into_iter().flatten().flatten().take(ENTRIES_MAX);
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.map(|entry| entry.path()).partition(|path| path.is_dir());
        for folder in folders.into_iter().filter(|folder| !under_way.contains(folder)) {
            let Some(_held) = free_to_take(&incoming_lock(&folder)) else { continue };
            let manifest = fs::read(folder.join("manifest.json")).ok().and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
            let is_here = manifest.is_some_and(|manifest| self.model(&manifest.source).is_some());
            // The note is written with each chunk.
            if is_here || ["whole", "manifest.json"].iter().all(|name| is_old(&folder.join(name), now)) {
                freed = freed + remove_folder(&folder);
            }
        }
        for lock in files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "lock")) {
            let folder = lock.with_extension("");
            let Some(_held) = free_to_take(&lock).filter(|_| !folder.exists() && !under_way.contains(&folder)) else { continue };
            remove(&lock);
        }
        freed
    }
}

/// The lock, unless somebody works there.
fn free_to_take(lock: &Path) -> Option<fs::File> {
    disk::try_lock(lock).unwrap_or_else(|error| {
        warn!(lock = %lock.display(), %error, "a lock could not be looked at, so what it guards is left as it is");
        None
    })
}

/// Was it last written before [`KEPT_FOR`], or is it not there?
fn is_old(path: &Path, now: SystemTime) -> bool {
    match path.metadata().and_then(|meta| meta.modified()) {
        Ok(modified) => now.duration_since(modified).is_ok_and(|age| age > KEPT_FOR),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn remove(path: &Path) -> Bytes {
    let size = path.metadata().map_or(0, |meta| meta.len());
    match fs::remove_file(path) {
        Ok(()) => Bytes(size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Bytes(0),
        Err(error) => {
            warn!(path = %path.display(), %error, "an abandoned download could not be deleted");
            Bytes(0)
        }
    }
}

fn remove_folder(folder: &Path) -> Bytes {
    let mut size = Bytes(0);
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(within).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => size = size + Bytes(meta.len()),
                Err(_) => {} // gone meanwhile
            }
        }
    }
    match fs::remove_dir_all(folder) {
        Ok(()) => size,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Bytes(0), // whoever fetched it was done meanwhile
        Err(error) => {
            warn!(folder = %folder.display(), %error, "an abandoned download could not be deleted");
            Bytes(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::StoreConfig;
    use crate::store::tests::{Idle, Nobody};

    #[tokio::test(start_paused = true)]
    async fn a_node_that_goes_on_running_is_tidied_every_day_but_not_where_a_fetch_may_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(StoreConfig::new(folder.path().to_owned()), Arc::<Nobody>::default());
        let abandon = |source: &ModelSource| {
            let incoming = incoming_folder(&store.inner.config, source);
            fs::create_dir_all(&incoming).unwrap();
            fs::write(incoming.join("manifest.json"), b"{}").unwrap();
            fs::File::options().write(true).open(incoming.join("manifest.json")).unwrap().set_modified(UNIX_EPOCH).unwrap();
            incoming
        };
        let sources = ["hf:org/one", "hf:org/two"].map(|source| source.parse().unwrap());
        let (one, two) = (abandon(&sources[0]), abandon(&sources[1]));
        let flight = Idle::begin(&store, &sources[1]);
        let tidying = tokio::spawn(store.clone().keep_tidy());
        let gone = async |folder: &Path| {
            while folder.exists() {
                tokio::time::sleep(TIDY_EVERY / 24).await;
            }
        };
        gone(&one).await;
        assert!(two.exists(), "somebody goes on with it");
        drop(flight);
        gone(&two).await;
        gone(&abandon(&sources[0])).await;
        drop(store);
        tidying.await.unwrap();
    }
}
