//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use insta::assert_snapshot;
use plexus_types::{FinishReason, Message, Role};

use crate::scripted::{Scripted, ask, post};

const PATH: &str = "/v1/messages?beta=true";

fn body(fields: &str) -> String {
    format!(r#"{{"model":"pip","max_tokens":64,"messages":[{{"role":"user","content":"Say hello."}}]{fields}}}"#)
}

#[tokio::test]
async fn an_answer_in_one_piece_has_the_vendors_shape() {
    // CX-74
    let cluster = Scripted::saying(&["Hel", "lo"], FinishReason::Stop);
    assert_snapshot!(ask(&cluster, post(PATH, body(""))).await.shown());
}

#[tokio::test]
async fn a_streamed_answer_has_the_vendors_events_in_order() {
    // CX-75
    let cluster = Scripted::saying(&["Hel", "lo\n"], FinishReason::Stop);
    assert_snapshot!(ask(&cluster, post(PATH, body(r#","stream":true"#))).await.shown());
}

#[tokio::test]
async fn a_stop_sequence_is_named_in_the_answer_and_in_the_stream() {
    // CX-74
    for stream in [false, true] {
        let cluster = Scripted::saying(&["a"], FinishReason::StopSequence("</end>".to_owned()));
        let answered = ask(&cluster, post(PATH, body(&format!(r#","stop_sequences":["</end>"],"stream":{stream}"#)))).await;
        assert!(answered.body.contains(r#""stop_reason":"stop_sequence","stop_sequence":"</end>""#), "{}", answered.body);
        assert_eq!(cluster.request().stop, ["</end>"]);
    }
}

#[tokio::test]
async fn the_end_of_the_limit_is_named_max_tokens() {
    // CX-74
    let cluster = Scripted::saying(&["a"], FinishReason::Length);
    assert_eq!(ask(&cluster, post(PATH, body(""))).await.json()["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn an_answer_without_text_still_has_its_block() {
    let cluster = Scripted::saying(&[], FinishReason::Stop);
    let answered = ask(&cluster, post(PATH, body(r#","stream":true"#))).await;
    let events: Vec<_> = answered.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events, ["message_start", "content_block_start", "ping", "content_block_stop", "message_delta", "message_stop"]);
}

#[tokio::test]
async fn the_system_prompt_reaches_the_cluster_verbatim() {
    // CX-77
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    ask(&cluster, post(PATH, body(r#","system":" Be brief. \n""#))).await;
    assert_eq!(cluster.chat().messages, [Message::text(Role::System, " Be brief. \n"), Message::text(Role::User, "Say hello.")]);
}

#[tokio::test]
async fn tokens_are_counted_without_a_limit() {
    let cluster = Scripted::saying(&[], FinishReason::Stop);
    let counted = ask(&cluster, post("/v1/messages/count_tokens", r#"{"model":"pip","messages":[{"role":"user","content":"hi"}]}"#)).await;
    assert_snapshot!(counted.shown());
    assert_eq!(cluster.chat().messages, [Message::text(Role::User, "hi")]);
    let unknown = ask(&cluster, post("/v1/messages/count_tokens", r#"{"model":"none","messages":[{"role":"user","content":"hi"}]}"#)).await;
    assert_eq!((unknown.status.as_u16(), unknown.json()["error"]["type"].as_str()), (404, Some("not_found_error")));
}
