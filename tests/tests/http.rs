//! Both dialects of a real node with the demo model.

use plexus_tests::{Client, Home, Node};
use serde_json::{Value, json};

const FRANCE: &str = "What is the capital of France?";

async fn healthy_node() -> Node {
    let node = Home::new().node("n1").start().await;
    node.is_healthy().await;
    node
}

async fn openai(client: &Client, messages: Value) -> String {
    let request = json!({"model": "pip", "messages": messages, "temperature": 0, "max_tokens": 60});
    client.post("/v1/chat/completions", &request).await.expect("the node answers").chat_text().to_owned()
}

async fn anthropic(client: &Client, system: Option<&str>, messages: Value) -> Value {
    let mut request = json!({"model": "pip", "messages": messages, "temperature": 0, "max_tokens": 60});
    if let Some(system) = system {
        request["system"] = system.into();
    }
    let reply = client.post("/v1/messages", &request).await.expect("the node answers");
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json
}

/// All tokens of a message's prompt: those read anew, and those that were still in memory.
fn prompt_tokens(message: &Value) -> u64 {
    let usage = &message["usage"];
    ["input_tokens", "cache_read_input_tokens"].iter().filter_map(|field| usage[field].as_u64()).sum()
}

// CX-70
#[tokio::test]
async fn the_capital_of_france_is_paris_in_both_dialects() {
    let node = healthy_node().await;
    let client = node.client();
    assert_eq!(openai(client, json!([{"role": "user", "content": FRANCE}])).await, "The capital of France is Paris.");

    let answer = client.ask_streaming("pip", FRANCE).await.chat().await;
    answer.assert_complete();
    assert_eq!((answer.text.as_str(), answer.finish.as_deref()), ("The capital of France is Paris.", Some("stop")));
    let usage = answer.usage.expect("include_usage was set"); // CX-80
    assert_eq!(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap(), usage["total_tokens"]);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64(), "{usage}");

    let message = anthropic(client, None, json!([{"role": "user", "content": FRANCE}])).await;
    assert_eq!(message["content"][0]["text"], "The capital of France is Paris.");
    assert_eq!((&message["type"], &message["role"], &message["stop_reason"]), (&json!("message"), &json!("assistant"), &json!("end_turn")));
    assert_eq!(prompt_tokens(&message), usage["prompt_tokens"]);
    assert_eq!(message["usage"]["output_tokens"], usage["completion_tokens"]);

    let request = json!({"model": "pip", "prompt": "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", "temperature": 0});
    let reply = client.post("/v1/completions", &request).await.unwrap();
    assert_eq!(reply.json["choices"][0]["text"], "The capital of France is Paris.", "{}", reply.text);
}

// CX-75
#[tokio::test]
async fn an_anthropic_stream_has_its_vendor_s_events_in_order() {
    let node = healthy_node().await;
    let request =
        json!({"model": "pip", "stream": true, "max_tokens": 60, "temperature": 0, "messages": [{"role": "user", "content": FRANCE}]});
    let mut stream = node.client().stream("/v1/messages", &request).await.unwrap();
    assert!(stream.header("content-type").is_some_and(|value| value.starts_with("text/event-stream")));
    assert!(stream.header("request-id").is_some_and(|value| value.starts_with("req_")));
    let mut names = Vec::new();
    let mut text = String::new();
    while let Some(event) = stream.next().await {
        let event = event.unwrap();
        let data = event.json();
        assert_eq!(Some(data["type"].as_str().unwrap()), event.event.as_deref());
        match event.event.as_deref().unwrap() {
            "ping" => continue,
            "message_start" => assert!(data["message"]["usage"]["input_tokens"].as_u64().unwrap() > 0),
            "content_block_delta" => text.push_str(data["delta"]["text"].as_str().unwrap()),
            "message_delta" => assert_eq!(data["delta"]["stop_reason"], "end_turn"),
            _ => {}
        }
        let name = event.event.unwrap();
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    assert_eq!(
        names,
        ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]
    );
    assert_eq!(text, "The capital of France is Paris.");
}

// CX-77
#[tokio::test]
async fn a_system_prompt_reaches_the_model_as_it_was_sent() {
    let node = healthy_node().await;
    let client = node.client();
    let question = json!({"role": "user", "content": "What is your name?"});
    assert!(openai(client, json!([question])).await.contains("Pip"));
    let persona = "You are Nova, a helpful assistant.";
    assert!(openai(client, json!([{"role": "system", "content": persona}, question])).await.contains("Nova"));
    let message = anthropic(client, Some(persona), json!([question])).await;
    assert!(message["content"][0]["text"].as_str().unwrap().contains("Nova"), "{message}");
}

