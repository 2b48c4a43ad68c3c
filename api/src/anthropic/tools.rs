//! Tools and whether they are to be called, in Anthropic's words.

use plexus_types::{RequestError, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::params;

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object that describes a tool")]
pub(super) struct WireTool {
    /// What runs it, where that is not the client.
    #[serde(rename = "type")]
    kind: Option<String>,
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
#[serde(expecting = "an object such as {\"type\": \"auto\"}")]
pub(super) struct WireToolChoice {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// Whether a tool is to be called, and whether at most one. `none` takes the tools away, since a model that sees a tool may call it.
pub(super) fn choose(choice: Option<WireToolChoice>, tools: &mut Vec<Tool>) -> Result<(ToolChoice, bool), RequestError> {
    let Some(choice) = choice else { return Ok((ToolChoice::Auto, false)) };
    let chosen = match choice.kind.as_deref() {
        None | Some("auto") => ToolChoice::Auto,
        Some("any") => ToolChoice::Required,
        Some("tool") => match choice.name {
            Some(name) => ToolChoice::Named(name),
            None => {
                return Err(RequestError::invalid("tool_choice.name", "tool_choice.name is missing; name the tool that is to be called"));
            }
        },
        Some("none") => {
            tools.clear();
            ToolChoice::None
        }
        Some(kind) => {
            let kind: String = kind.chars().take(80).collect();
            let remedy = "one of \"auto\", \"any\", \"tool\", \"none\"";
            return Err(params::out_of_range("tool_choice.type", format!("{kind:?}"), remedy));
        }
    };
    Ok((chosen, choice.disable_parallel_tool_use.unwrap_or(false)))
}

/// Tools with a schema are the client's own; those of another type (`web_search_20250305`...) run on the vendor's servers and are ignored.
pub(super) fn tools(tools: Vec<WireTool>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len(), params::TOOLS_MAX)?;
    let own = tools.into_iter().enumerate().filter_map(|(index, tool)| match (tool.function, tool.input_schema) {
        (Some(function), _) => Some((index, true, function)),
        (None, None) if tool.kind.as_deref().is_some_and(|kind| kind != "custom") => None,
        (None, parameters) => Some((index, false, WireFunction { name: tool.name, description: tool.description, parameters })),
    });
    own.map(|(index, is_openai, function)| {
        let missing = |what: &str| Err(RequestError::invalid("tools", format!("tools[{index}].{what}")));
        let name = match function.name {
            Some(name) if !name.is_empty() => name,
            _ => return missing("name is missing; name the tool"),
        };
        let parameters = match function.parameters.filter(|schema| !schema.is_null()) {
            Some(schema) => Some(params::schema(&format!("tools[{index}].input_schema"), schema)?),
            None if is_openai => None,
            None => return missing("input_schema is missing; give the JSON Schema of its input, such as {\"type\": \"object\"}"),
        };
        Ok(Tool { name, description: function.description, parameters })
    })
    .collect()
}
