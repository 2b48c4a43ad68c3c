//! Where models may be, and who goes first, by what their entries and `[eviction]` say.

use serde_json::json;

use crate::files::Stored;
use crate::{Shelf, alone, answer, ask, entry, loaded, ready};

#[tokio::test]
async fn entries_keep_models_to_their_nodes_and_the_lowest_class_goes_first_where_priority_says_so() {
    // CX-02, CX-24, CX-26
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("kept", 30, Stored::F16, "pinned_on = [\"small\"]");
    shelf.add("twin", 30, Stored::F16, "min_devices = 2");
    shelf.add("wide", 30, Stored::F16, "min_device_memory = \"120MB\"");
    shelf.add("low", 50, Stored::F16, "residency_priority = 50\npinned_on = [\"large\"]");
    shelf.add("high", 50, Stored::F16, "residency_priority = 200\npinned_on = [\"large\"]");
    let priority = "[eviction]\nstrategy = \"priority\"";
    let (small, large) = (shelf.node("small", 80, priority).start().await, shelf.node("large", 160, priority).start().await);
    ready(&[&small, &large], 5).await;

    answer(large.client(), "kept").await;
    answer(small.client(), "wide").await;
    assert_eq!((loaded(&small).await, loaded(&large).await), (vec!["kept".to_owned()], vec!["wide".to_owned()]));
    for (model, nodes) in [("kept", json!(["small"])), ("wide", json!(["large"]))] {
        let entry = entry(small.client(), model).await.expect("it is listed");
        assert_eq!(entry["feasible_on"], nodes, "{entry}");
    }
    assert_eq!(entry(small.client(), "twin").await, None, "CX-21: no node can hold it");
    let refused = ask(small.client(), "twin").await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("it wants 2 devices"), "{}", refused.text);
    let refused = small.client().post("/v1/models/load", &json!({"model_id": "kept", "node": "large"})).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("pinned_on names other nodes"), "by hand neither: {}", refused.text);

    answer(large.client(), "low").await;
    assert_eq!(loaded(&large).await, ["low", "wide"], "both fit");
    answer(large.client(), "high").await;
    assert_eq!(loaded(&large).await, ["high", "wide"], "the lowest class goes, though it was used last");
}

#[tokio::test]
async fn a_model_that_is_kept_warm_stays_and_whoever_waits_for_it_hears_so_when_its_time_is_over() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("warm", 60, Stored::F16, "");
    shelf.add("waits", 60, Stored::F16, "");
    let node = shelf.node("a", 100, "[eviction]\nkeep_warm = \"1h\"\n[streams]\nload_timeout = \"1s\"").start().await;
    ready(&[&node], 2).await;
    answer(node.client(), "warm").await;
    let refused = ask(node.client(), "waits").await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("'warm' is kept warm for 3600 s after its last use"), "{}", refused.text);
    assert_eq!(refused.header("retry-after"), Some("300"), "that is the longest that anybody is told: {}", refused.text);
    assert_eq!(loaded(&node).await, ["warm"]);
    let id = refused.header("x-request-id").expect("every answer has an id");
    let explained = node.client().get(&format!("/v1/cluster/explain/{id}")).await.unwrap();
    assert_eq!(explained.status, 200, "{}", explained.text);
    let decision = explained.json["decision"].as_str().unwrap_or_default();
    assert!(decision.contains("waited in vain") && decision.contains("'warm' is kept warm"), "{}", explained.text);
    assert_eq!(explained.json["considered"][0]["place"], "a/cpu-0", "{}", explained.text);

    let unloaded = node.client().post("/v1/models/unload", &json!({"model_id": "warm"})).await.unwrap();
    assert_eq!(unloaded.status, 200, "by hand it goes: {}", unloaded.text);
    answer(node.client(), "waits").await;
    assert_eq!(loaded(&node).await, ["waits"]);
}
