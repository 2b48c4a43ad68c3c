//! Text from token ids, one id at a time.

use std::sync::Arc;

use plexus_types::FinishReason;

use super::vocabulary::Vocabulary;

/// Turns the sampled ids of one answer into text. What it has given is a function of the ids pushed, nothing else, so that a new
/// replica rebuilds it by pushing the ids of the journal again.
///
/// It never gives half a character, nor any part of a stop text: what may still become one is held back.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    vocabulary: Arc<Vocabulary>,
    stop: Vec<String>,
    /// The start of a character whose end is yet to come; at most three bytes.
    partial: Vec<u8>,
    /// Text that may be the start of a stop text.
    held: String,
    /// Still at the space that the tokenizer puts before an answer.
    at_start: bool,
    /// Tokens that would end the answer do not.
    ignores_end: bool,
    finished: bool,
}

/// What a token gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Text that is now certain; may be empty.
    pub text: String,
    /// Why the answer ends with this token, if it does. All text has then been given.
    pub finish: Option<FinishReason>,
}

impl StreamDecoder {
    pub(super) fn new(vocabulary: Arc<Vocabulary>, stop: &[String]) -> Self {
        let at_start = vocabulary.strip_first_space;
        // An empty stop text would end every answer before it begins.
        let stop = stop.iter().filter(|text| !text.is_empty()).cloned().collect();
        Self { vocabulary, stop, partial: Vec::new(), held: String::new(), at_start, ignores_end: false, finished: false }
    }

    /// The same, for an answer that goes on past the tokens that would end it (`ignore_eos`): these add nothing to the text, as control
    /// tokens do, or what they stand for if they are text. Stop texts still end it.
    pub fn ignoring_end(self, ignores_end: bool) -> Self {
        Self { ignores_end, ..self }
    }

    /// What a token stands for; nothing for control tokens. Not always whole characters.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes_of(id)
    }

    /// Takes the next id. After the end nothing more is given.
    pub fn push(&mut self, id: u32) -> Decoded {
        if self.finished {
            return Decoded::default();
        }
        if !self.ignores_end && self.vocabulary.stop_ids.contains(&id) {
            return Decoded { text: self.finish(), finish: Some(FinishReason::Stop) };
        }
        self.partial.extend_from_slice(self.vocabulary.bytes_of(id));
        self.take_whole_characters();
        if let Some((start, stop)) = self.find_stop() {
            self.finished = true;
            self.held.truncate(start);
            return Decoded { text: std::mem::take(&mut self.held), finish: Some(FinishReason::StopSequence(stop)) };
        }
        let keep = self.possible_stop_len();
        let rest = self.held.split_off(self.held.len() - keep);
        Decoded { text: std::mem::replace(&mut self.held, rest), finish: None }
    }

    /// Ends the answer and gives what was held back. A character that never became whole is given as U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.finished {
            return String::new();
        }
        self.finished = true;
        if !self.partial.is_empty() {
            self.partial.clear();
            self.append("\u{FFFD}");
        }
        std::mem::take(&mut self.held)
    }

    /// Moves whole characters from `partial` to `held`; bytes that can never become one turn into U+FFFD.
    fn take_whole_characters(&mut self) {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.append(text),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.append(std::str::from_utf8(good).expect("valid up to there"));
                    match error.error_len() {
                        Some(len) => {
                            self.append("\u{FFFD}");
                            rest = &bad[len..];
                        }
                        None => return self.partial = bad.to_vec(),
                    }
                }
            }
        }
    }

    fn append(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let text = if std::mem::take(&mut self.at_start) { text.strip_prefix(' ').unwrap_or(text) } else { text };
        self.held.push_str(text);
    }

    /// The stop text that ends first and where it starts; of two that end together, the longer. The order in which the text came
    /// does not matter.
    fn find_stop(&self) -> Option<(usize, String)> {
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start, stop)));
        found.min_by_key(|(end, start, _)| (*end, *start)).map(|(_, start, stop)| (start, stop.clone()))
    }

    /// Length of the longest end of `held` with which a stop text begins.
    fn possible_stop_len(&self) -> usize {
        let longest = |stop: &String| {
            let max = self.held.len().min(stop.len() - 1);
            (1..=max).rev().find(|len| stop.is_char_boundary(*len) && self.held.ends_with(&stop[..*len])).unwrap_or(0)
        };
        self.stop.iter().map(longest).max().unwrap_or(0)
    }
}
