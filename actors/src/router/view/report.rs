//! What the view says to people: the models of the cluster, and the cluster itself.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_api::service::{Activation, NotActivated};
use plexus_types::{
    ClusterReport, Cost, FilesFetch, FilesState, Limits, ModelFetch, ModelId, ModelKind, ModelLocation, ModelReport, ModelState,
    NodeReport, NodeState, NodeSummary, ReplicaReport, ReplicaState, RequestError,
};
use tokio::time::Instant;

use super::ClusterView;
use crate::router::catalogue::MergedModel;
use crate::router::place::{Site, feasible_on, feasible_sites, no_files, no_return, nowhere};

/// Why a name stands for nothing, and the remedy.
const UNLISTED: &str = "which no node lists: correct it in [aliases], or add a [[models]] entry";

impl ClusterView {
    /// Every model that some node holds or can hold, by id (CX-20), and those that have a failure to tell. What no node can hold is hidden (CX-21).
    pub fn models(&self) -> Vec<ModelReport> {
        self.merged_models().filter(|model| !is_hidden(model)).collect()
    }

    /// The same with what no node can hold, which is told as failed.
    pub fn all_models(&self) -> Vec<ModelReport> {
        let told = |model: ModelReport| {
            let target = model.alias_of.as_ref().unwrap_or(&model.id);
            let why = self.catalogue.models.get(target).filter(|_| is_hidden(&model)).and_then(|merged| nowhere(self, merged));
            let state = why.map_or_else(|| model.state.clone(), ModelState::Failed);
            ModelReport { state, ..model }
        };
        let dangling = self.dangling().map(|(alias, target)| {
            let why = format!("it stands for '{target}', {UNLISTED}");
            ModelReport { state: ModelState::Failed(why), alias_of: Some(target.clone()), ..self.unlisted(alias, ModelKind::Generate) }
        });
        let mut models: Vec<ModelReport> = self.merged_models().map(told).chain(dangling).collect();
        models.sort_by(|a, b| a.id.cmp(&b.id));
        models
    }

    fn merged_models(&self) -> impl Iterator<Item = ModelReport> {
        let mut models: BTreeMap<ModelId, ModelReport> = BTreeMap::new();
        let mut tightest: BTreeMap<ModelId, u32> = BTreeMap::new();
        for (id, merged) in &self.catalogue.models {
            models.insert(id.clone(), self.listed(id, merged));
        }
        for candidate in self.replicas() {
            let report = candidate.report;
            let model = models.entry(report.model.clone()).or_insert_with(|| self.unlisted(&report.model, report.kind));
            if report.context_length > 0 {
                // CX-29: the tightest context of all replicas, so that a request that fits one fits all.
                let tightest = tightest.entry(report.model.clone()).or_insert(report.context_length);
                *tightest = report.context_length.min(*tightest);
                model.context_length = *tightest;
            }
            if report.state == ReplicaState::Loaded {
                model.loaded = true;
                // What it was loaded from counts also where those files are gone.
                if !candidate.outdated {
                    (model.kind, model.tools, model.reasoning) = (report.kind, report.tools, report.reasoning);
                }
                let name = candidate.id.node.name.to_string();
                if candidate.node == NodeState::Up && !model.feasible_on.contains(&name) {
                    model.feasible_on.push(name);
                }
            }
            let mut state = state_of(report);
            if matches!(state, ModelState::Failed(_)) && self.is_placeable(&report.model) {
                state = ModelState::Unloaded; // its location tells of the failure, and the next request is served elsewhere
            }
            // What a replica says of its load says more than how far the files are that it begins with.
            let both_load = matches!((&state, &model.state), (ModelState::Loading(_), ModelState::Loading(_)));
            if both_load || rank(&state) > rank(&model.state) {
                model.state = state;
            }
            model.locations.push(ModelLocation {
                node: candidate.id.node.name.to_string(),
                device: report.device,
                state: report.state.clone(),
                memory: report.memory,
                pinned: report.pinned,
            });
        }
        for (id, model) in models.iter_mut().filter(|(_, model)| model.loaded) {
            model.warning = no_return(self, id);
        }
        for (alias, target) in &self.catalogue.aliases {
            if let Some(model) = models.get(target).cloned().filter(|_| !models.contains_key(alias)) {
                models.insert(alias.clone(), ModelReport { id: alias.clone(), alias_of: Some(target.clone()), ..model });
            }
        }
        models.into_values()
    }

