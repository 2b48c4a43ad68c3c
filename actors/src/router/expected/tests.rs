use std::time::SystemTime;

use plexus_types::{Bytes, Catalogue, CatalogueEntry, FilesFetch, FilesFrom, FilesState, ModelProfile, ModelSource, ReplicaReport};

use super::super::view::tests::{facts, replica};
use super::*;
use crate::evictor::core::tests::facts as known;

fn id(model: &str) -> ModelId {
    model.parse().unwrap()
}

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Lists models with weights of so many MiB.
fn view(models: &[(&str, u64)]) -> ClusterView {
    let mut view = ClusterView::new("test".into(), facts("a"));
    let entries = models.iter().map(|(model, mib)| CatalogueEntry {
        profile: ModelProfile::new(id(model), ModelSource::Embedded),
        found: false,
        files: FilesState::Present(known(*mib)),
    });
    view.on_own_catalogue(Catalogue { entries: entries.collect(), ..Catalogue::default() }, SystemTime::now());
    view
}

fn loaded(model: &str, took_s: f64) -> ReplicaReport {
    ReplicaReport { load_time: Some(s(took_s)), ..replica(model, ReplicaState::Loaded) }
}

#[test]
fn a_load_is_expected_to_take_as_long_as_the_last_one_even_after_the_model_has_gone() {
    let mut view = view(&[("m", 100)]);
    view.on_own_replica(loaded("m", 40.0), SystemTime::now());
    view.on_own_replica(loaded("m", 8.0), SystemTime::now());
    view.on_own_replica_left(&id("m"), "cpu-0".parse().unwrap());
    assert_eq!(load(&view, &id("m")), s(8.0));
    let loading = ReplicaReport { progress: 0.75, ..replica("m", ReplicaState::Loading) };
    view.on_own_replica(loading, SystemTime::now());
    assert_eq!(load(&view, &id("m")), s(2.0), "three quarters are done");
}

#[test]
fn a_model_that_was_never_loaded_is_expected_to_load_as_fast_as_others() {
    let mut view = view(&[("m", 800), ("other", 100), ("none", 0)]);
    let at_first = load(&view, &id("m")).as_secs_f64();
    let weights = known(800).cpu.weights.0 as f64;
    assert!((at_first - weights / ASSUMED_LOAD).abs() < 1e-6, "{at_first}");
    view.on_own_replica(loaded("other", 5.0), SystemTime::now());
    let by_the_other = known(800).cpu.weights.0 as f64 / known(100).cpu.weights.0 as f64 * 5.0;
    assert!((load(&view, &id("m")).as_secs_f64() - by_the_other).abs() < 1e-6);
    assert_eq!(load(&view, &id("unlisted")), ASK_AGAIN_MIN);
    let mut absurd = loaded("other", 0.0);
    absurd.load_time = Some(Duration::MAX);
    view.on_own_replica(absurd, SystemTime::now());
    assert_eq!(load(&view, &id("m")), ASK_AGAIN_MAX);
}

/// `m` is listed, and `a` fetches its files.
fn fetching(done: u64, total: u64, per_second: Option<u64>) -> ClusterView {
    let mut view = ClusterView::new("test".into(), facts("a"));
    let from = FilesFrom::Hub("http://hub".into());
    let fetch = FilesFetch { done: Bytes(done), total: Bytes(total), per_second: per_second.map(Bytes), from, failure: None };
    let profile = ModelProfile::new(id("m"), "hf:org/m".parse().unwrap());
    let entry = CatalogueEntry { profile, found: false, files: FilesState::Fetching(fetch) };
    view.on_own_catalogue(Catalogue { entries: vec![entry], ..Catalogue::default() }, SystemTime::now());
    view
}

