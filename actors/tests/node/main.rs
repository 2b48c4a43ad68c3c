//! One whole node in this process, on a scripted device: what its actors do when something goes wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod front;
mod harness;
mod lives;
mod places;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use plexus_api::service::Inference;
use plexus_engine::error::EngineError;
use plexus_engine::scripted::{Fault, FaultKind, Gate, Script};
use plexus_types::{Bytes, FinishReason, GenerateEvent, ReplicaState, RequestError};

use crate::harness::{DEADLINE, answer, ask, ask_as, counter, cpu, loaded, node, replica_state, until, until_counter};

fn fault(kind: FaultKind) -> Script {
    Script { faults: vec![Fault { at_step: 2, kind }], ..Script::default() }
}

#[tokio::test]
async fn a_request_is_answered_to_its_last_token() {
    let node = loaded(Script::default()).await;
    let (text, end) = answer(ask(&node, 5).await).await;
    assert!(!text.is_empty());
    let GenerateEvent::Done { reason: FinishReason::Length, usage } = end else { panic!("{end:?}") };
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 5));
}

#[tokio::test]
async fn a_device_whose_thread_panics_is_opened_again_and_the_stream_goes_on_where_it_was() {
    // CX-62, CX-63
    let whole = answer(ask(&loaded(Script::default()).await, 20).await).await.0;
    for kind in [FaultKind::Panic, FaultKind::Device] {
        let node = loaded(fault(kind)).await;
        let (text, end) = answer(ask(&node, 20).await).await;
        assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
        assert_eq!(text, whole, "no token is lost and none repeated");
        assert_eq!(counter(&node, "node/device/cpu-0", "restarts").await, 1);
        assert_eq!(counter(&node, "node/streams", "rerouted").await, 1);
    }
}

#[tokio::test]
async fn a_device_that_hangs_in_a_step_or_in_a_load_is_opened_again_and_the_stream_goes_on_where_it_was() {
    // CX-62
    let whole = answer(ask(&loaded(Script::default()).await, 20).await).await.0;
    let never = Gate::default();
    let hangs_in_a_load = Script { load_gate: Some(never.clone()), ..Script::default() };
    for script in [fault(FaultKind::Hang(never.clone())), hangs_in_a_load] {
        let node = node(script, |args| args.devices[0].hang_after = Duration::from_millis(100)).await;
        let (text, end) = answer(ask(&node, 20).await).await;
        assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
        assert_eq!(text, whole, "no token is lost and none repeated");
        assert_eq!(counter(&node, "node/device/cpu-0", "restarts").await, 1);
    }
    never.open(); // its threads end
}

#[tokio::test]
async fn a_batch_that_fails_ends_its_requests_and_nothing_else() {
    let node = loaded(fault(FaultKind::Batch)).await;
    let (_, end) = answer(ask(&node, 20).await).await;
    assert!(matches!(end, GenerateEvent::Failed(RequestError::Internal { .. })), "{end:?}");
    assert_eq!(counter(&node, "node/device/cpu-0", "restarts").await, 0);
    assert!(matches!(answer(ask(&node, 3).await).await.1, GenerateEvent::Done { .. }));
}

