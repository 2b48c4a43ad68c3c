use std::time::{Duration, SystemTime};

use plexus_types::{Catalogue, CatalogueEntry, FilesDigest, NodeSummary, ReplicaReport};
use tokio::time::Instant;

use super::super::view::tests::{facts, replica};
use super::*;
use crate::evictor::core::tests::facts as known;
use crate::evictor::plan::EvictionStrategy;
use crate::inbound::{ClusterChange, PeerChange};

fn listing(profile: ModelProfile, files: FilesState) -> Catalogue {
    Catalogue { revision: 1, entries: vec![CatalogueEntry { profile, found: false, files }], ..Catalogue::default() }
}

fn profile() -> ModelProfile {
    ModelProfile::new("m".parse().unwrap(), ModelSource::Embedded)
}

fn device(id: &str, mib: u64, replicas: &[ReplicaReport]) -> DeviceReport {
    let memory_used = replicas.iter().map(|replica| replica.memory).sum();
    DeviceReport { id: id.parse().unwrap(), name: String::new(), memory_total: Bytes::mib(mib), memory_used }
}

fn resident(model: &str, mib: u64, idle_s: Option<u64>) -> ReplicaReport {
    ReplicaReport { memory: Bytes::mib(mib), idle: idle_s.map(Duration::from_secs), ..replica(model, ReplicaState::Loaded) }
}

/// A view of `a`, alone with a device, to which others are added.
struct World(ClusterView);

impl World {
    fn new(profile: ModelProfile, mib: u64, replicas: Vec<ReplicaReport>) -> Self {
        let mut view = ClusterView::new("test".into(), facts("a"));
        view.on_own_catalogue(listing(profile, FilesState::Present(known(40))), SystemTime::now());
        view.on_own_devices(vec![device("cpu-0", mib, &replicas)]);
        for replica in replicas {
            view.on_own_replica(replica, SystemTime::now());
        }
        Self(view)
    }

    fn with(mut self, name: &str, device_id: &str, mib: u64, replicas: Vec<ReplicaReport>) -> Self {
        let id = facts(name).id;
        self.0.on_cluster_change(ClusterChange::Up(facts(name)));
        self.0.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
        let summary = NodeSummary { revision: 1, devices: vec![device(device_id, mib, &replicas)], replicas, draining: false };
        self.0.on_summary(&id, summary, Instant::now(), SystemTime::now());
        self
    }

    fn place(&self) -> Result<(String, Vec<String>), String> {
        let placement = place(&self.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default());
        let placement = placement.map_err(|unplaced| unplaced.error.to_string())?;
        Ok((place_name(&placement.site), placement.victims.iter().map(ToString::to_string).collect()))
    }
}

#[test]
fn nobody_goes_while_some_node_has_room() {
    // CX-25
    let full = || vec![resident("other", 90, Some(999))];
    let world = World::new(profile(), 100, full()).with("b", "cpu-0", 100, full()).with("c", "cpu-0", 50, vec![]);
    assert_eq!(world.place(), Ok(("c/cpu-0".into(), vec![])));
}

#[test]
fn where_room_is_free_gpus_come_first_and_then_the_node_with_most_room() {
    let world = World::new(profile(), 1000, vec![]).with("b", "cpu-0", 2000, vec![]);
    assert_eq!(world.place().unwrap().0, "b/cpu-0");
    assert_eq!(world.with("c", "cuda-0", 60, vec![]).place().unwrap().0, "c/cuda-0");
}

