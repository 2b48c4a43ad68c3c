//! Files that are replaced where they lie, of which other nodes have copies; and nodes with different files under one name.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use plexus_tests::{Client, Node, eventually};
use serde_json::json;

use crate::files::{Stored, untrained};
use crate::{Shelf, alone, answer, ask, entry, loaded, ready, replicas};

async fn post(client: &Client, path: &str, body: serde_json::Value) {
    let reply = client.post(path, &body).await.expect("the node answers");
    assert_eq!(reply.status, 200, "{path}: {}", reply.text);
}

/// A node whose working folder is its own, so that what lies there is at a path of the same name at each, and on none but it.
async fn start_in(shelf: &Shelf, name: &str, sections: &str) -> Node {
    let folder = shelf.home.path().join(name);
    std::fs::create_dir_all(&folder).expect("a temporary folder can be written");
    let within = ["env", "-C", folder.to_str().expect("temporary folders have names of text")];
    shelf.node(name, 200, sections).inside(&within, IpAddr::V4(Ipv4Addr::LOCALHOST)).start().await
}

#[tokio::test]
async fn once_a_file_is_replaced_where_it_lies_the_old_one_is_served_no_more_nor_are_copies_of_it() {
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.list("m", Path::new("/proc/self/cwd/m.gguf"), "pinned = true");
    let [old, new] = [1, 2].map(|seed| untrained(shelf.home.path(), &format!("seed-{seed}"), 30, Stored::F16, seed));
    let at_a = shelf.home.path().join("a/m.gguf");
    std::fs::create_dir_all(at_a.parent().unwrap()).unwrap();
    std::fs::rename(old, &at_a).unwrap();
    let a = start_in(&shelf, "a", "").await;
    ready(&[&a], 1).await;
    let b = start_in(&shelf, "b", "").await;
    ready(&[&a, &b], 0).await;
    post(a.client(), "/v1/models/load", json!({"model_id": "m", "node": "b", "wait": true})).await;
    assert_eq!((loaded(&a).await.len(), loaded(&b).await.len()), (0, 1), "b has a copy, and serves it");
    let old_answer = answer(b.client(), "m").await;
    let old_digest = replicas(&b).await[0].digest;
    assert!(old_digest.is_some());

    std::fs::rename(new, &at_a).unwrap();
    eventually("b's copy is served no more", async || {
        let reply = ask(b.client(), "m").await;
        let text = reply.json["choices"][0]["message"]["content"].to_string();
        if reply.status == 200 && text != old_answer { Ok(()) } else { Err(reply.text) }
    })
    .await;
    let new_answer = answer(a.client(), "m").await;
    let unpin = json!({"model_id": "m"});
    post(a.client(), "/v1/models/unpin", unpin.clone()).await;
    for node in ["a", "b"] {
        post(a.client(), "/v1/models/unload", json!({"model_id": "m"})).await;
        post(a.client(), "/v1/models/load", json!({"model_id": "m", "node": node, "wait": true})).await;
        post(a.client(), "/v1/models/unpin", unpin.clone()).await;
        assert_eq!(answer(b.client(), "m").await, new_answer, "it is the new file, loaded on {node}");
    }
    let digests: Vec<_> = replicas(&b).await.into_iter().map(|replica| replica.digest).collect();
    assert!(digests.len() == 1 && digests[0].is_some() && digests[0] != old_digest, "{digests:?}");
    assert_eq!(a.view().await.unwrap().conflicts, Vec::<String>::new(), "an old copy contradicts nobody");
}

#[tokio::test]
async fn of_different_files_that_two_nodes_found_under_one_name_one_is_served_and_the_conflict_is_told() {
    let _alone = alone().await;
    let shelf = Shelf::new();
    let mut nodes = Vec::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let folder = shelf.home.path().join(format!("models-{name}"));
        std::fs::create_dir(&folder).unwrap();
        let file = untrained(shelf.home.path(), &format!("seed-{seed}"), 30, Stored::F16, seed);
        std::fs::rename(file, folder.join("dropped.gguf")).unwrap();
        let sections = format!("[store]\nfolders = [\"{}\"]", folder.display());
        nodes.push(shelf.node(name, 200, &sections).start().await);
    }
    let [a, b] = [&nodes[0], &nodes[1]];
    ready(&[a, b], 1).await;
    let mut told = Vec::new();
    for node in [a, b] {
        told.push(
            eventually("the conflict is told", async || match &node.view().await?.conflicts[..] {
                [one] if one.contains("the files of the model 'dropped'") => Ok(one.clone()),
                other => Err(format!("{other:?}")),
            })
            .await,
        );
    }
    assert_eq!(told[0], told[1], "all nodes agree");
    let listed = entry(a.client(), "dropped").await.expect("it is listed");
    assert_eq!(listed["feasible_on"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(answer(a.client(), "dropped").await, answer(b.client(), "dropped").await);
    let n_loaded = loaded(a).await.len() + loaded(b).await.len();
    assert_eq!(n_loaded, 1);
}
