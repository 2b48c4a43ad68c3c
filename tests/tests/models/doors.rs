//! What is refused at the door, before any model comes or goes for it.

use serde_json::json;

use crate::files::Stored;
use crate::{Shelf, alone, answer, entry, loads, ready};

#[tokio::test]
async fn what_is_longer_than_a_model_holds_is_refused_before_the_model_is_loaded_and_another_goes_for_it() {
    // CX-30, CX-76
    let _alone = alone().await;
    let mut shelf = Shelf::new();
    shelf.add("there", 40, Stored::F16, "");
    shelf.add("asked", 40, Stored::F16, "context_length = 512");
    let a = shelf.node("a", 60, "").start().await;
    ready(&[&a], 2).await;
    answer(a.client(), "there").await;
    let before = loads(&a).await;
    let words = "word ".repeat(20_000);
    let chat = json!({"model": "asked", "messages": [{"role": "user", "content": words}]});
    for (path, body) in [
        ("/v1/chat/completions", chat.clone()),
        ("/v1/completions", json!({"model": "asked", "prompt": words})),
        ("/v1/completions", json!({"model": "asked", "prompt": vec![5; 600]})),
        ("/v1/messages", json!({"model": "asked", "max_tokens": 4, "messages": chat["messages"]})),
    ] {
        let reply = a.client().post(path, &body).await.expect("the node answers");
        assert!(reply.status == 400 && reply.text.contains("maximum context length is 512"), "{path}: {} {}", reply.status, reply.text);
    }
    assert_eq!(loads(&a).await, before, "nothing was loaded for that");
    assert_eq!(entry(a.client(), "there").await.expect("it is listed")["status"], "loaded");
    // What is long in bytes and not in tokens is answered.
    let fits = json!({"model": "asked", "prompt": "word ".repeat(150), "max_tokens": 2});
    let reply = a.client().post("/v1/completions", &fits).await.expect("the node answers");
    assert_eq!(reply.status, 200, "{}", reply.text);
}
