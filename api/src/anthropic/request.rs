//! A message request's JSON to a [`GenerateRequest`] (CX-73).
//!
//! Every text reaches the template verbatim and in order (CX-77). The vendor's blocks become the turns of a template like this:
//! * `system`, a text or blocks, becomes one leading system message. Many templates know a single one, so blocks are joined, by
//!   [`BETWEEN_BLOCKS`]. A block that begins with [`TRANSPORT_NOISE`] is no instruction but a note of the client's transport that changes
//!   with every request: passed on, it would keep any prompt from being found in the prefix cache. It alone is dropped.
//! * Turns of the role `system` between the others stay where they are.
//! * `tool_result` blocks become tool messages, before the text of the same turn, as templates expect them right after the call.
//! * `thinking` becomes the turn's reasoning; `redacted_thinking` can be read by the vendor alone and is dropped.

use plexus_types::{Chat, GenerateRequest, Message, Prompt, RequestError, Role, Tool, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::body;
use crate::failure::Failure;
use crate::params::{self, SamplingFields, unsupported};
use crate::wire::{TextOr, json_text};

/// What stands between two text blocks that become one text: blocks are paragraphs, not pieces of a sentence.
const BETWEEN_BLOCKS: &str = "\n\n";
/// How a system block begins that is not meant for the model.
const TRANSPORT_NOISE: &str = "x-anthropic-billing-header:";

#[derive(Debug, Deserialize)]
struct MessageBody {
    model: Option<String>,
    system: Option<TextOr<Block>>,
    messages: Option<Vec<WireMessage>>,
    tools: Option<Vec<WireTool>>,
    tool_choice: Option<WireToolChoice>,
    max_tokens: Option<i64>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct WireMessage {
    role: Option<String>,
    content: Option<TextOr<Block>>,
}

/// A content block of any type; which fields count depends on it.
#[derive(Debug, Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    tool_name: Option<String>,
    content: Option<TextOr<Block>>,
    source: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct WireTool {
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    /// OpenAI's shape, which some clients send here, too.
    function: Option<WireFunction>,
}

#[derive(Debug, Deserialize)]
struct WireFunction {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct WireToolChoice {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Translates the body of `POST /v1/messages`; the flag says whether it is to be streamed.
pub(crate) fn message(json: &[u8]) -> Result<(GenerateRequest, bool), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let body: MessageBody = body::parse(json)?;
    let stream = body.stream.unwrap_or(false);
    if body.max_tokens.is_none() {
        let message = "max_tokens is missing; say how many tokens to generate at most (as many as fit are generated, if it is more)";
        return Err(RequestError::invalid("max_tokens", message).into());
    }
    Ok((translate(sampling, body)?, stream))
}

/// Translates the body of `POST /v1/messages/count_tokens`, which has no `max_tokens`.
pub(crate) fn count(json: &[u8]) -> Result<GenerateRequest, Failure> {
    Ok(translate(SamplingFields::default(), body::parse(json)?)?)
}

fn translate(sampling: SamplingFields, body: MessageBody) -> Result<GenerateRequest, RequestError> {
    let model = params::model(body.model)?;
    let with_tools = tools_allowed(body.tool_choice)?;
    let tools = tools(body.tools.unwrap_or_default())?;
    let turns = body.messages.unwrap_or_default();
    if turns.is_empty() {
        return Err(RequestError::invalid("messages", "messages is empty; send at least one"));
    }
    params::at_most("messages", turns.len(), params::MESSAGES_MAX)?;
    let mut messages: Vec<Message> = system(body.system)?.into_iter().collect();
    for (index, turn) in turns.into_iter().enumerate() {
        push_turn(&mut messages, index, turn)?;
    }
    Ok(GenerateRequest {
        model,
        prompt: Prompt::Chat(Chat { messages, tools: if with_tools { tools } else { Vec::new() }, ..Chat::default() }),
        sampling: sampling.check()?,
        max_tokens: params::max_tokens("max_tokens", body.max_tokens)?,
        stop: params::stop("stop_sequences", body.stop_sequences.map(TextOr::Many))?,
        constraint: None,
        logprobs: None,
    })
}

fn system(system: Option<TextOr<Block>>) -> Result<Option<Message>, RequestError> {
    let text = match system {
        None => return Ok(None),
        Some(TextOr::Text(text)) => text,
        Some(TextOr::Many(mut blocks)) => {
            blocks.retain(|block| !block.text.as_deref().is_some_and(|text| text.starts_with(TRANSPORT_NOISE)));
            if blocks.is_empty() {
                return Ok(None);
            }
            Turn::read("system", TextOr::Many(blocks))?.text()
        }
    };
    // An empty one says nothing, and a template would still write its frame.
    Ok((!text.is_empty()).then(|| Message::text(Role::System, text)))
}

fn push_turn(messages: &mut Vec<Message>, index: usize, turn: WireMessage) -> Result<(), RequestError> {
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
    fn read(at: &str, content: TextOr<Block>) -> Result<Self, RequestError> {
        let mut turn = Self::default();
        match content {
            TextOr::Text(text) => turn.texts.push(text),
            TextOr::Many(blocks) => {
                for (index, block) in blocks.into_iter().enumerate() {
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
    RequestError::WrongModality { message: format!("{at} is of type {kind:?}; the models of this server read text alone") }
}

/// May the model call tools? What would force it to is refused.
fn tools_allowed(choice: Option<WireToolChoice>) -> Result<bool, RequestError> {
    match choice.and_then(|choice| choice.kind).as_deref() {
        None | Some("auto") => Ok(true),
        Some("none") => Ok(false),
        Some(kind) => {
            let kind: String = kind.chars().take(80).collect();
            Err(unsupported("tool_choice", format!("{kind:?}"), "send \"auto\" or \"none\" and ask for the tool in the prompt"))
        }
    }
}

/// Tools with a schema are the client's own; all others (`web_search_20250305`...) run on the vendor's servers and are ignored.
fn tools(tools: Vec<WireTool>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len(), params::TOOLS_MAX)?;
    let own = tools.into_iter().enumerate().filter_map(|(index, tool)| match (tool.function, tool.input_schema) {
        (Some(function), _) => Some((index, function)),
        (None, Some(schema)) => Some((index, WireFunction { name: tool.name, description: tool.description, parameters: Some(schema) })),
        (None, None) => None,
    });
    own.map(|(index, function)| match function.name {
        Some(name) if !name.is_empty() => Ok(Tool {
            name,
            description: function.description,
            parameters: function.parameters.filter(|schema| !schema.is_null()).map(|schema| schema.to_string()),
        }),
        _ => Err(RequestError::invalid("tools", format!("tools[{index}].name is missing; name the tool"))),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat_of(fields: &str) -> Chat {
        let json = format!(r#"{{"model":"m","max_tokens":8,{fields}}}"#);
        let (request, _) = message(json.as_bytes()).unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        chat
    }

    fn refusal_of(fields: &str) -> RequestError {
        match message(format!(r#"{{"model":"m","max_tokens":8,{fields}}}"#).as_bytes()) {
            Err(Failure::Request(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    const HI: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

    #[test]
    fn the_system_prompt_reaches_the_template_verbatim() {
        // CX-77
        let text = chat_of(&format!(r#""system":"  Be brief.\n\n",{HI}"#));
        assert_eq!(text.messages[0], Message::text(Role::System, "  Be brief.\n\n"));
        let blocks = r#"[{"type":"text","text":"one\n"},{"type":"text","text":" two","cache_control":{"type":"ephemeral"}}]"#;
        let blocks = chat_of(&format!(r#""system":{blocks},{HI}"#));
        assert_eq!(blocks.messages, [Message::text(Role::System, "one\n\n\n two"), Message::text(Role::User, "hi")]);
    }

    #[test]
    fn without_a_system_prompt_there_is_none() {
        // CX-77
        for system in ["", r#""system":null,"#, r#""system":[],"#, r#""system":"","#] {
            assert_eq!(chat_of(&format!("{system}{HI}")).messages, [Message::text(Role::User, "hi")]);
        }
    }

    #[test]
    fn the_note_of_the_clients_transport_is_no_prompt() {
        let system = r#"[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1; cch=1f3a;"},{"type":"text","text":"You are an agent."}]"#;
        assert_eq!(chat_of(&format!(r#""system":{system},{HI}"#)).messages[0], Message::text(Role::System, "You are an agent."));
    }

    #[test]
    fn turns_of_the_system_between_others_stay_where_they_are() {
        // CX-77
        let chat = chat_of(
            r#""messages":[{"role":"user","content":"a"},{"role":"system","content":[{"type":"text","text":"b"}]},{"role":"user","content":"c"}]"#,
        );
        let expected = [(Role::User, "a"), (Role::System, "b"), (Role::User, "c")];
        assert_eq!(chat.messages, expected.map(|(role, text)| Message::text(role, text)));
    }

    #[test]
    fn tools_are_called_and_answered_in_the_order_that_templates_expect() {
        // CX-73
        let chat = chat_of(
            r#""messages":[{"role":"user","content":"go"},
            {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"redacted_thinking","data":"x"},
              {"type":"text","text":"I look."},{"type":"tool_use","id":"t1","name":"read","input":{"path":"a","n":1}},{"type":"tool_use","id":"t2","name":"ls","input":{}}]},
            {"role":"user","content":[{"type":"text","text":"and now?"},{"type":"tool_result","tool_use_id":"t1","content":"A"},
              {"type":"tool_result","tool_use_id":"t2","is_error":true,"content":[{"type":"text","text":"no"},{"type":"text","text":"such"}]}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t3"}]}]"#,
        );
        let called = &chat.messages[1];
        assert_eq!((called.content.as_str(), called.reasoning.as_deref()), ("I look.", Some("hm")));
        let calls: Vec<_> = called.tool_calls.iter().map(|call| (call.id.as_str(), call.name.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("t1", "read", r#"{"path":"a","n":1}"#), ("t2", "ls", "{}")]);
        let rest: Vec<_> = chat.messages[2..].iter().map(|turn| (turn.role, turn.tool_call_id.as_deref(), turn.content.as_str())).collect();
        let expected = [
            (Role::Tool, Some("t1"), "A"),
            (Role::Tool, Some("t2"), "no\n\nsuch"),
            (Role::User, None, "and now?"),
            (Role::Tool, Some("t3"), ""),
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn tools_of_either_shape_are_passed_on_and_the_vendors_own_are_ignored() {
        // CX-73
        let chat = chat_of(&format!(
            r#""tools":[{{"name":"a","description":"d","input_schema":{{"type":"object"}}}},{{"type":"web_search_20250305","name":"web_search"}},
                {{"type":"function","function":{{"name":"b","parameters":{{"type":"object"}}}}}},{{"type":"custom","name":"c","input_schema":{{}}}}],
                "tool_choice":{{"type":"auto"}},{HI}"#
        ));
        let tools: Vec<_> = chat.tools.iter().map(|tool| (tool.name.as_str(), tool.parameters.as_deref())).collect();
        assert_eq!(tools, [("a", Some(r#"{"type":"object"}"#)), ("b", Some(r#"{"type":"object"}"#)), ("c", Some("{}"))]);
    }

    #[test]
    fn tool_choice_none_means_no_tools_and_force_is_refused() {
        let tools = r#""tools":[{"name":"a","input_schema":{}}]"#;
        assert!(chat_of(&format!(r#"{tools},"tool_choice":{{"type":"none"}},{HI}"#)).tools.is_empty());
        for forced in [r#"{"type":"any"}"#, r#"{"type":"tool","name":"a"}"#] {
            let refusal = refusal_of(&format!(r#"{tools},"tool_choice":{forced},{HI}"#));
            assert!(matches!(&refusal, RequestError::Invalid { param: Some(param), .. } if param == "tool_choice"), "{refusal:?}");
        }
    }

    #[test]
    fn the_limit_is_required_and_taken_whatever_its_size() {
        let failure = message(format!(r#"{{"model":"m",{HI}}}"#).as_bytes()).unwrap_err();
        assert!(
            matches!(&failure, Failure::Request(RequestError::Invalid { param: Some(param), .. }) if param == "max_tokens"),
            "{failure:?}"
        );
        let (request, stream) = message(format!(r#"{{"model":"m","max_tokens":128000,"stream":true,{HI}}}"#).as_bytes()).unwrap();
        assert_eq!((request.max_tokens, stream), (Some(128_000), true));
        assert_eq!(count(format!(r#"{{"model":"m",{HI}}}"#).as_bytes()).unwrap().max_tokens, None);
    }

    #[test]
    fn text_documents_are_text_and_everything_else_is_the_wrong_modality() {
        let turn = |block: &str| format!(r#""messages":[{{"role":"user","content":[{block}]}}]"#);
        let document = chat_of(&turn(r#"{"type":"document","source":{"type":"text","media_type":"text/plain","data":"page"}}"#));
        assert_eq!(document.messages[0].content, "page");
        for block in [
            r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":""}}"#,
            r#"{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":""}}"#,
            r#"{"type":"tool_result","tool_use_id":"t","content":[{"type":"image","source":{}}]}"#,
        ] {
            assert!(matches!(refusal_of(&turn(block)), RequestError::WrongModality { .. }), "{block}");
        }
        assert!(matches!(refusal_of(&turn(r#"{"type":"hologram"}"#)), RequestError::Invalid { .. }));
    }
}
