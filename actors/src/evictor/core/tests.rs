use plexus_types::{ModelKind, ModelSource};

use super::super::plan::EvictionStrategy;
use super::*;

mod going;
mod here;
mod turns;

const MIB: u64 = 1 << 20;

fn cpu() -> DeviceId {
    "cpu-0".parse().unwrap()
}

fn place(model: &str) -> Place {
    (model.parse().unwrap(), cpu())
}

fn profile(model: &str) -> Box<ModelProfile> {
    Box::new(ModelProfile::new(model.parse().unwrap(), ModelSource::Embedded))
}

/// What the files of a model say that takes so many MiB and nothing for its context.
pub(crate) fn facts(mib: u64) -> ModelFacts {
    let footprint = Footprint { weights: Bytes::mib(mib), ..Footprint::default() };
    ModelFacts {
        kind: ModelKind::Generate,
        context_length: 512,
        cpu: footprint,
        cuda: footprint,
        file_bytes: Bytes::mib(mib),
        tools: false,
        reasoning: false,
        digest: None,
        is_copy: false,
    }
}

/// An evictor with one device of 100 MiB, and a clock.
struct Bench {
    core: EvictorCore,
    now: Instant,
    leases: u64,
}

impl Bench {
    fn new(config: EvictionConfig) -> Self {
        let mut bench = Self { core: EvictorCore::new(config, Pins::new()), now: Instant::now(), leases: 0 };
        bench.tell(Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes::mib(100) });
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.core.on_event(event, self.now);
        let used: u64 = self.core.ledger().residents().map(|(.., resident)| resident.bytes.0).sum();
        assert!(used <= 100 * MIB, "{used} bytes are promised of {}", 100 * MIB);
        effects
    }

    fn order(&mut self, profile: Box<ModelProfile>, mib: u64) -> Vec<Effect> {
        self.tell(Event::Load { profile, device: cpu(), facts: Some(facts(mib)), in_turn: false, asker: 7 })
    }

    fn room(&mut self, model: &str, mib: u64) -> (Lease, Vec<Effect>) {
        self.leases += 1;
        let lease = Lease(self.leases);
        let needs = needs_of(&profile(model), &facts(mib), cpu());
        let effects = self.tell(Event::Room { place: place(model), lease, needs, asker: self.leases });
        (lease, effects)
    }

    /// A replica answers when it was last asked to go.
    fn answers(&mut self, model: &str, verdict: Verdict) -> Vec<Effect> {
        let ask = self.core.last_ask;
        self.tell(Event::Retired { place: place(model), ask, verdict })
    }

    /// The replica that was dismissed last is gone.
    fn is_gone(&mut self, model: &str) -> Vec<Effect> {
        let ask = self.core.last_ask;
        self.tell(Event::Dismissed(place(model), ask))
    }

    /// Loads a model for which there is room, and lets it rest.
    fn load(&mut self, profile: Box<ModelProfile>, mib: u64) -> Lease {
        let model = profile.id.to_string();
        assert!(answers(&self.order(profile, mib)).iter().all(|(_, result)| result.is_ok()));
        let (lease, effects) = self.room(&model, mib);
        assert_eq!(grants(&effects).len(), 1, "{effects:?}");
        self.tell(Event::Loaded(place(&model)));
        self.now += Duration::from_secs(1);
        lease
    }
}

fn grants(effects: &[Effect]) -> Vec<(Asker, bool)> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Granted { asker, grant } = effect { Some((*asker, grant.is_ok())) } else { None })
        .collect()
}

fn answers(effects: &[Effect]) -> Vec<(Asker, Result<(), RequestError>)> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Answer { asker, result } = effect { Some((*asker, result.clone())) } else { None })
        .collect()
}

fn dismissed(effects: &[Effect]) -> Vec<Place> {
    effects.iter().filter_map(|effect| if let Effect::Dismiss(place, _) = effect { Some(place.clone()) } else { None }).collect()
}

/// What a replica says that is resident.
fn resident(model: &str, lease: u64, mib: u64, busy: bool) -> Event {
    here(model, Ask::default(), Standing::Loaded { lease: Lease(lease), bytes: Bytes::mib(mib), busy })
}

fn here(model: &str, since: Ask, standing: Standing) -> Event {
    Event::Here { place: place(model), since, profile: profile(model), standing }
}