#[test]
fn a_load_whose_files_still_come_takes_until_they_are_there_and_then_as_long_as_a_load_does() {
    let gb = 1_000_000_000;
    let whole_s = 10.0 * gb as f64 / ASSUMED_LOAD;
    let after = |mut view: ClusterView, replica: Option<ReplicaReport>| {
        if let Some(replica) = replica {
            view.on_own_replica(replica, SystemTime::now());
        }
        load(&view, &id("m")).as_secs_f64()
    };
    let loading = || Some(ReplicaReport { progress: 0.2, ..replica("m", ReplicaState::Loading) });
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} {b}");
    near(after(fetching(4 * gb, 10 * gb, Some(gb / 100)), loading()), 600.0 + whole_s);
    near(after(fetching(4 * gb, 10 * gb, Some(gb / 100)), None), 600.0 + whole_s);
    near(after(fetching(4 * gb, 10 * gb, None), loading()), ASSUMED_FETCH_S + whole_s);
    near(after(fetching(0, 0, None), loading()), ASSUMED_FETCH_S);
    near(after(fetching(0, 10 * gb, Some(1)), loading()), FETCHED_MAX.as_secs_f64());
    near(after(fetching(10 * gb, 10 * gb, Some(gb)), loading()), whole_s);
    near(after(fetching(1, 2, Some(1000)), loading()), 1.0);
}

#[test]
fn room_comes_when_the_first_has_answered_all_that_it_has() {
    let mut view = view(&[("m", 100)]);
    view.on_own_replica(loaded("m", 3.0), SystemTime::now());
    view.on_own_replica_left(&id("m"), "cpu-0".parse().unwrap());
    let site = (facts("a").id, "cpu-0".parse().unwrap());
    let policy = EvictionPolicy::default();
    let room_at = |view: &ClusterView, sites: &[&Site], policy: &EvictionPolicy| room(view, &id("m"), sites.iter().copied(), policy);
    assert_eq!(room_at(&view, &[&site], &policy), s(3.0), "nobody is busy any more");
    for (model, running, waiting) in [("busy", 2, 1), ("busier", 4, 4)] {
        let mut report = ReplicaReport { memory: Bytes::mib(50), ..loaded(model, 1.0) };
        (report.load.running, report.load.waiting) = (running, waiting);
        (report.load.answer_tokens, report.load.decode_tokens_per_s) = (200.0, 50.0);
        view.on_own_replica(report, SystemTime::now());
    }
    assert_eq!(room_at(&view, &[&site], &policy), s(3.0 * 200.0 / 50.0 + 3.0));
    assert_eq!(room_at(&view, &[], &policy), s(3.0));
    let warm = EvictionPolicy { keep_warm: s(60.0), ..policy };
    assert_eq!(room_at(&view, &[&site], &warm), s(3.0 * 200.0 / 50.0 + 60.0 + 3.0), "it stays for a while after that");
}

#[test]
fn room_comes_when_the_first_is_no_longer_kept_warm_of_those_that_may_go() {
    let mut view = view(&[("m", 100)]);
    view.on_own_replica(loaded("m", 3.0), SystemTime::now());
    view.on_own_replica_left(&id("m"), "cpu-0".parse().unwrap());
    let idle_for = |model: &str, idle_s: f64| ReplicaReport { memory: Bytes::mib(30), idle: Some(s(idle_s)), ..loaded(model, 1.0) };
    view.on_own_replica(ReplicaReport { pinned: true, ..idle_for("pinned", 110.0) }, SystemTime::now());
    view.on_own_replica(ReplicaReport { residency_priority: 101, ..idle_for("higher", 110.0) }, SystemTime::now());
    view.on_own_replica(idle_for("cold", 500.0), SystemTime::now());
    view.on_own_replica(idle_for("warm", 20.0), SystemTime::now());
    view.on_own_replica(idle_for("warmer", 10.0), SystemTime::now());
    let site = (facts("a").id, "cpu-0".parse().unwrap());
    let policy = EvictionPolicy { keep_warm: s(120.0), ..EvictionPolicy::default() };
    assert_eq!(room(&view, &id("m"), [&site], &policy), s(100.0 + 3.0));
}
