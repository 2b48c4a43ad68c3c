//! A model from other nodes: chunks from several at once, each checked before it counts.
//!
//! What came is kept in `incoming` of the store's folder with a note of the chunks that are whole, and goes on from there after an interruption;
//! chunks that the note speaks of are checked again. A node that sends a wrong chunk, or that cannot be reached three times in a row, is not asked
//! again in this fetch.
//!
//! Where no node has a model, those that want it agree which of them fetches it from the hub: see [`turn`].

mod asking;
mod incoming;
pub(crate) mod leftover;
mod session;
mod transfer;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream;
use futures::{StreamExt, TryStreamExt};
use plexus_types::{ModelSource, NodeName};
use tokio::sync::watch;
use tracing::{info, warn};

use self::asking::{Asking, Offer};
use self::incoming::Incoming;
use self::transfer::Transfer;
use crate::config::StoreConfig;
use crate::disk::{self, blocking};
use crate::error::FetchError;
use crate::manifest::Manifest;
use crate::progress::{Flight, Meter, Origin};
use crate::store::{Inner, key};

/// Files that are checked at a time: each takes a processor.
const CHECKS_AT_ONCE: usize = 4;

/// Where a model lies while it comes from other nodes.
pub(crate) fn incoming_folder(config: &StoreConfig, source: &ModelSource) -> PathBuf {
    config.folder.join("incoming").join(key(source))
}

/// The lock of such a folder.
pub(crate) fn incoming_lock(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    folder.with_file_name(name)
}

/// Brings a model here from these nodes. Where none has it, but some want it as well, one of them fetches it from the hub and the others wait.
///
/// Errors: [`FetchError::Peers`] if none gives it, and none is to be waited for; others if this node cannot take it.
pub(crate) async fn fetch(
    inner: &Arc<Inner>,
    source: &ModelSource,
    peers: &[NodeName],
    flight: &watch::Sender<Flight>,
) -> Result<PathBuf, FetchError> {
    let mut given_up = Vec::new();
    loop {
        let Offer { manifest, able } = Asking { inner, source, meter: Meter(flight) }.offer(peers, &mut given_up).await?;
        match take(inner, source, manifest, &able, flight).await? {
            Taken::Whole(path) => return Ok(path),
            Taken::Not(failed) if failed.is_empty() => return Err(FetchError::Peers { tried: given_up }),
            Taken::Not(failed) => given_up.extend(failed),
        }
    }
}

/// What came of a transfer.
enum Taken {
    Whole(PathBuf),
    /// These did not give it, and why.
    Not(Vec<(NodeName, String)>),
}

/// Fetches what a manifest describes from these nodes.
async fn take(
    inner: &Arc<Inner>,
    source: &ModelSource,
    manifest: Manifest,
    able: &[NodeName],
    flight: &watch::Sender<Flight>,
) -> Result<Taken, FetchError> {
    let meter = Meter(flight);
    let folder = incoming_folder(&inner.config, source);
    let lock = disk::lock(&incoming_lock(&folder)).await?;
    let (looking, looked_for) = (Arc::clone(inner), source.clone());
    if let Some(model) = blocking(move || Ok(looking.model(&looked_for))).await? {
        return Ok(Taken::Whole(model.entry)); // another process was faster
    }
    meter.begin(manifest.total(), Origin::Peers(able.len()));
    let incoming = Arc::new(blocking(move || Incoming::open(folder, manifest, lock)).await?);
    info!(model = %source, total = %incoming.manifest().total(), here = %incoming.here(), peers = able.len(), "a model comes from other nodes");
    meter.is_here(incoming.here().0);

    let transfer = Transfer::new(Arc::clone(&incoming), Arc::clone(&inner.connect), flight.clone());
    let failed = transfer.run(able).await?;
    if !incoming.is_whole() {
        return Ok(Taken::Not(failed));
    }
    if let Some(problem) = first_damage(&incoming).await? {
        // Its chunks are those of the manifest, so the node's own file is damaged, and whoever has it from there has the same.
        warn!(model = %source, problem, "what other nodes have of a model is not what the hub had, so it is thrown away");
        blocking(move || incoming.discard()).await?;
        return Ok(Taken::Not(able.iter().map(|peer| (peer.clone(), problem.clone())).collect()));
    }
    let (inner, source) = (Arc::clone(inner), source.clone());
    blocking(move || {
        incoming.finish(&inner.kept(&source), &inner.hashes)?;
        let incomplete =
            || FetchError::NoWeights { repo: source.to_string(), missing: "what other nodes have of it is not whole".to_owned() };
        Ok(Taken::Whole(inner.model(&source).ok_or_else(incomplete)?.entry))
    })
    .await
}

/// Checks whole files against the hub's hashes of them, where the manifest names those, and says what is wrong with one.
async fn first_damage(incoming: &Arc<Incoming>) -> Result<Option<String>, FetchError> {
    let check = |file| {
        let incoming = Arc::clone(incoming);
        blocking(move || incoming.check(file))
    };
    let checks: Vec<_> = (0..incoming.manifest().files.len()).map(check).collect();
    let results: Vec<_> = stream::iter(checks).buffer_unordered(CHECKS_AT_ONCE).try_collect().await?;
    Ok(results.into_iter().find_map(Result::err))
}
