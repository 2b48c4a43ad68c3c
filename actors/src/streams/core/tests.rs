use std::sync::Arc;
use std::time::Duration;

use plexus_types::{Delta, GenerateRequest, Prompt, Sampling};
use proptest::prelude::*;

use super::super::search::RECOVERY_MAX;
use super::*;
use crate::router::view::tests::facts;

fn config() -> StreamsConfig {
    StreamsConfig {
        accept_timeout: Duration::from_secs(2),
        first_token_timeout: Duration::from_secs(60),
        token_timeout: Duration::from_secs(10),
        client_timeout: Duration::from_secs(300),
        load_timeout: Duration::from_secs(10),
        attempts_max: 3,
        window_tokens: 8,
        prompt_time_max: None,
    }
}

fn stream() -> StreamCore {
    stream_at(Instant::now())
}

fn stream_at(now: Instant) -> StreamCore {
    let request = GenerateRequest {
        principal: None,
        model: "pip".parse().unwrap(),
        prompt: Prompt::Text("hello".into()),
        sampling: Sampling::default(),
        max_tokens: None,
        stop: vec![],
        constraint: None,
        logprobs: None,
    };
    StreamCore::new(RequestId(1), Journal { request: Arc::new(request), seed: 7, prompt_ids: vec![], sampled_ids: vec![] }, now)
}

fn on(name: &str) -> ReplicaId {
    ReplicaId { node: facts(name).id, device: "cpu-0".parse().unwrap(), model: "pip".parse().unwrap() }
}

fn tokens(index: u32, ids: &[u32], text: &str) -> StreamEvent {
    StreamEvent::Tokens { index, ids: ids.to_vec(), deltas: Delta::of_text(text.into()), logprobs: Vec::new() }
}

/// A stream that "a" has accepted, in attempt 1.
fn accepted(now: Instant) -> StreamCore {
    let mut stream = stream();
    stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
    stream.on_event(Event::Replica(Attempt(1), StreamEvent::Accepted { prompt_ids: vec![1, 2, 3] }), &config(), now);
    stream
}

fn lost() -> RequestError {
    RequestError::Lost { message: "x".into() }
}

#[test]
fn a_replica_that_dies_before_the_first_token_is_replaced_and_the_client_hears_nothing() {
    let now = Instant::now();
    let mut stream = accepted(now);
    let effects = stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(1) }, Effect::AskRouter]);
    let effects = stream.on_event(Event::Routed(Routed::To(on("b"))), &config(), now);
    assert_eq!(effects, [Effect::Send { replica: on("b"), attempt: Attempt(2), credit_until: 8 }]);
    let effects = stream.on_event(Event::Replica(Attempt(2), StreamEvent::Accepted { prompt_ids: vec![1, 2, 3] }), &config(), now);
    assert_eq!(effects, [], "the client has been told of the start already");
}

#[test]
fn a_replica_that_says_that_the_request_waits_is_not_given_up_before_or_after_tokens() {
    let waits = || Event::Replica(Attempt(1), StreamEvent::Accepted { prompt_ids: Vec::new() });
    let mut now = Instant::now();
    let mut stream = accepted(now);
    for _ in 0..10 {
        now += Duration::from_secs(50);
        assert_eq!(stream.on_event(waits(), &config(), now), []);
        assert_eq!(stream.on_event(Event::Clock, &config(), now + Duration::from_secs(1)), []);
    }
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5], "five")), &config(), now);
    for _ in 0..10 {
        now += Duration::from_secs(9);
        assert_eq!(stream.on_event(Event::Clock, &config(), now), []);
        assert_eq!(stream.on_event(waits(), &config(), now), []);
    }
    assert_eq!(stream.journal.prompt_ids, [1, 2, 3]);
    let effects = stream.on_event(Event::Clock, &config(), now + config().first_token_timeout);
    assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(1) }, Effect::AskRouter], "silence is a loss as before");
}

#[test]
fn a_replica_that_never_accepts_is_given_up_after_the_deadline() {
    let now = Instant::now();
    let mut stream = stream();
    stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
    assert_eq!(stream.on_event(Event::Clock, &config(), now + Duration::from_secs(1)), []);
    let effects = stream.on_event(Event::Clock, &config(), now + Duration::from_secs(2));
    assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(1) }, Effect::AskRouter]);
}

