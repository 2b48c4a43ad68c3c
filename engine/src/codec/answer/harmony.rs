//! The channels of gpt-oss ("harmony"): each message has a header, `<|channel|>analysis` or the like, and a body.
//!
//! Analysis is reasoning, the final channel is the answer, and a message `to=functions.f` calls a tool. Its end marks are `<|end|>` between
//! messages, `<|call|>` behind a call and `<|return|>` at the end; the last two end the turn.

use super::marks::{End, Found, find};
use super::out::{CONTROL_OPEN, Out, control};
use super::{Answering, ids};

/// Control tokens of the format.
pub(super) const MARKS: [&str; 7] = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"];

/// A header is at most so long; what is longer is text without one.
const HEADER_LEN_MAX: usize = 512;

/// Where in a message the answer stands.
#[derive(Debug, Clone, Default)]
pub(super) enum Harmony {
    /// Before `<|message|>`.
    #[default]
    Header,
    /// In the body of a message of this kind.
    Body(Kind),
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Reasoning,
    Text,
    Call,
}

impl Harmony {
    /// In a message for the user, which the prompt has begun.
    pub(super) fn in_text() -> Self {
        Self::Body(Kind::Text)
    }

    /// Takes what is certain from the front of `buffer`. True when a call is complete.
    pub(super) fn take(&mut self, buffer: &mut String, answering: &Answering, end: End, out: &mut Out) -> bool {
        let message = control("<|message|>");
        let ends: Vec<String> = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"].map(control).into();
        let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
        loop {
            match self {
                Self::Header => match find(buffer, &[&message]) {
                    Found::At { start, .. } => {
                        let header: String = buffer.drain(..start).collect();
                        buffer.drain(..message.len());
                        *self = Self::Body(begin(&header, answering, out));
                    }
                    Found::Not { .. } if end == End::No && buffer.len() <= HEADER_LEN_MAX => return false,
                    Found::Not { .. } => {
                        // An answer without a header: its words are what it says.
                        let spoken = !buffer.trim_start().starts_with(CONTROL_OPEN) || buffer.len() > HEADER_LEN_MAX;
                        if spoken && !buffer.trim().is_empty() {
                            *self = Self::Body(Kind::Text);
                            continue;
                        }
                        buffer.clear();
                        return false;
                    }
                },
                Self::Body(kind) => {
                    let (len, found) = match find(buffer, &ends) {
                        Found::At { start, which } => (start, Some(which)),
                        Found::Not { certain } => (if end == End::No { certain } else { buffer.len() }, None),
                    };
                    let body: String = buffer.drain(..len).collect();
                    match kind {
                        Kind::Reasoning => out.reasoning(&body),
                        Kind::Text => out.text(&body),
                        Kind::Call => out.arguments(&body),
                    }
                    let called = *kind == Kind::Call;
                    match found {
                        None => {
                            if called && end == End::Stopped {
                                out.end_call();
                            }
                            return called && end == End::Stopped;
                        }
                        Some(which) => {
                            if called {
                                out.end_call();
                            }
                            if which < 3 {
                                buffer.drain(..ends[which].len());
                            }
                            *self = Self::Header;
                            if called && answering.single_call {
                                return true;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Reads a header: the channel, and to whom the message goes.
fn begin(header: &str, answering: &Answering, out: &mut Out) -> Kind {
    let word_end = |text: &str| text.find(|c: char| c.is_whitespace() || c == CONTROL_OPEN).unwrap_or(text.len());
    let channel = control("<|channel|>");
    let channel = header.find(&channel).map_or("final", |at| {
        let rest = header[at + channel.len()..].trim_start();
        &rest[..word_end(rest)]
    });
    let recipient = header.find("to=").map(|at| {
        let rest = &header[at + "to=".len()..];
        &rest[..word_end(rest)]
    });
    match recipient {
        Some(recipient) if !answering.tools.is_empty() && recipient != "assistant" && !recipient.is_empty() => {
            let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
            out.call(ids::call_id(answering.key, out.n_calls()), name.to_owned());
            Kind::Call
        }
        _ if channel == "analysis" => Kind::Reasoning,
        _ => Kind::Text,
    }
}
