//! Chat templates: Jinja as Hugging Face's library renders it, in a sandbox ([`super::sandbox`]), because templates come with models.

use minijinja::value::{Rest, Serde, Value, ValueOrKwargs};
use minijinja::{Error, ErrorKind};
use plexus_types::{Chat, Message, RequestError, Role, Tool, ToolCall};
use serde_json::json;

use super::answer::nine_letters;
use super::continued;
use super::python;
use super::sandbox::{Sandbox, charge};

/// Characters of an error that a template raises; none has more to say.
const MAX_RAISED: usize = 2000;

/// A template that was found good, or two where requests with tools have their own.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    sandbox: Sandbox,
    /// For requests without tools.
    source: String,
    /// For requests with tools, where that is another.
    tool_source: Option<String>,
    /// `bos_token` and the like, for the template to use.
    special_tokens: Vec<(String, String)>,
    /// Does the template that serves requests with tools mention them?
    knows_tools: bool,
    /// Does it want ids of calls that have nine letters and digits, as Mistral's do?
    nine_letter_ids: bool,
    /// Does it want the arguments of calls as JSON text, as DeepSeek's do? See [`ChatTemplate::wants_text`].
    text_arguments: bool,
    /// Does it know calls only as messages whose `metadata` is the name of the tool, and results only as those of an `observation`, as GLM 4's?
    observes: bool,
    /// Does it look for reasoning under `thinking`, as that of gpt-oss does, which refuses it beside text and calls?
    reads_thinking: bool,
}

