//! What this node believes of the cluster, with the age of each belief. Written by the router alone; it outlives the router's restarts.

mod events;
mod missed;
mod preload;
mod remembered;
mod report;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_types::{
    Catalogue, DeviceId, FilesDigest, FilesFetch, ModelId, ModelSource, NodeFacts, NodeId, NodeState, NodeSummary, ReplicaId,
    ReplicaReport, ReplicaState,
};
use tokio::time::Instant;

pub use self::shared::SharedView;
use super::catalogue::MergedCatalogue;

/// The view of one node.
#[derive(Debug)]
pub struct ClusterView {
    cluster: String,
    me: NodeFacts,
    /// What this node holds; its age is always zero.
    own: NodeSummary,
    /// Replicas of this node whose prefix cache the others were not told of since it changed.
    unsaid: BTreeSet<(ModelId, DeviceId)>,
    /// Models that have been loaded on this node, or were unloaded from it by hand before they were.
    held: BTreeSet<ModelId>,
    others: BTreeMap<NodeId, Other>,
    /// Requests sent to a replica since it last reported its load.
    sent: BTreeMap<ReplicaId, u32>,
    /// When each model was first seen, seconds since 1970.
    first_seen: BTreeMap<ModelId, u64>,
    /// How long each model took to load when it was loaded last.
    load_times: BTreeMap<ModelId, Duration>,
    /// What this node lists.
    own_catalogue: Catalogue,
    /// What all nodes list, as one.
    catalogue: MergedCatalogue,
}

#[derive(Debug, Default)]
struct Other {
    facts: Option<NodeFacts>,
    linked: bool,
    /// Which link it is, if that is known.
    link: Option<u64>,
    round_trip: Option<Duration>,
    summary: NodeSummary,
    catalogue: Catalogue,
    /// The models that it held when its link was lost; empty once it has said anew what it holds.
    lost: Vec<ModelId>,
    heard: Option<Instant>,
}

/// A node that can be told to load, or the reason why not.
#[derive(Debug, Clone, Copy)]
pub struct NodeInView<'a> {
    /// Which node.
    pub id: &'a NodeId,
    /// May anything go there?
    pub state: NodeState,
    /// Its devices and replicas.
    pub summary: &'a NodeSummary,
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
    /// It was loaded from other files than count.
    pub outdated: bool,
}

impl<'a> Candidate<'a> {
    /// Digests of the beginnings of prompts that are in its prefix cache, sorted.
    pub fn prefixes(&self) -> &'a [u32] {
        self.report.prefixes.as_deref().unwrap_or_default()
    }
}

impl ClusterView {
    /// A view in which this node is alone.
    pub fn new(cluster: String, me: NodeFacts) -> Self {
        Self {
            cluster,
            me,
            own: NodeSummary::default(),
            held: BTreeSet::new(),
            unsaid: BTreeSet::new(),
            others: BTreeMap::new(),
            sent: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            load_times: BTreeMap::new(),
            own_catalogue: Catalogue::default(),
            catalogue: MergedCatalogue::default(),
        }
    }

    /// The node whose view this is.
    pub fn me(&self) -> &NodeId {
        &self.me.id
    }

    /// What this node holds.
    pub fn own(&self) -> &NodeSummary {
        &self.own
    }

    /// What this node holds, for those who were told before: the prefix caches only where they have changed since.
    pub fn own_news(&self) -> NodeSummary {
        let mut news = self.own.clone();
        for replica in &mut news.replicas {
            let is_unsaid = self.unsaid.iter().any(|(model, device)| (model, device) == (&replica.model, &replica.device));
            replica.prefixes = replica.prefixes.take().filter(|_| is_unsaid);
        }
        news
    }

    /// What this node holds, for one who knows nothing of it, or only news.
    pub fn own_in_full(&mut self) -> NodeSummary {
        self.own.revision += 1; // it counts, whatever was said before
        self.own.clone()
    }

    /// What this node lists.
    pub fn own_catalogue(&self) -> &Catalogue {
        &self.own_catalogue
    }

    /// What all nodes list, as one.
    pub fn catalogue(&self) -> &MergedCatalogue {
        &self.catalogue
    }

    /// The model that a name stands for: itself, unless it is an alias (CX-27).
    pub fn resolve<'a>(&'a self, name: &'a ModelId) -> &'a ModelId {
        if self.catalogue.models.contains_key(name) {
            return name;
        }
        self.catalogue.aliases.get(name).unwrap_or(name)
    }

    /// May a node be asked for these files of a model, as far as it is known?
    pub fn may_give(&self, model: &ModelId, source: &ModelSource, node: &NodeId) -> bool {
        self.catalogue.models.get(model).is_none_or(|merged| merged.may_give(node, source))
    }

    /// How far the files of a replica's model are, if its node still fetches them.
    pub fn fetch_of(&self, one: &Candidate<'_>) -> Option<&FilesFetch> {
        self.catalogue.models.get(&one.report.model)?.fetch(&one.id.node)
    }

