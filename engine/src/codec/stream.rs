//! What an answer says, from its token ids, one id at a time.

use std::sync::Arc;

use plexus_types::{Delta, FinishReason};

use super::answer::{AnswerFormat, AnswerParser, Answering, End, possible_len};
use super::vocabulary::Vocabulary;

/// Turns the sampled ids of one answer into deltas. What it has given is a function of the ids pushed, nothing else, so that a new
/// replica rebuilds it by pushing the ids of the journal again.
///
/// It never gives half a character, nor any part of a stop text or of a mark: what may still become one is held back.
///
/// Stop texts end the answer where they appear in what it says; not in reasoning, nor in the arguments of a call, where the same letters
/// mean something else. One that is complete before the answer has its least number of tokens does not end it, as in vLLM.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    vocabulary: Arc<Vocabulary>,
    /// Takes the text apart; without it all is text.
    parser: Option<(Arc<AnswerFormat>, Box<AnswerParser>)>,
    stop: Vec<String>,
    /// The start of a character whose end is yet to come; at most three bytes.
    partial: Vec<u8>,
    /// Text that may be the start of a stop text.
    held: String,
    /// Bytes of `held` that no stop text may end in: they came before the answer had its least number of tokens.
    exempt: usize,
    /// Stop texts end the answer behind so many tokens.
    min_tokens: u32,
    n_pushed: u32,
    /// Still at the space that the tokenizer puts before an answer.
    at_start: bool,
    /// Tokens that would end the answer do not.
    ignores_end: bool,
    finished: bool,
}

/// What a token gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// What is now certain; may be empty.
    pub deltas: Vec<Delta>,
    /// Why the answer ends with this token, if it does. All has then been given.
    pub finish: Option<FinishReason>,
}

impl Decoded {
    /// The text among the deltas.
    pub fn text(&self) -> String {
        Delta::text_of(&self.deltas)
    }
}