/// The error that a template raises itself: its words are for the client.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Takes `source`, and `tool_source` for requests with tools. The error says what is wrong with them.
    pub(super) fn new(source: String, tool_source: Option<String>, special_tokens: Vec<(String, String)>) -> Result<Self, String> {
        let sandbox = sandbox()?;
        let source = plain(&source);
        let tool_source = tool_source.map(|source| plain(&source));
        [Some(&source), tool_source.as_ref()].into_iter().flatten().try_for_each(|source| sandbox.check(source))?;
        let shown = tool_source.as_ref().unwrap_or(&source);
        let knows_tools = shown.contains("tools");
        let nine_letter_ids = shown.contains("[TOOL_CALLS]") && shown.contains('9');
        let reads_thinking = shown.contains(".thinking");
        let observes = shown.contains("observation") && shown.contains("metadata") && !shown.contains("tool_calls");
        let text_arguments = false;
        let mut template =
            Self { sandbox, source, tool_source, special_tokens, knows_tools, nine_letter_ids, text_arguments, observes, reads_thinking };
        template.knows_tools = template.knows_tools && template.shows_tools();
        template.text_arguments = template.wants_text();
        Ok(template)
    }

    /// Can it tell the model of tools?
    pub(super) fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// Does the template that serves requests with tools write them into the prompt? One that cannot render the question is believed.
    fn shows_tools(&self) -> bool {
        const NAME: &str = "get_the_weather_of_a_city";
        let tool = Tool { name: NAME.into(), ..probe() };
        let chat = Chat { messages: vec![Message::text(Role::User, "?")], tools: vec![tool], ..Chat::default() };
        self.render_with(&chat, false).map_or(true, |text| text.contains(NAME))
    }

    /// Does the template need the arguments of a call as JSON text? Most take an object, which they write as JSON or field by field; some
    /// join text with text, or print what they get, which of an object would be Python's `repr`. A call is shown to it both ways, and what
    /// it makes of them tells; one that takes both gets the object.
    fn wants_text(&self) -> bool {
        const ARGUMENTS: &str = r#"{"zz_key": "zz_value"}"#;
        let call = ToolCall { id: "abcdefghi".into(), name: "f".into(), arguments: ARGUMENTS.into() };
        let result = Message { tool_call_id: Some(call.id.clone()), ..Message::text(Role::Tool, "1") };
        let messages =
            vec![Message::text(Role::User, "?"), Message { tool_calls: vec![call], ..Message::text(Role::Assistant, "") }, result];
        let chat = Chat { messages, tools: vec![probe()], ..Chat::default() };
        let shown = |as_text| self.render_with(&chat, as_text).unwrap_or_default();
        let object = shown(false);
        let takes_object = object.contains("zz_key") && object.contains("zz_value") && !object.contains("{'zz_key': 'zz_value'}");
        self.knows_tools && !takes_object && shown(true).contains(ARGUMENTS)
    }

    /// The text of a conversation, up to where the model's answer begins: behind the text of the last turn, where the answer continues that.
    pub(super) fn render(&self, chat: &Chat) -> Result<String, RequestError> {
        if chat.continues {
            continued::render(chat, |chat| self.render_with(chat, self.text_arguments))
        } else {
            self.render_with(chat, self.text_arguments)
        }
    }

    fn render_with(&self, chat: &Chat, text_arguments: bool) -> Result<String, RequestError> {
        if !chat.tools.is_empty() && !self.knows_tools {
            // CX-78: dropping the tools in silence would answer another question.
            let message = "this model's chat template knows no tools; send the request without them or choose another model";
            return Err(RequestError::WrongModality { message: message.into(), param: Some("tools".to_owned()) });
        }
        let mut variables = serde_json::Map::new();
        for (name, token) in &self.special_tokens {
            variables.insert(name.clone(), json!(token));
        }
        variables.insert("add_generation_prompt".into(), json!(true));
        for (name, text) in &chat.template_kwargs {
            let value = serde_json::from_str(text);
            let value = value.map_err(|error| RequestError::invalid("chat_template_kwargs", format!("{name} is not JSON: {error}")))?;
            variables.insert(name.clone(), value);
        }
        if chat.continues {
            variables.insert("add_generation_prompt".into(), json!(false));
        }
        variables.insert("messages".into(), chat.messages.iter().flat_map(|turn| self.messages(turn, text_arguments)).collect());
        let tools = chat.tools.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        variables.insert("tools".into(), if tools.is_empty() { json!(null) } else { json!(tools) });

        let source = self.tool_source.as_ref().filter(|_| !chat.tools.is_empty()).unwrap_or(&self.source);
        let rendered = self.sandbox.render(source, Value::from(Serde(variables)));
        rendered.map_err(|error| RequestError::invalid("messages", explain(&error)))
    }

    /// The messages that a template gets for one: more only where calls are messages of their own.
    fn messages(&self, message: &Message, text_arguments: bool) -> Vec<serde_json::Value> {
        if !self.observes {
            return vec![self.message(message, text_arguments)];
        }
        if message.role == Role::Tool {
            return vec![json!({"role": "observation", "content": message.content})];
        }
        let says = message.tool_calls.is_empty() || !message.content.is_empty();
        let said = says.then(|| json!({"role": message.role.as_str(), "content": message.content}));
        let calls = message.tool_calls.iter();
        let calls = calls.map(|call| json!({"role": message.role.as_str(), "metadata": call.name, "content": call.arguments}));
        said.into_iter().chain(calls).collect()
    }

    /// A message as templates expect it: content is always text, arguments of tool calls are objects unless the template wants text.
    fn message(&self, message: &Message, text_arguments: bool) -> serde_json::Value {
        let call_id = |id: &str| if self.nine_letter_ids { nine_letters(id) } else { id.to_owned() };
        let mut out = serde_json::Map::new();
        out.insert("role".into(), json!(message.role.as_str()));
        out.insert("content".into(), json!(message.content));
        if let Some(reasoning) = &message.reasoning {
            out.insert("reasoning_content".into(), json!(reasoning));
            if self.reads_thinking && (message.tool_calls.is_empty() || message.content.is_empty()) {
                out.insert("thinking".into(), json!(reasoning));
            }
        }
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| {
                // Arguments that are not JSON are what a model once wrote: it may see them again as they were.
                let arguments = match call.arguments.trim() {
                    "" if text_arguments => json!("{}"),
                    "" => json!({}),
                    _ if text_arguments => json!(call.arguments),
                    text => serde_json::from_str(text).unwrap_or_else(|_| json!(call.arguments)),
                };
                json!({"id": call_id(&call.id), "type": "function", "function": {"name": call.name, "arguments": arguments}})
            });
            out.insert("tool_calls".into(), calls.collect());
        }
        if let Some(id) = &message.tool_call_id {
            out.insert("tool_call_id".into(), json!(call_id(id)));
        }
        if let Some(name) = &message.name {
            out.insert("name".into(), json!(name));
        }
        out.into()
    }
}

