//! A node of the simulation: the shell of the router round its cores. [`super::replica`] has that of the evictor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use plexus_actors::evictor::core::{Event, EvictionConfig, EvictorCore, Place};
use plexus_actors::evictor::pins::Pins;
use plexus_actors::inbound::{ClusterChange, PeerChange};
use plexus_actors::messages::Ensure;
use plexus_actors::prefix::PromptDigests;
use plexus_actors::router::home::{self, Home, home_of};
use plexus_actors::router::place::Site;
use plexus_actors::router::policy::{NoReplica, replicas_wanted, route};
use plexus_actors::router::view::ClusterView;
use plexus_types::{
    Bytes, Catalogue, CatalogueEntry, DeviceId, FilesState, Generation, ModelId, NodeFacts, NodeId, NodeState, RequestError,
};

use super::decisions::Search;
use super::replica::Replica;
use super::{Message, PATIENCE, Placement, RETRY, Request, RequestState, Within, Workload};

const TICK: Duration = Duration::from_secs(1);
/// The others are told every so many ticks for how long models have been idle.
const IDLE_TICKS: u32 = 5;
/// Who was asked to place a model, or to load it, answers within this, or does not.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);
/// Whoever has agreed to go is gone within this.
const GOES: Duration = Duration::from_millis(100);

/// A node.
#[derive(Debug)]
pub(super) struct SimNode {
    pub(super) up: bool,
    pub(super) life: u64,
    pub(super) id: NodeId,
    pub(super) devices: Vec<(DeviceId, Bytes)>,
    pub(super) view: ClusterView,
    home: Home,
    pub(super) evictor: EvictorCore,
    pub(super) replicas: BTreeMap<Place, Replica>,
    /// Pinned replicas that were loaded: they stay.
    pub(super) pinned: BTreeSet<Place>,
    /// Who asked, by number; this node itself is not among them.
    askers: BTreeMap<u64, usize>,
    /// Loads that wait for their memory, by number.
    pub(super) rooms: BTreeMap<u64, (Place, u64)>,
    /// Loads that were ordered here, by number: by whom, and which of its orders.
    pub(super) orders: BTreeMap<u64, (usize, ModelId, u64)>,
    /// Models whose home was asked for them and has not answered.
    pub(super) asked: BTreeMap<ModelId, u64>,
    /// Loads that this node has ordered and that have not been answered.
    ordered: BTreeMap<ModelId, u64>,
    /// What it last wanted of a load of each model.
    pub(super) searches: BTreeMap<ModelId, Search>,
    /// Where it last ordered each model, and when.
    pub(super) recent_orders: BTreeMap<ModelId, (Site, Duration)>,
    n_ticks: u32,
    next: u64,
}

