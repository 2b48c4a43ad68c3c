//! Models from a hub: fetched once from outside, from node to node after that, and never half.

#[path = "models/files.rs"]
#[allow(dead_code, reason = "of the tests of models, which use the rest")]
mod files;
#[allow(clippy::unwrap_used, reason = "of the tests of the engine; what unwraps in vain has failed")]
#[path = "../../engine/tests/support/gguf.rs"]
mod gguf;
#[path = "../../store/tests/mirror/mod.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "of the tests of the store, which use the rest; what unwraps in vain has failed")]
mod mirror;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mirror::{Faults, Mirror};
use plexus_tests::client::question_body;
use plexus_tests::process::run_plexus;
use plexus_tests::view::whole;
use plexus_tests::{DEADLINE, Home, Node, Reply, eventually};
use serde_json::{Value, json};

const FRANCE: &str = "What is the capital of France?";

fn pip() -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip/pip-q8_0.gguf");
    std::fs::read(file).expect("the demo model is part of the repository")
}

/// A node that lists `hf:org/pip:Q8_0` as `capitals`, with a cache of its own.
async fn node(home: &Home, name: &str, mirror: &Mirror) -> Node {
    node_listing(home, name, mirror, "[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n").await
}

/// A node with these entries, and a cache of its own.
async fn node_listing(home: &Home, name: &str, mirror: &Mirror, models: &str) -> Node {
    let config = home.path().join(format!("{name}.toml"));
    let text = format!("{models}[store]\nendpoint = \"{}\"\n", mirror.endpoint());
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
async fn nodes_that_start_together_or_are_told_together_fetch_what_they_want_once_from_outside() {
    let file = pip();
    let n_bytes = file.len() as u64;
    let (mirror, told) =
        (Mirror::start("org/pip", [("pip-Q8_0.gguf", file.clone())]).await, Mirror::start("org/pip", [("pip-Q8_0.gguf", file)]).await);
    let home = Home::new();
    let entry = "[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n";
    let preloaded = format!("{entry}preload = true\n");
    let start = |name| node_listing(&home, name, &mirror, &preloaded);
    let nodes: [Node; 3] = tokio::join!(start("n1"), start("n2"), start("n3")).into();
    eventually("each has loaded it", async || {
        let models = nodes[0].client().get("/v1/models/capitals").await.map_err(|error| error.to_string())?;
        let loaded =
            models.json["locations"].as_array().map_or(0, |places| places.iter().filter(|place| place["status"] == "loaded").count());
        if loaded == nodes.len() { Ok(()) } else { Err(models.text) }
    })
    .await;
    assert_eq!(mirror.bytes_sent(), n_bytes, "each byte came from outside once");
    drop(nodes);

    let home = Home::new();
    let start = |name| node_listing(&home, name, &told, entry);
    let nodes: [Node; 3] = tokio::join!(start("n1"), start("n2"), start("n3")).into();
    whole(&nodes.each_ref()).await;
    nodes[0].offers_on_demand("capitals").await;
    let pull = async |node: &Node| {
        let pulled = node.client().post("/v1/models/pull", &json!({"model_id": "capitals", "node": node.name()})).await.unwrap();
        assert_eq!(pulled.status, 200, "{}", pulled.text);
    };
    tokio::join!(pull(&nodes[0]), pull(&nodes[1]), pull(&nodes[2]));
    assert_eq!(told.bytes_sent(), n_bytes, "each byte came from outside once");
}

#[tokio::test]
async fn a_download_that_arrives_damaged_never_becomes_a_model_and_says_so() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { corrupt: true, stall_after: Some(1 << 20), ..Faults::default() });
    let home = Home::new();
    let n1 = node(&home, "n1", &mirror).await;
    n1.offers_on_demand("capitals").await;
    let client = n1.client().clone();
    let asked = tokio::spawn(async move { client.ask("capitals", FRANCE).await.expect("the node answers") });
    eventually("the download is seen", async || {
        let entry = entry(&n1).await;
        if entry["progress"].as_f64().is_some_and(|share| share > 0.0) { Ok(()) } else { Err(entry.to_string()) }
    })
    .await;
    mirror.fail(Faults { corrupt: true, ..Faults::default() });
    let reply = tokio::time::timeout(DEADLINE, asked).await.expect("it is refused").expect("it is asked");
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.text.contains("pip-Q8_0.gguf") && reply.header("retry-after").is_some(), "{}", reply.text);
    let listed = n1.client().get("/v1/models/capitals").await.unwrap();
    assert_eq!(listed.json["loaded"], json!(false), "{}", listed.text);
    let failed = eventually("it is not told as being loaded any more", async || {
        let entry = entry(&n1).await;
        if entry["status"] == "failed" { Ok(entry) } else { Err(entry.to_string()) }
    });
    let failed = tokio::time::timeout(std::time::Duration::from_secs(2), failed).await.expect("sooner than files are looked at anyhow");
    assert!(failed["reason"].as_str().is_some_and(|why| why.contains("damaged")), "{failed}");

    mirror.fail(Faults::default());
    let loaded = n1.client().post("/v1/models/load", &json!({"model_id": "capitals"})).await.unwrap();
    assert_eq!(loaded.status, 200, "{}", loaded.text);
    assert!(ask(&n1).await.chat_text().contains("Paris"));
}