fn retired(effects: &[Effect]) -> Vec<Place> {
    effects.iter().filter_map(|effect| if let Effect::Retire(place, _) = effect { Some(place.clone()) } else { None }).collect()
}

#[test]
fn room_is_granted_once_the_victim_has_given_its_memory_back() {
    // CX-43
    let mut bench = Bench::new(EvictionConfig::default());
    let lease = bench.load(profile("old"), 80);
    bench.order(profile("new"), 50);
    let (_, effects) = bench.room("new", 50);
    assert_eq!((retired(&effects), grants(&effects)), (vec![place("old")], vec![]));
    assert_eq!(dismissed(&bench.answers("old", Verdict::Goes)), [place("old")]);
    let effects = bench.tell(Event::Released { place: place("old"), lease });
    assert_eq!(grants(&effects), [(2, true)]);
}

#[test]
fn a_victim_that_has_got_a_request_meanwhile_stays_and_another_goes() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("older"), 45);
    bench.load(profile("newer"), 45);
    let (_, effects) = bench.room("third", 50);
    assert_eq!(retired(&effects), [place("older")]);
    let effects = bench.answers("older", Verdict::Stays);
    assert_eq!(retired(&effects), [place("newer")]);
    let effects = bench.answers("newer", Verdict::Stays);
    assert_eq!(grants(&effects), [], "nobody is left who may go: it waits");
    let effects = bench.tell(Event::Used { place: place("newer"), busy: false });
    assert_eq!(retired(&effects), [place("newer")]);
}

#[test]
fn loads_that_wait_for_room_are_served_in_order_and_never_choose_the_same_victim() {
    let mut bench = Bench::new(EvictionConfig::default());
    let old = bench.load(profile("old"), 90);
    let (_, first) = bench.room("first", 50);
    let (_, second) = bench.room("second", 40);
    assert_eq!((retired(&first), retired(&second)), (vec![place("old")], vec![]));
    let effects = bench.tell(Event::Released { place: place("old"), lease: old });
    assert_eq!(grants(&effects), [(2, true), (3, true)]);
}

#[test]
fn a_load_that_is_given_up_while_it_waits_no_longer_holds_up_the_next() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("old"), 90);
    let (lease, _) = bench.room("gone", 50);
    let (_, _) = bench.room("next", 5);
    let effects = bench.tell(Event::Released { place: place("gone"), lease });
    assert_eq!(grants(&effects), [(3, true)]);
}

#[test]
fn a_model_that_goes_while_it_is_loaded_and_comes_again_waits_for_what_its_earlier_life_holds() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.order(profile("big"), 60);
    let (first, effects) = bench.room("big", 60);
    assert_eq!(grants(&effects), [(1, true)]);
    bench.tell(Event::Unload { model: "big".parse().unwrap(), device: None, asker: 8 });
    bench.answers("big", Verdict::Goes);
    assert_eq!(answers(&bench.is_gone("big")), [(8, Ok(()))], "its device still reads its weights");

    assert!(answers(&bench.order(profile("big"), 60)).iter().all(|(_, result)| result.is_ok()));
    let (_, effects) = bench.room("big", 60);
    assert_eq!((grants(&effects), retired(&effects)), (vec![], vec![]), "it waits, and nobody is asked to go");
    let effects = bench.tell(Event::Released { place: place("big"), lease: first });
    assert_eq!(grants(&effects), [(2, true)]);
}

#[test]
fn a_failure_is_forgotten_once_other_files_are_here() {
    let mut bench = Bench::new(EvictionConfig::default());
    for model in ["mended", "other"] {
        bench.order(profile(model), 10);
        bench.tell(Event::Failed(place(model)));
    }
    let effects = bench.tell(Event::FilesCame("mended".parse().unwrap()));
    assert_eq!(dismissed(&effects), [place("mended")]);
    assert_eq!(bench.tell(Event::FilesCame("mended".parse().unwrap())), [], "it goes already");
}

