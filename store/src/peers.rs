//! A model from other nodes: chunks from several at once, each checked before it counts.
//!
//! What came is kept in `incoming` of the store's folder with a note of the chunks that are whole, and goes on from there after an interruption;
//! chunks that the note speaks of are checked again. A node that sends a wrong chunk, or that cannot be reached three times in a row, is not asked
//! again in this fetch.

mod incoming;
pub(crate) mod leftover;
mod session;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, FuturesUnordered};
use futures::{StreamExt, TryStreamExt};
use plexus_types::{Bytes, ModelSource, NodeName};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::incoming::Incoming;
use self::session::{Answer, Session};
use self::transfer::Transfer;
use crate::config::StoreConfig;
use crate::disk::{self, blocking};
use crate::error::FetchError;
use crate::manifest::Manifest;
use crate::progress::{Flight, Meter, Origin, Progress};
use crate::store::{Inner, key};

/// How often a node that is getting the model itself is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Files that are checked at a time: each takes a processor.
const CHECKS_AT_ONCE: usize = 4;
/// A node whose own download stands still for so long is no longer waited for.
const STILL_MAX: Duration = Duration::from_secs(90);

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

/// Brings a model here from these nodes, of which at least one should have it or be getting it.
///
/// Errors: [`FetchError::Peers`] if none gave it; others if this node cannot take it.
pub(crate) async fn fetch(
    inner: &Arc<Inner>,
    source: &ModelSource,
    peers: &[NodeName],
    flight: &watch::Sender<Flight>,
) -> Result<PathBuf, FetchError> {
    let meter = Meter(flight);
    let (manifest, mut tried) = first_manifest(inner, source, peers, &meter).await?;
    let able: Vec<NodeName> = peers.iter().filter(|peer| !tried.iter().any(|(failed, _)| failed == *peer)).cloned().collect();

    let folder = incoming_folder(&inner.config, source);
    let lock = disk::lock(&incoming_lock(&folder)).await?;
    let (looking, looked_for) = (Arc::clone(inner), source.clone());
    if let Some(model) = blocking(move || Ok(looking.model(&looked_for))).await? {
        return Ok(model.entry); // another process was faster
    }
    meter.begin(manifest.total(), Origin::Peers(able.len()));
    let incoming = Arc::new(blocking(move || Incoming::open(folder, manifest, lock)).await?);
    info!(model = %source, total = %incoming.manifest().total(), here = %incoming.here(), peers = able.len(), "a model comes from other nodes");
    meter.add(incoming.here().0);

    let transfer = Transfer::new(Arc::clone(&incoming), Arc::clone(&inner.connect), flight.clone());
    tried.extend(transfer.run(&able).await?);
    if !incoming.is_whole() {
        return Err(FetchError::Peers { tried });
    }
    if let Some(problem) = first_damage(&incoming).await? {
        // Its chunks are those of the manifest, so the node's own file is damaged, and whoever has it from there has the same.
        warn!(model = %source, problem, "what other nodes have of a model is not what the hub had, so it is thrown away");
        blocking(move || incoming.discard()).await?;
        tried.extend(able.into_iter().map(|peer| (peer, problem.clone())));
        return Err(FetchError::Peers { tried });
    }
    let (inner, source) = (Arc::clone(inner), source.clone());
    blocking(move || {
        incoming.finish(&inner.kept(&source), &inner.hashes)?;
        let incomplete =
            || FetchError::NoWeights { repo: source.to_string(), missing: "what other nodes have of it is not whole".to_owned() };
        Ok(inner.model(&source).ok_or_else(incomplete)?.entry)
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

/// The manifest of the first node that has one, and the nodes that have none. Waits for nodes that will have one, unless another is quicker.
async fn first_manifest(
    inner: &Arc<Inner>,
    source: &ModelSource,
    peers: &[NodeName],
    meter: &Meter<'_>,
) -> Result<(Manifest, Vec<(NodeName, String)>), FetchError> {
    let mut asked: FuturesUnordered<_> =
        peers.iter().map(|peer| async move { (peer, manifest_of(inner, source, peer, meter).await) }).collect();
    let mut tried = Vec::new();
    while let Some((peer, answer)) = asked.next().await {
        match answer {
            Ok(manifest) => return Ok((manifest, tried)),
            Err(why) => {
                debug!(%peer, model = %source, why, "a node does not have a model");
                tried.push((peer.clone(), why));
            }
        }
    }
    Err(FetchError::Peers { tried })
}

async fn manifest_of(inner: &Arc<Inner>, source: &ModelSource, peer: &NodeName, meter: &Meter<'_>) -> Result<Manifest, String> {
    let (mut last, mut since) = (Bytes(0), Instant::now());
    loop {
        match Session::open(&*inner.connect, peer).await?.manifest(source).await? {
            Answer::Manifest(manifest) => return Ok(manifest),
            Answer::Soon(soon) => {
                meter.set(Progress { done: soon.done, total: soon.total, from: Origin::Awaited(peer.clone()) });
                if soon.done != last {
                    (last, since) = (soon.done, Instant::now());
                }
                if since.elapsed() > STILL_MAX {
                    return Err(format!("it has {} of {} and stands still", soon.done, soon.total));
                }
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
