//! What gossip shows, turned into changes: pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use plexus_types::{Generation, NodeFacts, NodeId, NodeName};
use tokio::time::Instant;

use crate::inbound::ClusterChange;

/// Most bytes of a value that is gossiped: one that does not fit a datagram would hold up all that come after it.
const VALUE_MAX: usize = 1 << 10;
/// Most bytes of all that a node gossips: more is lost with the first lost fragment of a datagram.
const STATE_MAX: usize = 2 << 10;

const GENERATION: &str = "generation";
const VERSION: &str = "version";
const LINK: &str = "link";
const HTTP: &str = "http";
const GOSSIP: &str = "gossip";
/// Present once a node has said that it goes.
pub(super) const LEAVING: &str = "leaving";

/// Why facts cannot be gossiped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// One value is too long.
    #[error("{key:?} has {bytes} bytes, more than the {VALUE_MAX} that can be gossiped; shorten it")]
    Value {
        /// Its key.
        key: String,
        /// Its length.
        bytes: usize,
    },
    /// All together are too long.
    #[error("this node's facts have {bytes} bytes, more than the {STATE_MAX} that can be gossiped; shorten them")]
    State {
        /// Their length.
        bytes: usize,
    },
}

/// The facts as keys and values, if they are short enough to be gossiped.
pub(super) fn keys_of(facts: &NodeFacts) -> Result<Vec<(String, String)>, FactsError> {
    let keys = [
        (GENERATION, facts.id.generation.0.to_string()),
        (VERSION, facts.version.clone()),
        (LINK, facts.link.to_string()),
        (HTTP, facts.http.to_string()),
        (GOSSIP, facts.gossip.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    if let Some((key, value)) = keys.iter().find(|(_, value)| value.len() > VALUE_MAX) {
        return Err(FactsError::Value { key: key.clone(), bytes: value.len() });
    }
    let bytes = keys.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > STATE_MAX { Err(FactsError::State { bytes }) } else { Ok(keys) }
}

/// One life of chitchat on one node, as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who it is and where it can be reached.
    pub facts: NodeFacts,
    /// Which start of chitchat, among those of the same life of the node.
    pub start: u64,
    /// It has said that it goes.
    pub leaving: bool,
}

impl Seen {
    /// Reads keys and values; `None` while some have not arrived, or if they make no sense.
    pub(super) fn read<'a>(name: &str, start: u64, get: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let address = |key| get(key)?.parse::<SocketAddr>().ok();
        let id = NodeId { name: name.parse().ok()?, generation: Generation(get(GENERATION)?.parse().ok()?) };
        let facts =
            NodeFacts { id, version: get(VERSION)?.to_owned(), link: address(LINK)?, http: address(HTTP)?, gossip: address(GOSSIP)? };
        Some(Self { facts, start, leaving: get(LEAVING).is_some() })
    }
}

/// The nodes that count as living. For each name only the newest generation does.
#[derive(Debug)]
pub struct View {
    me: NodeId,
    nodes: BTreeMap<NodeName, NodeFacts>,
    /// Until then a node that is not seen stays.
    doubt_until: Instant,
    /// Some node stays only because of that.
    doubted: bool,
    replaced_by: Option<NodeId>,
}

impl View {
    /// A view that begins with `nodes`.
    pub fn new(me: NodeId, nodes: Vec<NodeFacts>, now: Instant) -> Self {
        let nodes = nodes.into_iter().map(|facts| (facts.id.name.clone(), facts)).collect();
        Self { me, nodes, doubt_until: now, doubted: false, replaced_by: None }
    }

    /// Lets nobody go before `until`: what is seen until then says more about us than about them.
    pub fn doubt(&mut self, until: Instant) {
        self.doubt_until = self.doubt_until.max(until);
    }

    /// Is there something to decide now although nothing new is seen?
    pub fn is_due(&self, now: Instant) -> bool {
        self.doubted && now >= self.doubt_until
    }

