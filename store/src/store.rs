//! The store of a node.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::future::BoxFuture;
use plexus_types::{Bytes, HubSource, ModelSource, NodeName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::cache::CachedRepo;
use crate::config::StoreConfig;
use crate::disk::blocking;
use crate::error::{FetchError, held_by_nobody};
use crate::hub::{self, Reach, Size};
use crate::local::{LocalModel, model_at, model_of};
use crate::manifest::{HashCache, Manifest};
use crate::peers;
use crate::progress::{AbortOnDrop, Fetch, Flight, Meter, Origin, Progress, UnderWay};
use crate::serve::Served;

/// A connection to another node's store, encrypted and authenticated by whoever made it.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How other nodes' stores are reached.
pub trait Connect: Send + Sync + 'static {
    /// This node, as the others call it.
    fn me(&self) -> &NodeName;

    /// Opens a connection to a node's store and makes sure that it is that node. Must end by itself within some seconds.
    fn connect<'a>(&'a self, peer: &'a NodeName) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;
}

/// A fetch under way, which does not live on for being listed.
type Watched = (watch::Receiver<Flight>, Weak<AbortOnDrop>);

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// In the binary.
    Embedded,
    /// Here, for the engine to open: a folder, or a `.gguf` file.
    Here(PathBuf),
    /// Not on this node, or not all of them.
    Absent,
}

/// What the caches of the hub hold of a model.
enum Cached {
    /// All of it.
    Whole(LocalModel),
    /// What an engine could open; why something else may be missing.
    Doubtful(String),
}

