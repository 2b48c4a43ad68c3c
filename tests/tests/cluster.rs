//! Real nodes find each other, serve each other's models, and survive each other's ends.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use plexus_tests::client::question_body;
use plexus_tests::process::run_plexus;
use plexus_tests::view::whole;
use plexus_tests::{Home, Node, Signal, binary, eventually, measured, process};
use plexus_types::NodeState;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// Each test starts several processes and wants the machine for itself.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    ONE_AT_A_TIME.lock().await
}

const FRANCE: &str = "What is the capital of France?";
const STORY: &str = "Tell me a story about a fox named Ruby.";

/// `n1` and `n2`, joined; `n1` holds pip, `n2` holds the same weights from other files as `other`.
async fn two_nodes_with_different_models(home: &Home) -> (Node, Node) {
    let n1 = home.node("n1").start().await;
    let n2 = home.node("n2").model_from_folder("other").start().await;
    whole(&[&n1, &n2]).await;
    for node in [&n1, &n2] {
        node.offers("pip").await;
        node.offers("other").await;
        let pip = node.client().get("/v1/models/pip").await.expect("the node answers");
        assert_eq!(pip.json["locations"].as_array().map(Vec::len), Some(1), "only n1 holds pip: {}", pip.text);
    }
    (n1, n2)
}

#[tokio::test]
async fn three_nodes_join_by_themselves_merge_their_catalogues_and_serve_each_others_models() {
    let _alone = alone().await;
    let home = Home::new();
    let n1 = home.node("n1").start().await;
    let n2 = home.node("n2").model_from_folder("other").start().await;
    let started = Instant::now();
    let n3 = home.node("n3").model_from_folder("third").start().await;
    whole(&[&n1, &n2, &n3]).await;
    measured("start of the third node to full mesh", started.elapsed());

    for node in [&n1, &n2, &n3] {
        for model in ["pip", "other", "third"] {
            node.offers(model).await;
        }
        // CX-20: the catalogue is the same whoever is asked.
        let models = node.client().get("/v1/models").await.unwrap().json;
        let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["other", "pip", "third"], "catalogue of {}", node.name());
        for model in ids {
            let reply = node.client().ask(model, FRANCE).await.unwrap();
            assert!(reply.chat_text().contains("Paris"), "{model} through {}: {}", node.name(), reply.text);
        }
    }
}

#[tokio::test]
async fn a_stream_served_by_another_node_equals_the_local_stream_byte_for_byte() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = two_nodes_with_different_models(&home).await;
    let request = json!({
        "model": "pip", "stream": true, "stream_options": {"include_usage": true}, "seed": 7, "temperature": 0.9, "max_tokens": 120,
        "messages": [{"role": "user", "content": STORY}],
    });
    let mut answers = Vec::new();
    for node in [&n1, &n2, &n2, &n1] {
        let answer = node.client().stream("/v1/chat/completions", &request).await.unwrap().chat().await;
        answer.assert_complete();
        answers.push((answer.text, answer.finish, answer.usage.unwrap()["completion_tokens"].clone()));
    }
    assert!(answers[0].0.len() > 20, "a story was asked for: {answers:?}");
    for answer in &answers[1..] {
        assert_eq!(answer, &answers[0]);
    }
}

#[tokio::test]
async fn nodes_started_without_any_option_take_free_ports_and_join() {
    let _alone = alone().await;
    let home = Home::new();
    let first = home.plain_node("first").start().await;
    let second = home.plain_node("second").start().await;
    assert_ne!(first.client().base(), second.client().base());
    both_up([&first, &second]).await;
    for node in [&first, &second] {
        node.is_healthy().await;
        assert!(node.client().ask("pip", FRANCE).await.unwrap().chat_text().contains("Paris"));
    }
}

/// `first` and `second` see each other, and nobody else.
async fn both_up(nodes: [&Node; 2]) {
    for node in nodes {
        eventually("both nodes are seen up", async || {
            let view = node.view().await?;
            let up = view.nodes.iter().filter(|node| node.state == NodeState::Up).count();
            if up == 2 && view.nodes.len() == 2 { Ok(()) } else { Err(format!("{up} of {} up", view.nodes.len())) }
        })
        .await;
    }
}