    /// Further names of models of which no node tells.
    fn dangling(&self) -> impl Iterator<Item = (&ModelId, &ModelId)> {
        self.catalogue.aliases.iter().filter(|(alias, target)| !self.knows(alias) && !self.knows(target))
    }

    /// Does some node list a model, hold it, or have held it before its link was lost?
    pub(super) fn knows(&self, model: &ModelId) -> bool {
        self.catalogue.models.contains_key(model) || self.candidates(model).next().is_some() || self.is_out_of_reach(model)
    }

    /// The same as [`Self::resolve`], but for a name that stands for a model of which no node tells: that is refused.
    pub fn named<'a>(&'a self, name: &'a ModelId) -> Result<&'a ModelId, RequestError> {
        let model = self.resolve(name);
        if model == name || self.knows(model) {
            return Ok(model);
        }
        Err(RequestError::ModelNotFound { model: model.to_string(), alias: Some(name.to_string()) })
    }

    /// Is there a place that may hold a model, and where its load has not failed?
    fn is_placeable(&self, model: &ModelId) -> bool {
        let failed = |at: &Site| {
            let mut here = self.candidates(model).filter(|one| one.id.node == at.0 && one.id.device == at.1);
            here.any(|one| matches!(one.report.state, ReplicaState::Failed(_)))
        };
        self.catalogue.models.get(model).is_some_and(|merged| feasible_sites(self, merged).any(|site| !failed(&site)))
    }

    fn unlisted(&self, id: &ModelId, kind: ModelKind) -> ModelReport {
        ModelReport {
            id: id.clone(),
            loaded: false,
            state: ModelState::Unloaded,
            context_length: 0,
            created: self.first_seen.get(id).copied().unwrap_or(0),
            kind,
            tools: false,
            reasoning: false,
            capabilities: Vec::new(),
            limit: Limits::default(),
            cost: Cost::default(),
            alias_of: None,
            quant: None,
            feasible_on: Vec::new(),
            locations: Vec::new(),
            fetch: None,
            warning: None,
        }
    }

