//! Tools and whether they are to be called, in OpenAI's words old and new.

use plexus_types::{RequestError, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::params::{self, short};

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object that describes a tool")]
pub(super) struct WireTool {
    function: Option<WireFunction>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireFunction {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

/// Functions are passed on; every other type (`web_search`, `custom`, `namespace`...) runs on the vendor's servers and is ignored.
pub(super) fn tools(tools: Vec<WireTool>, functions: Vec<WireFunction>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len() + functions.len(), params::TOOLS_MAX)?;
    let functions = tools.into_iter().filter_map(|tool| tool.function).chain(functions);
    functions
        .enumerate()
        .map(|(index, function)| match function.name {
            Some(name) if !name.is_empty() => Ok(Tool {
                name,
                description: function.description,
                parameters: match function.parameters.filter(|schema| !schema.is_null()) {
                    Some(schema) => Some(params::schema(&format!("tools[{index}].function.parameters"), schema)?),
                    None => None,
                },
            }),
            _ => Err(RequestError::invalid("tools", format!("tools[{index}].function.name is missing; name the function"))),
        })
        .collect()
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

    #[test]
    fn arguments_are_described_by_an_object_or_not_at_all() {
        let read = |parameters: &str| {
            let tool = serde_json::from_str(&format!(r#"{{"function":{{"name":"f","parameters":{parameters}}}}}"#)).unwrap();
            tools(vec![tool], Vec::new()).map(|mut tools| tools.remove(0).parameters).map_err(|error| error.to_string())
        };
        assert_eq!((read("null"), read("{}")), (Ok(None), Ok(Some("{}".to_owned()))));
        let refusal = "tools[0].function.parameters is \"no\"; it must be a JSON Schema: an object, or its JSON text";
        assert_eq!(read("\"no\""), Err(refusal.to_owned()));
    }

    #[test]
    fn any_other_choice_is_refused_with_the_words_that_exist() {
        for json in [r#""always""#, "7", "{}", r#"{"type":"allowed_tools","allowed_tools":{}}"#] {
            let refusal = chosen(json).unwrap_err();
            assert!(refusal.starts_with("tool_choice is ") && refusal.contains("\"required\""), "{refusal}");
        }
    }
}
