//! Calls written as tags, one for each argument: Qwen3-Coder's and GLM's. The arguments become JSON as they come.
//!
//! What stands in a tag has no type of its own: the tool's JSON Schema says whether `5` is a number or a text ([`super::kinds`]).

use serde_json::Value;

use super::json::{Stop, escape};
use super::kinds::{Kinds, kinds, typed};
use super::marks::{End, Found, find};
use super::object::Head;
use super::out::Out;

/// How a format writes its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tags {
    /// `<tool_call>`
    pub(super) open: String,
    /// `</tool_call>`
    pub(super) close: String,
    /// How names and arguments stand between them.
    pub(super) kind: TagKind,
}

/// The two ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TagKind {
    /// `<function=f>`, `<parameter=x>value</parameter>`, `</function>`.
    Equals,
    /// The bare name, `<arg_key>x</arg_key><arg_value>value</arg_value>`.
    Pairs {
        /// `<arg_key>`, `</arg_key>`, `<arg_value>`, `</arg_value>`
        marks: [String; 4],
    },
}

/// `<function=`
pub(super) const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// Reads the name of the tool. `text` begins behind the opening mark, or with `<function=` where that was left out.
pub(super) fn head(text: &str, tags: &Tags) -> Result<Head, Stop> {
    let spaces = text.len() - text.trim_start().len();
    let text = &text[spaces..];
    let (name, len) = match &tags.kind {
        TagKind::Equals => {
            let Some(rest) = text.strip_prefix(FUNCTION) else {
                return Err(if FUNCTION.starts_with(text) { Stop::More } else { Stop::Broken });
            };
            let end = rest.find(['>', '\n']).ok_or(Stop::More)?;
            if !rest[end..].starts_with('>') {
                return Err(Stop::Broken);
            }
            (&rest[..end], FUNCTION.len() + end + 1)
        }
        TagKind::Pairs { marks } => {
            let ends = [marks[0].as_str(), tags.close.as_str(), "\n"];
            match find(text, &ends) {
                Found::At { start, .. } => (&text[..start], start),
                Found::Not { .. } => return Err(Stop::More),
            }
        }
    };
    let name = name.trim();
    let sensible = !name.is_empty() && !name.contains(['{', '"', '<', '>', '=']) && !name.contains(char::is_whitespace);
    if sensible { Ok(Head { name: name.into(), len: spaces + len, arguments: None, depth: 0 }) } else { Err(Stop::Broken) }
}

/// The arguments of a call in tags, as they come.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    /// The JSON Schema of the arguments, or null.
    schema: Value,
    n_fields: usize,
    value: Option<Field>,
}

/// One argument.
#[derive(Debug, Clone)]
struct Field {
    /// What it may be.
    kinds: Kinds,
    /// Something of it has been given or passed over.
    begun: bool,
    /// What is not yet given.
    held: String,
}

impl Fields {
    /// For a tool whose arguments follow `schema`.
    pub(super) fn new(schema: Value) -> Self {
        Self { schema, n_fields: 0, value: None }
    }

    /// Takes what is certain from the front of `buffer`. True when the call is complete.
    pub(super) fn take(&mut self, buffer: &mut String, tags: &Tags, end: End, out: &mut Out) -> bool {
        loop {
            if self.value.is_some() {
                if !self.take_value(buffer, tags, end, out) {
                    return false;
                }
                continue;
            }
            match self.next_key(buffer, tags) {
                Ok((Some(key), len)) => {
                    buffer.drain(..len);
                    out.arguments(if self.n_fields == 0 { "{" } else { ", " });
                    out.arguments(&format!("{}: ", Value::from(key.as_str())));
                    self.n_fields += 1;
                    let schema = self.schema.pointer("/properties").and_then(|all| all.get(&key));
                    let kinds = schema.map_or(Kinds::Any, |schema| kinds(schema, &self.schema));
                    self.value = Some(Field { kinds, begun: false, held: String::new() });
                }
                Err(Stop::More) if end == End::No => return false,
                // Cut off: JSON that is not whole says so.
                Err(Stop::More) if end == End::Cut => {
                    buffer.clear();
                    return true;
                }
                // The end, with or without its marks: what else stands here is text again.
                Ok((None, len)) => {
                    buffer.drain(..len);
                    self.finish(out);
                    return true;
                }
                Err(stop) => {
                    if stop == Stop::More {
                        buffer.clear(); // a mark that was cut off is no text
                    }
                    self.finish(out);
                    return true;
                }
            }
        }
    }

