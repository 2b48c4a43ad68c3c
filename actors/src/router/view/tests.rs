use std::time::SystemTime;

use super::*;
use plexus_types::{Bytes, CatalogueEntry, DeviceReport, FilesState, Generation, ModelKind, ModelProfile, ModelSource, ReplicaLoad};

use crate::evictor::core::tests::facts as known;
use crate::inbound::{ClusterChange, PeerChange};

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
        prefixes: None,
        digest: None,
        tools: false,
        reasoning: false,
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

fn held(view: &ClusterView) -> Vec<Vec<u32>> {
    view.candidates(&"pip".parse().unwrap()).map(|candidate| candidate.prefixes().to_vec()).collect()
}

#[test]
fn what_a_replica_does_not_say_anew_of_its_prefix_cache_is_as_it_said_before() {
    let (mut view, b) = view_with("b");
    let says = |prefixes: Option<&[u32]>| ReplicaReport { prefixes: prefixes.map(Into::into), ..replica("pip", ReplicaState::Loaded) };
    let mut other = says(None);
    other.device = "cpu-1".parse().unwrap();
    for (revision, said, known) in
        [(1, None, &[][..]), (2, Some(&[1, 2][..]), &[1, 2]), (3, None, &[1, 2]), (4, Some(&[]), &[]), (5, None, &[])]
    {
        view.on_summary(&b, summary(revision, vec![other.clone(), says(said)]), Instant::now(), SystemTime::now());
        assert_eq!(held(&view), [known, &[]], "revision {revision}");
    }
    view.on_summary(&b, summary(6, vec![says(Some(&[7]))]), Instant::now(), SystemTime::now());
    view.on_summary(&b, summary(7, vec![]), Instant::now(), SystemTime::now());
    view.on_summary(&b, summary(8, vec![says(None)]), Instant::now(), SystemTime::now());
    assert_eq!(held(&view), [[0u32; 0]], "a replica that went and came again has nothing of before");
}

#[test]
fn the_others_are_told_of_a_prefix_cache_when_it_changed_and_of_all_when_they_come() {
    let (mut view, _) = view_with("b");
    let says = |prefixes: Option<&[u32]>| ReplicaReport { prefixes: prefixes.map(Into::into), ..replica("pip", ReplicaState::Loaded) };
    let told = |summary: NodeSummary| summary.replicas[0].prefixes.as_ref().map(|prefixes| prefixes.to_vec());
    view.on_own_replica(says(Some(&[])), SystemTime::now());
    view.on_own_replica(says(Some(&[4, 5])), SystemTime::now());
    view.on_own_replica(says(None), SystemTime::now());
    assert_eq!((held(&view), view.n_prefixes()), (vec![vec![4, 5]], 2));
    assert_eq!(told(view.own_news()), Some(vec![4, 5]), "nobody has it yet");
    view.on_own_said();
    assert_eq!(told(view.own_news()), None);
    let before = view.own().revision;
    let full = view.own_in_full();
    assert!(full.revision > before);
    assert_eq!(told(full), Some(vec![4, 5]));
    view.on_own_unsaid();
    assert_eq!(told(view.own_news()), Some(vec![4, 5]), "somebody did not get it");
    assert_eq!(told(view.report(Instant::now()).nodes[0].summary.clone()), None, "people are not shown it");
}

#[test]
fn what_a_node_is_to_hold_from_its_start_is_told_until_it_holds_it_and_why_not() {
    // CX-50
    let entry = |id: &str, preload: bool, files: FilesState| {
        let profile = ModelProfile { preload, ..ModelProfile::new(id.parse().unwrap(), ModelSource::Embedded) };
        CatalogueEntry { profile, found: false, files }
    };
    let mut view = ClusterView::new("test".into(), facts("a"));
    let entries = vec![
        entry("held", true, FilesState::Present(known(40))),
        entry("next", true, FilesState::Unknown),
        entry("on-demand", false, FilesState::Unknown),
        entry("broken", true, FilesState::Refused("it is cut".into())),
        entry("large", true, FilesState::Present(known(4000))),
    ];
    view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    let memory = (Bytes::mib(100), Bytes(0));
    let device = DeviceReport { id: "cpu-0".parse().unwrap(), name: String::new(), memory_total: memory.0, memory_used: memory.1 };
    view.on_own_devices(vec![device]);
    view.on_own_replica(replica("held", ReplicaState::Loaded), SystemTime::now());
    let told = view.activation();
    assert_eq!(told.pending, ["next".parse().unwrap()]);
    let failed: Vec<(&str, bool)> = told.failed.iter().map(|one| (one.model.as_str(), one.reason.contains("cut"))).collect();
    assert_eq!(failed, [("broken", true), ("large", false)]);

    // What was begun is pending, and what has failed is told and begun again, until it is there or somebody lets it go.
    let next: ModelId = "next".parse().unwrap();
    let is_to_load = |view: &ClusterView| view.to_load().any(|entry| entry.profile.id == next);
    let reasons = |view: &ClusterView| view.activation().failed.into_iter().map(|one| one.reason).collect::<Vec<_>>();
    assert!(is_to_load(&view) && view.is_preloading());
    view.on_own_replica(replica("next", ReplicaState::Loading), SystemTime::now());
    assert!(!is_to_load(&view), "it is on its way");
    assert_eq!(view.activation().pending, std::slice::from_ref(&next));
    view.on_own_replica(replica("next", ReplicaState::Failed("no route to the hub".into())), SystemTime::now());
    assert!(is_to_load(&view) && !view.is_preloading() && view.activation().pending.is_empty());
    assert!(reasons(&view).contains(&"no route to the hub".to_owned()), "{:?}", reasons(&view));
    view.on_own_replica_left(&next, "cpu-0".parse().unwrap());
    assert_eq!((is_to_load(&view), view.activation().pending), (true, vec![next.clone()]));
    let mut let_go = ClusterView::new("test".into(), facts("a"));
    let_go.on_own_catalogue(view.own_catalogue().clone(), SystemTime::now());
    let_go.on_own_replica(replica("next", ReplicaState::Loading), SystemTime::now());
    let_go.on_let_go(next.clone());
    let_go.on_own_replica_left(&next, "cpu-0".parse().unwrap());
    for (view, state) in [(&mut view, ReplicaState::Loaded), (&mut let_go, ReplicaState::Loading)] {
        view.on_own_replica(replica("next", state), SystemTime::now());
        view.on_own_replica_left(&next, "cpu-0".parse().unwrap());
        assert!(!is_to_load(view), "it is loaded again when it is asked for");
    }
}
