//! Models that are wanted and not loaded: what the router asks of homes, orders as a home, and loads by itself.

use std::future::Future;
use std::time::Duration;

use plexus_api::service::Place;
use plexus_types::{Explanation, FilesState, ModelId, NodeId, ReplicaState, RequestError};
use ractor::RpcReplyPort;
use ractor::concurrency::oneshot;
use tokio::time::Instant;
use tracing::{debug, info};

use super::expected;
use super::home::{self, home_of};
use super::place::{Placement, Unplaced, Want, being_loaded, may_pass, place};
use super::view::Candidate;
use super::{Ensured, ORDER_DEADLINE, Routed, RouterMsg, RouterState};
use crate::messages::{Ensure, LoadOrder, Question};
use crate::nodes::no_answer;
use crate::peers::PeerError;

/// What the home said of a model is believed for so long before it is asked again.
pub(super) const ENSURED_FOR: Duration = Duration::from_millis(500);
/// A refusal that only somebody can mend is believed for so long.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// What the home said is told to those who waited for the load, however long it took.
const ENSURED_KEPT: Duration = Duration::from_secs(3600);
/// Devices that are not open after so long are not waited for by models that are to be loaded at the start.
const DEVICE_WAIT: Duration = Duration::from_secs(30);
/// A node that has just been started waits so long for those that it was told of before it has anything loaded: they may have it already.
const JOINING: Duration = Duration::from_secs(2);

/// What became of an order to load.
#[derive(Debug)]
pub enum Ordered {
    /// The node has begun.
    Begun,
    /// It does not.
    Refused(RequestError),
    /// It did not say in time. It may have begun.
    Late(RequestError),
}

impl RouterState {
    /// No replica is loaded: the model's home is asked for one, unless it was a moment ago.
    pub(super) fn on_cold(&mut self, model: &ModelId) -> Routed {
        let now = Instant::now();
        let retry_after = expected::load(&self.args.view.read(), model);
        let wait = |message: String| Routed::Wait(RequestError::Unavailable { message, retry_after });
        let believed = |at: Instant, time: Duration| now.saturating_duration_since(at) < time;
        if let Some(why) = self.is_too_early(now) {
            return Routed::Wait(RequestError::soon(why));
        }
        match self.ensured.get(model) {
            Some(Ensured::Asked) => wait(format!("the model '{model}' is being looked for a place")),
            Some(Ensured::Answered(at, Ok(explanation))) if believed(*at, ENSURED_FOR) => {
                wait(format!("the model '{model}' is not loaded yet: {}", explanation.decision))
            }
            // Those that are in use may be idle by the next time.
            Some(Ensured::Answered(at, Err(error))) if may_pass(error) && believed(*at, ENSURED_FOR) => Routed::Wait(error.clone()),
            Some(Ensured::Answered(at, Err(error))) if !may_pass(error) && believed(*at, REFUSED_FOR) => Routed::Refused(error.clone()),
            known => {
                let error = match known {
                    Some(Ensured::Answered(_, Err(error))) if may_pass(error) => Some(error.clone()),
                    _ => None,
                };
                // One who waits is told the same again and again, and asks each time.
                let is_news = match known {
                    Some(Ensured::Answered(at, _)) => !believed(*at, REFUSED_FOR),
                    Some(Ensured::Asked) | None => true,
                };
                self.n_cold += u64::from(is_news);
                self.want(model);
                error.map_or_else(|| wait(format!("the model '{model}' is being looked for a place")), Routed::Wait)
            }
        }
    }

