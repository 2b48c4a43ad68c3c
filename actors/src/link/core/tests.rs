//! The link actor's decisions, without sockets.

use std::time::Duration;

use plexus_types::{NodeFacts, NodeId, NodeName};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::{Effect, Event, LinkCore, LinkId};
use crate::inbound::ClusterChange;
use crate::membership::NetTiming;

const MS: Duration = Duration::from_millis(1);

fn facts(id: &str) -> NodeFacts {
    let at = |port| ([127, 0, 0, 1], port).into();
    NodeFacts { id: id.parse().expect("a node id"), version: "1".to_owned(), link: at(1), http: at(2), gossip: at(3) }
}

fn id(text: &str) -> NodeId {
    text.parse().expect("a node id")
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a node name")
}

/// A core with a clock of its own, whose ticks come in time unless time is skipped.
struct Bench {
    core: LinkCore,
    now: Instant,
    rng: SmallRng,
}

impl Bench {
    fn new(me: &str) -> Self {
        let now = Instant::now();
        Self { core: LinkCore::new(name(me), NetTiming::default()), now, rng: SmallRng::seed_from_u64(1) }
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        self.core.on_event(event, self.now, &mut self.rng)
    }

    fn alive(&mut self, node: &str) -> Vec<Effect> {
        self.on(Event::Cluster(ClusterChange::Up(facts(node))))
    }

    /// Lets time pass, tick by tick; `answers` says which links answer their pings.
    fn pass(&mut self, time: Duration, answers: impl Fn(LinkId) -> bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..time.as_millis() / 50 {
            self.now += 50 * MS;
            for effect in self.on(Event::Tick) {
                if let Effect::Ping(link) = effect {
                    if answers(link) {
                        effects.extend(self.on(Event::Pong(link)));
                    }
                } else {
                    effects.push(effect);
                }
            }
        }
        effects
    }

    /// Brings a link up.
    fn linked(&mut self, link: u64, node: &str) {
        let link = LinkId(link);
        let name = id(node).name;
        let dialed = self.core.me < name;
        assert_eq!(self.on(Event::Opened { link, name, dialed }), []);
        let effects = self.on(Event::Ready { link, id: id(node) });
        assert!(effects.contains(&Effect::Greet { link, id: id(node) }), "{effects:?}");
        self.on(Event::Greeted(link));
    }
}

fn cuts(effects: &[Effect]) -> Vec<u64> {
    effects.iter().filter_map(|effect| if let Effect::Cut { link, .. } = effect { Some(link.0) } else { None }).collect()
}

fn dials(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Dial(_))).count()
}

#[test]
fn the_lesser_name_dials_at_once_and_the_greater_waits() {
    let mut bench = Bench::new("b");
    assert_eq!(bench.alive("c#1"), [Effect::Dial(facts("c#1"))]);
    assert_eq!(bench.alive("a#1"), []);
    assert_eq!(bench.alive("b#9"), [], "its own name");
    assert_eq!(dials(&bench.pass(5000 * MS, |_| true)), 0, "the dial is still under way");
}

#[test]
fn a_node_that_cannot_be_dialed_is_dialed_again_less_and_less_often() {
    let mut bench = Bench::new("a");
    bench.alive("b#1");
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.on(Event::DialFailed(name("b")));
        let failed = bench.now;
        while dials(&bench.pass(50 * MS, |_| true)) == 0 {}
        waits.push(bench.now - failed);
    }
    assert!((100 * MS..=300 * MS).contains(&waits[0]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 2050 * MS) && waits[4..].iter().any(|wait| *wait > 500 * MS), "{waits:?}");
    // A new life begins afresh.
    assert_eq!(bench.alive("b#2"), [Effect::Dial(facts("b#2"))]);
}

#[test]
fn a_link_that_ended_is_dialed_again_soon() {
    let mut bench = Bench::new("a");
    bench.alive("b#1");
    bench.linked(1, "b#1");
    assert_eq!(bench.on(Event::Ended(LinkId(1))), []);
    assert_eq!(dials(&bench.pass(300 * MS, |_| true)), 1);
}

