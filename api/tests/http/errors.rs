//! What each vendor's clients see when there is no answer (CX-76).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use insta::assert_snapshot;
use plexus_types::{FinishReason, RequestError};
use serde_json::{Value, json};

use crate::scripted::{Scripted, ask, get, post};

const CHAT: &str = r#"{"model":"pip","messages":[{"role":"user","content":"hi"}]}"#;
const CHAT_STREAM: &str = r#"{"model":"pip","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
const MESSAGE: &str = r#"{"model":"pip","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;
const MESSAGE_STREAM: &str = r#"{"model":"pip","max_tokens":8,"messages":[{"role":"user","content":"hi"}],"stream":true}"#;

fn every_error() -> Vec<RequestError> {
    let message = || "words".to_owned();
    vec![
        RequestError::invalid("temperature", "words"),
        RequestError::ModelNotFound { model: "pip".to_owned(), alias: None },
        RequestError::ContextLength { prompt_tokens: 40_000, max_tokens: 32_768 },
        RequestError::WrongModality { message: message(), param: Some("tools".to_owned()) },
        RequestError::Overloaded { message: message(), retry_after: Duration::from_millis(2500) },
        RequestError::Unavailable { message: message(), retry_after: Duration::ZERO },
        RequestError::Unservable { message: message() },
        RequestError::Lost { message: message() },
        RequestError::Internal { message: message() },
    ]
}

