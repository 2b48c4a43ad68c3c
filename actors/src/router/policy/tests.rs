use std::time::SystemTime;

use plexus_types::{
    Catalogue, CatalogueEntry, FilesDigest, FilesState, ModelFacts, ModelProfile, ModelSource, NodeId, Prompt, ReplicaReport,
};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::super::view::tests::{facts, replica, summary};
use super::*;
use crate::inbound::{ClusterChange, PeerChange};

fn model() -> ModelId {
    "pip".parse().unwrap()
}

fn view(own: Option<ReplicaReport>, others: &[(&str, ReplicaReport)]) -> ClusterView {
    let mut view = ClusterView::new("test".into(), facts("a"));
    if let Some(own) = own {
        view.on_own_replica(own, SystemTime::now());
    }
    for (name, report) in others {
        let id: NodeId = facts(name).id;
        view.on_cluster_change(ClusterChange::Up(facts(name)));
        view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
        view.on_summary(&id, summary(1, vec![report.clone()]), Instant::now(), SystemTime::now());
    }
    view
}

fn go(view: &ClusterView, tried: &[ReplicaId]) -> Result<Decision, NoReplica> {
    route(view, &model(), &PromptDigests::of_length(40), tried, &mut StdRng::seed_from_u64(7))
}

#[test]
fn a_model_that_nobody_has_does_not_exist() {
    // CX-40 (4)
    assert!(matches!(go(&view(None, &[]), &[]), Err(NoReplica::Refused(RequestError::ModelNotFound { .. }))));
}

#[test]
fn a_model_whose_only_node_has_lost_its_link_is_refused_for_now_and_unknown_once_the_node_is_gone() {
    // CX-48
    let mut view = view(None, &[("b", replica("pip", ReplicaState::Loaded))]);
    view.on_peer_change(&PeerChange::Down { id: facts("b").id, why: "cut".into() }, Instant::now());
    assert!(matches!(go(&view, &[]), Err(NoReplica::Refused(RequestError::Unavailable { .. }))));
    view.on_cluster_change(ClusterChange::Gone(facts("b").id));
    assert!(matches!(go(&view, &[]), Err(NoReplica::Refused(RequestError::ModelNotFound { .. }))));
}

#[test]
fn of_two_equal_replicas_the_local_one_is_chosen() {
    let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
    assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "a");
}

#[test]
fn a_busy_replica_loses_against_an_idle_one_elsewhere() {
    // CX-40 (1): least busy
    let mut busy = replica("pip", ReplicaState::Loaded);
    busy.load.running = 8;
    busy.load.waiting = 3;
    let view = view(Some(busy), &[("b", replica("pip", ReplicaState::Loaded))]);
    assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "b");
}

#[test]
fn one_that_was_not_measured_is_taken_for_as_fast_as_the_fastest_and_so_gets_measured() {
    let read_at = |tokens_per_s| {
        let mut report = replica("pip", ReplicaState::Loaded);
        report.load.prefill_tokens_per_s = tokens_per_s;
        report
    };
    let view = view(Some(read_at(0.0)), &[("b", read_at(100.0)), ("c", read_at(5_000.0))]);
    let decision = route(&view, &model(), &conversation(400), &[], &mut StdRng::seed_from_u64(1)).unwrap();
    let wait = |name: &str| decision.considered.iter().find(|one| one.replica.node.name.as_str() == name).unwrap().verdict.unwrap();
    assert!(wait("a") < wait("c") && wait("c") < wait("b"), "{decision:?}");
}

#[test]
fn whatever_others_say_of_themselves_is_weighed() {
    let mut absurd = replica("pip", ReplicaState::Loaded);
    absurd.load = plexus_types::ReplicaLoad {
        running: u32::MAX,
        waiting: u32::MAX,
        decode_tokens_per_s: f32::MIN_POSITIVE,
        prefill_tokens_per_s: f32::MIN_POSITIVE,
        ..absurd.load
    };
    let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", absurd)]);
    assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "a");
}

