//! Answers of a given form, calls of tools, thoughts and log probabilities outlive the node that began them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use plexus_tests::sse::EventStream;
use plexus_tests::view::whole;
use plexus_tests::{Home, Node, Signal, eventually};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// What a stream said in all.
#[derive(Debug, Default, PartialEq)]
struct Said {
    content: String,
    reasoning: String,
    /// Id, name and arguments.
    calls: Vec<(String, String, String)>,
    /// Of each token, as they came.
    logprobs: Vec<Value>,
    finish: Option<String>,
    completion_tokens: u64,
}

impl Said {
    /// Adds a chunk; fails on an error.
    fn take(&mut self, chunk: &Value) {
        assert!(chunk.get("error").is_none(), "{chunk}");
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            self.completion_tokens = tokens;
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        self.content.push_str(delta["content"].as_str().unwrap_or_default());
        self.reasoning.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            if let Some(id) = call["id"].as_str() {
                assert_eq!(call["index"], self.calls.len(), "{chunk}");
                self.calls.push((id.to_owned(), call["function"]["name"].as_str().unwrap().to_owned(), String::new()));
            }
            let (.., arguments) = &mut self.calls[call["index"].as_u64().unwrap() as usize];
            arguments.push_str(call["function"]["arguments"].as_str().unwrap());
        }
        self.logprobs.extend(choice["logprobs"]["content"].as_array().into_iter().flatten().cloned());
        self.finish = choice["finish_reason"].as_str().map(str::to_owned).or(self.finish.take());
    }

    /// Reads `stream` for `n` events, or to its end.
    async fn read(&mut self, stream: &mut EventStream, n: usize) {
        for _ in 0..n {
            match stream.next().await {
                Some(event) => self.take(&event.unwrap().json()),
                None => return,
            }
        }
    }
}

/// Long answers of every kind; each is drawn with a seed of its own.
fn requests() -> Vec<Value> {
    let words = json!({"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 24, "maxItems": 24});
    // Compact, since the model would fill its context with white space.
    let layout = json!({"whitespace_flexible": false});
    let schema = json!({
        "type": "object", "properties": {"words": words}, "required": ["words"], "additionalProperties": false, "x-guidance": layout
    });
    let tool = json!({"type": "function", "function": {"name": "keep_words", "description": "Keeps words", "parameters": schema}});
    let story = json!([{"role": "user", "content": "Tell me a story about a fox named Ruby."}]);
    let sum = json!([{"role": "user", "content": "What is 23 + 45? Think step by step."}]);
    let kinds = [
        json!({"messages": story, "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}}),
        json!({"messages": story, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "keep_words"}}}),
        json!({"messages": story, "logprobs": true, "top_logprobs": 3, "ignore_eos": true, "max_tokens": 200}),
        json!({"messages": sum, "ignore_eos": true, "max_tokens": 200, "n": 1}),
    ];
    let with_seeds = |seed: u64| {
        kinds.clone().map(|mut request| {
            for (key, value) in [("model", json!("pip")), ("temperature", json!(0.9)), ("seed", json!(seed)), ("stream", json!(true))] {
                request[key] = value;
            }
            request["stream_options"] = json!({"include_usage": true});
            request
        })
    };
    (1..=3).flat_map(with_seeds).collect()
}

async fn whole_answer(node: &Node, request: &Value) -> Said {
    let mut said = Said::default();
    said.read(&mut node.client().stream(CHAT, request).await.unwrap(), usize::MAX).await;
    said
}

#[tokio::test]
async fn forms_calls_thoughts_and_log_probabilities_go_on_elsewhere_without_a_token_lost_or_repeated() {
    let home = Home::new();
    let mut doomed = home.node("doomed").start().await;
    let other = home.node("other").start().await;
    let ingress = home.node("ingress").model_from_folder("unused").start().await;
    whole(&[&doomed, &other, &ingress]).await;
    eventually("both replicas are offered", async || {
        let pip = ingress.client().get("/v1/models/pip").await.map_err(|error| error.to_string())?.json;
        let loaded = pip["locations"].as_array().into_iter().flatten().filter(|place| place["status"] == "loaded").count();
        if loaded == 2 { Ok(()) } else { Err(pip.to_string()) }
    })
    .await;

    let mut expected = Vec::new();
    for request in requests() {
        // Both answer alike, and have by then made what the first grammar of a model needs.
        let [said, same] = [&other, &doomed].map(|node| whole_answer(node, &request));
        let (said, same) = tokio::join!(said, same);
        assert_eq!(said, same);
        assert!(said.finish.is_some() && said.completion_tokens > 60, "too short to be cut: {said:?}");
        expected.push(said);
    }
    assert_eq!(expected[0].finish.as_deref(), Some("stop"));
    assert!(serde_json::from_str::<Value>(&expected[0].content).is_ok_and(|value| value["words"].as_array().unwrap().len() == 24));
    assert!(expected[1].finish.as_deref() == Some("tool_calls") && serde_json::from_str::<Value>(&expected[1].calls[0].2).is_ok());
    assert_eq!((expected[2].logprobs.len(), expected[2].completion_tokens), (200, 200));
    assert!(!expected[3].reasoning.is_empty() && !expected[3].content.is_empty());

    let mut streams = Vec::new();
    for request in requests() {
        let mut stream = ingress.client().stream(CHAT, &request).await.unwrap();
        let mut said = Said::default();
        said.read(&mut stream, 3).await;
        streams.push((stream, said));
    }
    let served_by_doomed = streams.iter().filter(|(stream, _)| stream.header("x-plexus-node") == Some("doomed")).count();
    assert!(served_by_doomed > 0, "nothing to lose");
    doomed.signal(Signal::Stop);
    doomed.kill().await;
    for ((mut stream, mut said), expected) in streams.into_iter().zip(expected) {
        said.read(&mut stream, usize::MAX).await;
        assert_eq!(said, expected);
    }
    let rerouted: u64 = ingress.counters("rerouted").await.unwrap().values().sum();
    assert!(rerouted > 0, "all {served_by_doomed} streams had ended before the node did");
}