#[tokio::test]
async fn nodes_of_one_user_that_start_at_once_with_data_in_different_folders_join_without_configuration() {
    let _alone = alone().await;
    let home = Home::new();
    let node = |folder: &str| home.plain_node(folder).arg("--data-dir", home.path().join(folder).to_str().expect("text")).start();
    let (first, second) = tokio::join!(node("first"), node("second"));
    both_up([&first, &second]).await;
    let listed = run_plexus(&home, &["cluster", "status"], "").await;
    assert!(listed.success, "a command finds them though their data is elsewhere: {listed:?}");
    let keys = ["first", "second", ".local/share/plexus"].map(|folder| home.path().join(folder).join("local.key"));
    assert_eq!(keys.map(|key| key.exists()), [false, false, true], "one secret, in one place");
}

#[tokio::test]
async fn a_user_without_a_home_has_its_secret_with_its_data_and_is_told() {
    let _alone = alone().await;
    let home = Home::new();
    let data = home.path().join("data");
    let homeless = |label: &str| home.plain_node(label).arg("--data-dir", data.to_str().expect("text")).env("HOME", "/dev/null");
    let first = homeless("first").start().await;
    let second = homeless("second").start().await;
    both_up([&first, &second]).await;
    assert!(data.join("local.key").exists());
    assert!(first.log().contains("/dev/null/.local/share/plexus cannot be used"), "{}", first.log());
}

#[tokio::test]
async fn a_node_told_to_stop_finishes_its_streams_and_leaves() {
    let _alone = alone().await;
    let home = Home::new();
    let mut leaving = home.scripted("leaving").arg("--step-time", "50ms").start().await;
    let staying = home.scripted("staying").flag("--no-models").seed(leaving.addresses().gossip).start().await;
    whole(&[&leaving, &staying]).await;
    staying.offers("pip").await;

    let mut request = question_body("pip", "go", true);
    request["max_tokens"] = 40.into();
    let mut local = leaving.client().stream("/v1/chat/completions", &request).await.unwrap();
    let mut remote = staying.client().stream("/v1/chat/completions", &request).await.unwrap();
    local.next().await.unwrap().unwrap();
    remote.next().await.unwrap().unwrap();
    leaving.signal(Signal::Term);

    // CX-51: what runs is completed, then the process ends well and everybody knows.
    for stream in [local, remote] {
        let answer = stream.chat().await;
        answer.assert_complete();
        assert_eq!(answer.usage.unwrap()["completion_tokens"], 40);
    }
    let status = leaving.exit().await;
    assert!(status.success(), "{status}");
    staying.sees("leaving", None).await;
}

#[tokio::test]
async fn a_node_told_to_stop_passes_on_what_still_comes_and_says_so_to_who_watches_it() {
    // CX-49, CX-51
    let _alone = alone().await;
    let home = Home::new();
    let mut leaving = home.scripted("leaving").arg("--step-time", "50ms").start().await;
    let staying = home.scripted("staying").seed(leaving.addresses().gossip).start().await;
    whole(&[&leaving, &staying]).await;
    eventually("both hold the model", async || {
        let pip = leaving.client().get("/v1/models/pip").await.map_err(|error| error.to_string())?;
        let loaded = pip.json["locations"].as_array().into_iter().flatten().filter(|at| at["status"] == "loaded").count();
        if loaded == 2 { Ok(()) } else { Err(pip.text) }
    })
    .await;
    let mut request = question_body("pip", "go", true);
    request["max_tokens"] = 100.into();
    let mut running = leaving.client().stream("/v1/chat/completions", &request).await.unwrap();
    running.next().await.unwrap().unwrap();
    leaving.signal(Signal::Term);
    eventually("its health says that it stops", async || {
        let health = leaving.client().get("/health").await.map_err(|error| error.to_string())?;
        if health.status == 503 && health.json["status"] == "draining" { Ok(()) } else { Err(health.text) }
    })
    .await;
    for _ in 0..3 {
        let reply = leaving.client().ask("pip", "go").await.unwrap();
        assert_eq!((reply.status, reply.header("x-plexus-node")), (200, Some("staying")), "{}", reply.text);
    }
    let answer = running.chat().await;
    answer.assert_complete();
    assert_eq!(answer.usage.unwrap()["completion_tokens"], 100);
    let status = leaving.exit().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_node_with_another_secret_stays_alone() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = two_nodes_with_different_models(&home).await;
    let rejected_before = n1.counters("rejected").await.unwrap();

    let stranger_home = Home::new();
    let stranger = stranger_home.node("stranger").seed(n1.addresses().gossip).start().await;
    stranger.is_healthy().await;
    eventually("its datagrams are rejected and counted", async || {
        let rejected = n1.counters("rejected").await?;
        let grown = rejected.iter().any(|(name, count)| count > rejected_before.get(name).unwrap_or(&0));
        if grown { Ok(()) } else { Err(format!("{rejected:?}")) }
    })
    .await;
    tokio::time::sleep(process::QUIET).await;
    whole(&[&n1, &n2]).await;
    stranger.sees_up(&["stranger"]).await;
}

