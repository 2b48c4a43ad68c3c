//! What nodes decide, held against what they knew when they did: with sums of the simulator's own, of what the trace says that its models take.

use std::time::Duration;

use plexus_actors::evictor::core::{Grant, Place};
use plexus_actors::router::place::Site;
use plexus_actors::router::view::NodeInView;
use plexus_types::{Bytes, DeviceReport, ModelId, NodeState};

use super::{Placement, Workload};

/// Room is made for a context of so many tokens, where the model was made for as many.
const CONTEXT_GOAL: u64 = 8192;
/// Nobody is served with fewer.
const CONTEXT_MIN: u64 = 256;
/// Whoever has ordered a load may count it for so long without seeing it.
const MAY_BE_COUNTED: Duration = Duration::from_secs(15);

/// What a node wants of a load that it orders, and where that was refused.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) may_displace: bool,
    pub(super) tried: Vec<Site>,
}

impl Workload {
    fn with_context(&self, model: &ModelId, tokens: u64) -> Bytes {
        let footprint = self.facts(self.index_of(model)).cuda;
        footprint.weights + footprint.working + Bytes(tokens * footprint.kv_per_token.0)
    }

    /// The least that a model can be served with.
    fn least(&self, model: &ModelId) -> Bytes {
        self.with_context(model, CONTEXT_MIN)
    }

    /// What others may have to go for, on a device of `total` bytes.
    fn goal(&self, model: &ModelId, total: Bytes) -> Bytes {
        self.with_context(model, CONTEXT_GOAL).min(total).max(self.least(model))
    }

    /// What a model takes with what it was granted: its weights, what its steps work in, and the keys and values of all blocks of its pool.
    pub(super) fn taken(&self, model: &ModelId, grant: &Grant) -> Bytes {
        self.with_context(model, u64::from(grant.plan.kv.n_blocks) * u64::from(grant.plan.kv.block_len))
    }

    fn class(&self, model: &ModelId) -> u32 {
        self.models[self.index_of(model)].residency_priority
    }
}

impl Placement {
    /// An evictor has told a replica to make room. It knows of each request here: only one that comes later may find the replica going.
    ///
    /// Errors: the replica has requests, or is being loaded; or nobody waits for room on its device who may displace its class (CX-26) and for
    /// whom the room that is there does not do (CX-25).
    pub(super) fn check_victim(&self, node: usize, place: &Place) -> Result<(), String> {
        let here = &self.nodes[node];
        let Some(victim) = here.replicas.get(place) else { return Ok(()) };
        if victim.is_used() || victim.is_loading() {
            return Err(format!("{place:?} of {} is in use, as its node knows, and was told to make room", here.id));
        }
        let total = here.devices.iter().find(|(id, _)| *id == place.1).map_or(Bytes(0), |(_, total)| *total);
        let free = total.saturating_sub(here.held(place.1));
        let waiting: Vec<&ModelId> = here.rooms.values().filter(|(at, _)| at.1 == place.1).map(|(at, _)| &at.0).collect();
        let class = self.workload.class(&place.0);
        let wants = |model: &&&ModelId| self.workload.class(model) >= class && self.workload.goal(model, total) > free;
        if waiting.iter().any(|model| wants(&model)) {
            return Ok(());
        }
        Err(format!("{place:?} of class {class} was told to make room on {} where {free} are free and {waiting:?} wait", here.id))
    }

    /// A node orders a load of a model at a site.
    ///
    /// Errors: by what the node knows others have to go there, while some other site has room (CX-25), or though this is for a further replica; or
    /// it does not suffice that all go who may, which are those without requests of the model's class and below (CX-26), or for one that queues for
    /// its turn, those with requests too.
    pub(super) fn check_order(&mut self, node: usize, model: &ModelId, site: &Site, in_turn: bool) -> Result<(), String> {
        let view = &self.nodes[node].view;
        let search = &self.nodes[node].searches[model];
        let all = view.nodes().filter(|one| one.state == NodeState::Up);
        let all = all.flat_map(|one| one.summary.devices.iter().map(move |device| (one, device)));
        let known: Vec<Known> = all.map(|(one, device)| self.known(node, model, one, device)).collect();
        let Some(there) = known.iter().find(|known| known.site == *site) else {
            return Err(format!("{} orders {model} at {site:?}, which it does not see up", self.nodes[node].id));
        };
        let told = format!("{} orders {model} at {site:?}: {there:?}", self.nodes[node].id);
        let (least, goal) = (self.workload.least(model), self.workload.goal(model, there.total));
        if there.free + there.may_go + (if in_turn { there.may_end } else { Bytes(0) }) < least {
            return Err(format!("{told}; that does not do, whoever may go goes"));
        }
        // Nobody goes for a good context that there is no room for in any case, if a shorter one fits.
        let goes_for_more = goal > there.free && goal <= there.free_at_least + there.may_go;
        if least <= there.free && !goes_for_more {
            return Ok(());
        }
        if in_turn && least <= there.free + there.may_go {
            return Err(format!("{told}; it need not queue"));
        }
        if !search.may_displace {
            return Err(format!("{told}; somebody has to go for a further replica"));
        }
        let has_room = |known: &&Known| {
            let is_open = !known.has_it && !search.tried.contains(&known.site);
            is_open && self.workload.goal(model, known.total) <= known.free_at_least
        };
        if let Some(other) = known.iter().find(has_room) {
            return Err(format!("{told}; there is room elsewhere: {other:?}"));
        }
        self.outcome.displacing_orders += 1;
        Ok(())
    }

    /// What `node` knows of a device of another, or of itself, when it looks for a place for a model. A replica that has not said what it takes will
    /// take what room is made for.
    fn known(&self, node: usize, model: &ModelId, at: NodeInView<'_>, device: &DeviceReport) -> Known {
        let (site, total, class) = ((at.id.clone(), device.id), device.memory_total, self.workload.class(model));
        let (mut used, mut may_go, mut may_end, mut has_it) = (Bytes(0), Bytes(0), Bytes(0), false);
        for candidate in self.nodes[node].view.replicas_on(at, device.id) {
            let report = candidate.report;
            let bytes = if report.memory == Bytes(0) { self.workload.goal(&report.model, total) } else { report.memory };
            used = used + bytes;
            let rests = report.idle.is_some() && report.load.running + report.load.waiting + candidate.sent == 0;
            if !report.pinned && report.residency_priority <= class {
                let goes = if rests && report.memory > Bytes(0) { &mut may_go } else { &mut may_end };
                *goes = *goes + bytes;
            }
            has_it |= report.model == *model;
        }
        let may_come = self.nodes[node].recent_orders.iter().filter(|(id, (to, since))| {
            let shows = at.summary.replicas.iter().any(|replica| replica.device == device.id && replica.model == **id);
            *to == site && *id != model && !shows && self.now <= *since + MAY_BE_COUNTED
        });
        let may_come: Bytes = may_come.map(|(id, _)| self.workload.goal(id, total)).sum();
        let free = total.saturating_sub(used);
        Known { free, free_at_least: free.saturating_sub(may_come), site, total, may_go, may_end, has_it }
    }
}

/// A device, by what a node knows.
#[derive(Debug)]
struct Known {
    site: Site,
    total: Bytes,
    free: Bytes,
    /// What is free if all comes that was ordered there of late and does not show.
    free_at_least: Bytes,
    /// What those take who may go for the model.
    may_go: Bytes,
    /// And those that are used, or are being loaded, and might go after that.
    may_end: Bytes,
    /// The model is there, or comes.
    has_it: bool,
}
