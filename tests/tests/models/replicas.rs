//! Further replicas of a model: there while they are needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plexus_tests::client::question_body;
use plexus_tests::eventually;
use plexus_tests::wait::eventually_within;
use serde_json::json;

use crate::files::Stored;
use crate::{Shelf, alone, answer, ledger, loaded, loads, ready};

/// So many ask all the time, of a replica that serves one at a time.
const N_CLIENTS: usize = 12;
/// A spare replica goes a minute after its last use.
const SPARE_GOES: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_model_that_many_wait_for_gets_a_second_replica_which_goes_when_nobody_needs_it() {
    let alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("hot", 40, Stored::F16, "running_max = 1");
    let nodes = [shelf.node("a", 100, "").start().await, shelf.node("b", 100, "").start().await];
    ready(&nodes.each_ref(), 1).await;
    let first = answer(nodes[0].client(), "hot").await;
    let n_loaded = async || loaded(&nodes[0]).await.len() + loaded(&nodes[1]).await.len();
    assert_eq!(n_loaded().await, 1, "one is enough for one client");

    let enough = Arc::new(AtomicBool::new(false));
    let clients = (0..N_CLIENTS).map(|i| {
        let (client, enough) = (nodes[i % 2].client().clone(), Arc::clone(&enough));
        let mut body = question_body("hot", "What is the capital of France?", false);
        (body["max_tokens"], body["ignore_eos"]) = (json!(32), json!(true));
        tokio::spawn(async move {
            while !enough.load(Ordering::Relaxed) {
                let reply = client.post("/v1/chat/completions", &body).await.expect("the node answers");
                assert_eq!(reply.status, 200, "{}", reply.text);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    eventually("there are two replicas", async || if n_loaded().await == 2 { Ok(()) } else { Err("one".into()) }).await;
    enough.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("everybody is answered");
    }
    for node in &nodes {
        assert_eq!(loads(node).await, 1, "each node has loaded it once");
        eventually("the ledger agrees with the device", async || ledger::agrees(node, &shelf).await).await;
    }
    drop(alone); // what follows only takes time
    eventually_within(SPARE_GOES, "one of them goes", async || if n_loaded().await == 1 { Ok(()) } else { Err("both".into()) }).await;
    assert_eq!(answer(nodes[1].client(), "hot").await, first);
    for node in &nodes {
        assert_eq!(loads(node).await, 1, "the other one serves");
        eventually("the ledger agrees with the device", async || ledger::agrees(node, &shelf).await).await;
    }
}