    /// Every node that is not gone, this one first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeInView<'_>> {
        let own = NodeInView { id: &self.me.id, state: self.own_state(), summary: &self.own };
        let others = self.others.iter().map(|(id, other)| NodeInView { id, state: other.state(), summary: &other.summary });
        std::iter::once(own).chain(others)
    }

    /// Can anything be sent to this node?
    pub fn is_up(&self, node: &NodeId) -> bool {
        *node == self.me.id || self.others.get(node).is_some_and(|other| other.state() == NodeState::Up)
    }

    /// What a device of a node holds.
    pub fn replicas_on<'a>(&'a self, node: NodeInView<'a>, device: DeviceId) -> impl Iterator<Item = Candidate<'a>> {
        node.summary.replicas.iter().filter(move |report| report.device == device).map(move |report| self.candidate(node, report))
    }

    fn own_state(&self) -> NodeState {
        if self.own.draining { NodeState::Draining } else { NodeState::Up }
    }

    /// Every replica of `model` that some node tells of.
    pub fn candidates<'a>(&'a self, model: &ModelId) -> impl Iterator<Item = Candidate<'a>> {
        let found = self.nodes().flat_map(|node| of_model(&node.summary.replicas, model).iter().map(move |report| (node, report)));
        found.map(|(node, report)| self.candidate(node, report))
    }

    /// Models that this node serves, or is about to.
    pub fn served_here(&self) -> BTreeSet<ModelId> {
        let served = self.own.replicas.iter().filter(|replica| failure(&replica.state).is_none());
        served.map(|replica| replica.model.clone()).collect()
    }

    /// Has every node that can be reached said what it lists?
    pub fn knows_catalogues(&self) -> bool {
        self.own_catalogue.revision > 0 && self.others.values().filter(|other| other.linked).all(|other| other.catalogue.revision > 0)
    }

    /// Did a node hold `model` that is not gone, but cannot be reached or has not said since what it holds?
    pub fn is_out_of_reach(&self, model: &ModelId) -> bool {
        self.others.values().any(|other| other.lost.contains(model))
    }

    /// Digests of prefixes that some replica holds, each as often as one does.
    pub fn n_prefixes(&self) -> usize {
        self.replicas().map(|candidate| candidate.prefixes().len()).sum()
    }

    /// Why other nodes have not loaded models, as far as they still say so.
    pub fn failures_elsewhere(&self) -> impl Iterator<Item = &str> {
        let reports = self.others.values().flat_map(|other| &other.summary.replicas);
        reports.filter_map(|report| failure(&report.state))
    }

    fn replicas(&self) -> impl Iterator<Item = Candidate<'_>> {
        let all = self.nodes().flat_map(|node| node.summary.replicas.iter().map(move |report| (node, report)));
        all.map(|(node, report)| self.candidate(node, report))
    }

    fn candidate<'a>(&'a self, node: NodeInView<'a>, report: &'a ReplicaReport) -> Candidate<'a> {
        let id = ReplicaId { node: node.id.clone(), device: report.device, model: report.model.clone() };
        let sent = self.sent.get(&id).copied().unwrap_or(0);
        Candidate { id, report, sent, local: *node.id == self.me.id, node: node.state, outdated: self.is_outdated(report) }
    }

    /// Was a replica loaded from other files than count?
    pub fn is_outdated(&self, report: &ReplicaReport) -> bool {
        report.digest.is_some() && self.catalogue.models.get(&report.model).is_some_and(|model| !model.fits(report.digest))
    }

    /// What a replica was loaded from.
    pub fn digest_of(&self, replica: &ReplicaId) -> Option<FilesDigest> {
        self.candidates(&replica.model).find(|one| one.id == *replica)?.report.digest
    }

    /// The replicas of a model that were loaded from other files than these, as far as it is known.
    pub fn with_other_files(&self, model: &ModelId, files: Option<FilesDigest>) -> Vec<ReplicaId> {
        let differs = |one: &Candidate<'_>| one.report.digest.zip(files).is_some_and(|(one, files)| one != files);
        self.candidates(model).filter(differs).map(|one| one.id).collect()
    }

    /// Have other files taken the place of these, by which no replica of the model answers any more?
    pub fn is_replaced(&self, model: &ModelId, files: FilesDigest) -> bool {
        let loaded = |same: bool| {
            let answers = |one: &Candidate<'_>| one.report.state == ReplicaState::Loaded && one.node != NodeState::Unreachable;
            let mut loaded = self.candidates(model).filter(answers);
            loaded.any(|one| one.report.digest.is_some_and(|digest| (digest == files) == same))
        };
        let others_count = self.catalogue.models.get(model).is_some_and(|model| !model.fits(Some(files)));
        (others_count || loaded(false)) && !loaded(true)
    }

    /// Nodes that requests may be sent to, this one included.
    pub fn n_up(&self) -> usize {
        1 + self.others.values().filter(|other| other.state() == NodeState::Up).count()
    }
}

fn failure(state: &ReplicaState) -> Option<&str> {
    if let ReplicaState::Failed(why) = state { Some(why) } else { None }
}

fn of_model<'a>(sorted: &'a [ReplicaReport], model: &ModelId) -> &'a [ReplicaReport] {
    let from = sorted.partition_point(|report| report.model < *model);
    let until = from + sorted[from..].partition_point(|report| report.model == *model);
    &sorted[from..until]
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

#[cfg(test)]
pub(crate) mod tests;
