//! A message request's JSON to a [`GenerateRequest`] (CX-73).

use plexus_types::{Chat, Constraint, GenerateRequest, Message, Prompt, RequestError};
use serde::Deserialize;
use serde_json::Value;

use super::tools::{self, WireTool, WireToolChoice};
use super::turns::{Block, WireMessage, continues, push_turn, system};
use crate::answer::Order;
use crate::body;
use crate::constraint::response_format;
use crate::failure::Failure;
use crate::params::{self, SamplingFields};
use crate::thinking::{self, TemplateKwargs, WireThinking};
use crate::wire::{Object, TextOr};

#[derive(Debug, Deserialize)]
struct MessageBody {
    model: Option<String>,
    system: Option<TextOr<Object<Block>>>,
    messages: Option<Vec<Object<WireMessage>>>,
    tools: Option<Vec<Object<WireTool>>>,
    tool_choice: Option<Object<WireToolChoice>>,
    max_tokens: Option<i64>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    thinking: Option<Object<WireThinking>>,
    output_config: Option<Object<WireOutput>>,
    /// The earlier place of `output_config.format`.
    output_format: Option<Value>,
    /// Servers whose tools the vendor would call.
    mcp_servers: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct WireOutput {
    effort: Option<String>,
    format: Option<Value>,
}

/// Translates the body of `POST /v1/messages`; the flag says whether it is to be streamed.
pub(crate) fn message(json: &[u8]) -> Result<(Order, bool), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let body: MessageBody = body::parse(json)?;
    let stream = body.stream.unwrap_or(false);
    if let Some(limit) = body.max_tokens.filter(|limit| *limit < 1 && *limit != -1) {
        return Err(params::out_of_range("max_tokens", limit, "at least 1").into());
    }
    if body.max_tokens.is_none() {
        let message = "max_tokens is missing; say how many tokens to generate at most (as many as fit are generated, if it is more)";
        return Err(RequestError::invalid("max_tokens", message).into());
    }
    let (request, constraint_field) = translate(sampling, body)?;
    Ok((Order::one(request, constraint_field), stream))
}

/// Translates the body of `POST /v1/messages/count_tokens`, which has no `max_tokens`.
pub(crate) fn count(json: &[u8]) -> Result<GenerateRequest, Failure> {
    Ok(translate(SamplingFields::default(), body::parse(json)?)?.0)
}

/// The request, and the field that constrains its answer.
fn translate(sampling: SamplingFields, body: MessageBody) -> Result<(GenerateRequest, &'static str), RequestError> {
    let model = params::model(body.model)?;
    if body.mcp_servers.is_some_and(|servers| !servers.is_empty()) {
        let message = "mcp_servers asks for tools that the server calls itself, and this one calls none; leave it out, and offer the tools of \
                       those servers in tools";
        return Err(RequestError::invalid("mcp_servers", message));
    }
    let mut tools = tools::tools(body.tools.unwrap_or_default())?;
    let (tool_choice, single_tool_call) = tools::choose(body.tool_choice, &mut tools)?;
    let turns = body.messages.unwrap_or_default();
    if turns.is_empty() {
        return Err(RequestError::invalid("messages", "messages is empty; send at least one"));
    }
    params::at_most("messages", turns.len(), params::MESSAGES_MAX)?;
    let mut messages: Vec<Message> = system(body.system)?.into_iter().collect();
    let last = turns.len() - 1;
    for (index, Object(turn)) in turns.into_iter().enumerate() {
        push_turn(&mut messages, index, turn)?;
    }
    let continues = continues(&mut messages, last)?;
    let (effort, format) = body.output_config.map_or((None, None), |Object(output)| (output.effort, output.format));
    let (constraint_field, constraint) = constraint(format, body.output_format)?;
    params::choice_is_possible("tool_choice", &tool_choice, &tools, constraint.as_ref())?;
    if continues && constraint.is_some() {
        let message =
            format!("{constraint_field} is given, but messages[{last}] has begun the answer; end with a turn of the user, or leave it out");
        return Err(RequestError::invalid(constraint_field, message));
    }
    let template_kwargs = template_kwargs(body.thinking, effort)?;
    let sampling = sampling.check()?;
    let max_tokens = params::max_tokens("max_tokens", body.max_tokens)?;
    params::min_below_max(&sampling, max_tokens)?;
    let request = GenerateRequest {
        principal: None,
        model,
        prompt: Prompt::Chat(Chat { messages, tools, tool_choice, single_tool_call, template_kwargs, continues }),
        sampling,
        max_tokens,
        stop: params::stop("stop_sequences", body.stop_sequences.map(TextOr::Many))?,
        constraint,
        logprobs: None,
    };
    Ok((request, constraint_field))
}