#[test]
fn an_order_that_cannot_fit_is_refused_before_anything_starts() {
    // CX-53
    let mut bench = Bench::new(EvictionConfig::default());
    let effects = bench.order(profile("huge"), 200);
    let [(7, Err(RequestError::Unservable { message }))] = &answers(&effects)[..] else { panic!("{effects:?}") };
    assert!(message.contains("200 MiB needed, 100 MiB available"), "{message}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Host { .. })));
}

#[test]
fn a_model_that_is_there_is_not_loaded_twice_and_one_that_failed_is_loaded_anew() {
    // CX-42
    let mut bench = Bench::new(EvictionConfig::default());
    let hosts = |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::Host { .. })).count();
    assert_eq!(hosts(&bench.order(profile("a"), 10)), 1);
    assert_eq!(hosts(&bench.order(profile("a"), 10)), 0, "it is being loaded");
    bench.tell(Event::Failed(place("a")));
    let effects = bench.order(profile("a"), 10);
    assert!(dismissed(&effects) == [place("a")] && hosts(&effects) == 1, "{effects:?}");
}

#[test]
fn pinned_models_stay_and_go_by_hand_only_when_they_are_unpinned() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("kept"), 80);
    let effects = bench.tell(Event::Pin { model: "kept".parse().unwrap(), pinned: true, asker: 1 });
    assert!(effects.contains(&Effect::Pinned(place("kept"), true)));
    assert_eq!(grants(&bench.room("other", 50).1), [(2, false)]);
    let unload = |bench: &mut Bench| bench.tell(Event::Unload { model: "kept".parse().unwrap(), device: None, asker: 9 });
    assert!(matches!(&answers(&unload(&mut bench))[..], [(9, Err(RequestError::Invalid { .. }))]));
    bench.tell(Event::Pin { model: "kept".parse().unwrap(), pinned: false, asker: 1 });
    assert_eq!(retired(&unload(&mut bench)), [place("kept")]);
    bench.answers("kept", Verdict::Goes);
    assert_eq!(answers(&bench.is_gone("kept")), [(9, Ok(()))]);
}

#[test]
fn what_is_pinned_by_hand_is_kept_and_counts_before_what_is_listed() {
    let pin = |bench: &mut Bench, pinned| bench.tell(Event::Pin { model: "a".parse().unwrap(), pinned, asker: 1 });
    let kept =
        |effects: &[Effect]| effects.iter().find_map(|effect| if let Effect::KeepPins(pins) = effect { Some(pins.clone()) } else { None });
    let mut bench = Bench::new(EvictionConfig::default());
    assert_eq!(kept(&pin(&mut bench, true)), None, "it is not here");
    bench.load(profile("a"), 10);
    let pins = kept(&pin(&mut bench, true)).expect("it is new");
    assert_eq!(pins, Pins::from([("a".parse().unwrap(), true)]));
    assert_eq!(kept(&pin(&mut bench, true)), Some(pins), "that it could not be kept is told to nobody, so saying it again tries again");
    assert_eq!(kept(&pin(&mut bench, false)), Some(Pins::from([("a".parse().unwrap(), false)])));

    // One that is not there can be let go, and pinned only where it is.
    let mut absent = EvictorCore::new(EvictionConfig::default(), Pins::from([("a".parse().unwrap(), true)]));
    let mut told = |pinned| absent.on_event(Event::Pin { model: "a".parse().unwrap(), pinned, asker: 1 }, Instant::now());
    assert_eq!(kept(&told(true)), None);
    assert_eq!(kept(&told(false)), Some(Pins::from([("a".parse().unwrap(), false)])));
    assert_eq!(kept(&told(false)), None, "it is pinned no longer");

    // In the next life; the other way round too.
    for (by_hand, listed) in [(true, false), (false, true)] {
        let mut core = EvictorCore::new(EvictionConfig::default(), Pins::from([("a".parse().unwrap(), by_hand)]));
        core.on_event(Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes::mib(100) }, Instant::now());
        let listed = Box::new(ModelProfile { pinned: listed, ..*profile("a") });
        let effects =
            core.on_event(Event::Load { profile: listed, device: cpu(), facts: Some(facts(1)), in_turn: false, asker: 7 }, Instant::now());
        let hosted = effects.iter().find_map(|effect| if let Effect::Host { profile, .. } = effect { Some(profile.pinned) } else { None });
        assert_eq!(hosted, Some(by_hand), "{effects:?}");
        // It crashes, and says of itself what it was started with.
        let profile = Box::new(ModelProfile { pinned: !by_hand, ..*profile("a") });
        let standing = Standing::Loaded { lease: Lease(3), bytes: Bytes::mib(1), busy: false };
        let effects = core.on_event(Event::Here { place: place("a"), since: Ask(1), profile, standing }, Instant::now());
        assert!(effects.contains(&Effect::Pinned(place("a"), by_hand)), "{effects:?}");
    }
}

