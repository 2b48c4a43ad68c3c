//! A chat completion's JSON to a [`GenerateRequest`], and the checks that both OpenAI endpoints share.
//!
//! What this server cannot do is refused by name if it would change the answer, and accepted where it changes nothing (`n: 1`,
//! `logprobs: false`, `tool_choice: "auto"`). Fields that nobody here knows are ignored, as are tools of types that only the vendor's own
//! servers can run.

use std::collections::BTreeMap;

use plexus_types::{Chat, GenerateRequest, Message, Prompt, RequestError, Role, Tool, ToolCall, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::body;
use crate::failure::Failure;
use crate::params::{self, SamplingFields, unsupported};
use crate::wire::{TextOr, json_text};

/// How the client wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyOptions {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl ReplyOptions {
    pub(crate) fn new(stream: Option<bool>, options: Option<StreamOptions>) -> Self {
        let include_usage = options.and_then(|options| options.include_usage).unwrap_or(false);
        Self { stream: stream.unwrap_or(false), include_usage }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    model: Option<String>,
    messages: Option<Vec<WireMessage>>,
    tools: Option<Vec<WireTool>>,
    /// The older spelling of `tools`.
    functions: Option<Vec<WireFunction>>,
    tool_choice: Option<Value>,
    /// The older spelling of `tool_choice`.
    function_call: Option<Value>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    stop: Option<TextOr<String>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    n: Option<i64>,
    logprobs: Option<Value>,
    logit_bias: Option<Value>,
    response_format: Option<Value>,
    modalities: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct WireMessage {
    role: Option<String>,
    content: Option<TextOr<Part>>,
    name: Option<String>,
    tool_calls: Option<Vec<WireToolCall>>,
    tool_call_id: Option<String>,
    /// The older spelling of one tool call.
    function_call: Option<WireCall>,
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
    function: Option<WireCall>,
}

#[derive(Debug, Deserialize)]
struct WireCall {
    name: Option<String>,
    arguments: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct WireTool {
    function: Option<WireFunction>,
}

#[derive(Debug, Deserialize)]
struct WireFunction {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

/// Translates the body of `POST /v1/chat/completions`.
pub(crate) fn chat(json: &[u8]) -> Result<(GenerateRequest, ReplyOptions), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let body: ChatBody = body::parse(json)?;
    Ok(translate(sampling, body)?)
}

fn translate(sampling: SamplingFields, body: ChatBody) -> Result<(GenerateRequest, ReplyOptions), RequestError> {
    let model = params::model(body.model)?;
    only_one("n", body.n)?;
    no_logprobs(body.logprobs.as_ref())?;
    no_logit_bias(body.logit_bias.as_ref())?;
    plain_text(body.response_format.as_ref())?;
    if body.modalities.is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
        return Err(RequestError::WrongModality {
            message: "modalities asks for more than text; this server answers in text alone".to_owned(),
        });
    }
    let with_tools =
        tools_allowed("tool_choice", body.tool_choice.as_ref())? && tools_allowed("function_call", body.function_call.as_ref())?;
    let tools = tools(body.tools.unwrap_or_default(), body.functions.unwrap_or_default())?;
    let (limit_name, limit) = match body.max_completion_tokens {
        Some(limit) => ("max_completion_tokens", Some(limit)),
        None => ("max_tokens", body.max_tokens),
    };
    let template_kwargs = body.chat_template_kwargs.unwrap_or_default();
    let chat = Chat {
        tool_choice: ToolChoice::Auto,
        single_tool_call: false,
        messages: messages(body.messages.unwrap_or_default())?,
        tools: if with_tools { tools } else { Vec::new() },
        template_kwargs: template_kwargs.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
    };
    let request = GenerateRequest {
        model,
        prompt: Prompt::Chat(chat),
        sampling: sampling.check()?,
        max_tokens: params::max_tokens(limit_name, limit)?,
        stop: params::stop("stop", body.stop)?,
        constraint: None,
        logprobs: None,
    };
    Ok((request, ReplyOptions::new(body.stream, body.stream_options)))
}

/// One answer a request, for now.
pub(crate) fn only_one(param: &str, n: Option<i64>) -> Result<(), RequestError> {
    match n {
        None | Some(1) => Ok(()),
        Some(n @ ..1) => Err(params::out_of_range(param, n, 1)),
        Some(n) => Err(unsupported(param, n, format!("send {n} requests, each with a seed of its own"))),
    }
}

pub(crate) fn no_logprobs(logprobs: Option<&Value>) -> Result<(), RequestError> {
    match logprobs {
        None | Some(Value::Null | Value::Bool(false)) => Ok(()),
        Some(value) => Err(unsupported("logprobs", short(value), "leave it out")),
    }
}

pub(crate) fn no_logit_bias(logit_bias: Option<&Value>) -> Result<(), RequestError> {
    match logit_bias {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(bias)) if bias.is_empty() => Ok(()),
        Some(value) => Err(unsupported("logit_bias", short(value), "leave it out")),
    }
}

fn plain_text(format: Option<&Value>) -> Result<(), RequestError> {
    match format {
        None | Some(Value::Null) => Ok(()),
        Some(format) => match format.get("type").and_then(Value::as_str) {
            Some("text") => Ok(()),
            kind => {
                let kind = kind.map_or_else(|| short(format), |kind| format!("{kind:?}"));
                Err(unsupported("response_format", kind, "leave it out, ask for JSON in the prompt and check the answer"))
            }
        },
    }
}

/// May the model call tools? What would force it to is refused.
fn tools_allowed(param: &str, choice: Option<&Value>) -> Result<bool, RequestError> {
    match choice {
        None | Some(Value::Null) => Ok(true),
        Some(Value::String(choice)) if choice == "auto" => Ok(true),
        Some(Value::String(choice)) if choice == "none" => Ok(false),
        Some(choice) => Err(unsupported(param, short(choice), "send \"auto\" or \"none\" and ask for the tool in the prompt")),
    }
}

/// The client's own value, cut to what fits into a message.
fn short(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Functions are passed on; every other type (`web_search`, `custom`, `namespace`...) runs on the vendor's servers and is ignored.
fn tools(tools: Vec<WireTool>, functions: Vec<WireFunction>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len() + functions.len(), params::TOOLS_MAX)?;
    let functions = tools.into_iter().filter_map(|tool| tool.function).chain(functions);
    functions
        .enumerate()
        .map(|(index, function)| match function.name {
            Some(name) if !name.is_empty() => Ok(Tool {
                name,
                description: function.description,
                parameters: function.parameters.filter(|schema| !schema.is_null()).map(|schema| schema.to_string()),
            }),
            _ => Err(RequestError::invalid("tools", format!("tools[{index}].function.name is missing; name the function"))),
        })
        .collect()
}

fn messages(messages: Vec<WireMessage>) -> Result<Vec<Message>, RequestError> {
    if messages.is_empty() {
        return Err(RequestError::invalid("messages", "messages is empty; send at least one"));
    }
    params::at_most("messages", messages.len(), params::MESSAGES_MAX)?;
    messages.into_iter().enumerate().map(|(index, message)| turn(index, message)).collect()
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
    let calls = message.tool_calls.unwrap_or_default().into_iter().map(|call| (call.id, call.function));
    let older_call = message.function_call.map(|call| (call.name.clone(), Some(call)));
    let tool_calls = calls.chain(older_call).enumerate().map(|(call_index, (id, call))| {
        let missing = |what: &str| {
            RequestError::invalid(
                &format!("{at}.tool_calls"),
                format!("{at}.tool_calls[{call_index}].{what} is missing; send back the call as it came"),
            )
        };
        let call = call.ok_or_else(|| missing("function"))?;
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
fn text_of(at: &str, parts: Vec<Part>) -> Result<String, RequestError> {
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
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
                let message = format!("{at}.content[{index}] is of type {kind:?}; the models of this server read text alone");
                return Err(RequestError::WrongModality { message });
            }
            Some(kind) => {
                let kind: String = kind.chars().take(80).collect();
                return Err(params::out_of_range(&format!("{at}.content[{index}].type"), format!("{kind:?}"), "\"text\""));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<(GenerateRequest, ReplyOptions), Failure> {
        chat(format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{fields}}}"#).as_bytes())
    }

    fn chat_of(json: &str) -> Chat {
        let (request, _) = chat(json.as_bytes()).unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        chat
    }

    fn param_of(result: Result<(GenerateRequest, ReplyOptions), Failure>) -> Option<String> {
        match result {
            Err(Failure::Request(RequestError::Invalid { param, .. })) => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_system_message_reaches_the_template_verbatim_and_in_order() {
        // CX-77
        let chat = chat_of(
            r#"{"model":"m","messages":[{"role":"system","content":"  one\n"},{"role":"developer","content":"two"},
                {"role":"user","content":"hi"},{"role":"system","content":"three"}]}"#,
        );
        let expected = [(Role::System, "  one\n"), (Role::Developer, "two"), (Role::User, "hi"), (Role::System, "three")];
        assert_eq!(chat.messages, expected.map(|(role, text)| Message::text(role, text)));
    }

    #[test]
    fn without_a_system_message_there_is_none() {
        // CX-77
        let chat = chat_of(r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#);
        assert_eq!(chat.messages, [Message::text(Role::User, "hi")]);
    }

    #[test]
    fn content_is_a_text_or_null_or_parts_joined_verbatim() {
        // CX-81
        let chat = chat_of(
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a "},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","index":0,"function":{"name":"f","arguments":"{\"x\":1}"}}]},
                {"role":"tool","tool_call_id":"c1","content":[]},{"role":"assistant"},
                {"role":"function","name":"g","content":"4"}]}"#,
        );
        assert_eq!(chat.messages[0].content, "a b");
        let call = ToolCall { id: "c1".to_owned(), name: "f".to_owned(), arguments: r#"{"x":1}"#.to_owned() };
        assert_eq!((chat.messages[1].content.as_str(), &chat.messages[1].tool_calls), ("", &vec![call]));
        assert_eq!((chat.messages[2].role, chat.messages[2].tool_call_id.as_deref()), (Role::Tool, Some("c1")));
        assert_eq!(chat.messages[3], Message::text(Role::Assistant, ""));
        assert_eq!((chat.messages[4].role, chat.messages[4].name.as_deref()), (Role::Tool, Some("g")));
    }

    #[test]
    fn arguments_may_be_json_instead_of_text_and_reasoning_may_have_either_name() {
        let chat = chat_of(
            r#"{"model":"m","messages":[{"role":"assistant","content":"","reasoning_content":"hm",
                "tool_calls":[{"id":"c","function":{"name":"f","arguments":{"b":1,"a":2}}}]},
                {"role":"assistant","reasoning":"so","content":"x"},{"role":"assistant","reasoning":{"effort":"low"},"content":"x"}]}"#,
        );
        assert_eq!(chat.messages[0].tool_calls[0].arguments, r#"{"b":1,"a":2}"#);
        let reasoning: Vec<_> = chat.messages.iter().map(|message| message.reasoning.as_deref()).collect();
        assert_eq!(reasoning, [Some("hm"), Some("so"), None]);
    }

    #[test]
    fn pictures_and_sound_are_the_wrong_modality() {
        for part in
            [r#"{"type":"image_url","image_url":{"url":"data:,"}}"#, r#"{"type":"input_audio","input_audio":{}}"#, r#"{"type":"file"}"#]
        {
            let json = format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}"#);
            assert!(matches!(chat(json.as_bytes()), Err(Failure::Request(RequestError::WrongModality { .. }))), "{part}");
        }
        assert!(matches!(read(r#""modalities":["text","audio"]"#), Err(Failure::Request(RequestError::WrongModality { .. }))));
    }

    #[test]
    fn tools_of_unknown_types_are_ignored_and_schemas_are_kept() {
        let schema =
            r#"{"type":"object","properties":{"n":{"type":"integer","maximum":9007199254740991,"exclusiveMinimum":0}},"$schema":"s"}"#;
        let (request, _) = read(&format!(
            r#""tools":[{{"type":"web_search"}},{{"type":"function","function":{{"name":"f","description":"d","parameters":{schema}}}}},
                {{"type":"namespace","name":"n","tools":[]}},{{"type":"function","function":{{"name":"g"}}}}]"#
        ))
        .unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        let f = Tool { name: "f".to_owned(), description: Some("d".to_owned()), parameters: Some(schema.to_owned()) };
        assert_eq!(chat.tools, [f, Tool { name: "g".to_owned(), description: None, parameters: None }]);
    }

    #[test]
    fn tool_choice_none_means_no_tools_and_force_is_refused() {
        let tools = |choice: &str| {
            read(&format!(r#""tools":[{{"type":"function","function":{{"name":"f"}}}}],"tool_choice":{choice}"#)).map(|(request, _)| {
                let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
                chat.tools.len()
            })
        };
        assert_eq!(tools(r#""auto""#).unwrap(), 1);
        assert_eq!(tools("null").unwrap(), 1);
        assert_eq!(tools(r#""none""#).unwrap(), 0);
        for forced in [r#""required""#, r#"{"type":"function","function":{"name":"f"}}"#] {
            let failure = tools(forced).unwrap_err().to_string();
            assert!(failure.starts_with("tool_choice = "), "{failure}");
        }
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        for field in [
            r#""n":2"#,
            r#""n":0"#,
            r#""logprobs":true"#,
            r#""logit_bias":{"50256":-100}"#,
            r#""response_format":{"type":"json_object"}"#,
            r#""response_format":{"type":"json_schema","json_schema":{}}"#,
            r#""temperature":3"#,
            r#""max_tokens":0"#,
            r#""stop":[""]"#,
        ] {
            let name = field.split('"').nth(1).unwrap();
            assert_eq!(param_of(read(field)).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        // Zed, opencode, Continue and the vendor's SDK send these.
        let neutral = r#""n":1,"logprobs":false,"top_logprobs":null,"logit_bias":{},"response_format":{"type":"text"},"tool_choice":null,
            "tools":[],"parallel_tool_calls":false,"stream_options":null,"stop":null,"user":"u","prompt_cache_key":"k","store":false,
            "reasoning_effort":"low","metadata":{},"service_tier":"auto","modalities":["text"],"prediction":null,"seed":null"#;
        let (request, reply) = read(neutral).unwrap();
        assert_eq!((request.max_tokens, request.stop.len()), (None, 0));
        assert_eq!(reply, ReplyOptions { stream: false, include_usage: false });
    }

    #[test]
    fn the_newer_name_of_the_limit_wins() {
        // CX-81
        assert_eq!(read(r#""max_completion_tokens":7,"max_tokens":9"#).unwrap().0.max_tokens, Some(7));
        assert_eq!(read(r#""max_tokens":9"#).unwrap().0.max_tokens, Some(9));
        assert_eq!(param_of(read(r#""max_completion_tokens":0"#)).as_deref(), Some("max_completion_tokens"));
    }

    #[test]
    fn template_variables_are_passed_on() {
        // CX-81
        let (request, _) = read(r#""chat_template_kwargs":{"enable_thinking":false,"x":"y"}"#).unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        let kwargs: Vec<_> = chat.template_kwargs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(kwargs, [("enable_thinking", "false"), ("x", "\"y\"")]);
    }

    #[test]
    fn an_unknown_role_and_an_empty_conversation_are_refused() {
        let robot = chat(br#"{"model":"m","messages":[{"role":"robot","content":"hi"}]}"#);
        assert_eq!(param_of(robot).as_deref(), Some("messages[0].role"));
        for empty in ["[]", "null"] {
            assert_eq!(param_of(chat(format!(r#"{{"model":"m","messages":{empty}}}"#).as_bytes())).as_deref(), Some("messages"));
        }
    }
}
