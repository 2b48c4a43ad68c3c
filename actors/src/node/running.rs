//! A node at work, and how it stops.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Addresses, End, INSPECT_DEADLINE, NodeMsg};
use crate::http_front::HttpFrontMsg;
use crate::inference::ClusterInference;
use crate::membership::MembershipMsg;
use crate::model::ModelMsg;
use crate::peers::Peers;
use crate::router::RouterMsg;
use crate::router::view::SharedView;

/// How often a node that stops looks whether its streams have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Time for the clients to be told that their streams broke off.
const FLUSH: Duration = Duration::from_millis(200);
/// Telling the others that this node goes takes a few rounds of gossip.
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);

/// A node at work.
#[derive(Debug)]
pub struct RunningNode {
    pub(super) root: ActorRef<NodeMsg>,
    pub(super) task: JoinHandle<()>,
    pub(super) addresses: Addresses,
    pub(super) view: SharedView,
    pub(super) peers: Peers,
    pub(super) inference: Arc<ClusterInference>,
    pub(super) end: End,
    pub(super) drain_timeout: Duration,
}

impl RunningNode {
    /// The cluster as the HTTP dialects see it through this node.
    pub fn inference(&self) -> &ClusterInference {
        &self.inference
    }

    /// What this node believes of the cluster.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// The nodes to which links stand.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Waits until the node ends by itself, and says why.
    pub async fn wait(&mut self) -> String {
        let panicked = (&mut self.task).await.is_err();
        let why = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        why.unwrap_or_else(|| if panicked { "the root of the actors panicked".into() } else { "the root of the actors stopped".into() })
    }

    /// Stops gracefully (CX-51): loads and serves nothing new, and lets what its clients asked for end within the drain timeout; requests that
    /// still come are passed to other nodes while it waits so, within the first half of that time, and refused from then on. Then tells the others
    /// and ends.
    ///
    /// Returns the number of requests that were still at work and were broken off with an error.
    pub async fn drain(self) -> usize {
        info!(timeout = ?self.drain_timeout, "stopping: nothing new is served here, running streams may end");
        self.addresses.router.tell(RouterMsg::Drain);
        self.addresses.http.tell(HttpFrontMsg::Drain);
        let began = Instant::now();
        self.wait_for_work(began + self.drain_timeout / 2).await;
        self.inference.clients.close(); // else those who come until the end would be broken off
        let n_left = self.wait_for_work(began + self.drain_timeout).await;
        if n_left > 0 {
            warn!(requests = n_left, "requests broken off");
            self.inference.clients.break_off();
            // Its channels close with it, and each client is told.
            if let Some(streams) = self.addresses.streams.actor() {
                streams.stop(Some("the node stops".into()));
            }
        }
        let left = self.addresses.membership.call(|reply| MembershipMsg::Leave { reply }, LEAVE_DEADLINE).await;
        if let Err(error) = left {
            warn!(%error, "the other nodes were not told");
        }
        tokio::time::sleep(FLUSH).await;
        self.root.stop(Some("drained".into()));
        let _ended = self.task.await;
        n_left
    }

    /// Waits until nothing is at work, or until then. Returns how many requests are left.
    async fn wait_for_work(&self, deadline: Instant) -> usize {
        loop {
            let n_left = self.n_at_work().await;
            if n_left == 0 || Instant::now() >= deadline {
                return n_left;
            }
            tokio::time::sleep(DRAIN_POLL).await;
            if !self.view.read().own().draining {
                self.addresses.router.tell(RouterMsg::Drain); // it was lost with a life of the router
            }
        }
    }

    /// Requests of this node's clients, wherever they are served, and those of other nodes' clients that this node serves.
    async fn n_at_work(&self) -> usize {
        let own = self.inference.clients.requests();
        let mut n = own.len();
        for model in self.addresses.models.list() {
            n += model.call(|reply| ModelMsg::AtWork(own.clone(), reply), INSPECT_DEADLINE).await.unwrap_or(0);
        }
        n
    }
}