#[test]
fn a_peer_that_answers_no_pings_is_cut_off_after_a_second_and_a_quarter() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.linked(1, "a#1");
    assert!(cuts(&bench.pass(10_000 * MS, |_| true)).is_empty());
    // The last pong may be an interval old.
    assert!(cuts(&bench.pass(1000 * MS, |_| false)).is_empty());
    assert_eq!(cuts(&bench.pass(350 * MS, |_| false)), [1]);
}

#[test]
fn a_node_that_was_stopped_itself_cuts_nobody_off() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.linked(1, "a#1");
    bench.pass(1000 * MS, |_| true);
    bench.now += 10_000 * MS;
    assert!(cuts(&bench.on(Event::Tick)).is_empty());
    assert_eq!(bench.core.doubts, 1);
    assert!(cuts(&bench.pass(1200 * MS, |_| false)).is_empty(), "it has all its time again");
    assert_eq!(cuts(&bench.pass(300 * MS, |_| false)), [1], "but not for ever");
}

#[test]
fn at_most_half_of_the_peers_are_cut_off_for_silence() {
    let mut bench = Bench::new("z");
    for (link, node) in [(1, "a#1"), (2, "b#1"), (3, "c#1")] {
        bench.alive(node);
        bench.linked(link, node);
    }
    assert_eq!(cuts(&bench.pass(10_000 * MS, |_| false)).len(), 2);
    // When gossip agrees, the last one goes too.
    let gone: Vec<u64> =
        ["a#1", "b#1", "c#1"].iter().flat_map(|node| cuts(&bench.on(Event::Cluster(ClusterChange::Gone(id(node)))))).collect();
    assert_eq!(gone.len(), 1);
}

#[test]
fn what_gossip_calls_gone_is_cut_and_no_longer_known() {
    let mut bench = Bench::new("a");
    bench.alive("b#1");
    bench.linked(1, "b#1");
    assert!(cuts(&bench.on(Event::Cluster(ClusterChange::Gone(id("b#0"))))).is_empty(), "a former life");
    assert_eq!(cuts(&bench.on(Event::Cluster(ClusterChange::Gone(id("b#1"))))), [1]);
    assert_eq!(bench.core.names().count(), 0);
    assert_eq!(dials(&bench.pass(5000 * MS, |_| true)), 0);
}

#[test]
fn a_newer_life_takes_the_place_of_the_older_one_and_never_the_other_way() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.linked(1, "a#1");
    assert_eq!(bench.on(Event::Opened { link: LinkId(2), name: name("a"), dialed: false }), []);
    assert_eq!(cuts(&bench.on(Event::Ready { link: LinkId(2), id: id("a#2") })), [1]);
    bench.on(Event::Greeted(LinkId(2)));
    bench.on(Event::Opened { link: LinkId(3), name: name("a"), dialed: false });
    assert_eq!(cuts(&bench.on(Event::Ready { link: LinkId(3), id: id("a#1") })), [3]);
}

#[test]
fn a_silent_link_does_not_stand_in_the_way_of_a_new_one() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.linked(1, "a#1");
    bench.pass(700 * MS, |_| false);
    assert_eq!(cuts(&bench.on(Event::Opened { link: LinkId(2), name: name("a"), dialed: false })), [1]);
    let mut healthy = Bench::new("b");
    healthy.alive("a#1");
    healthy.linked(1, "a#1");
    healthy.pass(700 * MS, |_| true);
    assert!(cuts(&healthy.on(Event::Opened { link: LinkId(2), name: name("a"), dialed: false })).is_empty());
}

#[test]
fn a_session_must_claim_the_name_of_its_certificate() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.on(Event::Opened { link: LinkId(1), name: name("a"), dialed: false });
    assert_eq!(cuts(&bench.on(Event::Ready { link: LinkId(1), id: id("c#1") })), [1]);
}