#[tokio::test]
async fn every_error_has_its_status_and_envelope_in_both_dialects_streamed_or_not() {
    let mut shown = String::new();
    for error in every_error() {
        for (path, whole, stream) in [("/v1/chat/completions", CHAT, CHAT_STREAM), ("/v1/messages", MESSAGE, MESSAGE_STREAM)] {
            let whole = ask(&Scripted::failing(error.clone()), post(path, whole)).await.shown();
            let streamed = ask(&Scripted::failing(error.clone()), post(path, stream)).await.shown();
            assert_eq!(whole, streamed);
            shown += &format!("=== {path}\n{whole}\n\n");
        }
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_says_what_clients_look_for() {
    let error = RequestError::ContextLength { prompt_tokens: 40_000, max_tokens: 32_768 };
    for (path, json) in [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)] {
        let body = ask(&Scripted::failing(error.clone()), post(path, json)).await.body;
        assert!(
            body.contains("maximum context length is 32768") && body.contains("prompt is too long: 40000 tokens > 32768 maximum"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn the_field_that_asks_for_more_than_text_is_named() {
    let param = async |failing: &Arc<Scripted>, json: &str| {
        let answered = ask(failing, post("/v1/chat/completions", json)).await;
        (answered.status.as_u16(), answered.json()["error"]["param"].as_str().map(str::to_owned))
    };
    let embeds = RequestError::WrongModality { message: "words".to_owned(), param: Some("model".to_owned()) };
    assert_eq!(param(&Scripted::failing(embeds), CHAT).await, (422, Some("model".to_owned())));
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let sound = CHAT.replace("\"messages\"", "\"modalities\":[\"text\",\"audio\"],\"messages\"");
    assert_eq!(param(&cluster, &sound).await, (422, Some("modalities".to_owned())));
    let picture = CHAT.replace("\"hi\"", "[{\"type\":\"image_url\"}]");
    assert_eq!(param(&cluster, &picture).await, (422, Some("messages[0].content[0]".to_owned())));
}

#[tokio::test]
async fn what_is_wrong_at_the_door_is_answered_in_the_dialect_of_the_path() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let text = |path: &str| Request::post(path).header("content-type", "text/plain").body(Body::from(CHAT)).unwrap();
    let announced = |path: &str| {
        let request = Request::post(path).header("content-type", "application/json").header("content-length", "99999999999");
        request.body(Body::from("{}")).unwrap()
    };
    let mut shown = String::new();
    for (name, request) in [
        ("not JSON", post("/v1/chat/completions", "{\"model\":")),
        ("not JSON", post("/v1/messages", "{\"model\":")),
        ("not declared as JSON", text("/v1/chat/completions")),
        ("not declared as JSON", text("/v1/messages")),
        ("too large", announced("/v1/completions")),
        ("too large", announced("/v1/messages")),
        ("no such path", get("/v1/nothing")),
        ("no such path", get("/v1/messages/nothing")),
        ("wrong method", get("/v1/chat/completions")),
        ("wrong method", get("/v1/messages")),
        ("wrong type", post("/v1/chat/completions", r#"{"model":"pip","messages":[{"role":"user","content":7}]}"#)),
        ("wrong type", post("/v1/messages", r#"{"model":"pip","max_tokens":"8","messages":[]}"#)),
        ("no model", post("/v1/chat/completions", r#"{"messages":[]}"#)),
        ("empty model", post("/v1/messages", r#"{"model":"","max_tokens":1}"#)),
        ("impossible model", post("/v1/chat/completions", r#"{"model":"../../etc/passwd","messages":[]}"#)),
    ] {
        shown += &format!("=== {name}\n{}\n\n", ask(&cluster, request).await.shown());
    }
    assert_snapshot!(shown);
    assert!(cluster.asked.lock().unwrap().is_empty(), "work was done for a wrong request");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_even_if_its_length_is_not_announced() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let chunk = bytes::Bytes::from(vec![b' '; 1 << 20]);
    for (chunks, status) in [(15, 400), (17, 413)] {
        let body = Body::from_stream(futures::stream::iter(vec![chunk.clone(); chunks]).map(Ok::<_, std::io::Error>));
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json").body(body).unwrap();
        assert_eq!(ask(&cluster, request).await.status.as_u16(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json").body(body).unwrap();
    assert_eq!(ask(&cluster, request).await.status.as_u16(), 408);
}

/// Every request that differs from `value` in one place, by one of many odd values there.
fn neighbours(value: &Value) -> Vec<Value> {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{10ffff}"),
        json!([]),
        json!({}),
        json!([[{}]]),
    ];
    let mut all = odd.to_vec();
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                all.extend(neighbours(item).into_iter().map(|item| {
                    let mut items = items.clone();
                    items[index] = item;
                    Value::Array(items)
                }));
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                all.extend(neighbours(field).into_iter().map(|field| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), field);
                    Value::Object(fields)
                }));
            }
        }
        _ => {}
    }
    all
}

#[tokio::test]
async fn no_odd_value_anywhere_in_a_request_makes_the_server_fail() {
    let call = json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let chat = json!({
        "model": "pip", "stream": false, "stream_options": { "include_usage": true }, "n": 1, "stop": ["a"], "max_tokens": 4, "temperature": 1,
        "seed": 1, "top_k": 1, "repeat_last_n": 1, "logit_bias": { "5": 1 }, "min_tokens": 1, "ignore_eos": false,
        "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "object" } } }, "tool_choice": "auto",
        "logprobs": true, "top_logprobs": 2, "parallel_tool_calls": true, "reasoning_effort": "low", "structured_outputs": { "regex": null },
        "chat_template_kwargs": { "a": 1 }, "modalities": ["text"], "tools": [{ "type": "function", "function": { "name": "f", "parameters": {} } }],
        "messages": [
            { "role": "user", "content": [{ "type": "text", "text": "hi" }], "name": "n" },
            { "role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [call], "function_call": { "name": "f", "arguments": {} } },
            { "role": "tool", "content": "x", "tool_call_id": "c" }
        ]
    });
    let completion = json!({ "model": "pip", "prompt": [[1, 2]], "max_tokens": 4, "echo": false, "suffix": null, "best_of": 1, "logprobs": 1, "guided_choice": ["a"] });
    let message = json!({
        "model": "pip", "max_tokens": 4, "system": [{ "type": "text", "text": "s" }], "stop_sequences": ["a"],
        "tool_choice": { "type": "tool", "name": "a", "disable_parallel_tool_use": true }, "thinking": { "type": "enabled", "budget_tokens": 1024 },
        "output_config": { "effort": "low" },
        "tools": [{ "name": "a", "description": "d", "input_schema": {} }, { "type": "function", "function": { "name": "b", "parameters": {} } }],
        "messages": [
            { "role": "assistant", "content": [{ "type": "thinking", "thinking": "h" }, { "type": "tool_use", "id": "t", "name": "a", "input": {} }] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": [{ "type": "text", "text": "r" }] }] },
            { "role": "user", "content": [{ "type": "document", "source": { "type": "text", "data": "d" } }] }
        ]
    });
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let paths = [
        ("/v1/chat/completions", chat),
        ("/v1/completions", completion),
        ("/v1/messages", message.clone()),
        ("/v1/messages/count_tokens", message),
        ("/v1/embeddings", json!({ "model": "pip", "input": [[1, 2]], "encoding_format": "float", "dimensions": 2 })),
    ];
    for (path, request) in paths {
        assert_eq!(ask(&cluster, post(path, request.to_string())).await.status.as_u16(), 200, "{path}");
        for odd in neighbours(&request) {
            let status = ask(&cluster, post(path, odd.to_string())).await.status.as_u16();
            assert!([200, 400, 404, 422].contains(&status), "{status} for {odd}");
        }
    }
}
