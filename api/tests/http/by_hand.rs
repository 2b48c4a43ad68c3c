//! Models that are loaded, unloaded and pinned by hand, and why they are where they are.

use insta::assert_snapshot;
use plexus_api::service::{LoadModel, Place};

use crate::scripted::{ID, Scripted, ask, get, post};

#[tokio::test]
async fn models_are_loaded_unloaded_and_pinned_by_hand() {
    // CX-43, CX-44, CX-76
    let cluster = Scripted::new(vec![]);
    let mut shown = String::new();
    for (path, json) in [
        ("/v1/models/load", r#"{"model":"shelf"}"#),
        ("/models/load", r#"{"model_id":"shelf","harness":"candle","tensor_parallel":1,"devices":["cpu-0"],"wait":false}"#),
        ("/v1/models/load", r#"{"model_id":"pip"}"#),
        ("/v1/models/load", r#"{"model_id":"none"}"#),
        ("/v1/models/load", "{}"),
        ("/v1/models/load", r#"{"model_id":"shelf","harness":"llamacpp"}"#),
        ("/models/unload", r#"{"model_id":"shelf"}"#),
        ("/v1/models/unload", r#"{"model_id":"pip"}"#),
        ("/v1/models/unload", r#"{"model_id":"none"}"#),
        ("/v1/models/pin", r#"{"model_id":"shelf"}"#),
        ("/v1/models/pin", r#"{"model_id":"shelf","node":"n1"}"#),
        ("/v1/models/pin", r#"{"model_id":"shelf","node":"n2"}"#),
        ("/v1/models/unpin", r#"{"model_id":"shelf","node":"n1","device":"cpu-0"}"#),
        ("/v1/models/unpin", r#"{"model_id":"shelf"}"#),
    ] {
        shown += &format!("=== {path} {json}\n{}\n\n", ask(&cluster, post(path, json)).await.shown());
    }
    assert_snapshot!(shown);
    let load = |model: &str, place, wait| LoadModel { model: model.parse().unwrap(), place, wait };
    let on_cpu = Place { node: None, device: Some("cpu-0".parse().unwrap()) };
    let expected = [load("shelf", Place::default(), true), load("shelf", on_cpu, false), load("pip", Place::default(), true)];
    assert_eq!(*cluster.loads.lock().unwrap(), expected, "what is refused at the door is not begun");
}

#[tokio::test]
async fn a_quantization_may_repeat_what_the_entry_says_but_not_change_it() {
    // CX-44
    for (model, quant, status) in [
        ("Qwen/Qwen3-0.6B:Q8_0", "q8_0", 200),
        ("fast", "Q8_0", 200),
        ("Qwen/Qwen3-0.6B:Q8_0", "q4k", 400),
        ("shelf", "q8_0", 400),
        ("none", "q8_0", 404),
    ] {
        let json = format!(r#"{{"model_id":"{model}","quant":"{quant}"}}"#);
        let answered = ask(&Scripted::new(vec![]), post("/v1/models/load", json)).await;
        assert_eq!(answered.status.as_u16(), status, "{model} {quant}: {}", answered.body);
        if status == 400 {
            let error = &answered.json()["error"];
            assert!(error["param"] == "quant" && error["message"].as_str().unwrap().contains("[[models]] entry"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_model_may_be_called_like_a_path_for_other_methods() {
    for (request, status, code) in [
        (get("/v1/models/load"), 404, "model_not_found"),
        (get("/models/load"), 405, "method_not_supported"),
        (post("/v1/models/shelf", "{}"), 405, "method_not_supported"),
        (post("/v1/models/Qwen/Qwen3-0.6B:Q8_0", "{}"), 405, "method_not_supported"),
    ] {
        let path = request.uri().to_string();
        let answered = ask(&Scripted::new(vec![]), request).await;
        assert_eq!((answered.status.as_u16(), answered.json()["error"]["code"].as_str()), (status, Some(code)), "{path}");
    }
}

#[tokio::test]
async fn a_model_and_a_request_are_explained() {
    let cluster = Scripted::new(vec![]);
    let mut shown = String::new();
    for subject in ["shelf", "Qwen/Qwen3-0.6B:Q8_0", "Qwen%2FQwen3-0.6B%3AQ8_0", &format!("chatcmpl-{ID}"), "nobody", "%ff"] {
        shown += &format!("=== {subject}\n{}\n\n", ask(&cluster, get(&format!("/v1/cluster/explain/{subject}"))).await.shown());
    }
    assert_snapshot!(shown);
}