#[test]
fn where_somebody_must_go_it_is_whoever_is_missed_least_on_any_node() {
    // CX-43
    let days = 3 * 24 * 3600;
    let world =
        World::new(profile(), 100, vec![resident("large", 90, Some(days))]).with("b", "cpu-0", 60, vec![resident("small", 50, Some(1))]);
    assert_eq!(world.place(), Ok(("a/cpu-0".into(), vec!["large".into()])));
    let explained = place(&world.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default()).unwrap().explanation;
    let verdicts: Vec<&str> = explained.considered.iter().map(|place| place.verdict.as_str()).collect();
    assert_eq!(verdicts, ["fits once 'large', unused for 259200 s, goes", "fits once 'small', unused for 1 s, goes"]);
    // Several go that were used long ago, rather than one that was used lately.
    let two = vec![resident("old", 45, Some(1000)), resident("older", 45, Some(2000))];
    let mut world = World::new(profile(), 60, vec![resident("one", 50, Some(99))]).with("b", "cpu-0", 100, two);
    world.0.on_own_catalogue(listing(profile(), FilesState::Present(known(56))), SystemTime::now());
    assert_eq!(world.place(), Ok(("b/cpu-0".into(), vec!["older".into(), "old".into()])));
}

#[test]
fn where_they_were_used_alike_the_fewest_bytes_go() {
    let world =
        World::new(profile(), 100, vec![resident("large", 90, Some(5))]).with("b", "cpu-0", 60, vec![resident("small", 50, Some(5))]);
    assert_eq!(world.place(), Ok(("b/cpu-0".into(), vec!["small".into()])));
}

#[test]
fn by_priority_the_lowest_class_goes_on_whichever_node_it_is() {
    // CX-02
    let class = |model, class, idle| ReplicaReport { residency_priority: class, ..resident(model, 90, Some(idle)) };
    let world = World::new(profile(), 100, vec![class("high", 90, 999)]).with("b", "cpu-0", 100, vec![class("low", 10, 1)]);
    assert_eq!(world.place().unwrap().1, ["high"]);
    let by_priority = EvictionPolicy { strategy: EvictionStrategy::Priority, ..EvictionPolicy::default() };
    let placement = place(&world.0, &Want::new(&"m".parse().unwrap()), &by_priority).unwrap();
    assert_eq!(placement.victims, ["low".parse().unwrap()]);
}

#[test]
fn a_model_in_use_is_waited_for_and_the_refusal_says_needed_and_available() {
    // CX-53
    let world = World::new(profile(), 100, vec![resident("busy", 90, None)]);
    let unplaced = place(&world.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default()).unwrap_err();
    assert!(may_pass(&unplaced.error));
    let text = unplaced.error.to_string();
    assert!(text.contains("40.0 MiB needed, 10.0 MiB available ('busy' is in use)"), "{text}");
    let small = World::new(profile(), 30, vec![]);
    let unplaced = place(&small.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default()).unwrap_err();
    assert!(!may_pass(&unplaced.error), "waiting does not help");
}

#[test]
fn only_nodes_with_so_many_devices_of_that_size_and_of_those_names_are_asked() {
    // CX-24
    let picky = ModelProfile { min_device_memory: Some(Bytes::mib(150)), ..profile() };
    let world = World::new(picky, 100, vec![]).with("b", "cpu-0", 200, vec![]);
    assert_eq!(world.place().unwrap().0, "b/cpu-0");
    let two = ModelProfile { min_devices: 2, ..profile() };
    assert!(World::new(two, 100, vec![]).place().unwrap_err().contains("2 devices"));
    let share = ModelProfile { min_device_memory: Some(Bytes::mib(150)), ..profile() };
    let refused = World::new(share, 100, vec![]).place().unwrap_err();
    assert!(
        refused.contains("wants devices with 150 MiB for models, and this one has 100 MiB, which is what the configured share leaves"),
        "{refused}"
    );
    let pinned = ModelProfile { pinned_on: vec!["a".parse().unwrap()], ..profile() };
    let world = World::new(pinned, 100, vec![]).with("b", "cpu-0", 2000, vec![]);
    assert_eq!(world.place().unwrap().0, "a/cpu-0");
}

