//! Who goes, who stays, and who waits.

use plexus_tests::client::question_body;
use plexus_tests::{Client, DEADLINE, EventStream, Node, Reply, eventually};
use serde_json::json;

use crate::files::Stored;
use crate::{Shelf, alone, answer, ask, loaded, loads, ready, replicas};

#[tokio::test]
async fn whoever_was_used_least_recently_goes_and_a_pinned_model_stays() {
    // CX-25, CX-43
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::F16, "");
    shelf.add("z", 60, Stored::F16, "");
    shelf.add("pinned", 60, Stored::F16, "pinned = true");
    let node = shelf.node("a", 160, "").start().await;
    ready(&[&node], 4).await;
    answer(node.client(), "x").await;
    answer(node.client(), "y").await;
    assert_eq!(loaded(&node).await, ["x", "y"], "both fit");
    answer(node.client(), "x").await;
    answer(node.client(), "z").await;
    assert_eq!(loaded(&node).await, ["x", "z"], "y was used least recently");
    answer(node.client(), "pinned").await;
    assert_eq!(loaded(&node).await, ["pinned", "z"]);
    for model in ["x", "y", "z", "x"] {
        answer(node.client(), model).await;
        assert_eq!(loaded(&node).await, ["pinned", model], "the pinned one was used least recently, and stays");
    }
    // CX-90
    let metrics = Client::new(&format!("http://{}", node.addresses().metrics)).get("/metrics").await.expect("metrics").text;
    let evictions = |model: &str| -> f64 {
        let rows = metrics.lines().filter(|row| row.starts_with("plexus_evictions_total{") && row.contains(&format!("model=\"{model}\"")));
        rows.filter_map(|row| row.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    assert_eq!(["x", "y", "z", "pinned"].map(evictions), [2.0, 2.0, 2.0, 0.0], "{metrics}");
}

#[tokio::test]
async fn what_is_pinned_by_hand_stays_so_over_a_restart_of_the_node() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::F16, "pinned = true");
    let mut node = shelf.node("a", 160, "").start().await;
    let by_hand = async |node: &plexus_tests::Node, word: &str, model: &str| {
        let reply = node.client().post(&format!("/v1/models/{word}"), &json!({"model_id": model})).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
    };
    let pinned = async |node: &plexus_tests::Node| {
        ready(&[node], 2).await;
        answer(node.client(), "x").await;
        answer(node.client(), "y").await;
        let mut pinned: Vec<String> =
            replicas(node).await.into_iter().filter(|replica| replica.pinned).map(|replica| replica.model.to_string()).collect();
        pinned.sort();
        pinned
    };
    assert_eq!(pinned(&node).await, ["y"]);
    by_hand(&node, "pin", "x").await;
    by_hand(&node, "unpin", "y").await;
    node.kill().await;
    node.start_again().await;
    assert_eq!(pinned(&node).await, ["x"]);

    node.kill().await;
    std::fs::write(shelf.home.path().join(".local/share/plexus/nodes/a.pins"), "pinned \u{fffd}").unwrap();
    node.start_again().await;
    assert_eq!(pinned(&node).await, ["y"], "a damaged file is ignored");
    assert!(node.log().contains("pin it again"), "{}", node.log());
}

#[tokio::test]
async fn a_model_displaces_its_own_class_in_both_directions_and_those_below_and_none_above() {
    // CX-26
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("low", 60, Stored::F16, "residency_priority = 50");
    shelf.add("one", 60, Stored::F16, "");
    shelf.add("two", 60, Stored::F16, "");
    shelf.add("high", 60, Stored::F16, "residency_priority = 200");
    let node = shelf.node("a", 100, "").start().await;
    ready(&[&node], 4).await;
    for model in ["low", "one", "two", "one", "high"] {
        answer(node.client(), model).await;
        assert_eq!(loaded(&node).await, [model]);
    }
    for model in ["one", "low"] {
        let reply = ask(node.client(), model).await;
        assert_eq!(reply.status, 503, "{}", reply.text);
        assert!(reply.text.contains("'high' is of the higher class 200"), "{}", reply.text);
        assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
    }
    assert_eq!(loaded(&node).await, ["high"]);
}

