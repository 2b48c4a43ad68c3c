//! What is said of a model while it comes, is brought back, or cannot be loaded.

use plexus_tests::eventually;
use plexus_tests::process::run_plexus;
use plexus_tests::view::whole;
use serde_json::{Value, json};

use crate::files::Stored;
use crate::{Shelf, alone, answer, ask, entry, loaded, loads, ready};

#[tokio::test]
async fn a_model_is_told_as_unloaded_loading_and_how_far_loaded_recovering_and_failed_with_the_reason() {
    // CX-20, CX-22
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("slow", 240, Stored::F16, "quant = \"q4k\""); // reading and converting take time
    let broken = shelf.add("broken", 8, Stored::F16, "");
    let whole = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    let node = shelf.node("a", 200, "[supervision]\nrestarts_max = 40").start().await;
    ready(&[&node], 1).await;
    let client = node.client();

    let failed = eventually("the broken one has failed", async || {
        entry(client, "broken").await.filter(|entry| entry["status"] == "failed").ok_or("not yet".to_owned())
    })
    .await;
    assert!(failed["reason"].as_str().is_some_and(|why| why.contains("broken.gguf")), "{failed}");
    let listed = run_plexus(&shelf.home, &["models", "--node", client.base()], "").await;
    assert!(listed.stdout.contains("broken failed: "), "{listed:?}");

    let unloaded = entry(client, "slow").await.expect("it is listed");
    assert_eq!((&unloaded["status"], unloaded.get("progress")), (&json!("unloaded"), None), "{unloaded}");
    let begun = client.post("/v1/models/load", &json!({"model_id": "slow", "wait": false})).await.unwrap();
    assert_eq!((begun.status, &begun.json["status"]), (200, &json!("loading")), "{}", begun.text);
    let mut progress = Vec::new();
    eventually("the slow one is loaded", async || {
        let entry = entry(client, "slow").await.expect("it is listed");
        match entry["status"].as_str() {
            Some("loaded") => Ok(()),
            Some("loading") => {
                progress.push(entry["progress"].as_f64().unwrap_or_else(|| panic!("no progress in {entry}")));
                Err(entry.to_string())
            }
            Some("unloaded") if progress.is_empty() => Err("not yet begun".to_owned()),
            _ => panic!("{entry} after {progress:?}"),
        }
    })
    .await;
    assert!(progress.is_sorted() && progress.iter().any(|share| 0.0 < *share && *share < 1.0), "reading weights is seen: {progress:?}");
    let before = answer(client, "slow").await;

    let recovering = eventually("it is being brought back after the end of its actor", async || {
        let _is_between_two_lives = client.post("/v1/cluster/actors/kill", &json!({"path": "node/model/slow@cpu-0"})).await;
        let entry = entry(client, "slow").await.expect("it is listed");
        if entry["status"] == "recovering" { Ok(entry) } else { Err(entry.to_string()) }
    })
    .await;
    assert_eq!((&recovering["loaded"], &recovering["locations"][0]["node"]), (&json!(false), &json!("a")), "{recovering}");
    assert_eq!(answer(client, "slow").await, before);
}

#[tokio::test]
async fn what_an_entry_says_of_limits_cost_and_abilities_is_told_at_every_node_and_what_it_does_not_say_is_left_out() {
    // CX-23
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    let said = "limit = { context = 400, input = 300, output = 100 }\ncost = { input = 0.0, output = 0.25 }\ncapabilities = [\"polite\"]";
    let path = shelf.add("said", 8, Stored::F32, said);
    shelf.list("unsaid", &path, "");
    let a = shelf.node("a", 100, "").start().await;
    let other = Shelf { home: shelf.home.clone(), ..Shelf::new() };
    let b = other.node("b", 100, "").start().await;
    whole(&[&a, &b]).await;
    for node in [&a, &b] {
        let (said, unsaid) = eventually(&format!("{} has heard of both", node.name()), async || {
            let (said, unsaid) = (entry(node.client(), "said").await, entry(node.client(), "unsaid").await);
            let known = |entry: &Value| entry["max_model_len"].as_u64().is_some();
            said.zip(unsaid).filter(|(said, unsaid)| known(said) && known(unsaid)).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        assert_eq!(said["limit"], json!({"context": 400, "input": 300, "output": 100}), "{said}");
        assert_eq!(said["cost"], json!({"input": 0.0, "output": 0.25}), "free is told, and unknown is not: {said}");
        let told = ["max_model_len", "max_input_tokens", "max_output_tokens"].map(|key| said[key].as_u64());
        assert_eq!(told, [Some(400), Some(300), Some(100)], "{said}");
        assert!(said["capabilities"].as_array().is_some_and(|words| words.contains(&json!("polite"))), "{said}");
        assert!(unsaid.get("limit").is_none() && unsaid.get("cost").is_none(), "{unsaid}");
        assert_eq!(unsaid["max_model_len"], 512, "what its files say: {unsaid}");
    }
}

#[tokio::test]
async fn entries_that_cannot_be_preloaded_keep_no_other_from_it() {
    // CX-50
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    let broken = shelf.add("broken", 8, Stored::F16, "preload = true");
    let whole = std::fs::read(&broken).unwrap();
    std::fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    let missing = shelf.home.path().join("not-there.gguf");
    shelf.list("missing", &missing, "preload = true");
    shelf.add("too-large", 130, Stored::F16, "preload = true");
    shelf.add("good", 8, Stored::F32, "preload = true");
    let node = shelf.node("a", 100, "").start().await;
    eventually("the good one is loaded without being asked for", async || {
        let loaded = loaded(&node).await;
        if loaded == ["good"] { Ok(()) } else { Err(format!("{loaded:?}")) }
    })
    .await;
    node.is_healthy().await;
    answer(node.client(), "good").await;
    assert_eq!(loads(&node).await, 1, "and nothing else was read");
    for (model, why) in [("broken", "broken.gguf"), ("missing", "not-there.gguf"), ("too-large", "MiB needed")] {
        let refused = ask(node.client(), model).await;
        assert!(refused.status == 503 && refused.text.contains(why), "{model}: {} {}", refused.status, refused.text);
    }
}