/// The store of a node. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) hashes: HashCache,
    pub(crate) served: Served,
    reach: Reach,
    /// Fetches under way.
    flights: Mutex<HashMap<ModelSource, Watched>>,
    /// Paths that other nodes may ask for.
    shared: Mutex<BTreeSet<ModelSource>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Store {
    /// A store. Touches neither disk nor network yet.
    pub fn new(mut config: StoreConfig, connect: Arc<dyn Connect>) -> Self {
        if config.hub_caches.is_empty() {
            config.hub_caches.push(config.folder.join("hub"));
        }
        while config.endpoint.ends_with('/') {
            config.endpoint.pop();
        }
        let hashes = HashCache::new(config.folder.join("hashes"));
        let inner = Inner {
            config,
            connect,
            hashes,
            served: Served::default(),
            reach: Reach::default(),
            flights: Mutex::default(),
            shared: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where a model's files are, if all of them are on this node.
    ///
    /// A path is taken as it is, if there is something. A revision of a hub's repository stands for what it stood for when it was last fetched: the
    /// hub is not asked. Looks at a few files: quick, but not for an async thread.
    pub fn locate(&self, source: &ModelSource) -> Located {
        match source {
            ModelSource::Embedded => Located::Embedded,
            source => self.inner.entry(source).map_or(Located::Absent, Located::Here),
        }
    }

    /// Brings a model's files here, from the nodes in `peers` if one of them has them or is getting them, else from the hub.
    ///
    /// Returns at once. A second call for the same source joins the first, whatever its `peers`. Done at once if the files are here already.
    /// A `peers` that gives nothing is no error for a source of a hub. Must be called within a tokio runtime.
    pub fn fetch(&self, source: &ModelSource, peers: &[NodeName]) -> Fetch {
        let mut flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((watch, task)) = flights.get(source)
            && let Some(task) = task.upgrade()
        {
            return Fetch { watch: watch.clone(), _task: task };
        }
        let (sender, watch) = watch::channel(Flight::START);
        let (inner, task_source, peers) = (Arc::clone(&self.inner), source.clone(), peers.to_vec());
        let task = tokio::spawn(async move {
            let outcome = inner.bring(&task_source, &peers, &sender).await.map_err(Arc::new);
            inner.on_ended(&task_source, &sender);
            sender.send_modify(|flight| flight.outcome = Some(outcome));
        });
        let task = Arc::new(AbortOnDrop(task.abort_handle()));
        flights.insert(source.clone(), (watch.clone(), Arc::downgrade(&task)));
        Fetch { watch, _task: task }
    }

    /// Fetches under way, and what a hub is asked for in vain before one.
    pub fn fetching(&self) -> Vec<UnderWay> {
        let mut failures = self.inner.reach.tries.failures();
        let flights = self.inner.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let living = flights.iter().filter(|(_, (_, task))| task.strong_count() > 0);
        let fetches = living.map(|(source, (watch, _))| UnderWay {
            source: source.clone(),
            progress: watch.borrow().progress.clone(),
            failure: failures.remove(source),
        });
        let mut all: Vec<UnderWay> = fetches.collect();
        // A hub that does not even say how large a model is.
        let asked = Progress { from: Origin::Hub, ..Progress::START };
        all.extend(failures.into_iter().map(|(source, why)| UnderWay { source, progress: asked.clone(), failure: Some(why) }));
        all
    }

    /// The address of the hub, or of its mirror.
    pub fn endpoint(&self) -> &str {
        &self.inner.config.endpoint
    }

    /// The size of a model, for a decision before it is fetched. Asks the hub if it is not here.
    pub async fn size(&self, source: &ModelSource) -> Result<Size, FetchError> {
        let (inner, looked_for) = (Arc::clone(&self.inner), source.clone());
        let here = blocking(move || {
            let Some(model) = inner.model(&looked_for) else { return Ok(None) };
            let size = |(_, path): &(String, PathBuf)| Ok(Bytes(path.metadata().map_err(FetchError::io(path))?.len()));
            model.files.iter().map(size).sum::<Result<Bytes, FetchError>>().map(Some)
        });
        match (here.await?, source) {
            (Some(bytes), _) => Ok(Size { bytes, parameters: None }),
            (None, ModelSource::Hub(source)) => hub::size(&self.inner.config, &self.inner.reach, source).await,
            (None, ModelSource::Path(path)) => Err(self.inner.no_such_path(path, Vec::new())),
            (None, ModelSource::Embedded) => Err(FetchError::Embedded),
        }
    }

    /// Another node says why it has not loaded a model. If it could not reach the hub that this one asks too, this one need not wait for it as long:
    /// for a while it asks once, for its way may be open.
    pub fn on_told(&self, why: &str) {
        if FetchError::tells_unreachable(why, &self.inner.config.endpoint) {
            self.inner.reach.on_told(Instant::now());
        }
    }

    /// Lets other nodes ask for these, beside what the caches of the hub hold. Only for models at a path does it make a difference: no other path
    /// is ever read for another node. Replaces what was said before.
    pub fn share(&self, sources: impl IntoIterator<Item = ModelSource>) {
        *self.inner.shared.lock().unwrap_or_else(PoisonError::into_inner) = sources.into_iter().collect();
    }
}

impl Inner {
    /// What an engine opens, if it is on this node. A path is taken as it is.
    fn entry(&self, source: &ModelSource) -> Option<PathBuf> {
        match source {
            ModelSource::Path(path) if path.exists() => Some(path.clone()),
            source => self.model(source).map(|model| model.entry),
        }
    }

    /// The model, if all of its files are on this node.
    pub(crate) fn model(&self, source: &ModelSource) -> Option<LocalModel> {
        let here = match source {
            ModelSource::Embedded => None,
            ModelSource::Path(path) => model_at(path, None).ok(),
            ModelSource::Hub(hub) => match self.in_caches(hub) {
                Some(Cached::Whole(model)) => Some(model),
                Some(Cached::Doubtful(_)) | None => None,
            },
        };
        here.or_else(|| self.of_peers(source))
    }

    /// What the caches hold of a model: the first that is whole, else the first that may be. Where the hub must not be asked, there is no doubt:
    /// what is there is all that there will be.
    fn in_caches(&self, hub: &HubSource) -> Option<Cached> {
        let mut doubtful = None;
        for cache in &self.config.hub_caches {
            let repo = CachedRepo::new(cache, &hub.repo);
            let Some((model, commit)) = repo.model(hub) else { continue };
            match repo.doubt(&model) {
                Some(why) if !self.config.offline && !self.config.is_noted_whole(hub, &commit) => {
                    doubtful = doubtful.or(Some(Cached::Doubtful(why)));
                }
                _ => return Some(Cached::Whole(model)),
            }
        }
        doubtful
    }

    /// A model that came whole from other nodes.
    fn of_peers(&self, source: &ModelSource) -> Option<LocalModel> {
        let folder = self.kept(source);
        let text = std::fs::read(folder.join("manifest.json")).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        manifest.check().ok()?;
        model_of(&folder.join("files"), manifest.files.into_iter().map(|file| file.name).collect()).ok()
    }

    /// Where a model is kept that comes from other nodes.
    pub(crate) fn kept(&self, source: &ModelSource) -> PathBuf {
        self.config.folder.join("models").join(key(source))
    }

    /// May other nodes ask for it?
    pub(crate) fn is_shared(&self, source: &ModelSource) -> bool {
        match source {
            ModelSource::Embedded => false,
            ModelSource::Hub(_) => true,
            ModelSource::Path(_) => self.shared.lock().unwrap_or_else(PoisonError::into_inner).contains(source),
        }
    }

    /// How far a fetch is.
    pub(crate) fn flight_of(&self, source: &ModelSource) -> Option<Flight> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let (watch, task) = flights.get(source)?;
        (task.strong_count() > 0).then(|| watch.borrow().clone())
    }

    /// What is being fetched.
    pub(crate) fn under_way(&self) -> Vec<ModelSource> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.iter().filter(|(_, (_, task))| task.strong_count() > 0).map(|(source, _)| source.clone()).collect()
    }

    /// A fetch is no longer under way. Where all had dropped it, another may have begun since, which stays.
    fn on_ended(&self, source: &ModelSource, ended: &watch::Sender<Flight>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(source).is_some_and(|(watch, _)| ended.subscribe().same_channel(watch)) {
            flights.remove(source);
        }
    }

    fn no_such_path(&self, path: &Path, tried: Vec<(NodeName, String)>) -> FetchError {
        FetchError::NoSuchPath { path: path.to_owned(), node: self.connect.me().clone(), tried }
    }

    /// Would this node ask a hub for it, if no other node has it?
    pub(crate) fn may_go_outside(&self, source: &ModelSource) -> bool {
        matches!(source, ModelSource::Hub(_)) && !self.config.offline
    }

    async fn bring(
        self: &Arc<Self>,
        source: &ModelSource,
        nodes: &[NodeName],
        flight: &watch::Sender<Flight>,
    ) -> Result<PathBuf, FetchError> {
        let (inner, looked_for) = (Arc::clone(self), source.clone());
        if let Some(here) = blocking(move || Ok(inner.entry(&looked_for))).await? {
            return Ok(here);
        }
        // What is nearly whole here costs least at the hub: its list, and the few files that are missing.
        if let ModelSource::Hub(hub) = source
            && let Some(why) = self.doubt(hub).await?
        {
            return self.complete(hub, why, nodes, flight).await;
        }
        let unserved = match nodes {
            [] => None,
            nodes => match peers::fetch(self, source, nodes, flight).await {
                Err(error @ FetchError::Peers { .. }) => Some(error),
                other => return other,
            },
        };
        match (source, unserved) {
            (ModelSource::Hub(source), unserved) => {
                if unserved.as_ref().is_some_and(FetchError::is_held_by_nobody) {
                    debug!(model = %source, "no other node has the model, so the hub is asked");
                } else if let Some(unserved) = unserved {
                    warn!(model = %source, error = %unserved, "no other node gave a model, so the hub is asked");
                }
                hub::fetch(&self.config, &self.reach, source, &Meter(flight)).await
            }
            (ModelSource::Path(path), Some(FetchError::Peers { tried })) if held_by_nobody(&tried) => Err(self.no_such_path(path, tried)),
            (_, Some(unserved)) => Err(unserved),
            (ModelSource::Path(path), None) => Err(self.no_such_path(path, Vec::new())),
            (ModelSource::Embedded, None) => Err(FetchError::Embedded),
        }
    }
}

