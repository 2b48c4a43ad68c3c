//! Models that are listed beside the configuration, and those that lie in a folder without being listed.

use plexus_tests::{Client, Home, Node, binary, eventually};
use plexus_types::FilesDigest;
use serde_json::json;

use crate::{alone, answer, entry, ready, replicas};

#[tokio::test]
async fn a_list_beside_the_configuration_counts_and_what_is_put_into_a_folder_while_a_node_runs_is_served() {
    // CX-20, CX-22, CX-27
    let _alone = alone().await;
    let home = Home::new();
    let (settings, folder) = (home.path().join("settings"), home.path().join("models"));
    std::fs::create_dir(&settings).unwrap();
    std::fs::create_dir_all(folder.join("org")).unwrap();
    let pip = binary::pip_folder().join("pip-q8_0.gguf");
    let list = format!("[[models]]\nid = \"listed\"\nsource = \"{}\"\n[aliases]\n\"other\" = \"listed\"\n", pip.display());
    std::fs::write(settings.join("models.toml"), list).unwrap();
    let config = settings.join("cluster.toml");
    std::fs::write(&config, format!("models = []\n[store]\nfolders = [\"{}\"]\n", folder.display())).unwrap();
    let node = home.node("a").arg("--config", config.to_str().unwrap()).start().await;
    let beside = home.node("b").model_from_folder("beside").start().await;
    ready(&[&node, &beside], 1).await;
    for id in ["listed", "other"] {
        answer(node.client(), id).await;
    }
    assert_eq!(entry(node.client(), "org/dropped").await, None);

    // Written under another name first, as whoever downloads does: half a file is no model.
    std::fs::create_dir(folder.join("org/dropped")).unwrap();
    std::fs::copy(&pip, folder.join("org/dropped/part")).unwrap();
    std::fs::rename(folder.join("org/dropped/part"), folder.join("org/dropped/pip.gguf")).unwrap();
    std::fs::copy(&pip, folder.join("part")).unwrap();
    std::fs::rename(folder.join("part"), folder.join("dropped.gguf")).unwrap();
    for at in [&node, &beside] {
        eventually(&format!("{} lists what was put into a folder of a", at.name()), async || {
            entry(at.client(), "dropped").await.filter(|entry| entry["max_model_len"].as_u64() > Some(0)).ok_or("not listed".to_owned())
        })
        .await;
    }
    let unloaded = [counted(node.client()).await, counted(beside.client()).await];
    assert_eq!(entry(beside.client(), "dropped").await.expect("it is listed")["status"], "unloaded", "counting loads nothing");
    assert_eq!(answer(beside.client(), "dropped").await, answer(node.client(), "listed").await, "it is the same file");
    assert_eq!(unloaded, [counted(node.client()).await, counted(beside.client()).await], "a replica counts as its file says");
    assert_eq!(unloaded[0], unloaded[1]);
    let listed = entry(beside.client(), "dropped").await.expect("it is listed");
    assert_eq!(listed["status"], "loaded", "{listed}");
    assert!(listed["max_model_len"].as_u64().is_some_and(|tokens| tokens > 0), "what its file says is told: {listed}");

    std::fs::remove_file(folder.join("dropped.gguf")).unwrap();
    let unloaded = node.client().post("/v1/models/unload", &json!({"model_id": "dropped"})).await.unwrap();
    assert_eq!(unloaded.status, 200, "{}", unloaded.text);
    eventually("what was taken away is no longer listed", async || match entry(beside.client(), "dropped").await {
        None => Ok(()),
        Some(entry) => Err(entry.to_string()),
    })
    .await;
}

/// The tokens of a conversation with the model that lies in a's folder.
async fn counted(client: &Client) -> u64 {
    let body = json!({"model": "dropped", "messages": [{"role": "user", "content": "What is the capital of France?"}]});
    let counted = client.post("/v1/messages/count_tokens", &body).await.expect("the node answers");
    assert_eq!(counted.status, 200, "{}", counted.text);
    counted.json["input_tokens"].as_u64().expect("a number of tokens")
}

#[tokio::test]
async fn a_draft_model_that_comes_later_completes_its_model_and_is_missed_when_it_goes() {
    let _alone = alone().await;
    let home = Home::new();
    let (pip, draft) = (binary::pip_folder().join("pip-q8_0.gguf"), home.path().join("draft.gguf"));
    let config = home.path().join("cluster.toml");
    let list = format!("[[models]]\nid = \"guessed\"\nsource = \"{}\"\ndraft = \"{}\"\n", pip.display(), draft.display());
    std::fs::write(&config, list).unwrap();
    let node = home.node("a").arg("--config", config.to_str().unwrap()).start().await;
    let can_be_held = async |wanted: bool| {
        eventually(&format!("guessed can be loaded: {wanted}"), async || {
            let entry = entry(node.client(), "guessed").await.ok_or("not listed".to_owned())?;
            let is = entry["feasible_on"] == json!(["a"]);
            if is == wanted { Ok(()) } else { Err(entry.to_string()) }
        })
        .await;
    };
    eventually("its files were looked at", async || {
        let unknown: u64 = node.counters("unknown").await?.values().sum();
        if unknown == 0 { Ok(()) } else { Err(format!("{unknown} unknown")) }
    })
    .await;
    can_be_held(false).await;
    let pulled = node.client().post("/v1/models/pull", &json!({"model_id": "guessed"})).await.unwrap();
    assert_eq!(pulled.status, 503, "{}", pulled.text);
    let missing = format!("{} is not on the node 'a', and no other node can be asked for it; put it there", draft.display());
    assert!(pulled.text.contains(&missing), "{}", pulled.text);

    std::fs::copy(&pip, home.path().join("part")).unwrap();
    std::fs::rename(home.path().join("part"), &draft).unwrap();
    can_be_held(true).await;
    answer(node.client(), "guessed").await;

    let unloaded = node.client().post("/v1/models/unload", &json!({"model_id": "guessed"})).await.unwrap();
    assert_eq!(unloaded.status, 200, "{}", unloaded.text);
    std::fs::remove_file(&draft).unwrap();
    can_be_held(false).await;
}

