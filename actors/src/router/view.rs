//! What this node believes of the cluster, with the age of each belief. Written by the router alone; it outlives the router's restarts.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use plexus_types::{
    ClusterReport, DeviceReport, ModelId, ModelLocation, ModelReport, NodeFacts, NodeId, NodeReport, NodeState, NodeSummary, ReplicaId,
    ReplicaReport, ReplicaState,
};
use tokio::time::Instant;

use crate::inbound::{ClusterChange, PeerChange};

/// The view of one node.
#[derive(Debug)]
pub struct ClusterView {
    cluster: String,
    me: NodeFacts,
    /// What this node holds; its age is always zero.
    own: NodeSummary,
    others: BTreeMap<NodeId, Other>,
    /// Requests sent to a replica since it last reported its load.
    sent: BTreeMap<ReplicaId, u32>,
    /// When each model was first seen, seconds since 1970.
    first_seen: BTreeMap<ModelId, u64>,
}

#[derive(Debug, Default)]
struct Other {
    facts: Option<NodeFacts>,
    linked: bool,
    round_trip: Option<Duration>,
    summary: NodeSummary,
    /// The models that it held when its link was lost; empty once it has said anew what it holds.
    lost: Vec<ModelId>,
    heard: Option<Instant>,
}

/// A replica that requests may be sent to, or the reason why not.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// Which replica.
    pub id: ReplicaId,
    /// What it last said of itself.
    pub report: &'a ReplicaReport,
    /// Requests sent to it since it said so.
    pub sent: u32,
    /// True if it is on this node.
    pub local: bool,
    /// May requests go to its node?
    pub node: NodeState,
}

impl ClusterView {
    /// A view in which this node is alone.
    pub fn new(cluster: String, me: NodeFacts) -> Self {
        Self { cluster, me, own: NodeSummary::default(), others: BTreeMap::new(), sent: BTreeMap::new(), first_seen: BTreeMap::new() }
    }

    /// The node whose view this is.
    pub fn me(&self) -> &NodeId {
        &self.me.id
    }

    /// What this node holds.
    pub fn own(&self) -> &NodeSummary {
        &self.own
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
                other.round_trip = None;
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
        other.summary = summary;
        other.lost.clear();
        other.heard = Some(now);
        self.sent.retain(|replica, _| replica.node != *from);
        let models: Vec<ModelId> = self.others[from].summary.replicas.iter().map(|replica| replica.model.clone()).collect();
        self.note_models(models, wall);
    }

    /// A replica of this node changed. True if its state did, not only its load.
    pub fn on_own_replica(&mut self, report: ReplicaReport, wall: SystemTime) -> bool {
        self.own.revision += 1;
        self.note_models([report.model.clone()], wall);
        let me = self.me.id.clone();
        self.sent.retain(|replica, _| replica.node != me || replica.model != report.model);
        match self.own.replicas.iter_mut().find(|known| known.model == report.model) {
            Some(known) => {
                let changed = known.state != report.state || known.device != report.device || known.memory != report.memory;
                *known = report;
                changed
            }
            None => {
                self.own.replicas.push(report);
                true
            }
        }
    }

    /// The actor of a replica of this node ended and will be started again.
    pub fn on_own_replica_gone(&mut self, model: &ModelId) {
        if let Some(known) = self.own.replicas.iter_mut().find(|known| known.model == *model) {
            self.own.revision += 1;
            known.state = ReplicaState::Recovering;
        }
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
    }

    fn note_models(&mut self, models: impl IntoIterator<Item = ModelId>, wall: SystemTime) {
        let now_s = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        for model in models {
            self.first_seen.entry(model).or_insert(now_s);
        }
    }

    /// Every replica of `model` that some node tells of.
    pub fn candidates<'a>(&'a self, model: &'a ModelId) -> impl Iterator<Item = Candidate<'a>> {
        self.replicas().filter(move |candidate| candidate.report.model == *model)
    }

    /// Did a node hold `model` that is not gone, but cannot be reached or has not said since what it holds?
    pub fn is_out_of_reach(&self, model: &ModelId) -> bool {
        self.others.values().any(|other| other.lost.contains(model))
    }

    fn replicas(&self) -> impl Iterator<Item = Candidate<'_>> {
        let own_state = if self.own.draining { NodeState::Draining } else { NodeState::Up };
        let own = self.own.replicas.iter().map(move |report| (&self.me.id, report, true, own_state));
        let others =
            self.others.iter().flat_map(|(id, other)| other.summary.replicas.iter().map(move |report| (id, report, false, other.state())));
        own.chain(others).map(|(node, report, local, state)| {
            let id = ReplicaId { node: node.clone(), device: report.device, model: report.model.clone() };
            let sent = self.sent.get(&id).copied().unwrap_or(0);
            Candidate { id, report, sent, local, node: state }
        })
    }

    /// The merged catalogue, by id (CX-20, CX-21).
    pub fn models(&self) -> Vec<ModelReport> {
        let mut models: BTreeMap<ModelId, ModelReport> = BTreeMap::new();
        for candidate in self.replicas() {
            let report = candidate.report;
            let model = models.entry(report.model.clone()).or_insert_with(|| ModelReport {
                id: report.model.clone(),
                loaded: false,
                context_length: 0,
                created: self.first_seen.get(&report.model).copied().unwrap_or(0),
                kind: report.kind,
                locations: Vec::new(),
            });
            if report.state == ReplicaState::Loaded {
                (model.loaded, model.kind) = (true, report.kind);
            }
            // CX-29: the tightest context of all replicas, so that a request that fits one fits all.
            model.context_length = match (model.context_length, report.context_length) {
                (0, length) | (length, 0) => length,
                (a, b) => a.min(b),
            };
            model.locations.push(ModelLocation {
                node: candidate.id.node.name.to_string(),
                device: report.device,
                state: report.state.clone(),
                memory: report.memory,
            });
        }
        models.into_values().collect()
    }

    /// Everything, for people: this node first, then the others by name.
    pub fn report(&self, now: Instant) -> ClusterReport {
        let me = NodeReport {
            facts: self.me.clone(),
            state: if self.own.draining { NodeState::Draining } else { NodeState::Up },
            this_node: true,
            age: Duration::ZERO,
            round_trip: None,
            summary: self.own.clone(),
        };
        let others = self.others.values().filter_map(|other| {
            Some(NodeReport {
                facts: other.facts.clone()?,
                state: other.state(),
                this_node: false,
                age: other.heard.map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard)),
                round_trip: other.round_trip,
                summary: other.summary.clone(),
            })
        });
        ClusterReport { cluster: self.cluster.clone(), nodes: std::iter::once(me).chain(others).collect() }
    }

    /// Nodes that requests may be sent to, this one included.
    pub fn n_up(&self) -> usize {
        1 + self.others.values().filter(|other| other.state() == NodeState::Up).count()
    }
}

