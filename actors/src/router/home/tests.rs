use std::time::SystemTime;

use plexus_types::{Bytes, Catalogue, CatalogueEntry, DeviceReport, FilesState, ModelProfile, ModelSource, NodeSummary};

use super::super::view::tests::{facts, replica};
use super::*;
use crate::evictor::core::tests::facts as known;
use crate::inbound::{ClusterChange, PeerChange};

fn model() -> ModelId {
    "m".parse().unwrap()
}

fn ensure() -> Ensure {
    Ensure { model: model(), replicas: 1, by_hand: false }
}

/// A view of `a` in which `a`, `b` and `c` have a device of so many MiB each, and a model of 10 MiB is listed.
fn view(mib: [u64; 3]) -> ClusterView {
    let profile = ModelProfile::new(model(), ModelSource::Embedded);
    let entries = vec![CatalogueEntry { profile, found: false, files: FilesState::Present(known(10)) }];
    let device =
        |mib| DeviceReport { id: "cpu-0".parse().unwrap(), name: String::new(), memory_total: Bytes::mib(mib), memory_used: Bytes(0) };
    let mut view = ClusterView::new("test".into(), facts("a"));
    view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    view.on_own_devices(vec![device(mib[0])]);
    for (name, mib) in [("b", mib[1]), ("c", mib[2])] {
        let id = facts(name).id;
        view.on_cluster_change(ClusterChange::Up(facts(name)));
        view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
        let summary = NodeSummary { revision: 1, devices: vec![device(mib)], ..NodeSummary::default() };
        view.on_summary(&id, summary, Instant::now(), SystemTime::now());
    }
    view
}

fn ordered(effects: &[Effect]) -> Vec<&str> {
    effects.iter().filter_map(|effect| if let Effect::Order { node, .. } = effect { Some(node.name.as_str()) } else { None }).collect()
}

fn answered(effects: &[Effect]) -> Vec<(Asker, bool)> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Answer { asker, result } = effect { Some((*asker, result.is_ok())) } else { None })
        .collect()
}

#[test]
fn those_who_ask_at_once_cause_one_load_and_are_answered_together() {
    // CX-42
    let (view, mut home, now) = (view([100, 200, 300]), Home::default(), Instant::now());
    assert_eq!(ordered(&home.on_ensure(&view, &ensure(), 1, now)), ["c"], "most room");
    assert_eq!(home.on_ensure(&view, &ensure(), 2, now), []);
    assert_eq!(answered(&home.on_answer(&view, &model(), Ok(()), now)), [(1, true), (2, true)]);
    // It does not show yet.
    assert_eq!(answered(&home.on_ensure(&view, &ensure(), 3, now)), [(3, true)]);
}

#[test]
fn a_node_that_refuses_is_passed_over_for_the_next_and_when_none_is_left_the_reason_is_told() {
    let (view, mut home, now) = (view([100, 200, 300]), Home::default(), Instant::now());
    home.on_ensure(&view, &ensure(), 1, now);
    let refusal = |why: &str| Err(RequestError::soon(why));
    assert_eq!(ordered(&home.on_answer(&view, &model(), refusal("no room after all"), now)), ["b"]);
    assert_eq!(ordered(&home.on_answer(&view, &model(), refusal("gone"), now)), ["a"]);
    let effects = home.on_answer(&view, &model(), refusal("busy"), now);
    let [Effect::Answer { asker: 1, result: Err(unplaced) }] = &effects[..] else { panic!("{effects:?}") };
    assert!(unplaced.error.to_string().contains("no room after all"), "{}", unplaced.error);
}

#[test]
fn a_load_that_never_shows_is_ordered_again_after_a_while() {
    let (view, mut home, now) = (view([100, 200, 300]), Home::default(), Instant::now());
    home.on_ensure(&view, &ensure(), 1, now);
    home.on_answer(&view, &model(), Ok(()), now);
    assert_eq!(home.on_view(&view, now + ORDER_SHOWS / 2), []);
    assert_eq!(home.n_orders(), 1);
    assert_eq!(home.on_view(&view, now + ORDER_SHOWS), []);
    assert_eq!(home.n_orders(), 0);
    assert_eq!(ordered(&home.on_ensure(&view, &ensure(), 2, now + ORDER_SHOWS)), ["c"]);
}

/// What a node says that has these replicas, and the devices that it had.
fn says(view: &mut ClusterView, node: &NodeId, replicas: Vec<plexus_types::ReplicaReport>) {
    let known = view.nodes().find(|known| known.id == node).unwrap().summary;
    let summary = NodeSummary { revision: known.revision + 1, devices: known.devices.clone(), replicas, draining: false };
    view.on_summary(node, summary, Instant::now(), SystemTime::now());
}

