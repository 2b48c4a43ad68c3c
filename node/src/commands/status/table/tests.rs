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
fn times_are_shown_in_units_that_people_read() {
    for (ms, text) in [(2, "2.0ms"), (120, "120ms"), (2500, "2.5s"), (95_000, "1m 35s"), (90_000_000, "1d 1h")] {
        assert_eq!(fine(Duration::from_millis(ms)), text);
    }
}