impl Inner {
    async fn doubt(self: &Arc<Self>, hub: &HubSource) -> Result<Option<String>, FetchError> {
        let (inner, looked_for) = (Arc::clone(self), hub.clone());
        let cached = blocking(move || Ok(inner.in_caches(&looked_for))).await?;
        Ok(cached.and_then(|cached| match cached {
            Cached::Whole(_) => None,
            Cached::Doubtful(why) => Some(why),
        }))
    }

    /// Fetches what a model may lack, from the hub, or all of it from the nodes if the hub does not give it.
    async fn complete(
        self: &Arc<Self>,
        hub: &HubSource,
        why: String,
        nodes: &[NodeName],
        flight: &watch::Sender<Flight>,
    ) -> Result<PathBuf, FetchError> {
        info!(model = %hub, why, "a model in a cache may not be whole, so the hub is asked");
        let refused = match hub::fetch(&self.config, &self.reach, hub, &Meter(flight)).await {
            Ok(path) => return Ok(path),
            Err(error) => error,
        };
        if !nodes.is_empty() {
            match peers::fetch(self, &ModelSource::Hub(hub.clone()), nodes, flight).await {
                Err(FetchError::Peers { .. }) => {}
                other => return other,
            }
        }
        Err(FetchError::Doubtful { repo: hub.repo.clone(), why, source: Box::new(refused) })
    }
}

