//! Models' files between nodes: HTTP over the links' own port and certificates, on connections of its own, so that a long file is never in the
//! way of what actors say to each other.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use plexus_store::{Connect, Io, Store};
use plexus_types::{NodeFacts, NodeName};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::socket::{self, Knife, Refused, tune_with};
use super::tls::{Tls, is_to_store, name_in_certificate};
use crate::membership::NetTiming;
use crate::secret::ClusterSecret;

/// Most connections to this node's store at a time. A node that fetches has two to each other node.
const CONNECTIONS_MAX: usize = 64;
/// What is encrypted before it is written to a socket: fewer calls, and fewer times that the other end wakes up.
const WRITE_LEN: usize = 256 << 10;
/// How long the other end may take nothing: it may have a slow disk, where a link's end may not.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// What is read from a socket at a time. By itself TLS reads four times for each of its records, of which one holds 16 KiB.
const READ_LEN: usize = 128 << 10;

/// The store of this node, for those who come to the links' port. Clones share the limit on connections.
#[derive(Debug, Clone)]
pub(super) struct StoreDoor {
    store: Store,
    places: Arc<Semaphore>,
}

impl StoreDoor {
    pub(super) fn new(store: Store) -> Self {
        Self { store, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// Serves one connection of a node whose name was verified, until it ends.
    pub(super) async fn let_in(door: Option<Self>, name: NodeName, mut session: TlsStream<TcpStream>, knife: Knife) {
        let Some(door) = door else { return debug!(%name, "this node has no store, and one was asked for") };
        let Ok(_place) = door.places.try_acquire() else {
            return warn!(%name, connections_max = CONNECTIONS_MAX, "a connection to the store was turned away");
        };
        if let Err(error) = tune_with(session.get_ref().0, SILENCE_MAX) {
            return debug!(%name, %error, "a connection to the store ended at once");
        }
        session.get_mut().1.set_buffer_limit(Some(WRITE_LEN));
        door.store.serve(session).await;
        drop(knife);
    }
}

/// Reaches the stores of the other nodes.
#[derive(Clone)]
pub struct StoreLinks {
    inner: Arc<Inner>,
}

/// Where a node takes links.
type Facts = dyn Fn(&NodeName) -> Option<NodeFacts> + Send + Sync;

struct Inner {
    secret: ClusterSecret,
    me: NodeName,
    timing: NetTiming,
    facts: Box<Facts>,
    tls: OnceLock<Tls>,
}

impl fmt::Debug for StoreLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLinks").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl StoreLinks {
    /// `facts` tells where a node takes links, if it is known to live.
    pub fn new(
        secret: ClusterSecret,
        me: NodeName,
        timing: NetTiming,
        facts: impl Fn(&NodeName) -> Option<NodeFacts> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(Inner { secret, me, timing, facts: Box::new(facts), tls: OnceLock::new() }) }
    }
}

impl Inner {
    async fn connect(&self, peer: &NodeName) -> io::Result<Box<dyn Io>> {
        let facts = (self.facts)(peer).ok_or_else(|| io::Error::other("it is not known to be alive"))?;
        let tls = match self.tls.get() {
            Some(tls) => tls,
            None => {
                let tls = Tls::new(&self.secret, &self.me).map_err(io::Error::other)?;
                self.tls.get_or_init(|| tls)
            }
        };
        let tcp = tokio::time::timeout(self.timing.connect_max, TcpStream::connect(facts.link)).await;
        let tcp = tcp.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        tune_with(&tcp, SILENCE_MAX)?;
        let shaking = tls.to_stores.connect(name_in_certificate(peer), BufReader::with_capacity(READ_LEN, tcp));
        let session = tokio::time::timeout(self.timing.handshake_max, shaking).await;
        let session = session.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        if !is_to_store(session.get_ref().1) {
            return Err(io::Error::other("its version has no store that others can ask"));
        }
        Ok(Box::new(session))
    }
}

impl Connect for StoreLinks {
    fn me(&self) -> &NodeName {
        &self.inner.me
    }

    fn connect<'a>(&'a self, peer: &'a NodeName) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(self.inner.connect(peer))
    }
}

/// Lets the nodes of these names take files from a store, and refuses links: for a process that holds files and no actors. Runs until it is
/// dropped.
pub async fn serve_store(
    listener: TcpListener,
    secret: &ClusterSecret,
    me: &NodeName,
    timing: NetTiming,
    names: BTreeSet<NodeName>,
    store: Store,
) -> io::Result<()> {
    let tls = Tls::new(secret, me).map_err(io::Error::other)?;
    let door = Some(StoreDoor::new(store));
    socket::accept(listener, tls, timing, Arc::new(RwLock::new(names)), Arc::<Refused>::default(), door, drop).await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use plexus_store::StoreConfig;
    use plexus_types::{Generation, ModelSource, NodeId};

    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a node name")
    }

    fn links(secret: &ClusterSecret, me: &str, link: SocketAddr) -> StoreLinks {
        StoreLinks::new(secret.clone(), name(me), NetTiming::default(), move |peer| {
            let id = NodeId { name: peer.clone(), generation: Generation(1) };
            (peer.as_str() != "gone").then(|| NodeFacts { id, version: "test".to_owned(), link, http: link, gossip: link })
        })
    }

    #[tokio::test]
    async fn a_model_crosses_the_port_of_links_to_nodes_of_the_cluster_only() {
        let folder = std::env::temp_dir().join(format!("plexus-store-links-{}", std::process::id()));
        let model = folder.join("a").join("m.gguf");
        std::fs::create_dir_all(model.parent().expect("a folder")).expect("a folder");
        std::fs::write(&model, vec![7; 100_000]).expect("a file");
        let (secret, listener) = (ClusterSecret::generate(), TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let at = listener.local_addr().expect("bound");
        let repo = folder.join("a/store/hub/models--org--name");
        let snapshot = repo.join("snapshots").join("1".repeat(40));
        std::fs::create_dir_all(&snapshot).expect("a folder");
        std::fs::create_dir_all(repo.join("refs")).expect("a folder");
        std::fs::write(repo.join("refs/main"), "1".repeat(40)).expect("a file");
        std::fs::rename(&model, snapshot.join("m.gguf")).expect("a file");
        let store = |node: &str, links: StoreLinks| {
            let offline = StoreConfig { offline: true, ..StoreConfig::new(folder.join(node).join("store")) };
            Store::new(offline, Arc::new(links))
        };
        let holder = store("a", links(&secret, "a", at));
        let serving = secret.clone();
        let server = tokio::spawn(async move {
            serve_store(listener, &serving, &name("a"), NetTiming::default(), [name("b"), name("c")].into(), holder).await
        });

        let wanted: ModelSource = "hf:org/name".parse().expect("a source");
        let b = store("b", links(&secret, "b", at));
        let path = b.fetch(&wanted, &[name("gone"), name("a")]).done().await.expect("the model");
        assert_eq!(std::fs::read(path).expect("a file"), vec![7; 100_000]);

        let other = ClusterSecret::generate();
        for (secret, me, peer) in [(&other, "b", "a"), (&secret, "stranger", "a"), (&secret, "c", "other"), (&secret, "c", "gone")] {
            let refused = store("c", links(secret, me, at)).fetch(&wanted, &[name(peer)]).done().await;
            assert!(refused.is_err(), "{me} got through to {peer}");
        }
        server.abort();
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