    /// Why nothing is placed yet, in the first moments of this node. Costs nothing after them.
    fn is_too_early(&self, now: Instant) -> Option<&'static str> {
        let age = now.saturating_duration_since(self.started);
        let is_opening = || self.args.view.read().nodes().all(|node| node.summary.devices.is_empty());
        if age < DEVICE_WAIT && self.args.n_devices > 0 && is_opening() {
            return Some("the devices of this node are being opened");
        }
        let is_joining = age < JOINING && self.args.has_seeds && !self.has_joined();
        is_joining.then_some("this node is just joining the others")
    }

    /// Do links stand to all nodes that gossip tells of, and have they said what they list?
    fn has_joined(&self) -> bool {
        let known = self.args.known.names();
        !known.is_empty() && known.is_subset(&self.args.nodes.peers.names()) && self.args.view.read().knows_catalogues()
    }

    /// Asks the home of a model for a replica; then [`RouterMsg::Ensured`].
    fn want(&mut self, model: &ModelId) {
        if !matches!(self.ensured.get(model), Some(Ensured::Asked)) {
            self.ensured.insert(model.clone(), Ensured::Asked);
            self.ask_home(Ensure { model: model.clone(), replicas: 1, by_hand: false }, true);
        }
    }

    /// Asks the home of a model that it have so many replicas, unless it was asked a moment ago. Nobody waits for them.
    pub(super) fn want_more(&mut self, model: &ModelId, replicas: u32) {
        let now = Instant::now();
        let asked = self.asked_for_more.get(model);
        if asked.is_none_or(|asked| now.saturating_duration_since(*asked) >= ORDER_DEADLINE) {
            self.asked_for_more.insert(model.clone(), now);
            self.ask_home(Ensure { model: model.clone(), replicas, by_hand: false }, false);
        }
    }

    fn ask_home(&mut self, ensure: Ensure, is_waited_for: bool) {
        let model = ensure.model.clone();
        let home = home_of(&self.args.view.read(), &model);
        if home == *self.args.nodes.me() {
            // At once, with what is known now: an answer that comes later may be of a view that no longer holds.
            let nobody = || oneshot().0.into();
            let asker = self.asker((!is_waited_for).then(nobody));
            let effects = self.home.on_ensure(&self.args.view.read(), &ensure, asker, Instant::now());
            return self.carry_out(&model, effects);
        }
        let (address, life, nodes) = (self.args.address.clone(), self.life, self.args.nodes.clone());
        tokio::spawn(async move {
            let result = nodes.ensure(&home, ensure, ORDER_DEADLINE).await;
            if is_waited_for {
                address.tell_life(life, RouterMsg::Ensured(model, result)); // another life asks for itself
            }
        });
    }

    pub(super) fn on_ensure(&mut self, ensure: &Ensure, reply: RpcReplyPort<Result<Explanation, RequestError>>) {
        let asker = self.asker(Some(reply));
        let effects = self.home.on_ensure(&self.args.view.read(), ensure, asker, Instant::now());
        self.carry_out(&ensure.model, effects);
    }

    /// A number for somebody who waits for a home's answer; without a `reply` it is this node's router itself.
    fn asker(&mut self, reply: Option<RpcReplyPort<Result<Explanation, RequestError>>>) -> home::Asker {
        self.next_asker += 1;
        self.askers.extend(reply.map(|reply| (self.next_asker, reply)));
        self.next_asker
    }

    /// Somebody names the place by hand: no home is asked.
    pub(super) fn on_load_at(&self, model: &ModelId, place: &Place, reply: RpcReplyPort<Result<Explanation, RequestError>>) {
        let placed = {
            let view = self.args.view.read();
            match place.node.as_ref().map(|name| view.node_named(name)).transpose() {
                Err(unknown) => return drop(reply.send(Err(unknown))),
                Ok(node) => {
                    let want = Want { only_on: node, device: place.device, by_hand: true, ..Want::new(model) };
                    super::place::place(&view, &want, &self.args.policy)
                }
            }
        };
        let answers = |one: &Candidate<'_>| place.holds(&one.id) && !matches!(one.report.state, ReplicaState::Failed(_));
        let there = {
            let view = self.args.view.read();
            view.candidates(model).find(answers).map(|one| {
                let is_loaded = one.report.state != ReplicaState::Loading;
                let loads = view.catalogue().models.get(model).filter(|_| !is_loaded).map(|merged| being_loaded(merged, &one.id.node));
                (one.id, loads)
            })
        };
        if let Some((there, loads)) = there {
            let place = format!("{}/{}", there.node.name, there.device);
            let decision = loads.map_or_else(|| format!("it is on {place} already"), |loads| format!("{place}: {loads}"));
            return drop(reply.send(Ok(Explanation { model: model.clone(), decision, considered: Vec::new(), age: Duration::ZERO })));
        }
        let (order, node, explanation) = match placed {
            Ok(placement) => {
                let mut explanation = placement.explanation;
                if self.args.view.read().candidates(model).any(|one| one.report.state == ReplicaState::Loaded) {
                    let idle_s = home::SPARE_IDLE.as_secs();
                    explanation.decision +=
                        &format!("; it is there beside another: whichever nobody has used for {idle_s} s goes, unless it is pinned");
                }
                (Box::new(placement.order), placement.site.0, explanation)
            }
            Err(unplaced) if unplaced.explanation.considered.is_empty() => {
                let device = place.device.map_or_else(|| "open device".to_owned(), |device| format!("device '{device}'"));
                let message = match &place.node {
                    Some(node) => format!("the node '{node}' has no {device}; GET /v1/cluster lists the devices"),
                    None => format!("no node has a {device}; GET /v1/cluster lists the devices"),
                };
                return drop(reply.send(Err(RequestError::invalid("device", message))));
            }
            Err(unplaced) => return drop(reply.send(Err(unplaced.error))),
        };
        let (ordered, address) = (self.told_to_load(node, order), self.args.address.clone());
        tokio::spawn(async move {
            let begun = match ordered.await {
                Ordered::Begun => Ok(()),
                Ordered::Refused(error) | Ordered::Late(error) => Err(error),
            };
            if begun.is_ok() {
                address.tell(RouterMsg::Placed(explanation.clone()));
            }
            drop(reply.send(begun.map(|()| explanation)));
        });
    }

    pub(super) fn on_ordered(&mut self, model: &ModelId, ordered: Ordered) {
        let now = Instant::now();
        let result = match ordered {
            Ordered::Begun => Ok(()),
            Ordered::Late(error) => {
                info!(%model, %error, "it is not known whether the node loads the model");
                return self.home.on_late(model, error.to_string(), now);
            }
            Ordered::Refused(error) => {
                info!(%model, %error, "a node does not load the model");
                Err(error)
            }
        };
        let effects = self.home.on_answer(&self.args.view.read(), model, result, now);
        self.carry_out(model, effects);
    }

    /// Forgets what was asked of homes and what they said, once nobody waits for it any more.
    pub(super) fn forget_old(&mut self) {
        let now = Instant::now();
        let is_young = |at: &Instant, time: Duration| now.saturating_duration_since(*at) < time;
        self.asked_for_more.retain(|_, asked| is_young(asked, ORDER_DEADLINE));
        self.ensured.retain(|_, ensured| match ensured {
            Ensured::Asked => true,
            Ensured::Answered(at, _) => is_young(at, ENSURED_KEPT),
        });
    }

    /// The view changed, or time passed: so may orders.
    pub(super) fn on_view(&mut self) {
        let effects = self.home.on_view(&self.args.view.read(), Instant::now());
        effects.into_iter().for_each(|(model, effects)| self.carry_out(&model, effects));
    }

    fn carry_out(&mut self, model: &ModelId, effects: Vec<home::Effect>) {
        for effect in effects {
            match effect {
                home::Effect::Order { node, order } => self.order(node, order),
                home::Effect::Answer { asker, result } => {
                    let result = result.map_err(|unplaced: Box<Unplaced>| unplaced.error);
                    if let Ok(placed) = &result {
                        self.decisions.on_placed(placed, Instant::now());
                    }
                    match self.askers.remove(&asker) {
                        Some(reply) => drop(reply.send(result)),
                        None => self.on_ensured(model.clone(), result),
                    }
                }
            }
        }
    }

    /// Tells a node to load; then [`RouterMsg::Ordered`].
    pub(super) fn order(&self, node: NodeId, order: Box<LoadOrder>) {
        let (address, life, model) = (self.args.address.clone(), self.life, order.profile.id.clone());
        let ordered = self.told_to_load(node, order);
        // It answers this order, and none that a later life may have given.
        tokio::spawn(async move { address.tell_life(life, RouterMsg::Ordered(model, ordered.await)) });
    }

    /// Whether a node that is told to load has begun, or why not.
    pub(super) fn told_to_load(&self, node: NodeId, order: Box<LoadOrder>) -> impl Future<Output = Ordered> + Send + use<> {
        info!(model = %order.profile.id, node = %node.name, device = %order.device, "the model is to be loaded");
        let nodes = self.args.nodes.clone();
        async move {
            match nodes.ask::<Result<(), RequestError>>(&node, Question::Load(order), ORDER_DEADLINE).await {
                Ok(Ok(())) => Ordered::Begun,
                Ok(Err(error)) => Ordered::Refused(error),
                Err(error @ PeerError::Late) => Ordered::Late(no_answer(&node, error)),
                Err(error) => Ordered::Refused(no_answer(&node, error)),
            }
        }
    }

    pub(super) fn on_ensured(&mut self, model: ModelId, result: Result<Explanation, RequestError>) {
        if let Err(error) = &result {
            debug!(%model, %error, "not loaded");
        }
        if let Ok(placed) = &result {
            self.decisions.on_placed(placed, Instant::now());
        }
        let refused = result.as_ref().is_err_and(|error| !may_pass(error));
        self.ensured.insert(model.clone(), Ensured::Answered(Instant::now(), result));
        if refused {
            self.tell_of(model);
        }
    }

    /// Loads on this node what it is to hold from its start, once its devices are open; what is not here yet is fetched.
    pub(super) fn preload(&mut self) {
        let placements: Vec<Placement> = {
            let view = self.args.view.read();
            let devices_open = view.own().devices.len() >= self.args.n_devices || self.started.elapsed() > DEVICE_WAIT;
            if !devices_open || view.own().draining {
                return;
            }
            let me = view.me();
            let missing = view.to_load().filter(|entry| entry.files != FilesState::Unknown);
            let placed = missing.filter_map(|entry| {
                let want = Want { may_displace: false, only_on: Some(me), ..Want::new(&entry.profile.id) };
                place(&view, &want, &self.args.policy).ok()
            });
            placed.collect()
        };
        for Placement { order, explanation, .. } in placements {
            self.decisions.on_placed(&explanation, Instant::now());
            let ordered = self.told_to_load(self.args.nodes.me().clone(), Box::new(order));
            tokio::spawn(async move {
                let _shown_in_the_catalogue = ordered.await;
            });
        }
    }
}
