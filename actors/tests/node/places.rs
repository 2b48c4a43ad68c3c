//! Who keeps a place at a replica, and for how long.

use plexus_actors::args::DeviceSpec;
use plexus_api::service::{LoadModel, Place};
use plexus_engine::scripted::ScriptedExecutor;
use plexus_types::{DeviceId, ModelProfile, ModelSource};

use super::*;

const SLOW: Duration = Duration::from_millis(20);

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

#[tokio::test]
async fn a_queue_that_one_key_has_filled_takes_those_of_others_in_stead_of_its_youngest() {
    // CX-93
    let gate = Gate::default(); // the first keeps its place until it opens
    let hangs = Script { faults: vec![Fault { at_step: 0, kind: FaultKind::Hang(gate.clone()) }], ..Script::default() };
    let node = node(hangs, |args| (args.catalogue.models[0].running_max, args.catalogue.models[0].waiting_max) = (1, 3)).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let mut of_one = Vec::new();
    for n_there in [(1, 0), (1, 1), (1, 2), (1, 3)] {
        of_one.push(tokio::spawn(answer(ask_as(&node, Some(1), 3).await)));
        until_counter(&node, "node/model/pip@cpu-0", "running", n_there.0).await;
        until_counter(&node, "node/model/pip@cpu-0", "waiting", n_there.1).await;
    }
    let (_, refused) = answer(ask_as(&node, Some(1), 3).await).await;
    assert!(matches!(refused, GenerateEvent::Failed(RequestError::Overloaded { .. })), "nobody takes the place of his own: {refused:?}");
    let (_, refused) = answer(ask(&node, 3).await).await;
    assert!(matches!(refused, GenerateEvent::Failed(RequestError::Overloaded { .. })), "nor does who has no key: {refused:?}");

    let other = tokio::spawn(answer(ask_as(&node, Some(2), 3).await));
    let (displaced, _, of_one) = futures::future::select_all(of_one).await;
    let (_, displaced) = displaced.unwrap();
    assert!(matches!(displaced, GenerateEvent::Failed(RequestError::Overloaded { .. })), "{displaced:?}");
    let second = tokio::spawn(answer(ask_as(&node, Some(2), 3).await));
    let (displaced, _, of_one) = futures::future::select_all(of_one).await;
    let (_, displaced) = displaced.unwrap();
    assert!(matches!(displaced, GenerateEvent::Failed(RequestError::Overloaded { .. })), "{displaced:?}");
    let (_, refused) = answer(ask_as(&node, Some(2), 3).await).await;
    assert!(matches!(refused, GenerateEvent::Failed(RequestError::Overloaded { .. })), "both have two now: {refused:?}");
    gate.open();
    for other in of_one.into_iter().chain([other, second]) {
        let (_, end) = other.await.unwrap();
        assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
    }
}

#[tokio::test]
async fn those_that_wait_go_to_another_replica_that_has_places_free() {
    let slow = Script { step_time: SLOW, ..Script::default() };
    let second: DeviceId = "cpu-1".parse().unwrap();
    let script = slow.clone();
    let node = node(slow, |args| {
        let open = move || Ok(Box::new(ScriptedExecutor::new(second, script.clone())) as Box<_>);
        args.devices.push(DeviceSpec::new(second, Arc::new(open)));
        let profile = &mut args.catalogue.models[0];
        (profile.running_max, profile.replicas_max) = (1, 1); // none is loaded but by hand
    });
    let node = node.await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let first = node.view().read().own().replicas[0].device;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(tokio::spawn(answer(ask(&node, 200).await)));
    }
    until_counter(&node, &format!("node/model/pip@{first}"), "waiting", 2).await;
    let other = if first == second { cpu() } else { second };
    let place = Place { device: Some(other), ..Place::default() };
    node.inference().load_model(LoadModel { model: "pip".parse().unwrap(), place, wait: true }).await.unwrap();
    until_counter(&node, &format!("node/model/pip@{other}"), "running", 1).await;
    until_counter(&node, &format!("node/model/pip@{first}"), "waiting", 1).await;
    let mut texts = Vec::new();
    for stream in streams {
        let (text, end) = stream.await.unwrap();
        assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
        texts.push(text);
    }
    assert!(!texts[0].is_empty() && texts.iter().all(|text| *text == texts[0]));
}

#[tokio::test]
async fn a_model_that_is_asked_for_gets_its_turn_where_another_is_used_without_a_pause() {
    let small = |id: &str| ModelProfile {
        context_length: Some(256),
        running_max: 1,
        waiting_max: 8,
        ..ModelProfile::new(id.parse().unwrap(), ModelSource::Embedded)
    };
    let preloaded = ModelProfile { preload: true, ..small("pip") };
    let lone = node(Script::default(), |args| args.catalogue.models = vec![preloaded.clone()]).await;
    until(&lone, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let memory = lone.view().read().own().replicas[0].memory;

    let one_at_a_time = Script { memory_total: Bytes(memory.0 * 3 / 2), step_time: Duration::from_millis(1), ..Script::default() };
    let node = node(one_at_a_time, |args| args.catalogue.models = vec![preloaded, small("other")]).await;
    until(&node, "the first is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    let stop = std::cell::Cell::new(false);
    let hot = async {
        let mut n = 0;
        while !stop.get() {
            let (_, end) = answer(ask(&node, 50).await).await;
            assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
            n += 1;
        }
        n
    };
    let also_hot = async {
        while !stop.get() {
            let (_, end) = answer(ask(&node, 50).await).await;
            assert!(matches!(end, GenerateEvent::Done { .. }), "{end:?}");
        }
    };
    let other = async {
        until_counter(&node, "node/model/pip@cpu-0", "waiting", 1).await;
        let (text, end) = answer(ask_for(&node, "other", 5).await).await;
        stop.set(true);
        (text, end)
    };
    let (n, (), (text, end)) = tokio::join!(hot, also_hot, other);
    assert!(matches!(end, GenerateEvent::Done { .. }) && !text.is_empty(), "{end:?}");
    assert!(n > 1, "the others are served, before and after");
}
