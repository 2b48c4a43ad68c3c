//! What the router hears of other nodes, and how one that was restarted learns what it did not hear.

use std::collections::BTreeSet;
use std::time::SystemTime;

use plexus_types::{ModelId, NodeId, NodeSummary, ReplicaState};
use tokio::time::Instant;
use tracing::info;

use super::{RouterState, is_loaded};
use crate::inbound::{ClusterChange, PeerChange};
use crate::streams::StreamsMsg;

impl RouterState {
    /// Makes good what a former life was not told, or did not come to do: nothing, if there was none.
    pub(super) fn catch_up(&mut self) {
        let peers = self.args.nodes.peers.list();
        let linked: Vec<(NodeId, u64)> = peers.iter().map(|peer| (peer.id().clone(), peer.given_pass())).collect();
        let (nodes, links) = {
            let mut view = self.args.view.write();
            view.keep_own(|model, device| self.args.models.get(model, device).is_some());
            view.missed(&self.args.known.list(), &linked)
        };
        nodes.into_iter().for_each(|change| self.on_cluster_change(change));
        links.iter().for_each(|change| self.on_peer_change(change));
        for peer in peers {
            self.introduce(&peer);
            self.ask_for_all(&peer);
        }
    }

    pub(super) fn on_summary(&mut self, from: &NodeId, summary: NodeSummary) {
        let loaded: BTreeSet<ModelId> = {
            let view = self.args.view.read();
            let changed = summary.replicas.iter().filter(|replica| replica.state == ReplicaState::Loaded);
            changed.filter(|replica| !is_loaded(&view, from, replica)).map(|replica| replica.model.clone()).collect()
        };
        self.args.view.write().on_summary(from, summary, Instant::now(), SystemTime::now());
        self.on_view();
        loaded.into_iter().for_each(|model| self.tell_of(model));
    }

    pub(super) fn on_cluster_change(&mut self, change: ClusterChange) {
        match &change {
            ClusterChange::Up(facts) => info!(node = %facts.id, link = %facts.link, "a node is alive"),
            ClusterChange::Gone(id) => {
                info!(node = %id, "a node is gone");
                self.args.streams.tell(StreamsMsg::NodeLost(id.clone()));
            }
            ClusterChange::Changed(_) => {}
        }
        self.args.view.write().on_cluster_change(change);
    }

    pub(super) fn on_peer_change(&mut self, change: &PeerChange) {
        self.args.view.write().on_peer_change(change, Instant::now());
        match change {
            PeerChange::Up(id) => {
                info!(node = %id, "linked");
                if let Some(peer) = self.args.nodes.peers.get(id) {
                    self.args.view.write().on_link(id, peer.given_pass());
                    self.introduce(&peer);
                }
            }
            PeerChange::Down { id, why } => {
                info!(node = %id, why, "link lost");
                self.args.streams.tell(StreamsMsg::NodeLost(id.clone()));
            }
            PeerChange::RoundTrip(..) => {}
        }
    }
}
