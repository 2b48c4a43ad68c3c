//! Sockets of links: dialing, accepting, and cutting.

use std::collections::BTreeSet;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use plexus_types::{NodeFacts, NodeName};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsStream;
use tracing::{debug, warn};

use super::core::LinkId;
use super::store::StoreDoor;
use super::tls::{Tls, is_to_store, name_in_certificate, owner};
use crate::membership::NetTiming;

/// Most connections that are shaking hands at a time. Honest nodes need one each; more wait in the kernel.
const HANDSHAKES_MAX: usize = 64;
/// A node with a good certificate that gossip does not know yet is kept waiting for so many rounds of gossip.
const ROUNDS_OF_PATIENCE: u32 = 5;

/// A TLS session with a node of known name, not used yet.
pub(super) struct Connection {
    pub(super) name: NodeName,
    pub(super) tls: TlsStream<TcpStream>,
    /// The same socket, to cut it whatever the session is doing.
    pub(super) knife: Knife,
}

/// Ends a connection for both sides at once, also when it goes out of scope.
#[derive(Debug)]
pub(super) struct Knife(Socket);

impl Drop for Knife {
    fn drop(&mut self) {
        let _ended_before = self.0.shutdown(Shutdown::Both);
    }
}

/// A connection as ractor wants it, labelled so that its session's events tell which it is.
pub(super) struct Labelled {
    pub(super) link: LinkId,
    pub(super) tls: TlsStream<TcpStream>,
}

impl ClusterBidiStream for Labelled {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (read, write) = tokio::io::split(self.tls);
        (Box::new(read), Box::new(write))
    }

    fn peer_label(&self) -> Option<String> {
        Some(label(self.link))
    }
}

fn label(link: LinkId) -> String {
    format!("link-{}", link.0)
}

/// The link that a session's label names.
pub(super) fn link_of(label: &str) -> Option<LinkId> {
    label.strip_prefix("link-")?.parse().ok().map(LinkId)
}

/// Connections that were refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// The handshake failed or took too long.
    pub(super) handshakes: AtomicU64,
    /// The certificate is good, but gossip does not know the node.
    pub(super) unknown: AtomicU64,
}

/// Dials a node and makes sure that it is the one.
pub(super) async fn dial(facts: &NodeFacts, tls: &Tls, timing: &NetTiming) -> io::Result<Connection> {
    let work = async {
        let connecting = tokio::time::timeout(timing.connect_max, TcpStream::connect(facts.link));
        let tcp = connecting.await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        let knife = tune(&tcp, timing)?;
        let session = tls.connector.connect(name_in_certificate(&facts.id.name), tcp).await?;
        Ok(Connection { name: facts.id.name.clone(), tls: TlsStream::Client(session), knife })
    };
    tokio::time::timeout(timing.handshake_max, work).await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Takes connections for as long as it is polled, and hands over those of nodes that are known: links to `take`, the others to the store.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Tls,
    timing: NetTiming,
    known: Arc<RwLock<BTreeSet<NodeName>>>,
    refused: Arc<Refused>,
    store: Option<StoreDoor>,
    take: impl Fn(Connection) + Clone + Send + Sync + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = tokio::task::JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: trying again at once would only burn the processor.
                warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        let (tls, timing, known, refused, take) = (tls.clone(), timing.clone(), Arc::clone(&known), Arc::clone(&refused), take.clone());
        let store = store.clone();
        handshakes.spawn(async move {
            let work = async {
                let knife = tune(&tcp, &timing)?;
                let session = tls.acceptor.accept(tcp).await?;
                io::Result::Ok((session, knife))
            };
            let Ok(Ok((session, knife))) = tokio::time::timeout(timing.handshake_max, work).await else {
                refused.handshakes.fetch_add(1, Ordering::Relaxed);
                return debug!(%from, "a connection did not complete its handshake");
            };
            let name = || {
                let known = known.read().unwrap_or_else(PoisonError::into_inner);
                owner(session.get_ref().1.peer_certificates()?.first()?, known.iter())
            };
            // Gossip may reach the dialer a round before it reaches us.
            let patience = Instant::now() + timing.gossip_interval * ROUNDS_OF_PATIENCE;
            while name().is_none() && Instant::now() < patience {
                tokio::time::sleep(timing.tick / 2).await;
            }
            let name = name();
            drop(place);
            match name {
                Some(name) if is_to_store(session.get_ref().1) => StoreDoor::let_in(store, name, session, knife).await,
                Some(name) => take(Connection { name, tls: TlsStream::Server(session), knife }),
                None => {
                    refused.unknown.fetch_add(1, Ordering::Relaxed);
                    debug!(%from, "a node that gossip does not know yet was turned away");
                }
            }
        });
    }
}

/// A link's socket: small frames leave at once, and a peer whose kernel is silent is noticed.
fn tune(tcp: &TcpStream, timing: &NetTiming) -> io::Result<Knife> {
    tune_with(tcp, timing.user_timeout)?;
    Ok(Knife(SockRef::from(tcp).try_clone()?))
}

/// The same, for a socket whose peer may take nothing for `silence_max`.
pub(super) fn tune_with(tcp: &TcpStream, silence_max: Duration) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1)))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(silence_max))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _only_pings_notice = silence_max;
    Ok(())
}
