//! Which types of JSON a schema allows: what an argument between tags is to become.

use serde_json::Value;

/// Schemas that refer to each other are followed so far; some go round in circles.
const DEPTH_MAX: u32 = 8;

/// The types that a schema allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kinds {
    /// It does not say.
    Any,
    /// These, in the words of JSON Schema.
    Of(Vec<String>),
}

impl Kinds {
    /// Is every value a text?
    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Of(kinds) if kinds.iter().all(|kind| kind == "string"))
    }

    /// Does the schema say that a value may be a text?
    pub(super) fn names_text(&self) -> bool {
        matches!(self, Self::Of(kinds) if kinds.iter().any(|kind| kind == "string"))
    }

    fn allow(&self, value: &Value) -> bool {
        let Self::Of(kinds) = self else { return true };
        let kind = kind_of(value);
        kinds.iter().any(|allowed| allowed == kind || (allowed == "number" && kind == "integer"))
    }
}

/// The types that `schema` allows; `root` holds what it refers to.
pub(super) fn kinds(schema: &Value, root: &Value) -> Kinds {
    named(schema, root, DEPTH_MAX).map_or(Kinds::Any, Kinds::Of)
}

fn named(schema: &Value, root: &Value, depth: u32) -> Option<Vec<String>> {
    let depth = depth.checked_sub(1)?;
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    match schema.get("type") {
        Some(Value::String(kind)) => return Some(vec![kind.clone()]),
        Some(Value::Array(kinds)) => return kinds.iter().map(|kind| kind.as_str().map(str::to_owned)).collect(),
        _ => {}
    }
    if let Some(values) = list("enum") {
        return Some(values.iter().map(|value| kind_of(value).to_owned()).collect());
    }
    if let Some(value) = schema.get("const") {
        return Some(vec![kind_of(value).to_owned()]);
    }
    if let Some(place) = schema.get("$ref").and_then(Value::as_str) {
        return named(root.pointer(place.strip_prefix('#')?)?, root, depth);
    }
    if let Some(ways) = list("anyOf").or_else(|| list("oneOf")) {
        let ways: Option<Vec<_>> = ways.iter().map(|way| named(way, root, depth)).collect();
        return ways.map(|ways| ways.concat());
    }
    list("allOf")?.iter().find_map(|part| named(part, root, depth))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// An argument as JSON text: what it says where that is JSON of an allowed type, else a text. Python's words for truth and nothing are
/// understood, since templates write them.
pub(super) fn typed(raw: &str, kinds: &Kinds) -> String {
    let trimmed = raw.trim();
    let json = match trimmed {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    match serde_json::from_str::<Value>(json) {
        Ok(value) if kinds.allow(&value) || !kinds.names_text() => json.to_owned(),
        _ => Value::from(raw).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_types_of_a_schema_are_found_wherever_it_says_them() {
        let root = json!({"$defs": {"Unit": {"enum": ["C", "F"]}, "Round": {"$ref": "#/$defs/Round"}}});
        let of = |schema: Value| match kinds(&schema, &root) {
            Kinds::Any => "any".to_owned(),
            Kinds::Of(kinds) => kinds.join(" "),
        };
        for (schema, expected) in [
            (json!({"type": "string"}), "string"),
            (json!({"type": ["integer", "null"]}), "integer null"),
            (json!({"enum": ["a", 1]}), "string integer"),
            (json!({"const": true}), "boolean"),
            (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "string null"),
            (json!({"anyOf": [{"type": "string"}, {}]}), "any"),
            (json!({"allOf": [{"$ref": "#/$defs/Unit"}], "description": "d"}), "string string"),
            (json!({"$ref": "#/$defs/Round"}), "any"),
            (json!({"$ref": "elsewhere"}), "any"),
            (json!(true), "any"),
        ] {
            assert_eq!(of(schema.clone()), expected, "{schema}");
        }
    }

    #[test]
    fn an_argument_is_of_a_type_that_its_schema_allows() {
        let of = |kinds: &[&str]| Kinds::Of(kinds.iter().map(|kind| (*kind).to_owned()).collect());
        let optional = of(&["string", "null"]);
        assert_eq!(typed("12345", &optional), r#""12345""#);
        assert_eq!((typed("null", &optional).as_str(), typed("None", &optional).as_str()), ("null", "null"));
        assert_eq!(typed(" two\nlines ", &optional), r#"" two\nlines ""#);
        assert_eq!((typed("5", &of(&["number"])), typed("5", &Kinds::Any)), ("5".to_owned(), "5".to_owned()));
        assert_eq!((typed("True", &of(&["boolean"])), typed("soon", &of(&["integer"]))), ("true".to_owned(), r#""soon""#.to_owned()));
        // Of the wrong type, but JSON, where no text is allowed: the client's schema will say so.
        assert_eq!(typed("[1]", &of(&["integer"])), "[1]");
    }
}
