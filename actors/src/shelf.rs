//! The files of this node's models: where they are, and how they get here. What the catalogue looks at and what replicas load from.

mod gathering;
mod kept;
mod opened;

use std::sync::{Arc, Mutex};
use std::{fmt, io};

use plexus_engine::model::ModelPath;
use plexus_store::{FetchError, Located, Progress, Size, Store, UnderWay};
use plexus_types::{FilesDigest, ModelProfile, ModelSource, NodeId, NodeName};
use tracing::info;

pub use self::gathering::Gathering;
use self::kept::Kept;
pub use self::opened::{Fingerprint, OpenError, Opened};
use crate::peers::Peers;

/// Nothing is known of a model's files: in particular not that none is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("looking for its files panicked")]
pub struct LookPanicked;

/// The store of this node, and whom it may ask. Cheap to clone.
#[derive(Clone)]
pub struct Shelf {
    store: Store,
    peers: Peers,
    gathering: Option<Gathering>,
    kept: Arc<Mutex<Option<Kept>>>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shelf").field(&self.store).finish()
    }
}

impl Shelf {
    /// The shelf over a store. `gathering`: whom to wait for at first; absent if this node was told of no other.
    pub fn new(store: Store, peers: Peers, gathering: Option<Gathering>) -> Self {
        Self { store, peers, gathering, kept: Arc::default() }
    }

    /// Where the files are, if all are here. Looks at the disk.
    pub fn locate(&self, source: &ModelSource) -> Option<ModelPath> {
        match self.store.locate(source) {
            Located::Embedded => Some(ModelPath::Embedded),
            Located::Here(path) => Some(ModelPath::Path(path)),
            Located::Absent => None,
        }
    }

    /// As [`Shelf::missing`], for an async task.
    pub async fn find_missing(&self, profile: &ModelProfile) -> Result<Vec<ModelSource>, LookPanicked> {
        let (shelf, profile) = (self.clone(), profile.clone());
        look(move || shelf.missing(&profile)).await
    }

    /// What of a model is not here: its own files, or those of its draft model. Looks at the disk.
    pub fn missing(&self, profile: &ModelProfile) -> Vec<ModelSource> {
        let sources = std::iter::once(&profile.source).chain(&profile.draft);
        sources.filter(|source| self.locate(source).is_none()).cloned().collect()
    }

    /// The size of a model, for a decision before it is fetched.
    pub async fn size(&self, source: &ModelSource) -> Result<Size, FetchError> {
        self.store.size(source).await
    }

    /// Another node says why it has not loaded a model.
    pub fn on_told(&self, why: &str) {
        self.store.on_told(why);
    }

    /// Brings files here, from the other nodes if one has them, else from the hub. Asked are those that `may_give` them; `watch` sees the progress.
    pub async fn fetch(
        &self,
        source: &ModelSource,
        may_give: impl Fn(&NodeId) -> bool,
        mut watch: impl FnMut(Progress),
    ) -> Result<(), Arc<FetchError>> {
        if let Some(gathering) = &self.gathering {
            gathering.gathered(&self.peers).await;
        }
        let peers = self.peers.list();
        let peers: Vec<NodeName> = peers.iter().map(|peer| peer.id()).filter(|id| may_give(id)).map(|id| id.name.clone()).collect();
        let mut fetch = self.store.fetch(source, &peers);
        watch(fetch.progress());
        while fetch.changed().await {
            watch(fetch.progress());
        }
        fetch.done().await.map(drop)
    }

    /// Takes away the copy that came from other nodes, if there is one that holds something other than what `counts`. Reads some of it.
    ///
    /// Errors: what the disk says.
    pub fn discard_outdated(&self, source: &ModelSource, counts: FilesDigest) -> io::Result<bool> {
        let is_outdated = self.store.is_copy(source) && self.store.digest(source)?.is_some_and(|digest| digest != counts);
        if is_outdated {
            info!(%source, "a copy that came from other nodes is taken away: their files are others by now");
            self.store.discard_copy(source)?;
        }
        Ok(is_outdated)
    }

    /// What is being fetched, and how far it is.
    pub fn fetching(&self) -> Vec<UnderWay> {
        self.store.fetching()
    }

    /// The address of the hub that this node asks.
    pub fn hub(&self) -> &str {
        self.store.endpoint()
    }

    /// Lets other nodes have these.
    pub fn share(&self, sources: impl IntoIterator<Item = ModelSource>) {
        self.store.share(sources);
    }
}

/// Looks at the disk where that may block.
async fn look<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T, LookPanicked> {
    tokio::task::spawn_blocking(look).await.map_err(|_panicked| LookPanicked)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use plexus_store::StoreConfig;

    use super::*;
    use crate::link::StoreLinks;
    use crate::membership::NetTiming;
    use crate::secret::ClusterSecret;

    /// The shelf of a node that speaks to nobody.
    pub(crate) fn alone(me: NodeId, store: &Path) -> Shelf {
        let links = StoreLinks::new(ClusterSecret::generate(), me.name.clone(), NetTiming::default(), |_| None);
        Shelf::new(Store::new(StoreConfig::new(store.to_owned()), Arc::new(links)), Peers::new(me), None)
    }

    #[tokio::test]
    async fn a_look_that_panics_has_not_found_that_nothing_is_missing() {
        assert_eq!(look(Vec::<ModelSource>::new).await, Ok(Vec::new()));
        assert_eq!(look(|| -> Vec<ModelSource> { panic!("a file of a kind that nobody expected") }).await, Err(LookPanicked));
    }
}