/// A stream of the model "m" for somebody without a key, of which the first part has come.
async fn long_stream(node: &Node) -> EventStream {
    let mut body = question_body("m", "What is the capital of France?", true);
    (body["max_tokens"], body["ignore_eos"]) = (json!(400), json!(true));
    let mut stream = node.client().stream("/v1/chat/completions", &body).await.expect("it is answered");
    stream.next().await.expect("more comes").expect("it is whole");
    stream
}

/// Asks the model "m" with a key.
async fn ask_with_key(node: &Node) -> Reply {
    let mut body = question_body("m", "What is the capital of France?", false);
    (body["max_tokens"], body["ignore_eos"]) = (json!(4), json!(true));
    let keyed = [("authorization", "Bearer anything")];
    node.client().post_with("/v1/chat/completions", body.to_string(), &keyed).await.expect("it is answered")
}

#[tokio::test]
async fn requests_without_a_key_are_bounded_and_those_with_one_are_not() {
    // CX-93
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("m", 60, Stored::F16, "anonymous_max = 1");
    let node = shelf.node("a", 100, "").start().await;
    ready(&[&node], 1).await;
    let stream = long_stream(&node).await;
    let refused = ask(node.client(), "m").await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(refused.text.contains("1 requests without a key") && refused.header("retry-after").is_some(), "{}", refused.text);
    let reply = ask_with_key(&node).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    drop(stream);
    eventually("the place is free again", async || {
        let reply = ask(node.client(), "m").await;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test]
async fn whoever_finds_no_place_within_the_waiting_time_is_refused_with_a_time_to_come_back() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("m", 60, Stored::F16, "running_max = 1\nwaiting_time = \"100ms\"");
    let node = shelf.node("a", 100, "").start().await;
    ready(&[&node], 1).await;
    let mut stream = long_stream(&node).await;
    let refused = ask(node.client(), "m").await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(refused.text.contains("no place within 100ms"), "{}", refused.text);
    assert!(refused.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{:?}", refused.headers);
    stream.next().await.expect("the one before it goes on").expect("it is whole");
    drop(stream);
    eventually("the place is free again", async || {
        let reply = ask(node.client(), "m").await;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test]
async fn a_request_with_a_key_takes_the_place_in_the_queue_of_one_without() {
    // CX-93
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("m", 60, Stored::F16, "running_max = 1\nwaiting_max = 1");
    let node = shelf.node("a", 100, "").start().await;
    ready(&[&node], 1).await;
    let stream = long_stream(&node).await;
    let displaced = async {
        let displaced = ask(node.client(), "m").await;
        drop(stream);
        displaced
    };
    let others = async {
        eventually("one waits", async || {
            let waiting = replicas(&node).await[0].load.waiting;
            if waiting == 1 { Ok(()) } else { Err(waiting.to_string()) }
        })
        .await;
        let anonymous = ask(node.client(), "m").await;
        assert_eq!(anonymous.status, 429, "a second one without a key has no place to wait: {}", anonymous.text);
        ask_with_key(&node).await
    };
    let (displaced, keyed) = tokio::join!(displaced, others);
    assert_eq!((displaced.status, keyed.status), (429, 200), "{} {}", displaced.text, keyed.text);
}

#[tokio::test]
async fn a_model_with_requests_is_never_evicted_and_whoever_waits_for_its_room_is_served_when_it_is_idle() {
    // CX-43
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("busy", 60, Stored::F16, "");
    shelf.add("waits", 60, Stored::F16, "");
    let nodes = [shelf.node("a", 100, "").start().await, shelf.node("b", 20, "").start().await];
    ready(&nodes.each_ref(), 2).await;
    let mut body = question_body("busy", "What is the capital of France?", true);
    (body["max_tokens"], body["ignore_eos"]) = (json!(300), json!(true));
    let mut stream = nodes[1].client().stream("/v1/chat/completions", &body).await.expect("it is answered");
    for _ in 0..2 {
        stream.next().await.expect("more comes").expect("it is whole");
    }
    let clients: Vec<_> = nodes.iter().map(|node| node.client().clone()).collect();
    let waiting: Vec<_> = clients.into_iter().map(|client| tokio::spawn(async move { answer(&client, "waits").await })).collect();
    let streamed = tokio::spawn(stream.chat());
    while !streamed.is_finished() {
        let replicas = replicas(&nodes[0]).await;
        let is_busy = |id: &str| replicas.iter().any(|replica| replica.model.as_str() == id && replica.load.running > 0);
        if !is_busy("busy") {
            break; // it may have ended since
        }
        assert!(!is_busy("waits"), "{replicas:?}");
        assert_eq!(loads(&nodes[0]).await, 1, "nothing else is loaded meanwhile");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let streamed = tokio::time::timeout(DEADLINE, streamed).await.expect("the stream hangs").expect("it is read");
    assert!(streamed.done && streamed.error.is_none(), "{streamed:?}");
    assert_eq!(streamed.usage.expect("it was asked for")["completion_tokens"], 300);
    assert_eq!(nodes[1].counters("rerouted").await.unwrap().values().sum::<u64>(), 0, "it was never interrupted");
    for request in waiting {
        tokio::time::timeout(2 * DEADLINE, request).await.expect("a request hangs").expect("it is answered");
    }
    assert_eq!(loaded(&nodes[0]).await, ["waits"]);
}

#[tokio::test]
async fn a_model_that_nobody_uses_goes_after_its_time_and_comes_back_when_it_is_asked_for() {
    // CX-41
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("rare", 40, Stored::F16, "");
    shelf.add("kept", 40, Stored::F16, "pinned = true");
    let node = shelf.node("a", 200, "[eviction]\nidle_unload = \"1s\"").start().await;
    ready(&[&node], 2).await;
    let first = answer(node.client(), "rare").await;
    answer(node.client(), "kept").await;
    for _ in 0..2 {
        eventually("rare goes", async || {
            let loaded = loaded(&node).await;
            if loaded == ["kept"] { Ok(()) } else { Err(format!("{loaded:?}")) }
        })
        .await;
        let models = node.client().get("/v1/models").await.unwrap();
        let rare = models.json["data"].as_array().unwrap().iter().find(|model| model["id"] == "rare").expect("it is still listed");
        assert_eq!(rare["loaded"], false, "{rare}");
        assert_eq!(answer(node.client(), "rare").await, first);
    }
}

#[tokio::test]
async fn a_device_is_opened_anew_after_so_many_models_have_gone_from_it() {
    // CX-03
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::F16, "");
    let node = shelf.node("a", 100, "[eviction]\ndefrag_after_cycles = 3").start().await;
    ready(&[&node], 2).await;
    let x = answer(node.client(), "x").await;
    let y = answer(node.client(), "y").await;
    answer(node.client(), "x").await;
    assert!(!node.log().contains("opened anew"), "only two have gone");
    answer(node.client(), "y").await;
    eventually("the device is opened anew", async || if node.log().contains("opened anew") { Ok(()) } else { Err("not yet".into()) }).await;
    eventually("its model is there again, and the device has loaded nothing else", async || {
        let (loaded, loads) = (loaded(&node).await, loads(&node).await);
        if loaded == ["y"] && loads == 1 { Ok(()) } else { Err(format!("{loaded:?} after {loads} loads")) }
    })
    .await;
    assert_eq!((answer(node.client(), "y").await, answer(node.client(), "x").await), (y, x));
    let restarts: u32 =
        node.own_actors().await.unwrap().iter().filter(|actor| actor.path.starts_with("node/device")).map(|a| a.restarts).sum();
    assert_eq!(restarts, 0, "it is no failure");
}

#[tokio::test]
async fn a_device_that_is_opened_anew_often_on_purpose_costs_no_model_its_place() {
    // CX-03
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("stays", 20, Stored::F16, "pinned = true");
    shelf.add("x", 60, Stored::F16, "");
    shelf.add("y", 60, Stored::F16, "");
    // A model that ended twice within a minute by failures of its own would be given up.
    let sections = "[eviction]\ndefrag_after_cycles = 1\n[supervision]\nrestarts_max = 1";
    let node = shelf.node("a", 140, sections).start().await;
    ready(&[&node], 3).await;
    let before = answer(node.client(), "stays").await;
    for n in 1..=4 {
        answer(node.client(), "x").await;
        answer(node.client(), "y").await;
        eventually("the device is opened anew once more", async || {
            let opened = node.log().matches("opened anew").count();
            if opened >= n { Ok(()) } else { Err(format!("{opened} times")) }
        })
        .await;
        assert_eq!(answer(node.client(), "stays").await, before);
    }
    assert!(loaded(&node).await.contains(&"stays".to_owned()));
    for word in ["ended too often", "actor ended"] {
        assert!(!node.log().contains(word), "{word}: {}", node.log());
    }
}
