//! A chat completion's JSON to an [`Order`].
//!
//! What this server cannot do is refused by name if it would change the answer, and accepted where it changes nothing. Fields that nobody
//! here knows are ignored.

use std::collections::BTreeMap;

use plexus_types::{Chat, GenerateRequest, Prompt, RequestError, Role};
use serde::Deserialize;
use serde_json::Value;

use super::logprobs;
use super::tools::{self, WireFunction, WireTool};
use super::turns::{WireMessage, messages};
use crate::answer::Order;
use crate::body;
use crate::constraint::ConstraintFields;
use crate::failure::Failure;
use crate::params::{self, SamplingFields};
use crate::thinking::{self, WireThinking};
use crate::wire::{Object, TextOr};

/// How the client wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyOptions {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl ReplyOptions {
    pub(crate) fn new(stream: Option<bool>, options: Option<Object<StreamOptions>>) -> Self {
        let include_usage = options.and_then(|Object(options)| options.include_usage).unwrap_or(false);
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
    messages: Option<Vec<Object<WireMessage>>>,
    tools: Option<Vec<Object<WireTool>>>,
    /// The older spelling of `tools`.
    functions: Option<Vec<Object<WireFunction>>>,
    tool_choice: Option<Value>,
    /// The older spelling of `tool_choice`.
    function_call: Option<Value>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    stop: Option<TextOr<String>>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    reasoning_effort: Option<String>,
    thinking: Option<Object<WireThinking>>,
    parallel_tool_calls: Option<bool>,
    n: Option<i64>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    modalities: Option<Vec<String>>,
    /// The answer goes on where the last message ends, as vLLM spells it.
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
}

/// Translates the body of `POST /v1/chat/completions`.
pub(crate) fn chat(json: &[u8]) -> Result<(Order, ReplyOptions), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let constraint: ConstraintFields = body::parse(json)?;
    let body: ChatBody = body::parse(json)?;
    Ok(translate(sampling, constraint, body)?)
}

fn translate(sampling: SamplingFields, constraint: ConstraintFields, body: ChatBody) -> Result<(Order, ReplyOptions), RequestError> {
    let model = params::model(body.model)?;
    let n = params::choices(body.n, 1)?;
    if body.modalities.is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
        let message = "modalities asks for more than text; this server answers in text alone: send [\"text\"], or leave it out";
        return Err(RequestError::WrongModality { message: message.to_owned(), param: Some("modalities".to_owned()) });
    }
    let (constraint_field, constraint) = constraint.check()?.unzip();
    let mut tools = tools::tools(body.tools.unwrap_or_default(), body.functions.unwrap_or_default())?;
    let (choice_name, choice) = match &body.tool_choice {
        None | Some(Value::Null) => ("function_call", body.function_call.as_ref()),
        choice => ("tool_choice", choice.as_ref()),
    };
    let tool_choice = tools::choose(choice_name, choice, &mut tools)?;
    params::choice_is_possible(choice_name, &tool_choice, &tools, constraint.as_ref())?;
    let (limit_name, limit) = match body.max_completion_tokens {
        Some(limit) => ("max_completion_tokens", Some(limit)),
        None => ("max_tokens", body.max_tokens),
    };
    let sampling = sampling.check()?;
    let max_tokens = params::max_tokens(limit_name, limit)?;
    params::min_below_max(&sampling, max_tokens)?;
    let effort = body.reasoning_effort.map(|effort| thinking::of_effort(&effort)).transpose()?;
    let mut template_kwargs = effort.unwrap_or_default();
    template_kwargs.extend(thinking::of_switch(body.thinking)?);
    if body.add_generation_prompt == Some(false) {
        template_kwargs.insert("add_generation_prompt".to_owned(), false.to_string());
    }
    // What the client says to the template itself goes before what its other fields mean.
    template_kwargs.extend(body.chat_template_kwargs.unwrap_or_default().into_iter().map(|(name, value)| (name, value.to_string())));
    let chat = Chat {
        messages: messages(body.messages.unwrap_or_default())?,
        tools,
        tool_choice,
        single_tool_call: body.parallel_tool_calls == Some(false),
        template_kwargs,
        continues: body.continue_final_message.unwrap_or(false),
    };
    if chat.continues && body.add_generation_prompt == Some(true) {
        let message = "continue_final_message and add_generation_prompt are both true; send one of them: the answer goes on from the last \
                       message, or is a new one";
        return Err(RequestError::invalid("continue_final_message", message));
    }
    if chat.continues && chat.messages.last().is_some_and(|last| last.role != Role::Assistant) {
        let at = format!("messages[{}].role", chat.messages.len() - 1);
        let role = chat.messages.last().map_or("missing", |last| last.role.as_str());
        return Err(params::out_of_range(&at, format!("{role:?}"), "\"assistant\" where continue_final_message is true"));
    }
    let request = GenerateRequest {
        principal: None,
        model,
        prompt: Prompt::Chat(chat),
        sampling,
        max_tokens,
        stop: params::stop("stop", body.stop)?,
        constraint,
        logprobs: logprobs::of_chat(body.logprobs, body.top_logprobs)?,
    };
    let order = Order { prompts: vec![request], n, constraint_field: constraint_field.unwrap_or_default() };
    Ok((order, ReplyOptions::new(body.stream, body.stream_options)))
}