#[tokio::test]
async fn while_a_device_hangs_every_actor_still_answers_and_a_full_queue_refuses_with_a_time() {
    // CX-93
    let gate = Gate::default();
    let node = node(fault(FaultKind::Hang(gate.clone())), |args| {
        args.catalogue.models[0].running_max = 1;
        args.catalogue.models[0].waiting_max = 1;
    })
    .await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let first = ask(&node, 20).await;
    until_counter(&node, "node/device/cpu-0", "steps", 3).await;
    let second = ask(&node, 1).await;
    until_counter(&node, "node/model/pip@cpu-0", "waiting", 1).await;
    let (_, end) = answer(ask(&node, 1).await).await;
    let GenerateEvent::Failed(RequestError::Overloaded { retry_after, .. }) = end else { panic!("{end:?}") };
    assert!(retry_after >= Duration::from_secs(1));
    let health = node.inference().health().await; // CX-46
    let vitals = health.replicas[0].vitals.expect("the replica answers");
    assert_eq!((vitals.rejected.full, vitals.rejected.total()), (1, 1));
    assert!(vitals.kv_available_mb < vitals.kv_budget_mb && health.devices[0].utilization_pct > Some(0.0), "it has a step under way");
    let actors = node.inference().actors().await;
    assert!(actors[0].actors.iter().all(|actor| actor.state != "not answering"), "{actors:?}");
    gate.open();
    assert!(matches!(answer(first).await.1, GenerateEvent::Done { .. }));
    assert!(matches!(answer(second).await.1, GenerateEvent::Done { .. }));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequence() {
    let node = loaded(Script { step_time: Duration::from_millis(1), ..Script::default() }).await;
    let mut generation = ask(&node, 400).await;
    for _ in 0..5 {
        generation.next().await.unwrap();
    }
    drop(generation);
    until_counter(&node, "node/model/pip@cpu-0", "cancelled", 1).await;
    until_counter(&node, "node/model/pip@cpu-0", "running", 0).await; // once the step under way has ended
    assert_eq!(counter(&node, "node/streams", "streams").await, 0);
}

#[tokio::test]
async fn streams_that_are_lost_with_their_actor_free_their_sequences_even_without_credit() {
    let node = loaded(Script::default()).await;
    let stuck = ask(&node, 300).await; // nobody reads: it stops at the end of its window
    until_counter(&node, "node/device/cpu-0", "steps", 64).await;
    assert_eq!(node.inference().kill_actor("node/streams").await, Some(true));
    until_counter(&node, "node/streams", "restarts", 1).await;
    until_counter(&node, "node/model/pip@cpu-0", "running", 0).await;
    assert!(matches!(answer(stuck).await.1, GenerateEvent::Failed(RequestError::Lost { .. })));
}

#[tokio::test]
async fn a_slow_client_holds_up_its_own_stream_and_gets_every_token_once() {
    let whole = answer(ask(&loaded(Script::default()).await, 300).await).await.0;
    let node = loaded(Script::default()).await;
    let slow = ask(&node, 300).await;
    // The window is 64 tokens: the replica stops there, and others go on.
    until_counter(&node, "node/device/cpu-0", "steps", 64).await;
    assert!(matches!(answer(ask(&node, 10).await).await.1, GenerateEvent::Done { .. }));
    assert_eq!(counter(&node, "node/device/cpu-0", "steps").await, 74);
    assert_eq!(answer(slow).await.0, whole);
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_with_needed_and_available_bytes() {
    // CX-53
    let node = node(Script { memory_total: Bytes(1 << 20), ..Script::default() }, |_| {}).await;
    until(&node, "the device is open", |node| !node.view().read().own().devices.is_empty()).await;
    until(&node, "the files are known", |node| node.view().read().catalogue().models.values().any(|model| model.facts.is_some())).await;
    let GenerateEvent::Failed(RequestError::Unservable { message }) = answer(ask(&node, 1).await).await.1 else { panic!("not refused") };
    assert!(message.contains("cpu-0") && message.contains("needed") && message.contains("1.00 MiB"), "{message}");
    assert_eq!(replica_state(&node), None, "nothing was loaded");
    let warnings = node.inference().cluster().await.conflicts;
    assert!(warnings.iter().any(|warning| warning.contains("'pip'") && warning.contains("needed")), "{warnings:?}");
}

#[tokio::test]
async fn a_device_that_never_opens_ends_the_node_with_the_reason() {
    let broken = || Err(EngineError::Device { device: cpu(), reason: "no such thing".into() });
    let mut node = node(Script::default(), |args| args.devices[0].open = Arc::new(broken)).await;
    let why = tokio::time::timeout(DEADLINE, node.wait()).await.expect("the node ends");
    assert!(why.contains("node/device/cpu-0") && why.contains("no such thing"), "{why}");
}

#[tokio::test]
async fn every_actor_that_is_killed_comes_back_and_the_node_serves_again() {
    let node = loaded(Script::default()).await;
    let paths: Vec<String> =
        node.inference().actors().await[0].actors.iter().map(|actor| actor.path.clone()).filter(|path| path != "node").collect();
    assert_eq!(paths.len(), 11);
    for path in paths {
        let before = counter(&node, &path, "restarts").await;
        assert_eq!(node.inference().kill_actor(&path).await, Some(true), "{path}");
        until_counter(&node, &path, "restarts", before + 1).await;
        let served = tokio::time::timeout(DEADLINE, async {
            while !matches!(answer(ask(&node, 3).await).await.1, GenerateEvent::Done { .. }) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(served.await.is_ok(), "the node does not serve again after {path} was killed");
    }
}

#[tokio::test]
async fn a_node_that_stops_lets_running_streams_end() {
    // CX-51
    let node = loaded(Script { step_time: Duration::from_millis(1), ..Script::default() }).await;
    let running = tokio::spawn(answer(ask(&node, 100).await));
    until_counter(&node, "node/model/pip@cpu-0", "running", 1).await;
    assert_eq!(node.drain().await, 0);
    assert!(matches!(running.await.unwrap().1, GenerateEvent::Done { .. }));
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_is_broken_off_with_an_error() {
    let node = loaded(Script { step_time: Duration::from_millis(20), ..Script::default() }).await;
    let running = tokio::spawn(answer(ask(&node, 400).await));
    until_counter(&node, "node/model/pip@cpu-0", "running", 1).await;
    assert_eq!(node.drain().await, 1, "one stream, which is one to its client and one to its replica");
    assert!(matches!(running.await.unwrap().1, GenerateEvent::Failed(RequestError::Lost { .. })));
}
