//! Models come and go on real nodes: loaded when they are asked for, where there is room, and gone when others need it.

mod budgets;
mod by_hand;
mod catalogues;
mod copies;
mod doors;
mod eviction;
mod explain;
mod faults;
mod files;
mod found;
#[allow(clippy::unwrap_used, reason = "of the tests of the engine; what unwraps in vain has failed")]
#[path = "../../../engine/tests/support/gguf.rs"]
mod gguf;
mod ledger;
mod places;
mod replicas;
mod states;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use plexus_tests::client::question_body;
use plexus_tests::view::whole;
use plexus_tests::{Client, Home, Node, NodeBuilder, Reply, eventually};
use plexus_types::{ReplicaReport, ReplicaState};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::files::{Stored, untrained};

/// Each test wants the machine for itself.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    ONE_AT_A_TIME.lock().await
}

/// What a node keeps of its memory for serving.
const SERVING: u64 = 24 << 20;

/// A home folder with models in it, and what is listed of them.
struct Shelf {
    home: Home,
    entries: String,
    paths: BTreeMap<String, PathBuf>,
}

impl Shelf {
    fn new() -> Self {
        Self { home: Home::new(), entries: String::new(), paths: BTreeMap::new() }
    }

    /// Writes a model and lists it, with further keys of its entry.
    fn add(&mut self, id: &str, megabytes: u64, stored: Stored, keys: &str) -> PathBuf {
        let path = untrained(self.home.path(), id, megabytes, stored, self.entries.len() as u32 + 1);
        self.list(id, &path, keys);
        path
    }

    /// Lists a file.
    fn list(&mut self, id: &str, path: &std::path::Path, keys: &str) {
        self.paths.insert(id.to_owned(), path.to_owned());
        writeln!(self.entries, "[[models]]\nid = \"{id}\"\nsource = \"{}\"\n{keys}", path.display()).expect("a string takes text");
    }

    /// Writes the configuration of a node with so much memory for models, and further sections.
    fn configure(&self, name: &str, megabytes: u64, sections: &str) -> PathBuf {
        self.configure_within(name, megabytes * 1_000_000 + SERVING, sections)
    }

    /// Writes the configuration of a node with so many bytes for models and for serving them.
    fn configure_within(&self, name: &str, bytes: u64, sections: &str) -> PathBuf {
        let path = self.home.path().join(format!("{name}.toml"));
        let none = if self.entries.is_empty() { "models = []\n" } else { "" };
        let text = format!("{none}[devices]\ncpu_memory = \"{bytes}\"\n{sections}\n{}", self.entries);
        std::fs::write(&path, text).expect("a file in a temporary folder can be written");
        path
    }

    /// A node that lists all of it, with so much memory for models.
    fn node(&self, name: &str, megabytes: u64, sections: &str) -> NodeBuilder {
        self.start_with(name, self.configure(name, megabytes, sections))
    }

    /// A node that lists all of it, with so much memory for models and for serving them.
    fn node_within(&self, name: &str, megabytes: u64) -> NodeBuilder {
        self.start_with(name, self.configure_within(name, megabytes * 1_000_000, ""))
    }

    fn start_with(&self, name: &str, config: PathBuf) -> NodeBuilder {
        self.home.node(name).test_hooks().arg("--config", config.to_str().expect("temporary folders have names of text"))
    }
}

/// Waits until all nodes see each other, and all of so many models on each.
async fn ready(nodes: &[&Node], n_models: u64) {
    whole(nodes).await;
    for node in nodes {
        eventually(&format!("{} has looked at its files", node.name()), async || {
            let looked: u64 = node.counters("present").await?.values().sum();
            if looked >= n_models { Ok(()) } else { Err(format!("{looked} of {n_models}")) }
        })
        .await;
        eventually(&format!("{} knows all devices", node.name()), async || {
            let without = node.view().await?.nodes.iter().filter(|node| node.summary.devices.is_empty()).count();
            if without == 0 { Ok(()) } else { Err(format!("{without} without")) }
        })
        .await;
    }
}

/// Asks for a few tokens at temperature 0. Waits as long as a client does that waits for a load.
async fn ask(client: &Client, model: &str) -> Reply {
    let mut body = question_body(model, "What is the capital of France?", false);
    body["max_tokens"] = json!(4);
    body["ignore_eos"] = json!(true);
    client.post("/v1/chat/completions", &body).await.unwrap_or_else(|error| panic!("{model}: {error:?}"))
}

/// Asks, and wants an answer.
async fn answer(client: &Client, model: &str) -> String {
    let reply = ask(client, model).await;
    assert_eq!(reply.status, 200, "{model} through {}: {}", client.base(), reply.text);
    reply.json["choices"][0]["message"]["content"].to_string()
}

/// The replicas of a node, as it says itself.
async fn replicas(node: &Node) -> Vec<ReplicaReport> {
    let view = node.view().await.unwrap_or_else(|error| panic!("{}: {error}", node.name()));
    view.nodes.into_iter().find(|one| one.this_node).expect("a node sees itself").summary.replicas
}

/// The models that are loaded on a node, as it says itself.
async fn loaded(node: &Node) -> Vec<String> {
    let loaded = replicas(node).await.into_iter().filter(|replica| replica.state == ReplicaState::Loaded);
    let mut ids: Vec<String> = loaded.map(|replica| replica.model.to_string()).collect();
    ids.sort();
    ids
}

/// What `GET /v1/models` says of a model; nothing if it is not listed.
async fn entry(client: &Client, model: &str) -> Option<Value> {
    let models = client.get("/v1/models").await.expect("the node answers");
    models.json["data"].as_array().into_iter().flatten().find(|entry| entry["id"] == model).cloned()
}

/// How often a node has read weights since its device was opened.
async fn loads(node: &Node) -> u64 {
    node.counters("loads").await.expect("the node answers").values().sum()
}