    fn finish(&self, out: &mut Out) {
        out.arguments(if self.n_fields == 0 { "{}" } else { "}" });
    }

    /// The next argument's name, or none at the end of the call, and the length of what says so.
    fn next_key(&self, text: &str, tags: &Tags) -> Result<(Option<String>, usize), Stop> {
        let trimmed = text.trim_start();
        let begins = |mark: &str| match trimmed.strip_prefix(mark) {
            Some(rest) => Ok(Some(rest)),
            None if mark.starts_with(trimmed) => Err(Stop::More),
            None => Ok(None),
        };
        let passed = |rest: &str| text.len() - rest.len();
        let mut unsure = false;
        let mut tried = |mark: &str| match begins(mark) {
            Ok(found) => found,
            Err(_) => {
                unsure = true;
                None
            }
        };
        match &tags.kind {
            TagKind::Equals => {
                if let Some(rest) = tried(PARAMETER) {
                    let end = rest.find('>').ok_or(Stop::More)?;
                    return Ok((Some(rest[..end].trim().to_owned()), passed(&rest[end + 1..])));
                }
                if let Some(rest) = tried(FUNCTION_END) {
                    let inner = rest.trim_start();
                    return match inner.strip_prefix(tags.close.as_str()) {
                        Some(rest) => Ok((None, passed(rest))),
                        None if tags.close.starts_with(inner) => Err(Stop::More),
                        None => Ok((None, passed(rest))),
                    };
                }
            }
            TagKind::Pairs { marks: [key, key_end, value, _] } => {
                if let Some(rest) = tried(key) {
                    let end = rest.find(key_end.as_str()).ok_or(Stop::More)?;
                    let after = rest[end + key_end.len()..].trim_start();
                    return match after.strip_prefix(value.as_str()) {
                        Some(inner) => Ok((Some(rest[..end].trim().to_owned()), passed(inner))),
                        None if value.starts_with(after) => Err(Stop::More),
                        None => Err(Stop::Broken),
                    };
                }
            }
        }
        if let Some(rest) = tried(&tags.close) {
            return Ok((None, passed(rest)));
        }
        Err(if unsure { Stop::More } else { Stop::Broken })
    }

    /// Takes more of the argument at hand. True when it is complete.
    fn take_value(&mut self, buffer: &mut String, tags: &Tags, end: End, out: &mut Out) -> bool {
        let Some(field) = &mut self.value else { return true };
        let (mark, strips) = match &tags.kind {
            TagKind::Equals => (PARAMETER_END, true),
            TagKind::Pairs { marks } => (marks[3].as_str(), false),
        };
        let (len, skip, complete) = match find(buffer, &[mark]) {
            Found::At { start, .. } => (start, mark.len(), true),
            Found::Not { certain } => (if end != End::No { buffer.len() } else { certain }, 0, false),
        };
        field.held.extend(buffer.drain(..len));
        buffer.drain(..skip);
        field.give(strips, complete || end != End::No, complete, out);
        if complete {
            self.value = None;
        }
        complete
    }
}

impl Field {
    /// Gives what is certain. `last`: nothing follows; `complete`: because the value is whole.
    fn give(&mut self, strips: bool, last: bool, complete: bool, out: &mut Out) {
        // Only what is a text whatever it says can be given piece by piece.
        if !self.kinds.is_text() {
            if last {
                let held = std::mem::take(&mut self.held);
                let text = if strips { held.strip_prefix('\n').unwrap_or(&held) } else { &held };
                let text = if strips { text.strip_suffix('\n').unwrap_or(text) } else { text };
                out.arguments(&typed(text, &self.kinds));
            }
            return;
        }
        if !self.begun {
            if self.held.is_empty() && !last {
                return;
            }
            self.begun = true;
            out.arguments("\"");
            if strips && self.held.starts_with('\n') {
                self.held.remove(0);
            }
        }
        if strips && self.held.ends_with('\n') {
            let rest = self.held.split_off(self.held.len() - 1);
            out.arguments(&escape(&self.held));
            self.held = if last { String::new() } else { rest };
        } else {
            out.arguments(&escape(&std::mem::take(&mut self.held)));
        }
        if complete {
            out.arguments("\"");
        }
    }
}