#[test]
fn what_nobody_uses_for_its_time_to_live_goes() {
    let config = EvictionConfig { idle_unload: Some(Duration::from_secs(10)), ..EvictionConfig::default() };
    let mut bench = Bench::new(config);
    bench.load(profile("busy"), 10);
    bench.load(profile("idle"), 10);
    bench.tell(Event::Used { place: place("busy"), busy: true });
    bench.now += Duration::from_secs(8);
    assert_eq!(retired(&bench.tell(Event::Tick)), []);
    bench.now += Duration::from_secs(2);
    assert_eq!(retired(&bench.tell(Event::Tick)), [place("idle")]);
}

#[test]
fn a_device_is_opened_anew_after_so_many_models_have_gone_once_nothing_runs() {
    // CX-03
    let mut bench = Bench::new(EvictionConfig { defrag_after_cycles: 2, ..EvictionConfig::default() });
    for model in ["a", "b"] {
        let lease = bench.load(profile(model), 10);
        bench.tell(Event::Released { place: place(model), lease });
    }
    bench.load(profile("c"), 10);
    bench.tell(Event::Used { place: place("c"), busy: true });
    let restarts = |effects: Vec<Effect>| effects.iter().filter(|effect| matches!(effect, Effect::RestartDevice(_))).count();
    assert_eq!(restarts(bench.tell(Event::Tick)), 0, "something runs");
    bench.tell(Event::Used { place: place("c"), busy: false });
    assert_eq!(restarts(bench.tell(Event::Tick)), 1);
    assert_eq!(restarts(bench.tell(Event::Tick)), 0, "it is counted anew");
}

#[test]
fn what_a_restart_of_the_device_itself_takes_away_is_no_cycle_and_restarts_do_not_follow_each_other() {
    // CX-03
    let restarts = |effects: Vec<Effect>| effects.iter().filter(|effect| matches!(effect, Effect::RestartDevice(_))).count();
    let up = || Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes::mib(100) };
    for device_first in [true, false] {
        let mut bench = Bench::new(EvictionConfig { defrag_after_cycles: 2, ..EvictionConfig::default() });
        let mut there: Vec<(&str, Lease)> = ["a", "b", "c"].map(|model| (model, bench.load(profile(model), 10))).into();
        for model in ["x", "y"] {
            let lease = bench.load(profile(model), 10);
            bench.tell(Event::Released { place: place(model), lease });
        }
        assert_eq!(restarts(bench.tell(Event::Tick)), 1);
        for round in 0..if device_first { 3 } else { 1 } {
            if device_first {
                bench.tell(up());
            }
            for (model, lease) in &there {
                bench.tell(Event::Released { place: place(model), lease: *lease });
                assert_eq!(restarts(bench.tell(Event::Tick)), 0, "round {round}");
            }
            if !device_first {
                bench.tell(up());
            }
            // They load themselves again, as they do whenever the device is lost.
            for (model, lease) in &mut there {
                let (again, effects) = bench.room(model, 10);
                assert_eq!(grants(&effects).len(), 1);
                bench.tell(Event::Loaded(place(model)));
                *lease = again;
            }
            assert_eq!(restarts(bench.tell(Event::Tick)), 0, "round {round}");
        }
        bench.now += FIRST_USE;
        for (model, lease) in &there[..2] {
            bench.tell(Event::Released { place: place(model), lease: *lease });
        }
        assert_eq!(restarts(bench.tell(Event::Tick)), 1, "what comes and goes after it counts again");
    }
}

#[test]
fn a_class_above_is_never_displaced_and_by_priority_the_lowest_goes() {
    // CX-02, CX-26
    let class = |model: &str, residency_priority| Box::new(ModelProfile { residency_priority, ..*profile(model) });
    let policy = EvictionPolicy { strategy: EvictionStrategy::Priority, ..EvictionPolicy::default() };
    let mut bench = Bench::new(EvictionConfig { policy, ..EvictionConfig::default() });
    bench.load(class("high", 200), 45);
    bench.load(class("low", 50), 45);
    bench.order(class("new", 100), 50);
    assert_eq!(retired(&bench.room("new", 50).1), [place("low")]);
    let refused = bench.order(class("larger", 100), 99);
    assert!(matches!(&answers(&refused)[..], [(7, Err(RequestError::Unservable { .. }))]), "the higher class stays: {refused:?}");
}

