//! What changes a view.

use std::time::{Duration, SystemTime};

use plexus_types::{Catalogue, DeviceId, DeviceReport, ModelId, NodeId, NodeSummary, ReplicaId, ReplicaReport, ReplicaState};
use tokio::time::Instant;

use super::remembered::note_load_times;
use super::{ClusterView, of_model};
use crate::inbound::{ClusterChange, PeerChange};
use crate::router::catalogue::merge;

impl ClusterView {
    /// All others have [`Self::own_news`].
    pub fn on_own_said(&mut self) {
        self.unsaid.clear();
    }

    /// Another did not get [`Self::own_in_full`], and will get news instead.
    pub fn on_own_unsaid(&mut self) {
        self.unsaid = self.own.replicas.iter().map(|replica| (replica.model.clone(), replica.device)).collect();
    }

    /// Time has passed: what nobody uses has been idle for longer.
    pub fn on_own_time(&mut self, passed: Duration) {
        self.own.revision += 1;
        for idle in self.own.replicas.iter_mut().filter_map(|replica| replica.idle.as_mut()) {
            *idle += passed;
        }
    }

    /// What this node lists, or has of it, changed.
    pub fn on_own_catalogue(&mut self, mut catalogue: Catalogue, wall: SystemTime) {
        catalogue.revision = self.own_catalogue.revision + 1;
        let models: Vec<ModelId> = catalogue.entries.iter().map(|entry| entry.profile.id.clone()).collect();
        self.own_catalogue = catalogue;
        self.merge();
        self.note_models(models, wall);
    }

    /// A peer said what it lists. Older revisions are ignored, as is a peer without a link.
    pub fn on_catalogue(&mut self, from: &NodeId, catalogue: Catalogue, wall: SystemTime) {
        let Some(other) = self.others.get_mut(from).filter(|other| other.linked) else { return };
        if catalogue.revision <= other.catalogue.revision {
            return;
        }
        let models: Vec<ModelId> = catalogue.entries.iter().map(|entry| entry.profile.id.clone()).collect();
        other.catalogue = catalogue;
        self.merge();
        self.note_models(models, wall);
    }

    fn merge(&mut self) {
        let others = self.others.iter().map(|(id, other)| (id, &other.catalogue));
        self.catalogue = merge(std::iter::once((&self.me.id, &self.own_catalogue)).chain(others));
    }

    /// Gossip changed its mind.
    pub fn on_cluster_change(&mut self, change: ClusterChange) {
        match change {
            ClusterChange::Up(facts) | ClusterChange::Changed(facts) => {
                let id = facts.id.clone();
                self.others.entry(id).or_default().facts = Some(facts);
            }
            ClusterChange::Gone(id) => self.forget(&id),
        }
    }

    /// A link came or went.
    pub fn on_peer_change(&mut self, change: &PeerChange, now: Instant) {
        match change {
            PeerChange::Up(id) => {
                let other = self.others.entry(id.clone()).or_default();
                other.linked = true;
                other.heard = Some(now);
            }
            PeerChange::RoundTrip(id, round_trip) => {
                if let Some(other) = self.others.get_mut(id) {
                    other.round_trip = Some(*round_trip);
                    other.heard = Some(now);
                }
            }
            PeerChange::Down { id, .. } => {
                let Some(other) = self.others.get_mut(id) else { return };
                other.linked = false;
                other.link = None;
                other.round_trip = None;
                other.catalogue.revision = 0; // what it lists is known still; a link that comes back brings it anew
                // What it held is unknown from here on; a link that comes back brings a summary.
                let summary = std::mem::take(&mut other.summary);
                other.lost.extend(summary.replicas.into_iter().map(|replica| replica.model));
                if other.facts.is_none() {
                    self.forget(id);
                }
            }
        }
    }

    /// A peer said what it holds. Older revisions are ignored, as is a peer without a link.
    pub fn on_summary(&mut self, from: &NodeId, summary: NodeSummary, now: Instant, wall: SystemTime) {
        let Some(other) = self.others.get_mut(from).filter(|other| other.linked) else { return };
        if summary.revision <= other.summary.revision {
            return;
        }
        let before = std::mem::replace(&mut other.summary, summary);
        sort(&mut other.summary.replicas);
        for replica in other.summary.replicas.iter_mut().filter(|replica| replica.prefixes.is_none()) {
            let known = of_model(&before.replicas, &replica.model).iter().find(|known| known.device == replica.device);
            replica.prefixes = known.and_then(|known| known.prefixes.clone());
        }
        other.lost.clear();
        other.heard = Some(now);
        note_load_times(&mut self.load_times, &other.summary.replicas);
        self.sent.retain(|replica, _| replica.node != *from);
        let models: Vec<ModelId> = self.others[from].summary.replicas.iter().map(|replica| replica.model.clone()).collect();
        self.note_models(models, wall);
    }

    /// A replica of this node changed. True if its state did, not only its load.
    pub fn on_own_replica(&mut self, mut report: ReplicaReport, wall: SystemTime) -> bool {
        self.own.revision += 1;
        if report.prefixes.is_some() {
            self.unsaid.insert((report.model.clone(), report.device));
        }
        let model = report.model.clone();
        note_load_times(&mut self.load_times, std::slice::from_ref(&report));
        if report.state == ReplicaState::Loaded {
            self.held.insert(report.model.clone());
        }
        let me = self.me.id.clone();
        self.sent.retain(|replica, _| replica.node != me || replica.model != report.model || replica.device != report.device);
        let changed = match self.own.replicas.iter_mut().find(|known| known.model == report.model && known.device == report.device) {
            Some(known) => {
                let changed = known.state != report.state || known.memory != report.memory || known.idle.is_some() != report.idle.is_some();
                report.prefixes = report.prefixes.or_else(|| known.prefixes.take());
                *known = report;
                changed
            }
            None => {
                self.own.replicas.push(report);
                sort(&mut self.own.replicas);
                true
            }
        };
        self.note_models([model], wall);
        changed
    }

    /// The actor of a replica of this node ended and will be started again.
    pub fn on_own_replica_gone(&mut self, model: &ModelId, device: DeviceId) {
        if let Some(known) = self.own.replicas.iter_mut().find(|known| known.model == *model && known.device == device) {
            self.own.revision += 1;
            known.state = ReplicaState::Recovering;
            known.idle = None;
        }
    }

    /// A replica left this node.
    pub fn on_own_replica_left(&mut self, model: &ModelId, device: DeviceId) {
        self.own.revision += 1;
        self.own.replicas.retain(|known| known.model != *model || known.device != device);
        self.unsaid.remove(&(model.clone(), device));
    }

    /// The memory of this node's devices changed.
    pub fn on_own_devices(&mut self, devices: Vec<DeviceReport>) {
        self.own.revision += 1;
        self.own.devices = devices;
    }

    /// This node takes no new requests from now on.
    pub fn on_draining(&mut self) {
        self.own.revision += 1;
        self.own.draining = true;
    }

    /// A request was sent to a replica.
    pub fn on_sent(&mut self, replica: &ReplicaId) {
        *self.sent.entry(replica.clone()).or_default() += 1;
    }

    fn forget(&mut self, id: &NodeId) {
        self.others.remove(id);
        self.sent.retain(|replica, _| replica.node != *id);
        self.merge();
    }
}

/// By model, so that those of one are found without looking at all.
fn sort(replicas: &mut [ReplicaReport]) {
    replicas.sort_by(|a, b| (&a.model, a.device).cmp(&(&b.model, b.device)));
}