/// The refusal of a load by hand, in words.
async fn not_loaded(node: &Node, body: &Value) -> String {
    let refused = node.client().post("/v1/models/load", body).await.expect("the node answers");
    assert_eq!(refused.status, 503, "{}", refused.text);
    refused.text
}

#[tokio::test]
async fn a_hub_that_does_not_give_the_files_is_told_of_while_it_is_tried() {
    // CX-48
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { busy: usize::MAX, ..Faults::default() });
    let home = Home::new();
    let entries = "[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n[streams]\nload_timeout = \"3s\"\n";
    let n1 = node_listing(&home, "n1", &mirror, entries).await;
    n1.offers_on_demand("capitals").await;
    let reply = ask(&n1).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    let fetched = format!("its files are being fetched from {}; the last try failed: {0}/api/models/org/pip", mirror.endpoint());
    assert!(reply.text.contains(&fetched) && reply.text.contains("status 503"), "{}", reply.text);
    assert_eq!(reply.header("retry-after"), Some("60"), "nobody knows how much there is to come");
    let log = n1.log();
    let warned = log.lines().find(|line| line.contains("a hub does not give a model's files")).expect("it is told in the log");
    assert!(warned.contains("WARN") && warned.contains("/api/models/org/pip") && warned.contains("next_try_in"), "{warned}");

    let loading = n1.client().post("/v1/models/load", &json!({"model_id": "capitals", "wait": false})).await.unwrap();
    assert_eq!(loading.status, 200, "{}", loading.text);
    eventually("it is shown beside how far it is", async || {
        let entry = entry(&n1).await;
        let is_told = entry["fetch"]["failure"].as_str().is_some_and(|why| why.contains("status 503"));
        if entry["status"] == "loading" && is_told { Ok(()) } else { Err(entry.to_string()) }
    })
    .await;
    let listed = run_plexus(&home, &["models", "--node", n1.client().base()], "").await;
    let explained = run_plexus(&home, &["cluster", "explain", "capitals", "--node", n1.client().base()], "").await;
    let status = run_plexus(&home, &["cluster", "status", "--node", n1.client().base()], "").await;
    for shown in [listed.stdout, explained.stdout, status.stdout] {
        assert!(shown.contains(&fetched), "{shown}");
    }
    mirror.fail(Faults::default());
    eventually("it is loaded once the hub gives it", async || {
        let reply = ask(&n1).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
    assert_eq!(entry(&n1).await.get("fetch"), None);
}

#[tokio::test]
async fn a_load_by_hand_tells_its_own_failure_and_a_pull_that_succeeds_ends_it() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { corrupt: true, ..Faults::default() });
    let home = Home::new();
    let (n1, n2) = (node(&home, "n1", &mirror).await, node(&home, "n2", &mirror).await);
    whole(&[&n1, &n2]).await;
    n1.offers_on_demand("capitals").await;
    for name in ["n1", "n2"] {
        let text = not_loaded(&n1, &json!({"model_id": "capitals", "node": name})).await;
        assert!(text.contains("is damaged"), "{text}");
    }
    mirror.fail(Faults { refuse: Some((401, "")), ..Faults::default() });
    let text = not_loaded(&n1, &json!({"model_id": "capitals"})).await;
    assert!(text.contains("without a token") && !text.contains("damaged"), "what is wrong now, and not what was elsewhere: {text}");
    assert_eq!(entry(&n1).await["status"], "failed");

    mirror.fail(Faults::default());
    let pulled = n1.client().post("/v1/models/pull", &json!({"model_id": "capitals", "node": "n2"})).await.unwrap();
    assert_eq!(pulled.status, 200, "{}", pulled.text);
    eventually("it is asked for with success, long before failures are forgotten", async || {
        let reply = ask(&n1).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
    assert!(!n1.log().contains("no other node gave a model"), "that nobody has it yet is nothing to warn of");
}

#[tokio::test]
async fn a_model_that_fails_at_the_start_is_told_by_health_and_loaded_from_itself_when_its_files_come() {
    // CX-46, CX-50
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { corrupt: true, ..Faults::default() });
    let home = Home::new();
    let entry_of_it = "[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\npreload = true\n";
    let n1 = node_listing(&home, "n1", &mirror, entry_of_it).await;
    let activation =
        async || n1.client().get("/health").await.map(|reply| reply.json["activation"].clone()).map_err(|error| error.to_string());
    eventually("health tells of the failure", async || {
        let activation = activation().await?;
        let told = &activation["failed"][0];
        let is_it = told["model"] == "capitals" && told["reason"].as_str().is_some_and(|why| why.contains("is damaged"));
        if is_it && activation["pending"] == json!([]) { Ok(()) } else { Err(activation.to_string()) }
    })
    .await;
    mirror.fail(Faults::default());
    let pulled = n1.client().post("/v1/models/pull", &json!({"model_id": "capitals"})).await.unwrap();
    assert_eq!(pulled.status, 200, "{}", pulled.text);
    n1.offers("capitals").await; // and nobody has asked for it
    assert_eq!(activation().await, Ok(json!({"pending": [], "failed": []})));
}

