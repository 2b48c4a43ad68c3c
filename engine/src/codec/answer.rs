//! From the text of an answer to its parts: what is said, what is thought, and which tools are called.
//!
//! Models write all three into one text, each family with marks of its own ([`format::AnswerFormat`]). The parser takes the text as it comes
//! and gives deltas. It holds back what may still become a mark and the head of a call, nothing else, and loses nothing: what looked like a
//! call and is none comes out as text.
//!
//! White space around reasoning and calls belongs to the marks and is left out, as templates put it back in when they render the answer again.

mod call;
mod format;
mod grammar;
mod harmony;
mod ids;
mod json;
mod kinds;
mod marks;
mod named;
mod object;
mod out;
mod tagged;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use plexus_types::{Delta, Tool};

pub(super) use format::{AnswerFormat, TokenKind};
pub(super) use grammar::{Wanted, grammar};
pub(super) use ids::{answer_key, nine_letters};
pub(super) use marks::{End, possible_len};

use call::line_head;
use format::Calls;
use harmony::Harmony;
use marks::{Found, find};
use out::{CONTROL_CLOSE, CONTROL_OPEN, Out};
use tagged::{FUNCTION, Fields};

/// What a parser must know of the request.
#[derive(Debug, Clone)]
pub(super) struct Answering {
    /// The tools that may be called; without any, calls stay text.
    pub(super) tools: Vec<Tool>,
    /// The answer ends with its first call.
    pub(super) single_call: bool,
    /// Nothing but calls may follow the reasoning, so that what is cut off before one has begun is its mark, not text.
    pub(super) forced: bool,
    /// The prompt has opened the reasoning already.
    pub(super) in_reasoning: bool,
    /// The prompt has begun what is said.
    pub(super) in_text: bool,
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
            (Some(Calls::Harmony), _) if answering.in_text => State::Harmony(Harmony::in_text()),
            (Some(Calls::Harmony), _) => State::Harmony(Harmony::default()),
            (_, true) => State::Reasoning,
            (_, false) if answering.in_text && !answering.forced => State::Content,
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
                _ if end == End::Cut && self.answering.forced => self.space.clear(),
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
            None | Some(Calls::Harmony | Calls::Lines) => Vec::new(),
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
                if end != End::No && !rest.is_empty() && separator.starts_with(rest) {
                    self.buffer.clear(); // a mark that was cut off is no text
                    return Step::Wait;
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
        if let Some(Calls::Lines) = self.calls() {
            match line_head(rest, &self.answering.tools) {
                Ok(_) => {
                    self.space.push_str(&self.buffer[..spaces]);
                    self.buffer.drain(..spaces);
                    self.state = State::Head;
                    return Step::Again;
                }
                Err(stop) => unsure |= stop == json::Stop::More,
            }
        }
        if unsure && end == End::No {
            self.state = State::Start { may_think, after_call };
            return Step::Wait;
        }
        if unsure && end == End::Cut && self.answering.forced {
            self.buffer.clear();
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
}
