//! Texts to vectors by a real node: those of several requests at once, and longer than a step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use plexus_tests::process::Signal;
use plexus_tests::view::whole;
use plexus_tests::{Home, Node, binary, eventually};
use serde_json::{Value, json};

/// The rows of a tensor in a safetensors file of f32.
fn rows(file: &Path, name: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let place = |i: usize| start + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let width = header[name]["shape"][1].as_u64().unwrap() as usize;
    let numbers: Vec<f32> = bytes[place(0)..place(1)].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    numbers.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[tokio::test]
async fn long_texts_of_several_requests_take_turns_and_each_has_its_own_vector() {
    let folder = binary::repository().join("engine/tests/golden/qwen3_embedding");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
    let expected = rows(&folder.join("golden.safetensors"), "last");
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let n_tokens: Vec<usize> = golden["ids"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).collect();
    let home = Home::new();
    let config = home.path().join("cluster.toml");
    let sources = [("folder", folder.clone()), ("gguf", folder.join("qwen3_embedding-bf16.gguf"))];
    let entries =
        sources.iter().map(|(id, source)| format!("[[models]]\nid = \"{id}\"\nsource = \"{}\"\npreload = true\n", source.display()));
    std::fs::write(&config, entries.collect::<String>()).unwrap();
    let node = home.node("n1").arg("--config", config.to_str().unwrap()).start().await;
    let client = node.client();
    for model in ["folder", "gguf"] {
        node.offers(model).await;
        // Each request begins with another text, and all have the long one, which takes several steps.
        let orders = [0, 2].map(|first| (0..texts.len()).map(|i| (first + i) % texts.len()).collect::<Vec<_>>());
        let ask = async |order: &Vec<usize>| {
            let input: Vec<&str> = order.iter().map(|i| texts[*i]).collect();
            client.post("/v1/embeddings", &json!({"model": model, "input": input})).await.unwrap()
        };
        let replies = futures::future::join_all(orders.iter().map(ask)).await;
        for (order, reply) in orders.iter().zip(&replies) {
            assert_eq!(reply.status, 200, "{}", reply.text);
            assert_eq!(reply.json["usage"]["prompt_tokens"], json!(n_tokens.iter().sum::<usize>()));
            for (item, i) in reply.json["data"].as_array().unwrap().iter().zip(order) {
                let vector: Vec<f32> = serde_json::from_value(item["embedding"].clone()).unwrap();
                assert_eq!(vector.len(), expected[*i].len());
                let worst = vector.iter().zip(&expected[*i]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{model}, text {i}: {worst}");
            }
        }
    }
}

// CX-93
#[tokio::test]
async fn requests_of_a_key_are_counted_as_such_however_many_texts_they_have_and_one_with_a_key_displaces_one_without() {
    let folder = binary::repository().join("engine/tests/golden/qwen3_embedding");
    let home = Home::new();
    let config = home.path().join("cluster.toml");
    let entry = format!(
        "[[models]]\nid = \"m\"\nsource = \"{}\"\npreload = true\nprincipal_max = 1\nanonymous_max = 2\nrunning_max = 1\nwaiting_max = 1\n",
        folder.display()
    );
    std::fs::write(&config, entry).unwrap();
    let node = home.node("n1").arg("--config", config.to_str().unwrap()).start().await;
    node.offers("m").await;
    let client = node.client();
    let many = vec!["word ".repeat(60); 700]; // six messages to the replica
    let ask = async |input: &[String], key: Option<&str>| {
        let body = json!({"model": "m", "input": input}).to_string();
        let headers: Vec<(&str, &str)> = key.map(|key| ("authorization", key)).into_iter().collect();
        client.post_with("/v1/embeddings", body, &headers).await.unwrap()
    };
    let present = async || {
        let view = node.view().await?;
        let load = view.nodes[0].summary.replicas[0].load;
        Ok::<_, String>((load.running, load.waiting))
    };
    let comes_to = async |expected: (u32, u32)| {
        eventually("the requests are there", async || match present().await? {
            known if known == expected => Ok(()),
            known => Err(format!("{known:?}")),
        })
        .await;
    };
    let others = async {
        comes_to((1, 0)).await;
        let again = ask(&many[..1], Some("Bearer a")).await;
        let anonymous = ask(&many, None);
        let after_it = async {
            comes_to((1, 1)).await;
            (ask(&many[..1], None).await, ask(&many[..1], Some("Bearer b")).await)
        };
        let (anonymous, (second, keyed)) = futures::future::join(anonymous, after_it).await;
        (again, anonymous, second, keyed)
    };
    let (first, (again, anonymous, second, keyed)) = futures::future::join(ask(&many, Some("Bearer a")), others).await;
    assert_eq!((first.status, keyed.status), (200, 200), "{} {}", first.text.get(..200).unwrap_or_default(), keyed.text);
    assert_eq!(first.json["data"].as_array().unwrap().len(), 700);
    for (refused, words) in [(&again, "1 requests of this key"), (&second, "the model 'm' is busy"), (&anonymous, "the model 'm' is busy")]
    {
        assert!(refused.status == 429 && refused.text.contains(words), "{}", refused.text.get(..300).unwrap_or(&refused.text));
        assert!(refused.header("retry-after").is_some() && refused.header("x-plexus-route").is_some(), "{:?}", refused.headers);
    }
}

#[tokio::test]
async fn an_error_names_the_text_at_fault_by_its_place_in_the_request() {
    let home = Home::new();
    let config = home.path().join("cluster.toml");
    let folder = binary::repository().join("engine/tests/golden/bert");
    std::fs::write(&config, format!("[[models]]\nid = \"m\"\nsource = \"{}\"\npreload = true\n", folder.display())).unwrap();
    let node = home.node("n1").arg("--config", config.to_str().unwrap()).start().await;
    node.offers("m").await;
    let client = node.client();
    let many = |fault: Value| {
        let mut input = vec![json!("a word"); 300];
        input[200] = fault;
        json!({"model": "m", "input": input})
    };
    let long = "word ".repeat(100);
    for (request, param, code, words) in [
        (many(json!(long)), "input[200]", json!("context_length_exceeded"), ["maximum context length is 64", "prompt is too long: "]),
        (many(json!("")), "input[200]", json!(null), ["input[200] is empty", "at least one character"]),
        (json!({"model": "m", "input": [[5], [5], [6, 99999]]}), "input[2]", json!(null), ["input[2]", "99999"]),
        (json!({"model": "m", "input": long}), "input", json!("context_length_exceeded"), ["but the prompt is too long", "64 maximum"]),
        (json!({"model": "m", "input": [99999]}), "input", json!(null), ["99999", ""]),
    ] {
        let reply = client.post("/v1/embeddings", &request).await.unwrap();
        let error = &reply.json["error"];
        assert_eq!((reply.status, &error["param"], &error["code"]), (400, &json!(param), &code), "{}", reply.text);
        let message = error["message"].as_str().unwrap();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(message.contains(param) || param == "input", "{message}");
    }
    // None of it stays behind.
    assert_eq!(client.post("/v1/embeddings", &json!({"model": "m", "input": ["a", "b"]})).await.unwrap().status, 200);
}

#[tokio::test]
async fn nothing_is_loaded_for_what_a_model_was_not_made_for() {
    let home = Home::new();
    let config = home.path().join("cluster.toml");
    let golden = binary::repository().join("engine/tests/golden");
    let entry = |id: &str, folder: &str| format!("[[models]]\nid = \"{id}\"\nsource = \"{}\"\n", golden.join(folder).display());
    std::fs::write(&config, entry("embeds", "bert") + &entry("answers", "llama/llama-bf16.gguf")).unwrap();
    let node = home.node("n1").arg("--config", config.to_str().unwrap()).start().await;
    let client = node.client();
    let listed = async || {
        let models = client.get("/v1/models").await.map_err(|error| error.to_string())?;
        let models = models.json["data"].as_array().ok_or("no list")?.clone();
        Ok::<_, String>(models.into_iter().filter(|model| model["id"] != "pip").collect::<Vec<_>>())
    };
    eventually("the files are read", async || match listed().await? {
        models if models.iter().any(|model| model["id"] == "embeds" && model["capabilities"][0] == "embed") => Ok(()),
        models => Err(format!("{models:?}")),
    })
    .await;
    let chat = |stream: bool| json!({"model": "embeds", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "stream": stream});
    for (path, body, status, words) in [
        ("/v1/embeddings", json!({"model": "answers", "input": "a"}), 422, "answers and does not embed"),
        ("/v1/chat/completions", chat(false), 422, "embeds texts and does not answer"),
        ("/v1/chat/completions", chat(true), 422, "embeds texts and does not answer"),
        ("/v1/completions", json!({"model": "embeds", "prompt": "a"}), 422, "embeds texts and does not answer"),
        ("/v1/messages", chat(false), 400, "embeds texts and does not answer"),
        ("/v1/messages/count_tokens", chat(false), 400, "embeds texts and does not answer"),
    ] {
        let reply = client.post(path, &body).await.unwrap();
        assert!(reply.status == status && reply.text.contains(words), "{path}: {} {}", reply.status, reply.text);
    }
    let view = node.view().await.unwrap();
    assert!(view.nodes[0].summary.replicas.iter().all(|replica| replica.model.as_str() == "pip"), "{:?}", view.nodes[0].summary.replicas);
    let reply = client.post("/v1/embeddings", &json!({"model": "embeds", "input": "a"})).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    // Once it is loaded, it refuses with the same words.
    assert_eq!(client.post("/v1/messages/count_tokens", &chat(false)).await.unwrap().status, 400);
}

#[tokio::test]
async fn a_text_that_is_too_long_is_refused_before_its_model_is_loaded_and_in_the_same_words_as_after() {
    // CX-30
    let home = Home::new();
    let folder = binary::repository().join("engine/tests/golden/bert");
    let listing = |name: &str, models: String| {
        let config = home.path().join(format!("{name}.toml"));
        std::fs::write(&config, models).unwrap();
        home.node(name).arg("--config", config.to_str().unwrap()).start()
    };
    let holder = listing("holder", format!("[[models]]\nid = \"m\"\nsource = \"{}\"\n", folder.display())).await;
    let other = listing("other", "models = []\n".to_owned()).await; // has no files, and must ask
    whole(&[&holder, &other]).await;
    let long = "word ".repeat(100);
    let refused = async || {
        let mut refusals = Vec::new();
        for node in [&holder, &other] {
            for input in [json!(["a word", "b", long]), json!(long), json!([vec![5], vec![5; 65]])] {
                let reply = node.client().post("/v1/embeddings", &json!({"model": "m", "input": input})).await.unwrap();
                assert_eq!((reply.status, &reply.json["error"]["code"]), (400, &json!("context_length_exceeded")), "{}", reply.text);
                refusals.push(reply.json);
            }
        }
        refusals
    };
    for node in [&holder, &other] {
        eventually("the files are known", async || {
            let listed = node.client().get("/v1/models/m").await.map_err(|error| error.to_string())?;
            if listed.json["capabilities"][0] == "embed" { Ok(()) } else { Err(listed.text) }
        })
        .await;
    }
    let before = refused().await;
    assert_eq!(before[0]["error"]["param"], "input[2]");
    let view = other.view().await.unwrap();
    let replicas: Vec<_> = view.nodes.iter().flat_map(|node| &node.summary.replicas).collect();
    assert!(replicas.iter().all(|replica| replica.model.as_str() != "m"), "{replicas:?}");
    assert_eq!(holder.client().post("/v1/embeddings", &json!({"model": "m", "input": ["a", "b"]})).await.unwrap().status, 200);
    holder.offers("m").await;
    other.offers("m").await;
    assert_eq!(refused().await, before);
}

/// The demo model of the tests that embeds, listed by a node with a name.
async fn embedding_node(home: &Home, name: &str, keys: &str) -> Node {
    let config = home.path().join(format!("{name}.toml"));
    let folder = binary::repository().join("engine/tests/golden/qwen3_embedding");
    let shutdown = "[shutdown]\ndrain_timeout = \"60s\"\n";
    std::fs::write(&config, format!("{shutdown}[[models]]\nid = \"m\"\nsource = \"{}\"\n{keys}\n", folder.display())).unwrap();
    home.node(name).test_hooks().arg("--config", config.to_str().unwrap()).start().await
}

/// Until some replica has texts to embed.
async fn is_embedding(node: &Node) {
    eventually("it has begun", async || {
        let view = node.view().await?;
        let mut replicas = view.nodes.iter().flat_map(|node| &node.summary.replicas);
        if replicas.any(|replica| replica.load.running > 0) { Ok(()) } else { Err("nothing is embedded yet".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn requests_of_one_group_are_answered_though_their_replica_ends_under_them_is_brought_back_or_just_goes() {
    // CX-62, CX-63
    let home = Home::new();
    let holder = embedding_node(&home, "holder", "preload = true\n[supervision]\nrestarts_max = 100").await;
    let other = embedding_node(&home, "other", "pinned_on = [\"holder\"]").await;
    whole(&[&holder, &other]).await;
    other.offers("m").await;
    let long = json!({"model": "m", "input": vec!["word ".repeat(60); 128]}); // one group each, and enough of them to be seen
    let short = json!({"model": "m", "input": "a word"});
    for (path, node) in [("node/device/cpu-0", &holder), ("node/model/m@cpu-0", &other)] {
        let kill = async {
            is_embedding(&holder).await;
            let killed = holder.client().post("/v1/cluster/actors/kill", &json!({"path": path})).await.unwrap();
            assert_eq!(killed.status, 200, "{}", killed.text);
            node.client().post("/v1/embeddings", &short).await.unwrap() // while it comes back
        };
        let many = futures::future::join_all((0..3).map(|_| node.client().post("/v1/embeddings", &long)));
        let (many, last) = futures::future::join(many, kill).await;
        for reply in many.into_iter().map(Result::unwrap).chain([last]) {
            assert_eq!(reply.status, 200, "{path} through {}: {}", node.name(), reply.text.get(..500).unwrap_or(&reply.text));
        }
    }
    for _ in 0..20 {
        let unload = async {
            // Refused while it has requests, or where it is not yet there again.
            let _may_be_refused = holder.client().post("/v1/models/unload", &json!({"model_id": "m"})).await.unwrap();
        };
        let ((), reply) = futures::future::join(unload, other.client().post("/v1/embeddings", &short)).await;
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
}

#[tokio::test]
async fn a_long_request_is_answered_whole_though_the_node_that_holds_the_model_stops_in_the_middle() {
    // CX-51
    for (others, through) in [(1, "n1"), (1, "holder"), (0, "holder")] {
        let home = Home::new();
        let mut holder = embedding_node(&home, "holder", "preload = true").await;
        holder.offers("m").await;
        let other = if others > 0 { Some(embedding_node(&home, "n1", "").await) } else { None };
        whole(&other.iter().chain([&holder]).collect::<Vec<_>>()).await;
        let node = other.as_ref().filter(|node| node.name() == through).unwrap_or(&holder);
        node.offers("m").await;
        let input: Vec<String> = (0..1024).map(|i| format!("{} word", "many ".repeat(20 + i % 7))).collect(); // eight groups
        let (client, body) = (node.client().clone(), json!({"model": "m", "input": input}));
        let asked = tokio::spawn(async move { client.post("/v1/embeddings", &body).await.expect("it is answered") });
        is_embedding(&holder).await;
        holder.signal(Signal::Term);
        let reply = asked.await.unwrap();
        assert_eq!(reply.status, 200, "{others} others, through {through}: {}", reply.text.get(..500).unwrap_or(&reply.text));
        let vectors = reply.json["data"].as_array().unwrap();
        assert_eq!(vectors.len(), 1024);
        assert!(vectors.iter().enumerate().all(|(i, one)| one["embedding"] == vectors[i % 7]["embedding"]), "each has its own");
        let status = holder.exit().await;
        assert!(status.success(), "{status}");
    }
}

/// Copies a folder with all that is in it.
fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copied(&path, &to);
        } else {
            std::fs::copy(path, to).unwrap();
        }
    }
}

#[tokio::test]
async fn all_vectors_of_a_request_are_by_the_same_files_though_these_are_replaced_and_gone_in_the_middle() {
    let home = Home::new();
    let folder = home.path().join("m");
    copied(&binary::repository().join("engine/tests/golden/qwen3_embedding"), &folder);
    let config = home.path().join("cluster.toml");
    std::fs::write(&config, format!("[[models]]\nid = \"m\"\nsource = \"{}\"\npreload = true\n", folder.display())).unwrap();
    let node = home.node("n1").test_hooks().arg("--config", config.to_str().unwrap()).start().await;
    node.offers("m").await;
    let one = json!({"model": "m", "input": "a word"});
    let by_old = node.client().post("/v1/embeddings", &one).await.unwrap().json["data"][0]["embedding"].clone();

    // The weights of the last norm stand last, in bf16: the sign of each other one is changed.
    let mut weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let norm = weights.len() - 2 * 64;
    weights[norm..].iter_mut().skip(1).step_by(4).for_each(|high| *high ^= 0x80);
    std::fs::write(home.path().join("new"), weights).unwrap();

    let input = [vec!["a word".to_owned()], vec!["word ".repeat(60); 2000]].concat(); // sixteen groups; that of the first text is the last
    let (client, body) = (node.client().clone(), json!({"model": "m", "input": input}));
    let asked = tokio::spawn(async move { client.post("/v1/embeddings", &body).await.expect("it is answered") });
    is_embedding(&node).await;
    std::fs::rename(home.path().join("new"), folder.join("model.safetensors")).unwrap();
    let killed = node.client().post("/v1/cluster/actors/kill", &json!({"path": "node/model/m@cpu-0"})).await.unwrap();
    assert_eq!(killed.status, 200, "{}", killed.text);
    let reply = asked.await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text.get(..500).unwrap_or(&reply.text));
    let vectors: Vec<&Value> = reply.json["data"].as_array().unwrap().iter().map(|one| &one["embedding"]).collect();
    assert_eq!(vectors.len(), 2001);
    assert!(vectors[0].is_array() && *vectors[0] != by_old, "it was ended by the new files");
    assert!(vectors[1..].iter().all(|vector| *vector == vectors[1]), "and none is by the old ones");
    assert!(node.log().contains("it begins anew"), "{}", node.log());
}