#[tokio::test]
async fn a_model_that_one_place_cannot_take_is_no_failed_model() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    let home = Home::new();
    let entries = "[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n";
    let n1 = node_listing(&home, "n1", &mirror, entries).await;
    let small = node_listing(&home, "small", &mirror, &format!("{entries}[devices]\ncpu_memory = \"26MiB\"\n")).await;
    whole(&[&n1, &small]).await;
    n1.offers_on_demand("capitals").await;
    let text = not_loaded(&n1, &json!({"model_id": "capitals", "node": "small"})).await;
    assert!(text.contains("does not fit cpu-0"), "{text}");
    let listed = entry(&n1).await;
    assert_eq!((&listed["status"], listed.get("reason")), (&json!("unloaded"), None), "it is served elsewhere: {listed}");
    let place = &listed["locations"][0];
    assert_eq!((&place["node"], &place["status"]), (&json!("small"), &json!("failed")), "{listed}");
    assert!(place["reason"].as_str().is_some_and(|why| why.contains("does not fit")), "{listed}");
    let output = run_plexus(&home, &["models", "--node", n1.client().base()], "").await;
    assert!(output.stdout.contains("on demand: ") && output.stdout.contains("capitals failed on small/cpu-0: "), "{output:?}");
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

/// A proxy that ends every connection at once, and how many there were.
async fn dead_proxy() -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("it is bound"));
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_hub_that_one_node_waits_for_in_vain_is_asked_once_by_the_others_and_served_by_the_one_that_reaches_it() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    let home = Home::new();
    let proxies = [dead_proxy().await, dead_proxy().await, dead_proxy().await];
    let start = async |name: &str, proxy: &str, megabytes: u32| {
        let config = home.path().join(format!("{name}.toml"));
        let text = format!(
            "[devices]\ncpu_memory = \"{megabytes}MB\"\n[store]\nendpoint = \"http://hub.invalid\"\n\
             [[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\n"
        );
        std::fs::write(&config, text).expect("a file in a temporary folder can be written");
        let cache = home.path().join(format!("cache-{name}"));
        let text = |path: &Path| path.to_str().expect("temporary folders have names of text").to_owned();
        let node = home.node(name).arg("--config", &text(&config)).env("http_proxy", proxy).env("HF_HUB_CACHE", &text(&cache));
        node.start().await
    };
    // The places are asked in this order: where most is free first.
    let mut nodes = Vec::new();
    for (i, (address, _)) in proxies.iter().enumerate() {
        nodes.push(start(&format!("cut-off-{i}"), address, 400 - 50 * i as u32).await);
    }
    nodes.push(start("connected", &mirror.endpoint(), 200).await);
    whole(&nodes.iter().collect::<Vec<_>>()).await;
    nodes[0].offers_on_demand("capitals").await;
    let reply = tokio::time::timeout(DEADLINE, ask(&nodes[0])).await.expect("it is answered");
    assert!(reply.chat_text().contains("Paris"), "{}", reply.text);
    assert_eq!(reply.header("x-plexus-node"), Some("connected"));
    let attempts = proxies.each_ref().map(|(_, count)| count.load(Ordering::SeqCst));
    assert!(attempts[0] > 2, "the first does not give up at once: {attempts:?}");
    assert_eq!(attempts[1..], [2, 2], "the others ask for the size and for the files, each once");
}

