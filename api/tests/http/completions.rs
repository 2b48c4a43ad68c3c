//! `POST /v1/completions`

use insta::assert_snapshot;
use plexus_types::{FinishReason, Prompt};

use crate::scripted::{Scripted, ask, post};

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
