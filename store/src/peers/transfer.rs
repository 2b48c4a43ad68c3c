//! Who fetches which chunk from whom.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plexus_types::NodeName;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::incoming::Incoming;
use super::session::{Answer, NoChunk, Session};
use crate::error::FetchError;
use crate::progress::{Flight, Meter};
use crate::store::Connect;

/// Connections to each node: while one waits for its next chunk the other is fed.
const CONNECTIONS: usize = 2;
/// Failures in a row after which a connection's node is given up.
const FAILURES_MAX: u32 = 3;
/// Wait before a node is connected again; it doubles.
const WAIT: Duration = Duration::from_millis(250);

/// A fetch from several nodes. Ends with its last worker; dropped, it ends them.
pub(super) struct Transfer {
    shared: Arc<Shared>,
}

struct Shared {
    incoming: Arc<Incoming>,
    connect: Arc<dyn Connect>,
    flight: watch::Sender<Flight>,
    work: Mutex<Work>,
    /// Told when a chunk is free again, and at the end.
    changed: Notify,
}

struct Work {
    /// Chunks that nobody fetches.
    free: VecDeque<usize>,
    /// Chunks that are not whole.
    n_open: usize,
    /// Nodes that are not asked any more, and why.
    dropped: BTreeMap<NodeName, String>,
}

enum Next {
    Chunk(usize),
    Wait,
    Over,
}

impl Transfer {
    pub(super) fn new(incoming: Arc<Incoming>, connect: Arc<dyn Connect>, flight: watch::Sender<Flight>) -> Self {
        let free: VecDeque<usize> = incoming.missing().into();
        let work = Mutex::new(Work { n_open: free.len(), free, dropped: BTreeMap::new() });
        Self { shared: Arc::new(Shared { incoming, connect, flight, work, changed: Notify::new() }) }
    }

    /// Fetches until all chunks are whole or no node is left. Returns the nodes that were dropped.
    ///
    /// Errors: what this node cannot take.
    pub(super) async fn run(&self, peers: &[NodeName]) -> Result<Vec<(NodeName, String)>, FetchError> {
        let mut workers = JoinSet::new();
        for peer in (0..CONNECTIONS).flat_map(|_| peers) {
            workers.spawn(Arc::clone(&self.shared).worker(peer.clone()));
        }
        while let Some(ended) = workers.join_next().await {
            ended.unwrap_or_else(|error| Err(FetchError::Lost(error.to_string())))?;
        }
        Ok(std::mem::take(&mut self.shared.lock().dropped).into_iter().collect())
    }
}

impl Shared {
    async fn worker(self: Arc<Self>, peer: NodeName) -> Result<(), FetchError> {
        let (mut failures, mut wait) = (0, WAIT);
        loop {
            let lost = match Session::open(&*self.connect, &peer).await {
                Ok(mut session) => match self.drain(&mut session, &peer, &mut failures).await? {
                    None => return Ok(()),
                    Some(why) => why,
                },
                Err(why) => why,
            };
            failures += 1;
            if failures >= FAILURES_MAX {
                self.drop_peer(&peer, lost);
                return Ok(());
            }
            debug!(%peer, lost, "a connection to another node's store ended");
            tokio::select! {
                () = tokio::time::sleep(wait) => wait *= 2,
                () = self.over() => return Ok(()),
            }
        }
    }

    /// Fetches over one connection. Returns why it ended, or `None` if nothing is left to do for this node.
    async fn drain(&self, session: &mut Session, peer: &NodeName, failures: &mut u32) -> Result<Option<String>, FetchError> {
        let mut reminded = false;
        loop {
            let changed = self.changed.notified();
            let index = match self.next(peer) {
                Next::Over => return Ok(None),
                Next::Wait => {
                    changed.await;
                    continue;
                }
                Next::Chunk(index) => index,
            };
            let held = Held { shared: self, index: Some(index) };
            match session.chunk(&self.incoming, index).await {
                Ok(()) => {
                    held.done();
                    (*failures, reminded) = (0, false);
                    Meter(&self.flight).add(self.incoming.piece(index).len);
                }
                Err(NoChunk::Here(error)) => return Err(error),
                Err(NoChunk::Lost(why)) => return Ok(Some(why)),
                // It may have been started anew since it was asked for its manifest.
                Err(NoChunk::Unknown) if !reminded => {
                    drop(held);
                    reminded = true;
                    match session.manifest(&self.incoming.manifest().source).await {
                        Ok(Answer::Manifest(_)) => {}
                        Ok(Answer::Soon(_)) => return Ok(Some("it is still reading its files".to_owned())),
                        Err(why) => return Ok(Some(why)),
                    }
                }
                Err(NoChunk::Unknown) => {
                    self.drop_peer(peer, "it has other files by this name".to_owned());
                    return Ok(None);
                }
                Err(NoChunk::Wrong(why)) => {
                    warn!(%peer, model = %self.incoming.manifest().source, why, "another node sent a damaged chunk and is not asked again");
                    self.drop_peer(peer, why);
                    return Ok(None);
                }
            }
        }
    }

    fn next(&self, peer: &NodeName) -> Next {
        let mut work = self.lock();
        if work.n_open == 0 || work.dropped.contains_key(peer) {
            return Next::Over;
        }
        work.free.pop_front().map_or(Next::Wait, Next::Chunk)
    }

    fn drop_peer(&self, peer: &NodeName, why: String) {
        self.lock().dropped.entry(peer.clone()).or_insert(why);
        self.changed.notify_waiters();
    }

    /// Waits until there is nothing left to do.
    async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().n_open == 0 {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk that one worker fetches; free for others again unless it is done.
struct Held<'a> {
    shared: &'a Shared,
    index: Option<usize>,
}

impl Held<'_> {
    fn done(mut self) {
        self.index = None;
        let mut work = self.shared.lock();
        work.n_open -= 1;
        if work.n_open == 0 {
            self.shared.changed.notify_waiters();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.shared.lock().free.push_front(index);
            self.shared.changed.notify_waiters();
        }
    }
}