fn constraint(format: Option<Value>, earlier: Option<Value>) -> Result<(&'static str, Option<Constraint>), RequestError> {
    let (param, format) = match (format, earlier) {
        (Some(format), _) => ("output_config.format", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok(("", None)),
    };
    Ok((param, response_format(param, format)?))
}

/// Without a word on it the model thinks as its template has it by default.
fn template_kwargs(thinking: Option<Object<WireThinking>>, effort: Option<String>) -> Result<TemplateKwargs, RequestError> {
    let mut kwargs = thinking::of_switch(thinking)?;
    if let Some(effort) = effort {
        thinking::check_effort("output_config.effort", &effort, &[])?;
        thinking::set_effort(&mut kwargs, &effort);
    }
    Ok(kwargs)
}

#[cfg(test)]
mod tests {
    use plexus_types::{Role, ToolChoice};

    use super::*;

    fn chat_of(fields: &str) -> Chat {
        let json = format!(r#"{{"model":"m","max_tokens":8,{fields}}}"#);
        let (mut order, _) = message(json.as_bytes()).unwrap();
        let Prompt::Chat(chat) = order.prompts.remove(0).prompt else { panic!("not a chat") };
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
    fn an_answer_goes_on_from_a_last_turn_of_the_model() {
        let turns = |last: &str| format!(r#""messages":[{{"role":"user","content":"hi"}},{last}]"#);
        for content in [r#""Oslo is""#, r#"[{"type":"thinking","thinking":"hm"},{"type":"text","text":"Oslo is"}]"#] {
            let chat = chat_of(&turns(&format!(r#"{{"role":"assistant","content":{content}}}"#)));
            assert_eq!((chat.continues, chat.messages.len(), chat.messages[1].content.as_str()), (true, 2, "Oslo is"));
        }
        let empty = chat_of(&turns(r#"{"role":"assistant","content":""}"#));
        assert_eq!((empty.continues, empty.messages), (false, vec![Message::text(Role::User, "hi")]));
        assert!(!chat_of(HI).continues);
        let called = refusal_of(&turns(r#"{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{}}]}"#));
        assert!(called.to_string().starts_with("messages[1].content calls tools and nothing follows"), "{called}");
        let format = r#""output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}"#;
        let formed = refusal_of(&format!("{format},{}", turns(r#"{"role":"assistant","content":"{"}"#)));
        assert!(formed.to_string().starts_with("output_config.format is given, but messages[1] has begun the answer"), "{formed}");
    }

    #[test]
    fn tools_of_either_shape_are_passed_on_and_those_that_find_others_are_left_out() {
        // CX-73
        let chat = chat_of(&format!(
            r#""tools":[{{"name":"a","description":"d","input_schema":{{"type":"object"}}}},{{"type":"tool_search_tool_regex_20251119","name":"tool_search_tool_regex"}},
                {{"type":"function","function":{{"name":"b","parameters":{{"type":"object"}}}}}},{{"type":"custom","name":"c","input_schema":{{}}}}],
                "tool_choice":{{"type":"auto"}},{HI}"#
        ));
        let tools: Vec<_> = chat.tools.iter().map(|tool| (tool.name.as_str(), tool.parameters.as_deref())).collect();
        assert_eq!(tools, [("a", Some(r#"{"type":"object"}"#)), ("b", Some(r#"{"type":"object"}"#)), ("c", Some("{}"))]);
    }

    #[test]
    fn a_tool_of_the_client_s_own_has_a_schema_of_its_input() {
        for (tool, expected) in [
            (r#"{"name":"a"}"#, "tools[0].input_schema is missing"),
            (r#"{"type":"custom","name":"a","input_schema":null}"#, "tools[0].input_schema is missing"),
            (r#"{"name":"a","input_schema":[]}"#, "tools[0].input_schema is []"),
            (r#"{"input_schema":{}}"#, "tools[0].name is missing"),
        ] {
            let refusal = refusal_of(&format!(r#""tools":[{tool}],{HI}"#)).to_string();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
    }

    #[test]
    fn the_vendors_own_tools_are_refused_by_name() {
        let own =
            [("bash_20250124", "bash"), ("text_editor_20250728", "str_replace_based_edit_tool"), ("web_search_20250305", "web_search")];
        for (kind, name) in own {
            let tools = format!(r#"{{"name":"a","input_schema":{{}}}},{{"type":"{kind}","name":"{name}"}}"#);
            let refusal = refusal_of(&format!(r#""tools":[{tools}],{HI}"#));
            let expected = format!("tools[1].type is \"{kind}\"; it must be \"custom\": the tools of the vendor are known to");
            assert!(refusal.to_string().starts_with(&expected), "{refusal}");
        }
        let refusal = refusal_of(&format!(r#""mcp_servers":[{{"type":"url","url":"https://example.org","name":"s"}}],{HI}"#)).to_string();
        assert!(refusal.starts_with("mcp_servers asks for tools that the server calls itself"), "{refusal}");
        assert_eq!(chat_of(&format!(r#""mcp_servers":[],{HI}"#)).tools, []);
    }

    #[test]
    fn a_tool_may_be_forced_if_it_is_there() {
        let tools = r#""tools":[{"name":"a","input_schema":{}}]"#;
        let chosen = |choice: &str| {
            let chat = chat_of(&format!(r#"{tools},"tool_choice":{choice},{HI}"#));
            (chat.tool_choice, chat.tools.len(), chat.single_tool_call)
        };
        assert_eq!(chosen(r#"{"type":"none"}"#), (ToolChoice::None, 0, false));
        assert_eq!(chosen(r#"{"type":"auto","disable_parallel_tool_use":true}"#), (ToolChoice::Auto, 1, true));
        assert_eq!(chosen(r#"{"type":"any"}"#), (ToolChoice::Required, 1, false));
        assert_eq!(chosen(r#"{"type":"tool","name":"a"}"#), (ToolChoice::Named("a".to_owned()), 1, false));
        for impossible in [r#"{"type":"tool","name":"b"}"#, r#"{"type":"tool"}"#, r#"{"type":"always"}"#] {
            let refusal = refusal_of(&format!(r#"{tools},"tool_choice":{impossible},{HI}"#));
            assert!(
                matches!(&refusal, RequestError::Invalid { param: Some(param), .. } if param.starts_with("tool_choice")),
                "{refusal:?}"
            );
        }
        let without = refusal_of(&format!(r#""tool_choice":{{"type":"any"}},{HI}"#));
        assert_eq!(without.to_string(), "tool_choice asks for a tool, but tools has none that this server can call; list one");
    }

    #[test]
    fn thinking_and_effort_are_said_to_the_template() {
        let kwargs = |fields: &str| {
            let kwargs = chat_of(&format!("{fields}{HI}")).template_kwargs;
            kwargs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kwargs(""), "");
        assert_eq!(kwargs(r#""thinking":{"type":"disabled"},"#), "enable_thinking=false thinking=false");
        assert_eq!(kwargs(r#""thinking":{"type":"enabled","budget_tokens":1024},"#), "enable_thinking=true thinking=true");
        assert_eq!(kwargs(r#""output_config":{"effort":"high"},"#), r#"reasoning_effort="high""#);
        let effort = refusal_of(&format!(r#""output_config":{{"effort":"hgih"}},{HI}"#)).to_string();
        assert_eq!(effort, r#"output_config.effort is "hgih"; it must be one of "minimal", "low", "medium", "high", "xhigh", "max""#);
        assert_eq!(
            refusal_of(&format!(r#""thinking":{{"type":"deep"}},{HI}"#)).to_string().split(';').next(),
            Some("thinking.type is \"deep\"")
        );
    }

    #[test]
    fn a_format_of_the_answer_is_a_constraint_in_its_new_and_in_its_earlier_place() {
        for place in [r#""output_config":{"format":FORMAT}"#, r#""output_format":FORMAT"#] {
            let fields = place.replace("FORMAT", r#"{"type":"json_schema","schema":{"type":"object"}}"#);
            let (order, _) = message(format!(r#"{{"model":"m","max_tokens":8,{fields},{HI}}}"#).as_bytes()).unwrap();
            assert_eq!(order.prompts[0].constraint, Some(Constraint::JsonSchema(r#"{"type":"object"}"#.to_owned())), "{place}");
        }
    }

    #[test]
    fn the_limit_is_required_and_taken_whatever_its_size() {
        let failure = message(format!(r#"{{"model":"m",{HI}}}"#).as_bytes()).unwrap_err();
        assert!(
            matches!(&failure, Failure::Request(RequestError::Invalid { param: Some(param), .. }) if param == "max_tokens"),
            "{failure:?}"
        );
        let none = message(format!(r#"{{"model":"m","max_tokens":0,{HI}}}"#).as_bytes()).unwrap_err();
        assert_eq!(none.to_string(), "max_tokens is 0; it must be at least 1");
        let (order, stream) = message(format!(r#"{{"model":"m","max_tokens":128000,"stream":true,{HI}}}"#).as_bytes()).unwrap();
        assert_eq!((order.prompts[0].max_tokens, stream), (Some(128_000), true));
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
