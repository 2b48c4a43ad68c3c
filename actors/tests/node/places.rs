//! Who keeps a place at a replica, and for how long.

use super::*;

#[tokio::test]
async fn a_client_that_reads_nothing_gives_its_place_to_one_that_waits_and_gets_every_token_later() {
    let whole = answer(ask(&loaded(Script::default()).await, 300).await).await.0;
    let node = node(Script::default(), |args| args.catalogue.models[0].running_max = 1).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let slow = ask(&node, 300).await;
    until_counter(&node, "node/device/cpu-0", "steps", 64).await; // its window: from here on it has a place and does not use it
    assert!(matches!(answer(ask(&node, 10).await).await.1, GenerateEvent::Done { .. }));
    assert_eq!(answer(slow).await.0, whole);
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_read_is_broken_off_in_time() {
    let node = node(Script::default(), |args| args.streams.client_timeout = Duration::from_millis(300)).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let unread = ask(&node, 300).await;
    until_counter(&node, "node/device/cpu-0", "steps", 64).await;
    until_counter(&node, "node/streams", "streams", 0).await;
    until_counter(&node, "node/model/pip@cpu-0", "running", 0).await;
    let (text, end) = answer(unread).await;
    assert!(!text.is_empty(), "what was there can still be read");
    let GenerateEvent::Failed(RequestError::Lost { message }) = end else { panic!("{end:?}") };
    assert!(message.contains("nothing of it was read for 300ms"), "{message}");
}

#[tokio::test]
async fn who_waits_behind_a_step_that_does_not_end_is_refused_in_time() {
    let gate = Gate::default();
    let node = node(fault(FaultKind::Hang(gate.clone())), |args| {
        args.catalogue.models[0].running_max = 1;
        args.catalogue.models[0].waiting_time = Duration::from_millis(200);
    })
    .await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let first = ask(&node, 20).await;
    until_counter(&node, "node/device/cpu-0", "steps", 3).await;
    let (_, end) = answer(ask(&node, 1).await).await;
    let GenerateEvent::Failed(RequestError::Overloaded { message, .. }) = end else { panic!("{end:?}") };
    assert!(message.contains("no place within 200ms"), "{message}");
    gate.open();
    assert!(matches!(answer(first).await.1, GenerateEvent::Done { .. }), "who had a place keeps it");
}