impl Other {
    fn state(&self) -> NodeState {
        match (self.linked, self.summary.draining) {
            (false, _) => NodeState::Unreachable,
            (true, true) => NodeState::Draining,
            (true, false) => NodeState::Up,
        }
    }
}

/// The view, shared: the router writes, everybody reads.
#[derive(Debug, Clone)]
pub struct SharedView(Arc<RwLock<ClusterView>>);

impl SharedView {
    /// Shares a view.
    pub fn new(view: ClusterView) -> Self {
        Self(Arc::new(RwLock::new(view)))
    }

    /// To look something up. Never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, ClusterView> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the router alone.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, ClusterView> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plexus_types::{Bytes, Generation, ModelKind, ReplicaLoad};

    pub(crate) fn facts(name: &str) -> NodeFacts {
        let address = "127.0.0.1:1".parse().unwrap();
        let id = NodeId { name: name.parse().unwrap(), generation: Generation(1) };
        NodeFacts { id, version: "0".into(), link: address, http: address, gossip: address }
    }

    pub(crate) fn replica(model: &str, state: ReplicaState) -> ReplicaReport {
        ReplicaReport {
            model: model.parse().unwrap(),
            device: "cpu-0".parse().unwrap(),
            state,
            context_length: 512,
            memory: Bytes::mib(3),
            load: ReplicaLoad { running_max: 8, waiting_max: 64, ..ReplicaLoad::default() },
            kind: ModelKind::Generate,
        }
    }

    pub(crate) fn summary(revision: u64, replicas: Vec<ReplicaReport>) -> NodeSummary {
        NodeSummary { revision, replicas, ..NodeSummary::default() }
    }

    fn view_with(other: &str) -> (ClusterView, NodeId) {
        let mut view = ClusterView::new("test".into(), facts("a"));
        let id = facts(other).id;
        view.on_cluster_change(ClusterChange::Up(facts(other)));
        view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
        (view, id)
    }

    #[test]
    fn a_model_on_two_nodes_is_one_entry_with_two_locations_and_the_tighter_context() {
        // CX-21, CX-29
        let (mut view, b) = view_with("b");
        view.on_own_replica(replica("pip", ReplicaState::Loaded), SystemTime::now());
        let mut tighter = replica("pip", ReplicaState::Loading);
        tighter.context_length = 256;
        view.on_summary(&b, summary(1, vec![tighter]), Instant::now(), SystemTime::now());
        let models = view.models();
        assert_eq!(models.len(), 1);
        assert!(models[0].loaded);
        assert_eq!((models[0].context_length, models[0].locations.len()), (256, 2));
    }

    #[test]
    fn an_older_summary_never_replaces_a_newer_one() {
        let (mut view, b) = view_with("b");
        view.on_summary(&b, summary(2, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        view.on_summary(&b, summary(1, vec![]), Instant::now(), SystemTime::now());
        assert_eq!(view.models().len(), 1);
    }

    #[test]
    fn a_node_without_a_link_is_shown_unreachable_and_holds_nothing() {
        let (mut view, b) = view_with("b");
        view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        view.on_peer_change(&PeerChange::Down { id: b.clone(), why: "cut".into() }, Instant::now());
        assert_eq!(view.report(Instant::now()).nodes[1].state, NodeState::Unreachable);
        assert_eq!((view.models().len(), view.n_up()), (0, 1));
        assert!(view.is_out_of_reach(&"pip".parse().unwrap()));
        view.on_peer_change(&PeerChange::Up(b.clone()), Instant::now());
        view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        assert_eq!((view.models().len(), view.n_up()), (1, 2), "the same revision counts again after a new link");
        assert!(!view.is_out_of_reach(&"pip".parse().unwrap()));
    }

    #[test]
    fn a_node_that_is_gone_leaves_nothing_behind() {
        let (mut view, b) = view_with("b");
        view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        let id = ReplicaId { node: b.clone(), device: "cpu-0".parse().unwrap(), model: "pip".parse().unwrap() };
        view.on_sent(&id);
        view.on_cluster_change(ClusterChange::Gone(b));
        assert_eq!((view.models().len(), view.sent.len(), view.report(Instant::now()).nodes.len()), (0, 0, 1));
    }
}