#[test]
fn requests_just_sent_count_before_the_replica_reports_them() {
    let mut view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
    let first = go(&view, &[]).unwrap().replica;
    view.on_sent(&first);
    assert_ne!(go(&view, &[]).unwrap().replica, first);
}

#[test]
fn what_a_node_has_begun_goes_on_there_while_it_stops_and_nothing_else_does() {
    // CX-51
    let mut view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loading))]);
    let here = ReplicaId { node: facts("a").id, device: "cpu-0".parse().unwrap(), model: model() };
    let begun = std::slice::from_ref(&here);
    let goes_on = |view: &ClusterView, tried: &[ReplicaId], begun: &[ReplicaId]| super::goes_on(view, &model(), tried, begun, None);
    assert_eq!(goes_on(&view, &[], begun), None, "it does not stop: it is chosen like any other");
    view.on_draining();
    assert!(matches!(go(&view, &[]), Err(NoReplica::Loading(_))), "what is new waits for the other");
    assert_eq!(goes_on(&view, &[], begun).map(|decision| decision.replica), Some(here.clone()));
    assert_eq!(goes_on(&view, &[], &[]), None);
    assert_eq!(goes_on(&view, begun, begun), None, "it has failed this part");
}

#[test]
fn a_replica_that_failed_the_request_is_not_asked_again() {
    let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
    let first = go(&view, &[]).unwrap().replica;
    let second = go(&view, std::slice::from_ref(&first)).unwrap().replica;
    assert_ne!(first, second);
    assert!(matches!(go(&view, &[first, second]), Err(NoReplica::Refused(RequestError::Unavailable { .. }))));
}

/// Some six replicas, of which one holds so many digests of the prompt and has so many requests waiting.
fn view_with_a_holder(prompt: &PromptDigests, n_held: usize, waiting: u32) -> ClusterView {
    let mut holder = replica("pip", ReplicaState::Loaded);
    let mut held = prompt.digests()[..n_held].to_vec();
    held.extend([1, 2, 3]);
    held.sort_unstable();
    holder.prefixes = Some(held.into());
    holder.load.waiting = waiting;
    let other = || replica("pip", ReplicaState::Loaded);
    view(Some(other()), &[("b", other()), ("c", other()), ("d", holder), ("e", other()), ("f", other())])
}

fn conversation(bytes: usize) -> PromptDigests {
    PromptDigests::of(&Prompt::Text("What was said before. ".repeat(bytes / 22)))
}

fn chosen(view: &ClusterView, prompt: &PromptDigests, seed: u64) -> Considered {
    let decision = route(view, &model(), prompt, &[], &mut StdRng::seed_from_u64(seed)).unwrap();
    decision.considered.into_iter().find(|one| one.replica == decision.replica).unwrap()
}

#[test]
fn whoever_is_drawn_a_conversation_goes_where_it_is_held() {
    let prompt = conversation(8000);
    let view = view_with_a_holder(&prompt, 8, 0);
    for seed in 0..50 {
        let chosen = chosen(&view, &prompt, seed);
        assert_eq!((chosen.replica.node.name.as_str(), chosen.n_cached), ("d", 1024));
        let nine_hundred_and_some_tokens = Duration::from_millis(900)..Duration::from_millis(1000);
        assert!(nine_hundred_and_some_tokens.contains(&chosen.verdict.unwrap()), "at the assumed speed: {chosen:?}");
    }
}

