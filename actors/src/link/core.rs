//! What the link actor decides: whom to dial, which link counts, who is cut off. Pure: events and the time in, effects out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_types::{NodeFacts, NodeId, NodeName};
use rand::Rng;
use tokio::time::Instant;

use super::health::PeerHealth;
use crate::inbound::ClusterChange;
use crate::membership::NetTiming;

/// One TCP connection that has become a TLS session with a node of known name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// [`NetTiming::tick`] has passed.
    Tick,
    /// Gossip changed its mind.
    Cluster(ClusterChange),
    /// All that gossip counts as living, in case a change was missed.
    Known(Vec<NodeFacts>),
    /// A node could not be dialed.
    DialFailed(NodeName),
    /// A TLS session with this node stands; its certificate says who it is.
    Opened {
        /// The number that this node gave it.
        link: LinkId,
        /// Whose certificate it is.
        name: NodeName,
        /// We dialed.
        dialed: bool,
    },
    /// The ractor session on it is ready, and claims to be of this life.
    Ready {
        /// On which link.
        link: LinkId,
        /// Who the peer says it is.
        id: NodeId,
    },
    /// The peer has shown its pass: it is in the table of peers.
    Greeted(LinkId),
    /// A ping came back.
    Pong(LinkId),
    /// The link is over.
    Ended(LinkId),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Dial this node.
    Dial(NodeFacts),
    /// Find the peer's actors and greet it; repeated while it has not answered.
    Greet {
        /// Over which link.
        link: LinkId,
        /// Who is there.
        id: NodeId,
    },
    /// Ping the peer.
    Ping(LinkId),
    /// End the link and forget it.
    Cut {
        /// Which link.
        link: LinkId,
        /// Why, for the log and the status.
        why: &'static str,
    },
}

#[derive(Debug)]
struct Node {
    facts: NodeFacts,
    dial_due: Instant,
    /// Upper end of the next wait.
    wait: Duration,
    dialing: bool,
}

#[derive(Debug)]
struct Link {
    name: NodeName,
    id: Option<NodeId>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Ractor's handshake, then the greeting, until this time.
    Greeting { until: Instant, greet_due: Instant },
    /// It is used.
    Up(PeerHealth),
}

/// The link actor's mind.
#[derive(Debug)]
pub struct LinkCore {
    me: NodeName,
    timing: NetTiming,
    nodes: BTreeMap<NodeName, Node>,
    links: BTreeMap<LinkId, Link>,
    /// Cut off because they did not answer, and neither back nor gone by gossip since.
    ejected: BTreeSet<NodeName>,
    ticked: Option<Instant>,
    /// How often it found itself too late to judge others.
    pub doubts: u64,
}

impl LinkCore {
    /// A mind that knows nobody yet.
    pub fn new(me: NodeName, timing: NetTiming) -> Self {
        Self { me, timing, nodes: BTreeMap::new(), links: BTreeMap::new(), ejected: BTreeSet::new(), ticked: None, doubts: 0 }
    }

