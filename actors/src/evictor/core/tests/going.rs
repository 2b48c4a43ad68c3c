//! How replicas go, and what late answers do.

use super::*;

#[test]
fn a_refusal_to_go_that_comes_after_the_news_that_the_last_request_has_ended_does_not_count() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("old"), 60);
    assert_eq!(retired(&bench.room("new", 60).1), [place("old")]);
    for busy in [true, false] {
        assert_eq!(retired(&bench.tell(Event::Used { place: place("old"), busy })), [], "its answer is still to come");
    }
    assert_eq!(retired(&bench.answers("old", Verdict::Stays)), [place("old")], "it is idle, and asked again");
    assert_eq!(dismissed(&bench.answers("old", Verdict::Goes)), [place("old")]);
}

#[test]
fn a_replica_that_refuses_to_go_without_having_said_that_it_is_used_is_in_use_until_it_says_that_it_is_not() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("old"), 60);
    bench.room("new", 60);
    assert_eq!(retired(&bench.answers("old", Verdict::Stays)), []);
    bench.now += Duration::from_secs(5);
    assert_eq!(retired(&bench.tell(Event::Tick)), []);
    assert_eq!(retired(&bench.tell(Event::Used { place: place("old"), busy: false })), [place("old")]);
}

#[test]
fn where_a_replica_does_not_answer_whether_it_goes_another_goes_and_it_is_asked_again_after_a_while() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("hung"), 45);
    let newer = bench.load(profile("newer"), 45);
    assert_eq!(retired(&bench.room("third", 50).1), [place("hung")]);
    assert_eq!(retired(&bench.answers("hung", Verdict::Silent)), [place("newer")]);
    bench.answers("newer", Verdict::Goes);
    assert_eq!(grants(&bench.tell(Event::Released { place: place("newer"), lease: newer })), [(3, true)]);
    assert_eq!(retired(&bench.room("fourth", 40).1), [], "it was silent a moment ago, and the third is being loaded");
    bench.now += Duration::from_secs(9);
    assert_eq!(retired(&bench.tell(Event::Tick)), []);
    bench.now += Duration::from_secs(1);
    assert_eq!(retired(&bench.tell(Event::Tick)), [place("hung")]);
}

#[test]
fn a_replica_that_agrees_to_go_late_is_dismissed_though_nobody_waits_for_it_any_more() {
    let mut bench = Bench::new(EvictionConfig::default());
    let lease = bench.load(profile("slow"), 60);
    assert_eq!(retired(&bench.room("new", 60).1), [place("slow")]);
    let ask = bench.core.last_ask;
    bench.answers("slow", Verdict::Silent);
    // It has given up its memory, and would refuse all that it is asked.
    let late = Event::Retired { place: place("slow"), ask, verdict: Verdict::Goes };
    assert_eq!(dismissed(&bench.tell(late.clone())), [place("slow")]);
    assert_eq!(bench.tell(late.clone()), [], "once");
    assert_eq!(grants(&bench.tell(Event::Released { place: place("slow"), lease })), [(2, true)]);
    bench.is_gone("slow");
    // Another replica in its place is not meant, however late the answer comes.
    bench.load(profile("slow"), 20);
    assert_eq!(bench.tell(late.clone()), []);
    assert_eq!(bench.core.n_evicted, 1);
    // An evictor that was restarted meanwhile does not know the replica, or knows it from itself.
    for holds in [false, true] {
        let mut core = EvictorCore::new(EvictionConfig::default(), Pins::new()).after(Ask(1 << 32));
        if holds {
            core.on_event(resident("slow", lease.0, 60, false), bench.now);
        }
        assert_eq!(dismissed(&core.on_event(late.clone(), bench.now)), [place("slow")]);
    }
}

#[test]
fn a_replica_that_was_asked_to_go_is_not_asked_again_before_it_answers() {
    let config = EvictionConfig { idle_unload: Some(Duration::from_secs(10)), ..EvictionConfig::default() };
    let mut bench = Bench::new(config);
    bench.load(profile("idle"), 60);
    bench.now += Duration::from_secs(10);
    assert_eq!(retired(&bench.tell(Event::Tick)), [place("idle")]);
    assert_eq!(retired(&bench.tell(Event::Tick)), []);
    assert_eq!(retired(&bench.room("new", 60).1), [], "the answer that is awaited serves this, too");
    let unload = Event::Unload { model: "idle".parse().unwrap(), device: None, asker: 9 };
    assert_eq!(bench.tell(unload), []);
    let effects = bench.answers("idle", Verdict::Silent);
    let [(9, Err(RequestError::Unavailable { message, .. }))] = &answers(&effects)[..] else { panic!("{effects:?}") };
    assert!(message.contains("does not answer on cpu-0"), "{message}");
}

#[test]
fn unloading_by_hand_without_a_device_unloads_from_all_and_is_answered_when_the_last_is_gone() {
    let mut bench = Bench::new(EvictionConfig::default());
    let gpu: DeviceId = "cuda-0".parse().unwrap();
    bench.tell(Event::DeviceUp { id: gpu, name: "test".into(), total: Bytes::mib(100) });
    bench.load(profile("m"), 10);
    let other = ("m".parse().unwrap(), gpu);
    bench.tell(Event::Load { profile: profile("m"), device: gpu, facts: Some(facts(10)), in_turn: false, asker: 8 });
    let needs = needs_of(&profile("m"), &facts(10), gpu);
    bench.tell(Event::Room { place: other.clone(), lease: Lease(90), needs, asker: 90 });
    let effects = bench.tell(Event::Unload { model: "m".parse().unwrap(), device: None, asker: 9 });
    assert_eq!(retired(&effects), [place("m"), other.clone()]);
    assert_eq!(answers(&bench.is_gone("m")), []);
    assert_eq!(answers(&bench.tell(Event::Dismissed(other, Ask(u64::MAX)))), [(9, Ok(()))]);
}

#[test]
fn what_was_loaded_from_files_that_count_no_more_goes_though_it_is_pinned_and_may_have_requests_first() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(Box::new(ModelProfile { pinned: true, ..*profile("m") }), 40);
    let outdated = || Event::Outdated(place("m"));
    assert_eq!(retired(&bench.tell(outdated())), [place("m")]);
    assert_eq!(dismissed(&bench.answers("m", Verdict::Stays)), []);
    assert_eq!(retired(&bench.tell(outdated())), [place("m")], "it is asked again");
    assert_eq!(dismissed(&bench.answers("m", Verdict::Goes)), [place("m")]);
    bench.is_gone("m");
    assert_eq!(bench.tell(outdated()), [], "it is gone");
}