impl SimNode {
    pub(super) fn new(index: usize, life: u64, workload: &Workload) -> Self {
        let facts = facts(index, life);
        Self {
            up: true,
            life,
            id: facts.id.clone(),
            devices: workload.devices(index),
            view: ClusterView::new("simulated".into(), facts),
            home: Home::default(),
            evictor: EvictorCore::new(EvictionConfig::default(), Pins::new()),
            replicas: BTreeMap::new(),
            pinned: BTreeSet::new(),
            askers: BTreeMap::new(),
            rooms: BTreeMap::new(),
            orders: BTreeMap::new(),
            asked: BTreeMap::new(),
            ordered: BTreeMap::new(),
            searches: BTreeMap::new(),
            recent_orders: BTreeMap::new(),
            n_ticks: 0,
            next: 0,
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn loaded(&self) -> impl Iterator<Item = &Place> {
        self.replicas.iter().filter(|(_, replica)| replica.loaded).map(|(place, _)| place)
    }

    /// What the replicas of a device take, by what the trace says of their models.
    pub(super) fn held(&self, device: DeviceId) -> Bytes {
        self.replicas.iter().filter(|(place, _)| place.1 == device).filter_map(|(_, replica)| replica.taken).sum()
    }

    pub(super) fn on_ensure_late(&mut self, model: &ModelId, number: u64) {
        if self.asked.get(model) == Some(&number) {
            self.asked.remove(model);
        }
    }

    pub(super) fn check(&self, now: Duration) -> Result<(), String> {
        let promised = self.evictor.ledger().report();
        for (device, total) in &self.devices {
            let held = self.held(*device);
            let promised = promised.iter().find(|report| report.id == *device).map_or(Bytes(0), |report| report.memory_used);
            if held > *total || promised > *total {
                return Err(format!("{device} of {} holds {held} and promised {promised} of {total}", self.id));
            }
            if held != promised {
                return Err(format!("the ledger of {} says {promised} for {device}, its replicas hold {held}", self.id));
            }
        }
        if let Some(gone) = self.pinned.iter().find(|place| !self.replicas.contains_key(*place)) {
            return Err(format!("{gone:?} was pinned on {} and is gone", self.id));
        }
        let stuck = |replica: &Replica| replica.agreed_at.is_some_and(|at| now > at + GOES);
        match self.replicas.iter().find(|(_, replica)| stuck(replica)) {
            Some((place, _)) => Err(format!("{place:?} has agreed to go from {} and is still there", self.id)),
            None => Ok(()),
        }
    }
}

fn facts(index: usize, life: u64) -> NodeFacts {
    facts_of(&NodeId { name: format!("n{index}").parse().expect("a name"), generation: Generation(life + 1) })
}

fn facts_of(id: &NodeId) -> NodeFacts {
    let address = "127.0.0.1:1".parse().expect("an address");
    NodeFacts { id: id.clone(), version: String::new(), link: address, http: address, gossip: address }
}

impl Placement {
    /// A node begins a life: its device opens, and it meets the others.
    pub(super) fn start(&mut self, node: usize) {
        let catalogue = Catalogue {
            entries: self
                .workload
                .models
                .iter()
                .enumerate()
                .map(|(i, profile)| CatalogueEntry {
                    profile: profile.clone(),
                    found: false,
                    files: FilesState::Present(self.workload.facts(i)),
                })
                .collect(),
            ..Catalogue::default()
        };
        self.nodes[node].view.on_own_catalogue(catalogue, SystemTime::UNIX_EPOCH);
        for (id, total) in self.nodes[node].devices.clone() {
            let opened = self.evicted(node, Event::DeviceUp { id, name: "simulated".into(), total });
            opened.expect("a device that opens displaces nobody");
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.meet(other, node);
        }
        self.within(node, TICK, Within::Ticks);
    }

    /// Finds a replica for a request, or has one loaded.
    pub(super) fn route(&mut self, index: usize) {
        let Request { model, ingress, arrived, state, .. } = self.requests[index].clone();
        if state != RequestState::Waiting {
            return;
        }
        // A client whose node died asks the next.
        let n_nodes = self.nodes.len();
        let ingress = (0..n_nodes).map(|i| (ingress + i) % n_nodes).find(|i| self.nodes[*i].up).unwrap_or(ingress);
        self.requests[index].via = ingress;
        let node = &mut self.nodes[ingress];
        let decision = route(&node.view, &model, &PromptDigests::of_length(400), &[], &mut self.rng);
        if decision.is_ok()
            && let Some(replicas) = replicas_wanted(&node.view, &model)
        {
            self.want(ingress, &model, replicas);
        }
        match decision {
            Ok(decision) => {
                let node = &mut self.nodes[ingress];
                node.view.on_sent(&decision.replica);
                let to = self.nodes.iter().position(|node| node.up && node.id == decision.replica.node);
                self.requests[index].state = RequestState::At(to.unwrap_or(ingress));
                match to {
                    Some(to) => self.send(ingress, to, Message::Request { request: index, place: (model, decision.replica.device) }),
                    None => self.waits_again(index, RETRY), // the node is gone, and this one has not heard yet
                }
            }
            Err(NoReplica::Refused(error)) => self.requests[index].state = RequestState::Refused(error.to_string()),
            Err(NoReplica::Loading(_) | NoReplica::Cold) if self.now > arrived + PATIENCE => {
                self.requests[index].state = RequestState::Refused("no room within the time".into());
            }
            Err(NoReplica::Loading(_)) => self.waits_again(index, RETRY),
            Err(NoReplica::Cold) => {
                self.want(ingress, &model, 1);
                self.waits_again(index, RETRY);
            }
        }
    }

    fn want(&mut self, node: usize, model: &ModelId, replicas: u32) {
        if self.nodes[node].asked.contains_key(model) {
            return;
        }
        let number = self.nodes[node].number();
        self.nodes[node].asked.insert(model.clone(), number);
        self.within(node, ORDER_DEADLINE, Within::EnsureLate { model: model.clone(), number });
        let home = home_of(&self.nodes[node].view, model);
        let ensure = Ensure { model: model.clone(), replicas, by_hand: false };
        match self.nodes.iter().position(|other| other.up && other.id == home) {
            Some(home) => self.send(node, home, Message::Ensure { from: node, ensure }),
            None => drop(self.nodes[node].asked.remove(model)), // gone, and this node has not heard yet
        }
    }

    pub(super) fn on_message(&mut self, node: usize, message: Message) -> Result<(), String> {
        let now = self.instant();
        match message {
            Message::Linked(other) => {
                let facts = facts(other, self.nodes[other].life);
                let view = &mut self.nodes[node].view;
                view.on_cluster_change(ClusterChange::Up(facts.clone()));
                view.on_peer_change(&PeerChange::Up(facts.id), now);
                let summary = self.nodes[node].view.own().clone();
                let catalogue = self.nodes[node].view.own_catalogue().clone();
                let id = self.nodes[node].id.clone();
                // Catalogues do not change here: they are known with the link.
                if self.nodes[other].up {
                    let own = facts_of(&id);
                    self.nodes[other].view.on_cluster_change(ClusterChange::Up(own));
                    self.nodes[other].view.on_peer_change(&PeerChange::Up(id.clone()), now);
                    self.nodes[other].view.on_catalogue(&id, catalogue, SystemTime::UNIX_EPOCH);
                    self.send(node, other, Message::Summary(node, summary));
                }
            }
            Message::Lost(other) => return self.on_lost(node, other),
            Message::Summary(from, summary) => {
                let id = self.nodes[from].id.clone();
                self.nodes[node].view.on_summary(&id, summary, now, SystemTime::UNIX_EPOCH);
            }
            Message::Ensure { from, ensure } => {
                let asker = self.nodes[node].number();
                self.nodes[node].askers.insert(asker, from);
                let SimNode { home, view, .. } = &mut self.nodes[node];
                let effects = home.on_ensure(view, &ensure, asker, now);
                if effects.iter().any(|effect| matches!(effect, home::Effect::Order { .. })) {
                    let search = Search { may_displace: ensure.replicas <= 1, tried: Vec::new() };
                    self.nodes[node].searches.insert(ensure.model.clone(), search);
                }
                return self.carry_out(node, &ensure.model, effects);
            }
            Message::Ensured(model, result) => {
                self.nodes[node].asked.remove(&model);
                let refused = |error: &RequestError| matches!(error, RequestError::Unservable { .. });
                if let Err(error) = result
                    && refused(&error)
                {
                    for request in self.requests.iter_mut().filter(|one| one.via == node && one.model == model) {
                        if request.state == RequestState::Waiting && request.arrived <= self.now {
                            request.state = RequestState::Refused(error.to_string());
                        }
                    }
                }
            }
            Message::Load { home, number, order } => {
                let asker = self.nodes[node].number();
                self.nodes[node].orders.insert(asker, (home, order.profile.id.clone(), number));
                let (profile, device, facts, in_turn) = (Box::new(order.profile), order.device, order.facts, order.in_turn);
                return self.evicted(node, Event::Load { profile, device, facts, in_turn, asker });
            }
            Message::Ordered { model, number, result } => return self.on_ordered(node, &model, number, result),
            Message::Request { request, place } => return self.on_request(node, request, &place),
        }
        Ok(())
    }

    fn carry_out(&mut self, node: usize, model: &ModelId, effects: Vec<home::Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                home::Effect::Order { node: target, order } => {
                    let site = (target.clone(), order.device);
                    self.check_order(node, model, &site, order.in_turn)?;
                    let ordered_at = self.now;
                    self.nodes[node].recent_orders.insert(model.clone(), (site.clone(), ordered_at));
                    self.nodes[node].searches.entry(model.clone()).or_default().tried.push(site);
                    let number = self.nodes[node].number();
                    self.nodes[node].ordered.insert(model.clone(), number);
                    let linked = self.nodes[node].view.nodes().any(|one| *one.id == target && one.state == NodeState::Up);
                    match self.nodes.iter().position(|other| other.up && other.id == target) {
                        Some(target) if linked => {
                            self.send(node, target, Message::Load { home: node, number, order });
                            self.within(node, ORDER_DEADLINE, Within::OrderLate { model: model.clone(), number });
                        }
                        Some(_) | None => {
                            let error = RequestError::soon("no link");
                            self.send(node, node, Message::Ordered { model: model.clone(), number, result: Err(error) });
                        }
                    }
                }
                home::Effect::Answer { asker, result } => {
                    let from = self.nodes[node].askers.remove(&asker).unwrap_or(node);
                    self.send(node, from, Message::Ensured(model.clone(), result.map_err(|unplaced| unplaced.error)));
                }
            }
        }
        Ok(())
    }