/// A sandbox with what Hugging Face's library adds to Jinja.
pub(super) fn sandbox() -> Result<Sandbox, String> {
    let mut sandbox = Sandbox::new()?;
    let environment = sandbox.environment();
    environment.set_formatter(python::format);
    environment.add_function("raise_exception", |message: String| {
        let message: String = message.chars().take(MAX_RAISED).collect();
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        charge(8 * format.len() as u64)?; // `%B` gives up to nine letters
        python::strftime(&format, python::now())
    });
    environment.add_filter("tojson", |value: Value, args: Rest<ValueOrKwargs>| python::to_json(&value, &args.into_values()));
    Ok(sandbox)
}

/// A tool to show to a template.
fn probe() -> Tool {
    Tool { name: "f".into(), description: Some("d".into()), parameters: Some(r#"{"type": "object", "properties": {}}"#.into()) }
}

fn explain(error: &Error) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return message.clone();
        }
        source = cause.source();
    }
    format!("the model's chat template cannot render these messages: {error:#}")
}

/// A tool in the shape of OpenAI's interface, which templates expect.
fn tool(tool: &Tool) -> Result<serde_json::Value, RequestError> {
    let mut function = serde_json::Map::new();
    function.insert("name".into(), json!(tool.name));
    if let Some(description) = &tool.description {
        function.insert("description".into(), json!(description));
    }
    if let Some(parameters) = &tool.parameters {
        let parameters: serde_json::Value = serde_json::from_str(parameters)
            .map_err(|error| RequestError::invalid("tools", format!("the parameters of {} are not JSON: {error}", tool.name)))?;
        function.insert("parameters".into(), parameters);
    }
    Ok(json!({"type": "function", "function": function}))
}