#[test]
fn where_waiting_takes_longer_than_reading_it_anew_a_conversation_goes_elsewhere() {
    let prompt = conversation(8000);
    let view = view_with_a_holder(&prompt, 8, 1); // a typical answer takes 2.56 s; 1,024 tokens are read in 1.024 s
    let nodes: std::collections::BTreeSet<String> =
        (0..50).map(|seed| chosen(&view, &prompt, seed).replica.node.name.to_string()).collect();
    assert!(!nodes.contains("d") && nodes.len() > 2, "{nodes:?}");
    let long = conversation(32_000);
    let view = view_with_a_holder(&long, 24, 1); // 4,096 tokens take longer than the wait
    assert!((0..50).all(|seed| chosen(&view, &long, seed).replica.node.name.as_str() == "d"));
}

#[test]
fn of_two_holders_the_one_of_the_longer_part_is_considered_and_one_that_failed_is_not() {
    let prompt = conversation(8000);
    let mut view = view_with_a_holder(&prompt, 8, 0);
    let mut shorter = replica("pip", ReplicaState::Loaded);
    shorter.prefixes = Some(prompt.digests()[..1].into());
    view.on_own_replica(shorter, SystemTime::now());
    assert!((0..50).all(|seed| chosen(&view, &prompt, seed).replica.node.name.as_str() == "d"));
    let failed = chosen(&view, &prompt, 0).replica;
    let decision = route(&view, &model(), &prompt, &[failed], &mut StdRng::seed_from_u64(1)).unwrap();
    assert_eq!(decision.replica.node.name.as_str(), "a");
}

#[test]
fn digests_that_a_replica_no_longer_reports_count_no_more() {
    let prompt = conversation(8000);
    let mut view = view_with_a_holder(&prompt, 8, 0);
    let mut evicted = replica("pip", ReplicaState::Loaded);
    evicted.prefixes = Some([1, 2, 3].into());
    view.on_summary(&facts("d").id, summary(2, vec![evicted]), Instant::now(), SystemTime::now());
    let nodes: Vec<Considered> = (0..50).map(|seed| chosen(&view, &prompt, seed)).collect();
    assert!(nodes.iter().all(|one| one.n_cached == 0) && nodes.iter().any(|one| one.replica.node.name.as_str() != "d"));
}

#[test]
fn a_model_that_is_loading_or_recovering_is_refused_with_the_reason_and_a_time() {
    // CX-48
    for (state, word) in [(ReplicaState::Loading, "being loaded"), (ReplicaState::Recovering, "brought back")] {
        let refused = match go(&view(Some(replica("pip", state)), &[]), &[]) {
            Err(NoReplica::Loading(error) | NoReplica::Refused(error)) => error,
            other => panic!("not refused: {other:?}"),
        };
        let RequestError::Unavailable { message, retry_after } = refused else { panic!("{refused}") };
        assert!(message.contains(word) && retry_after > Duration::ZERO, "{message}");
    }
}

/// Replicas of a model that may have three, at `a`, `b` and so on, with so many requests running and waiting. A place becomes free after
/// 128 tokens at 128 tokens per second; loading one takes three seconds.
fn queues(loads: &[(u32, u32)]) -> ClusterView {
    let replicas = loads.iter().map(|(running, waiting)| {
        let mut report = replica("pip", ReplicaState::Loaded);
        (report.load.running, report.load.waiting, report.load.decode_tokens_per_s) = (*running, *waiting, 128.0);
        ReplicaReport { load_time: Some(Duration::from_secs(3)), ..report }
    });
    let mut replicas = replicas.collect::<Vec<_>>().into_iter();
    let own = replicas.next();
    let others: Vec<(&str, ReplicaReport)> = ["b", "c", "d"].into_iter().zip(replicas).collect();
    let mut view = view(own, &others);
    let profile = ModelProfile { replicas_max: 3, ..ModelProfile::new(model(), ModelSource::Embedded) };
    let entries = vec![CatalogueEntry { profile, found: false, files: FilesState::Absent }];
    view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    view
}

