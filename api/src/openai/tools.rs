//! Tools and whether they are to be called, in OpenAI's words old and new.

use plexus_types::{RequestError, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::params::{self, short};
use crate::wire::Object;

#[derive(Debug, Deserialize)]
pub(super) struct WireTool {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<Object<WireFunction>>,
    // The flat shape of the vendor's other endpoint: the function's fields stand in the tool itself.
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireFunction {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

/// The functions that the model may call, in their newer place and in the older one.
///
/// Errors: a tool of another type (`web_search`, `custom`...), which only the vendor's own servers run: without it the answer would be another.
pub(super) fn tools(tools: Vec<Object<WireTool>>, functions: Vec<Object<WireFunction>>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len() + functions.len(), params::TOOLS_MAX)?;
    let newer = tools.into_iter().enumerate().map(|(index, Object(tool))| {
        let at = format!("tools[{index}]");
        match (tool.kind.as_deref(), tool.function) {
            (None | Some("function"), Some(Object(own))) => function(&format!("{at}.function"), own),
            (None | Some("function"), None) if tool.name.is_some() => {
                function(&at, WireFunction { name: tool.name, description: tool.description, parameters: tool.parameters })
            }
            (None | Some("function"), None) => {
                let message =
                    format!("{at}.function is missing; describe it, such as {{\"name\": \"f\", \"parameters\": {{\"type\": \"object\"}}}}");
                Err(RequestError::invalid(&format!("{at}.function"), message))
            }
            (Some(kind), _) => {
                let remedy = "\"function\": this server runs no tools itself; leave the tool out, or offer it as a function";
                Err(params::out_of_range(&format!("{at}.type"), short(&Value::from(kind)), remedy))
            }
        }
    });
    let older = functions.into_iter().enumerate().map(|(index, Object(own))| function(&format!("functions[{index}]"), own));
    newer.chain(older).collect()
}

/// One function, described at `at`.
fn function(at: &str, function: WireFunction) -> Result<Tool, RequestError> {
    let name = function.name.filter(|name| !name.is_empty());
    let missing = || RequestError::invalid(&format!("{at}.name"), format!("{at}.name is missing; name the function"));
    let parameters = function.parameters.filter(|schema| !schema.is_null());
    Ok(Tool {
        name: name.ok_or_else(missing)?,
        description: function.description,
        parameters: parameters.map(|schema| params::schema(&format!("{at}.parameters"), schema)).transpose()?,
    })
}

/// Reads `tool_choice`, or the older `function_call`, as `param`. A choice of allowed tools takes the others away; `none` takes all away,
/// since a model that sees a tool may call it.
pub(super) fn choose(param: &str, choice: Option<&Value>, tools: &mut Vec<Tool>) -> Result<ToolChoice, RequestError> {
    let Some(value) = choice else { return Ok(ToolChoice::Auto) };
    let wrong = || {
        let remedy = "\"auto\", \"none\", \"required\", or {\"type\": \"function\", \"function\": {\"name\": ...}}";
        params::out_of_range(param, short(value), remedy)
    };
    match value {
        Value::Null => Ok(ToolChoice::Auto),
        Value::String(word) => by_word(word, tools).ok_or_else(wrong),
        Value::Object(fields) => {
            if let Some(allowed) = fields.get("allowed_tools") {
                let listed = allowed.get("tools").and_then(Value::as_array).ok_or_else(wrong)?;
                tools.retain(|tool| listed.iter().any(|one| name_of(one) == Some(&tool.name)));
                let mode = allowed.get("mode").and_then(Value::as_str).unwrap_or("auto");
                return by_word(mode, tools).ok_or_else(wrong);
            }
            match (name_of(value), fields.get("type").and_then(Value::as_str)) {
                (Some(name), _) => Ok(ToolChoice::Named(name.to_owned())),
                (None, Some(word)) => by_word(word, tools).ok_or_else(wrong),
                (None, None) => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

fn by_word(word: &str, tools: &mut Vec<Tool>) -> Option<ToolChoice> {
    match word {
        "auto" => Some(ToolChoice::Auto),
        "none" => {
            tools.clear();
            Some(ToolChoice::None)
        }
        "required" | "any" => Some(ToolChoice::Required),
        _ => None,
    }
}

/// The name in `{"type":"function","function":{"name"}}`, or in the flat shape.
fn name_of(value: &Value) -> Option<&str> {
    value.pointer("/function/name").or_else(|| value.get("name")).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(json: &str) -> Result<(ToolChoice, Vec<String>), String> {
        let tool = |name: &str| Tool { name: name.to_owned(), description: None, parameters: None };
        let mut tools = vec![tool("f"), tool("g")];
        let value: Value = json.parse().unwrap();
        let choice = choose("tool_choice", Some(&value), &mut tools).map_err(|error| error.to_string())?;
        Ok((choice, tools.into_iter().map(|tool| tool.name).collect()))
    }

    #[test]
    fn every_spelling_of_a_choice_is_read() {
        let both = || vec!["f".to_owned(), "g".to_owned()];
        for (json, expected) in [
            ("null", (ToolChoice::Auto, both())),
            (r#""auto""#, (ToolChoice::Auto, both())),
            (r#""none""#, (ToolChoice::None, vec![])),
            (r#""required""#, (ToolChoice::Required, both())),
            (r#"{"type":"function","function":{"name":"g"}}"#, (ToolChoice::Named("g".to_owned()), both())),
            (r#"{"type":"function","name":"g"}"#, (ToolChoice::Named("g".to_owned()), both())),
            (r#"{"name":"g"}"#, (ToolChoice::Named("g".to_owned()), both())),
            (r#"{"type":"auto"}"#, (ToolChoice::Auto, both())),
            (
                r#"{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}}"#,
                (ToolChoice::Required, vec!["g".to_owned()]),
            ),
        ] {
            assert_eq!(chosen(json), Ok(expected), "{json}");
        }
    }

    fn read(tool: &str) -> Result<Vec<Tool>, String> {
        tools(vec![serde_json::from_str(tool).unwrap()], Vec::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_described_by_an_object_or_not_at_all() {
        let parameters = |parameters: &str| -> Result<Option<String>, String> {
            let tools = read(&format!(r#"{{"function":{{"name":"f","parameters":{parameters}}}}}"#))?;
            Ok(tools[0].parameters.clone())
        };
        assert_eq!((parameters("null"), parameters("{}")), (Ok(None), Ok(Some("{}".to_owned()))));
        let refusal = "tools[0].function.parameters is \"no\"; it must be a JSON Schema: an object, or its JSON text";
        assert_eq!(parameters("\"no\""), Err(refusal.to_owned()));
    }

    #[test]
    fn a_function_is_read_in_either_shape() {
        let expected = Tool { name: "f".to_owned(), description: Some("d".to_owned()), parameters: Some("{}".to_owned()) };
        for tool in [
            r#"{"type":"function","function":{"name":"f","description":"d","parameters":{}}}"#,
            r#"{"type":"function","name":"f","description":"d","parameters":{},"strict":true}"#,
            r#"{"name":"f","description":"d","parameters":{}}"#,
        ] {
            assert_eq!(read(tool), Ok(vec![expected.clone()]), "{tool}");
        }
    }

    #[test]
    fn a_tool_that_cannot_be_offered_to_the_model_is_refused_by_its_place() {
        for (tool, expected) in [
            ("{}", "tools[0].function is missing; describe it"),
            (r#"{"type":"function"}"#, "tools[0].function is missing; describe it"),
            (r#"{"type":"function","function":{}}"#, "tools[0].function.name is missing; name the function"),
            (r#"{"type":"function","name":""}"#, "tools[0].name is missing; name the function"),
            (r#"{"type":"web_search"}"#, "tools[0].type is \"web_search\"; it must be \"function\": this server runs no tools itself"),
            (r#"{"type":"custom","custom":{"name":"patch"}}"#, "tools[0].type is \"custom\"; it must be \"function\""),
            (r#"{"type":"namespace","name":"n","tools":[]}"#, "tools[0].type is \"namespace\"; it must be \"function\""),
        ] {
            let refusal = read(tool).unwrap_err();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
    }

    #[test]
    fn any_other_choice_is_refused_with_the_words_that_exist() {
        for json in [r#""always""#, "7", "{}", r#"{"type":"allowed_tools","allowed_tools":{}}"#] {
            let refusal = chosen(json).unwrap_err();
            assert!(refusal.starts_with("tool_choice is ") && refusal.contains("\"required\""), "{refusal}");
        }
    }
}