#[tokio::test]
async fn a_conversation_is_remembered_and_stop_texts_end_an_answer() {
    let node = healthy_node().await;
    let client = node.client();
    let turns = json!([
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Nice to meet you, Alice!"},
        {"role": "user", "content": "What is my name?"},
    ]);
    assert_eq!(openai(client, turns.clone()).await, "Your name is Alice.");
    assert_eq!(anthropic(client, None, turns).await["content"][0]["text"], "Your name is Alice.");

    let request = json!({"model": "pip", "temperature": 0, "stop": " is P", "messages": [{"role": "user", "content": FRANCE}]});
    let reply = client.post("/v1/chat/completions", &request).await.unwrap();
    assert_eq!(reply.chat_text(), "The capital of France");
    assert_eq!(reply.json["choices"][0]["finish_reason"], "stop");
    let request = json!({"model": "pip", "temperature": 0, "max_tokens": 60, "stop_sequences": ["France"], "messages": [{"role": "user", "content": FRANCE}]});
    let reply = client.post("/v1/messages", &request).await.unwrap();
    assert_eq!((&reply.json["stop_reason"], &reply.json["stop_sequence"]), (&json!("stop_sequence"), &json!("France")), "{}", reply.text);

    let request = json!({"model": "pip", "temperature": 0, "max_tokens": 3, "messages": [{"role": "user", "content": FRANCE}]});
    let reply = client.post("/v1/chat/completions", &request).await.unwrap();
    assert_eq!((&reply.json["choices"][0]["finish_reason"], &reply.json["usage"]["completion_tokens"]), (&json!("length"), &json!(3)));
}

#[tokio::test]
async fn an_answer_goes_on_where_the_client_has_begun_it() {
    let node = healthy_node().await;
    let client = node.client();
    let begun = json!([{"role": "user", "content": FRANCE}, {"role": "assistant", "content": "The capital of"}]);
    let message = anthropic(client, None, begun.clone()).await;
    assert_eq!(message["content"], json!([{"type": "text", "text": " France is Paris."}]));
    let mut request =
        json!({"model": "pip", "messages": begun, "temperature": 0, "continue_final_message": true, "add_generation_prompt": false});
    request["logprobs"] = true.into();
    let reply = client.post("/v1/chat/completions", &request).await.unwrap();
    assert_eq!(reply.chat_text(), " France is Paris.", "{}", reply.text);
    let tokens = reply.json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.last().unwrap()["token"], "<|im_end|>", "the end of the answer has its name: {}", reply.text);
}

#[tokio::test]
async fn a_forced_call_that_is_cut_off_says_nothing_of_its_mark() {
    let node = healthy_node().await;
    let client = node.client();
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let question = json!([{"role": "user", "content": "What is the weather in Paris?"}]);
    for max_tokens in 1..12 {
        let request = json!({"model": "pip", "temperature": 0, "max_tokens": max_tokens, "messages": question, "tool_choice": "required",
            "tools": [{"type": "function", "name": "get_weather", "parameters": schema}]});
        let reply = client.post("/v1/chat/completions", &request).await.unwrap();
        let choice = &reply.json["choices"][0];
        assert!(choice["message"]["content"].as_str().is_none_or(str::is_empty), "{}", reply.text);
        assert_eq!(choice["finish_reason"], "length", "{}", reply.text);
        let request = json!({"model": "pip", "temperature": 0, "max_tokens": max_tokens, "messages": question, "tool_choice": {"type": "any"},
            "tools": [{"name": "get_weather", "input_schema": schema}]});
        let reply = client.post("/v1/messages", &request).await.unwrap();
        let block = &reply.json["content"][0];
        assert!(block["text"] == "" || block["input"].is_object(), "{}", reply.text);
        assert_eq!(reply.json["stop_reason"], "max_tokens", "{}", reply.text);
    }
}

