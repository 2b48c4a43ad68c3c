//! Which prefixes of prompts a replica still has in its blocks, by their digests: see [`crate::prefix`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use plexus_engine::kv::{BlockPool, StoredPrefix};

/// Most digests that are remembered: of a hundred conversations of some pages, or of sixteen of half a megabyte. So many make 5 KB of a report.
const REMEMBERED: usize = 1024;

/// The digests noted last, each with the block where what it covers ends.
#[derive(Debug, Default)]
pub struct Prefixes {
    by_digest: HashMap<u32, Noted>,
    /// The digests in the order in which they were noted last.
    order: BTreeMap<u64, u32>,
    clock: u64,
    n_new: u64,
}

#[derive(Debug)]
struct Noted {
    prefix: StoredPrefix,
    at: u64,
}

impl Prefixes {
    /// What a digest covers is stored. Where all of them are remembered that may be, the one noted longest ago is forgotten for it: of one prompt
    /// the longest is to be noted first, so that it goes first, as its block does.
    pub fn note(&mut self, digest: u32, prefix: StoredPrefix) {
        self.clock += 1;
        match self.by_digest.insert(digest, Noted { prefix, at: self.clock }) {
            Some(before) => drop(self.order.remove(&before.at)),
            None => self.n_new += 1,
        }
        self.order.insert(self.clock, digest);
        if self.order.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.by_digest.remove(&oldest);
        }
    }

    /// Digests that came so far: with the evictions of the pool it tells whether [`Self::held`] may have changed.
    pub fn n_new(&self) -> u64 {
        self.n_new
    }

    /// The digests whose tokens are still in the pool, sorted. The others are forgotten.
    pub fn held(&mut self, pool: &BlockPool) -> Arc<[u32]> {
        let order = &mut self.order;
        self.by_digest.retain(|_, noted| {
            let is_held = pool.still_holds(noted.prefix);
            if !is_held {
                order.remove(&noted.at);
            }
            is_held
        });
        let mut held: Vec<u32> = self.by_digest.keys().copied().collect();
        held.sort_unstable();
        held.into()
    }
}

#[cfg(test)]
mod tests {
    use plexus_engine::kv::BlockTable;
    use proptest::prelude::*;

    use super::*;

    const LEN: u32 = 16;

    fn seat(pool: &mut BlockPool, tokens: &[u32]) -> BlockTable {
        let (mut table, _) = pool.open(tokens, 0).unwrap();
        pool.take_copy(&mut table);
        pool.store(&mut table, tokens.len() as u32, |position| tokens[position as usize]);
        table
    }

    #[test]
    fn what_was_evicted_is_no_longer_held() {
        let mut pool = BlockPool::new(4, LEN);
        let mut prefixes = Prefixes::default();
        let table = seat(&mut pool, &[1; 64]);
        for (digest, n_tokens) in [(70, 64), (60, 32), (80, 16)] {
            prefixes.note(digest, pool.stored_prefix(&table, n_tokens).unwrap());
        }
        pool.release(table);
        assert_eq!((&*prefixes.held(&pool), prefixes.n_new()), (&[60, 70, 80][..], 3));
        let other = seat(&mut pool, &[2; 16]);
        assert_eq!((&*prefixes.held(&pool), pool.n_evicted()), (&[60, 80][..], 1), "the end of it goes first");
        pool.release(other);
        let again = seat(&mut pool, &[1; 64]);
        assert_eq!(&*prefixes.held(&pool), [60, 80], "what came anew was not noted anew");
        pool.release(again);
    }

    proptest! {
        #[test]
        fn no_more_are_remembered_than_may_be_and_those_noted_last_are(digests in prop::collection::vec(0u32..3000, 0..6000)) {
            let mut pool = BlockPool::new(1, LEN);
            let mut prefixes = Prefixes::default();
            let table = seat(&mut pool, &[1; 16]);
            let prefix = pool.stored_prefix(&table, 16).unwrap();
            digests.iter().for_each(|digest| prefixes.note(*digest, prefix));
            pool.release(table);
            let mut wanted: Vec<u32> = Vec::new();
            for digest in digests.iter().rev() {
                if wanted.len() < REMEMBERED && !wanted.contains(digest) {
                    wanted.push(*digest);
                }
            }
            wanted.sort_unstable();
            prop_assert_eq!(&*prefixes.held(&pool), wanted.as_slice());
            prop_assert_eq!(prefixes.order.len(), prefixes.by_digest.len());
            pool.open(&[2; 16], 0).unwrap();
            prop_assert!(prefixes.held(&pool).is_empty() && prefixes.order.is_empty());
        }
    }
}
