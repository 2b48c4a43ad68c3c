use super::*;
use plexus_types::{Bytes, Generation, ModelKind, ReplicaLoad};

pub(crate) fn facts(name: &str) -> NodeFacts {
    let address = "127.0.0.1:1".parse().unwrap();
    let id = NodeId { name: name.parse().unwrap(), generation: Generation(1) };
    NodeFacts { id, version: "0".into(), link: address, http: address, gossip: address }
}

pub(crate) fn replica(model: &str, state: ReplicaState) -> ReplicaReport {
    ReplicaReport {
        model: model.parse().unwrap(),
        device: "cpu-0".parse().unwrap(),
        state,
        context_length: 512,
        memory: Bytes::mib(3),
        load: ReplicaLoad { running_max: 8, waiting_max: 64, ..ReplicaLoad::default() },
        kind: ModelKind::Generate,
        residency_priority: 100,
        pinned: false,
        idle: Some(Duration::ZERO),
        load_time: None,
        progress: 0.0,
    }
}

pub(crate) fn summary(revision: u64, replicas: Vec<ReplicaReport>) -> NodeSummary {
    NodeSummary { revision, replicas, ..NodeSummary::default() }
}

fn view_with(other: &str) -> (ClusterView, NodeId) {
    let mut view = ClusterView::new("test".into(), facts("a"));
    let id = facts(other).id;
    view.on_cluster_change(ClusterChange::Up(facts(other)));
    view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
    (view, id)
}

#[test]
fn a_model_on_two_nodes_is_one_entry_with_two_locations_and_the_tighter_context() {
    // CX-21, CX-29
    let (mut view, b) = view_with("b");
    view.on_own_replica(replica("pip", ReplicaState::Loaded), SystemTime::now());
    let mut tighter = replica("pip", ReplicaState::Loading);
    tighter.context_length = 256;
    view.on_summary(&b, summary(1, vec![tighter]), Instant::now(), SystemTime::now());
    let models = view.models();
    assert_eq!(models.len(), 1);
    assert!(models[0].loaded);
    assert_eq!((models[0].context_length, models[0].locations.len()), (256, 2));
}

#[test]
fn an_older_summary_never_replaces_a_newer_one() {
    let (mut view, b) = view_with("b");
    view.on_summary(&b, summary(2, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
    view.on_summary(&b, summary(1, vec![]), Instant::now(), SystemTime::now());
    assert_eq!(view.models().len(), 1);
}

#[test]
fn a_node_without_a_link_is_shown_unreachable_and_holds_nothing() {
    let (mut view, b) = view_with("b");
    view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
    view.on_peer_change(&PeerChange::Down { id: b.clone(), why: "cut".into() }, Instant::now());
    assert_eq!(view.report(Instant::now()).nodes[1].state, NodeState::Unreachable);
    assert_eq!((view.models().len(), view.n_up()), (0, 1));
    assert!(view.is_out_of_reach(&"pip".parse().unwrap()));
    view.on_peer_change(&PeerChange::Up(b.clone()), Instant::now());
    view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
    assert_eq!((view.models().len(), view.n_up()), (1, 2), "the same revision counts again after a new link");
    assert!(!view.is_out_of_reach(&"pip".parse().unwrap()));
}

#[test]
fn a_node_that_is_gone_leaves_nothing_behind() {
    let (mut view, b) = view_with("b");
    view.on_summary(&b, summary(1, vec![replica("pip", ReplicaState::Loaded)]), Instant::now(), SystemTime::now());
    let id = ReplicaId { node: b.clone(), device: "cpu-0".parse().unwrap(), model: "pip".parse().unwrap() };
    view.on_sent(&id);
    view.on_cluster_change(ClusterChange::Gone(b));
    assert_eq!((view.models().len(), view.sent.len(), view.report(Instant::now()).nodes.len()), (0, 0, 1));
}
