//! The parser's way through a call: its head, what follows its arguments, and the next of a list.

use plexus_types::Tool;
use serde_json::Value;

use super::format::Calls;
use super::json::{Cursor, Stop};
use super::marks::End;
use super::tagged::Fields;
use super::{AnswerParser, State, Step, ids, named, object, tagged};

/// The head of a call is at most so long; what is longer is none.
const HEAD_LEN_MAX: usize = 64 << 10;

impl AnswerParser {
    /// At an opening mark: is it a call?
    pub(super) fn head(&mut self, end: End) -> Step {
        let found = match self.calls() {
            Some(calls) => read_head(&self.buffer, calls, &self.answering.tools),
            None => Err(Stop::Broken),
        };
        let marked = self.openers().into_iter().any(|mark| self.buffer.starts_with(mark));
        self.on_head(found, marked, end)
    }

    pub(super) fn next_object(&mut self, end: End) -> Step {
        let found = object::head(&self.buffer).map(|head| (head, true));
        let step = self.on_head(found, true, end);
        if step == Step::Wait {
            self.state = State::NextObject;
        }
        step
    }

    /// What follows from `found`, the head of a call or none. `marked`: a mark has said that a call begins.
    fn on_head(&mut self, found: Result<(object::Head, bool), Stop>, marked: bool, end: End) -> Step {
        let (head, list) = match found {
            Ok(found) => found,
            Err(Stop::More) if end == End::No && self.buffer.len() <= HEAD_LEN_MAX => {
                self.state = State::Head;
                return Step::Wait;
            }
            // The beginning of a call that was cut off before its name was known is neither a call nor text.
            Err(Stop::More) if end == End::Cut && (marked || self.answering.forced) => {
                self.buffer.clear();
                self.space.clear();
                return Step::Wait;
            }
            Err(_) => {
                // No call: the mark is text, and so is what follows, up to the next mark.
                let opener = self.openers().into_iter().filter(|mark| self.buffer.starts_with(mark)).map(str::len).max();
                let len = opener.unwrap_or_else(|| self.buffer.chars().next().map_or(0, char::len_utf8));
                let text: String = self.buffer.drain(..len).collect();
                self.content(&text, false);
                return Step::Again;
            }
        };
        self.space.clear();
        self.buffer.drain(..head.len);
        let id = ids::call_id(self.answering.key, self.out.n_calls());
        let schema = match self.calls() {
            Some(Calls::Tagged(_)) => Some(self.schema_of(&head.name)),
            _ => None,
        };
        self.out.call(id, head.name);
        self.state = match (schema, head.arguments) {
            (Some(schema), _) => State::Fields(Box::new(Fields::new(schema))),
            (None, Some(arguments)) => {
                self.out.arguments(&arguments);
                State::Closing { depth: head.depth, list }
            }
            (None, None) => State::Arguments { value: object::Arguments::default(), depth: head.depth, list },
        };
        Step::Again
    }

    fn schema_of(&self, name: &str) -> Value {
        let tool = self.answering.tools.iter().find(|tool| tool.name == name);
        tool.and_then(|tool| serde_json::from_str(tool.parameters.as_deref()?).ok()).unwrap_or_default()
    }

    /// Behind the arguments: the rest of the object, then the closing mark or the next of a list.
    pub(super) fn close(&mut self, mut depth: u32, list: bool, end: End) -> Step {
        let closed = object::close(&mut self.buffer, &mut depth);
        if closed == Err(Stop::More) {
            if end == End::No {
                self.state = State::Closing { depth, list };
                return Step::Wait;
            }
            self.buffer.clear(); // what stands behind the arguments is passed over, cut off or not
            return self.end_call();
        }
        if self.answering.single_call {
            return self.end_call();
        }
        let mut cursor = Cursor::new(&self.buffer);
        if list {
            match cursor.peek() {
                Ok(',') => {
                    let at = cursor.at() + 1;
                    self.buffer.drain(..at);
                    self.out.end_call();
                    self.state = State::NextObject;
                    return Step::Again;
                }
                Ok(']') => {
                    let at = cursor.at() + 1;
                    self.buffer.drain(..at);
                }
                Ok(_) => {}
                Err(_) if end == End::No => {
                    self.state = State::Closing { depth: 0, list };
                    return Step::Wait;
                }
                Err(_) => {}
            }
        }
        let close = match self.calls() {
            Some(Calls::Objects(objects)) => objects.close.clone(),
            Some(Calls::Named(named)) => named.close.clone(),
            _ => None,
        };
        if let Some(close) = close {
            let rest = self.buffer.trim_start();
            // The older form of DeepSeek ends arguments with a fence.
            let fenced = matches!(self.calls(), Some(Calls::Named(_)));
            let rest = rest.strip_prefix(named::FENCE).filter(|_| fenced).map_or(rest, str::trim_start);
            if let Some(after) = rest.strip_prefix(close.as_str()) {
                let len = self.buffer.len() - after.len();
                self.buffer.drain(..len);
            } else if close.starts_with(rest) || (fenced && named::FENCE.starts_with(rest)) {
                if end == End::No {
                    self.state = State::Closing { depth: 0, list: false };
                    return Step::Wait;
                }
                self.buffer.clear(); // a mark that was cut off is no text
            }
        }
        self.end_call()
    }