#[test]
fn who_wants_a_first_replica_and_joins_an_order_for_a_spare_has_others_go_for_it() {
    let (mut view, mut home, now) = (view([100, 300, 200]), Home::default(), Instant::now());
    view.on_own_replica(replica("m", ReplicaState::Loaded), SystemTime::now());
    let spare = Ensure { replicas: 2, ..ensure() };
    assert_eq!(ordered(&home.on_ensure(&view, &spare, 1, now)), ["b"]);
    assert_eq!(answered(&home.on_ensure(&view, &ensure(), 2, now)), [(2, true)], "there is one");
    // The first is gone with its device, and others have the room that there was.
    view.on_own_replica_left(&model(), "cpu-0".parse().unwrap());
    view.on_own_devices(Vec::new());
    let idle = Some(Duration::from_secs(9));
    let other = plexus_types::ReplicaReport { memory: Bytes::mib(195), idle, ..replica("y", ReplicaState::Loaded) };
    says(&mut view, &facts("c").id, vec![other]);
    assert_eq!(home.on_ensure(&view, &ensure(), 3, now), []);
    let full = || Err(RequestError::Unservable { message: "full".into() });
    assert_eq!(ordered(&home.on_answer(&view, &model(), full(), now)), ["c"]);

    let mut home = Home::default();
    assert_eq!(ordered(&home.on_ensure(&view, &spare, 1, now)), ["b"]);
    assert_eq!(answered(&home.on_answer(&view, &model(), full(), now)), [(1, false)], "nobody goes for a spare alone");
}

