//! A model from the hub, or from a mirror that speaks its language, into the cache.

mod api;
mod blob;
mod parts;
mod reach;
mod tries;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use plexus_types::{Bytes, HubSource, ModelSource};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use self::api::{Api, Listing, RemoteFile};
use self::blob::{BlobFetch, bytes_missing};
pub(crate) use self::parts::paths as part_paths;
use self::parts::{PART_LEN, part_len};
pub(crate) use self::reach::Reach;
use crate::cache::CachedRepo;
use crate::config::StoreConfig;
use crate::disk::{self, blocking};
use crate::error::FetchError;
use crate::local::model_at;
use crate::peers::leftover::{Leftover, whole_from};
use crate::progress::{Meter, Origin};
use crate::select::select;

/// Files that are fetched at a time: of those in line one waits for a lock, or for the last of its parts.
const FILES_AT_ONCE: usize = 4;
/// Requests to the hub at a time: enough to fill a line over which one connection is slow.
const REQUESTS_AT_ONCE: usize = 8;

/// Downloads what is missing of a model, and returns what an engine opens.
pub(crate) async fn fetch(config: &StoreConfig, reach: &Reach, source: &HubSource, meter: &Meter<'_>) -> Result<PathBuf, FetchError> {
    meter.begin(Bytes(0), Origin::Hub); // from here on the other nodes wait for this one
    let cache = config.hub_caches.first().expect("a store has a cache");
    let api = Api::new(config, reach, source).await?;
    let listing = api.listing(source.revision()).await?;
    let files = needed(&listing, source)?;
    let files = api.describe(&listing, files).await?;

    // Files of the same content are one blob.
    let blobs: BTreeMap<&str, &RemoteFile> = files.iter().map(|file| (file.etag.as_str(), file)).collect();
    let repo = CachedRepo::new(cache, &source.repo);
    let taken_over = take_over(config, source, &repo, &blobs).await?;
    let missing = make_room(&repo, &blobs).await?;
    let total = Bytes(blobs.values().map(|file| file.size).sum());
    info!(model = %source, commit = %listing.commit, files = files.len(), %total, %missing, %taken_over, "a model is downloaded");
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

/// The size of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of its files.
    pub bytes: Bytes,
    /// Numbers that it consists of, if the hub tells.
    pub parameters: Option<u64>,
}

/// The size of the files that a model needs, whether they are here or not.
pub(crate) async fn size(config: &StoreConfig, reach: &Reach, source: &HubSource) -> Result<Size, FetchError> {
    let api = Api::new(config, reach, source).await?;
    let listing = api.listing(source.revision()).await?;
    let files = needed(&listing, source)?;
    let files = api.describe(&listing, files).await?;
    Ok(Size { bytes: files.iter().map(|file| Bytes(file.size)).sum(), parameters: listing.parameters })
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

/// Etags of the blobs of a repository of which this store has parts.
pub(crate) fn blobs_in_parts(repo: &CachedRepo) -> Vec<String> {
    let blobs = std::fs::read_dir(repo.root().join("blobs")).into_iter().flatten().flatten();
    let mut etags: Vec<String> = blobs.filter_map(|entry| parts::etag_of(entry.file_name().to_str()?).map(str::to_owned)).collect();
    etags.sort();
    etags.dedup();
    etags
}

/// Goes on with what other nodes gave and did not end, where that is safe: see [`crate::peers::leftover`]. Returns how much that is.
async fn take_over(
    config: &StoreConfig,
    source: &HubSource,
    repo: &CachedRepo,
    blobs: &BTreeMap<&str, &RemoteFile>,
) -> Result<Bytes, FetchError> {
    let (config, source, repo) = (config.clone(), ModelSource::Hub(source.clone()), repo.clone());
    let files: Vec<RemoteFile> = blobs.values().map(|file| (*file).clone()).collect();
    blocking(move || {
        let Some(leftover) = Leftover::open(&config, &source) else { return Ok(Bytes(0)) };
        let folder = repo.root().join("blobs");
        std::fs::create_dir_all(&folder).map_err(FetchError::io(&folder))?;
        let mut taken = Bytes(0);
        for RemoteFile { name, size, etag } in files {
            let (blob, lock) = (repo.blob(etag.as_str()), repo.lock(etag.as_str()));
            let Some((from, whole)) = leftover.file(&name, size, &etag) else { continue };
            let Some(_held) = disk::try_lock(&lock).map_err(FetchError::io(&lock))? else { continue };
            if bytes_missing(&blob, size) > 0 {
                let done: Vec<u64> =
                    (0..size.div_ceil(PART_LEN)).map(|part| whole_from(&whole, part * PART_LEN, part_len(size, part))).collect();
                match parts::take_over(&blob, size, &from, &done) {
                    Ok(()) => taken = taken + Bytes(done.iter().sum()),
                    Err(error) => warn!(file = name, %error, "what other nodes gave of a file could not be kept"),
                }
            }
        }
        if taken > Bytes(0) {
            leftover.remove(); // else it is kept for another try with the nodes, until the model is here or it is too old
        }
        Ok(taken)
    })
    .await
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