/// A template as Hugging Face's library reads it: lines end in `\n`, and `{% generation %}`, which marks what a trainer learns from, is a
/// scope like `{% with %}` and no more.
fn plain(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some((start, len)) = rest.find("{%").and_then(|start| Some((start, rest[start..].find("%}")? + 2))) {
        let (before, rest_of_it) = rest.split_at(start);
        let (tag, after) = rest_of_it.split_at(len);
        let name = tag[2..tag.len() - 2].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(before);
        match name {
            "generation" | "endgeneration" => out.push_str(&tag.replace("generation", "with")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plexus_types::{Role, ToolCall};

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source.into(), None, vec![("bos_token".into(), "<s>".into())]).unwrap()
    }

    fn chat(text: &str) -> Chat {
        Chat { messages: vec![Message::text(Role::User, text)], ..Chat::default() }
    }

    fn weather() -> Tool {
        let parameters = r#"{"type":"object","properties":{"city":{"type":"string","enum":["é","<b>"]}}}"#;
        Tool { name: "get_weather".into(), description: Some("Weather".into()), parameters: Some(parameters.into()) }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let template = template("{{ tools | tojson }}|{{ messages[0].content | tojson }}");
        let chat = Chat { tools: vec![weather()], ..chat("<a> & 'b' é \"c\"") };
        assert_eq!(
            template.render(&chat).unwrap(),
            r#"[{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["é", "<b>"]}}}}}]|"<a> & 'b' é \"c\"""#
        );
    }

    #[test]
    fn blocks_leave_no_white_space_and_python_methods_work() {
        let template = template(
            "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ bos_token }}{{ m.content.strip().upper() }}\n    {% endif %}\n{% endfor %}\n",
        );
        assert_eq!(template.render(&chat(" hi ")).unwrap(), "<s>HI\n");
    }

    #[test]
    fn values_print_as_in_python() {
        let template = template("{{ true }} {{ none }} {{ {'a': [1, 'x', false]} }} {{ 1.0 }}");
        assert_eq!(template.render(&chat("")).unwrap(), "True None {'a': [1, 'x', False]} 1.0");
    }

    #[test]
    fn what_a_template_raises_reaches_the_client_in_its_own_words() {
        let template = template("{{ raise_exception('roles must alternate') }}");
        assert_eq!(template.render(&chat("hi")), Err(RequestError::invalid("messages", "roles must alternate")));
        let long = self::template("{% set n = 1000000 %}{{ raise_exception('x' * n) }}").render(&chat("hi"));
        assert_eq!(long, Err(RequestError::invalid("messages", "x".repeat(MAX_RAISED))));
    }

    #[test]
    fn tools_for_a_template_without_them_are_refused() {
        // CX-78
        let template = template("{{ messages[0].content }}");
        let chat = Chat { tools: vec![weather()], ..chat("hi") };
        assert!(matches!(template.render(&chat), Err(RequestError::WrongModality { .. })));
    }

    #[test]
    fn a_template_that_speaks_of_tools_but_does_not_show_them_knows_none() {
        // CX-78
        let template = template("{% if builtin_tools %}{{ builtin_tools }}{% endif %}{{ messages[0].content }}");
        let chat = Chat { tools: vec![weather()], ..chat("hi") };
        assert!(matches!(template.render(&chat), Err(RequestError::WrongModality { .. })));
    }

    #[test]
    fn arguments_of_earlier_calls_are_objects_and_keep_their_order() {
        let template = template("{% for c in messages[0].tool_calls %}{{ c.id }} {{ c.function.arguments | tojson }}{% endfor %}");
        let call = ToolCall { id: "c1".into(), name: "f".into(), arguments: r#"{"z":1,"a":{"k":[true,null]}}"#.into() };
        let mut turn = Message::text(Role::Assistant, "");
        turn.tool_calls.push(call);
        let chat = Chat { messages: vec![turn], ..Chat::default() };
        assert_eq!(template.render(&chat).unwrap(), r#"c1 {"z": 1, "a": {"k": [true, null]}}"#);
    }

    #[test]
    fn a_template_that_joins_arguments_with_text_gets_them_as_text() {
        let source =
            "{{ tools }}{% for m in messages %}{% for c in m.tool_calls %}{{ '<' + c.function.arguments + '>' }}{% endfor %}{% endfor %}";
        let mut turn = Message::text(Role::Assistant, "");
        turn.tool_calls = ["{\"z\":1}", ""].map(|json| ToolCall { id: "c".into(), name: "f".into(), arguments: json.into() }).into();
        let chat = Chat { messages: vec![turn], ..Chat::default() };
        let text = template(source).render(&chat).unwrap();
        assert!(text.ends_with("<{\"z\":1}><{}>"), "{text}");
    }

    #[test]
    fn a_template_that_takes_arguments_both_ways_or_writes_its_own_form_gets_objects() {
        let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{\"z\":1}".into() };
        let turn = Message { tool_calls: vec![call], ..Message::text(Role::Assistant, "") };
        let chat = Chat { messages: vec![turn], ..Chat::default() };
        for (write, text) in [
            (
                "{% if a is mapping %}{% for k, v in a | items %}{{ k }}:<{{ v }}>{% endfor %}{% elif a is string %}{{ a }}{% endif %}",
                "z:<1>",
            ),
            ("{{ a if a is string else a | tojson(separators=(',', ':')) }}", "{\"z\":1}"),
            ("{% for k in a %}{{ k }}={{ a[k] }}{% endfor %}", "z=1"),
            ("{{ a }}", "{\"z\":1}"), // printed as it comes: only text is right
        ] {
            let source = format!(
                "{{% for m in messages %}}{{% for c in m.tool_calls %}}{{% set a = c.function.arguments %}}{write}{{% endfor %}}{{% endfor %}}\
                 {{{{ tools or '' }}}}"
            );
            assert_eq!(template(&source).render(&chat).unwrap(), text, "{source}");
        }
    }

    #[test]
    fn ids_of_calls_have_nine_letters_where_the_template_wants_them() {
        let source =
            "{# 9 #}[TOOL_CALLS]{% for m in messages %}{% for c in m.tool_calls %}{{ c.id }}{% endfor %} {{ m.tool_call_id }}{% endfor %}";
        let mut turn = Message::text(Role::Assistant, "");
        turn.tool_calls.push(ToolCall { id: "call_1".into(), name: "f".into(), arguments: "{}".into() });
        let result = Message { tool_call_id: Some("call_1".into()), ..Message::text(Role::Tool, "1") };
        let text = template(source).render(&Chat { messages: vec![turn, result], ..Chat::default() }).unwrap();
        let ids: Vec<&str> = text.trim_start_matches("[TOOL_CALLS]").split_whitespace().collect();
        assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0].len() == 9, "{text}");
    }

    #[test]
    fn earlier_reasoning_is_under_the_name_that_the_template_reads() {
        let turn = Message { reasoning: Some("why".into()), ..Message::text(Role::Assistant, "so") };
        let chat = Chat { messages: vec![turn], ..Chat::default() };
        assert_eq!(template("{{ messages[0].reasoning_content }}").render(&chat).unwrap(), "why");
        assert_eq!(template("{{ messages[0].thinking }}").render(&chat).unwrap(), "why");
    }

    #[test]
    fn a_template_that_knows_observations_gets_calls_and_results_as_messages() {
        let source =
            "{{ tools }}{% for m in messages %}<|{{ m.role }}|>{{ m.get('metadata', '') }}\n{{ m.content }}{% endfor %}{# observation #}";
        let mut turn = Message::text(Role::Assistant, "");
        turn.tool_calls.push(ToolCall { id: "c".into(), name: "f".into(), arguments: "{\"z\": 1}".into() });
        let result = Message { tool_call_id: Some("c".into()), ..Message::text(Role::Tool, "7") };
        let text = template(source).render(&Chat { messages: vec![turn, result], ..Chat::default() }).unwrap();
        assert_eq!(text, "None<|assistant|>f\n{\"z\": 1}<|observation|>\n7");
    }

    #[test]
    fn further_variables_reach_the_template_but_cannot_replace_the_messages() {
        let template = template("{{ enable_thinking }} {{ messages | length }}");
        let template_kwargs = BTreeMap::from([("enable_thinking".into(), "false".into()), ("messages".into(), "[]".into())]);
        assert_eq!(template.render(&Chat { template_kwargs, ..chat("hi") }).unwrap(), "False 1");
        let template_kwargs = BTreeMap::from([("x".into(), "{".into())]);
        assert!(matches!(template.render(&Chat { template_kwargs, ..chat("hi") }), Err(RequestError::Invalid { .. })));
    }

    #[test]
    fn endless_templates_are_stopped() {
        let slow = template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
        assert!(slow.render(&chat("hi")).is_err());
        let long = template("{% for a in range(9999) %}{{ 'x' * a }}{{ 'x' * a }}{% endfor %}");
        assert!(long.render(&chat("hi")).is_err());
    }

    #[test]
    fn generation_tags_are_scopes_and_no_more() {
        let template = template("{# {% generation %} #}{% set q = 1 %}a {%- generation -%} b{% set q = 2 %} {% endgeneration %}c{{ q }}");
        assert_eq!(template.render(&chat("hi")).unwrap(), "ab c1");
    }

    #[test]
    fn lines_that_end_as_on_windows_are_lines() {
        assert_eq!(template("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n").render(&chat("hi")).unwrap(), "a\nb\n");
    }
}
