use serde_json::json;

use super::*;
use crate::client::ModelEntry;

const NOW_MS: u64 = 1_700_000_100_000;
const WIDE: Look = Look { colour: false, width: None };

fn cluster() -> ClusterReport {
    let node = |name: &str, this_node: bool, state: &str, age_s: f64, port: u16, summary: serde_json::Value| {
        json!({
            "id": { "name": name, "generation": NOW_MS - 95_000 }, "version": "0.1.0",
            "link": format!("127.0.0.1:{}", port + 3), "http": format!("127.0.0.1:{port}"), "gossip": format!("127.0.0.1:{}", port + 2),
            "state": state, "this_node": this_node, "age_s": age_s, "round_trip_s": if this_node { None } else { Some(0.0021) },
            "summary": summary,
        })
    };
    let replica = |device: &str, state: serde_json::Value, running: u32, decode: f32| {
        json!({
            "model": "pip", "kind": "generate", "device": device, "state": state, "context_length": 2048, "memory": 48 << 20,
            "residency_priority": 100, "pinned": running == 0, "idle_s": if state == "loaded" { Some(75.0) } else { None },
            "load_s": 1.5, "progress": 0.4,
            "load": { "running": running, "running_max": 8, "waiting": 0, "waiting_max": 64,
                      "prefill_tokens_per_s": 0.0, "decode_tokens_per_s": decode },
        })
    };
    let device =
        |id: &str, name: &str, total: u64, used: u64| json!({ "id": id, "name": name, "memory_total": total, "memory_used": used });
    let one = json!({ "revision": 3, "draining": false, "devices": [device("cpu-0", "16 cores", 4 << 30, 1 << 30)],
                      "replicas": [replica("cpu-0", json!("loaded"), 2, 311.5)] });
    let two = json!({ "revision": 1, "draining": true, "devices": [device("cuda-0", "H200", 128 << 30, 128 << 30)],
                      "replicas": [replica("cuda-0", json!({ "failed": "no room" }), 0, 0.0), replica("cuda-1", json!("loading"), 0, 0.0)] });
    serde_json::from_value(json!({
        "cluster": "plexus",
        "conflicts": ["the model 'pip' is listed differently on 'n1' and 'n2': 'n2' counts, its file is newer"],
        "nodes": [node("n1", true, "up", 0.0, 31313, one), node("n2", false, "draining", 0.12, 31323, two)],
    }))
    .unwrap()
}

fn actors() -> Vec<NodeActors> {
    let actor = |path: &str, state: &str, restarts: u32, last_error: Option<&str>| json!({ "path": path, "state": state, "restarts": restarts, "waiting": 0, "stalled_s": 0.0, "last_error": last_error, "counters": {} });
    serde_json::from_value(json!([
        { "node": "n1", "error": null, "actors": [
            actor("node", "running", 0, None),
            actor("node/router", "running", 0, None),
            actor("node/device/cpu-0", "idle", 1, Some("killed")),
            actor("node/device/cpu-0/pip", "serving", 0, None),
        ] },
        { "node": "n2", "error": "no answer within 2s", "actors": [] },
    ]))
    .unwrap()
}

#[test]
fn the_status_page_shows_nodes_devices_replicas_and_actors() {
    insta::assert_snapshot!(status_page(&cluster(), &actors(), NOW_MS, WIDE));
}

#[test]
fn a_narrow_terminal_gets_no_line_that_is_too_long() {
    let page = status_page(&cluster(), &actors(), NOW_MS, Look { colour: false, width: Some(110) });
    assert!(page.lines().all(|line| line.chars().count() <= 110), "{page}");
}

/// Twelve models with names as people give them, on nodes of theirs.
fn long_names() -> Vec<String> {
    let makers = ["unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:Q4_K_M", "bartowski/Llama-3.3-70B-Instruct-GGUF:Q8_0", "pip"];
    (0..12).map(|i| format!("{}-{i}", makers[i % 3])).collect()
}

fn many_models() -> Vec<ModelEntry> {
    let nodes = ["workstation", "laptop", "server-1", "server-2", "server-3"];
    let place = |status: &str| json!({ "node": "workstation", "device": "cuda-0", "status": status, "memory_bytes": 19_456_u64 << 20, "pinned": true, "reason": null });
    let entry = |(i, id): (usize, &String)| {
        let status = if i % 2 == 0 { "loaded" } else { "unloaded" };
        json!({ "id": id, "loaded": i % 2 == 0, "status": status, "max_model_len": 262_144, "feasible_on": nodes,
                "alias_of": (i == 11).then(|| long_names().swap_remove(0)), "capabilities": ["generate", "tools", "reasoning"],
                "locations": if i % 2 == 0 { vec![place("loaded"), place("loading")] } else { vec![] } })
    };
    serde_json::from_value(long_names().iter().enumerate().map(entry).collect()).unwrap()
}

/// The cluster with those models loaded, and an actor that says at length why it failed.
fn busy_cluster() -> (ClusterReport, Vec<NodeActors>) {
    let (mut cluster, mut actors) = (cluster(), actors());
    let replica = cluster.nodes[0].summary.replicas[0].clone();
    cluster.nodes[0].summary.replicas =
        long_names().iter().map(|id| ReplicaReport { model: id.parse().unwrap(), pinned: true, ..replica.clone() }).collect();
    cluster.nodes[0].summary.devices[0].name = "AMD Ryzen Threadripper PRO 7995WX 96-Cores".into();
    let why = "the device gave no memory for 4096 blocks of keys and values although the ledger had promised it";
    let first = actors[0].actors[0].clone();
    for id in long_names() {
        let (path, state) = (format!("node/model/{id}@cuda-0"), format!("failed: {why}"));
        actors[0].actors.push(ActorReport { path, state, last_error: None, ..first.clone() });
    }
    (cluster, actors)
}