#[test]
fn a_node_that_has_the_files_comes_before_one_that_must_fetch_them() {
    let source: ModelSource = "/models/m.gguf".parse().unwrap();
    let world = World::new(ModelProfile { source, ..profile() }, 100, vec![]).with("b", "cpu-0", 2000, vec![]);
    assert_eq!(world.place().unwrap().0, "a/cpu-0");
}

#[test]
fn loads_that_were_ordered_count_before_they_show() {
    let world = World::new(profile(), 60, vec![]);
    let site: Site = (facts("a").id, "cpu-0".parse().unwrap());
    let m: ModelId = "m".parse().unwrap();
    let mut view = world.0;
    let entries = ["m", "n"].map(|id| CatalogueEntry {
        profile: ModelProfile::new(id.parse().unwrap(), ModelSource::Embedded),
        found: false,
        files: FilesState::Present(known(40)),
    });
    view.on_own_catalogue(Catalogue { entries: entries.into(), ..Catalogue::default() }, SystemTime::now());
    let ordered = [(site, "n".parse().unwrap())];
    let unplaced = place(&view, &Want { ordered: &ordered, ..Want::new(&m) }, &EvictionPolicy::default()).unwrap_err();
    assert!(may_pass(&unplaced.error) && unplaced.error.to_string().contains("'n' is in use"), "{}", unplaced.error);
}

#[test]
fn a_node_on_which_it_could_not_be_loaded_is_not_asked_again_but_by_hand() {
    let failed = ReplicaReport { memory: Bytes(0), ..replica("m", ReplicaState::Failed("its file is broken".into())) };
    let world = World::new(profile(), 100, vec![failed]);
    assert!(world.place().unwrap_err().contains("its file is broken"));
    let m: ModelId = "m".parse().unwrap();
    let by_hand = Want { by_hand: true, ..Want::new(&m) };
    assert!(place(&world.0, &by_hand, &EvictionPolicy::default()).is_ok());
}

#[test]
fn a_node_with_other_files_of_its_own_is_left_out_and_one_with_an_old_copy_fetches_anew() {
    let digest = |n: u8| Some(FilesDigest::new([n; 16]));
    let at = |digest, is_copy| FilesState::Present(ModelFacts { digest, is_copy, ..known(40) });
    let profile = ModelProfile::new("m".parse().unwrap(), ModelSource::Path("/m.gguf".into()));
    let world = |files: FilesState| {
        let mut world = World::new(profile.clone(), 10, vec![]).with("b", "cpu-0", 100, vec![]);
        world.0.on_own_catalogue(Catalogue { modified_ms: 9, ..listing(profile.clone(), at(digest(1), false)) }, SystemTime::now());
        world.0.on_catalogue(&facts("b").id, listing(profile.clone(), files), SystemTime::now());
        place(&world.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default())
    };
    let same = world(at(digest(1), false)).unwrap();
    assert_eq!(place_name(&same.site), "b/cpu-0");
    let copy = world(at(digest(2), true)).unwrap();
    assert!(copy.explanation.considered[0].verdict.contains("fetches the files first"), "{:?}", copy.explanation);
    let error = world(at(digest(2), false)).unwrap_err().error.to_string();
    assert!(error.contains("b/cpu-0: its files are not those that count"), "{error}");
}

#[test]
fn where_it_was_loaded_from_other_files_it_is_waited_for_until_that_has_gone() {
    let digest = |n: u8| Some(FilesDigest::new([n; 16]));
    let old = ReplicaReport { digest: digest(1), ..resident("m", 40, Some(0)) };
    let mut world = World::new(profile(), 100, vec![old]);
    let facts = ModelFacts { digest: digest(2), ..known(40) };
    world.0.on_own_catalogue(listing(profile(), FilesState::Present(facts)), SystemTime::now());
    let unplaced = place(&world.0, &Want::new(&"m".parse().unwrap()), &EvictionPolicy::default()).unwrap_err();
    assert!(may_pass(&unplaced.error) && unplaced.error.to_string().contains("loaded from other files"), "{}", unplaced.error);
}