#[test]
fn a_replica_that_has_the_request_may_take_longer_to_read_its_prompt_but_not_for_ever() {
    let now = Instant::now();
    let mut stream = stream();
    stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
    let there = || Event::Replica(Attempt(1), StreamEvent::Accepted { prompt_ids: Vec::new() });
    assert_eq!(stream.on_event(there(), &config(), now + Duration::from_secs(1)), [], "nothing has started yet");
    assert_eq!(stream.on_event(Event::Clock, &config(), now + Duration::from_secs(30)), []);
    stream.on_event(there(), &config(), now + Duration::from_secs(30));
    let effects = stream.on_event(Event::Clock, &config(), now + Duration::from_secs(61));
    assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(1) }, Effect::AskRouter]);
}

#[test]
fn a_refusal_that_every_replica_would_repeat_ends_the_stream() {
    let now = Instant::now();
    let mut stream = stream();
    stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
    let error = RequestError::ContextLength { prompt_tokens: 9, max_tokens: 5 };
    let effects = stream.on_event(Event::Replica(Attempt(1), StreamEvent::Failed(error.clone())), &config(), now);
    assert_eq!(effects[1..], [Effect::Deliver(GenerateEvent::Failed(error)), Effect::End]);
}

#[test]
fn a_router_that_never_answers_is_asked_again_and_not_for_ever() {
    let begun = Instant::now();
    let mut stream = stream_at(begun);
    assert_eq!(stream.deadline(), Some(begun + ROUTE_TIMEOUT), "no wait is without a deadline");
    assert_eq!(stream.on_event(Event::Clock, &config(), begun + ROUTE_TIMEOUT / 2), []);
    let mut now = begun + ROUTE_TIMEOUT;
    let first_silence = now;
    let effects = loop {
        let effects = stream.on_event(Event::Clock, &config(), now);
        if effects != [Effect::AskRouter] {
            break effects;
        }
        now = stream.deadline().expect("it waits for an answer");
    };
    assert_eq!(now, first_silence + RECOVERY_MAX);
    let [Effect::Deliver(GenerateEvent::Failed(RequestError::Unavailable { message, .. })), Effect::End] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(message.contains("router"), "{message}");
}

#[test]
fn a_router_that_answers_late_and_then_again_is_heard_once_and_keeps_in_mind_who_has_failed() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    assert_eq!(stream.on_event(Event::Clock, &config(), now + ROUTE_TIMEOUT), [Effect::AskRouter]);
    assert_eq!(stream.search.tried, [on("a")], "that the router is silent says nothing of replicas");
    let effects = stream.on_event(Event::Routed(Routed::To(on("b"))), &config(), now + ROUTE_TIMEOUT);
    assert_eq!(effects, [Effect::Send { replica: on("b"), attempt: Attempt(2), credit_until: 8 }]);
    assert_eq!(stream.on_event(Event::Routed(Routed::To(on("c"))), &config(), now + ROUTE_TIMEOUT), [], "the second answer");
}

fn none_now() -> Event {
    Event::Routed(Routed::Refused(RequestError::soon("none")))
}

#[test]
fn a_replica_that_comes_back_soon_is_waited_for_and_asked_again() {
    let mut now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), StreamEvent::Failed(lost())), &config(), now);
    assert_eq!(stream.search.tried, [on("a")]);
    assert_eq!(stream.on_event(none_now(), &config(), now), []);
    now += RECOVERY_POLL;
    assert_eq!(stream.on_event(Event::Clock, &config(), now), [Effect::AskRouter]);
    assert_eq!(stream.search.tried, [], "its next life has not failed");
    let effects = stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
    assert_eq!(effects, [Effect::Send { replica: on("a"), attempt: Attempt(2), credit_until: 8 }]);
}

#[test]
fn when_no_replica_comes_back_the_client_hears_what_went_wrong_with_the_last() {
    let mut now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), StreamEvent::Failed(lost())), &config(), now);
    let begun = now;
    let effects = loop {
        let effects = stream.on_event(none_now(), &config(), now);
        if !effects.is_empty() {
            break effects;
        }
        now += RECOVERY_POLL;
        assert_eq!(stream.on_event(Event::Clock, &config(), now), [Effect::AskRouter]);
    };
    assert_eq!(now - begun, RECOVERY_MAX);
    assert_eq!(effects, [Effect::Deliver(GenerateEvent::Failed(lost())), Effect::End]);
}

#[test]
fn a_full_queue_is_told_at_once_and_not_waited_for() {
    // CX-93
    let now = Instant::now();
    let mut stream = accepted(now);
    let full = RequestError::Overloaded { message: "full".into(), retry_after: Duration::from_secs(1) };
    stream.on_event(Event::Replica(Attempt(1), StreamEvent::Failed(full.clone())), &config(), now);
    assert_eq!(stream.on_event(none_now(), &config(), now), [Effect::Deliver(GenerateEvent::Failed(full)), Effect::End]);
}

