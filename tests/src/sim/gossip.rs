//! Gossip, simplified: heartbeats passed on to three nodes in each round, a detector that counts mean intervals of silence, and the real
//! [`View`] that turns who is alive into changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_actors::inbound::ClusterChange;
use plexus_actors::membership::NetTiming;
use plexus_actors::membership::view::{Seen, View};
use plexus_types::{NodeFacts, NodeId};
use tokio::time::Instant;

/// What a datagram carries: who is alive, with the number of the last heartbeat.
pub type Digest = Vec<(NodeFacts, u64)>;

/// Weight of the newest interval in the mean.
const WEIGHT: f64 = 0.2;

/// What a node knows by gossip.
#[derive(Debug)]
pub struct Gossip {
    /// The nodes that count as living.
    pub view: View,
    me: NodeFacts,
    beat: u64,
    heard: BTreeMap<NodeId, Heard>,
    alive: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Heard {
    facts: NodeFacts,
    beat: u64,
    at: Instant,
    mean: Duration,
}

impl Gossip {
    /// A node that has heard nobody yet.
    pub fn new(me: NodeFacts, timing: &NetTiming, now: Instant) -> Self {
        let mut view = View::new(me.id.clone(), Vec::new(), now);
        view.doubt(now + timing.settle);
        Self { view, me, beat: 0, heard: BTreeMap::new(), alive: BTreeSet::new() }
    }

    /// What to send in a round: this node's own heartbeat, and those of the living.
    pub fn on_round(&mut self) -> Digest {
        self.beat += 1;
        let own = (self.me.clone(), self.beat);
        let others = self.heard.values().filter(|heard| self.alive.contains(&heard.facts.id));
        std::iter::once(own).chain(others.map(|heard| (heard.facts.clone(), heard.beat))).collect()
    }

    /// Somebody's datagram came.
    pub fn on_digest(&mut self, digest: Digest, timing: &NetTiming, now: Instant) {
        for (facts, beat) in digest {
            if facts.id == self.me.id {
                continue;
            }
            let known = self.heard.entry(facts.id.clone()).or_insert(Heard { facts, beat: 0, at: now, mean: timing.initial_interval });
            if beat > known.beat {
                if known.beat > 0 {
                    let interval = now.saturating_duration_since(known.at).min(timing.initial_interval * 4);
                    known.mean = known.mean.mul_f64(1.0 - WEIGHT) + interval.mul_f64(WEIGHT);
                }
                known.beat = beat;
                known.at = now;
            }
        }
    }

    /// Looks who is alive. `late`: this process was stopped, so that what it missed says nothing about the others.
    pub fn on_tick(&mut self, late: bool, timing: &NetTiming, now: Instant) -> Vec<ClusterChange> {
        if late {
            self.view.doubt(now + timing.settle);
        }
        let lives = |heard: &Heard| now.saturating_duration_since(heard.at) < heard.mean.mul_f64(timing.phi);
        let changed = self.heard.iter().any(|(id, heard)| lives(heard) != self.alive.contains(id));
        if !changed && !self.view.is_due(now) {
            return Vec::new();
        }
        self.alive = self.heard.iter().filter(|(_, heard)| lives(heard)).map(|(id, _)| id.clone()).collect();
        let seen = |id| Seen { facts: self.heard[id].facts.clone(), start: 1, leaving: false };
        self.view.update(self.alive.iter().map(seen).collect(), now)
    }
}