    fn listed(&self, id: &ModelId, merged: &MergedModel) -> ModelReport {
        let facts = merged.facts.as_ref();
        let kind = facts.map_or(ModelKind::Generate, |facts| facts.kind);
        let refused = merged.on.values().find_map(|entry| match &entry.files {
            FilesState::Refused(why) => Some(why.clone()),
            _ => None,
        });
        let feasible_on = feasible_on(self, merged);
        // Of several the one that is furthest, but what goes wrong is told before what goes well.
        let fetches = merged.fetches().map(|(_, fetch)| fetch);
        let rank = |fetch: &FilesFetch| (fetch.failure.is_some(), fetch.share());
        let fetch = fetches.max_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(Ordering::Equal));
        let looked_for = merged.on.values().all(|entry| entry.files == FilesState::Absent);
        let missing = if looked_for { no_files(self, merged) } else { None };
        let state = match (refused.or(missing), fetch) {
            (Some(why), _) if feasible_on.is_empty() => ModelState::Failed(why),
            (_, Some(fetch)) => ModelState::Loading(fetch.share() as f32),
            (_, None) => ModelState::Unloaded,
        };
        ModelReport {
            state,
            context_length: merged.context_length().unwrap_or_default(),
            tools: facts.is_some_and(|facts| facts.tools),
            reasoning: facts.is_some_and(|facts| facts.reasoning),
            capabilities: merged.profile.capabilities.clone(),
            limit: merged.profile.limit,
            cost: merged.profile.cost,
            quant: merged.profile.quant,
            feasible_on,
            fetch: fetch.cloned(),
            ..self.unlisted(id, kind)
        }
    }

    /// This node's own devices and replicas, for people.
    pub fn own_shown(&self) -> NodeSummary {
        shown(&self.own)
    }

    /// What this node is to hold from its start and has not held yet, by what became of it here, or else what [`Self::all_models`] says of it (CX-50).
    pub fn activation(&self) -> Activation {
        let mut activation = Activation::default();
        if self.to_preload().next().is_none() {
            return activation; // as nearly always
        }
        let models = self.all_models();
        for model in self.to_preload().map(|entry| entry.profile.id.clone()) {
            let of_all = models.iter().find(|report| report.id == model).map(|report| &report.state);
            let failed = match (self.own_failure(&model), of_all) {
                (Some(why), _) => Some(why.to_owned()),
                (None, Some(ModelState::Failed(why))) => Some(why.clone()),
                (None, _) => None,
            };
            match failed {
                Some(reason) => activation.failed.push(NotActivated { model, reason }),
                None => activation.pending.push(model),
            }
        }
        activation
    }

    /// Everything, for people: this node first, then the others by name.
    pub fn report(&self, now: Instant) -> ClusterReport {
        let me = NodeReport {
            facts: self.me.clone(),
            state: self.own_state(),
            this_node: true,
            age: Duration::ZERO,
            round_trip: None,
            summary: shown(&self.own),
        };
        let others = self.others.values().filter_map(|other| {
            Some(NodeReport {
                facts: other.facts.clone()?,
                state: other.state(),
                this_node: false,
                age: other.heard.map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard)),
                round_trip: other.round_trip,
                summary: shown(&other.summary),
            })
        });
        let nodes = std::iter::once(me).chain(others).collect();
        let mut conflicts = self.catalogue.conflicts.clone();
        conflicts.extend(self.catalogue.models.values().filter_map(|model| nowhere(self, model)));
        let loaded: BTreeSet<&ModelId> = self.replicas().map(|one| &one.report.model).collect();
        conflicts.extend(loaded.into_iter().filter_map(|model| no_return(self, model)));
        conflicts.extend(self.dangling().map(|(alias, target)| format!("the alias '{alias}' stands for '{target}', {UNLISTED}")));
        let fetches = self.catalogue.models.iter().flat_map(|(model, merged)| {
            let here = merged.fetches().filter(|(node, _)| self.is_up(node));
            here.map(|(node, fetch)| ModelFetch { model: model.clone(), node: node.name.clone(), fetch: fetch.clone() })
        });
        ClusterReport { cluster: self.cluster.clone(), nodes, conflicts, fetches: fetches.collect() }
    }
}

/// Can no node hold it, and has it nothing to say for itself?
fn is_hidden(model: &ModelReport) -> bool {
    model.locations.is_empty() && model.feasible_on.is_empty() && !matches!(model.state, ModelState::Failed(_))
}

/// Without what is not for people.
fn shown(summary: &NodeSummary) -> NodeSummary {
    let mut summary = summary.clone();
    summary.replicas.iter_mut().for_each(|replica| replica.prefixes = None);
    summary
}

fn state_of(report: &ReplicaReport) -> ModelState {
    match &report.state {
        ReplicaState::Loaded => ModelState::Loaded,
        ReplicaState::Loading => ModelState::Loading(report.progress),
        ReplicaState::Recovering => ModelState::Recovering,
        ReplicaState::Failed(why) => ModelState::Failed(why.clone()),
    }
}

/// The best that any replica can say counts; one that failed says more than none.
fn rank(state: &ModelState) -> u8 {
    match state {
        ModelState::Loaded => 4,
        ModelState::Loading(_) => 3,
        ModelState::Recovering => 2,
        ModelState::Failed(_) => 1,
        ModelState::Unloaded => 0,
    }
}
