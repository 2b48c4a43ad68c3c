//! From the text of an answer to its parts: what is said, what is thought, and which tools are called.
//!
//! Models write all three into one text, each family with marks of its own ([`format::AnswerFormat`]). The parser takes the text as it comes
//! and gives deltas. It holds back what may still become a mark and the head of a call, nothing else, and loses nothing: what looked like a
//! call and is none comes out as text.
//!
//! White space around reasoning and calls belongs to the marks and is left out, as templates put it back in when they render the answer again.

mod format;
mod grammar;
mod harmony;
mod ids;
mod json;
mod marks;
mod named;
mod object;
mod out;
mod tagged;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use plexus_types::{Delta, Tool};
use serde_json::Value;

pub(super) use format::{AnswerFormat, TokenKind};
pub(super) use grammar::{Wanted, grammar};
pub(super) use ids::{answer_key, nine_letters};
pub(super) use marks::{End, possible_len};

use format::Calls;
use harmony::Harmony;
use json::{Cursor, Stop};
use marks::{Found, find};
use out::{CONTROL_CLOSE, CONTROL_OPEN, Out};
use tagged::{FUNCTION, Fields};

/// The head of a call is at most so long; what is longer is none.
const HEAD_LEN_MAX: usize = 64 << 10;

/// What a parser must know of the request.
#[derive(Debug, Clone)]
pub(super) struct Answering {
    /// The tools that may be called; without any, calls stay text.
    pub(super) tools: Vec<Tool>,
    /// The answer ends with its first call.
    pub(super) single_call: bool,
    /// The prompt has opened the reasoning already.
    pub(super) in_reasoning: bool,
    /// Makes the ids of calls: see [`answer_key`].
    pub(super) key: u64,
}

/// Parses one answer.
#[derive(Debug, Clone)]
pub(super) struct AnswerParser {
    format: Arc<AnswerFormat>,
    answering: Arc<Answering>,
    state: State,
    /// Text not yet understood.
    buffer: String,
    /// White space that is left out if a call follows.
    space: String,
    /// White space that follows is left out.
    skip_space: bool,
    out: Out,
    /// All has been said that may be: see [`Answering::single_call`].
    complete: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// Where reasoning or a call without a mark may begin: at the start, and behind reasoning and calls.
    Start {
        may_think: bool,
        after_call: bool,
    },
    Reasoning,
    Content,
    /// At an opening mark, or a bare object.
    Head,
    /// In the next object of a list.
    NextObject,
    Arguments {
        value: object::Arguments,
        depth: u32,
        list: bool,
    },
    Closing {
        depth: u32,
        list: bool,
    },
    Fields(Box<Fields>),
    Harmony(Harmony),
}

/// Can the parser go on with what it has?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Again,
    Wait,
}

impl AnswerParser {
    /// A parser for one answer.
    pub(super) fn new(format: Arc<AnswerFormat>, answering: Answering) -> Self {
        let state = match (&format.calls, answering.in_reasoning && format.reasoning.is_some()) {
            (Some(Calls::Harmony), _) => State::Harmony(Harmony::default()),
            (_, true) => State::Reasoning,
            (_, false) => State::Start { may_think: true, after_call: false },
        };
        let skip_space = matches!(state, State::Reasoning);
        let (buffer, space) = (String::new(), String::new());
        Self { format, answering: Arc::new(answering), state, buffer, space, skip_space, out: Out::default(), complete: false }
    }

    /// Takes more text, whole characters, and gives what is now certain.
    pub(super) fn push(&mut self, text: &str) -> Vec<Delta> {
        if text.contains([CONTROL_OPEN, CONTROL_CLOSE]) {
            self.buffer.push_str(&text.replace([CONTROL_OPEN, CONTROL_CLOSE], "\u{FFFD}"));
        } else {
            self.buffer.push_str(text);
        }
        self.run(End::No)
    }

    /// Takes a control token that is a mark of the format.
    pub(super) fn push_control(&mut self, seen: &str) -> Vec<Delta> {
        self.buffer.push_str(seen);
        self.run(End::No)
    }

    /// Ends the answer and gives what was held back.
    pub(super) fn finish(&mut self, end: End) -> Vec<Delta> {
        self.run(end)
    }

    /// Calls begun so far.
    pub(super) fn n_calls(&self) -> u32 {
        self.out.n_calls()
    }

