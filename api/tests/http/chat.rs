//! `POST /v1/chat/completions`

use insta::assert_snapshot;
use plexus_types::{FinishReason, Message, Role};

use crate::scripted::{Scripted, ask, post};

const PATH: &str = "/v1/chat/completions";

fn body(fields: &str) -> String {
    format!(r#"{{"model":"Qwen/Qwen3-0.6B","messages":[{{"role":"user","content":"Say hello."}}]{fields}}}"#)
}

#[tokio::test]
async fn an_answer_in_one_piece_has_the_vendors_shape() {
    // CX-70, CX-80
    let cluster = Scripted::saying(&["Hel", "lo \"you\"\n"], FinishReason::Stop);
    assert_snapshot!(ask(&cluster, post(PATH, body(""))).await.shown());
}

#[tokio::test]
async fn a_streamed_answer_has_role_content_and_finish_chunks_and_an_end() {
    // CX-71
    let cluster = Scripted::saying(&["Hel", "lo \"you\"\n"], FinishReason::Stop);
    assert_snapshot!(ask(&cluster, post(PATH, body(r#","stream":true"#))).await.shown());
}

#[tokio::test]
async fn a_stream_ends_with_the_usage_if_the_client_asks_for_it() {
    // CX-80
    let cluster = Scripted::saying(&["Hi"], FinishReason::Length);
    assert_snapshot!(ask(&cluster, post(PATH, body(r#","stream":true,"stream_options":{"include_usage":true}"#))).await.shown());
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_with_the_reason_stop() {
    let cluster = Scripted::saying(&["a"], FinishReason::StopSequence("END".to_owned()));
    let answered = ask(&cluster, post(PATH, body(r#","stop":["END","User:"]"#))).await;
    assert_eq!(answered.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(cluster.request().stop, ["END", "User:"]);
}

#[tokio::test]
async fn sampling_and_limits_reach_the_cluster() {
    // CX-81
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    ask(&cluster, post(PATH, body(r#","temperature":0,"top_p":0.5,"seed":3,"max_completion_tokens":5"#))).await;
    let request = cluster.request();
    assert_eq!(request.model.as_str(), "Qwen/Qwen3-0.6B");
    assert_eq!((request.sampling.temperature, request.sampling.top_p, request.sampling.seed), (Some(0.0), Some(0.5), Some(3)));
    assert_eq!(request.max_tokens, Some(5));
}

#[tokio::test]
async fn the_prompt_reaches_the_cluster_verbatim() {
    // CX-77
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let json = r#"{"model":"m","messages":[{"role":"system","content":" A \n"},{"role":"system","content":"B"},{"role":"user","content":"\u00e9\u0000"}]}"#;
    ask(&cluster, post(PATH, json)).await;
    let expected = [(Role::System, " A \n"), (Role::System, "B"), (Role::User, "\u{e9}\0")];
    assert_eq!(cluster.chat().messages, expected.map(|(role, text)| Message::text(role, text)));
}

#[tokio::test]
async fn the_serving_node_is_named() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let answered = ask(&cluster, post(PATH, body(r#","stream":true"#))).await;
    assert_eq!(answered.headers["x-plexus-node"], "n1");
}
