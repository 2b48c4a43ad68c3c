//! Memory: no node takes more than it may, and what does not fit is refused before anything is read.

use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plexus_tests::memory::memory_of;
use plexus_tests::process::run_plexus;
use plexus_tests::{Client, DEADLINE, Node, eventually};

use crate::files::Stored;
use crate::{SERVING, Shelf, alone, answer, ask, ledger, loads, ready};

/// The greatest memory of a process while it is watched.
struct Watch {
    before: u64,
    stop: Arc<AtomicBool>,
    greatest: std::thread::JoinHandle<u64>,
}

impl Watch {
    fn start(node: &Node) -> Self {
        let before = node.memory().expect("the node runs").resident;
        let (pid, stop) = (node.pid(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let greatest = std::thread::spawn(move || {
            let mut greatest = 0;
            while !stopped.load(Ordering::Relaxed) {
                greatest = greatest.max(memory_of(pid).map_or(0, |memory| memory.resident));
                std::thread::sleep(Duration::from_millis(2));
            }
            greatest
        });
        Self { before, stop, greatest }
    }

    /// How much more it had than at first, at most.
    fn growth(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.greatest.join().expect("watching does not fail").saturating_sub(self.before)
    }
}

async fn ledger_holds(node: &Node) -> Result<(), String> {
    for device in node.view().await?.nodes.into_iter().find(|one| one.this_node).expect("a node sees itself").summary.devices {
        assert!(device.memory_used <= device.memory_total, "{} promised more than it has: {device:?}", node.name());
    }
    Ok(())
}

#[tokio::test]
async fn eight_models_that_do_not_fit_together_are_served_by_three_unequal_nodes_within_their_budgets() {
    // CX-25, CX-40, CX-41, CX-43
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    let kinds = [Stored::F16, Stored::Q8_0, Stored::F32];
    let ids: Vec<String> = (0..8).map(|i| format!("m{i}")).collect();
    for (i, id) in ids.iter().enumerate() {
        shelf.add(id, 60 + 6 * i as u64, kinds[i % 3], "");
    }
    let budgets = [("a", 300u64), ("b", 200), ("c", 100)];
    let mut nodes = Vec::new();
    for (name, megabytes) in budgets {
        nodes.push(shelf.node_within(name, megabytes).start().await);
    }
    let all: Vec<&Node> = nodes.iter().collect();
    ready(&all, 8).await;
    let watches: Vec<Watch> = nodes.iter().map(Watch::start).collect();

    let mut answers: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..3 {
        let mut requests = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            for i in 0..ids.len() {
                let id = ids[(i + 3 * n + round) % ids.len()].clone();
                let client = node.client().clone();
                requests.push(tokio::spawn(async move { (id.clone(), answer(&client, &id).await) }));
            }
        }
        for request in requests {
            let (id, text) = tokio::time::timeout(4 * DEADLINE, request).await.expect("a request hangs").expect("it is answered");
            let first = answers.entry(id.clone()).or_insert_with(|| text.clone());
            assert_eq!(*first, text, "{id} answers alike wherever and however often it is loaded");
            for node in &nodes {
                ledger_holds(node).await.expect("the node answers");
            }
        }
    }
    assert_eq!(answers.len(), 8);
    for node in &nodes {
        eventually("the ledger agrees with the device", async || ledger::agrees(node, &shelf).await).await;
    }
    for ((node, watch), (name, megabytes)) in nodes.iter().zip(watches).zip(budgets) {
        let growth = watch.growth();
        let (loads, evicted) = (loads(node).await, node.counters("evicted").await.expect("the node answers"));
        eprintln!("{name}: {:.1} MB more than before, of {megabytes} MB; {loads} loads, {evicted:?}", growth as f64 / 1e6);
        assert!(growth <= megabytes * 1_000_000, "{name} took {growth} bytes for its models and serving, of {megabytes} MB");
    }
}

#[tokio::test]
async fn concurrent_first_requests_at_three_nodes_cause_one_load() {
    // CX-42
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("cold", 40, Stored::F16, "replicas_max = 1"); // else those that queue may be worth another
    let nodes = [shelf.node("a", 300, "").start().await, shelf.node("b", 300, "").start().await, shelf.node("c", 300, "").start().await];
    ready(&nodes.each_ref(), 1).await;
    let mut requests = Vec::new();
    for _ in 0..4 {
        for node in &nodes {
            let client = node.client().clone();
            requests.push(tokio::spawn(async move { answer(&client, "cold").await }));
        }
    }
    for request in requests {
        tokio::time::timeout(2 * DEADLINE, request).await.expect("a request hangs").expect("it is answered");
    }
    let mut n_loads = 0;
    for node in &nodes {
        n_loads += loads(node).await;
    }
    assert_eq!(n_loads, 1);
}

// CX-41
#[tokio::test]
async fn only_requests_that_waited_for_a_load_are_marked_as_cold_starts() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("a", 8, Stored::F32, "");
    let n1 = shelf.node("n1", 100, "").start().await;
    ready(&[&n1], 1).await;
    answer(n1.client(), "a").await;
    answer(n1.client(), "a").await;
    let text = Client::new(&format!("http://{}", n1.addresses().metrics)).get("/metrics").await.expect("metrics").text;
    let counted = |name: &str, labels: &[&str]| -> Vec<String> {
        let rows = text.lines().filter(|row| row.starts_with(name) && labels.iter().all(|label| row.contains(label)));
        rows.filter_map(|row| row.rsplit(' ').next()).map(str::to_owned).collect()
    };
    assert_eq!(counted("plexus_cold_starts_total{", &["model=\"a\"", "node=\"n1\""]), ["1"], "{text}");
    for name in ["plexus_requests_total{", "plexus_time_to_first_token_seconds_count{"] {
        for cold_start in ["cold_start=\"true\"", "cold_start=\"false\""] {
            assert_eq!(counted(name, &["model=\"a\"", cold_start]), ["1"], "{name} {cold_start} in\n{text}");
        }
    }
}

