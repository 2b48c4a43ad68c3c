//! Puts the parts of long messages together, within bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::{MESSAGE_MAX, PART_MAX};

/// Messages of one peer that are put together at the same time. An honest peer sends a long question or answer and a long notice at most;
/// the rest is room for what it gave up half-way.
const MESSAGES_MAX: usize = 4;
/// Bytes held for one peer and one actor: the longest answer and the longest notice together, with their heads.
const BYTES_MAX: usize = (MESSAGE_MAX + MESSAGE_MAX / 2) + PART_MAX;

/// The incomplete messages of one peer.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    messages: BTreeMap<u64, Incomplete>,
    bytes: usize,
}

#[derive(Debug)]
struct Incomplete {
    bytes: Vec<u8>,
    total: usize,
    forget_at: Instant,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// More are to come.
    Kept,
    /// It was the last: this is the message.
    Whole(Vec<u8>),
    /// It belongs to nothing, or to more than may be held: it is dropped, and its message with it.
    Refused,
}

impl Assembly {
    /// Takes a part. Memory grows only with what has arrived.
    pub(crate) fn add(&mut self, number: u64, offset: u32, total: u32, ttl: Duration, part: &[u8], now: Instant) -> Part {
        self.forget(now);
        let (offset, total) = (offset as usize, total as usize);
        if total > MESSAGE_MAX + PART_MAX || self.bytes + part.len() > BYTES_MAX {
            self.drop_message(number);
            return Part::Refused;
        }
        if offset == 0 && !self.messages.contains_key(&number) {
            if self.messages.len() >= MESSAGES_MAX {
                return Part::Refused;
            }
            self.messages.insert(number, Incomplete { bytes: Vec::new(), total, forget_at: now + ttl.min(Duration::from_secs(600)) });
        }
        let Some(message) = self.messages.get_mut(&number) else { return Part::Refused };
        if message.bytes.len() != offset || message.total != total || offset + part.len() > total || part.is_empty() {
            self.drop_message(number);
            return Part::Refused;
        }
        message.bytes.extend_from_slice(part);
        self.bytes += part.len();
        if message.bytes.len() < total {
            return Part::Kept;
        }
        match self.drop_message(number) {
            Some(message) => Part::Whole(message.bytes),
            None => Part::Refused,
        }
    }

    fn forget(&mut self, now: Instant) {
        let late: Vec<u64> = self.messages.iter().filter(|(_, message)| message.forget_at <= now).map(|(number, _)| *number).collect();
        for number in late {
            self.drop_message(number);
        }
    }

    fn drop_message(&mut self, number: u64) -> Option<Incomplete> {
        let message = self.messages.remove(&number)?;
        self.bytes -= message.bytes.len();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{Assembly, BYTES_MAX, MESSAGES_MAX, Part};

    const TTL: Duration = Duration::from_secs(1);

    #[test]
    fn parts_in_order_become_their_message() {
        let (mut assembly, now) = (Assembly::default(), Instant::now());
        assert_eq!(assembly.add(7, 0, 5, TTL, b"ab", now), Part::Kept);
        assert_eq!(assembly.add(8, 0, 2, TTL, b"xy", now), Part::Whole(b"xy".to_vec()));
        assert_eq!(assembly.add(7, 2, 5, TTL, b"cde", now), Part::Whole(b"abcde".to_vec()));
        assert_eq!(assembly.bytes, 0);
    }

    #[test]
    fn a_gap_a_lie_or_a_late_part_drops_the_message() {
        let (mut assembly, now) = (Assembly::default(), Instant::now());
        assert_eq!(assembly.add(1, 3, 9, TTL, b"abc", now), Part::Refused);
        assert_eq!(assembly.add(1, 0, 9, TTL, b"abc", now), Part::Kept);
        assert_eq!(assembly.add(1, 4, 9, TTL, b"abc", now), Part::Refused);
        assert_eq!(assembly.add(2, 0, 2, TTL, b"abc", now), Part::Refused);
        assert_eq!(assembly.add(3, 0, 6, TTL, b"abc", now), Part::Kept);
        assert_eq!(assembly.add(3, 3, 6, TTL, b"def", now + TTL), Part::Refused);
        assert_eq!(assembly.add(4, 0, u32::MAX, TTL, b"abc", now), Part::Refused);
        assert_eq!(assembly.bytes, 0);
    }

    #[test]
    fn only_few_messages_are_held_at_a_time() {
        let (mut assembly, now) = (Assembly::default(), Instant::now());
        for number in 0..MESSAGES_MAX as u64 {
            assert_eq!(assembly.add(number, 0, 9, TTL, b"abc", now), Part::Kept);
        }
        assert_eq!(assembly.add(99, 0, 9, TTL, b"abc", now), Part::Refused);
        assert_eq!(assembly.add(99, 0, 9, TTL, b"abc", now + TTL), Part::Kept);
    }

    proptest! {
        #[test]
        fn no_sequence_of_parts_holds_more_than_the_bound(
            parts in prop::collection::vec((0u64..6, prop::sample::select(vec![0u32, 1, 60 << 10, 16 << 20]), any::<u32>(), 0usize..(60 << 10)), 0..40)
        ) {
            let (mut assembly, now) = (Assembly::default(), Instant::now());
            for (number, offset, total, len) in parts {
                assembly.add(number, offset, total, TTL, &vec![0; len], now);
                prop_assert!(assembly.bytes <= BYTES_MAX && assembly.messages.len() <= MESSAGES_MAX);
                prop_assert_eq!(assembly.bytes, assembly.messages.values().map(|message| message.bytes.len()).sum::<usize>());
            }
        }
    }
}
