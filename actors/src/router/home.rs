//! One load at a time for each model: decided by the model's home. A plain struct that does no I/O.
//!
//! The home of a model is the living node with the greatest hash of (model, node), so that all nodes that see each other agree without asking
//! (rendezvous hashing: Thaler and Ravishankar 1998). Concurrent first requests at different nodes meet there and cause one load (CX-42). Under
//! a partition each side has a home of its own and may load: harmless, and mended by eviction.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_types::{Explanation, ModelId, NodeId, NodeState, ReplicaId, ReplicaState, RequestError};
use tokio::time::Instant;

use super::place::{Refusal, Site, Unplaced, Want, may_pass, place, place_name};
use super::view::{Candidate, ClusterView};
use crate::evictor::plan::EvictionPolicy;
use crate::messages::{Ensure, LoadOrder};

/// An order that was begun shows in the view within this, or was lost.
const ORDER_SHOWS: Duration = Duration::from_secs(5);
/// A replica beyond the first that nobody has used for so long goes.
pub(super) const SPARE_IDLE: Duration = Duration::from_secs(60);
/// A model that has waited for so long for others to become idle queues for its turn where they are used.
const QUEUES_AFTER: Duration = Duration::from_secs(2);
/// Those who wait for a model ask again within this.
const ASKS_WITHIN: Duration = Duration::from_secs(2);
/// A spare replica that was told to go and is there for so long stays.
const SPARE_GOES: Duration = Duration::from_secs(30);

/// Which question an answer belongs to; chosen by the shell.
pub type Asker = u64;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell a node to load a model; then [`Home::on_answer`].
    Order {
        /// Which node.
        node: NodeId,
        /// What.
        order: Box<LoadOrder>,
    },
    /// Answer somebody who wants a model.
    Answer {
        /// Whom.
        asker: Asker,
        /// Where it is being loaded, or why nowhere.
        result: Result<Explanation, Box<Unplaced>>,
    },
}

/// Loads that this node has decided.
#[derive(Debug, Default)]
pub struct Home {
    policy: EvictionPolicy,
    orders: BTreeMap<ModelId, Order>,
    /// Spare replicas that were told to go, and when.
    sparing: BTreeMap<ReplicaId, Instant>,
    /// Models for which there is no room until others are idle: since when somebody asks for them, and when somebody did last.
    waiting: BTreeMap<ModelId, (Instant, Instant)>,
}

#[derive(Debug)]
struct Order {
    site: Site,
    explanation: Explanation,
    wanted: Wanted,
    stage: Stage,
}

/// How far an order is.
#[derive(Debug)]
enum Stage {
    /// The node has it, or will.
    Given,
    /// The node did not answer in time, and may have begun: else this is why it has not.
    Late(Instant, String),
    /// The node said that it has begun.
    Begun(Instant),
}

/// What is wanted of a load, and by whom.
#[derive(Debug)]
struct Wanted {
    /// Places that have refused it.
    refused: Vec<Refusal>,
    may_displace: bool,
    by_hand: bool,
    askers: Vec<Asker>,
}

impl Wanted {
    /// Tells those who asked that it is loaded nowhere.
    fn unplaced(self, why: &Unplaced) -> Vec<Effect> {
        self.askers.into_iter().map(|asker| Effect::Answer { asker, result: Err(Box::new(why.clone())) }).collect()
    }
}

/// The node that decides where a model is loaded.
pub fn home_of(view: &ClusterView, model: &ModelId) -> NodeId {
    let weight = |node: &NodeId| hash(format!("{model} {node}").as_bytes());
    let able = view.nodes().filter(|node| node.state == NodeState::Up).map(|node| node.id);
    able.max_by_key(|node| (weight(node), (*node).clone())).unwrap_or(view.me()).clone()
}