#[test]
fn another_replica_is_wanted_where_the_best_one_keeps_waiting_for_longer_than_it_takes_to_load() {
    assert_eq!(replicas_wanted(&queues(&[(7, 0)]), &model()), None, "a place is free");
    assert_eq!(replicas_wanted(&queues(&[(8, 2)]), &model()), None, "three seconds of waiting are not more than three of loading");
    assert_eq!(replicas_wanted(&queues(&[(8, 3)]), &model()), Some(2));
    assert_eq!(replicas_wanted(&queues(&[(8, 9), (8, 2)]), &model()), None, "the second has a place sooner");
    assert_eq!(replicas_wanted(&queues(&[(8, 9), (8, 3)]), &model()), Some(3));
    assert_eq!(replicas_wanted(&queues(&[(8, 9), (8, 9), (8, 9)]), &model()), None, "as many as it may have");
    assert_eq!(replicas_wanted(&queues(&[]), &model()), None, "the first one is loaded for other reasons");
}

#[test]
fn requests_just_sent_count_for_another_replica_and_one_that_comes_is_waited_for() {
    let mut view = queues(&[(8, 2)]);
    let there = view.candidates(&model()).next().unwrap().id;
    view.on_sent(&there);
    assert_eq!(replicas_wanted(&view, &model()), Some(2));
    for (state, wanted) in [(ReplicaState::Loading, None), (ReplicaState::Recovering, None), (ReplicaState::Failed("".into()), Some(2))] {
        let mut view = queues(&[(8, 9), (0, 0)]);
        view.on_summary(&facts("b").id, summary(2, vec![replica("pip", state.clone())]), Instant::now(), SystemTime::now());
        assert_eq!(replicas_wanted(&view, &model()), wanted, "{state:?}");
    }
    let mut view = queues(&[(8, 9), (0, 0)]);
    assert_eq!(replicas_wanted(&view, &model()), None, "one has a place at once");
    view.on_peer_change(&PeerChange::Down { id: facts("b").id, why: "cut".into() }, Instant::now());
    assert_eq!(replicas_wanted(&view, &model()), Some(2), "one out of reach helps nobody");
}

#[test]
fn nobody_knows_how_long_a_replica_takes_that_was_never_loaded() {
    let mut unknown = replica("pip", ReplicaState::Loaded);
    unknown.load.waiting = 99;
    let profile = ModelProfile { replicas_max: 3, ..ModelProfile::new(model(), ModelSource::Embedded) };
    let entries = vec![CatalogueEntry { profile, found: false, files: FilesState::Absent }];
    let mut view = view(Some(unknown.clone()), &[]);
    view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    assert_eq!(replicas_wanted(&view, &model()), None);
    view.on_own_replica(ReplicaReport { load_time: Some(Duration::from_secs(3)), ..unknown }, SystemTime::now());
    assert_eq!(replicas_wanted(&view, &model()), Some(2));
}

#[test]
fn nothing_is_sent_to_a_replica_that_was_loaded_from_other_files_than_count() {
    let digest = |n: u8| Some(FilesDigest::new([n; 16]));
    let of = |n| ReplicaReport { digest: digest(n), ..replica("pip", ReplicaState::Loaded) };
    let known = ModelFacts { digest: digest(2), ..crate::evictor::core::tests::facts(40) };
    let entries = |profile| vec![CatalogueEntry { profile, found: false, files: FilesState::Present(known.clone()) }];
    let listed = |mut view: ClusterView| {
        let entries = entries(ModelProfile::new(model(), ModelSource::Path("/m.gguf".into())));
        view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
        view
    };
    let both = listed(view(Some(of(1)), &[("b", of(2))]));
    for _ in 0..8 {
        assert_eq!(go(&both, &[]).unwrap().replica.node, facts("b").id);
    }
    assert_eq!(go(&listed(view(Some(of(1)), &[])), &[]), Err(NoReplica::Cold), "it is loaded anew");
    let unknown = listed(view(Some(replica("pip", ReplicaState::Loaded)), &[]));
    assert!(go(&unknown, &[]).is_ok(), "where nothing is known to differ, nothing does");
}

