//! The turns of a message request as messages for a template.
//!
//! Every text reaches the template verbatim and in order (CX-77). The vendor's blocks become the turns of a template like this:
//! * `system`, a text or blocks, becomes one leading system message. Many templates know a single one, so blocks are joined, by
//!   [`BETWEEN_BLOCKS`]. A block that begins with [`TRANSPORT_NOISE`] is no instruction but a note of the client's transport that changes
//!   with every request: passed on, it would keep any prompt from being found in the prefix cache. It alone is dropped.
//! * Turns of the role `system` between the others stay where they are.
//! * `tool_result` blocks become tool messages, before the text of the same turn, as templates expect them right after the call.
//! * A last turn of the role `assistant` is not over: the answer goes on where its text ends. One that says nothing is left out.
//! * `thinking` becomes the turn's reasoning, whatever its signature; `redacted_thinking` can be read by the vendor alone and is dropped.

use plexus_types::{Message, RequestError, Role, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::params;
use crate::wire::{Object, TextOr, json_text};

/// What stands between two text blocks that become one text: blocks are paragraphs, not pieces of a sentence.
const BETWEEN_BLOCKS: &str = "\n\n";
/// How a system block begins that is not meant for the model.
const TRANSPORT_NOISE: &str = "x-anthropic-billing-header:";

/// A turn of the conversation.
#[derive(Debug, Deserialize)]
pub(super) struct WireMessage {
    role: Option<String>,
    content: Option<TextOr<Object<Block>>>,
}

/// A content block of any type; which fields count depends on it.
#[derive(Debug, Deserialize)]
pub(super) struct Block {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    tool_name: Option<String>,
    content: Option<TextOr<Object<Block>>>,
    source: Option<Value>,
}

/// The leading system message, if there is one.
pub(super) fn system(system: Option<TextOr<Object<Block>>>) -> Result<Option<Message>, RequestError> {
    let text = match system {
        None => return Ok(None),
        Some(TextOr::Text(text)) => text,
        Some(TextOr::Many(mut blocks)) => {
            blocks.retain(|Object(block)| !block.text.as_deref().is_some_and(|text| text.starts_with(TRANSPORT_NOISE)));
            if blocks.is_empty() {
                return Ok(None);
            }
            Turn::read("system", TextOr::Many(blocks))?.text()
        }
    };
    // An empty one says nothing, and a template would still write its frame.
    Ok((!text.is_empty()).then(|| Message::text(Role::System, text)))
}

/// Adds the messages that the client's `messages[index]` becomes.
pub(super) fn push_turn(messages: &mut Vec<Message>, index: usize, turn: WireMessage) -> Result<(), RequestError> {
    let at = format!("messages[{index}]");
    let role = match turn.role.as_deref() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        other => {
            let role = other.map_or("missing".to_owned(), |role| format!("{:?}", role.chars().take(80).collect::<String>()));
            return Err(params::out_of_range(&format!("{at}.role"), role, "one of \"user\", \"assistant\", \"system\""));
        }
    };
    let mut turn = Turn::read(&format!("{at}.content"), turn.content.unwrap_or(TextOr::Many(Vec::new())))?;
    let results = std::mem::take(&mut turn.results);
    // A turn of results alone has no text of its own; any other turn stays, even if it is empty.
    let only_results = !results.is_empty() && turn.texts.is_empty();
    messages.extend(results);
    if !only_results || !turn.calls.is_empty() {
        let reasoning = (!turn.thoughts.is_empty()).then(|| turn.thoughts.concat());
        let tool_calls = std::mem::take(&mut turn.calls);
        messages.push(Message { reasoning, tool_calls, ..Message::text(role, turn.text()) });
    }
    Ok(())
}

/// The blocks of one turn, sorted.
#[derive(Debug, Default)]
struct Turn {
    texts: Vec<String>,
    thoughts: Vec<String>,
    calls: Vec<ToolCall>,
    results: Vec<Message>,
}

impl Turn {
    fn read(at: &str, content: TextOr<Object<Block>>) -> Result<Self, RequestError> {
        let mut turn = Self::default();
        match content {
            TextOr::Text(text) => turn.texts.push(text),
            TextOr::Many(blocks) => {
                for (index, Object(block)) in blocks.into_iter().enumerate() {
                    turn.push(&format!("{at}[{index}]"), block)?;
                }
            }
        }
        Ok(turn)
    }

    fn text(self) -> String {
        self.texts.join(BETWEEN_BLOCKS)
    }

    fn push(&mut self, at: &str, block: Block) -> Result<(), RequestError> {
        let missing = |field: &str| RequestError::invalid(&format!("{at}.{field}"), format!("{at}.{field} is missing"));
        match block.kind.as_deref() {
            Some("text") | None => self.texts.push(block.text.ok_or_else(|| missing("text"))?),
            Some("thinking") => self.thoughts.extend(block.thinking),
            Some("redacted_thinking") => {}
            // The client names a tool that it has found for the model.
            Some("tool_reference") => self.texts.extend(block.tool_name),
            Some("tool_use") => self.calls.push(ToolCall {
                id: block.id.ok_or_else(|| missing("id"))?,
                name: block.name.filter(|name| !name.is_empty()).ok_or_else(|| missing("name"))?,
                arguments: json_text(block.input),
            }),
            Some("tool_result") => {
                let content = match block.content {
                    None => String::new(),
                    Some(content) => Self::read(&format!("{at}.content"), content)?.text(),
                };
                let tool_call_id = Some(block.tool_use_id.ok_or_else(|| missing("tool_use_id"))?);
                self.results.push(Message { tool_call_id, ..Message::text(Role::Tool, content) });
            }
            Some("document") => match document_text(block.source) {
                Some(text) => self.texts.push(text),
                None => return Err(wrong_modality(at, "document")),
            },
            Some(kind @ ("image" | "audio" | "video" | "file")) => return Err(wrong_modality(at, kind)),
            Some(kind) => {
                let kind: String = kind.chars().take(80).collect();
                let remedy = "one of \"text\", \"thinking\", \"tool_use\", \"tool_result\"";
                return Err(params::out_of_range(&format!("{at}.type"), format!("{kind:?}"), remedy));
            }
        }
        Ok(())
    }
}

/// A document that is plain text.
fn document_text(source: Option<Value>) -> Option<String> {
    let mut source = source?;
    if source.get("type")?.as_str()? != "text" {
        return None;
    }
    match source.get_mut("data")?.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn wrong_modality(at: &str, kind: &str) -> RequestError {
    let message = format!("{at} is of type {kind:?}; the models of this server read text alone");
    RequestError::WrongModality { message, param: Some(at.to_owned()) }
}

/// Does the answer go on from the last message, the client's `messages[last]`?
///
/// Errors: it calls tools, and nothing but their results can follow.
pub(super) fn continues(messages: &mut Vec<Message>, last: usize) -> Result<bool, RequestError> {
    let Some(turn) = messages.last().filter(|turn| turn.role == Role::Assistant) else { return Ok(false) };
    if !turn.tool_calls.is_empty() {
        let at = format!("messages[{last}].content");
        return Err(RequestError::invalid(
            &at,
            format!("{at} calls tools and nothing follows; send their tool_result blocks in a turn of the user"),
        ));
    }
    let says = !turn.content.is_empty() || turn.reasoning.is_some();
    if !says && messages.len() > 1 {
        messages.pop();
    }
    Ok(says)
}
