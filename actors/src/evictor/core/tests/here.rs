//! What an evictor that was restarted learns of replicas, whatever they are about, and what is said of others that were there before.

use super::*;

/// A successor that waits to hear from these, with one device of 100 MiB.
fn successor(replicas: &[&str]) -> Bench {
    let now = Instant::now();
    let core = EvictorCore::new(EvictionConfig::default(), Pins::new()).after(Ask(1 << 32));
    let mut bench = Bench { core: core.awaiting(replicas.iter().map(|model| place(model)), now), now, leases: 100 };
    bench.tell(Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes::mib(100) });
    bench
}

fn unload(model: &str) -> Event {
    Event::Unload { model: model.parse().unwrap(), device: None, asker: 9 }
}

#[test]
fn a_load_that_was_promised_its_memory_by_a_former_life_keeps_it_whoever_says_so_first() {
    let loading = |promised| here("large", Ask(5), Standing::Loading(promised));
    let (lease, bytes) = (Lease(3), Bytes::mib(80));
    let holds = || Event::Holds { place: place("large"), lease, bytes };
    let orders = [vec![loading(None), holds()], vec![holds(), loading(Some((lease, bytes)))], vec![loading(Some((lease, bytes))), holds()]];
    for said in orders {
        let mut bench = successor(&["large"]);
        for event in said {
            bench.tell(event);
        }
        assert_eq!(bench.core.ledger().free(cpu()), Some(Bytes::mib(20)));
        bench.order(profile("other"), 20);
        assert_eq!(grants(&bench.room("other", 50).1), [], "nobody gets the same memory");
        bench.tell(Event::Loaded(place("large")));
        bench.now += FIRST_USE;
        assert_eq!(retired(&bench.tell(Event::Tick)), [place("large")], "it is idle, and may go like any other");
    }
}

#[test]
fn what_a_load_says_of_its_promise_after_its_replica_is_gone_changes_nothing() {
    let mut bench = successor(&[]);
    bench.tell(Event::Holds { place: place("gone"), lease: Lease(3), bytes: Bytes::mib(80) });
    assert_eq!(bench.core.ledger().free(cpu()), Some(Bytes::mib(100)));
    assert!(matches!(&answers(&bench.tell(unload("gone")))[..], [(9, Err(RequestError::Invalid { .. }))]));
}

#[test]
fn a_replica_that_is_being_loaded_can_be_pinned_and_unloaded_by_hand() {
    let mut bench = successor(&["a"]);
    let pin = |pinned| Event::Pin { model: "a".parse().unwrap(), pinned, asker: 1 };
    assert!(matches!(answers(&bench.tell(pin(true)))[..], [(1, Err(RequestError::Unavailable { .. }))]), "it has not spoken yet");
    assert!(matches!(answers(&bench.tell(unload("a")))[..], [(9, Err(RequestError::Unavailable { .. }))]));
    bench.tell(here("a", Ask(5), Standing::Loading(None)));
    assert_eq!(answers(&bench.tell(pin(true))), [(1, Ok(()))]);
    bench.tell(pin(false));
    assert_eq!(retired(&bench.tell(unload("a"))), [place("a")]);
}

#[test]
fn a_replica_that_has_failed_is_shown_for_its_time_and_can_be_loaded_anew() {
    let mut bench = successor(&["a"]);
    bench.tell(here("a", Ask(5), Standing::Failed));
    bench.now += FAILED_KEPT;
    assert_eq!(dismissed(&bench.tell(Event::Tick)), [place("a")]);

    let mut bench = successor(&["a"]);
    bench.tell(here("a", Ask(5), Standing::Failed));
    let effects = bench.order(profile("a"), 10);
    let hosts = effects.iter().filter(|effect| matches!(effect, Effect::Host { .. })).count();
    assert_eq!((dismissed(&effects), hosts), (vec![place("a")], 1));

    let mut bench = successor(&["a"]);
    bench.tell(here("a", Ask(5), Standing::Failed));
    bench.tell(here("a", Ask(5), Standing::Loading(None))); // it was restarted, and tries once more
    bench.now += FAILED_KEPT;
    assert_eq!(dismissed(&bench.tell(Event::Tick)), []);
}

#[test]
fn a_replica_that_had_agreed_to_go_or_had_given_up_is_dismissed() {
    let mut bench = successor(&["a"]);
    assert_eq!(dismissed(&bench.tell(here("a", Ask(5), Standing::Going))), [place("a")]);
    bench.is_gone("a");
    assert!(answers(&bench.order(profile("a"), 10)).iter().all(|(_, result)| result.is_ok()));
}

#[test]
fn nothing_is_promised_or_begun_before_every_replica_has_said_what_it_holds() {
    let mut bench = successor(&["holds", "fails", "goes", "hangs"]);
    assert_eq!(grants(&bench.room("new", 50).1), []);
    let [(7, Err(RequestError::Unavailable { message, .. }))] = &answers(&bench.order(profile("other"), 10))[..] else { panic!() };
    assert!(message.contains("has yet to say"), "{message}");
    bench.tell(resident("holds", 3, 40, true));
    bench.tell(here("fails", Ask(5), Standing::Failed));
    assert_eq!(grants(&bench.is_gone("goes")), [], "the last has not spoken");
    let mut hung = successor(&["hangs"]);
    assert_eq!(grants(&bench.tell(here("hangs", Ask(6), Standing::Loading(None)))), [(101, true)]);
    assert_eq!(grants(&hung.room("new", 50).1), []);
    hung.now += Duration::from_secs(5);
    assert_eq!(grants(&hung.tell(Event::Tick)), [(101, true)], "one that hangs is not waited for any longer");
}

#[test]
fn that_an_earlier_replica_is_gone_says_nothing_of_the_one_that_follows() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.order(profile("a"), 10);
    bench.tell(Event::Failed(place("a")));
    let effects = bench.order(Box::new(ModelProfile { pinned: true, ..*profile("a") }), 10);
    let (mut gone, mut hosted) = (None, None);
    for effect in &effects {
        match effect {
            Effect::Dismiss(_, ask) => gone = Some(*ask),
            Effect::Host { since, .. } => hosted = Some(*since),
            _ => {}
        }
    }
    let (gone, hosted) = (gone.expect("the one that failed goes"), hosted.expect("another comes"));
    assert!(gone < hosted);
    // The root ends the first at once, or is told twice, and says so when the second is there already.
    for _ in 0..2 {
        bench.tell(Event::Dismissed(place("a"), gone));
        let unloaded = bench.tell(unload("a"));
        let [(9, Err(RequestError::Invalid { message, .. }))] = &answers(&unloaded)[..] else { panic!("{unloaded:?}") };
        assert!(message.contains("is pinned"), "{message}");
    }
    // What the first says late is not the second's.
    bench.tell(here("a", Ask(0), Standing::Going));
    bench.tell(Event::Pin { model: "a".parse().unwrap(), pinned: false, asker: 1 });
    assert_eq!(retired(&bench.tell(unload("a"))), [place("a")], "nothing dismissed it");
    bench.tell(Event::Dismissed(place("a"), hosted));
    assert!(matches!(&answers(&bench.tell(unload("a")))[..], [(9, Err(RequestError::Invalid { .. }))]), "now it is gone");
}

#[test]
fn whoever_no_longer_waits_for_memory_is_forgotten() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("old"), 90);
    let (lease, _) = bench.room("gone", 50);
    let effects = bench.tell(Event::Released { place: place("gone"), lease });
    assert!(effects.contains(&Effect::Forget(lease.0)), "{effects:?}");
}
