use plexus_types::{Footprint, ModelKind};

use super::super::plan::Stays;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn cpu() -> DeviceId {
    "cpu-0".parse().unwrap()
}

fn place(id: &str) -> Place {
    (id.parse().unwrap(), cpu())
}

fn profile(id: &str) -> Box<ModelProfile> {
    Box::new(ModelProfile::new(id.parse().unwrap(), "embedded:pip".parse().unwrap()))
}

/// What a model of so many bytes and a context that costs nothing says of itself.
fn facts(bytes: u64) -> ModelFacts {
    let footprint = Footprint { weights: Bytes(bytes), ..Footprint::default() };
    ModelFacts {
        kind: ModelKind::Generate,
        context_length: 512,
        cpu: footprint,
        cuda: footprint,
        file_bytes: Bytes(bytes),
        tools: false,
        reasoning: false,
    }
}

/// An evictor of one device with 100 bytes.
struct Bench {
    core: EvictorCore,
    now: Instant,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let mut core = EvictorCore::new(EvictionConfig::default());
        let now = Instant::now();
        core.on_event(Event::DeviceUp { id: cpu(), name: "test".into(), total: Bytes(100) }, now);
        Self { core, now, next: 0 }
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = self.core.on_event(event, self.now);
        effects.retain(|effect| !matches!(effect, Effect::Publish(_)));
        effects
    }

    /// Tells it to load a model; what it is told in return.
    fn load(&mut self, id: &str, bytes: u64) -> Result<(), RequestError> {
        self.next += 1;
        let event = Event::Load { profile: profile(id), device: cpu(), facts: Some(facts(bytes)), asker: self.next };
        let answer =
            self.on(event).into_iter().find_map(|effect| if let Effect::Answer { result, .. } = effect { Some(result) } else { None });
        answer.expect("every order is answered")
    }

    /// A replica that was started asks for its memory; the number of its promise is that of the question.
    fn room(&mut self, id: &str, bytes: u64) -> Vec<Effect> {
        self.next += 1;
        let needs = needs_of(&profile(id), &facts(bytes), cpu());
        self.on(Event::Room { place: place(id), lease: Lease(self.next), needs, asker: self.next })
    }

    /// Loads a model to its end, and lets it rest for long.
    fn resident(&mut self, id: &str, bytes: u64) -> Lease {
        self.load(id, bytes).unwrap();
        assert!(granted(&self.room(id, bytes)), "there is room for {id}");
        self.on(Event::Loaded(place(id)));
        self.now += 60 * SECOND;
        Lease(self.next)
    }
}

fn granted(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Granted { grant: Ok(_), .. }))
}

fn refused(effects: &[Effect]) -> Option<&NoRoom> {
    effects.iter().find_map(|effect| if let Effect::Granted { grant: Err(why), .. } = effect { Some(why) } else { None })
}

#[test]
fn a_load_gets_its_memory_once_its_victim_has_returned_its_own() {
    // CX-43
    let mut bench = Bench::new();
    let lease = bench.resident("old", 60);
    bench.load("new", 60).unwrap();
    assert_eq!(bench.room("new", 60), [Effect::Retire(place("old"))]);
    assert_eq!(bench.on(Event::Retired { place: place("old"), agreed: true }), [Effect::Dismiss(place("old"))]);
    assert!(granted(&bench.on(Event::Released { place: place("old"), lease })));
    assert_eq!(bench.core.ledger().free(cpu()), Some(Bytes(40)));
}

#[test]
fn a_load_whose_victim_turns_out_to_be_in_use_waits_until_it_is_idle() {
    // CX-43
    let mut bench = Bench::new();
    bench.resident("busy", 60);
    bench.load("new", 60).unwrap();
    bench.room("new", 60);
    assert_eq!(bench.on(Event::Retired { place: place("busy"), agreed: false }), []);
    assert_eq!(bench.on(Event::Used { place: place("busy"), busy: false }), [Effect::Retire(place("busy"))]);
}

#[test]
fn whoever_waits_for_others_lets_pass_who_needs_no_more_than_there_is() {
    let mut bench = Bench::new();
    bench.resident("busy", 60);
    bench.on(Event::Used { place: place("busy"), busy: true });
    assert_eq!(bench.room("large", 60), [], "it waits");
    assert!(granted(&bench.room("small", 30)));
}

#[test]
fn a_load_that_waited_too_long_for_others_is_given_up_and_not_shown_as_failed() {
    let mut bench = Bench::new();
    bench.resident("busy", 60);
    bench.load("new", 60).unwrap();
    bench.on(Event::Used { place: place("busy"), busy: true });
    assert_eq!(bench.room("new", 60), []);
    bench.now += PATIENCE;
    let effects = bench.on(Event::Tick);
    let no_room = refused(&effects).expect("it has waited long enough");
    assert!(no_room.may_pass(), "it is placed anew");
    assert_eq!(no_room.stays, [("busy".parse().unwrap(), Stays::InUse)]);
    assert_eq!(bench.on(Event::GaveUp(place("new"))), [Effect::Dismiss(place("new"))]);
    let again = bench.load("new", 20).unwrap_err();
    assert!(again.to_string().contains("just going"), "{again}");
    bench.on(Event::Dismissed(place("new")));
    bench.load("new", 20).unwrap();
}

#[test]
fn what_does_not_fit_even_alone_is_refused_at_once() {
    // CX-53
    let mut bench = Bench::new();
    let why = bench.load("huge", 101).unwrap_err();
    assert!(why.to_string().contains("101 B needed, 100 B available"), "{why}");
    assert!(refused(&bench.room("huge", 101)).is_some_and(|no_room| !no_room.may_pass()));
}

#[test]
fn a_model_that_was_just_loaded_stays_for_its_first_request() {
    let mut bench = Bench::new();
    bench.load("first", 60).unwrap();
    bench.room("first", 60);
    bench.on(Event::Loaded(place("first")));
    assert_eq!(bench.room("second", 60), [], "the first has not answered yet");
    bench.on(Event::Used { place: place("first"), busy: true });
    assert_eq!(bench.on(Event::Used { place: place("first"), busy: false }), [Effect::Retire(place("first"))]);
}

#[test]
fn a_model_that_is_loaded_and_never_asked_keeps_nobody_waiting_for_long() {
    let mut bench = Bench::new();
    bench.load("spare", 60).unwrap();
    bench.room("spare", 60);
    bench.on(Event::Loaded(place("spare")));
    bench.room("second", 60);
    bench.now += FIRST_USE;
    assert_eq!(bench.on(Event::Tick), [Effect::Retire(place("spare"))]);
}
