//! A model from the hub, or from a mirror that speaks its language, into the cache.

mod api;
mod blob;
mod parts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use plexus_types::{Bytes, HubSource};
use tokio::sync::Semaphore;
use tracing::info;

use self::api::{Api, Listing, RemoteFile};
use self::blob::{BlobFetch, bytes_missing};
use crate::cache::CachedRepo;
use crate::config::StoreConfig;
use crate::disk::{self, blocking};
use crate::error::FetchError;
use crate::local::model_at;
use crate::progress::{Meter, Origin};
use crate::select::select;

/// Files that are fetched at a time: of those in line one waits for a lock, or for the last of its parts.
const FILES_AT_ONCE: usize = 4;
/// Requests to the hub at a time: enough to fill a line over which one connection is slow.
const REQUESTS_AT_ONCE: usize = 8;

/// Downloads what is missing of a model, and returns what an engine opens.
pub(crate) async fn fetch(config: &StoreConfig, source: &HubSource, meter: &Meter<'_>) -> Result<PathBuf, FetchError> {
    let cache = config.hub_caches.first().expect("a store has a cache");
    let api = Api::new(config, &source.repo).await?;
    let listing = api.listing(source.revision()).await?;
    let files = needed(&listing, source)?;
    let files = api.describe(&listing, files).await?;

    // Files of the same content are one blob.
    let blobs: BTreeMap<&str, &RemoteFile> = files.iter().map(|file| (file.etag.as_str(), file)).collect();
    let repo = CachedRepo::new(cache, &source.repo);
    let missing = make_room(&repo, &blobs).await?;
    let total = Bytes(blobs.values().map(|file| file.size).sum());
    info!(model = %source, commit = %listing.commit, files = files.len(), %total, %missing, "a model is downloaded");
    meter.begin(total, Origin::Hub);

    let requests = Semaphore::new(REQUESTS_AT_ONCE);
    let mut in_order: Vec<&RemoteFile> = blobs.into_values().collect();
    in_order.sort_by_key(|file| file.size); // what is small and may be refused comes first
    let fetch_one = |file| BlobFetch { api: &api, repo: &repo, commit: &listing.commit, file, requests: &requests, meter }.run();
    let fetches: Vec<_> = in_order.into_iter().map(fetch_one).collect();
    stream::iter(fetches).buffer_unordered(FILES_AT_ONCE).try_collect::<()>().await?;
    let (source, commit, config) = (source.clone(), listing.commit, config.clone());
    blocking(move || {
        let entry = publish(&repo, &source, &commit, &files)?;
        config.note_whole(&source, &commit)?;
        Ok(entry)
    })
    .await
}

/// Bytes of the files that a model needs, whether they are here or not.
pub(crate) async fn size(config: &StoreConfig, source: &HubSource) -> Result<Bytes, FetchError> {
    let api = Api::new(config, &source.repo).await?;
    let listing = api.listing(source.revision()).await?;
    let files = needed(&listing, source)?;
    let files = api.describe(&listing, files).await?;
    Ok(files.iter().map(|file| Bytes(file.size)).sum())
}

fn needed(listing: &Listing, source: &HubSource) -> Result<Vec<String>, FetchError> {
    let names: Vec<&str> = listing.files.keys().map(String::as_str).collect();
    let files = select(&names, source.quant.as_deref()).map_err(|unclear| unclear.of(&source.repo, source.quant.as_deref()))?;
    let in_safetensors = files.iter().any(|name| name.ends_with(".safetensors"));
    if in_safetensors && !files.iter().any(|name| name == "tokenizer.json") {
        return Err(FetchError::NoWeights { repo: source.repo.clone(), missing: "tokenizer.json is missing".to_owned() });
    }
    Ok(files)
}

/// Makes the folders, and sees whether what is missing has room. Returns how much is missing.
async fn make_room(repo: &CachedRepo, blobs: &BTreeMap<&str, &RemoteFile>) -> Result<Bytes, FetchError> {
    let (repo, blobs) = (repo.clone(), blobs.values().map(|file| (file.etag.as_str().to_owned(), file.size)).collect::<Vec<_>>());
    blocking(move || {
        let folder = repo.root().join("blobs");
        std::fs::create_dir_all(&folder).map_err(FetchError::io(&folder))?;
        let missing = Bytes(blobs.iter().map(|(etag, size)| bytes_missing(&repo.blob(etag), *size)).sum());
        disk::make_sure_of(missing, &folder)?;
        Ok(missing)
    })
    .await
}

/// Gives the blobs their names, and last of all the revision its commit: until then nobody looks at them.
fn publish(repo: &CachedRepo, source: &HubSource, commit: &str, files: &[RemoteFile]) -> Result<PathBuf, FetchError> {
    // Last comes what the rest does not count without: `config.json`, or the first part of a GGUF file.
    let opened = files.iter().position(|file| file.name == "config.json").unwrap_or(0);
    let (before, after) = files.split_at(opened);
    for file in after.iter().skip(1).chain(before).chain(after.first()) {
        repo.link(commit, &file.name, file.etag.as_str())?;
    }
    let snapshot: &Path = &repo.snapshot(commit);
    let model = model_at(snapshot, source.quant.as_deref())?;
    repo.set_commit(source.revision(), commit)?;
    Ok(model.entry)
}