#[test]
fn a_node_that_answers_late_is_none_that_refuses_as_long_as_its_load_may_show() {
    let (mut view, mut home, now) = (view([100, 200, 300]), Home::default(), Instant::now());
    let c = facts("c").id;
    assert_eq!(ordered(&home.on_ensure(&view, &ensure(), 1, now)), ["c"]);
    home.on_late(&model(), "'c' did not answer".into(), now);
    assert_eq!(home.on_ensure(&view, &ensure(), 2, now), [], "it waits with the first");
    assert_eq!(home.on_view(&view, now + ORDER_SHOWS / 2), []);
    says(&mut view, &c, vec![replica("m", ReplicaState::Loading)]);
    let effects = home.on_view(&view, now + ORDER_SHOWS / 2);
    let [(id, effects)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((id, answered(effects)), (&model(), vec![(1, true), (2, true)]), "it had begun");
    assert_eq!(home.n_orders(), 0);

    // It never shows; or the node is gone meanwhile.
    says(&mut view, &c, Vec::new());
    for is_gone in [false, true] {
        let mut home = Home::default();
        assert_eq!(ordered(&home.on_ensure(&view, &ensure(), 1, now)), ["c"]);
        home.on_late(&model(), "'c' did not answer".into(), now);
        if is_gone {
            view.on_peer_change(&PeerChange::Down { id: c.clone(), why: "cut".into() }, Instant::now());
        }
        let effects = home.on_view(&view, if is_gone { now } else { now + ORDER_SHOWS });
        let [(_, effects)] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!(ordered(effects), ["b"]);
    }
}

#[test]
fn a_model_that_is_there_or_coming_is_not_ordered() {
    let (mut view, mut home) = (view([100, 200, 300]), Home::default());
    view.on_own_replica(replica("m", ReplicaState::Loading), SystemTime::now());
    assert_eq!(answered(&home.on_ensure(&view, &ensure(), 1, Instant::now())), [(1, true)]);
    let second = Ensure { replicas: 2, ..ensure() };
    assert_eq!(ordered(&home.on_ensure(&view, &second, 2, Instant::now())), ["c"], "a second replica goes elsewhere");
}

#[test]
fn all_nodes_name_the_same_home_and_another_when_it_is_gone() {
    let mut view = view([100, 200, 300]);
    let homes: std::collections::BTreeSet<String> =
        (0..60).map(|i| home_of(&view, &format!("m{i}").parse().unwrap()).name.to_string()).collect();
    assert_eq!(homes.len(), 3, "models are spread over the nodes: {homes:?}");
    let id: ModelId = (0..60).map(|i| format!("m{i}").parse().unwrap()).find(|id| home_of(&view, id).name.as_str() == "b").unwrap();
    view.on_peer_change(&PeerChange::Down { id: facts("b").id, why: "cut".into() }, Instant::now());
    assert_ne!(home_of(&view, &id).name.as_str(), "b");
}

/// A view of the home of the model, with a replica at each of these nodes that nobody has used for so many seconds; absent: it is used.
fn with_replicas(idle_s: &[(&str, Option<u64>)], profile: &ModelProfile) -> ClusterView {
    let mut nodes = ["a", "b", "c"].map(|name| facts(name).id);
    let everybody = view([100, 100, 100]);
    let home = home_of(&everybody, &model());
    nodes.sort_by_key(|id| *id != home); // the home first
    let mut view = ClusterView::new("test".into(), facts(nodes[0].name.as_str()));
    let entries = vec![CatalogueEntry { profile: profile.clone(), found: false, files: FilesState::Present(known(10)) }];
    view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    for id in &nodes {
        let idle = idle_s.iter().filter(|(name, _)| *name == id.name.as_str());
        let replicas: Vec<_> = idle
            .map(|(_, idle_s)| {
                let idle = idle_s.map(Duration::from_secs);
                plexus_types::ReplicaReport { idle, pinned: profile.pinned && idle_s == &Some(999), ..replica("m", ReplicaState::Loaded) }
            })
            .collect();
        if *id == home {
            for replica in replicas {
                view.on_own_replica(replica, SystemTime::now());
            }
        } else {
            view.on_cluster_change(ClusterChange::Up(facts(id.name.as_str())));
            view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
            let summary = NodeSummary { revision: 1, replicas, ..NodeSummary::default() };
            view.on_summary(id, summary, Instant::now(), SystemTime::now());
        }
    }
    assert_eq!(home_of(&view, &model()), *view.me());
    view
}

fn spare_nodes(view: &ClusterView) -> Vec<String> {
    Home::default().spares(view, Instant::now()).into_iter().map(|spare| spare.node.name.to_string()).collect()
}

#[test]
fn of_several_replicas_the_one_that_is_idle_for_longest_goes_after_a_while_and_the_last_stays() {
    let plain = ModelProfile::new(model(), ModelSource::Embedded);
    assert_eq!(spare_nodes(&with_replicas(&[("a", Some(61)), ("b", Some(62)), ("c", None)], &plain)), ["b"]);
    assert_eq!(spare_nodes(&with_replicas(&[("a", Some(60)), ("b", None)], &plain)), ["a"]);
    assert!(spare_nodes(&with_replicas(&[("a", Some(59)), ("b", None)], &plain)).is_empty(), "not yet");
    assert!(spare_nodes(&with_replicas(&[("a", None), ("b", None)], &plain)).is_empty(), "both are used");
    assert!(spare_nodes(&with_replicas(&[("c", Some(9999))], &plain)).is_empty(), "the only one");
}

#[test]
fn a_spare_to_which_a_request_was_just_sent_stays_and_so_does_one_that_is_pinned_or_loaded_from_the_start() {
    let plain = ModelProfile::new(model(), ModelSource::Embedded);
    let two = [("a", Some(100)), ("b", Some(90))];
    let mut view = with_replicas(&two, &plain);
    let sent = view.candidates(&model()).find(|one| one.id.node.name.as_str() == "a").map(|one| one.id).unwrap();
    view.on_sent(&sent);
    assert_eq!(spare_nodes(&view), ["b"]);
    let pinned = ModelProfile { pinned: true, ..plain.clone() };
    assert_eq!(spare_nodes(&with_replicas(&[("a", Some(999)), ("b", Some(90))], &pinned)), ["b"], "the pinned one is idle for longer");
    let preload = ModelProfile { preload: true, ..plain };
    assert!(spare_nodes(&with_replicas(&two, &preload)).is_empty());
}

#[test]
fn while_one_spare_has_not_gone_yet_no_other_is_told_to_go_or_none_would_be_left() {
    let plain = ModelProfile::new(model(), ModelSource::Embedded);
    let (mut home, now) = (Home::default(), Instant::now());
    let node_of = |spares: Vec<ReplicaId>| spares.into_iter().map(|spare| spare.node.name.to_string()).collect::<Vec<_>>();
    assert_eq!(node_of(home.spares(&with_replicas(&[("a", Some(70)), ("b", Some(71))], &plain), now)), ["b"]);
    // It takes its time, and what the other says of itself is newer.
    let news = with_replicas(&[("a", Some(75)), ("b", Some(71))], &plain);
    assert!(home.spares(&news, now + Duration::from_secs(5)).is_empty());
    assert_eq!(node_of(home.spares(&news, now + SPARE_GOES)), ["a"], "the first stays, for whatever reason");
    assert!(home.spares(&with_replicas(&[("b", Some(200))], &plain), now + SPARE_GOES).is_empty());
}

#[test]
fn only_the_home_of_a_model_lets_its_spares_go() {
    let plain = ModelProfile::new(model(), ModelSource::Embedded);
    let view = with_replicas(&[("a", Some(100)), ("b", Some(90)), ("c", None)], &plain);
    let home = view.me().clone();
    let mut elsewhere = ClusterView::new("test".into(), facts(if home.name.as_str() == "a" { "b" } else { "a" }));
    let entries = vec![CatalogueEntry { profile: plain, found: false, files: FilesState::Present(known(10)) }];
    elsewhere.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    let spare = plexus_types::ReplicaReport { idle: Some(Duration::from_secs(100)), ..replica("m", ReplicaState::Loaded) };
    elsewhere.on_own_replica(spare.clone(), SystemTime::now());
    elsewhere.on_cluster_change(ClusterChange::Up(facts(home.name.as_str())));
    elsewhere.on_peer_change(&PeerChange::Up(home.clone()), Instant::now());
    let summary = NodeSummary { revision: 1, replicas: vec![spare], ..NodeSummary::default() };
    elsewhere.on_summary(&home, summary, Instant::now(), SystemTime::now());
    assert!(spare_nodes(&elsewhere).is_empty());
    assert_eq!(spare_nodes(&view).len(), 1);
}
