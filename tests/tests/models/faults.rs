//! Nodes and devices end while they load, come back smaller, or decide apart from each other.

use plexus_tests::lab::Lab;
use plexus_tests::process::new_secret;
use plexus_tests::view::whole;
use plexus_tests::{DEADLINE, Node, Signal, eventually};
use plexus_types::{Bytes, ReplicaState};
use serde_json::json;

use crate::files::Stored;
use crate::ledger::agrees as device_agrees;
use crate::{Shelf, alone, answer, ask, loaded, ready, replicas};

/// A request at `at` for a model that is being loaded on `on` by now.
async fn while_it_loads(at: &Node, on: &Node, model: &str) -> tokio::task::JoinHandle<String> {
    let (client, id) = (at.client().clone(), model.to_owned());
    let request = tokio::spawn(async move { answer(&client, &id).await });
    eventually(&format!("{model} is being loaded"), async || {
        let replicas = replicas(on).await;
        let there = replicas.iter().any(|replica| replica.model.as_str() == model);
        if there { Ok(()) } else { Err(format!("{replicas:?}")) }
    })
    .await;
    request
}

#[tokio::test]
async fn a_node_that_dies_or_hangs_while_it_loads_is_replaced_by_another() {
    // CX-40, CX-42
    let _alone = alone().await;
    for signal in [Signal::Kill, Signal::Stop] {
        let mut shelf = Shelf::new();
        shelf.add("large", 400, Stored::F32, "");
        let (small, large) = (shelf.node("small", 500, "").start().await, shelf.node("large", 600, "").start().await);
        ready(&[&small, &large], 1).await;
        let request = while_it_loads(&small, &large, "large").await;
        large.signal(signal);
        let answered = tokio::time::timeout(2 * DEADLINE, request).await.expect("the request hangs");
        answered.expect("it is answered by the other node");
        assert_eq!(loaded(&small).await, ["large"]);
        eventually("the ledger agrees with the device", async || device_agrees(&small, &shelf).await).await;
    }
}

#[tokio::test]
async fn models_of_a_device_that_crashed_come_back_and_the_ledger_agrees_with_them() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::Q8_0, "");
    shelf.add("z", 60, Stored::F16, "");
    let node = shelf.node("a", 200, "").start().await;
    ready(&[&node], 3).await;
    let first = [answer(node.client(), "x").await, answer(node.client(), "y").await];
    let agrees = async |n_loaded: usize| {
        let summary = node.view().await?.nodes.remove(0).summary;
        let (used, held) = (summary.devices[0].memory_used, summary.replicas.iter().map(|replica| replica.memory).sum::<Bytes>());
        let all = summary.replicas.iter().all(|replica| replica.state == ReplicaState::Loaded);
        let agrees = all && summary.replicas.len() == n_loaded && used == held;
        if agrees { Ok(()) } else { Err(format!("{used} promised, {held} held by {:?}", summary.replicas)) }
    };
    eventually("the ledger agrees", async || agrees(2).await).await;
    for path in ["node/device/cpu-0", "node/evictor", "node/model/x@cpu-0", "node/router"] {
        let killed = node.client().post("/v1/cluster/actors/kill", &json!({"path": path})).await.expect("the node answers");
        assert!(killed.status < 300, "{path}: {}", killed.text);
        eventually(&format!("x and y are back after the end of {path}"), async || agrees(2).await).await;
        assert_eq!([answer(node.client(), "x").await, answer(node.client(), "y").await], first, "after the end of {path}");
        eventually(&format!("the device holds what was promised after the end of {path}"), async || device_agrees(&node, &shelf).await)
            .await;
    }
    // What the ledger says is true enough to make room by it.
    answer(node.client(), "z").await;
    answer(node.client(), "x").await;
    eventually("the ledger agrees", async || agrees(2).await.or(agrees(3).await)).await;
    assert!(node.memory().expect("the node runs").resident < 400_000_000, "nothing was left behind");
}