#[tokio::test]
async fn what_cannot_fit_is_refused_before_anything_is_read_and_what_nobody_lists_does_not_exist() {
    // CX-40 (4), CX-48, CX-53
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("large", 130, Stored::F16, "");
    shelf.add("stays", 60, Stored::F16, "pinned = true");
    shelf.add("other", 61, Stored::F16, "");
    let nodes = [shelf.node("a", 100, "").start().await, shelf.node("b", 20, "").start().await];
    ready(&nodes.each_ref(), 3).await;
    for node in &nodes {
        let reply = ask(node.client(), "large").await;
        assert_eq!(reply.status, 503, "{}", reply.text);
        assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
        for words in ["a/cpu-0", "b/cpu-0", "MiB needed", "95.4 MiB", "19.1 MiB"] {
            assert!(reply.text.contains(words), "no {words} in {}", reply.text);
        }
        let reply = node.client().post("/v1/models/load", &json!({"model_id": "large"})).await.unwrap();
        assert!(reply.status == 503 && reply.text.contains("MiB needed"), "by hand too: {} {}", reply.status, reply.text);
        let reply = ask(node.client(), "nobody/lists-this").await;
        assert_eq!((reply.status, reply.json["error"]["code"].as_str()), (404, Some("model_not_found")), "{}", reply.text);
    }
    for node in &nodes {
        assert_eq!(loads(node).await, 0, "nothing was read on {}", node.name());
    }
    answer(nodes[1].client(), "stays").await;
    let reply = ask(nodes[1].client(), "other").await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
    assert!(reply.text.contains("MiB available") && reply.text.contains("'stays' is pinned"), "{}", reply.text);
    assert_eq!(loads(&nodes[0]).await, 1, "only the one that fits was read");
    let models = nodes[0].client().get("/v1/models").await.unwrap();
    assert!(models.json["data"].as_array().is_some_and(|data| data.iter().all(|model| model["id"] != "large")), "CX-21: {}", models.text);
    let one = nodes[0].client().get("/v1/models/large").await.unwrap();
    assert_eq!((one.status, &one.json["status"]), (200, &json!("failed")), "whoever names it is told why: {}", one.text);
    assert!(one.json["reason"].as_str().is_some_and(|why| why.contains("MiB needed")), "{}", one.text);
    let all = nodes[0].client().get("/v1/models?all=true").await.unwrap();
    assert!(all.json["data"].as_array().is_some_and(|data| data.contains(&one.json)), "{}", all.text);
    let listed = run_plexus(&shelf.home, &["models", "--node", nodes[0].client().base()], "").await;
    assert!(listed.stdout.contains("large failed: ") && listed.stdout.contains("MiB needed"), "{listed:?}");
}

#[tokio::test]
async fn memory_of_a_model_that_has_gone_goes_back_to_the_system() {
    // CX-43
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("one", 80, Stored::F16, "");
    shelf.add("two", 80, Stored::Q8_0, "");
    let node = shelf.node("a", 300, "[eviction]\nidle_unload = \"1s\"").start().await;
    ready(&[&node], 2).await;
    let before = node.memory().expect("the node runs").resident;
    for _ in 0..3 {
        answer(node.client(), "one").await;
        answer(node.client(), "two").await;
        assert!(node.memory().expect("the node runs").resident > before + 140_000_000, "both are there");
        eventually("both go when nobody uses them, with their memory", async || {
            let (left, replicas) = (node.memory().expect("the node runs").resident.saturating_sub(before), crate::replicas(&node).await);
            if left < SERVING && replicas.is_empty() { Ok(()) } else { Err(format!("{left} bytes, {replicas:?}")) }
        })
        .await;
        let view = node.view().await.unwrap();
        assert_eq!(view.nodes[0].summary.devices[0].memory_used.0, 0, "the ledger says so too");
    }
}