    /// Names that gossip knows: whose certificates are taken.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.keys()
    }

    /// Numbers for the status: known, linked, greeting, ejected.
    pub fn numbers(&self) -> [usize; 4] {
        let up = self.links.values().filter(|link| matches!(link.stage, Stage::Up(_))).count();
        [self.nodes.len(), up, self.links.len() - up, self.ejected.len()]
    }

    /// Takes in an event and says what is to be done.
    pub fn on_event(&mut self, event: Event, now: Instant, rng: &mut impl Rng) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Tick => self.on_tick(now, &mut effects),
            Event::Cluster(change) => self.on_cluster_change(change, now, &mut effects),
            Event::Known(nodes) => self.on_known(nodes, now, &mut effects),
            Event::DialFailed(name) => self.on_dial_failed(&name, now, rng),
            Event::Opened { link, name, dialed } => self.on_opened(link, name, dialed, now, &mut effects),
            Event::Ready { link, id } => self.on_ready(link, id, now, &mut effects),
            Event::Greeted(link) => self.on_greeted(link, now),
            Event::Pong(link) => {
                if let Some(Link { stage: Stage::Up(health), .. }) = self.links.get_mut(&link) {
                    health.on_pong(now);
                }
            }
            Event::Ended(link) => self.forget(link, now, rng),
        }
        self.dial_who_is_missing(now, &mut effects);
        for effect in &effects {
            if let Effect::Cut { link, .. } = effect {
                self.forget(*link, now, rng);
            }
        }
        effects
    }

    fn on_tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let late = self.ticked.is_some_and(|ticked| now.saturating_duration_since(ticked) > self.timing.tick + self.timing.lag_max);
        self.ticked = Some(now);
        if late {
            // We were stopped or starved: that peers look silent says more about us than about them.
            self.doubts += 1;
        }
        let mut silent = Vec::new();
        let mut cut = Vec::new();
        for (link, state) in &mut self.links {
            match &mut state.stage {
                Stage::Greeting { until, greet_due } => {
                    if late {
                        *until = now + self.timing.handshake_max;
                    }
                    if now >= *until {
                        cut.push((*link, "it was not greeted in time"));
                    } else if let Some(id) = state.id.as_ref().filter(|_| now >= *greet_due) {
                        *greet_due = now + self.timing.ping_interval;
                        effects.push(Effect::Greet { link: *link, id: id.clone() });
                    }
                }
                Stage::Up(health) => {
                    if late {
                        health.pardon(now);
                    }
                    if health.take_ping(now, self.timing.ping_interval) {
                        effects.push(Effect::Ping(*link));
                    }
                    if health.silence(now) > self.timing.silence_max {
                        silent.push((health.silence(now), *link, state.name.clone()));
                    }
                }
            }
        }
        // At most half of the peers: when more look dead, it is rather us.
        silent.sort_by_key(|(silence, ..)| std::cmp::Reverse(*silence));
        let ejected_max = self.nodes.len().div_ceil(2).max(1);
        for (_, link, name) in silent {
            if self.ejected.contains(&name) || self.ejected.len() < ejected_max {
                self.ejected.insert(name);
                cut.push((link, "it does not answer pings"));
            }
        }
        for (link, why) in cut {
            self.cut(link, why, effects);
        }
    }

    fn on_cluster_change(&mut self, change: ClusterChange, now: Instant, effects: &mut Vec<Effect>) {
        match change {
            ClusterChange::Up(facts) | ClusterChange::Changed(facts) => self.on_alive(facts, now),
            ClusterChange::Gone(id) => {
                if self.nodes.get(&id.name).is_some_and(|node| node.facts.id == id) {
                    self.nodes.remove(&id.name);
                    self.ejected.remove(&id.name);
                }
                let gone = |link: &Link| link.id.as_ref().map_or(link.name == id.name, |its| *its == id);
                self.cut_where(gone, "gossip says that it is gone", effects);
            }
        }
    }

    fn on_alive(&mut self, facts: NodeFacts, now: Instant) {
        if facts.id.name == self.me {
            return;
        }
        match self.nodes.get_mut(&facts.id.name) {
            Some(node) if node.facts.id.generation > facts.id.generation => {}
            Some(node) if node.facts == facts => {}
            Some(node) => {
                // A new life or a new address: former failures say nothing about it.
                node.facts = facts;
                node.dialing = false;
                node.dial_due = now;
                node.wait = self.timing.redial.1;
            }
            None => {
                let node = Node { dial_due: now, wait: self.timing.redial.1, dialing: false, facts };
                self.nodes.insert(node.facts.id.name.clone(), node);
            }
        }
    }

    fn on_known(&mut self, known: Vec<NodeFacts>, now: Instant, effects: &mut Vec<Effect>) {
        let names: BTreeSet<&NodeName> = known.iter().map(|facts| &facts.id.name).collect();
        let gone: Vec<NodeId> =
            self.nodes.values().filter(|node| !names.contains(&node.facts.id.name)).map(|node| node.facts.id.clone()).collect();
        for id in gone {
            self.on_cluster_change(ClusterChange::Gone(id), now, effects);
        }
        for facts in known {
            self.on_alive(facts, now);
        }
        // Opened while gossip said that its node is gone: it was known when the handshake began.
        let unknown: BTreeSet<NodeName> =
            self.links.values().map(|link| &link.name).filter(|name| !self.nodes.contains_key(*name)).cloned().collect();
        self.cut_where(|link| unknown.contains(&link.name), "gossip does not know it", effects);
    }

    fn on_dial_failed(&mut self, name: &NodeName, now: Instant, rng: &mut impl Rng) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.dialing = false;
            node.dial_due = now + drawn(self.timing.redial.0, node.wait, rng);
            node.wait = (node.wait * 2).min(self.timing.redial_max);
        }
    }

    fn on_opened(&mut self, link: LinkId, name: NodeName, dialed: bool, now: Instant, effects: &mut Vec<Effect>) {
        if dialed && let Some(node) = self.nodes.get_mut(&name) {
            node.dialing = false;
        }
        // Whoever dials has no link. If ours to it is silent, it is a dead one that would win ractor's election.
        let dead = |other: &Link| match &other.stage {
            Stage::Up(health) => health.silence(now) > self.timing.ping_interval * 2,
            Stage::Greeting { .. } => false,
        };
        let dead: Vec<LinkId> = self.links.iter().filter(|(_, other)| other.name == name && dead(other)).map(|(id, _)| *id).collect();
        dead.into_iter().for_each(|other| self.cut(other, "a newer link takes its place", effects));
        let stage = Stage::Greeting { until: now + self.timing.handshake_max, greet_due: now };
        self.links.insert(link, Link { name, id: None, stage });
    }

    fn on_ready(&mut self, link: LinkId, id: NodeId, now: Instant, effects: &mut Vec<Effect>) {
        let Some(state) = self.links.get_mut(&link) else { return };
        if state.name != id.name {
            return self.cut(link, "it claims a name that is not in its certificate", effects);
        }
        let newer = |other: &NodeId| other.name == id.name && other.generation > id.generation;
        let outlived = self.nodes.get(&id.name).is_some_and(|node| newer(&node.facts.id))
            || self.links.values().filter_map(|other| other.id.as_ref()).any(newer);
        if outlived {
            return self.cut(link, "a newer life of this node is known", effects);
        }
        if let Some(Link { id: its, stage: Stage::Greeting { greet_due, .. }, .. }) = self.links.get_mut(&link) {
            *its = Some(id.clone());
            *greet_due = now + self.timing.tick; // its actors may show a moment after the session
            effects.push(Effect::Greet { link, id: id.clone() });
        }
        let former: Vec<LinkId> = (self.links.iter())
            .filter(|(other, state)| **other != link && state.name == id.name && state.id.is_some())
            .map(|(other, _)| *other)
            .collect();
        former.into_iter().for_each(|other| self.cut(other, "a newer link takes its place", effects));
    }

    fn on_greeted(&mut self, link: LinkId, now: Instant) {
        let Some(state) = self.links.get_mut(&link) else { return };
        if matches!(state.stage, Stage::Greeting { .. }) {
            state.stage = Stage::Up(PeerHealth::new(now));
        }
        self.ejected.remove(&state.name);
        if let Some(node) = self.nodes.get_mut(&state.name) {
            node.wait = self.timing.redial.1;
        }
    }

    fn cut_where(&mut self, which: impl Fn(&Link) -> bool, why: &'static str, effects: &mut Vec<Effect>) {
        let links: Vec<LinkId> = self.links.iter().filter(|(_, link)| which(link)).map(|(id, _)| *id).collect();
        links.into_iter().for_each(|link| self.cut(link, why, effects));
    }

    fn cut(&mut self, link: LinkId, why: &'static str, effects: &mut Vec<Effect>) {
        if !effects.iter().any(|effect| matches!(effect, Effect::Cut { link: cut, .. } if *cut == link)) {
            effects.push(Effect::Cut { link, why });
        }
    }

    /// A link is over: the next one is dialed after a moment, so that both sides have seen the end of this one.
    fn forget(&mut self, link: LinkId, now: Instant, rng: &mut impl Rng) {
        let Some(link) = self.links.remove(&link) else { return };
        if let Some(node) = self.nodes.get_mut(&link.name) {
            node.dial_due = now + drawn(self.timing.redial.0, node.wait, rng);
            if matches!(link.stage, Stage::Greeting { .. }) {
                node.wait = (node.wait * 2).min(self.timing.redial_max);
            }
        }
    }

    /// Of two nodes the one with the lesser name dials.
    fn dial_who_is_missing(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for (name, node) in &mut self.nodes {
            let linked = |link: &Link| link.name == *name && link.id.as_ref().is_none_or(|id| id.generation >= node.facts.id.generation);
            if self.me < *name && !node.dialing && now >= node.dial_due && !self.links.values().any(linked) {
                node.dialing = true;
                effects.push(Effect::Dial(node.facts.clone()));
            }
        }
    }
}

fn drawn(from: Duration, to: Duration, rng: &mut impl Rng) -> Duration {
    from + to.saturating_sub(from).mul_f64(rng.random::<f64>())
}

#[cfg(test)]
mod tests;
