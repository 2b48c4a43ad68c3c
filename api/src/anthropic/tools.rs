//! Tools and whether they are to be called, in Anthropic's words.

use plexus_types::{RequestError, Tool, ToolChoice};
use serde::Deserialize;
use serde_json::Value;

use crate::params::{self, short};
use crate::wire::Object;

#[derive(Debug, Deserialize)]
pub(super) struct WireTool {
    /// What runs it, where that is not the client.
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    /// OpenAI's shape, which some clients send here, too.
    function: Option<Object<WireFunction>>,
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
pub(super) fn choose(choice: Option<Object<WireToolChoice>>, tools: &mut Vec<Tool>) -> Result<(ToolChoice, bool), RequestError> {
    let Some(Object(choice)) = choice else { return Ok((ToolChoice::Auto, false)) };
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

/// How the tools begin that find other tools. Here the model sees all of them, found or not.
const TOOL_SEARCH: &str = "tool_search_tool";

/// Tools with a schema are the client's own.
///
/// Errors: a tool of the vendor's own. Some run on its servers (`web_search_20250305`...); of others (`bash_20250124`...) only its models know
/// the arguments. Without them the answer would be another.
pub(super) fn tools(tools: Vec<Object<WireTool>>) -> Result<Vec<Tool>, RequestError> {
    params::at_most("tools", tools.len(), params::TOOLS_MAX)?;
    let searches = |tool: &WireTool| tool.kind.as_deref().is_some_and(|kind| kind.starts_with(TOOL_SEARCH));
    let tools = tools.into_iter().enumerate().filter(|(_, Object(tool))| !searches(tool));
    tools.map(|(index, Object(tool))| own(&format!("tools[{index}]"), tool)).collect()
}

fn own(at: &str, tool: WireTool) -> Result<Tool, RequestError> {
    let vendors = tool.kind.as_deref().filter(|kind| !matches!(*kind, "custom" | "function"));
    if let (Some(kind), None, None) = (vendors, &tool.function, &tool.input_schema) {
        let remedy = "\"custom\": the tools of the vendor are known to its own models and servers alone; leave it out, \
                      or describe it by an input_schema";
        return Err(params::out_of_range(&format!("{at}.type"), short(&Value::from(kind)), remedy));
    }
    let is_openai = tool.function.is_some();
    let function = match tool.function {
        Some(Object(function)) => function,
        None => WireFunction { name: tool.name, description: tool.description, parameters: tool.input_schema },
    };
    let missing = |what: &str, remedy: &str| {
        let param = format!("{at}.{what}");
        Err(RequestError::invalid(&param, format!("{param} is missing; {remedy}")))
    };
    let name = match function.name {
        Some(name) if !name.is_empty() => name,
        _ => return missing("name", "name the tool"),
    };
    let parameters = match function.parameters.filter(|schema| !schema.is_null()) {
        Some(schema) => Some(params::schema(&format!("{at}.input_schema"), schema)?),
        None if is_openai => None,
        None => return missing("input_schema", "give the JSON Schema of its input, such as {\"type\": \"object\"}"),
    };
    Ok(Tool { name, description: function.description, parameters })
}
