//! The turns of a chat completion as messages for a template.

use plexus_types::{Message, RequestError, Role, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::params;
use crate::wire::{Object, TextOr, json_text};

/// A turn of the conversation.
#[derive(Debug, Deserialize)]
pub(super) struct WireMessage {
    role: Option<String>,
    content: Option<TextOr<Object<Part>>>,
    name: Option<String>,
    tool_calls: Option<Vec<Object<WireToolCall>>>,
    tool_call_id: Option<String>,
    /// The older spelling of one tool call.
    function_call: Option<Object<WireCall>>,
    /// What the model thought: two spellings, and some clients send an object in the second.
    reasoning_content: Option<Value>,
    reasoning: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WireToolCall {
    id: Option<String>,
    function: Option<Object<WireCall>>,
}

#[derive(Debug, Deserialize)]
struct WireCall {
    name: Option<String>,
    arguments: Option<Value>,
}

/// The turns as messages for a template.
pub(super) fn messages(messages: Vec<Object<WireMessage>>) -> Result<Vec<Message>, RequestError> {
    if messages.is_empty() {
        return Err(RequestError::invalid("messages", "messages is empty; send at least one"));
    }
    params::at_most("messages", messages.len(), params::MESSAGES_MAX)?;
    messages.into_iter().enumerate().map(|(index, Object(message))| turn(index, message)).collect()
}

fn turn(index: usize, message: WireMessage) -> Result<Message, RequestError> {
    let at = format!("messages[{index}]");
    let role = match message.role.as_deref() {
        Some("system") => Role::System,
        Some("developer") => Role::Developer,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => Role::Tool,
        other => {
            let role = other.map_or("missing".to_owned(), |role| format!("{:?}", role.chars().take(80).collect::<String>()));
            let remedy = "one of \"system\", \"developer\", \"user\", \"assistant\", \"tool\", \"function\"";
            return Err(params::out_of_range(&format!("{at}.role"), role, remedy));
        }
    };
    let content = match message.content {
        None => String::new(),
        Some(TextOr::Text(text)) => text,
        Some(TextOr::Many(parts)) => text_of(&at, parts)?,
    };
    let calls = message.tool_calls.unwrap_or_default().into_iter().map(|Object(call)| (call.id, call.function));
    let older_call = message.function_call.map(|call| (call.0.name.clone(), Some(call)));
    let tool_calls = calls.chain(older_call).enumerate().map(|(call_index, (id, call))| {
        let missing = |what: &str| {
            RequestError::invalid(
                &format!("{at}.tool_calls"),
                format!("{at}.tool_calls[{call_index}].{what} is missing; send back the call as it came"),
            )
        };
        let Object(call) = call.ok_or_else(|| missing("function"))?;
        Ok(ToolCall {
            id: id.unwrap_or_default(),
            name: call.name.filter(|name| !name.is_empty()).ok_or_else(|| missing("function.name"))?,
            arguments: json_text(call.arguments),
        })
    });
    let reasoning = [message.reasoning_content, message.reasoning].into_iter().flatten().find_map(|reasoning| match reasoning {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    });
    Ok(Message {
        role,
        content,
        reasoning,
        tool_calls: tool_calls.collect::<Result<_, RequestError>>()?,
        tool_call_id: message.tool_call_id,
        name: message.name,
    })
}

/// The text parts, joined as they are (CX-77): a client that wants a line between them sends it.
fn text_of(at: &str, parts: Vec<Object<Part>>) -> Result<String, RequestError> {
    let mut text = String::new();
    for (index, Object(part)) in parts.into_iter().enumerate() {
        match part.kind.as_deref() {
            Some("text" | "input_text" | "output_text") | None => match part.text {
                Some(more) => text.push_str(&more),
                None => {
                    return Err(RequestError::invalid(
                        &format!("{at}.content[{index}].text"),
                        format!("{at}.content[{index}].text is missing"),
                    ));
                }
            },
            Some("refusal") => text.push_str(&part.refusal.unwrap_or_default()),
            Some(
                kind @ ("image_url" | "image" | "input_image" | "input_audio" | "audio" | "audio_url" | "video_url" | "video" | "file"
                | "input_file"),
            ) => {
                let place = format!("{at}.content[{index}]");
                let message = format!("{place} is of type {kind:?}; the models of this server read text alone");
                return Err(RequestError::WrongModality { message, param: Some(place) });
            }
            Some(kind) => {
                let kind: String = kind.chars().take(80).collect();
                return Err(params::out_of_range(&format!("{at}.content[{index}].type"), format!("{kind:?}"), "\"text\""));
            }
        }
    }
    Ok(text)
}