impl StreamDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, stop: &[String]) -> Self {
        let at_start = vocabulary.strip_first_space;
        // An empty stop text would end every answer before it begins.
        let stop = stop.iter().filter(|text| !text.is_empty()).cloned().collect();
        let (partial, held) = (Vec::new(), String::new());
        let (exempt, min_tokens, n_pushed) = (0, 0, 0);
        Self { vocabulary, parser: None, stop, partial, held, exempt, min_tokens, n_pushed, at_start, ignores_end: false, finished: false }
    }

    /// Takes the answer apart by this format.
    pub(super) fn with_format(mut self, format: &Arc<AnswerFormat>, answering: Answering) -> Self {
        self.parser = Some((Arc::clone(format), Box::new(AnswerParser::new(Arc::clone(format), answering))));
        self
    }

    /// The same, for an answer that goes on past the tokens that would end it (`ignore_eos`): these add nothing to the text, as control
    /// tokens do, or what they stand for if they are text. Stop texts still end it.
    pub fn ignoring_end(self, ignores_end: bool) -> Self {
        Self { ignores_end, ..self }
    }

    /// The same, for an answer that goes on from text: a space that it begins with is its own.
    pub(super) fn within_text(self) -> Self {
        Self { at_start: false, ..self }
    }

    /// The same, for an answer of at least so many tokens. Tokens that would end it are the sampler's to hold back.
    pub(super) fn of_at_least(self, min_tokens: u32) -> Self {
        Self { min_tokens, ..self }
    }

    /// What a token stands for; nothing for control tokens. Not always whole characters.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes_of(id)
    }

    /// The name of a control token, as vocabularies spell it; nothing for any other.
    pub fn control_name(&self, id: u32) -> Option<&str> {
        self.vocabulary.control_text(id)
    }

    /// Takes the next id. After the end nothing more is given.
    pub fn push(&mut self, id: u32) -> Decoded {
        if self.finished {
            return Decoded::default();
        }
        self.n_pushed = self.n_pushed.saturating_add(1);
        if !self.ignores_end && self.vocabulary.stop_ids.contains(&id) {
            let deltas = self.end(End::Stopped);
            return Decoded { deltas, finish: Some(self.stop_reason()) };
        }
        let mut deltas = Vec::new();
        let mark = match &self.parser {
            Some((format, _)) => self.vocabulary.control_text(id).and_then(|token| format.seen_control(token)),
            None => None,
        };
        let stopped = if let Some(mark) = mark {
            let broken = self.take_broken_character();
            let stopped = self.give(&broken, None, &mut deltas);
            stopped.or_else(|| self.give("", Some(&mark), &mut deltas))
        } else {
            self.partial.extend_from_slice(self.vocabulary.bytes_of(id));
            let text = self.take_whole_characters();
            self.give(&text, None, &mut deltas)
        };
        if let Some(stop) = stopped {
            self.finished = true;
            return Decoded { deltas, finish: Some(FinishReason::StopSequence(stop)) };
        }
        if self.parser.as_ref().is_some_and(|(_, parser)| parser.is_complete()) {
            self.finished = true;
            return Decoded { deltas, finish: Some(FinishReason::ToolCalls) };
        }
        Decoded { deltas, finish: None }
    }

    /// Cuts the answer off and gives what was held back. A character that never became whole is given as U+FFFD.
    pub fn finish(&mut self) -> Vec<Delta> {
        if self.finished { Vec::new() } else { self.end(End::Cut) }
    }

    fn stop_reason(&self) -> FinishReason {
        match &self.parser {
            Some((_, parser)) if parser.n_calls() > 0 => FinishReason::ToolCalls,
            _ => FinishReason::Stop,
        }
    }

    fn end(&mut self, end: End) -> Vec<Delta> {
        self.finished = true;
        let mut deltas = Vec::new();
        let broken = self.take_broken_character();
        // A stop text in what was held back for the parser: what stands before it is the answer.
        let mut stopped = self.give(&broken, None, &mut deltas);
        if let (None, Some((_, parser))) = (&stopped, &mut self.parser) {
            let found = parser.finish(end);
            stopped = self.pass(found, &mut deltas);
        }
        if stopped.is_none() {
            Delta::Text(std::mem::take(&mut self.held)).join(&mut deltas);
        }
        deltas
    }

    /// Gives text or a mark to the parser and passes on what it finds. Returns the stop text that ended it.
    fn give(&mut self, text: &str, mark: Option<&str>, deltas: &mut Vec<Delta>) -> Option<String> {
        let found = match (&mut self.parser, mark) {
            (Some((_, parser)), Some(mark)) => parser.push_control(mark),
            (Some((_, parser)), None) => parser.push(text),
            (None, _) => Delta::of_text(text.to_owned()),
        };
        self.pass(found, deltas)
    }

    /// Passes deltas on, up to a stop text; returns that.
    fn pass(&mut self, found: Vec<Delta>, deltas: &mut Vec<Delta>) -> Option<String> {
        for delta in found {
            let Delta::Text(text) = delta else {
                // No stop text spans a call or reasoning.
                Delta::Text(std::mem::take(&mut self.held)).join(deltas);
                self.exempt = 0;
                delta.join(deltas);
                continue;
            };
            self.held.push_str(&text);
            if self.n_pushed <= self.min_tokens {
                self.exempt = self.held.len();
            }
            if let Some((start, stop)) = self.find_stop() {
                self.held.truncate(start);
                Delta::Text(std::mem::take(&mut self.held)).join(deltas);
                return Some(stop);
            }
            let keep = self.stop.iter().map(|stop| possible_len(&self.held, stop)).max().unwrap_or(0);
            let rest = self.held.split_off(self.held.len() - keep);
            self.exempt = self.exempt.saturating_sub(self.held.len());
            Delta::Text(std::mem::replace(&mut self.held, rest)).join(deltas);
        }
        None
    }

    /// What stands for the character that was never completed.
    fn take_broken_character(&mut self) -> String {
        if std::mem::take(&mut self.partial).is_empty() { String::new() } else { "\u{FFFD}".to_owned() }
    }

    /// Takes whole characters from `partial`; bytes that can never become one turn into U+FFFD.
    fn take_whole_characters(&mut self) -> String {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        let mut text = String::new();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(good).expect("valid up to there"));
                    match error.error_len() {
                        Some(len) => {
                            text.push('\u{FFFD}');
                            rest = &bad[len..];
                        }
                        None => {
                            self.partial = bad.to_vec();
                            break;
                        }
                    }
                }
            }
        }
        if self.at_start && !text.is_empty() {
            self.at_start = false;
            if text.starts_with(' ') {
                text.remove(0);
            }
        }
        text
    }

    /// The stop text that ends first and where it starts; of two that end together, the longer. The order in which the text came
    /// does not matter.
    fn find_stop(&self) -> Option<(usize, String)> {
        let found = self.stop.iter().filter_map(|stop| {
            // The first place whose end is behind what is exempt.
            let from = (self.exempt + 1).saturating_sub(stop.len());
            let from = (from..=self.held.len()).find(|at| self.held.is_char_boundary(*at))?;
            self.held[from..].find(stop).map(|start| (from + start + stop.len(), from + start, stop))
        });
        found.min_by_key(|(end, start, _)| (*end, *start)).map(|(_, start, stop)| (start, stop.clone()))
    }
}