#[test]
fn tables_with_long_names_fit_terminals_of_80_and_120_columns() {
    let (cluster, actors) = busy_cluster();
    for width in [80, 120] {
        let look = Look { colour: false, width: Some(width) };
        let (models, status) = (models_page(&many_models(), look), status_page(&cluster, &actors, NOW_MS, look));
        for page in [&models, &status] {
            let long = page.lines().find(|line| line.chars().count() > usize::from(width));
            assert_eq!(long, None, "at {width} columns");
            for name in &long_names() {
                assert!(page.contains(name.as_str()), "{name} is whole at {width} columns: {page}");
            }
        }
        assert!(width > 80 || status.contains("no room for"), "what is left out is said: {status}");
    }
}

#[test]
fn only_a_terminal_gets_colours() {
    assert!(!status_page(&cluster(), &actors(), NOW_MS, WIDE).contains('\u{1b}'));
    assert!(status_page(&cluster(), &actors(), NOW_MS, Look { colour: true, width: None }).contains('\u{1b}'));
}

#[test]
fn the_models_page_has_a_line_for_each_replica_and_a_reason_for_each_failure() {
    // CX-20, CX-22, CX-27, CX-28
    let place = |node: &str, status: &str, memory: u64| json!({ "node": node, "device": "cpu-0", "status": status, "memory_bytes": memory, "pinned": memory > 0, "reason": (status == "failed").then_some("disk full") });
    let models: Vec<ModelEntry> = serde_json::from_value(json!([
        { "id": "pip", "loaded": true, "status": "loaded", "max_model_len": 2048, "capabilities": ["generate", "tools"],
          "feasible_on": ["n1", "n2"], "locations": [place("n1", "loaded", 48 << 20), place("n2", "loading", 0)] },
        { "id": "small", "loaded": true, "status": "loaded", "alias_of": "pip", "max_model_len": 2048, "capabilities": ["generate"],
          "feasible_on": ["n1", "n2"], "locations": [place("n1", "loaded", 48 << 20)] },
        { "id": "big", "loaded": false, "status": "unloaded", "capabilities": ["generate"], "feasible_on": ["n2"], "locations": [] },
        { "id": "elsewhere", "loaded": false, "status": "unloaded", "capabilities": ["generate"], "feasible_on": ["n1", "n2"],
          "locations": [place("n2", "failed", 0)] },
        { "id": "coming", "loaded": false, "status": "loading", "progress": 0.4, "capabilities": ["embed"], "feasible_on": ["n1"],
          "locations": [place("n1", "loading", 1 << 30)] },
        { "id": "broken", "loaded": false, "status": "failed", "reason": "the file ends early\u{1b}[2J", "capabilities": ["generate"],
          "feasible_on": [], "locations": [] },
    ]))
    .unwrap();
    insta::assert_snapshot!(models_page(&models, WIDE));
}

#[test]
fn an_explanation_lists_every_place_and_marks_the_chosen_one() {
    let explanation = |considered: serde_json::Value, age_s: f64| {
        let decision = "it is loaded on n2/cpu-0, for which 'small' goes";
        serde_json::from_value(json!({ "model": "big", "decision": decision, "considered": considered, "age_s": age_s })).unwrap()
    };
    let places = json!([
        { "place": "n2/cpu-0", "verdict": "fits once 'small' goes", "chosen": true },
        { "place": "n1/cpu-0", "verdict": "3.00 GiB needed, 1.00 GiB in all", "chosen": false },
    ]);
    insta::assert_snapshot!(explanation_page(&explanation(places, 2.5), WIDE));
    assert_eq!(explanation_page(&explanation(json!([]), 0.0), WIDE), "big: it is loaded on n2/cpu-0, for which 'small' goes");
}

#[test]
fn long_verdicts_stand_below_their_places() {
    let why = |node: &str| {
        format!(
            "no node that can be reached has /home/{node}/models/unsloth/Qwen3-Coder-30B-A3B-Instruct-Q4_K_M.gguf: check the path, or list it elsewhere"
        )
    };
    let places =
        ["workstation", "laptop"].map(|node| json!({ "place": format!("{node}/cpu-0"), "verdict": why(node), "chosen": node == "laptop" }));
    let explained = json!({ "model": "big", "decision": "it cannot be loaded", "considered": places, "age_s": 0.0 });
    let explained = serde_json::from_value(explained).unwrap();
    let page = explanation_page(&explained, Look { colour: false, width: Some(80) });
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    assert!(page.contains(" *   laptop/cpu-0\n      no node that can be reached has\n      /home/laptop/models/unsloth/"), "{page}");
    let elsewhere = explanation_page(&explained, WIDE);
    assert!(elsewhere.contains(&format!("\n      {}\n", why("workstation"))), "whole, on a line of its own: {elsewhere}");
}

#[test]
fn times_are_shown_in_units_that_people_read() {
    for (ms, text) in [(2, "2.0ms"), (120, "120ms"), (2500, "2.5s"), (95_000, "1m 35s"), (90_000_000, "1d 1h")] {
        assert_eq!(fine(Duration::from_millis(ms)), text);
    }
}
