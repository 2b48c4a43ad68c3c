//! What the answer must look like, in the spellings of OpenAI (`response_format`) and of vLLM (`guided_json`..., `structured_outputs`).
//!
//! Grammars are texts of the Lark dialect of `llguidance`. A schema, expression or grammar that cannot be compiled is refused by the engine,
//! before any work is done.

use std::collections::BTreeMap;

use plexus_types::{Constraint, RequestError};
use serde::Deserialize;
use serde_json::Value;

use crate::params::{self, short};
use crate::wire::Object;

/// Most alternatives of a choice.
const ALTERNATIVES_MAX: usize = 1024;

/// The fields that constrain an answer. Read from the same bytes as the rest of the body.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ConstraintFields {
    response_format: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    structured_outputs: Option<Object<StructuredOutputs>>,
}

#[derive(Debug, Default, Deserialize)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
    /// What nobody here knows.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl ConstraintFields {
    /// The one constraint that the fields ask for, with the field's name; two would contradict each other.
    pub(crate) fn check(self) -> Result<Found, RequestError> {
        let Object(outputs) = self.structured_outputs.unwrap_or_default();
        // `false` and null are how clients that send every field leave one out.
        let other = outputs.others.iter().find(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)));
        if let Some((name, value)) = other {
            let name: String = name.chars().take(80).collect();
            let param = format!("structured_outputs.{name}");
            let remedy = "leave it out, or use one of \"json\", \"regex\", \"choice\", \"grammar\", \"json_object\"";
            return Err(params::unsupported(&param, short(value), remedy));
        }
        let found = [
            named("response_format", self.response_format, response_format)?,
            named("guided_json", self.guided_json, schema)?,
            named("guided_regex", self.guided_regex, regex)?,
            named("guided_choice", self.guided_choice, choice)?,
            named("guided_grammar", self.guided_grammar, grammar)?,
            named("structured_outputs.json", outputs.json, schema)?,
            named("structured_outputs.regex", outputs.regex, regex)?,
            named("structured_outputs.choice", outputs.choice, choice)?,
            named("structured_outputs.grammar", outputs.grammar, grammar)?,
            named("structured_outputs.json_object", outputs.json_object, |_, on| Ok(on.then_some(Constraint::JsonObject)))?,
        ];
        let mut found = found.into_iter().flatten();
        match (found.next(), found.next()) {
            (Some((one, _)), Some((other, _))) => {
                let message = format!("{one} and {other} are both given; send one of them");
                Err(RequestError::invalid(other, message))
            }
            (first, _) => Ok(first),
        }
    }
}

