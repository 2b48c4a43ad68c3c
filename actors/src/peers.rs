//! The peers of this node: the only way to speak to another node.
//!
//! [`Peers`] is the table of those to whom a link stands; the link actor puts them in and takes them out. A [`Peer`] asks under a deadline,
//! notifies and sends stream events. Nothing is ever queued without bound: what was sent and not yet taken by the peer's actors stays within
//! [`BUDGET`], beyond it [`PeerError::Congested`] says so at once. A message longer than a frame is split; a long question or answer waits
//! for room, one at a time, so that notices and events pass between its parts.
//!
//! Who speaks is known by a pass: each node gives each peer a random number, over that peer's own link, and the peer shows it in every frame.
//! A node that is in the cluster can thus lie about itself, but not speak for another one.

mod answering;
mod assembly;
mod lateness;
mod peer;
mod port;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use plexus_types::{NodeId, NodeName};
use tokio::time::Instant;

use crate::inbound::{Inbound, PeerChange};

pub(crate) use assembly::{Assembly, Part};
pub use peer::{BUDGET, Peer};

/// Why a peer was not reached, or did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no link to it any more, or its actor is between two lives.
    #[error("the peer is gone, or there is no link to it")]
    Gone,
    /// The answer did not come in time. The peer drops the question when it takes it up too late.
    #[error("the peer did not answer in time")]
    Late,
    /// Too much is under way to it, or it answers too many questions: nothing was sent or begun.
    #[error("too much is under way to the peer")]
    Congested,
    /// The message or its answer is too long: over 16 MiB, or over 8 MiB for a notice or events, which cannot wait for room.
    #[error("the message is too large")]
    TooLarge,
    /// One side does not understand the other.
    #[error("the message is malformed")]
    Malformed,
}

/// Which actor of a peer takes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Questions, answers and notices.
    Gateway,
    /// Events of streams.
    Tokens,
}

/// The table of peers. Cheap to clone; all clones are one table.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<PeersInner>,
}

struct PeersInner {
    me: NodeId,
    epoch: Instant,
    table: RwLock<Table>,
    /// Held while a peer comes or goes, so that [`Inbound::peer_changed`] hears of it in the true order.
    order: Mutex<()>,
}

#[derive(Default)]
struct Table {
    up: BTreeMap<NodeId, Peer>,
    /// By the pass that we gave out: those who are up, and those who have not shown theirs yet.
    by_pass: HashMap<u64, Peer>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.list().iter().map(Peer::id)).finish()
    }
}

impl Peers {
    /// An empty table.
    pub fn new(me: NodeId) -> Self {
        let inner = PeersInner { me, epoch: Instant::now(), table: RwLock::default(), order: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The node whose peers these are.
    pub fn me(&self) -> &NodeId {
        &self.inner.me
    }

    /// The peer with this id, if a link to it stands.
    pub fn get(&self, id: &NodeId) -> Option<Peer> {
        self.table().up.get(id).cloned()
    }

    /// All peers to whom a link stands, by id.
    pub fn list(&self) -> Vec<Peer> {
        self.table().up.values().cloned().collect()
    }

    /// The names of them all.
    pub fn names(&self) -> BTreeSet<NodeName> {
        self.table().up.keys().map(|id| id.name.clone()).collect()
    }

    /// The peer that was given this pass.
    pub(crate) fn by_pass(&self, pass: u64) -> Option<Peer> {
        self.table().by_pass.get(&pass).cloned()
    }

    /// The peer, greeted or not, that is linked as `id`.
    pub(crate) fn linked_as(&self, id: &NodeId) -> Vec<Peer> {
        self.table().by_pass.values().filter(|peer| peer.id() == id).cloned().collect()
    }

    /// A peer to be greeted over ractor session number `session`. It is not listed before [`Self::admit`].
    pub(crate) fn candidate(&self, id: NodeId, session: u64) -> Peer {
        let pass = rand::random::<u64>().max(1);
        let peer = Peer::new(id, session, self.inner.epoch, pass);
        self.inner.table.write().unwrap_or_else(PoisonError::into_inner).by_pass.insert(pass, peer.clone());
        peer
    }

    /// Lists a peer that has shown who it is. False if its link was cut meanwhile.
    pub(crate) fn admit(&self, peer: &Peer, inbound: &dyn Inbound) -> bool {
        let _in_order = lock(&self.inner.order);
        let former = {
            let mut table = self.inner.table.write().unwrap_or_else(PoisonError::into_inner);
            if !table.by_pass.contains_key(&peer.given_pass()) {
                return false;
            }
            table.up.insert(peer.id().clone(), peer.clone())
        };
        if former.as_ref().is_some_and(|former| former.is(peer)) {
            return true;
        }
        if let Some(former) = former {
            former.close();
            inbound.peer_changed(PeerChange::Down { id: peer.id().clone(), why: "a newer link took its place".to_owned() });
        }
        inbound.peer_changed(PeerChange::Up(peer.id().clone()));
        true
    }

    /// Takes a peer out: whoever waits for its answer hears [`PeerError::Gone`].
    pub(crate) fn remove(&self, peer: &Peer, why: &str, inbound: &dyn Inbound) {
        let _in_order = lock(&self.inner.order);
        let was_up = {
            let mut table = self.inner.table.write().unwrap_or_else(PoisonError::into_inner);
            table.by_pass.remove(&peer.given_pass());
            let listed = table.up.get(peer.id()).is_some_and(|listed| listed.is(peer));
            if listed {
                table.up.remove(peer.id());
            }
            listed
        };
        peer.close();
        if was_up {
            inbound.peer_changed(PeerChange::Down { id: peer.id().clone(), why: why.to_owned() });
        }
    }

    /// Takes all peers out.
    pub(crate) fn clear(&self, why: &str, inbound: &dyn Inbound) {
        let all: Vec<Peer> = self.table().by_pass.values().cloned().collect();
        for peer in all {
            self.remove(&peer, why, inbound);
        }
    }

    fn table(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.inner.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Process group of a node's gateway.
pub(crate) fn group_of_gateway(id: &NodeId) -> String {
    format!("gateway/{id}")
}

/// Process group of a node's token sink.
pub(crate) fn group_of_tokens(id: &NodeId) -> String {
    format!("tokens/{id}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
