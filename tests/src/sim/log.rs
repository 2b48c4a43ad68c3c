//! What happened: a hash over everything, and the last lines for people.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Lines kept for the report of a failure.
const TAIL: usize = 80;

/// The log of one run. Two runs of the same seed have the same hash.
#[derive(Debug, Default)]
pub struct EventLog {
    hasher: DefaultHasher,
    tail: VecDeque<String>,
}

impl EventLog {
    /// Notes a line.
    pub fn line(&mut self, at: Duration, line: fmt::Arguments<'_>) {
        let line = format!("{:>12.6} {line}", at.as_secs_f64());
        line.hash(&mut self.hasher);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// Notes bytes that passed, in the hash alone.
    pub fn bytes(&mut self, at: Duration, bytes: &[u8]) {
        (at, bytes).hash(&mut self.hasher);
    }

    /// Hash over all that was noted.
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        self.tail.iter().map(|line| format!("{line}\n")).collect()
    }
}