#[test]
fn what_is_held_is_known_even_if_the_model_says_so_before_its_device() {
    let mut core = EvictorCore::new(EvictionConfig::default(), Pins::new());
    let now = Instant::now();
    core.on_event(resident("a", 3, 60, false), now);
    assert_eq!(core.ledger().total(cpu()), None);
    core.on_event(Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes::mib(100) }, now);
    assert_eq!(core.ledger().free(cpu()), Some(Bytes::mib(40)));
}

#[test]
fn an_evictor_that_was_restarted_learns_what_is_held() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.tell(resident("a", 3, 60, true));
    assert_eq!(grants(&bench.room("b", 50).1), [], "it is in use");
    assert_eq!(retired(&bench.tell(Event::Used { place: place("a"), busy: false })), [place("a")]);
}

#[test]
fn whoever_waits_for_others_lets_pass_who_needs_no_more_than_there_is() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("busy"), 60);
    bench.tell(Event::Used { place: place("busy"), busy: true });
    assert_eq!(grants(&bench.room("large", 60).1), [], "it waits");
    assert_eq!(grants(&bench.room("small", 30).1), [(3, true)]);
}

#[test]
fn a_load_that_waited_too_long_for_others_is_given_up_to_be_placed_anew_and_not_shown_as_failed() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(profile("busy"), 60);
    bench.order(profile("new"), 60);
    bench.tell(Event::Used { place: place("busy"), busy: true });
    assert_eq!(grants(&bench.room("new", 60).1), []);
    bench.now += super::turns::ENDS_WITHIN;
    let effects = bench.tell(Event::Tick);
    let no_room = effects.iter().find_map(|effect| if let Effect::Granted { grant: Err(why), .. } = effect { Some(why) } else { None });
    assert!(no_room.is_some_and(NoRoom::may_pass), "{effects:?}");
    assert_eq!(dismissed(&bench.tell(Event::GaveUp(place("new")))), [place("new")]);
    let again = bench.order(profile("new"), 20);
    let [(7, Err(RequestError::Unavailable { message, .. }))] = &answers(&again)[..] else { panic!("{again:?}") };
    assert!(message.contains("just going"), "{message}");
    bench.is_gone("new");
    assert!(matches!(answers(&bench.order(profile("new"), 20))[..], [(7, Ok(()))]));
}

#[test]
fn a_model_that_was_just_loaded_stays_for_its_first_request_and_keeps_nobody_waiting_for_long_without_one() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.order(profile("first"), 60);
    bench.room("first", 60);
    bench.tell(Event::Loaded(place("first")));
    assert_eq!(retired(&bench.room("second", 60).1), [], "the first has not answered yet");
    bench.tell(Event::Used { place: place("first"), busy: true });
    assert_eq!(retired(&bench.tell(Event::Used { place: place("first"), busy: false })), [place("first")]);

    let mut bench = Bench::new(EvictionConfig::default());
    bench.order(profile("spare"), 60);
    bench.room("spare", 60);
    bench.tell(Event::Loaded(place("spare")));
    bench.room("second", 60);
    bench.now += FIRST_USE;
    assert_eq!(retired(&bench.tell(Event::Tick)), [place("spare")]);
}

#[test]
fn what_could_never_fit_beside_what_stays_is_known_before_it_is_fetched() {
    let mut bench = Bench::new(EvictionConfig::default());
    bench.load(Box::new(ModelProfile { pinned: true, ..*profile("stays") }), 40);
    bench.load(profile("goes"), 30);
    let could_fit = |bench: &Bench, mib| bench.core.could_fit(&place("new"), Bytes::mib(mib), bench.now);
    assert_eq!(could_fit(&bench, 60), Ok(()), "the idle one would go");
    let refused = could_fit(&bench, 61).unwrap_err();
    assert_eq!(refused.to_string(), "61.0 MiB needed, 60.0 MiB available ('stays' is pinned)");
    assert!(!refused.may_pass());
    bench.tell(Event::Used { place: place("goes"), busy: true });
    assert_eq!(could_fit(&bench, 60), Ok(()), "it will be idle before long");
    assert!(could_fit(&bench, 101).is_err(), "more than the device has");
    assert_eq!(bench.core.ledger().residents().count(), 2, "nobody went for the questions");
}
