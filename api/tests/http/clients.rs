//! Requests as editors and agents send them: odd, large, and to be taken as they are.

use plexus_types::{FinishReason, Role};
use serde_json::{Value, json};

use crate::scripted::{Scripted, ask, post};

/// Claude Code 2.1: many tools, blocks everywhere, turns of the role `system`, fields that only its vendor knows.
fn claude_code() -> Value {
    let tools: Vec<_> = (0..24)
        .map(|n| {
            let schema = json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": { "path": { "type": "string", "description": "d".repeat(400) }, "limit": { "type": "number", "exclusiveMinimum": 0 } },
                "required": ["path"],
                "additionalProperties": false
            });
            json!({ "name": format!("Tool{n}"), "description": "x".repeat(1200), "input_schema": schema })
        })
        .collect();
    json!({
        "model": "pip",
        "max_tokens": 32000,
        "stream": true,
        "temperature": 1,
        "system": [
            { "type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch=00e8a;" },
            { "type": "text", "text": "You are an agent.", "cache_control": { "type": "ephemeral" } },
            { "type": "text", "text": "s".repeat(32_000), "cache_control": { "type": "ephemeral", "ttl": "1h" } }
        ],
        "messages": [
            { "role": "user", "content": [
                { "type": "text", "text": "<system-reminder>context</system-reminder>" },
                { "type": "text", "text": "list the files", "cache_control": { "type": "ephemeral" } }
            ] },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "I list them.", "signature": "" },
                { "type": "tool_use", "id": "toolu_1", "name": "Tool0", "input": { "path": "." }, "caller": { "type": "direct" } }
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "toolu_1", "content": "a\nb", "is_error": false, "cache_control": { "type": "ephemeral" } }
            ] },
            { "role": "system", "content": "Tools are up to date." }
        ],
        "tools": tools,
        "tool_choice": { "type": "auto", "disable_parallel_tool_use": false },
        "metadata": { "user_id": "{\"device_id\":\"d\"}" },
        "thinking": { "type": "adaptive" },
        "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
        "output_config": { "effort": "high" }
    })
}

#[tokio::test]
async fn the_first_request_of_claude_code_is_taken_as_it_is() {
    // CX-73, CX-77
    let json = claude_code().to_string();
    assert!(json.len() > 77_000, "{} bytes", json.len());
    let cluster = Scripted::saying(&["a b"], FinishReason::Stop);
    let mut request = post("/v1/messages?beta=true", json);
    for (name, value) in [
        ("anthropic-version", "2023-06-01"),
        ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"),
        ("authorization", "Bearer anything"),
        ("x-claude-code-session-id", "5e55"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answered = ask(&cluster, request).await;
    assert_eq!(answered.status.as_u16(), 200, "{}", answered.body);
    assert!(answered.body.starts_with("event: message_start\n") && answered.body.contains(r#""input_tokens":12"#));
    let chat = cluster.chat();
    let roles: Vec<_> = chat.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool, Role::System]);
    assert_eq!(chat.messages[0].content, format!("You are an agent.\n\n{}", "s".repeat(32_000)));
    assert_eq!(chat.messages[2].tool_calls[0].arguments, r#"{"path":"."}"#);
    assert_eq!(chat.tools.len(), 24);
    assert_eq!(cluster.request().max_tokens, Some(32_000));
}

#[tokio::test]
async fn a_request_of_zed_is_taken_as_it_is() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let body = json!({
        "model": "pip",
        "messages": [
            { "role": "system", "content": "Be an assistant." },
            { "role": "user", "content": [] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "call_1", "index": 0, "type": "function", "function": { "name": "grep", "arguments": "{\"regex\":\"a\"}" } }
            ] },
            { "role": "tool", "content": [{ "type": "text", "text": "found" }], "tool_call_id": "call_1" }
        ],
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_completion_tokens": 8192,
        "stop": [],
        "temperature": 1.0,
        "tool_choice": "auto",
        "parallel_tool_calls": false,
        "tools": [],
        "prompt_cache_key": "thread",
        "reasoning_effort": "medium"
    });
    let answered = ask(&cluster, post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(answered.status.as_u16(), 200, "{}", answered.body);
    let contents: Vec<_> = cluster.chat().messages.iter().map(|message| message.content.clone()).collect();
    assert_eq!(contents, ["Be an assistant.", "", "", "found"]);
}

#[tokio::test]
async fn a_request_of_opencode_is_taken_as_it_is() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let schema = json!({
        "type": "object",
        "properties": { "offset": { "type": "integer", "exclusiveMinimum": 0, "maximum": 9_007_199_254_740_991_u64 } },
        "$schema": "https://json-schema.org/draft/2020-12/schema"
    });
    let body = json!({
        "model": "pip",
        "max_tokens": 32000,
        "messages": [
            { "role": "user", "content": "read it" },
            { "role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
                { "id": "c", "type": "function", "function": { "name": "read", "arguments": "{}" } }
            ] },
            { "role": "tool", "tool_call_id": "c", "content": "text" }
        ],
        "tools": [{ "type": "function", "function": { "name": "read", "description": "d", "parameters": schema, "strict": false } }],
        "tool_choice": "auto",
        "stream": true,
        "stream_options": { "include_usage": true }
    });
    let answered = ask(&cluster, post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(answered.status.as_u16(), 200, "{}", answered.body);
    assert_eq!(cluster.chat().messages[1].reasoning.as_deref(), Some("hm"));
    assert_eq!(cluster.chat().tools[0].parameters, Some(schema.to_string()));
}

#[tokio::test]
async fn what_codex_sends_is_read_and_tools_that_only_its_vendor_runs_are_refused() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let mut body = json!({
        "model": "pip",
        "messages": [{ "role": "developer", "content": [{ "type": "input_text", "text": "Be brief." }], "id": "msg_1" }, { "role": "user", "content": "hi" }],
        "tools": [{ "type": "function", "name": "shell", "strict": false, "parameters": { "type": "object" } }],
        "store": false,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": { "a": "b" }
    });
    let answered = ask(&cluster, post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(answered.status.as_u16(), 200, "{}", answered.body);
    let chat = cluster.chat();
    assert_eq!((chat.messages[0].role, chat.messages[0].content.as_str()), (Role::Developer, "Be brief."));
    assert_eq!((chat.tools[0].name.as_str(), chat.tools[0].parameters.as_deref()), ("shell", Some(r#"{"type":"object"}"#)));
    body["tools"] = json!([{ "type": "web_search", "external_web_access": true }]);
    let refused = ask(&cluster, post("/v1/chat/completions", body.to_string())).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error"]["param"].as_str()), (400, Some("tools[0].type")));
}