    /// The nodes that count as living, without this one.
    pub fn nodes(&self) -> &BTreeMap<NodeName, NodeFacts> {
        &self.nodes
    }

    /// The newer life of this node's own name that was seen.
    pub fn replaced_by(&self) -> Option<&NodeId> {
        self.replaced_by.as_ref()
    }

    /// Takes in what is seen now and says what has changed.
    pub fn update(&mut self, seen: Vec<Seen>, now: Instant) -> Vec<ClusterChange> {
        let mut newest: BTreeMap<NodeName, Seen> = BTreeMap::new();
        for seen in seen {
            let rank = |seen: &Seen| (seen.facts.id.generation, seen.start);
            if newest.get(&seen.facts.id.name).is_none_or(|other| rank(other) < rank(&seen)) {
                newest.insert(seen.facts.id.name.clone(), seen);
            }
        }
        if let Some(namesake) = newest.remove(&self.me.name) {
            let newer = namesake.facts.id.generation > self.me.generation && !namesake.leaving;
            self.replaced_by = newer.then_some(namesake.facts.id);
        }

        let mut changes = Vec::new();
        let mut missing = Vec::new();
        for (name, facts) in &self.nodes {
            match newest.get(name) {
                // An older life shows up while the newer one does not: the newer one is missing.
                Some(seen) if seen.facts.id.generation >= facts.id.generation => {
                    if seen.facts.id != facts.id || seen.leaving {
                        changes.push(ClusterChange::Gone(facts.id.clone()));
                    }
                }
                _ => missing.push(facts.id.clone()),
            }
        }
        self.doubted = !missing.is_empty() && now < self.doubt_until;
        if !self.doubted {
            changes.extend(missing.into_iter().map(ClusterChange::Gone));
        }
        for change in &changes {
            if let ClusterChange::Gone(id) = change {
                self.nodes.remove(&id.name);
            }
        }
        for (name, seen) in newest {
            if seen.leaving {
                continue;
            }
            match self.nodes.get(&name) {
                Some(facts) if facts.id.generation > seen.facts.id.generation || *facts == seen.facts => continue,
                Some(_) => changes.push(ClusterChange::Changed(seen.facts.clone())),
                None => changes.push(ClusterChange::Up(seen.facts.clone())),
            }
            self.nodes.insert(name, seen.facts);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plexus_types::NodeFacts;
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{ClusterChange, FactsError, Seen, VALUE_MAX, View, keys_of};

    fn facts(id: &str) -> NodeFacts {
        let at = |port| ([127, 0, 0, 1], port).into();
        NodeFacts { id: id.parse().expect("a node id"), version: "1".to_owned(), link: at(1), http: at(2), gossip: at(3) }
    }

    fn seen(ids: &[&str]) -> Vec<Seen> {
        ids.iter().map(|id| Seen { facts: facts(id), start: 1, leaving: false }).collect()
    }

    fn up(id: &str) -> ClusterChange {
        ClusterChange::Up(facts(id))
    }

    fn gone(id: &str) -> ClusterChange {
        ClusterChange::Gone(facts(id).id)
    }

    fn view(now: Instant) -> View {
        View::new(facts("me#5").id, Vec::new(), now)
    }

    #[test]
    fn nodes_come_change_and_go_and_this_node_is_left_out() {
        let now = Instant::now();
        let mut view = view(now);
        assert_eq!(view.update(seen(&["me#5", "a#1", "b#1"]), now), [up("a#1"), up("b#1")]);
        assert_eq!(view.update(seen(&["me#5", "a#1", "b#1"]), now), []);
        let mut moved = seen(&["me#5", "a#1", "b#1"]);
        moved[1].facts.version = "2".to_owned();
        assert_eq!(view.update(moved.clone(), now), [ClusterChange::Changed(moved[1].facts.clone())]);
        assert_eq!(view.update(seen(&["me#5", "b#1"]), now), [gone("a#1")]);
        assert_eq!(view.replaced_by(), None);
    }

    #[test]
    fn of_one_name_only_the_newest_generation_counts() {
        let now = Instant::now();
        let mut view = view(now);
        assert_eq!(view.update(seen(&["a#1"]), now), [up("a#1")]);
        assert_eq!(view.update(seen(&["a#1", "a#2"]), now), [gone("a#1"), up("a#2")]);
        assert_eq!(view.update(seen(&["a#2"]), now), []);
        assert_eq!(view.update(seen(&["a#1"]), now), [gone("a#2"), up("a#1")]);
    }

    #[test]
    fn another_start_of_gossip_is_the_same_life_of_its_node() {
        let now = Instant::now();
        let mut view = view(now);
        view.update(seen(&["a#1"]), now);
        let mut both = seen(&["a#1", "a#1"]);
        both[1].start = 2;
        assert_eq!(view.update(both.clone(), now), []);
        assert_eq!(view.update(vec![both[1].clone()], now), []);
    }

    #[test]
    fn a_node_that_leaves_is_gone_at_once() {
        let now = Instant::now();
        let mut view = view(now);
        view.doubt(now + Duration::from_secs(9));
        view.update(seen(&["a#1"]), now);
        let mut leaving = seen(&["a#1"]);
        leaving[0].leaving = true;
        assert_eq!(view.update(leaving.clone(), now), [gone("a#1")]);
        assert_eq!(view.update(leaving, now), []);
    }

    #[test]
    fn nobody_is_gone_while_this_node_doubts_itself() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let mut view = view(now);
        view.update(seen(&["a#1", "b#1"]), now);
        view.doubt(later);
        assert_eq!(view.update(seen(&["b#1"]), now), []);
        assert!(!view.is_due(now) && view.is_due(later));
        assert_eq!(view.update(seen(&["b#1"]), later), [gone("a#1")]);
        assert!(!view.is_due(later));
    }

    #[test]
    fn a_newer_life_of_the_own_name_is_reported() {
        let now = Instant::now();
        let mut view = view(now);
        assert_eq!(view.update(seen(&["me#4", "me#6"]), now), []);
        assert_eq!(view.replaced_by(), Some(&facts("me#6").id));
        view.update(seen(&["me#5"]), now);
        assert_eq!(view.replaced_by(), None);
    }

    #[test]
    fn facts_survive_gossip_and_long_ones_are_refused() {
        let mut facts = facts("a#7");
        let keys = keys_of(&facts).expect("short facts");
        let read = Seen::read("a", 1, |key| keys.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str()));
        assert_eq!(read.map(|seen| seen.facts), Some(facts.clone()));
        assert_eq!(Seen::read("a", 1, |_| None), None);
        facts.version = "x".repeat(VALUE_MAX + 1);
        assert!(matches!(keys_of(&facts), Err(FactsError::Value { key, .. }) if key == "version"));
    }

    proptest! {
        /// Whoever applies the changes in order knows the same nodes as the view.
        #[test]
        fn the_changes_lead_from_any_view_to_the_next(
            rounds in prop::collection::vec(prop::collection::vec((0usize..3, 1u64..4, 0u64..2, prop::bool::weighted(0.2)), 0..6), 1..8)
        ) {
            let now = Instant::now();
            let mut view = view(now);
            let mut applied = std::collections::BTreeMap::new();
            for round in rounds {
                let seen = round
                    .into_iter()
                    .map(|(name, generation, start, leaving)| {
                        Seen { facts: facts(&format!("{}#{generation}", ["a", "b", "me"][name])), start, leaving }
                    })
                    .collect();
                for change in view.update(seen, now) {
                    match change {
                        ClusterChange::Up(facts) => prop_assert_eq!(applied.insert(facts.id.name.clone(), facts), None),
                        ClusterChange::Changed(facts) => prop_assert!(applied.insert(facts.id.name.clone(), facts).is_some()),
                        ClusterChange::Gone(id) => prop_assert_eq!(applied.remove(&id.name).map(|facts| facts.id), Some(id)),
                    }
                }
                prop_assert_eq!(&applied, view.nodes());
            }
        }
    }
}
