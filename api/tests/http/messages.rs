//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use insta::assert_snapshot;
use plexus_types::{Delta, FinishReason, Message, Role, ToolChoice};

use crate::scripted::{Scripted, Step, ask, calling, post, said};

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
    assert_eq!(events, ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"]);
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

#[tokio::test]
async fn thoughts_text_and_calls_are_blocks_in_order() {
    // CX-74
    let cluster = Scripted::new(calling());
    assert_snapshot!(ask(&cluster, post(PATH, body(""))).await.shown());
}

#[tokio::test]
async fn every_block_of_a_stream_is_opened_filled_and_closed_before_the_next() {
    // CX-75
    let cluster = Scripted::new(calling());
    assert_snapshot!(ask(&cluster, post(PATH, body(r#","stream":true"#))).await.shown());
}

#[tokio::test]
async fn blocks_have_their_own_index_in_every_mix() {
    // CX-75
    let kinds = ["thinking", "text", "tool_use"];
    for mix in [[0, 1, 0], [1, 0, 1], [2, 2, 1], [0, 2, 1], [1, 2, 0]] {
        let delta = |kind: usize| match kind {
            0 => Delta::Reasoning("r".to_owned()),
            1 => Delta::Text("t".to_owned()),
            _ => Delta::ToolCall { index: 0, id: "c".to_owned(), name: "n".to_owned() },
        };
        let ending = Scripted::saying(&[], FinishReason::Stop).script.clone();
        let mut script = ending;
        for (at, kind) in mix.into_iter().enumerate() {
            script.insert(1 + at, Step::Say(said(delta(kind))));
        }
        let answered = ask(&Scripted::new(script), post(PATH, body(r#","stream":true"#))).await;
        let events = answered.body.lines().filter_map(|line| line.strip_prefix("data: ")).map(|json| serde_json::from_str(json).unwrap());
        let (mut opened, mut closed) = (Vec::new(), Vec::new());
        for event in events.collect::<Vec<serde_json::Value>>() {
            match event["type"].as_str().unwrap() {
                "content_block_start" => opened.push((event["index"].as_u64().unwrap(), event["content_block"]["type"].clone())),
                "content_block_stop" => closed.push(event["index"].as_u64().unwrap()),
                "content_block_delta" => assert_eq!(event["index"], opened.last().unwrap().0),
                _ => {}
            }
        }
        let expected: Vec<_> = mix.into_iter().enumerate().map(|(at, kind)| (at as u64, kinds[kind].into())).collect();
        assert_eq!((opened, closed), (expected, vec![0, 1, 2]));
    }
}

#[tokio::test]
async fn a_thought_sent_back_reaches_the_cluster_and_a_tool_may_be_forced() {
    // CX-73
    let cluster = Scripted::new(calling());
    let json = r#"{"model":"pip","max_tokens":64,"tools":[{"name":"f","input_schema":{}}],
        "tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":true},
        "messages":[{"role":"user","content":"go"},{"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":""},
            {"type":"text","text":"so"}]},{"role":"user","content":"on"}]}"#;
    ask(&cluster, post(PATH, json)).await;
    let chat = cluster.chat();
    assert_eq!((chat.tool_choice, chat.single_tool_call), (ToolChoice::Named("f".to_owned()), true));
    assert_eq!(chat.messages[1].reasoning.as_deref(), Some("hm"));
}
