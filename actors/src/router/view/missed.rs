//! What a router was not told between two lives, found by comparing the view with what is so now.

use std::collections::BTreeSet;

use plexus_types::{DeviceId, ModelId, NodeFacts, NodeId};

use super::ClusterView;
use crate::inbound::{ClusterChange, PeerChange};

impl ClusterView {
    /// Replicas of this node that are no longer there have left it.
    pub fn keep_own(&mut self, is_there: impl Fn(&ModelId, DeviceId) -> bool) {
        let gone = self.own.replicas.iter().filter(|known| !is_there(&known.model, known.device));
        let gone: Vec<(ModelId, DeviceId)> = gone.map(|known| (known.model.clone(), known.device)).collect();
        gone.iter().for_each(|(model, device)| self.on_own_replica_left(model, *device));
    }

    /// The link to a node that has just come up goes by this number, and a later one by another.
    pub fn on_link(&mut self, id: &NodeId, link: u64) {
        if let Some(other) = self.others.get_mut(id).filter(|other| other.linked) {
            other.link = Some(link);
        }
    }

    /// The changes that lead from this view to the nodes that are `known` and those that are `linked`, each by the number of its link. A link that
    /// was lost and found again has gone down and come up: whatever went over it was lost. To be told in this order, those of the cluster first.
    pub fn missed(&self, known: &[NodeFacts], linked: &[(NodeId, u64)]) -> (Vec<ClusterChange>, Vec<PeerChange>) {
        let living: BTreeSet<&NodeId> = known.iter().map(|facts| &facts.id).collect();
        let is_gone = |id: &NodeId| self.others.get(id).is_some_and(|other| other.facts.is_some()) && !living.contains(id);
        let mut nodes: Vec<ClusterChange> = self.others.keys().filter(|id| is_gone(id)).cloned().map(ClusterChange::Gone).collect();
        for facts in known {
            match self.others.get(&facts.id).and_then(|other| other.facts.as_ref()) {
                Some(before) if before == facts => {}
                Some(_) => nodes.push(ClusterChange::Changed(facts.clone())),
                None => nodes.push(ClusterChange::Up(facts.clone())),
            }
        }

        // A node that is gone takes its link with it.
        let before = |id: &NodeId| self.others.get(id).filter(|other| other.linked && !is_gone(id));
        let why = || "its link was lost while the router was restarted".to_owned();
        let still = |id: &NodeId| linked.iter().find(|(other, _)| other == id).map(|(_, link)| *link);
        let is_another = |id: &NodeId, link: u64| before(id).and_then(|other| other.link).is_some_and(|was| was != link);
        let lost = self.others.keys().filter(|id| before(id).is_some() && still(id).is_none_or(|link| is_another(id, link)));
        let mut links: Vec<PeerChange> = lost.map(|id| PeerChange::Down { id: id.clone(), why: why() }).collect();
        let found = linked.iter().filter(|(id, link)| before(id).is_none() || is_another(id, *link));
        links.extend(found.map(|(id, _)| PeerChange::Up(id.clone())));
        (nodes, links)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::super::tests::{facts, replica, summary};
    use super::*;
    use plexus_types::{NodeState, ReplicaState};

    fn empty() -> ClusterView {
        ClusterView::new("test".into(), facts("me"))
    }

    fn apply(view: &mut ClusterView, known: &[NodeFacts], linked: &[(NodeId, u64)]) {
        let (nodes, links) = view.missed(known, linked);
        nodes.into_iter().for_each(|change| view.on_cluster_change(change));
        for change in links {
            view.on_peer_change(&change, Instant::now());
            if let PeerChange::Up(id) = &change {
                let link = linked.iter().find(|(other, _)| other == id).expect("it is linked").1;
                view.on_link(id, link);
            }
        }
    }

    #[test]
    fn who_came_and_went_unheard_is_found_and_a_link_that_is_another_is_told_twice() {
        let (a, b, c) = (facts("a"), facts("b"), facts("c"));
        let link = |facts: &NodeFacts, link: u64| (facts.id.clone(), link);
        let mut view = empty();
        apply(&mut view, &[a.clone(), b.clone()], &[link(&a, 1), link(&b, 2)]);
        view.on_summary(&a.id, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        assert_eq!(view.missed(&[a.clone(), b.clone()], &[link(&a, 1), link(&b, 2)]), (vec![], vec![]), "nothing was missed");

        let (nodes, links) = view.missed(&[a.clone(), c.clone()], &[link(&a, 3), link(&c, 4)]);
        assert_eq!(nodes, [ClusterChange::Gone(b.id.clone()), ClusterChange::Up(c.clone())]);
        assert!(matches!(&links[0], PeerChange::Down { id, .. } if *id == a.id), "{links:?}");
        assert_eq!(links[1..], [PeerChange::Up(a.id.clone()), PeerChange::Up(c.id.clone())]);

        apply(&mut view, &[a.clone(), c.clone()], &[link(&a, 3), link(&c, 4)]);
        let pip: ModelId = "pip".parse().unwrap();
        assert_eq!(view.candidates(&pip).count(), 0, "what it held is unknown until it says so again");
        assert!(view.is_out_of_reach(&pip));
    }

    #[test]
    fn a_node_whose_link_is_lost_unheard_is_no_candidate_any_more() {
        let a = facts("a");
        let mut view = empty();
        apply(&mut view, std::slice::from_ref(&a), &[(a.id.clone(), 1)]);
        view.on_summary(&a.id, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
        let (nodes, links) = view.missed(std::slice::from_ref(&a), &[]);
        assert!(nodes.is_empty());
        assert!(matches!(&links[..], [PeerChange::Down { id, .. }] if *id == a.id), "{links:?}");
    }

    #[test]
    fn replicas_of_this_node_that_went_unheard_are_shown_no_longer() {
        let mut view = empty();
        for model in ["goes", "stays"] {
            view.on_own_replica(replica(model, ReplicaState::Loaded), SystemTime::now());
        }
        let before = view.own().revision;
        view.keep_own(|model, _| model.as_str() == "stays");
        let models: Vec<&str> = view.own().replicas.iter().map(|replica| replica.model.as_str()).collect();
        assert_eq!(models, ["stays"]);
        assert!(view.own().revision > before, "the others hear of it");
    }

    proptest! {
        /// Whatever was believed, afterwards the view shows those who are known or linked, and up are those who are linked.
        #[test]
        fn whoever_applies_what_was_missed_agrees_with_what_is(
            rounds in prop::collection::vec((prop::collection::btree_set(0usize..4, 0..4), prop::collection::btree_map(0usize..4, 1u64..3, 0..4)), 1..6)
        ) {
            let nodes = ["a", "b", "c", "d"].map(facts);
            let mut view = empty();
            for (known, linked) in rounds {
                let known: Vec<NodeFacts> = known.into_iter().map(|i| nodes[i].clone()).collect();
                let linked: Vec<(NodeId, u64)> = linked.into_iter().map(|(i, link)| (nodes[i].id.clone(), link)).collect();
                apply(&mut view, &known, &linked);
                let shown: BTreeSet<NodeId> = view.nodes().skip(1).map(|node| node.id.clone()).collect();
                let expected = known.iter().map(|facts| facts.id.clone()).chain(linked.iter().map(|(id, _)| id.clone()));
                prop_assert_eq!(shown, expected.collect::<BTreeSet<NodeId>>());
                let up: BTreeSet<NodeId> = view.nodes().skip(1).filter(|node| node.state == NodeState::Up).map(|node| node.id.clone()).collect();
                prop_assert_eq!(up, linked.iter().map(|(id, _)| id.clone()).collect::<BTreeSet<NodeId>>());
                prop_assert_eq!(view.missed(&known, &linked), (vec![], vec![]));
            }
        }
    }
}
