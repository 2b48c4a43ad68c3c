//! Actors, clients and nodes end at the worst moment; the rest goes on.

use std::collections::BTreeMap;

use plexus_engine::model::{ModelFiles, ModelPath};
use plexus_tests::{Home, Node, Signal, eventually};
use plexus_types::ReplicaState;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Each test wants the machine for itself.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    ONE_AT_A_TIME.lock().await
}

const FRANCE: &str = "What is the capital of France?";

/// The root supervisor: it is not restarted, its end is the end of the node.
const ROOT: &str = "node";

async fn restarts(node: &Node) -> Result<BTreeMap<String, u32>, String> {
    Ok(node.own_actors().await?.into_iter().map(|actor| (actor.path, actor.restarts)).collect())
}

#[tokio::test]
async fn every_actor_is_restarted_after_its_end_and_the_node_serves_again() {
    let _alone = alone().await;
    let home = Home::new();
    let node = home.node("n1").test_hooks().env("PLEXUS_SUPERVISION__RESTARTS_MAX", "20").start().await;
    let peer = home.node("n2").model_from_folder("other").start().await;
    plexus_tests::view::whole(&[&node, &peer]).await;
    node.is_healthy().await;
    node.offers("other").await;

    let paths: Vec<String> = restarts(&node).await.unwrap().into_keys().filter(|path| path != ROOT).collect();
    assert!(paths.len() >= 6, "a node has more actors than {paths:?}");
    for path in paths {
        let before = restarts(&node).await.unwrap().get(&path).copied().unwrap_or_default();
        // The front may end before its answer is sent.
        let killed = node.client().post("/v1/cluster/actors/kill", &json!({"path": path})).await;
        assert!(killed.as_ref().map_or(true, |reply| reply.status < 300), "{path}: {killed:?}");
        eventually(&format!("{path} is restarted"), async || {
            let actor = node.own_actors().await?.into_iter().find(|actor| actor.path == path).ok_or("not listed")?;
            let back = actor.restarts > before && actor.state != "restarting" && actor.state != "not answering";
            if back { Ok(()) } else { Err(format!("{actor:?}")) }
        })
        .await;
        for model in ["pip", "other"] {
            eventually(&format!("{model} is served after the end of {path}"), async || {
                let reply = node.client().ask(model, FRANCE).await.map_err(|error| error.to_string())?;
                if reply.status == 200 && reply.chat_text().contains("Paris") { Ok(()) } else { Err(reply.text) }
            })
            .await;
        }
    }
    plexus_tests::view::whole(&[&node, &peer]).await;
}

#[tokio::test]
async fn actors_can_be_killed_only_where_test_hooks_are_switched_on() {
    let _alone = alone().await;
    let home = Home::new();
    let node = home.node("n1").start().await;
    let reply = node.client().post("/v1/cluster/actors/kill", &json!({"path": "node/router"})).await.unwrap();
    assert_eq!(reply.status, 404, "{}", reply.text);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let _alone = alone().await;
    let home = Home::new();
    let node = home.scripted("n1").arg("--step-time", "40ms").start().await;
    node.is_healthy().await;
    let running = async || {
        let view = node.view().await?;
        Ok::<u32, String>(view.nodes[0].summary.replicas.iter().map(|replica| replica.load.running + replica.load.waiting).sum())
    };

    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = node.client().ask_streaming("pip", "go").await;
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
        }
        streams.push(stream);
    }
    eventually("three sequences run", async || if running().await? == 3 { Ok(()) } else { Err(format!("{} run", running().await?)) }).await;
    drop(streams);
    // CX-92
    eventually("no sequence runs", async || if running().await? == 0 { Ok(()) } else { Err(format!("{} run", running().await?)) }).await;
}

/// `serving` alone holds pip and answers slowly; `ingress` passes requests on to it.
async fn slow_pair(home: &Home) -> (Node, Node) {
    let serving = home.scripted("serving").arg("--step-time", "40ms").start().await;
    let ingress = home.scripted("ingress").flag("--no-models").flag("--no-device").seed(serving.addresses().gossip).start().await;
    plexus_tests::view::whole(&[&serving, &ingress]).await;
    ingress.offers("pip").await;
    (serving, ingress)
}