/// The field that constrains the answer, and how.
type Found = Option<(&'static str, Constraint)>;

/// An error about a constraint, with the name of the field that it came in.
pub(crate) fn rename(error: RequestError, field: &str) -> RequestError {
    match error {
        RequestError::Invalid { message, param: Some(param) } if param == Constraint::FIELD => {
            let message = message.strip_prefix(Constraint::FIELD).map_or_else(|| message.clone(), |rest| format!("{field}{rest}"));
            RequestError::invalid(field, message)
        }
        other => other,
    }
}

fn named<T>(
    param: &'static str,
    value: Option<T>,
    read: impl FnOnce(&str, T) -> Result<Option<Constraint>, RequestError>,
) -> Result<Found, RequestError> {
    let constraint = value.map(|value| read(param, value)).transpose()?.flatten();
    Ok(constraint.map(|constraint| (param, constraint)))
}

/// OpenAI's formats. `json_object` takes a schema of its own where a client sends one, as some servers read it.
pub(crate) fn response_format(param: &str, format: Value) -> Result<Option<Constraint>, RequestError> {
    match format.get("type").and_then(Value::as_str) {
        _ if format.is_null() => Ok(None),
        Some("text") => Ok(None),
        Some("json_object") => match format.get("schema") {
            None | Some(Value::Null) => Ok(Some(Constraint::JsonObject)),
            Some(own) => schema(&format!("{param}.schema"), own.clone()),
        },
        // The envelope of the chat endpoint, or the schema itself as other endpoints have it.
        Some("json_schema") => {
            let place = if param == "response_format" { "json_schema.schema" } else { "schema" };
            match format.pointer("/json_schema/schema").or_else(|| format.get("schema")) {
                Some(own) => schema(&format!("{param}.{place}"), own.clone()),
                None => {
                    let message = format!("{param}.{place} is missing; give the JSON Schema that the answer must follow");
                    Err(RequestError::invalid(param, message))
                }
            }
        }
        kind => {
            let kind = kind.map_or_else(|| short(&format), |kind| short(&Value::from(kind)));
            Err(params::out_of_range(&format!("{param}.type"), kind, "one of \"text\", \"json_object\", \"json_schema\""))
        }
    }
}

/// A JSON Schema, as JSON or as JSON text.
fn schema(param: &str, schema: Value) -> Result<Option<Constraint>, RequestError> {
    params::schema(param, schema).map(|text| Some(Constraint::JsonSchema(text)))
}

fn regex(param: &str, regex: String) -> Result<Option<Constraint>, RequestError> {
    not_empty(param, &regex)?;
    Ok(Some(Constraint::Regex(regex)))
}

fn grammar(param: &str, grammar: String) -> Result<Option<Constraint>, RequestError> {
    not_empty(param, &grammar)?;
    Ok(Some(Constraint::Lark(grammar)))
}

fn not_empty(param: &str, text: &str) -> Result<(), RequestError> {
    if text.is_empty() { Err(params::out_of_range(param, "empty", "a text; leave it out for an answer of any form")) } else { Ok(()) }
}

/// One of some texts. A string of the Lark dialect is written as JSON writes it.
fn choice(param: &str, texts: Vec<String>) -> Result<Option<Constraint>, RequestError> {
    params::at_most(param, texts.len(), ALTERNATIVES_MAX)?;
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        return Err(params::out_of_range(param, "empty or has an empty text", "at least one text, none of them empty"));
    }
    let quoted: Vec<_> = texts.into_iter().map(|text| Value::from(text).to_string()).collect();
    Ok(Some(Constraint::Lark(format!("start: {}\n", quoted.join(" | ")))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<Constraint>, String> {
        let found = serde_json::from_str::<ConstraintFields>(json).unwrap().check().map_err(|error| error.to_string())?;
        Ok(found.map(|(_, constraint)| constraint))
    }

    #[test]
    fn every_spelling_of_a_constraint_is_read() {
        // CX-81
        let schema = || Constraint::JsonSchema(r#"{"type":"object"}"#.to_owned());
        for (json, expected) in [
            (r#"{"response_format":{"type":"json_object"}}"#, Constraint::JsonObject),
            (r#"{"response_format":{"type":"json_object","schema":{"type":"object"}}}"#, schema()),
            (r#"{"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}}}"#, schema()),
            (r#"{"response_format":{"type":"json_schema","name":"n","schema":{"type":"object"}}}"#, schema()),
            (r#"{"guided_json":{"type":"object"}}"#, schema()),
            (r#"{"guided_json":"{\"type\": \"object\"}"}"#, schema()),
            (r#"{"structured_outputs":{"json":{"type":"object"}}}"#, schema()),
            (r#"{"structured_outputs":{"json_object":true}}"#, Constraint::JsonObject),
            (r#"{"guided_regex":"[0-9]+"}"#, Constraint::Regex("[0-9]+".to_owned())),
            (r#"{"structured_outputs":{"regex":"a|b"}}"#, Constraint::Regex("a|b".to_owned())),
            (r#"{"guided_grammar":"start: \"a\""}"#, Constraint::Lark("start: \"a\"".to_owned())),
            (r#"{"guided_choice":["yes","\"no\"\n"]}"#, Constraint::Lark("start: \"yes\" | \"\\\"no\\\"\\n\"\n".to_owned())),
        ] {
            assert_eq!(read(json), Ok(Some(expected)), "{json}");
        }
    }

    #[test]
    fn an_error_about_a_constraint_names_the_field_that_it_came_in() {
        let fields: ConstraintFields = serde_json::from_str(r#"{"structured_outputs":{"regex":"("}}"#).unwrap();
        let (field, _) = fields.check().unwrap().unwrap();
        let refused = rename(RequestError::invalid(Constraint::FIELD, "constraint cannot be used: unclosed group"), field);
        let expected = RequestError::invalid("structured_outputs.regex", "structured_outputs.regex cannot be used: unclosed group");
        assert_eq!(refused, expected);
        let other = RequestError::invalid("messages", "constraint");
        assert_eq!(rename(other.clone(), field), other);
    }

    #[test]
    fn what_asks_for_plain_text_is_no_constraint() {
        for json in [
            "{}",
            r#"{"response_format":null}"#,
            r#"{"response_format":{"type":"text"}}"#,
            r#"{"structured_outputs":{"json_object":false}}"#,
            r#"{"structured_outputs":{"structural_tag":null,"disable_any_whitespace":false}}"#,
        ] {
            assert_eq!(read(json), Ok(None), "{json}");
        }
    }

    #[test]
    fn what_is_no_constraint_or_more_than_one_is_refused_by_name() {
        for (json, expected) in [
            (
                r#"{"response_format":{"type":"xml"}}"#,
                "response_format.type is \"xml\"; it must be one of \"text\", \"json_object\", \"json_schema\"",
            ),
            (
                r#"{"response_format":{"type":"json_schema","json_schema":{"name":"n"}}}"#,
                "response_format.json_schema.schema is missing; give the JSON Schema that the answer must follow",
            ),
            (r#"{"guided_json":"{"}"#, "guided_json is \"{\"; it must be a JSON Schema: an object, or its JSON text"),
            (r#"{"guided_json":[1]}"#, "guided_json is [1]; it must be a JSON Schema: an object, or its JSON text"),
            (r#"{"guided_regex":""}"#, "guided_regex is empty; it must be a text; leave it out for an answer of any form"),
            (r#"{"guided_choice":[]}"#, "guided_choice is empty or has an empty text; it must be at least one text, none of them empty"),
            (
                r#"{"structured_outputs":{"chioce":["a","b"]}}"#,
                "structured_outputs.chioce = [\"a\",\"b\"] is not supported by this server; leave it out, or use one of \"json\", \"regex\", \
                 \"choice\", \"grammar\", \"json_object\"",
            ),
            (
                r#"{"structured_outputs":{"structural_tag":"x","json":null}}"#,
                "structured_outputs.structural_tag = \"x\" is not supported by this server; leave it out, or use one of \"json\", \"regex\", \
                 \"choice\", \"grammar\", \"json_object\"",
            ),
            (
                r#"{"guided_regex":"a","response_format":{"type":"json_object"}}"#,
                "response_format and guided_regex are both given; send one of them",
            ),
        ] {
            assert_eq!(read(json), Err(expected.to_owned()));
        }
    }
}