#[tokio::test]
async fn garbage_sent_to_the_gossip_port_is_counted_and_changes_nothing() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = two_nodes_with_different_models(&home).await;
    let before: u64 = n1.counters("rejected").await.unwrap().values().sum();

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    for len in [0_usize, 1, 2, 3, 16, 40, 41, 100, 512, 1200, 1400, 9000, 60_000] {
        for fill in [0_u8, 1, 2, 0x7f, 0xff] {
            let datagram: Vec<u8> = (0..len).map(|i| fill.wrapping_mul(i as u8).wrapping_add(fill)).collect();
            socket.send_to(&datagram, n1.addresses().gossip).unwrap();
            sent += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    eventually("the garbage is counted", async || {
        let counters = n1.counters("rejected").await?;
        // Datagrams may be lost, even on loopback, when a buffer is full.
        if counters.values().sum::<u64>() >= before + sent / 2 { Ok(()) } else { Err(format!("{counters:?}, {sent} sent")) }
    })
    .await;
    whole(&[&n1, &n2]).await;
    for actor in n1.own_actors().await.unwrap() {
        assert_eq!(actor.restarts, 0, "{actor:?}");
    }
    assert!(n1.client().ask("other", FRANCE).await.unwrap().chat_text().contains("Paris"));
}

#[tokio::test]
async fn a_killed_node_started_again_under_its_name_is_back_at_once() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, mut n2) = two_nodes_with_different_models(&home).await;
    let first_life = n1.view().await.unwrap().nodes[1].facts.id.clone();

    n2.kill().await;
    let restarted = Instant::now();
    n2.start_again().await;
    eventually("the new life is seen", async || {
        let view = n1.view().await?;
        let seen = view.nodes.iter().find(|node| node.facts.id.name.as_str() == "n2").ok_or("not seen at all")?;
        if seen.facts.id.generation > first_life.generation && seen.state == NodeState::Up {
            Ok(())
        } else {
            Err(format!("{:?}", seen.facts.id))
        }
    })
    .await;
    whole(&[&n1, &n2]).await;
    n1.offers("other").await;
    measured("start again to offered", restarted.elapsed());
    assert!(n1.client().ask("other", FRANCE).await.unwrap().chat_text().contains("Paris"));
}