#[test]
fn what_was_begun_goes_on_by_its_files_alone_and_is_replaced_once_nobody_answers_by_them() {
    let digest = |n: u8| FilesDigest::new([n; 16]);
    let of = |n, state| ReplicaReport { digest: Some(digest(n)), ..replica("pip", state) };
    let listed = |mut view: ClusterView, counts: u8| {
        let facts = ModelFacts { digest: Some(digest(counts)), ..crate::evictor::core::tests::facts(40) };
        let profile = ModelProfile::new(model(), ModelSource::Path("/m.gguf".into()));
        let entries = vec![CatalogueEntry { profile, found: false, files: FilesState::Present(facts) }];
        view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
        view
    };
    let [here, there] = ["a", "b"].map(|name| ReplicaId { node: facts(name).id, device: "cpu-0".parse().unwrap(), model: model() });
    let replaced = listed(view(Some(of(1, ReplicaState::Loaded)), &[("b", of(2, ReplicaState::Loaded))]), 2);
    let rest = |begun: &[ReplicaId], files| goes_on(&replaced, &model(), &[], begun, files).map(|decision| decision.replica);
    assert_eq!(rest(std::slice::from_ref(&here), Some(digest(1))), Some(here.clone()), "it ends what it has");
    assert_eq!(rest(std::slice::from_ref(&here), Some(digest(2))), None);
    assert_eq!(rest(std::slice::from_ref(&here), None), None);
    assert_eq!(rest(&[], Some(digest(1))), None, "what is new is by those that count");
    assert!(!replaced.is_replaced(&model(), digest(1)), "it can go on");
    let gone = listed(view(Some(of(1, ReplicaState::Loading)), &[("b", of(2, ReplicaState::Loaded))]), 2);
    assert!(gone.is_replaced(&model(), digest(1)) && !gone.is_replaced(&model(), digest(2)));
    let not_listed = view(Some(of(1, ReplicaState::Loaded)), &[("b", of(2, ReplicaState::Loaded))]);
    assert_eq!(not_listed.with_other_files(&model(), Some(digest(1))), [there], "though nobody knows which count");
    assert_eq!(not_listed.with_other_files(&model(), None), []);
    let lost = listed(view(Some(of(1, ReplicaState::Loading)), &[]), 1);
    assert!(!lost.is_replaced(&model(), digest(1)), "it comes back with them");
}

proptest! {
    #[test]
    fn whatever_the_loads_the_chosen_replica_is_able_and_never_the_worse_of_two(
        loads in proptest::collection::vec((0u32..9, 0u32..65, 0.0f32..5000.0), 1..6), seed in any::<u64>(),
    ) {
        let others: Vec<(String, ReplicaReport)> = loads.iter().enumerate().map(|(i, (running, waiting, speed))| {
            let mut report = replica("pip", if i % 3 == 2 { ReplicaState::Loading } else { ReplicaState::Loaded });
            report.load.running = *running;
            report.load.waiting = *waiting;
            report.load.decode_tokens_per_s = *speed;
            (format!("n{i}"), report)
        }).collect();
        let others: Vec<(&str, ReplicaReport)> = others.iter().map(|(name, report)| (name.as_str(), report.clone())).collect();
        let view = view(None, &others);
        let decision = route(&view, &model(), &PromptDigests::of_length(400), &[], &mut StdRng::seed_from_u64(seed)).unwrap();
        let chosen = decision.considered.iter().find(|one| one.replica == decision.replica).unwrap();
        prop_assert!(chosen.verdict.is_ok());
        let able: Vec<Duration> = decision.considered.iter().filter_map(|one| one.verdict.as_ref().ok().copied()).collect();
        if able.len() >= 2 {
            let worst = able.iter().max().unwrap();
            let ties = able.iter().filter(|wait| *wait == worst).count();
            prop_assert!(chosen.verdict.as_ref().unwrap() < worst || ties > 1);
        }
    }
}