#[test]
fn attempts_are_bounded() {
    let now = Instant::now();
    let mut stream = stream();
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        stream.on_event(Event::Routed(Routed::To(on(name))), &config(), now);
        let effects = stream.on_event(Event::Replica(Attempt(i as u32 + 1), StreamEvent::Failed(lost())), &config(), now);
        assert_eq!(effects.contains(&Effect::AskRouter), i < 2);
    }
}

#[test]
fn a_stream_that_makes_progress_survives_any_number_of_losses() {
    let now = Instant::now();
    let mut stream = stream();
    for i in 0..10 {
        stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
        stream.on_event(Event::Replica(Attempt(i + 1), StreamEvent::Accepted { prompt_ids: vec![1] }), &config(), now);
        stream.on_event(Event::Replica(Attempt(i + 1), tokens(i, &[7], "x")), &config(), now);
        let effects = stream.on_event(Event::Replica(Attempt(i + 1), StreamEvent::Failed(lost())), &config(), now);
        assert!(effects.contains(&Effect::AskRouter), "loss {i}");
    }
}

#[test]
fn what_a_former_attempt_still_says_is_ignored() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    stream.on_event(Event::Routed(Routed::To(on("b"))), &config(), now);
    assert_eq!(stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5], "late")), &config(), now), []);
    assert!(stream.journal.sampled_ids.is_empty());
}

#[test]
fn after_the_first_token_the_journal_goes_on_elsewhere_from_the_next_index() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5, 6], "ab")), &config(), now);
    stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    stream.on_event(Event::Routed(Routed::To(on("b"))), &config(), now);
    assert_eq!(stream.journal.sampled_ids, [5, 6]);
    let effects = stream.on_event(Event::Replica(Attempt(2), tokens(2, &[7], "c")), &config(), now);
    assert_eq!(
        effects,
        [Effect::Deliver(GenerateEvent::Tokens { deltas: vec![Delta::Text("c".into())], tokens: 1, logprobs: Vec::new() })]
    );
}

#[test]
fn a_gap_in_the_tokens_counts_as_a_lost_replica_and_a_duplicate_as_nothing() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5, 6], "ab")), &config(), now);
    assert_eq!(stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5, 6], "ab")), &config(), now), []);
    let effects = stream.on_event(Event::Replica(Attempt(1), tokens(3, &[8], "d")), &config(), now);
    assert!(effects.contains(&Effect::AskRouter));
}

#[test]
fn tokens_or_an_end_before_the_acceptance_are_a_gap_so_that_the_client_always_hears_of_the_start_first() {
    let now = Instant::now();
    let done = StreamEvent::Done { last_index: 0, reason: FinishReason::Stop, usage: Usage::default() };
    for event in [tokens(0, &[5], "a"), done] {
        let mut stream = stream();
        stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
        let effects = stream.on_event(Event::Replica(Attempt(1), event), &config(), now);
        assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(1) }, Effect::AskRouter]);
    }
}

#[test]
fn a_done_that_counts_other_tokens_than_came_is_not_the_end() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[5], "a")), &config(), now);
    let done = StreamEvent::Done { last_index: 2, reason: FinishReason::Stop, usage: Usage::default() };
    assert!(stream.on_event(Event::Replica(Attempt(1), done), &config(), now).contains(&Effect::AskRouter));
}

#[test]
fn a_slow_client_stops_its_own_stream_only_until_it_reads_on() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[1, 2, 3, 4, 5, 6, 7, 8], "abcdefgh")), &config(), now);
    let much_later = now + Duration::from_secs(100);
    assert_eq!(stream.on_event(Event::Clock, &config(), much_later), [], "the replica is not to blame");
    let effects = stream.on_event(Event::Consumed(8), &config(), much_later);
    assert_eq!(effects, [Effect::Credit { replica: on("a"), attempt: Attempt(1), until: 16 }]);
}

#[test]
fn a_replica_that_continues_for_a_slow_client_is_not_blamed_for_its_silence() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::Replica(Attempt(1), tokens(0, &[1, 2, 3, 4, 5, 6, 7, 8], "abcdefgh")), &config(), now);
    stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    let effects = stream.on_event(Event::Routed(Routed::To(on("b"))), &config(), now);
    assert_eq!(effects, [Effect::Send { replica: on("b"), attempt: Attempt(2), credit_until: 8 }], "it has no credit");
    stream.on_event(Event::Replica(Attempt(2), StreamEvent::Accepted { prompt_ids: vec![1, 2, 3] }), &config(), now);
    assert_eq!(stream.on_event(Event::Clock, &config(), now + Duration::from_secs(100)), []);
}