async fn entry(node: &Node) -> Value {
    node.client().get("/v1/models/capitals").await.expect("the node answers").json
}

#[tokio::test]
async fn while_a_model_is_fetched_its_clients_get_comments_and_everybody_is_told_how_far_it_is() {
    // CX-22, CX-41, CX-72
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { stall_after: Some(1 << 20), ..Faults::default() });
    let home = Home::new();
    let (n1, n2) = (node(&home, "n1", &mirror).await, node(&home, "n2", &mirror).await);
    whole(&[&n1, &n2]).await;
    n1.offers_on_demand("capitals").await;
    assert_eq!(entry(&n1).await["status"], "unloaded");
    let client = n1.client().clone();
    // The stream begins without an answer: with comments, so that nobody takes the node for dead.
    let streaming = tokio::spawn(async move {
        let mut stream = client.stream("/v1/chat/completions", &question_body("capitals", FRANCE, true)).await.expect("it begins");
        for _ in 0..2 {
            let block = stream.block().await.expect("it goes on").expect("it is whole");
            assert!(block.starts_with(": "), "{block}");
        }
        stream
    });
    for node in [&n1, &n2] {
        eventually(&format!("{} says how far it is", node.name()), async || {
            let entry = entry(node).await;
            let share = entry["progress"].as_f64().unwrap_or_default();
            if entry["status"] == "loading" && share > 0.1 && share <= 0.5 { Ok(()) } else { Err(entry.to_string()) }
        })
        .await;
    }
    eventually("it is explained from where its files come", async || {
        let explained = n2.client().get("/v1/cluster/explain/capitals").await.unwrap();
        let decision = explained.json["decision"].as_str().unwrap_or_default();
        if decision.contains("its files are being fetched from http://") { Ok(()) } else { Err(explained.text) }
    })
    .await;
    let mut streaming = streaming;
    let stream = loop {
        tokio::select! {
            stream = &mut streaming => break stream.expect("comments came"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        let entry = entry(&n2).await;
        assert_eq!(entry["status"], "loading", "it is never told as anything else meanwhile: {entry}");
    };
    mirror.fail(Faults::default());
    let answered = tokio::time::timeout(DEADLINE, stream.chat()).await.expect("the stream hangs");
    answered.assert_complete();
    assert!(answered.text.contains("Paris"), "{answered:?}");
    assert_eq!(entry(&n1).await["status"], "loaded");
    for node in [&n1, &n2] {
        let said = node.log().matches("the model's files are not here").count();
        assert!(said <= 1, "{} said so {said} times, at most before it was fetched", node.name());
    }
}

#[tokio::test]
async fn files_are_pulled_from_outside_and_then_from_a_node_also_to_one_that_does_not_list_the_model() {
    let file = pip();
    let n_bytes = file.len() as u64;
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", file)]).await;
    let home = Home::new();
    let (n1, n2) = (node(&home, "n1", &mirror).await, node_listing(&home, "n2", &mirror, "models = []\n").await);
    whole(&[&n1, &n2]).await;
    n2.offers_on_demand("capitals").await;
    let pulled = n2.client().post("/v1/models/pull", &json!({"model_id": "capitals", "node": "n1"})).await.unwrap();
    assert_eq!((pulled.status, &pulled.json["status"]), (200, &json!("pulled")), "{}", pulled.text);
    assert_eq!(mirror.bytes_sent(), n_bytes);

    let output = run_plexus(&home, &["models", "pull", "capitals", "--node", "n2", "--node", n1.client().base()], "").await;
    assert!(output.success && output.stdout.contains("the files of capitals are on n2"), "{output:?}");
    assert_eq!(mirror.bytes_sent(), n_bytes, "it came from the other node");
    eventually("n2 tells that it has the files, and that nothing is loaded", async || {
        let (present, entry) = (n2.counters("present").await?.values().sum::<u64>(), entry(&n1).await);
        if present == 1 && entry["status"] == "unloaded" { Ok(()) } else { Err(format!("{present} present, {entry}")) }
    })
    .await;
    for node in [&n1, &n2] {
        assert_eq!(node.counters("loads").await.unwrap().values().sum::<u64>(), 0, "a pull loads nothing");
    }
    let loaded = n1.client().post("/v1/models/load", &json!({"model_id": "capitals", "node": "n2"})).await.unwrap();
    assert_eq!((loaded.status, &loaded.json["status"]), (200, &json!("loaded")), "{}", loaded.text);
    assert!(ask(&n1).await.chat_text().contains("Paris"));
    assert_eq!(mirror.bytes_sent(), n_bytes, "nor was it fetched again to be loaded");
    let none = n1.client().post("/v1/models/pull", &json!({"model_id": "nobody/lists-this", "node": "n2"})).await.unwrap();
    assert_eq!(none.status, 404, "{}", none.text);
}

#[tokio::test]
async fn a_file_that_several_nodes_have_comes_from_all_of_them() {
    // CX-52
    let home = Home::new();
    let n_megabytes = 100;
    let path = files::untrained(home.path(), "wide", n_megabytes, files::Stored::F16, 1);
    let file = std::fs::read(&path).unwrap();
    let n_bytes = file.len() as u64;
    let mirror = Mirror::start("org/wide", [("wide-F16.gguf", file)]).await;
    let entry = "[[models]]\nid = \"wide\"\nsource = \"hf:org/wide:F16\"\n";
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3", "n4"] {
        nodes.push(node_listing(&home, name, &mirror, entry).await);
    }
    whole(&nodes.iter().collect::<Vec<_>>()).await;
    let pull = async |node: &Node| {
        node.offers_on_demand("wide").await;
        let pulled = node.client().post("/v1/models/pull", &json!({"model_id": "wide", "node": node.name()})).await.unwrap();
        assert_eq!((pulled.status, &pulled.json["status"]), (200, &json!("pulled")), "{}", pulled.text);
    };
    for node in &nodes[..3] {
        pull(node).await;
    }
    let read = || nodes[..3].iter().map(|node| node.bytes_read().expect("the node runs")).collect::<Vec<u64>>();
    let before = read();
    pull(&nodes[3]).await;
    let given: Vec<u64> = read().iter().zip(&before).map(|(after, before)| after - before).collect();
    // Who is asked for the first time reads all of it, to know its chunks, and is not counted.
    let n_givers = given.iter().filter(|given| (plexus_store::CHUNK_LEN..n_bytes).contains(given)).count();
    eprintln!("{given:?} bytes of {n_bytes} were read to be given");
    assert!(n_givers >= 2, "{given:?} bytes of {n_bytes} were read to be given");
    assert_eq!(mirror.bytes_sent(), n_bytes, "each byte came from outside once");
}