#[test]
fn a_link_that_is_not_greeted_in_time_is_cut() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.on(Event::Opened { link: LinkId(1), name: name("a"), dialed: false });
    assert_eq!(cuts(&bench.pass(3100 * MS, |_| true)), [1], "no session");
    bench.on(Event::Opened { link: LinkId(2), name: name("a"), dialed: false });
    bench.on(Event::Ready { link: LinkId(2), id: id("a#1") });
    let effects = bench.pass(3100 * MS, |_| true);
    assert!(effects.iter().filter(|effect| matches!(effect, Effect::Greet { .. })).count() > 5, "it is greeted until it answers");
    assert_eq!(cuts(&effects), [2]);
}

#[test]
fn changes_that_were_missed_are_caught_up_with() {
    let mut bench = Bench::new("a");
    bench.alive("b#1");
    bench.linked(1, "b#1");
    assert_eq!(bench.on(Event::Known(vec![facts("b#1")])), []);
    let effects = bench.on(Event::Known(vec![facts("c#1")]));
    assert_eq!((cuts(&effects), dials(&effects)), (vec![1], 1));
}

#[test]
fn a_link_that_opens_after_its_node_is_gone_is_cut() {
    let mut bench = Bench::new("b");
    bench.alive("a#1");
    bench.alive("c#1");
    bench.linked(2, "c#1");
    bench.on(Event::Cluster(ClusterChange::Gone(id("a#1"))));
    bench.linked(1, "a#1"); // its handshake was under way
    assert_eq!(cuts(&bench.on(Event::Known(vec![facts("c#1")]))), [1]);
    assert!(cuts(&bench.on(Event::Known(vec![facts("c#1")]))).is_empty());
}

fn any_event() -> impl Strategy<Value = Event> {
    let link = (0u64..5).prop_map(LinkId);
    let node = (prop::sample::select(vec!["a", "m", "z"]), 1u64..3).prop_map(|(name, generation)| facts(&format!("{name}#{generation}")));
    prop_oneof![
        6 => Just(Event::Tick),
        3 => node.clone().prop_map(|facts| Event::Cluster(ClusterChange::Up(facts))),
        1 => node.clone().prop_map(|facts| Event::Cluster(ClusterChange::Gone(facts.id))),
        1 => prop::collection::vec(node.clone(), 0..3).prop_map(Event::Known),
        1 => node.clone().prop_map(|facts| Event::DialFailed(facts.id.name)),
        3 => (link.clone(), node.clone(), any::<bool>()).prop_map(|(link, facts, dialed)| Event::Opened { link, name: facts.id.name, dialed }),
        3 => (link.clone(), node).prop_map(|(link, facts)| Event::Ready { link, id: facts.id }),
        2 => link.clone().prop_map(Event::Greeted),
        2 => link.clone().prop_map(Event::Pong),
        1 => link.prop_map(Event::Ended),
    ]
}

proptest! {
    /// Whatever happens: a link that is cut is forgotten, nobody dials itself or a greater name's lesser, two ready links never go by one name.
    #[test]
    fn any_sequence_of_events_keeps_the_rules(events in prop::collection::vec((any_event(), 0u64..400), 0..200)) {
        let mut bench = Bench::new("m");
        for (event, pause) in events {
            bench.now += Duration::from_millis(pause);
            for effect in bench.on(event) {
                match effect {
                    Effect::Cut { link, .. } => prop_assert!(!bench.core.links.contains_key(&link)),
                    Effect::Dial(facts) => prop_assert!(facts.id.name > name("m")),
                    Effect::Greet { .. } | Effect::Ping(_) => {}
                }
            }
            let mut ready: Vec<&NodeName> = bench.core.links.values().filter(|link| link.id.is_some()).map(|link| &link.name).collect();
            let before = ready.len();
            ready.dedup();
            ready.sort();
            ready.dedup();
            prop_assert_eq!(ready.len(), before);
            prop_assert!(bench.core.ejected.len() <= 3);
        }
    }
}