    pub(super) fn end_call(&mut self) -> Step {
        self.out.end_call();
        if self.answering.single_call {
            self.complete = true;
            return Step::Wait;
        }
        self.skip_space = true;
        self.state = State::Start { may_think: false, after_call: true };
        Step::Again
    }
}

/// The head of a call without any mark: the name of one of the tools on a line of its own, and an object behind it.
pub(super) fn line_head(text: &str, tools: &[Tool]) -> Result<object::Head, Stop> {
    let Some((line, behind)) = text.split_once('\n') else {
        let mut names = tools.iter().map(|tool| tool.name.as_str());
        let may_be = names.any(|name| name.starts_with(text) || text.strip_prefix(name).is_some_and(|rest| rest.trim().is_empty()));
        return Err(if may_be { Stop::More } else { Stop::Broken });
    };
    let name = line.trim();
    if !tools.iter().any(|tool| tool.name == name) {
        return Err(Stop::Broken);
    }
    let json = behind.trim_start();
    match json.chars().next() {
        None => Err(Stop::More),
        Some('{') => Ok(object::Head { name: name.into(), len: text.len() - json.len(), arguments: None, depth: 0 }),
        Some(_) => Err(Stop::Broken),
    }
}

/// The head of the call that begins with `text`, and whether it is one of a list.
fn read_head(text: &str, calls: &Calls, tools: &[Tool]) -> Result<(object::Head, bool), Stop> {
    let behind = |open: &str| text.strip_prefix(open).unwrap_or(text);
    let offset = |rest: &str| text.len() - rest.len();
    let shifted = |head: object::Head, by: usize| object::Head { len: head.len + by, ..head };
    match calls {
        Calls::Harmony => Err(Stop::Broken),
        Calls::Lines => line_head(text, tools).map(|head| (head, false)),
        Calls::Tagged(tags) => {
            let rest = behind(&tags.open);
            tagged::head(rest, tags).map(|head| (shifted(head, offset(rest)), false))
        }
        Calls::Named(named) => {
            let rest = named.section.as_deref().map_or(text, |section| behind(section).trim_start());
            if rest.is_empty() || (named.open.starts_with(rest) && rest.len() < named.open.len()) {
                return Err(Stop::More);
            }
            let rest = rest.strip_prefix(named.open.as_str()).ok_or(Stop::Broken)?;
            named::head(rest, named).map(|head| (shifted(head, offset(rest)), false))
        }
        Calls::Objects(objects) => {
            let marked = text.strip_prefix(objects.open.as_str());
            let rest = marked.unwrap_or(text).trim_start();
            let first = rest.chars().next().ok_or(Stop::More)?;
            if objects.list && first == '[' {
                let rest = &rest[1..];
                return object::head(rest).map(|head| (shifted(head, offset(rest)), true));
            }
            if let (Some(named), true) = (&objects.or_named, first != '{') {
                return named::head(rest, named).map(|head| (shifted(head, offset(rest)), false));
            }
            let head = object::head(rest)?;
            // Without a mark any JSON answer looks alike: only the name of a tool makes a call of it.
            if marked.is_none() && !tools.iter().any(|tool| tool.name == head.name) {
                return Err(Stop::Broken);
            }
            Ok((shifted(head, offset(rest)), false))
        }
    }
}