#[tokio::test]
async fn what_its_entry_says_to_be_too_large_is_refused_before_anything_is_fetched() {
    // CX-53
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    let home = Home::new();
    let entry = |memory: &str| {
        let listed = format!("[[models]]\nid = \"capitals\"\nsource = \"hf:org/pip:Q8_0\"\nmemory = \"{memory}\"\n");
        format!("[devices]\ncpu_memory = \"128MiB\"\n{listed}")
    };
    let n1 = node_listing(&home, "n1", &mirror, &entry("4GiB")).await;
    let refused = eventually("the node knows its device", async || {
        let reply = ask(&n1).await;
        if reply.text.contains("needed") { Ok(reply) } else { Err(reply.text) }
    })
    .await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("4.00 GiB needed") && refused.text.contains("104 MiB"), "{}", refused.text);
    let by_hand = n1.client().post("/v1/models/load", &json!({"model_id": "capitals"})).await.unwrap();
    assert_eq!(by_hand.status, 503, "{}", by_hand.text);
    assert_eq!(mirror.bytes_sent(), 0, "nothing was fetched for that");

    let n2 = node_listing(&Home::new(), "n2", &mirror, &entry("8MiB")).await;
    n2.offers_on_demand("capitals").await;
    assert!(ask(&n2).await.chat_text().contains("Paris"));
}

