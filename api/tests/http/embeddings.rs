//! `POST /v1/embeddings`

use insta::assert_snapshot;
use plexus_types::{EmbedInput, FinishReason, RequestError};

use crate::scripted::{Scripted, ask, post};

const PATH: &str = "/v1/embeddings";

#[tokio::test]
async fn vectors_are_listed_in_the_order_of_their_inputs() {
    let cluster = Scripted::saying(&[], FinishReason::Stop);
    let answered = ask(&cluster, post(PATH, r#"{"model":"bert","input":["a","b"],"dimensions":3,"user":"u"}"#)).await;
    assert_snapshot!(answered.shown());
    let asked = cluster.embedded.lock().unwrap()[0].clone();
    assert_eq!(asked.inputs, ["a", "b"].map(|text| EmbedInput::Text(text.to_owned())));
    assert_eq!((asked.model.as_str(), asked.dimensions), ("bert", Some(3)));
}

#[tokio::test]
async fn vectors_are_base64_if_the_client_asks_for_it() {
    let cluster = Scripted::saying(&[], FinishReason::Stop);
    assert_snapshot!(ask(&cluster, post(PATH, r#"{"model":"bert","input":[1,2,3],"encoding_format":"base64"}"#)).await.shown());
    assert_eq!(cluster.embedded.lock().unwrap()[0].inputs, [EmbedInput::Tokens(vec![1, 2, 3])]);
}

#[tokio::test]
async fn what_the_cluster_refuses_has_its_status() {
    for (error, status) in [
        (RequestError::WrongModality { message: "words".to_owned(), param: None }, 422),
        (RequestError::ContextLength { prompt_tokens: 600, max_tokens: 512 }, 400),
        (RequestError::ModelNotFound { model: "bert".to_owned(), alias: None }, 404),
        (RequestError::invalid("dimensions", "words"), 400),
    ] {
        let cluster = Scripted::failing(error);
        assert_eq!(ask(&cluster, post(PATH, r#"{"model":"bert","input":"a"}"#)).await.status.as_u16(), status);
    }
}