#[tokio::test]
async fn a_stream_whose_node_is_killed_goes_on_where_the_model_is_loaded_for_it() {
    let _alone = alone().await;
    let home = Home::new();
    let undisturbed = home.scripted("whole").arg("--step-time", "1ms").start().await;
    undisturbed.is_healthy().await;
    let whole = undisturbed.client().ask_streaming("pip", "go").await.chat().await.text;
    let home = Home::new();
    let mut serving = home.scripted("serving").arg("--step-time", "40ms").start().await;
    let ingress = home.scripted("ingress").flag("--no-models").seed(serving.addresses().gossip).start().await;
    plexus_tests::view::whole(&[&serving, &ingress]).await;
    ingress.offers("pip").await;
    let mut stream = ingress.client().ask_streaming("pip", "go").await;
    let mut text = String::new();
    for _ in 0..3 {
        let event = stream.next().await.unwrap().unwrap().json();
        text += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    serving.kill().await;
    let rest = tokio::time::timeout(plexus_tests::DEADLINE, stream.chat()).await.expect("the stream ends");
    assert!(rest.done && rest.error.is_none(), "{rest:?}");
    assert_eq!(text + &rest.text, whole, "no token is lost and none repeated");
}

#[tokio::test]
async fn a_stream_whose_node_is_killed_ends_with_an_error_in_openai_s_words() {
    let _alone = alone().await;
    let home = Home::new();
    let (mut serving, ingress) = slow_pair(&home).await;
    let mut stream = ingress.client().ask_streaming("pip", "go").await;
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    serving.kill().await;
    let answer = tokio::time::timeout(plexus_tests::DEADLINE, stream.chat()).await.expect("the stream ends");
    let error = answer.error.as_ref().unwrap_or_else(|| panic!("no error event: {answer:?}"));
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    assert!(error["type"].is_string(), "{error}");
    assert!(!answer.done, "[DONE] says that all is well");
    assert_eq!(answer.broken, None, "the response itself ends in order");
}

#[tokio::test]
async fn a_stream_whose_node_is_killed_ends_with_an_error_in_anthropic_s_words() {
    let _alone = alone().await;
    let home = Home::new();
    let (mut serving, ingress) = slow_pair(&home).await;
    let request = json!({"model": "pip", "max_tokens": 400, "stream": true, "messages": [{"role": "user", "content": "go"}]});
    let mut stream = ingress.client().stream("/v1/messages", &request).await.unwrap();
    loop {
        let event = stream.next().await.unwrap().unwrap();
        if event.event.as_deref() == Some("content_block_delta") {
            break;
        }
    }
    serving.kill().await;
    let mut last = None;
    let read = async {
        while let Some(event) = stream.next().await {
            last = Some(event.expect("the response itself ends in order"));
        }
    };
    tokio::time::timeout(plexus_tests::DEADLINE, read).await.expect("the stream ends");
    let last = last.expect("something follows");
    assert_eq!(last.event.as_deref(), Some("error"), "{last:?}");
    assert_eq!(last.json()["type"], "error");
    assert!(last.json()["error"]["type"].is_string() && last.json()["error"]["message"].is_string(), "{last:?}");
}

#[tokio::test]
async fn a_node_frozen_in_the_middle_of_a_stream_does_not_hang_the_client() {
    let _alone = alone().await;
    let home = Home::new();
    let (serving, ingress) = slow_pair(&home).await;
    let mut stream = ingress.client().ask_streaming("pip", "go").await;
    for _ in 0..3 {
        stream.next().await.unwrap().unwrap();
    }
    serving.signal(Signal::Stop);
    let answer = tokio::time::timeout(plexus_tests::DEADLINE, stream.chat()).await.expect("the stream ends");
    assert!(answer.error.is_some() && !answer.done, "{answer:?}");
}

#[tokio::test]
async fn a_full_replica_refuses_at_once_and_says_when_to_come_back() {
    let _alone = alone().await;
    let home = Home::new();
    let node = home.scripted("n1").arg("--running-max", "1").arg("--waiting-max", "1").arg("--step-time", "40ms").start().await;
    node.is_healthy().await;
    let mut running = node.client().ask_streaming("pip", "go").await;
    running.next().await.unwrap().unwrap();

    // The next one waits; all after it are refused (CX-93).
    let client = node.client().clone();
    let waiting = tokio::spawn(async move { client.ask("pip", "go").await });
    eventually("one runs and one waits", async || {
        let load = node.view().await?.nodes[0].summary.replicas[0].load;
        if (load.running, load.waiting) == (1, 1) { Ok(()) } else { Err(format!("{load:?}")) }
    })
    .await;
    let request = json!({"model": "pip", "max_tokens": 1, "messages": [{"role": "user", "content": "go"}]});
    let refusal = node.client().post("/v1/chat/completions", &request).await.unwrap();
    assert!([429, 503].contains(&refusal.status), "{} {}", refusal.status, refusal.text);
    assert!(refusal.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{:?}", refusal.headers);
    assert!(refusal.json["error"]["message"].is_string(), "{}", refusal.text);

    let reply = node.client().post("/v1/messages", &request).await.unwrap();
    assert!([429, 503, 529].contains(&reply.status), "{} {}", reply.status, reply.text);
    assert_eq!(reply.json["type"], Value::from("error"), "{}", reply.text);
    assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);

    waiting.abort();
    drop(running);
    eventually("a place is free again", async || {
        let reply = node.client().post("/v1/chat/completions", &request).await.map_err(|error| error.to_string())?;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test]
async fn a_waiter_that_leaves_frees_its_place_for_the_next_while_the_one_before_it_goes_on() {
    // CX-93
    let _alone = alone().await;
    let home = Home::new();
    let node = home.scripted("n1").arg("--running-max", "1").arg("--waiting-max", "1").arg("--step-time", "40ms").start().await;
    node.is_healthy().await;
    let seats = async |running: u32, waiting: u32| {
        eventually(&format!("{running} run and {waiting} wait"), async || {
            let load = node.view().await?.nodes[0].summary.replicas[0].load;
            if (load.running, load.waiting) == (running, waiting) { Ok(()) } else { Err(format!("{load:?}")) }
        })
        .await;
    };
    let ask = || {
        let client = node.client().clone();
        let request = json!({"model": "pip", "max_tokens": 1, "messages": [{"role": "user", "content": "go"}]});
        tokio::spawn(async move { client.post("/v1/chat/completions", &request).await.expect("the node answers") })
    };
    let mut running = node.client().ask_streaming("pip", "go").await;
    running.next().await.unwrap().unwrap();
    let leaves = ask();
    seats(1, 1).await;
    let refused = ask().await.unwrap();
    assert_eq!(refused.status, 429, "there is one place to wait: {}", refused.text);
    leaves.abort();
    seats(1, 0).await;
    let stays = ask();
    seats(1, 1).await;
    assert!(!stays.is_finished(), "it is queued, and not refused");
    running.next().await.unwrap().unwrap();
    drop(running);
    let answered = tokio::time::timeout(plexus_tests::DEADLINE, stays).await.expect("it has the place").unwrap();
    assert_eq!(answered.status, 200, "{}", answered.text);
}

#[tokio::test]
async fn a_device_that_fails_or_panics_under_a_stream_is_opened_anew_and_holds_what_its_ledger_says() {
    // CX-62, CX-63
    let _alone = alone().await;
    let home = Home::new();
    let undisturbed = home.scripted("whole").start().await;
    undisturbed.is_healthy().await;
    let whole = undisturbed.client().ask_streaming("pip", "go").await.chat().await.text;
    let working = ModelFiles::open(&ModelPath::Embedded).expect("it is part of the program").facts().cpu.working.0;
    for kind in ["device", "panic"] {
        let node = Home::new().scripted(kind).arg("--fault", kind).arg("--fault-at", "20").start().await;
        node.is_healthy().await;
        let answer = tokio::time::timeout(plexus_tests::DEADLINE, node.client().ask_streaming("pip", "go").await.chat()).await;
        let answer = answer.expect("the stream ends");
        assert!(answer.done && answer.error.is_none(), "{kind}: {answer:?}");
        assert_eq!(answer.text, whole, "{kind}: no token is lost and none repeated");
        assert_eq!(restarts(&node).await.unwrap()["node/device/cpu-0"], 1, "{kind}");
        eventually(&format!("{kind}: the ledger agrees with the device"), async || {
            let summary = node.view().await?.nodes.remove(0).summary;
            let held = node.counters("held_").await?;
            let (promised, holds) = (summary.devices[0].memory_used.0, held["held_weights_bytes"] + held["held_kv_bytes"] + working);
            let loaded = summary.replicas.iter().filter(|replica| replica.state == ReplicaState::Loaded).count();
            let agrees = promised == holds && promised > 0 && loaded == 1 && held["held_models"] == 1;
            if agrees { Ok(()) } else { Err(format!("{promised} promised, {held:?} held, {:?}", summary.replicas)) }
        })
        .await;
        assert_eq!(node.client().ask_streaming("pip", "go").await.chat().await.text, whole, "{kind}: and it serves as before");
    }
}

#[tokio::test]
async fn a_model_that_wants_two_devices_is_held_by_the_node_that_has_them() {
    // CX-24
    let _alone = alone().await;
    let home = Home::new();
    let pair = home.scripted("pair").arg("--devices", "2").arg("--min-devices", "2").start().await;
    let single = home.scripted("single").arg("--min-devices", "2").seed(pair.addresses().gossip).start().await;
    plexus_tests::view::whole(&[&pair, &single]).await;
    single.offers("pip").await;
    let listed = single.client().get("/v1/models/pip").await.unwrap();
    assert_eq!(listed.json["feasible_on"], json!(["pair"]), "{}", listed.text);
    let answered = single.client().ask("pip", "go").await.unwrap();
    assert_eq!((answered.status, answered.header("x-plexus-node")), (200, Some("pair")), "{}", answered.text);
    let refused = single.client().post("/v1/models/load", &json!({"model_id": "pip", "node": "single"})).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("it wants 2 devices") && refused.text.contains("its node has 1"), "{}", refused.text);
}

#[tokio::test]
async fn the_end_of_the_root_supervisor_is_the_end_of_the_process() {
    let _alone = alone().await;
    let home = Home::new();
    let mut node = home.node("n1").test_hooks().env("PLEXUS_SUPERVISION__RESTARTS_MAX", "1").start().await;
    node.is_healthy().await;
    let path = restarts(&node).await.unwrap().into_keys().find(|path| path.contains("router")).expect("a node has a router");
    // More often than the budget allows: the node gives up, so that whoever runs it starts it anew.
    for _ in 0..3 {
        let _ = node.client().post("/v1/cluster/actors/kill", &json!({"path": path})).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let status = node.exit().await;
    assert!(!status.success(), "{status}");
}