#[tokio::test]
async fn actors_that_end_while_a_model_is_loaded_leave_it_loaded_once_and_known_to_the_ledger() {
    let _alone = alone().await;
    for path in ["node/evictor", "node/router", "node/model/large@cpu-0", "node/device/cpu-0"] {
        let mut shelf = Shelf::new();
        shelf.add("large", 400, Stored::F32, "");
        let node = shelf.node("a", 600, "").start().await;
        ready(&[&node], 1).await;
        let request = while_it_loads(&node, &node, "large").await;
        let killed = node.client().post("/v1/cluster/actors/kill", &json!({"path": path})).await.expect("the node answers");
        assert!(killed.status < 300, "{path}: {}", killed.text);
        let answered = tokio::time::timeout(2 * DEADLINE, request).await.expect("the request hangs");
        answered.unwrap_or_else(|error| panic!("not answered after the end of {path}: {error}"));
        eventually(&format!("the ledger agrees with the device after the end of {path}"), async || device_agrees(&node, &shelf).await)
            .await;
        assert_eq!(loaded(&node).await, ["large"], "after the end of {path}");
        let unloaded = node.client().post("/v1/models/unload", &json!({"model_id": "large"})).await.expect("the node answers");
        assert_eq!(unloaded.status, 200, "{path}: {}", unloaded.text);
        eventually("the device is empty", async || device_agrees(&node, &shelf).await).await;
    }
}

#[tokio::test]
async fn what_no_longer_fits_a_node_that_comes_back_smaller_goes_elsewhere_or_is_refused_with_the_reason() {
    // CX-40, CX-53
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("large", 120, Stored::F16, "");
    shelf.add("small", 40, Stored::F16, "");
    let (mut shrinks, mut other) = (shelf.node("shrinks", 300, "").start().await, shelf.node("other", 200, "").start().await);
    let asks = shelf.node("asks", 1, "").start().await;
    ready(&[&shrinks, &other, &asks], 2).await;
    let first = [answer(asks.client(), "large").await, answer(asks.client(), "small").await];
    assert!(loaded(&shrinks).await.contains(&"large".to_owned()), "it had most room");
    shrinks.kill().await;
    shelf.configure("shrinks", 80, "");
    shrinks.start_again().await;
    whole(&[&asks, &shrinks, &other]).await;
    assert_eq!([answer(asks.client(), "large").await, answer(asks.client(), "small").await], first);
    assert!(loaded(&other).await.contains(&"large".to_owned()));
    other.kill().await;
    asks.sees("other", None).await;
    let reply = ask(asks.client(), "large").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.text.contains("shrinks/cpu-0") && reply.text.contains("76.3 MiB"), "{}", reply.text);
    assert_eq!(answer(asks.client(), "small").await, first[1]);
    eventually("the ledger agrees with the device", async || device_agrees(&shrinks, &shelf).await).await;
}

/// A node on host `host` of the lab.
async fn node_on(lab: &Lab, host: u8, shelf: &Shelf, secret: &str, seed: Option<&Node>) -> Node {
    let command = lab.inside(host);
    let builder = shelf.node(&format!("h{host}"), 100, "").env("PLEXUS_CLUSTER__SECRET", secret);
    let builder = builder.inside(&command.each_ref().map(String::as_str), lab.address(host));
    match seed {
        Some(seed) => builder.seed(seed.addresses().gossip).start().await,
        None => builder.start().await,
    }
}

#[tokio::test]
async fn two_sides_of_a_partition_each_load_for_themselves_and_both_replicas_serve_when_it_heals() {
    // CX-42
    let _alone = alone().await;
    let lab = match Lab::build(2) {
        Ok(lab) => lab,
        Err(reason) => {
            eprintln!("SKIPPED: no network namespaces here: {reason}");
            return;
        }
    };
    let mut shelf = Shelf::new();
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::F16, "");
    let secret = new_secret();
    let h1 = node_on(&lab, 1, &shelf, &secret, None).await;
    let h2 = node_on(&lab, 2, &shelf, &secret, Some(&h1)).await;
    ready(&[&h1, &h2], 2).await;
    lab.cut(1, 2);
    h1.sees_up(&["h1"]).await;
    h2.sees_up(&["h2"]).await;
    let (one, two) = tokio::join!(answer(h1.client(), "x"), answer(h2.client(), "x"));
    assert_eq!(one, two);
    assert_eq!((loaded(&h1).await, loaded(&h2).await), (vec!["x".to_owned()], vec!["x".to_owned()]), "each side decides by itself");
    lab.heal();
    whole(&[&h1, &h2]).await;
    for node in [&h1, &h2] {
        assert_eq!(answer(node.client(), "x").await, one);
        answer(node.client(), "y").await;
    }
    for node in [&h1, &h2] {
        eventually("the ledger agrees with the device", async || device_agrees(node, &shelf).await).await;
    }
    let both = [loaded(&h1).await, loaded(&h2).await].concat();
    assert!(
        both.len() == 2 && both.contains(&"x".to_owned()) && both.contains(&"y".to_owned()),
        "y takes the place of one of them: {both:?}"
    );
}