/// A small disk in memory, at a folder, for as long as it lives.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Nothing where it cannot be mounted, which takes root.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).ok()?;
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(at).status();
        mount.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_download_is_told_and_never_makes_a_model() {
    let mirror = Mirror::start("org/pip", [("pip-Q8_0.gguf", pip())]).await;
    mirror.fail(Faults { stall_after: Some(1 << 20), ..Faults::default() });
    let home = Home::new();
    let folder = home.path().join("cache-n1");
    let Some(disk) = SmallDisk::mount(&folder, "4m") else {
        return eprintln!("SKIPPED: a small disk cannot be mounted here, which takes root");
    };
    let n1 = node(&home, "n1", &mirror).await;
    n1.offers_on_demand("capitals").await;
    let client = n1.client().clone();
    let asked = tokio::spawn(async move { client.ask("capitals", FRANCE).await.expect("the node answers") });
    eventually("the download has begun", async || {
        let entry = entry(&n1).await;
        if entry["progress"].as_f64().is_some_and(|share| share > 0.0) { Ok(()) } else { Err(entry.to_string()) }
    })
    .await;
    let other = folder.join("other");
    let full = std::fs::write(&other, vec![1; 4 << 20]).expect_err("no more than that fits");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    mirror.fail(Faults::default());
    let refused = tokio::time::timeout(DEADLINE, asked).await.expect("it is refused").expect("it is asked");
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("cannot be fetched") && refused.text.contains("cache-n1"), "{}", refused.text);
    assert!(["No space left", "more are needed in"].iter().any(|words| refused.text.contains(words)), "{}", refused.text);
    let listed = entry(&n1).await;
    assert!(listed["loaded"] == false && listed["status"] == "failed" && listed["reason"].is_string(), "{listed}");

    std::fs::remove_file(&other).unwrap();
    let loaded = n1.client().post("/v1/models/load", &json!({"model_id": "capitals"})).await.unwrap();
    assert_eq!(loaded.status, 200, "once there is room: {}", loaded.text);
    assert!(ask(&n1).await.chat_text().contains("Paris"));
    drop(n1);
    drop(disk);
}

#[tokio::test]
async fn what_could_never_fit_is_refused_before_its_download_also_where_it_would_take_fewer_bits_than_its_files() {
    // CX-53
    let mirror = Mirror::start("org/big", [("big-F16.gguf", vec![0; 60_000_000])]).await;
    let home = Home::new();
    // Serving takes 24 MiB of it.
    for (name, keys, megabytes, parameters) in [
        ("as-it-is", "", 40, None),
        ("of-any-content", "quant = \"q4k\"", 30, None),
        ("counted-by-the-hub", "quant = \"q4k\"", 40, Some(30_000_000)),
    ] {
        mirror.fail(Faults { parameters, ..Faults::default() });
        let entry = format!("[devices]\ncpu_memory = \"{megabytes}MB\"\n[[models]]\nid = \"capitals\"\nsource = \"hf:org/big\"\n{keys}\n");
        let node = node_listing(&home, name, &mirror, &entry).await;
        node.offers_on_demand("capitals").await;
        let reply = tokio::time::timeout(DEADLINE, ask(&node)).await.expect("it is refused");
        assert_eq!(reply.status, 503, "{name}: {}", reply.text);
        assert!(reply.text.contains("needed") && reply.text.contains("available"), "{name}: {}", reply.text);
        assert_eq!(mirror.bytes_sent(), 0, "{name}");
    }
}