#[test]
fn a_stream_whose_model_went_with_its_only_replica_waits_for_both_to_come_back() {
    let now = Instant::now();
    let mut stream = accepted(now);
    stream.on_event(Event::NodeLost(on("a").node), &config(), now);
    let unknown = || Event::Routed(Routed::Refused(RequestError::model_not_found(&"pip".parse().unwrap())));
    assert_eq!(stream.on_event(unknown(), &config(), now), []);
    assert_eq!(stream.on_event(Event::Clock, &config(), now + RECOVERY_POLL), [Effect::AskRouter]);
    let effects = stream.on_event(unknown(), &config(), now + RECOVERY_MAX);
    assert!(matches!(&effects[..], [Effect::Deliver(GenerateEvent::Failed(RequestError::Lost { .. })), Effect::End]), "{effects:?}");
    let mut fresh = self::stream();
    let effects = fresh.on_event(unknown(), &config(), now);
    assert!(effects.contains(&Effect::End), "a model that was never there is not waited for");
}

#[test]
fn tokens_without_text_do_not_use_up_the_window() {
    let now = Instant::now();
    let mut stream = accepted(now);
    let mut granted = 8;
    for index in 0..100 {
        for effect in stream.on_event(Event::Replica(Attempt(1), tokens(index, &[9], "")), &config(), now) {
            let Effect::Credit { until, .. } = effect else { panic!("{effect:?}") };
            granted = until;
        }
        assert!(granted > index + 1, "the stream would stop for ever at token {index}");
    }
}

proptest! {
    /// Whatever replicas do, the client sees each token once and in order, and exactly one end, which is last.
    #[test]
    fn the_client_sees_every_token_once_and_one_end(script in proptest::collection::vec((0u8..8, 0u32..4), 1..80)) {
        let mut now = Instant::now();
        let mut stream = stream();
        let mut text = String::new();
        let mut ended = 0;
        let names = ["a", "b", "c", "d"];
        for (what, arg) in script {
            now += Duration::from_millis(100);
            let at = stream.n_sampled();
            let attempt = stream.attempt();
            let letter = |index: u32| char::from(b'a' + (index % 26) as u8).to_string();
            let event = match what {
                0 => Event::Routed(Routed::To(on(names[arg as usize]))),
                1 => Event::Replica(attempt, StreamEvent::Accepted { prompt_ids: vec![1] }),
                2 | 3 => Event::Replica(attempt, tokens(at, &[at], &letter(at))),
                4 => Event::Replica(Attempt(attempt.0.saturating_sub(1)), tokens(at, &[99], "!")),
                5 => Event::Replica(attempt, tokens(at.saturating_sub(arg), &[at.saturating_sub(arg)], &letter(at.saturating_sub(arg)))),
                6 => Event::NodeLost(on(names[arg as usize]).node),
                _ => Event::Replica(attempt, StreamEvent::Done { last_index: at, reason: FinishReason::Stop, usage: Usage::default() }),
            };
            for effect in stream.on_event(event, &config(), now) {
                prop_assert_eq!(ended, 0, "nothing comes after the end");
                match effect {
                    Effect::Deliver(GenerateEvent::Tokens { deltas, .. }) => text += &Delta::text_of(&deltas),
                    Effect::End => ended += 1,
                    _ => {}
                }
            }
        }
        let expected: String = (0..stream.n_sampled()).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
        prop_assert_eq!(text, expected);
    }
}

#[test]
fn a_model_that_went_while_the_request_was_on_its_way_to_it_counts_as_no_attempt() {
    // CX-43
    let mut now = Instant::now();
    let mut stream = stream();
    let gone = RequestError::soon("not loaded");
    for attempt in 1..=2 * config().attempts_max {
        stream.on_event(Event::Routed(Routed::To(on("a"))), &config(), now);
        let effects = stream.on_event(Event::Replica(Attempt(attempt), StreamEvent::Failed(gone.clone())), &config(), now);
        assert_eq!(effects, [Effect::Cancel { replica: on("a"), attempt: Attempt(attempt) }, Effect::AskRouter]);
        stream.on_event(Event::Routed(Routed::Wait(gone.clone())), &config(), now);
        now += RECOVERY_POLL;
        assert_eq!(stream.on_event(Event::Clock, &config(), now), [Effect::AskRouter]);
    }
}