    /// Has the one call that was asked for been made?
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    fn run(&mut self, end: End) -> Vec<Delta> {
        while !self.complete && self.step(end) == Step::Again {}
        if end != End::No && !self.complete && !matches!(self.state, State::Harmony(_)) {
            let rest = std::mem::take(&mut self.buffer);
            match self.state {
                State::Reasoning => self.reasoning(&rest, true),
                _ => self.content(&rest, true),
            }
        }
        self.out.take()
    }

    fn step(&mut self, end: End) -> Step {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Start { may_think, after_call } => self.start(may_think, after_call, end),
            State::Reasoning => self.reason(),
            State::Content => self.say(),
            State::Head => self.head(end),
            State::NextObject => self.next_object(end),
            State::Arguments { mut value, depth, list } => {
                let (json, whole) = value.take(&mut self.buffer);
                self.out.arguments(&json);
                if whole {
                    self.state = State::Closing { depth, list };
                    return Step::Again;
                }
                self.state = State::Arguments { value, depth, list };
                if end != End::No {
                    let rest = std::mem::take(&mut self.buffer);
                    self.out.arguments(&rest);
                }
                Step::Wait
            }
            State::Closing { depth, list } => self.close(depth, list, end),
            State::Fields(mut fields) => {
                let Some(Calls::Tagged(tags)) = &self.format.calls else { return Step::Again };
                if fields.take(&mut self.buffer, tags, end, &mut self.out) {
                    return self.end_call();
                }
                self.state = State::Fields(fields);
                Step::Wait
            }
            State::Harmony(mut harmony) => {
                let complete = harmony.take(&mut self.buffer, &self.answering, end, &mut self.out);
                self.complete = complete && self.answering.single_call;
                self.state = State::Harmony(harmony);
                Step::Wait
            }
        }
    }

    fn calls(&self) -> Option<&Calls> {
        self.format.calls.as_ref().filter(|_| !self.answering.tools.is_empty())
    }

    /// The marks with which a call may begin.
    fn openers(&self) -> Vec<&str> {
        match self.calls() {
            None | Some(Calls::Harmony) => Vec::new(),
            Some(Calls::Objects(objects)) => vec![&objects.open],
            Some(Calls::Tagged(tags)) if tags.kind == tagged::TagKind::Equals => vec![&tags.open, FUNCTION],
            Some(Calls::Tagged(tags)) => vec![&tags.open],
            Some(Calls::Named(named)) => named.section.iter().chain([&named.open]).map(String::as_str).collect(),
        }
    }

    fn start(&mut self, may_think: bool, after_call: bool, end: End) -> Step {
        let rest = self.buffer.trim_start();
        let spaces = self.buffer.len() - rest.len();
        let mut unsure = rest.is_empty();
        let think = self.format.reasoning.as_ref().filter(|_| may_think).map(|reasoning| reasoning.open.seen.as_str());
        if let Some(open) = think {
            if rest.starts_with(open) {
                self.buffer.drain(..spaces + open.len());
                (self.state, self.skip_space) = (State::Reasoning, true);
                return Step::Again;
            }
            unsure |= open.starts_with(rest);
        }
        if after_call {
            let separators: &[&str] = match self.calls() {
                Some(Calls::Named(named)) => &[named.section_end.as_deref().unwrap_or_default()],
                Some(Calls::Objects(objects)) if objects.bare => &[";", ","],
                _ => &[],
            };
            for separator in separators.iter().filter(|separator| !separator.is_empty()) {
                if rest.starts_with(separator) {
                    let len = spaces + separator.len();
                    self.buffer.drain(..len);
                    self.state = State::Start { may_think, after_call };
                    return Step::Again;
                }
                unsure |= separator.starts_with(rest);
            }
        }
        if let Some(Calls::Objects(objects)) = self.calls()
            && objects.bare
            && rest.starts_with('{')
        {
            self.space.push_str(&self.buffer[..spaces]);
            self.buffer.drain(..spaces);
            self.state = State::Head;
            return Step::Again;
        }
        if unsure && end == End::No {
            self.state = State::Start { may_think, after_call };
            return Step::Wait;
        }
        self.state = State::Content;
        Step::Again
    }

    fn reason(&mut self) -> Step {
        let Some(reasoning) = &self.format.reasoning else { return Step::Again };
        let close = reasoning.close.seen.clone();
        // A control token that opens a call ends the reasoning too; letters do not, since reasoning may speak of them.
        let openers = self.openers().into_iter().filter(|mark| mark.starts_with(CONTROL_OPEN)).map(str::to_owned);
        let marks: Vec<String> = std::iter::once(close).chain(openers).collect();
        let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
        match find(&self.buffer, &marks) {
            Found::At { start, which } => {
                let text: String = self.buffer.drain(..start).collect();
                if which == 0 {
                    self.buffer.drain(..marks[0].len());
                }
                self.reasoning(&text, false);
                self.space.clear();
                self.skip_space = true;
                self.state = State::Start { may_think: false, after_call: false };
                Step::Again
            }
            Found::Not { certain } => {
                let text: String = self.buffer.drain(..certain).collect();
                self.reasoning(&text, false);
                self.state = State::Reasoning;
                Step::Wait
            }
        }
    }

    fn say(&mut self) -> Step {
        match find(&self.buffer, &self.openers()) {
            Found::At { start, .. } => {
                let text: String = self.buffer.drain(..start).collect();
                self.content(&text, false);
                self.state = State::Head;
                Step::Again
            }
            Found::Not { certain } => {
                let text: String = self.buffer.drain(..certain).collect();
                self.content(&text, false);
                Step::Wait
            }
        }
    }

    /// More reasoning, without the white space around all of it.
    fn reasoning(&mut self, text: &str, all: bool) {
        let text = if self.skip_space { text.trim_start() } else { text };
        if text.is_empty() && !all {
            return;
        }
        self.skip_space &= text.is_empty();
        let text = std::mem::take(&mut self.space) + text;
        let solid = if all { text.len() } else { text.trim_end().len() };
        self.out.reasoning(&text[..solid]);
        self.space = text[solid..].to_owned();
    }

    /// More of the answer; where calls may follow, white space waits for what comes behind it.
    fn content(&mut self, text: &str, all: bool) {
        let text = if self.skip_space { text.trim_start() } else { text };
        if text.is_empty() && !all {
            return;
        }
        self.skip_space &= text.is_empty();
        let text = std::mem::take(&mut self.space) + text;
        let solid = if all || self.calls().is_none() { text.len() } else { text.trim_end().len() };
        self.out.text(&text[..solid]);
        self.space = text[solid..].to_owned();
    }

    /// At an opening mark: is it a call?
    fn head(&mut self, end: End) -> Step {
        let found = match self.calls() {
            Some(calls) => read_head(&self.buffer, calls, &self.answering.tools),
            None => Err(Stop::Broken),
        };
        self.on_head(found, end)
    }

    fn next_object(&mut self, end: End) -> Step {
        let found = object::head(&self.buffer).map(|head| (head, true));
        let step = self.on_head(found, end);
        if step == Step::Wait {
            self.state = State::NextObject;
        }
        step
    }

    fn on_head(&mut self, found: Result<(object::Head, bool), Stop>, end: End) -> Step {
        let (head, list) = match found {
            Ok(found) => found,
            Err(Stop::More) if end == End::No && self.buffer.len() <= HEAD_LEN_MAX => {
                self.state = State::Head;
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
    fn close(&mut self, mut depth: u32, list: bool, end: End) -> Step {
        let closed = object::close(&mut self.buffer, &mut depth);
        if closed == Err(Stop::More) && end == End::No {
            self.state = State::Closing { depth, list };
            return Step::Wait;
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
            let rest =
                rest.strip_prefix(named::FENCE).filter(|_| matches!(self.calls(), Some(Calls::Named(_)))).map_or(rest, str::trim_start);
            if let Some(after) = rest.strip_prefix(close.as_str()) {
                let len = self.buffer.len() - after.len();
                self.buffer.drain(..len);
            } else if end == End::No && (close.starts_with(rest) || named::FENCE.starts_with(rest)) {
                self.state = State::Closing { depth: 0, list: false };
                return Step::Wait;
            }
        }
        self.end_call()
    }

    fn end_call(&mut self) -> Step {
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

/// The head of the call that begins with `text`, and whether it is one of a list.
fn read_head(text: &str, calls: &Calls, tools: &[Tool]) -> Result<(object::Head, bool), Stop> {
    let behind = |open: &str| text.strip_prefix(open).unwrap_or(text);
    let offset = |rest: &str| text.len() - rest.len();
    let shifted = |head: object::Head, by: usize| object::Head { len: head.len + by, ..head };
    match calls {
        Calls::Harmony => Err(Stop::Broken),
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
