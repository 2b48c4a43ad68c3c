//! Who gives way to a load that waits, and when.

use super::*;
use crate::evictor::core::turns::{ENDS_WITHIN, WAIT, turn};

fn give_way(effects: &[Effect]) -> Vec<(Place, bool)> {
    let told =
        effects.iter().filter_map(|effect| if let Effect::GiveWay(place, gives) = effect { Some((place.clone(), *gives)) } else { None });
    told.collect()
}

/// A device that two models have between them, both used without a pause.
fn full() -> Bench {
    let mut bench = Bench::new(EvictionConfig::default());
    for model in ["first", "second"] {
        bench.load(profile(model), 45);
        bench.tell(Event::Used { place: place(model), busy: true });
    }
    bench.now += turn(Duration::ZERO, Duration::ZERO); // both have had theirs
    bench
}

#[test]
fn a_load_that_has_waited_gets_the_room_of_one_that_is_used_without_a_pause_once_that_has_ended_what_it_began() {
    let mut bench = full();
    bench.order(profile("new"), 50);
    assert_eq!(give_way(&bench.room("new", 50).1), [], "most have a pause before long");
    bench.now += WAIT;
    assert_eq!(give_way(&bench.tell(Event::Tick)), [(place("first"), true)], "no more than are needed");
    assert_eq!(bench.tell(Event::Tick), [], "it is told once");
    let effects = bench.tell(Event::Used { place: place("first"), busy: false });
    assert_eq!((retired(&effects), give_way(&effects)), (vec![place("first")], vec![]));
    bench.answers("first", Verdict::Goes);
    let effects = bench.tell(Event::Released { place: place("first"), lease: Lease(1) });
    assert_eq!((grants(&effects), give_way(&effects)), (vec![(3, true)], vec![]), "it is on its way out");
}

#[test]
fn a_load_that_has_waited_for_a_place_is_taken_where_all_are_used_and_no_other() {
    let mut bench = full();
    let load = |in_turn| Event::Load { profile: profile("new"), device: cpu(), facts: Some(facts(50)), in_turn, asker: 7 };
    assert!(answers(&bench.tell(load(false)))[0].1.is_err());
    assert!(answers(&bench.tell(load(true)))[0].1.is_ok());
    let large = Event::Load { profile: profile("large"), device: cpu(), facts: Some(facts(101)), in_turn: true, asker: 8 };
    assert!(answers(&bench.tell(large))[0].1.is_err(), "it could never fit");
}

#[test]
fn what_is_kept_warm_gives_way_after_its_turn_and_is_not_kept_warm_then() {
    let keep_warm = Duration::from_secs(60);
    let config = EvictionConfig { policy: EvictionPolicy { keep_warm, ..EvictionPolicy::default() }, ..EvictionConfig::default() };
    let mut bench = Bench::new(config);
    bench.load(profile("busy"), 60);
    bench.tell(Event::Used { place: place("busy"), busy: true });
    bench.room("new", 60);
    bench.now += WAIT;
    assert_eq!(give_way(&bench.tell(Event::Tick)), [], "it has its turn");
    bench.now += keep_warm;
    bench.room("newer", 60);
    bench.now += WAIT;
    assert_eq!(give_way(&bench.tell(Event::Tick)), [(place("busy"), true)]);
    assert_eq!(retired(&bench.tell(Event::Used { place: place("busy"), busy: false })), [place("busy")]);
}

#[test]
fn nobody_gives_way_who_is_pinned_or_of_a_higher_class_nor_where_those_who_may_are_not_enough() {
    let policy = EvictionPolicy { strategy: EvictionStrategy::Priority, ..EvictionPolicy::default() };
    let mut bench = Bench::new(EvictionConfig { policy, ..EvictionConfig::default() });
    let pinned = ModelProfile { pinned: true, ..*profile("pinned") };
    let higher = ModelProfile { residency_priority: ModelProfile::DEFAULT_PRIORITY + 1, ..*profile("higher") };
    for profile in [pinned, higher, *profile("just")] {
        let id = profile.id.to_string();
        bench.load(Box::new(profile), 30);
        bench.tell(Event::Used { place: place(&id), busy: true });
    }
    bench.now += turn(Duration::ZERO, Duration::ZERO);
    bench.room("new", 60);
    bench.now += WAIT;
    assert_eq!(give_way(&bench.tell(Event::Tick)), [], "one of them is not enough");
}

#[test]
fn those_that_gave_way_take_requests_again_when_the_load_leaves_or_gives_up() {
    let mut bench = full();
    for leaves in [true, false] {
        let (lease, _) = bench.room("new", 50);
        bench.now += WAIT;
        assert_eq!(give_way(&bench.tell(Event::Tick)), [(place("first"), true)]);
        let effects = if leaves {
            bench.tell(Event::Released { place: place("new"), lease })
        } else {
            bench.now += ENDS_WITHIN;
            bench.tell(Event::Tick)
        };
        assert_eq!(give_way(&effects), [(place("first"), false)]);
        assert_eq!(grants(&effects).len(), usize::from(!leaves), "it is told that there is no room");
    }
}
