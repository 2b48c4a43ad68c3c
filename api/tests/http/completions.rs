//! `POST /v1/completions`

use insta::assert_snapshot;
use plexus_types::{FinishReason, Prompt};

use crate::scripted::{Scripted, ask, measured, post};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn an_answer_in_one_piece_has_the_legacy_shape() {
    // CX-70
    let cluster = Scripted::saying(&[" upon", " a time"], FinishReason::Length);
    assert_snapshot!(ask(&cluster, post(PATH, r#"{"model":"pip","prompt":"Once","max_tokens":3}"#)).await.shown());
    assert_eq!(cluster.request().prompt, Prompt::Text("Once".to_owned()));
}

#[tokio::test]
async fn a_streamed_answer_has_legacy_chunks_and_an_end() {
    // CX-71, CX-80
    let cluster = Scripted::saying(&[" upon", " a time"], FinishReason::Stop);
    let json = r#"{"model":"pip","prompt":[1,2,3],"stream":true,"stream_options":{"include_usage":true}}"#;
    assert_snapshot!(ask(&cluster, post(PATH, json)).await.shown());
    assert_eq!(cluster.request().prompt, Prompt::Tokens(vec![1, 2, 3]));
}

#[tokio::test]
async fn log_probabilities_have_the_legacy_shape() {
    let cluster = Scripted::new(measured());
    let shown = ask(&cluster, post(PATH, r#"{"model":"pip","prompt":"Once","logprobs":1}"#)).await.shown();
    assert_eq!(cluster.request().logprobs, Some(1));
    let streamed =
        ask(&Scripted::new(measured()), post(PATH, r#"{"model":"pip","prompt":"Once","logprobs":1,"stream":true}"#)).await.shown();
    assert_snapshot!(format!("{shown}\n\n{streamed}"));
}

#[tokio::test]
async fn several_prompts_have_their_choices_in_order_and_each_prompt_is_counted_once() {
    let cluster = Scripted::saying(&[" b"], FinishReason::Stop);
    let answered = ask(&cluster, post(PATH, r#"{"model":"pip","prompt":["a","c"],"n":2,"echo":true}"#)).await.json();
    let texts: Vec<_> = answered["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a b", "a b", "c b", "c b"]);
    assert_eq!((&answered["usage"]["prompt_tokens"], &answered["usage"]["completion_tokens"]), (&24.into(), &8.into()));
}