impl Home {
    /// Nothing has been ordered yet.
    pub fn new(policy: EvictionPolicy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Somebody wants a model to have so many replicas.
    pub fn on_ensure(&mut self, view: &ClusterView, ensure: &Ensure, asker: Asker, now: Instant) -> Vec<Effect> {
        let Ensure { model, replicas, by_hand } = ensure;
        let there: Vec<Candidate<'_>> =
            view.candidates(model).filter(|one| is_replica(&one.report.state, one.node) && !one.outdated).collect();
        if there.len() >= *replicas as usize {
            let (loaded, others): (Vec<_>, Vec<_>) = there.into_iter().partition(|one| one.report.state == ReplicaState::Loaded);
            let told = |is: &str, those: Vec<Candidate<'_>>| {
                let places: Vec<String> = those.into_iter().map(|one| place_name(&(one.id.node, one.id.device))).collect();
                (!places.is_empty()).then(|| format!("{is} {}", places.join(", ")))
            };
            let told = [told("it is on", loaded), told("its load was begun before, on", others)];
            let decision = told.into_iter().flatten().collect::<Vec<_>>().join("; ");
            let explanation = Explanation { model: model.clone(), decision, considered: Vec::new(), age: Duration::ZERO };
            return vec![Effect::Answer { asker, result: Ok(explanation) }];
        }
        if let Some(order) = self.orders.get_mut(model) {
            match order.stage {
                Stage::Given | Stage::Late(..) => {
                    // It may have been given for less: for a spare, or for a request, which does not load what has failed before.
                    order.wanted.may_displace |= *replicas <= 1;
                    order.wanted.by_hand |= *by_hand;
                    order.wanted.askers.push(asker);
                    return Vec::new();
                }
                Stage::Begun(begun) if !shows(view, model, &order.site) && now.saturating_duration_since(begun) < ORDER_SHOWS => {
                    return vec![Effect::Answer { asker, result: Ok(order.explanation.clone()) }];
                }
                Stage::Begun(_) => drop(self.orders.remove(model)),
            }
        }
        // A replica beyond the first takes room that is there, and nobody's.
        let order = Wanted { refused: Vec::new(), may_displace: *replicas <= 1, by_hand: *by_hand, askers: vec![asker] };
        self.order(view, model, order, now)
    }

    /// The node that was told to load a model says that it has begun, or why not.
    pub fn on_answer(&mut self, view: &ClusterView, model: &ModelId, result: Result<(), RequestError>, now: Instant) -> Vec<Effect> {
        let Some(order) = self.orders.remove(model) else { return Vec::new() };
        match result {
            Ok(()) => self.begun(model, order, now),
            Err(error) => self.refused(view, model, order, error.to_string(), may_pass(&error), now),
        }
    }

    /// The node that was told to load a model has not answered in time, as `why` says. Whether it has begun is seen before long: until then nobody
    /// else is told, or there would be two replicas.
    pub fn on_late(&mut self, model: &ModelId, why: String, now: Instant) {
        if let Some(order) = self.orders.get_mut(model).filter(|order| matches!(order.stage, Stage::Given)) {
            order.stage = Stage::Late(now, why);
        }
    }

    fn begun(&mut self, model: &ModelId, mut order: Order, now: Instant) -> Vec<Effect> {
        let answer = |asker| Effect::Answer { asker, result: Ok(order.explanation.clone()) };
        let effects = std::mem::take(&mut order.wanted.askers).into_iter().map(answer).collect();
        order.stage = Stage::Begun(now);
        self.orders.insert(model.clone(), order);
        effects
    }

    fn refused(&mut self, view: &ClusterView, model: &ModelId, order: Order, why: String, may_pass: bool, now: Instant) -> Vec<Effect> {
        let mut wanted = order.wanted;
        wanted.refused.push(Refusal { site: order.site, why, may_pass });
        self.order(view, model, wanted, now)
    }

    fn order(&mut self, view: &ClusterView, model: &ModelId, wanted: Wanted, now: Instant) -> Vec<Effect> {
        let ordered: Vec<(Site, ModelId)> = self.orders.iter().map(|(model, order)| (order.site.clone(), model.clone())).collect();
        let Wanted { refused, may_displace, by_hand, .. } = &wanted;
        let want = Want { refused, ordered: &ordered, may_displace: *may_displace, by_hand: *by_hand, ..Want::new(model) };
        let waits_since =
            self.waiting.get(model).filter(|(_, last)| now.saturating_duration_since(*last) < ASKS_WITHIN).map(|(first, _)| *first);
        let in_turn = waits_since.is_some_and(|since| now.saturating_duration_since(since) >= QUEUES_AFTER);
        match place(view, &Want { in_turn, ..want }, &self.policy) {
            Ok(placement) => {
                let effect = Effect::Order { node: placement.site.0.clone(), order: Box::new(placement.order) };
                let order = Order { site: placement.site, explanation: placement.explanation, wanted, stage: Stage::Given };
                self.orders.insert(model.clone(), order);
                self.waiting.remove(model);
                vec![effect]
            }
            Err(unplaced) if may_pass(&unplaced.error) => {
                self.waiting.retain(|_, (_, last)| now.saturating_duration_since(*last) < ASKS_WITHIN);
                self.waiting.insert(model.clone(), (waits_since.unwrap_or(now), now));
                wanted.unplaced(&unplaced)
            }
            Err(unplaced) => wanted.unplaced(&unplaced),
        }
    }