#[tokio::test]
async fn a_node_killed_before_the_first_token_is_not_noticed_by_any_client() {
    let _alone = alone().await;
    let home = Home::new();
    let mut doomed = home.node("doomed").start().await;
    let other = home.node("other").start().await;
    let ingress = home.node("ingress").model_from_folder("unused").start().await;
    whole(&[&doomed, &other, &ingress]).await;
    ingress.offers("pip").await;
    eventually("both replicas are offered", async || {
        let models = ingress.client().get("/v1/models").await.map_err(|error| error.to_string())?.json;
        let pip = models["data"].as_array().into_iter().flatten().find(|model| model["id"] == "pip").cloned().unwrap_or_default();
        let loaded = pip["locations"].as_array().into_iter().flatten().filter(|place| place["status"] == "loaded").count();
        if loaded == 2 { Ok(()) } else { Err(pip.to_string()) }
    })
    .await;

    doomed.signal(Signal::Stop);
    let requests: Vec<_> = (0..12)
        .map(|i| {
            let client = ingress.client().clone();
            tokio::spawn(async move {
                if i % 2 == 0 {
                    return client.ask("pip", FRANCE).await.unwrap().chat_text().to_owned();
                }
                let answer = client.ask_streaming("pip", FRANCE).await.chat().await;
                answer.assert_complete();
                answer.text
            })
        })
        .collect();
    // Some requests have reached the frozen node by now; whether many or few, none may be lost.
    tokio::time::sleep(Duration::from_millis(100)).await;
    doomed.kill().await;
    let killed = Instant::now();
    for request in requests {
        assert!(request.await.unwrap().contains("Paris"));
    }
    measured("kill to the last of 12 answers", killed.elapsed());
    let rerouted = ingress.counters("rerouted").await.unwrap();
    assert!(rerouted.values().sum::<u64>() > 0, "no request had been sent to the frozen node: {rerouted:?}");
    whole(&[&other, &ingress]).await;
}

#[tokio::test]
async fn a_frozen_node_is_left_out_and_taken_back_when_it_thaws() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = two_nodes_with_different_models(&home).await;

    n2.signal(Signal::Stop);
    eventually("the frozen node is not up any more", async || {
        let view = n1.view().await?;
        let up = view.nodes.iter().any(|node| node.facts.id.name.as_str() == "n2" && node.state == NodeState::Up);
        if up { Err("still up".into()) } else { Ok(()) }
    })
    .await;
    assert!(n1.client().ask("pip", FRANCE).await.unwrap().chat_text().contains("Paris"));
    let reply = n1.client().ask("other", FRANCE).await.unwrap();
    assert!([404, 503].contains(&reply.status), "its model cannot be served meanwhile: {}", reply.text);

    n2.signal(Signal::Cont);
    whole(&[&n1, &n2]).await;
    n1.offers("other").await;
    assert!(n1.client().ask("other", FRANCE).await.unwrap().chat_text().contains("Paris"));
}

#[tokio::test]
async fn a_request_that_cannot_be_placed_names_the_model() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = two_nodes_with_different_models(&home).await;
    for node in [&n1, &n2] {
        let reply = node.client().ask("nobody/has-this", FRANCE).await.unwrap();
        assert_eq!((reply.status, &reply.json["error"]["code"]), (404, &Value::from("model_not_found")), "{}", reply.text);
        assert!(reply.text.contains("nobody/has-this"));
    }
}

#[tokio::test]
async fn vectors_say_who_made_them_and_any_node_tells_why() {
    let home = Home::new();
    let bert = binary::repository().join("engine/tests/golden/bert");
    let config = home.path().join("cluster.toml");
    std::fs::write(&config, format!("[[models]]\nid = \"bert\"\nsource = \"{}\"\n", bert.display())).unwrap();
    let serving = home.node("serving").arg("--config", config.to_str().unwrap()).start().await;
    let ingress = home.node("ingress").model_from_folder("unused").start().await;
    whole(&[&serving, &ingress]).await;
    ingress.offers_on_demand("bert").await;
    for (asked, loaded_for_it) in [(&ingress, true), (&serving, false)] {
        let reply = asked.client().post("/v1/embeddings", &json!({"model": "bert", "input": ["a", "b"]})).await.unwrap();
        assert_eq!((reply.status, reply.header("x-plexus-node")), (200, Some("serving")), "{}", reply.text);
        let route = reply.header("x-plexus-route").expect("it says why").to_owned();
        assert!(route.starts_with("it goes to serving/cpu-0 (serving/cpu-0: first token expected in "), "{route}");
        assert_eq!(route.contains("; before that"), loaded_for_it, "{route}");
        let id = reply.header("x-request-id").expect("it has an id").to_owned();
        for node in [&ingress, &serving] {
            let told = run_plexus(&home, &["cluster", "explain", &id, "--node", node.client().base()], "").await;
            assert!(told.success && told.stdout.contains("it goes to serving/cpu-0"), "{id}: {} {}", told.stdout, told.stderr);
        }
        let nobody = asked.client().post("/v1/embeddings", &json!({"model": "none", "input": "a"})).await.unwrap();
        assert_eq!((nobody.status, nobody.header("x-plexus-node")), (404, None), "{}", nobody.text);
    }
}