    /// Nobody says in time whether a load was begun. What is said later does not count.
    pub(super) fn on_order_late(&mut self, node: usize, model: &ModelId, number: u64) {
        if self.nodes[node].ordered.get(model) == Some(&number) {
            let now = self.instant();
            self.nodes[node].ordered.remove(model);
            self.nodes[node].home.on_late(model, "the node did not answer".to_owned(), now);
        }
    }

    /// A node that was told to load says whether it has begun.
    pub(super) fn on_ordered(&mut self, node: usize, model: &ModelId, number: u64, result: Result<(), RequestError>) -> Result<(), String> {
        if self.nodes[node].ordered.get(model) != Some(&number) {
            return Ok(());
        }
        let now = self.instant();
        self.nodes[node].ordered.remove(model);
        let SimNode { home, view, .. } = &mut self.nodes[node];
        let effects = home.on_answer(view, model, result, now);
        self.carry_out(node, model, effects)
    }

    pub(super) fn on_tick(&mut self, node: usize) -> Result<(), String> {
        self.within(node, TICK, Within::Ticks);
        let now = self.instant();
        let SimNode { home, view, .. } = &mut self.nodes[node];
        let effects = home.on_view(view, now);
        let spares = home.spares(view, now);
        for (model, effects) in effects {
            self.carry_out(node, &model, effects)?;
        }
        for spare in spares {
            let holder = self.nodes.iter().position(|other| other.up && other.id == spare.node);
            if let Some(holder) = holder.filter(|holder| self.is_linked(node, *holder)) {
                let asker = self.nodes[holder].number();
                self.evicted(holder, Event::Unload { model: spare.model, device: Some(spare.device), asker })?;
            }
        }
        let places: Vec<Place> = self.nodes[node].replicas.keys().cloned().collect();
        places.iter().for_each(|place| self.report(node, place)); // for how long they are idle
        self.nodes[node].n_ticks += 1;
        if self.nodes[node].n_ticks.is_multiple_of(IDLE_TICKS) {
            self.publish(node);
        }
        self.evicted(node, Event::Tick)
    }
}