#[tokio::test]
async fn a_name_stays_with_the_files_that_had_it_first_also_over_a_restart() {
    let _alone = alone().await;
    let home = Home::new();
    let folder = home.path().join("models");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(binary::pip_folder().join("pip-q8_0.gguf"), folder.join("dup.gguf")).unwrap();
    let config = home.path().join("cluster.toml");
    std::fs::write(&config, format!("models = []\n[store]\nfolders = [\"{}\"]\n", folder.display())).unwrap();
    let mut node = home.node("a").arg("--config", config.to_str().unwrap()).start().await;
    ready(&[&node], 1).await;
    let digest = loaded_digest(&node, "dup").await;

    std::fs::create_dir(folder.join(".dup")).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(binary::pip_folder().join(name), folder.join(".dup").join(name)).unwrap();
    }
    std::fs::rename(folder.join(".dup"), folder.join("dup")).unwrap();
    eventually("what came later is found under another name", async || entry(node.client(), "dup-2").await.ok_or("not listed".to_owned()))
        .await;
    let other = loaded_digest(&node, "dup-2").await;
    assert!(digest.is_some() && other.is_some() && digest != other, "{digest:?} {other:?}");

    node.kill().await;
    node.start_again().await;
    ready(&[&node], 2).await;
    assert_eq!([loaded_digest(&node, "dup").await, loaded_digest(&node, "dup-2").await], [digest, other]);

    node.kill().await;
    std::fs::write(home.path().join(".local/share/plexus/nodes/a.found"), "{ damaged").unwrap();
    node.start_again().await;
    ready(&[&node], 2).await;
    assert!(node.log().contains("cannot be read: they are named anew"), "a damaged file is told");
}

/// What the files hold that a model was loaded from.
async fn loaded_digest(node: &Node, model: &str) -> Option<FilesDigest> {
    answer(node.client(), model).await;
    replicas(node).await.into_iter().find(|replica| replica.model.as_str() == model).expect("it has answered").digest
}

#[tokio::test]
async fn loaded_models_whose_files_are_taken_away_are_told_with_all_they_can_do_until_they_are_unloaded() {
    // CX-20, CX-22, CX-28
    let _alone = alone().await;
    let home = Home::new();
    let (listed, folder) = (home.path().join("listed.gguf"), home.path().join("models"));
    let lying = folder.join("lying.gguf");
    std::fs::create_dir(&folder).unwrap();
    let files = [&listed, &lying];
    for file in files {
        std::fs::copy(binary::pip_folder().join("pip-q8_0.gguf"), file).unwrap();
    }
    let config = home.path().join("cluster.toml");
    let text = format!("[[models]]\nid = \"listed\"\nsource = \"{}\"\n[store]\nfolders = [\"{}\"]\n", listed.display(), folder.display());
    std::fs::write(&config, text).unwrap();
    let node = home.node("a").arg("--config", config.to_str().unwrap()).start().await;
    ready(&[&node], 2).await;
    let ids = ["listed", "lying"];
    let mut before = Vec::new();
    for id in ids {
        answer(node.client(), id).await;
        before.push(entry(node.client(), id).await.expect("it is listed"));
    }
    assert_eq!((&before[0]["tool_call"], &before[0]["feasible_on"], &before[0]["loaded"]), (&json!(true), &json!(["a"]), &json!(true)));

    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    for node_asked in [&node, &home.node("b").model_from_folder("beside").start().await] {
        let client = node_asked.client();
        for ((id, file), before) in ids.iter().zip(files).zip(&before) {
            let mut gone = eventually(&format!("{} tells that the files of {id} are gone", node_asked.name()), async || {
                entry(client, id).await.filter(|entry| entry.get("warning").is_some()).ok_or("no warning".to_owned())
            })
            .await;
            let warning = gone.as_object_mut().and_then(|gone| gone.remove("warning")).expect("there is one");
            let warning = warning.as_str().expect("a text").to_owned();
            assert!(warning.contains("gone from a") && warning.contains(file.to_str().unwrap()), "{warning}");
            gone["created"] = before["created"].clone(); // each node says when it saw it first
            assert_eq!(gone, *before, "on {}", node_asked.name());
            let conflicts = client.get("/v1/cluster").await.unwrap().json["conflicts"].clone();
            assert!(conflicts.as_array().is_some_and(|told| told.contains(&json!(warning))), "{conflicts}");
            assert!(!conflicts.to_string().contains("no node can hold it"), "{conflicts}");
            answer(client, id).await;
        }
    }

    for id in ids {
        let unloaded = node.client().post("/v1/models/unload", &json!({"model_id": id})).await.unwrap();
        assert_eq!(unloaded.status, 200, "{}", unloaded.text);
    }
    let failed = eventually("the listed one cannot be served", async || {
        entry(node.client(), "listed").await.filter(|entry| entry["status"] == "failed").ok_or("not yet".to_owned())
    })
    .await;
    assert!(failed["reason"].as_str().is_some_and(|why| why.contains(listed.to_str().unwrap())), "{failed}");
    eventually("the one that nobody lists is no longer known", async || match entry(node.client(), "lying").await {
        None => Ok(()),
        Some(entry) => Err(entry.to_string()),
    })
    .await;
}