#[cfg(test)]
mod tests {
    use plexus_types::{Constraint, Message, Tool, ToolCall, ToolChoice};

    use super::*;

    fn read(fields: &str) -> Result<(GenerateRequest, ReplyOptions), Failure> {
        read_whole(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{fields}}}"#))
    }

    fn read_whole(json: &str) -> Result<(GenerateRequest, ReplyOptions), Failure> {
        chat(json.as_bytes()).map(|(mut order, reply)| (order.prompts.remove(0), reply))
    }

    fn chat_of(json: &str) -> Chat {
        let (request, _) = read_whole(json).unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        chat
    }

    fn chat_with(fields: &str) -> Chat {
        let Prompt::Chat(chat) = read(fields).unwrap().0.prompt else { panic!("not a chat") };
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
            assert!(matches!(read_whole(&json), Err(Failure::Request(RequestError::WrongModality { .. }))), "{part}");
        }
        assert!(matches!(read(r#""modalities":["text","audio"]"#), Err(Failure::Request(RequestError::WrongModality { .. }))));
    }

    #[test]
    fn schemas_of_tools_are_kept() {
        let schema =
            r#"{"type":"object","properties":{"n":{"type":"integer","maximum":9007199254740991,"exclusiveMinimum":0}},"$schema":"s"}"#;
        let chat = chat_with(&format!(
            r#""tools":[{{"type":"function","function":{{"name":"f","description":"d","parameters":{schema}}}}},
                {{"type":"function","name":"g"}}],"functions":[{{"name":"h"}}]"#
        ));
        let f = Tool { name: "f".to_owned(), description: Some("d".to_owned()), parameters: Some(schema.to_owned()) };
        let bare = |name: &str| Tool { name: name.to_owned(), description: None, parameters: None };
        assert_eq!(chat.tools, [f, bare("g"), bare("h")]);
        assert_eq!(param_of(read(r#""tools":[{"type":"web_search"}]"#)).as_deref(), Some("tools[0].type"));
    }

    #[test]
    fn a_tool_may_be_forced_if_it_is_there_and_the_answer_is_free() {
        let tools = r#""tools":[{"type":"function","function":{"name":"f"}}]"#;
        let chat = chat_with(&format!(r#"{tools},"tool_choice":"none""#));
        assert_eq!((chat.tool_choice, chat.tools.len(), chat.single_tool_call), (ToolChoice::None, 0, false));
        let chat = chat_with(&format!(r#"{tools},"tool_choice":"required","parallel_tool_calls":false"#));
        assert_eq!((chat.tool_choice, chat.tools.len(), chat.single_tool_call), (ToolChoice::Required, 1, true));
        let named = chat_with(r#""functions":[{"name":"f"}],"function_call":{"name":"f"}"#);
        assert_eq!(named.tool_choice, ToolChoice::Named("f".to_owned()));
        for impossible in [
            r#""tool_choice":"required""#.to_owned(),
            format!(r#"{tools},"tool_choice":{{"type":"function","function":{{"name":"g"}}}}"#),
            format!(r#"{tools},"tool_choice":"required","response_format":{{"type":"json_object"}}"#),
        ] {
            assert_eq!(param_of(read(&impossible)).as_deref(), Some("tool_choice"), "{impossible}");
        }
    }

    #[test]
    fn choices_log_probabilities_and_formats_reach_the_engine() {
        let json = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],"n":3,"logprobs":true,"top_logprobs":2,
            "response_format":{"type":"json_object"},"min_tokens":2,"max_tokens":9}"#;
        let (order, _) = chat(json).unwrap();
        let request = &order.prompts[0];
        assert_eq!((order.n, request.logprobs, request.constraint.as_ref()), (3, Some(2), Some(&Constraint::JsonObject)));
        assert_eq!(request.sampling.min_tokens, Some(2));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        for field in [
            r#""n":17"#,
            r#""n":0"#,
            r#""top_logprobs":3"#,
            r#""top_logprobs":21,"logprobs":true"#,
            r#""logit_bias":{"x":-100}"#,
            r#""response_format":{"type":"json_schema","json_schema":{}}"#,
            r#""guided_regex":"a","guided_json":{}"#,
            r#""min_tokens":5,"max_tokens":4"#,
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
        let kwargs = |fields: &str| {
            let kwargs = chat_with(fields).template_kwargs;
            kwargs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kwargs(r#""chat_template_kwargs":{"enable_thinking":false,"x":"y"}"#), r#"enable_thinking=false x="y""#);
        assert_eq!(kwargs(r#""reasoning_effort":"none""#), "enable_thinking=false thinking=false");
        assert_eq!(kwargs(r#""thinking":{"type":"disabled"}"#), "enable_thinking=false thinking=false");
        let switched = kwargs(r#""thinking":{"type":"enabled","budget_tokens":99},"reasoning_effort":"none""#);
        assert_eq!(switched, "enable_thinking=true thinking=true");
        assert_eq!(param_of(read(r#""thinking":{"type":"off"}"#)).as_deref(), Some("thinking.type"));
        for bad in ["", "hgih"] {
            assert_eq!(param_of(read(&format!(r#""reasoning_effort":"{bad}""#))).as_deref(), Some("reasoning_effort"));
        }
        let both = kwargs(r#""reasoning_effort":"low","chat_template_kwargs":{"enable_thinking":false}"#);
        assert_eq!(both, r#"enable_thinking=false reasoning_effort="low" thinking=true"#);
    }

    #[test]
    fn an_answer_goes_on_from_the_last_message_only_if_the_client_says_so() {
        let begun = r#""model":"m","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"Oslo is"}]"#;
        let kwarg = |chat: &Chat| chat.template_kwargs.get("add_generation_prompt").cloned();
        let plain = chat_of(&format!("{{{begun}}}"));
        assert_eq!((plain.continues, kwarg(&plain)), (false, None));
        let said = chat_of(&format!(r#"{{{begun},"continue_final_message":true,"add_generation_prompt":false}}"#));
        assert_eq!((said.continues, said.messages.len(), kwarg(&said).as_deref()), (true, 2, Some("false")));
        assert!(chat_of(&format!(r#"{{{begun},"continue_final_message":true}}"#)).continues);
        let both = read_whole(&format!(r#"{{{begun},"continue_final_message":true,"add_generation_prompt":true}}"#));
        assert_eq!(param_of(both).as_deref(), Some("continue_final_message"));
        assert_eq!(param_of(read(r#""continue_final_message":true"#)).as_deref(), Some("messages[0].role"));
    }

    #[test]
    fn an_unknown_role_and_an_empty_conversation_are_refused() {
        let robot = read_whole(r#"{"model":"m","messages":[{"role":"robot","content":"hi"}]}"#);
        assert_eq!(param_of(robot).as_deref(), Some("messages[0].role"));
        for empty in ["[]", "null"] {
            assert_eq!(param_of(read_whole(&format!(r#"{{"model":"m","messages":{empty}}}"#))).as_deref(), Some("messages"));
        }
    }
}
