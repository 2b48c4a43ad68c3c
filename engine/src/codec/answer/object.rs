//! Calls written as JSON objects: `{"name": "f", "arguments": {…}}`, and the variants that models know.

use super::json::{Cursor, Nesting, Stop};

/// The beginning of a call, up to where its arguments begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The tool's name.
    pub(super) name: String,
    /// Bytes of the text that belong to the head.
    pub(super) len: usize,
    /// The arguments, where they were written before the name or are missing; else they follow.
    pub(super) arguments: Option<String>,
    /// Objects still open around the arguments.
    pub(super) depth: u32,
}

/// Reads the beginning of an object that calls a tool.
///
/// `name` is the name, or `function` where that is a string; `arguments` or `parameters` are the arguments; an object under `function` is
/// looked into; other keys are passed over.
pub(super) fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    cursor.expect('{')?;
    let (mut depth, mut name, mut arguments) = (1, None, None);
    loop {
        match cursor.peek()? {
            '}' => {
                cursor.expect('}')?;
                depth -= 1;
                if depth == 0 {
                    let name = name.ok_or(Stop::Broken)?;
                    return Ok(Head { name, len: cursor.at(), arguments: Some(arguments.unwrap_or_else(|| "{}".into())), depth });
                }
                continue;
            }
            ',' => cursor.expect(',')?,
            '"' => {}
            _ => return Err(Stop::Broken),
        }
        let key = cursor.string()?;
        cursor.expect(':')?;
        let first = cursor.peek()?;
        match key.as_str() {
            "name" => name = Some(cursor.string()?),
            "function" if first == '{' => {
                cursor.expect('{')?;
                depth += 1;
            }
            "function" if first == '"' => name = Some(cursor.string()?),
            "arguments" | "parameters" => match &name {
                Some(name) => return Ok(Head { name: name.clone(), len: cursor.at(), arguments: None, depth }),
                None => arguments = Some(whole_arguments(cursor.value()?)),
            },
            _ => drop(cursor.value()?),
        }
        if let (Some(name), Some(arguments)) = (&name, &arguments) {
            return Ok(Head { name: name.clone(), len: cursor.at(), arguments: Some(arguments.clone()), depth });
        }
    }
}

/// Arguments that are not written as an object: JSON inside a string is taken out of it, and nothing is an object without members.
fn whole_arguments(raw: &str) -> String {
    match serde_json::from_str(raw) {
        Ok(serde_json::Value::String(inner)) if serde_json::from_str::<serde_json::Map<_, _>>(&inner).is_ok() => inner,
        Ok(serde_json::Value::Null) => "{}".into(),
        _ => raw.to_owned(),
    }
}

/// The arguments as they come.
#[derive(Debug, Clone, Default)]
pub(super) struct Arguments {
    nesting: Option<Nesting>,
}

impl Arguments {
    /// Takes what is certain from the front of `buffer`. Gives it, and whether the arguments are complete.
    pub(super) fn take(&mut self, buffer: &mut String) -> (String, bool) {
        if self.nesting.is_none() {
            let mut cursor = Cursor::new(buffer);
            match cursor.peek() {
                Ok('{') => {
                    let at = cursor.at();
                    buffer.drain(..at);
                    self.nesting = Some(Nesting::default());
                }
                Ok(_) => {
                    let Ok(raw) = cursor.value() else { return (String::new(), false) };
                    let (whole, at) = (whole_arguments(raw), cursor.at());
                    buffer.drain(..at);
                    return (whole, true);
                }
                Err(_) => return (String::new(), false),
            }
        }
        let nesting = self.nesting.get_or_insert_default();
        let (len, complete) = nesting.take(buffer);
        (buffer.drain(..len).collect(), complete)
    }
}

/// Passes over the rest of the objects around the arguments, so far as it is there. True when they are closed, or end without being so.
pub(super) fn close(buffer: &mut String, depth: &mut u32) -> Result<(), Stop> {
    while *depth > 0 {
        let mut cursor = Cursor::new(buffer);
        match cursor.peek()? {
            '}' => {
                cursor.expect('}')?;
                *depth -= 1;
            }
            ',' => {
                cursor.expect(',')?;
                cursor.string()?;
                cursor.expect(':')?;
                cursor.value()?;
            }
            _ => return Err(Stop::Broken),
        }
        let at = cursor.at();
        buffer.drain(..at);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> (String, Option<String>, u32) {
        let head = head(text).unwrap();
        (head.name, head.arguments, head.depth)
    }

    #[test]
    fn the_head_is_known_when_the_arguments_begin() {
        assert_eq!(known(r#"{"name": "f", "arguments": {"#), ("f".into(), None, 1));
        assert_eq!(known(r#"{"type": "function", "id": 7, "function": {"name": "f", "parameters": {"#), ("f".into(), None, 2));
        assert_eq!(known(r#"{"function": "f", "parameters": {"#), ("f".into(), None, 1));
        assert_eq!(known(r#"{"arguments": {"a": 1}, "name": "f""#), ("f".into(), Some(r#"{"a": 1}"#.into()), 1));
        assert_eq!(known(r#"{"name": "f"}"#), ("f".into(), Some("{}".into()), 0));
        assert_eq!(head(r#"{"name": "f", "#), Err(Stop::More));
        assert_eq!(head(r#"{"city": "Paris"}"#), Err(Stop::Broken));
        assert_eq!(head("{name: 1}"), Err(Stop::Broken));
    }

    #[test]
    fn arguments_inside_a_string_are_taken_out_of_it() {
        let mut buffer = r#" "{\"a\": 1}"}"#.to_owned();
        assert_eq!(Arguments::default().take(&mut buffer), (r#"{"a": 1}"#.into(), true));
        assert_eq!(buffer, "}");
        assert_eq!(Arguments::default().take(&mut "null}".into()), ("{}".into(), true));
    }
}