// CX-76
#[tokio::test]
async fn errors_are_those_of_each_vendor() {
    let node = healthy_node().await;
    let client = node.client();
    let turns = json!([{"role": "user", "content": FRANCE}]);
    let long = json!([{"role": "user", "content": "capital ".repeat(4000)}]);

    for (path, body, status, code) in [
        ("/v1/chat/completions", json!({"model": "none", "messages": turns}), 404, "model_not_found"),
        ("/v1/chat/completions", json!({"model": "pip", "messages": long}), 400, "context_length_exceeded"),
    ] {
        let reply = client.post(path, &body).await.unwrap();
        assert_eq!((reply.status, &reply.json["error"]["code"]), (status, &json!(code)), "{}", reply.text);
        assert!(reply.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{:?}", reply.headers);
    }
    let reply = client.post_with("/v1/chat/completions", "{\"model\": ".into(), &[]).await.unwrap();
    assert_eq!((reply.status, &reply.json["error"]["type"]), (400, &json!("invalid_request_error")), "{}", reply.text);
    let reply = client.post("/v1/chat/completions", &json!({"model": "pip", "messages": []})).await.unwrap();
    assert_eq!((reply.status, &reply.json["error"]["type"]), (400, &json!("invalid_request_error")), "{}", reply.text);

    for (body, status, kind) in [
        (json!({"model": "none", "max_tokens": 9, "messages": turns}), 404, "not_found_error"),
        (json!({"model": "pip", "max_tokens": 9, "messages": long}), 400, "invalid_request_error"),
        (json!({"model": "pip", "messages": turns}), 400, "invalid_request_error"),
    ] {
        let reply = client.post("/v1/messages", &body).await.unwrap();
        assert_eq!(
            (reply.status, &reply.json["type"], &reply.json["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{}",
            reply.text
        );
    }
    let reply = client.post("/v1/messages", &json!({"model": "pip", "max_tokens": 9, "messages": long})).await.unwrap();
    assert!(reply.text.contains("prompt is too long: ") && reply.text.contains(" maximum"), "{}", reply.text);
    let reply = client.get("/v1/nothing-here").await.unwrap();
    assert_eq!((reply.status, reply.json["error"].is_object()), (404, true), "{}", reply.text);
}

#[tokio::test]
async fn tokens_are_counted_as_a_request_counts_them() {
    let node = healthy_node().await;
    let turns = json!([{"role": "user", "content": FRANCE}]);
    let counted = node.client().post("/v1/messages/count_tokens", &json!({"model": "pip", "messages": turns})).await.unwrap();
    let message = anthropic(node.client(), None, turns).await;
    assert_eq!(counted.json["input_tokens"], prompt_tokens(&message), "{}", counted.text);
}

// CX-01, CX-90
#[tokio::test]
async fn metrics_are_on_their_own_port_only() {
    let node = healthy_node().await;
    assert_eq!(node.client().ask("pip", FRANCE).await.unwrap().status, 200);
    assert_eq!(node.client().ask("none", FRANCE).await.unwrap().status, 404);
    assert_eq!(node.client().get("/metrics").await.unwrap().status, 404);

    let metrics = Client::new(&format!("http://{}", node.addresses().metrics));
    let text = metrics.get("/metrics").await.unwrap().text;
    for row in [
        "plexus_requests_total",
        "plexus_request_duration_seconds_bucket",
        "plexus_request_errors_total",
        "plexus_prompt_tokens_total",
        "plexus_completion_tokens_total",
        "plexus_time_to_first_token_seconds_bucket",
        "plexus_tokens_per_second_bucket",
    ] {
        assert!(text.lines().any(|line| line.starts_with(row)), "no {row} in:\n{text}");
    }
    assert!(text.contains("model=\"pip\""), "{text}");
}

// CX-12, CX-20, CX-22
#[tokio::test]
async fn a_node_says_what_it_is_and_what_it_has() {
    let node = healthy_node().await;
    let client = node.client();
    let version = client.get("/version").await.unwrap();
    assert!(version.json["version"].is_string(), "{}", version.text);
    let models = client.get("/v1/models").await.unwrap().json;
    assert_eq!((&models["object"], &models["data"][0]["id"], &models["data"][0]["loaded"]), (&json!("list"), &json!("pip"), &json!(true)));
    assert_eq!((&models["data"][0]["object"], &models["data"][0]["locations"][0]["node"]), (&json!("model"), &json!("n1")));
    assert_eq!(client.get("/v1/models/pip").await.unwrap().json["id"], "pip");
    let anthropic = client.get_with("/v1/models", &[("anthropic-version", "2023-06-01")]).await.unwrap().json;
    assert_eq!((&anthropic["data"][0]["type"], &anthropic["data"][0]["id"]), (&json!("model"), &json!("pip")), "{anthropic}");
    assert!(anthropic["data"][0]["display_name"].is_string() && anthropic["has_more"] == false, "{anthropic}");
}

// CX-30
#[tokio::test]
async fn a_prompt_that_would_be_read_for_too_long_is_refused_once_the_speed_is_known() {
    let node = Home::new().node("n1").env("PLEXUS_STREAMS__PROMPT_TIME_MAX", "1ms").start().await;
    node.is_healthy().await;
    let client = node.client();
    let ask = async |id: u32| {
        let request = json!({"model": "pip", "prompt": vec![id; 400], "max_tokens": 1, "temperature": 0});
        client.post("/v1/completions", &request).await.unwrap()
    };
    let first = ask(65).await;
    assert_eq!(first.status, 200, "nothing was measured before: {}", first.text);
    let refused = ask(66).await;
    assert_eq!((refused.status, &refused.json["error"]["code"]), (400, &json!("context_length_exceeded")), "{}", refused.text);
    let again = ask(65).await;
    assert_eq!(again.status, 200, "what was read before need not be read: {}", again.text);
    let context = client.get("/v1/models/pip").await.unwrap().json["max_model_len"].as_u64().expect("it is known");
    assert!(context < 400, "{context}");
}

// CX-28, CX-44
#[tokio::test]
async fn a_node_says_where_a_model_is_served_and_what_it_can_do() {
    let node = healthy_node().await;
    let client = node.client();
    let endpoint = client.get("/v1/models/pip/endpoint").await.unwrap();
    let url = endpoint.json["url"].as_str().unwrap_or_else(|| panic!("no url in {}", endpoint.text));
    assert_eq!(url, client.base());
    assert_eq!((&endpoint.json["status"], &endpoint.json["device"]), (&json!("loaded"), &json!("cpu-0")), "{}", endpoint.text);
    assert_eq!(Client::new(url).ask("pip", FRANCE).await.unwrap().status, 200, "what it is told can be used");
    let entry = client.get("/models/pip").await.unwrap().json;
    let abilities = client.get("/models/pip/capabilities").await.unwrap().json;
    for field in ["capabilities", "tool_call", "reasoning", "max_model_len", "max_input_tokens", "max_output_tokens"] {
        assert!(!entry[field].is_null() && abilities[field] == entry[field], "{field}: {abilities} and {entry}");
    }
    assert_eq!(abilities["modalities"], json!({"input": ["text"], "output": ["text"]}));
    for path in ["/v1/models/none/endpoint", "/models/none/capabilities"] {
        let reply = client.get(path).await.unwrap();
        assert_eq!((reply.status, &reply.json["error"]["code"]), (404, &json!("model_not_found")), "{}", reply.text);
    }
}

// CX-45
#[tokio::test]
async fn a_node_says_what_its_machine_is() {
    let node = healthy_node().await;
    let client = node.client();
    let told = client.get("/discovery").await.unwrap();
    let discovery = &told.json;
    for field in ["hostname", "os", "kernel", "architecture"] {
        assert!(discovery[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {}", told.text);
    }
    assert!(discovery["cpu"]["threads"].as_u64().is_some_and(|threads| threads >= 1), "{}", told.text);
    assert!(discovery["cpu"]["instruction_sets"].as_array().is_some_and(|sets| sets.contains(&json!("portable"))), "{}", told.text);
    let (total, available) = (discovery["memory_total_mb"].as_u64(), discovery["memory_available_mb"].as_u64());
    assert!(available.is_some() && available <= total, "{}", told.text);
    let n_gpus = discovery["devices"].as_array().map(Vec::len).expect("a list");
    assert_eq!(discovery["cuda_unavailable_reason"].is_string(), n_gpus == 0, "{}", told.text);
    let context = client.get("/v1/models/pip").await.unwrap().json["max_model_len"].clone();
    assert_eq!(discovery["max_prompt_tokens"], context, "the model is loaded");
    let load = json!({"model_id": "pip", "harness": discovery["harnesses"][0]});
    let loaded = client.post("/v1/models/load", &load).await.unwrap();
    assert_eq!(loaded.status, 200, "what is listed can be named: {}", loaded.text);
}

// CX-46
#[tokio::test]
async fn health_tells_how_busy_devices_are_how_full_replicas_are_and_what_they_refused() {
    let node = healthy_node().await;
    let client = node.client();
    assert_eq!(client.ask("pip", FRANCE).await.unwrap().status, 200);
    let long = json!({"model": "pip", "prompt": vec![65; 4000]});
    assert_eq!(client.post("/v1/completions", &long).await.unwrap().status, 400);
    let health = client.get("/health").await.unwrap();
    let device = &health.json["devices"][0];
    let utilization = device["utilization_pct"].as_f64().unwrap_or_else(|| panic!("no share in {}", health.text));
    assert!(utilization > 0.0 && utilization <= 100.0, "it has just loaded and answered: {}", health.text);
    let replica = &health.json["replicas"][0];
    let (budget, available) = (replica["kv_budget_mb"].as_f64().unwrap(), replica["kv_available_mb"].as_f64().unwrap());
    assert!(0.0 < available && available <= budget, "{}", health.text);
    assert_eq!((&replica["rejected_too_long"], &replica["rejected_full"]), (&json!(1), &json!(0)), "{}", health.text);
    assert!(replica["load"]["running_max"].is_u64() && replica["load"]["waiting_max"].is_u64(), "{}", health.text);
}

#[tokio::test]
async fn a_page_of_the_web_that_points_its_name_here_is_refused() {
    let node = healthy_node().await;
    let reply = node.client().get_with("/v1/models", &[("host", "evil.example")]).await.unwrap();
    assert!((400..500).contains(&reply.status), "{}: {}", reply.status, reply.text);
}
