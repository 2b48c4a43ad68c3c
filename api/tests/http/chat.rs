//! `POST /v1/chat/completions`

use insta::assert_snapshot;
use plexus_types::{Constraint, FinishReason, Message, RequestError, Role, ToolChoice};

use crate::scripted::{Scripted, Step, ask, calling, measured, post, send, started, text};

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

#[tokio::test]
async fn thoughts_and_calls_stand_beside_the_text() {
    // CX-78
    let cluster = Scripted::new(calling());
    assert_snapshot!(ask(&cluster, post(PATH, body(""))).await.shown());
}

#[tokio::test]
async fn thoughts_and_calls_are_streamed_in_pieces_with_the_id_and_the_name_first() {
    // CX-78
    let cluster = Scripted::new(calling());
    let json = body(r#","stream":true,"stream_options":{"include_usage":true}"#);
    assert_snapshot!(ask(&cluster, post(PATH, json)).await.shown());
}

#[tokio::test]
async fn a_message_that_only_calls_has_no_content() {
    let script = calling().into_iter().filter(|step| !format!("{step:?}").contains("Text(")).collect();
    let message = ask(&Scripted::new(script), post(PATH, body(""))).await.json()["choices"][0]["message"].clone();
    assert!(message["content"].is_null() && message.get("content").is_some(), "{message}");
    assert_eq!(message["tool_calls"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn log_probabilities_are_listed_in_the_answer_and_in_the_stream() {
    let asked = |more: &str| body(&format!(r#","logprobs":true,"top_logprobs":1{more}"#));
    let whole = Scripted::new(measured());
    let shown = ask(&whole, post(PATH, asked(""))).await.shown();
    assert_eq!(whole.request().logprobs, Some(1));
    let streamed = ask(&Scripted::new(measured()), post(PATH, asked(r#","stream":true"#))).await.shown();
    assert_snapshot!(format!("{shown}\n\n{streamed}"));
}

#[tokio::test]
async fn the_choices_of_one_request_are_generated_beside_each_other() {
    let cluster = Scripted::saying(&["Hi"], FinishReason::Stop);
    let answered = ask(&cluster, post(PATH, body(r#","n":3,"seed":5"#))).await.json();
    let indices: Vec<_> = answered["choices"].as_array().unwrap().iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(answered["choices"][2]["message"]["content"], "Hi");
    // The prompt is read once, each choice has two tokens.
    assert_eq!((&answered["usage"]["prompt_tokens"], &answered["usage"]["completion_tokens"]), (&12.into(), &6.into()));
    let seeds: Vec<_> = cluster.asked.lock().unwrap().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [Some(5), Some(6), Some(7)]);
}

#[tokio::test]
async fn the_choices_of_a_stream_are_told_apart_by_their_index_and_end_together() {
    let cluster = Scripted::saying(&["Hi"], FinishReason::Stop);
    let json = body(r#","n":2,"stream":true,"stream_options":{"include_usage":true}"#);
    assert_snapshot!(ask(&cluster, post(PATH, json)).await.shown());
}

#[tokio::test]
async fn a_client_that_leaves_cancels_every_choice() {
    let cluster = Scripted::new(vec![Step::Say(started()), Step::Say(text("a")), Step::Hang]);
    let response = send(&cluster, post(PATH, body(r#","n":4,"stream":true"#))).await;
    assert_eq!(cluster.dropped(), 0);
    drop(response);
    assert_eq!(cluster.dropped(), 4);
}

#[tokio::test]
async fn a_choice_that_fails_fails_the_answer_and_cancels_the_others() {
    let failure = RequestError::Internal { message: "words".to_owned() };
    let cluster = Scripted::failing(failure);
    assert_eq!(ask(&cluster, post(PATH, body(r#","n":4"#))).await.status.as_u16(), 500);
    assert_eq!(cluster.dropped(), 4);
}

#[tokio::test]
async fn formats_forced_calls_and_the_rest_reach_the_cluster() {
    // CX-81
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    ask(
        &cluster,
        post(PATH, body(r#","response_format":{"type":"json_object"},"logit_bias":{"5":-100},"min_tokens":2,"ignore_eos":true"#)),
    )
    .await;
    let request = cluster.request();
    assert_eq!(request.constraint, Some(Constraint::JsonObject));
    let sampling = request.sampling;
    assert_eq!((sampling.logit_bias, sampling.min_tokens, sampling.ignore_eos), (vec![(5, -100.0)], Some(2), true));
    let cluster = Scripted::new(calling());
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required","parallel_tool_calls":false"#;
    ask(&cluster, post(PATH, body(tools))).await;
    assert_eq!((cluster.chat().tool_choice, cluster.chat().single_tool_call), (ToolChoice::Required, true));
}
