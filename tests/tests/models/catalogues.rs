//! Nodes that list different models, or the same one differently.

use plexus_tests::eventually;
use serde_json::json;

use crate::files::Stored;
use crate::{Shelf, alone, answer, ask, ready, replicas};

#[tokio::test]
async fn different_catalogues_merge_a_conflict_is_shown_and_the_newer_file_counts() {
    // CX-20, CX-23
    let _alone = alone().await;
    let mut older = Shelf::new();
    let common = older.add("common", 40, Stored::F16, "residency_priority = 5");
    older.add("only-a", 40, Stored::F16, "");
    let mut newer = Shelf { home: older.home.clone(), entries: String::new(), paths: older.paths.clone() };
    newer.list("common", &common, "residency_priority = 7");
    newer.add("only-b", 40, Stored::Q8_0, "");
    let a = older.node("a", 200, "").start().await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await; // the second file is newer
    let b = newer.node("b", 200, "").start().await;
    ready(&[&a, &b], 2).await;
    for node in [&a, &b] {
        eventually("the catalogues are one", async || {
            let models = node.client().get("/v1/models").await.map_err(|error| error.to_string())?;
            let entries = models.json["data"].as_array().cloned().unwrap_or_default();
            let ids: Vec<&str> = entries.iter().filter_map(|model| model["id"].as_str()).collect();
            if ids == ["common", "only-a", "only-b"] { Ok(()) } else { Err(models.text) }
        })
        .await;
        let conflicts = node.view().await.unwrap().conflicts;
        assert_eq!(conflicts.len(), 1, "{conflicts:?}");
        assert!(conflicts[0].contains("'common'") && conflicts[0].contains("'b' counts"), "{conflicts:?}");
        for model in ["common", "only-a", "only-b"] {
            answer(node.client(), model).await;
        }
    }
    let all = [replicas(&a).await, replicas(&b).await].concat();
    let common: Vec<u32> = all.iter().filter(|one| one.model.as_str() == "common").map(|one| one.residency_priority).collect();
    assert_eq!(common, [7], "wherever it is loaded, the newer file counts");
}

#[tokio::test]
async fn an_alias_is_listed_and_answers_as_the_model_that_it_stands_for() {
    // CX-27
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    let path = shelf.add("org/model", 40, Stored::F16, "");
    let aliases = "[aliases]\n\"hidden\" = \"org/model\"\n\"plexus/small\" = \"org/model\"\n\"lost\" = \"nobody/lists-this\"";
    let named = shelf.node("a", 200, aliases).start().await;
    let hides = format!("[[models]]\nid = \"hidden\"\nsource = \"{}\"\n", path.display());
    let other = shelf.node("b", 200, &hides).start().await;
    ready(&[&named, &other], 1).await;
    for node in [&named, &other] {
        eventually("both names are listed", async || {
            let models = node.client().get("/v1/models").await.map_err(|error| error.to_string())?;
            let ids: Vec<String> =
                models.json["data"].as_array().into_iter().flatten().filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect();
            if ids == ["hidden", "org/model", "plexus/small"] { Ok(()) } else { Err(models.text) }
        })
        .await;
        assert_eq!(answer(node.client(), "plexus/small").await, answer(node.client(), "org/model").await);
        let one = node.client().get("/v1/models/plexus/small").await.unwrap();
        assert_eq!(one.status, 200, "{}", one.text);
        let conflicts = node.view().await.unwrap().conflicts;
        assert!(conflicts.iter().any(|told| told.contains("'lost' stands for 'nobody/lists-this'")), "{conflicts:?}");
        let hidden = ["alias 'hidden' of 'org/model'", "on 'a', is hidden", "on 'b'", "rename"];
        assert!(conflicts.iter().any(|told| hidden.iter().all(|part| told.contains(part))), "{conflicts:?}");
    }
    let (a, b) = (named.client(), other.client());
    let by_hand = b.post("/v1/models/load", &json!({"model_id": "lost"})).await.unwrap();
    for refused in [ask(b, "lost").await, by_hand, a.get("/v1/models/lost").await.unwrap()] {
        assert!(refused.text.contains("lost") && refused.text.contains("'nobody/lists-this'"), "both names are told: {}", refused.text);
    }
    assert_eq!(ask(a, "lost").await.status, 404);
    assert_eq!(crate::loads(&named).await + crate::loads(&other).await, 1, "one model under two names");
}

#[tokio::test]
async fn the_context_that_an_entry_asks_for_decides_how_a_model_with_two_sets_of_rotary_factors_answers() {
    let _alone = alone().await;
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden/phi4/phi4-bf16.gguf");
    let mut shelf = Shelf::new();
    // It was first trained on 128 tokens, and has 512.
    let contexts = ["", "context_length = 129", "context_length = 128", "context_length = 96"];
    for (i, keys) in contexts.iter().enumerate() {
        shelf.list(&format!("model-{i}"), &golden, keys);
    }
    let node = shelf.node("a", 200, "").start().await;
    ready(&[&node], 4).await;
    let mut answers = Vec::new();
    for i in 0..contexts.len() {
        let prompt = "Hello, world! The quick brown fox jumps over the lazy dog.";
        let body = json!({"model": format!("model-{i}"), "prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": true});
        let reply = node.client().post("/v1/completions", &body).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
        answers.push(reply.json["choices"][0]["text"].to_string());
    }
    assert_eq!(answers[0], answers[1], "long factors");
    assert_eq!(answers[2], answers[3], "short factors");
    assert_ne!(answers[0], answers[2]);
}