    /// The view changed, or time passed: orders that were begun and show in the view are forgotten, and those that were lost. Of those that were
    /// not answered it is known by now whether they were begun; what is to be done is told with the model that it concerns.
    #[must_use]
    pub fn on_view(&mut self, view: &ClusterView, now: Instant) -> Vec<(ModelId, Vec<Effect>)> {
        let is_late = |order: &Order| matches!(order.stage, Stage::Late(..));
        let late: Vec<ModelId> = self.orders.iter().filter(|(_, order)| is_late(order)).map(|(model, _)| model.clone()).collect();
        let mut effects = Vec::new();
        for model in late {
            let Some(order) = self.orders.remove(&model) else { continue };
            let Stage::Late(since, why) = &order.stage else { continue };
            let (is_over, why) = (now.saturating_duration_since(*since) >= ORDER_SHOWS || !view.is_up(&order.site.0), why.clone());
            if shows(view, &model, &order.site) {
                effects.push((model.clone(), self.begun(&model, order, now)));
            } else if is_over {
                effects.push((model.clone(), self.refused(view, &model, order, why, true, now)));
            } else {
                self.orders.insert(model, order);
            }
        }
        self.orders.retain(|model, order| match order.stage {
            Stage::Given | Stage::Late(..) => true,
            Stage::Begun(begun) => !shows(view, model, &order.site) && now.saturating_duration_since(begun) < ORDER_SHOWS,
        });
        effects
    }

    /// Replicas beyond the first, of models whose home is here, that nobody uses any more: they are to go. Of each model one at a time, or the
    /// last could go with them: while one that was told to go is still there, no other is, unless it stays for long.
    pub fn spares(&mut self, view: &ClusterView, now: Instant) -> Vec<ReplicaId> {
        let is_there = |replica: &ReplicaId| view.candidates(&replica.model).any(|one| one.id == *replica);
        self.sparing.retain(|replica, since| is_there(replica) && now.saturating_duration_since(*since) < SPARE_GOES);
        let mut spares = Vec::new();
        for (model, merged) in &view.catalogue().models {
            let is_under_way = self.sparing.keys().any(|replica| replica.model == *model);
            if merged.profile.preload || is_under_way || home_of(view, model) != *view.me() {
                continue;
            }
            let loaded =
                view.candidates(model).filter(|one| one.report.state == ReplicaState::Loaded && one.node == NodeState::Up && !one.outdated);
            let loaded: Vec<_> = loaded.collect();
            if loaded.len() < 2 {
                continue;
            }
            let idle = |one: &Candidate<'_>| one.report.idle.filter(|idle| one.sent == 0 && !one.report.pinned && *idle >= SPARE_IDLE);
            spares.extend(loaded.iter().filter(|one| idle(one).is_some()).max_by_key(|one| idle(one)).map(|one| one.id.clone()));
        }
        self.sparing.extend(spares.iter().map(|spare| (spare.clone(), now)));
        spares
    }

    /// Orders under way.
    pub fn n_orders(&self) -> usize {
        self.orders.len()
    }
}

fn is_replica(state: &ReplicaState, node: NodeState) -> bool {
    node == NodeState::Up && matches!(state, ReplicaState::Loading | ReplicaState::Loaded | ReplicaState::Recovering)
}

fn shows(view: &ClusterView, model: &ModelId, (node, device): &Site) -> bool {
    view.candidates(model).any(|one| one.id.node == *node && one.id.device == *device)
}

/// FNV-1a with a last mixing: the same in every build, and spread over all bits.
fn hash(bytes: &[u8]) -> u64 {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (sum ^ (sum >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests;
