//! Tools and whether they are to be called, in Anthropic's words.

use plexus_types::{RequestError, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::params;

#[derive(Debug, Deserialize)]
pub(super) struct WireTool {
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

/// Tools with a schema are the client's own; all others (`web_search_20250305`...) run on the vendor's servers and are ignored.
pub(super) fn tools(tools: Vec<WireTool>) -> Result<Vec<Tool>, RequestError> {
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
