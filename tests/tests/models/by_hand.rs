//! Models loaded, unloaded, pinned and unpinned by hand, over HTTP and by commands.

use plexus_tests::client::question_body;
use plexus_tests::process::{Output, run_plexus};
use plexus_tests::{Node, Reply, eventually};
use serde_json::{Value, json};

use crate::files::Stored;
use crate::{Shelf, alone, answer, entry, loaded, ready};

async fn post(node: &Node, verb: &str, body: Value) -> Reply {
    node.client().post(&format!("/v1/models/{verb}"), &body).await.expect("the node answers")
}

#[track_caller]
fn refused(reply: &Reply, status: u16, words: &[&str]) {
    assert_eq!(reply.status, status, "{}", reply.text);
    let message = reply.json["error"]["message"].as_str().unwrap_or_else(|| panic!("no message in {}", reply.text));
    for word in words {
        assert!(message.contains(word), "no {word} in {message}");
    }
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_by_hand_where_one_says_and_refused_where_a_rule_would_break() {
    // CX-43, CX-44, CX-76
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 8, Stored::F32, "");
    shelf.add("stays", 8, Stored::F16, "pinned = true");
    let (a, b) = (shelf.node("a", 100, "").start().await, shelf.node("b", 100, "").start().await);
    ready(&[&a, &b], 2).await;

    let all = json!({"model_id": "x", "harness": "candle", "tensor_parallel": 1, "devices": ["cpu-0"], "node": "b"});
    let reply = post(&a, "load", all).await;
    assert_eq!((reply.status, &reply.json["status"], &reply.json["model_id"]), (200, &json!("loaded"), &json!("x")), "{}", reply.text);
    let chosen = reply.json["considered"].as_array().and_then(|all| all.iter().find(|place| place["chosen"] == true)).cloned();
    assert_eq!(chosen.expect("a place was chosen")["place"], "b/cpu-0");
    assert_eq!((loaded(&a).await, loaded(&b).await), (vec![], vec!["x".to_owned()]));
    let endpoint = |model: &'static str| {
        let client = a.client().clone();
        async move { client.get(&format!("/v1/models/{model}/endpoint")).await.expect("the node answers").json }
    };
    let served = endpoint("x").await;
    assert_eq!(
        (&served["status"], &served["node"], &served["url"]),
        (&json!("loaded"), &json!("b"), &json!(b.client().base())),
        "{served}"
    );
    assert_eq!(served["locations"][0]["url"], served["url"]);
    answer(&plexus_tests::Client::new(served["url"].as_str().expect("a URL")), "x").await;
    let not_yet = endpoint("stays").await;
    let told = [&not_yet["status"], &not_yet["node"], &not_yet["url"], &not_yet["device"]];
    assert_eq!(
        told,
        [&json!("unloaded"), &json!("a"), &json!(a.client().base()), &Value::Null],
        "the node that answers will have it loaded"
    );
    let again = post(&a, "load", json!({"model": "x"})).await;
    assert_eq!((again.status, &again.json["status"]), (200, &json!("loaded")), "{}", again.text);
    assert!(again.json["decision"].as_str().is_some_and(|text| text.contains("b/cpu-0")), "{}", again.text);
    let reply = a.client().post("/models/load", &json!({"model_id": "stays", "node": "a", "wait": false})).await.unwrap();
    assert!(reply.status == 200 && ["loading", "loaded"].map(Value::from).contains(&reply.json["status"]), "{}", reply.text);
    a.offers("stays").await;

    for (body, status, words) in [
        (json!({"model_id": "nobody/lists-this"}), 404, &["nobody/lists-this"][..]),
        (json!({"model_id": "x", "node": "nowhere"}), 400, &["'nowhere'", "GET /v1/cluster lists them: a, b"]),
        (json!({"model_id": "x", "device": "cuda-7"}), 400, &["cuda-7", "GET /v1/cluster"]),
        (json!({"model_id": "x", "harness": "llamacpp"}), 400, &["llamacpp", "leave it out"]),
        (json!({"model_id": "x", "tensor_parallel": 2}), 400, &["tensor_parallel is 2", "quant"]),
        (json!({"model_id": "x", "quant": "q4k"}), 400, &["q4k", "[[models]] entry"]),
        (json!({"model_id": "x", "nod": "b"}), 400, &["nod", "node"]),
        (json!({"model_id": "x", "node": "b", "device": "cuda-7"}), 400, &["the node 'b' has no device 'cuda-7'"]),
    ] {
        refused(&post(&a, "load", body).await, status, words);
    }

    let mut body = question_body("x", "What is the capital of France?", true);
    (body["max_tokens"], body["ignore_eos"]) = (json!(2000), json!(true));
    let mut stream = a.client().stream("/v1/chat/completions", &body).await.expect("it is answered");
    stream.next().await.expect("more comes").expect("it is whole");
    let busy = post(&a, "unload", json!({"model_id": "x"})).await;
    refused(&busy, 503, &["'x' has requests on b/cpu-0", "when they have ended"]);
    assert!(busy.header("retry-after").is_some(), "{:?}", busy.headers);
    stream.next().await.expect("it goes on").expect("it is whole");
    drop(stream);
    eventually("it is unloaded once nobody uses it", async || {
        let reply = post(&a, "unload", json!({"model_id": "x", "node": "b", "device": "cpu-0"})).await;
        assert!(reply.status != 200 || reply.json["from"] == json!(["b/cpu-0"]), "{}", reply.text);
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
    eventually("it is gone", async || if loaded(&b).await.is_empty() { Ok(()) } else { Err("still there".into()) }).await;

    refused(&post(&b, "unload", json!({"model_id": "stays"})).await, 400, &["'stays' is pinned on a/cpu-0", "unpin it first"]);
    let place = &entry(b.client(), "stays").await.expect("it is listed")["locations"][0];
    assert_eq!((&place["node"], &place["pinned"]), (&json!("a"), &json!(true)), "{place}");
    assert_eq!(loaded(&a).await, ["stays"]);
    let unpinned = post(&b, "unpin", json!({"model_id": "stays"})).await;
    assert_eq!((unpinned.status, &unpinned.json["on"]), (200, &json!(["a/cpu-0"])), "{}", unpinned.text);
    let unloaded = post(&b, "unload", json!({"model_id": "stays"})).await;
    assert_eq!((unloaded.status, &unloaded.json["status"]), (200, &json!("unloaded")), "{}", unloaded.text);
    let gone = eventually("the others hear of it", async || {
        let reply = post(&b, "unload", json!({"model_id": "stays"})).await;
        if reply.text.contains("is not loaded on any node") { Ok(reply) } else { Err(reply.text) }
    })
    .await;
    refused(&gone, 400, &["'stays' is not loaded on any node", "GET /v1/models"]);
    let there = entry(b.client(), "stays").await.expect("it is still listed");
    assert_eq!((&there["status"], &there["loaded"]), (&json!("unloaded"), &json!(false)), "{there}");
}

#[track_caller]
fn says(output: &Output, words: &[&str]) {
    assert!(output.success, "{output:?}");
    words.iter().for_each(|word| assert!(output.stdout.contains(word), "no {word} in {output:?}"));
}

#[track_caller]
fn complains(output: &Output, words: &[&str]) {
    assert!(!output.success && output.stdout.is_empty(), "{output:?}");
    words.iter().for_each(|word| assert!(output.stderr.contains(word), "no {word} in {output:?}"));
}

#[tokio::test]
async fn the_commands_say_what_they_did_and_end_with_an_error_where_they_are_refused() {
    // CX-43
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("x", 8, Stored::F32, "");
    let (a, b) = (shelf.node("a", 100, "").start().await, shelf.node("b", 100, "").start().await);
    ready(&[&a, &b], 1).await;
    let models = async |words: &[&str]| run_plexus(&shelf.home, &[&["models"], words, &["--node", a.client().base()]].concat(), "").await;

    says(&models(&["load", "x", "--node", "b", "--device", "cpu-0"]).await, &["x answers: it is loaded on b/cpu-0", "free"]);
    assert_eq!(loaded(&b).await, ["x"]);
    says(&models(&["load", "x", "--no-wait"]).await, &["b/cpu-0"]);
    for command in ["load", "unload", "pull", "pin", "unpin"] {
        complains(&models(&[command, "x", "--node", "c"]).await, &["there is no node 'c'", "a, b"]);
    }
    complains(&models(&["pin", "x", "--node", "a"]).await, &["'x' is not loaded on a"]);
    says(&models(&["pin", "x", "--node", "b"]).await, &["x is pinned on b/cpu-0: it stays until it is unpinned"]);
    complains(&models(&["unpin", "x", "--node", "a"]).await, &["'x' is not loaded on a"]);
    complains(&models(&["unload", "x"]).await, &["'x' is pinned on b/cpu-0", "unpin it first"]);
    says(&models(&["unpin", "x", "--node", "b"]).await, &["x is no longer pinned on b/cpu-0"]);
    says(&models(&["pin", "x"]).await, &["x is pinned on b/cpu-0"]);
    says(&models(&["unpin", "x"]).await, &["x is no longer pinned on b/cpu-0"]);
    says(&models(&["unload", "x", "--node", "b"]).await, &["x is unloaded from b/cpu-0"]);
    eventually("it is listed as unloaded", async || {
        let listed = models(&["list"]).await.stdout;
        if listed.contains("unloaded") && listed.contains("on demand: a, b") { Ok(()) } else { Err(listed) }
    })
    .await;
    complains(&models(&["unload", "x"]).await, &["'x' is not loaded on any node"]);
    complains(&models(&["unload", "x", "--node", "b", "--device", "cpu-0"]).await, &["'x' is not loaded on b/cpu-0"]);
    complains(&models(&["pin", "x"]).await, &["'x' is not loaded on any node"]);
    complains(&models(&["load", "y"]).await, &["'y'"]);
    says(&models(&["pull", "x", "--node", "b"]).await, &["the files of x are on b"]);
    complains(&models(&["pull", "y"]).await, &["'y'"]);
    assert_eq!((loaded(&a).await.len(), loaded(&b).await.len()), (0, 0), "a pull loads nothing");
    answer(a.client(), "x").await;
}
