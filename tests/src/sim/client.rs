//! A client: reads its stream at its own pace, and compares all that it sees with what it should see.

use std::collections::VecDeque;
use std::time::Duration;

use plexus_types::{Delta, GenerateEvent};

use super::model::Reference;

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Fast,
    /// One event, then a pause of this length.
    Slow(Duration),
    /// This many events, then it leaves.
    Leaves(u32),
    /// This many events, then none before [`super::Op::Resume`].
    Stops(u32),
}

/// How a stream ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Complete.
    Done,
    /// With an error in words.
    Failed(String),
    /// The client left.
    Left,
    /// The node that it was connected to died.
    Broken,
}

/// A client and its history.
#[derive(Debug)]
pub struct Client {
    /// The node that it is connected to.
    pub ingress: usize,
    /// How it reads.
    pub pace: Pace,
    /// What it should be answered.
    pub reference: Reference,
    /// On the way to it.
    pub inbox: VecDeque<GenerateEvent>,
    /// How it ended, if it did.
    pub ending: Option<Ending>,
    /// Events that it has read.
    pub n_read: u32,
    /// A read is under way.
    pub reading: bool,
    /// Tokens read and not yet reported.
    pub unreported: u32,
    started: bool,
    text: String,
    tokens: u32,
}

impl Client {
    /// A client that has read nothing yet.
    pub fn new(ingress: usize, pace: Pace, reference: Reference) -> Self {
        Self {
            ingress,
            pace,
            reference,
            inbox: VecDeque::new(),
            ending: None,
            n_read: 0,
            reading: false,
            unreported: 0,
            started: false,
            text: String::new(),
            tokens: 0,
        }
    }

    /// May it read on now?
    pub fn wants(&self) -> bool {
        self.ending.is_none() && !self.inbox.is_empty() && !matches!(self.pace, Pace::Stops(after) if self.n_read >= after)
    }

    /// Reads an event.
    ///
    /// Errors: it is not what the client should see next.
    pub fn read(&mut self, event: &GenerateEvent) -> Result<(), String> {
        self.n_read += 1;
        if self.ending.is_some() {
            return Err(format!("{event:?} came after the end"));
        }
        match event {
            GenerateEvent::Started { prompt_tokens, .. } => {
                if std::mem::replace(&mut self.started, true) || !self.text.is_empty() {
                    return Err("it started twice".into());
                }
                expect("prompt tokens", prompt_tokens, &self.reference.n_prompt)?;
            }
            GenerateEvent::Tokens { deltas, tokens, .. } => {
                let text = Delta::text_of(deltas);
                if !self.started || text.is_empty() {
                    return Err(format!("text {text:?} came, started: {}", self.started));
                }
                self.text += &text;
                self.tokens += tokens;
                self.unreported += tokens;
                if !self.reference.text.starts_with(&self.text) || self.tokens > self.reference.ids.len() as u32 {
                    return Err(format!("the text is {:?}, should be {:?}", self.text, self.reference.text));
                }
            }
            GenerateEvent::Done { reason, usage } => {
                expect("text", &self.text, &self.reference.text)?;
                expect("reason", reason, &self.reference.reason)?;
                expect("completion tokens", &usage.completion_tokens, &(self.reference.ids.len() as u32))?;
                expect("prompt tokens", &usage.prompt_tokens, &self.reference.n_prompt)?;
                self.ending = Some(Ending::Done);
            }
            GenerateEvent::Failed(error) => self.ending = Some(Ending::Failed(error.to_string())),
        }
        Ok(())
    }

    /// Does it leave now? Notes that it does.
    pub fn leaves(&mut self) -> bool {
        let leaves = self.ending.is_none() && matches!(self.pace, Pace::Leaves(after) if self.n_read >= after);
        if leaves {
            self.ending = Some(Ending::Left);
        }
        leaves
    }

    /// Did the answer come complete?
    pub fn is_done(&self) -> bool {
        self.ending == Some(Ending::Done)
    }

    /// Tokens of the answer that it has seen.
    pub fn n_tokens(&self) -> u32 {
        self.tokens
    }

    /// The error that it ended with.
    pub fn error(&self) -> Option<&str> {
        match &self.ending {
            Some(Ending::Failed(error)) => Some(error),
            _ => None,
        }
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, is: &T, should: &T) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{what}: {is:?}, should be {should:?}")) }
}