/// Asks so many requests of each of both nodes at once that neither can have them all, until both have measured about the same speed of reading.
async fn equally_fast(nodes: [&Node; 2]) {
    eventually("both nodes have read prompts, about as fast", async || {
        let mut body = question_body("pip", STORY, false);
        body["max_tokens"] = json!(64);
        body["ignore_eos"] = json!(true);
        let replies = futures::future::join_all((0..24).map(|i| nodes[i % 2].client().post("/v1/chat/completions", &body))).await;
        assert!(replies.iter().all(|reply| reply.as_ref().is_ok_and(|reply| reply.status == 200)), "{replies:?}");
        let replicas = nodes[0].view().await?.nodes.into_iter().flat_map(|node| node.summary.replicas);
        let speeds: Vec<f32> = replicas.map(|replica| replica.load.prefill_tokens_per_s).collect();
        let (least, most) = (speeds.iter().copied().fold(f32::INFINITY, f32::min), speeds.iter().copied().fold(0.0, f32::max));
        if speeds.len() == 2 && least > 0.0 && most < 2.0 * least { Ok(()) } else { Err(format!("{speeds:?} tokens/s")) }
    })
    .await;
}

/// Waits until each of both nodes knows so many digests of prompts, and all that the other says of itself: that it is idle, too.
async fn all_told(nodes: [&Node; 2], n_digests: u64) {
    eventually(&format!("both nodes know {n_digests} digests and that nobody works"), async || {
        for node in nodes {
            let known: u64 = node.counters("prefixes_known").await?.values().sum();
            if known < n_digests {
                return Err(format!("{} knows {known} digests", node.name()));
            }
        }
        let mut views = [nodes[0].view().await?.nodes, nodes[1].view().await?.nodes];
        views.iter_mut().for_each(|nodes| nodes.sort_by(|a, b| a.facts.id.cmp(&b.facts.id)));
        let said = views.each_ref().map(|nodes| nodes.iter().map(|node| node.summary.revision).collect::<Vec<u64>>());
        let replicas = views[0].iter().flat_map(|node| &node.summary.replicas);
        let present: u32 = replicas.map(|replica| replica.load.running + replica.load.waiting).sum();
        if said[0] == said[1] && present == 0 { Ok(()) } else { Err(format!("{present} requests, revisions {said:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_conversation_goes_on_at_the_node_that_has_it_cached_whichever_is_asked() {
    let _alone = alone().await;
    let home = Home::new();
    let (n1, n2) = (home.node("n1").start().await, home.node("n2").start().await);
    let nodes = [&n1, &n2];
    whole(&nodes).await;
    equally_fast(nodes).await;

    let mut messages = vec![json!({"role": "system", "content": "The capital of France is Paris. ".repeat(31)})];
    let mut holder = None;
    for (turn, question) in
        ["What is the capital of France?", "And of Italy?", "And of Spain?", "And of Japan?", "And of Egypt?"].iter().enumerate()
    {
        messages.push(json!({"role": "user", "content": question}));
        let body = json!({"model": "pip", "messages": messages, "temperature": 0, "max_tokens": 8});
        let reply = nodes[turn % 2].client().post("/v1/chat/completions", &body).await.unwrap();
        messages.push(json!({"role": "assistant", "content": reply.chat_text()}));

        let (node, route) = (reply.header("x-plexus-node").unwrap(), reply.header("x-plexus-route").unwrap());
        let cached = reply.json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        eprintln!("turn {turn} at {node}: {route}; {}", reply.json["usage"]);
        match &holder {
            None => holder = Some(node.to_owned()),
            Some(holder) => {
                assert_eq!(node, holder, "turn {turn}, asked of {}: {route}", nodes[turn % 2].name());
                assert!(cached > 0 && route.contains("tokens of the prompt cached"), "turn {turn}: {route}; {}", reply.text);
            }
        }
        all_told(nodes, 2).await; // of 512 and of 1,024 bytes
    }
}