/// A name for a source's folder: its end for people, and a hash so that no two share one.
pub(crate) fn key(source: &ModelSource) -> String {
    let text = source.to_string();
    let readable: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' }).collect();
    let readable = readable.trim_start_matches(['.', '-']);
    let start = readable.len().saturating_sub(80);
    format!("{}-{}", &readable[start..], &blake3::hash(text.as_bytes()).to_hex()[..16])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// There are no other nodes.
    pub(crate) struct Nobody(NodeName);

    impl Default for Nobody {
        fn default() -> Self {
            Self("n1".parse().unwrap())
        }
    }

    impl Connect for Nobody {
        fn me(&self) -> &NodeName {
            &self.0
        }

        fn connect<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
            Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
        }
    }

    /// A fetch under way that does nothing, until it is dropped.
    pub(crate) struct Idle(watch::Sender<Flight>, Arc<AbortOnDrop>);

    impl Idle {
        pub(crate) fn begin(store: &Store, source: &ModelSource) -> Self {
            let (sender, watch) = watch::channel(Flight::START);
            let task = Arc::new(AbortOnDrop(tokio::spawn(std::future::pending::<()>()).abort_handle()));
            store.inner.flights.lock().unwrap().insert(source.clone(), (watch, Arc::downgrade(&task)));
            Self(sender, task)
        }
    }

    #[tokio::test]
    async fn a_fetch_that_ends_late_does_not_end_the_one_that_took_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(StoreConfig::new(folder.path().to_owned()), Arc::<Nobody>::default());
        let source: ModelSource = "hf:org/name".parse().unwrap();
        let [Idle(first, _dropped), second] = [(); 2].map(|()| Idle::begin(&store, &source));
        store.inner.on_ended(&source, &first);
        assert_eq!(store.fetching().len(), 1);
        store.inner.on_ended(&source, &second.0);
        assert_eq!(store.fetching(), []);
        drop(second.1);
    }
}
