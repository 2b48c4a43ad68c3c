//! Virtual time: what happens next, and when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

/// A clock that stands still between two happenings, and the happenings to come. Two at the same time happen in the order in which they were
/// entered.
#[derive(Debug)]
pub struct Agenda<T> {
    base: Instant,
    now: Duration,
    n_entered: u64,
    entries: BinaryHeap<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    number: u64,
    what: T,
}

impl<T> Entry<T> {
    fn key(&self) -> (Duration, u64) {
        (self.at, self.number)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The earliest is the greatest, because a heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { base: Instant::now(), now: Duration::ZERO, n_entered: 0, entries: BinaryHeap::new() }
    }
}

impl<T> Agenda<T> {
    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now
    }

    /// The time, as the cores want it.
    pub fn now(&self) -> Instant {
        self.base + self.now
    }

    /// Enters what happens at a time since the start; in the past means now.
    pub fn at(&mut self, at: Duration, what: T) {
        self.n_entered += 1;
        self.entries.push(Entry { at: at.max(self.now), number: self.n_entered, what });
    }

    /// Enters what happens after a while.
    pub fn after(&mut self, wait: Duration, what: T) {
        self.at(self.now + wait, what);
    }

    /// Takes the next happening up to `until` and moves the clock to it; with none left, moves the clock to `until`.
    pub fn next(&mut self, until: Duration) -> Option<T> {
        if self.entries.peek().is_some_and(|entry| entry.at <= until) {
            let entry = self.entries.pop()?;
            self.now = entry.at;
            return Some(entry.what);
        }
        self.now = self.now.max(until);
        None
    }
}
