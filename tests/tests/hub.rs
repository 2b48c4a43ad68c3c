//! Models from a hub: fetched once from outside, from node to node after that, and never half.

#[path = "../../store/tests/mirror/mod.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "of the tests of the store, which use the rest; what unwraps in vain has failed")]
mod mirror;

use std::path::Path;

use mirror::{Faults, Mirror};
use plexus_tests::view::whole;
use plexus_tests::{DEADLINE, Home, Node, Reply, eventually};
use serde_json::json;

const FRANCE: &str = "What is the capital of France?";

fn pip() -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip/pip-q8_0.gguf");
    std::fs::read(file).expect("the demo model is part of the repository")
}

/// A node that lists `hf:org/pip:Q8_0` as `capitals`, with a cache of its own.
async fn node(home: &Home, name: &str, mirror: &Mirror) -> Node {
    let config = home.path().join("cluster.toml");
    let text = format!("[store]\nendpoint = \"{}\"\n[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n", mirror.endpoint());
    std::fs::write(&config, text).expect("a file in a temporary folder can be written");
    let cache = home.path().join(format!("cache-{name}"));
    let text = |path: &Path| path.to_str().expect("temporary folders have names of text").to_owned();
    home.node(name).arg("--config", &text(&config)).env("HF_HUB_CACHE", &text(&cache)).start().await
}

async fn ask(node: &Node) -> Reply {
    node.client().ask("capitals", FRANCE).await.expect("the node answers")
}

#[tokio::test]
async fn a_model_is_fetched_once_from_outside_and_from_node_to_node_after_that() {
    // CX-41, CX-52
    let file = pip();
    let n_bytes = file.len() as u64;
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", file), ("README.md", b"not needed".to_vec())]).await;
    let home = Home::new();
    let nodes = [node(&home, "n1", &mirror).await, node(&home, "n2", &mirror).await, node(&home, "n3", &mirror).await];
    whole(&nodes.each_ref()).await;
    for node in &nodes {
        node.offers_on_demand("capitals").await;
    }
    let first = tokio::time::timeout(DEADLINE, async { futures::future::join_all(nodes.iter().map(ask)).await }).await.expect("answered");
    for reply in first {
        assert!(reply.chat_text().contains("Paris"), "{}", reply.text);
    }
    for name in ["n1", "n2", "n3"] {
        let loaded = nodes[0].client().post("/v1/models/load", &json!({"model_id": "capitals", "node": name})).await.unwrap();
        assert_eq!((loaded.status, &loaded.json["status"]), (200, &json!("loaded")), "{}", loaded.text);
    }
    assert_eq!(mirror.bytes_sent(), n_bytes, "each byte came from outside once");
    let models = nodes[2].client().get("/v1/models/capitals").await.unwrap();
    assert_eq!(models.json["locations"].as_array().map(Vec::len), Some(3), "{}", models.text);
}

#[tokio::test]
async fn a_download_that_arrives_damaged_never_becomes_a_model_and_says_so() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { corrupt: true, ..Faults::default() });
    let home = Home::new();
    let n1 = node(&home, "n1", &mirror).await;
    n1.offers_on_demand("capitals").await;
    let reply = tokio::time::timeout(DEADLINE, ask(&n1)).await.expect("it is refused");
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.text.contains("pip-Q8_0.gguf") && reply.header("retry-after").is_some(), "{}", reply.text);
    let listed = n1.client().get("/v1/models/capitals").await.unwrap();
    assert_eq!(listed.json["loaded"], json!(false), "{}", listed.text);

    mirror.fail(Faults::default());
    let loaded = n1.client().post("/v1/models/load", &json!({"model_id": "capitals"})).await.unwrap();
    assert_eq!(loaded.status, 200, "{}", loaded.text);
    assert!(ask(&n1).await.chat_text().contains("Paris"));
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let file = pip();
    let n_bytes = file.len() as u64;
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", file)]).await;
    mirror.fail(Faults { cut: Some((1 << 20, 2)), ..Faults::default() });
    let home = Home::new();
    let n1 = node(&home, "n1", &mirror).await;
    n1.offers_on_demand("capitals").await;
    let reply = tokio::time::timeout(DEADLINE, ask(&n1)).await.expect("it is answered");
    assert!(reply.chat_text().contains("Paris"), "{}", reply.text);
    eventually("what came before the cut was kept", async || {
        let sent = mirror.bytes_sent();
        if sent < n_bytes * 2 { Ok(()) } else { Err(format!("{sent} bytes of {n_bytes} were sent")) }
    })
    .await;
}
