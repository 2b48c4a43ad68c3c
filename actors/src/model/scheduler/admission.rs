//! Who gets a place, and who loses it.

use super::{Entry, Scheduler};

impl<T> Scheduler<T> {
    /// First come, first served: nobody overtakes one who waits for blocks. Passed over are those whose client is behind, those who wait for a
    /// prompt that is being read now and begins as theirs does, those without a key while one with a key waits, and those of a key that has more
    /// places than another which waits (CX-93). Where all places are taken, whoever runs and whose client is behind gives up its own, the youngest
    /// first: so that clients that read slowly, or not at all, keep no place that another could use.
    pub(super) fn admit(&mut self, on_place: &mut impl FnMut(&mut T)) {
        let mut i = 0;
        while i < self.waiting.len() {
            let is_full = self.running.len() >= self.limits.running_max as usize;
            if is_full && !self.running.iter().any(Entry::is_stalled) {
                return;
            }
            let Entry { number, sequence, had_place, .. } = &self.waiting[i];
            let may_come = if self.closed { *had_place } else { !self.is_behind_others(i) };
            if !may_come || sequence.pending() == 0 || self.is_being_read(*number, &sequence.known()) {
                i += 1;
            } else if is_full {
                self.preempt_stalled(&mut i);
            } else if !self.seat(i, on_place) {
                return;
            }
        }
    }

    /// Does somebody with a key wait who comes before it: before anybody without a key, or with fewer places? That one is next, then.
    fn is_behind_others(&self, i: usize) -> bool {
        let mut keyed = self.waiting.iter().enumerate().filter(|(_, other)| other.principal.is_some() && other.sequence.pending() > 0);
        if self.waiting[i].principal.is_none() {
            return keyed.next().is_some();
        }
        let places = |entry: &Entry<T>| self.running.iter().filter(|other| !other.cancelled && other.principal == entry.principal).count();
        let mine = places(&self.waiting[i]);
        mine > 0 && keyed.any(|(at, other)| at > i && places(other) < mine)
    }

    /// Gives a place to one that waits, if there are blocks for all its known tokens and for what it is to be promised, beside what is kept for others.
    fn seat(&mut self, mut i: usize, on_place: &mut impl FnMut(&mut T)) -> bool {
        let known = self.waiting[i].sequence.known();
        let promised = self.promise_to(&self.waiting[i]);
        let n_ahead = self.limits.blocks(promised) - self.limits.blocks(known.len() as u32);
        let (table, n_cached) = loop {
            if let Some(opened) = self.pool.open(&known, self.set_aside() + n_ahead) {
                break opened;
            }
            if !self.preempt_stalled(&mut i) {
                return false;
            }
        };
        let Some(mut entry) = self.waiting.remove(i) else { return false };
        (entry.promised, entry.kept) = (promised, promised);
        entry.had_place = true;
        if entry.sequence.give_place(table, n_cached) {
            self.counts.cached_tokens += u64::from(entry.sequence.n_cached());
        }
        on_place(&mut entry.owner);
        let place = self.running.partition_point(|other| other.number < entry.number);
        self.running.insert(place, entry);
        true
    }

    /// Is an older sequence reading a prompt that agrees with these tokens in more blocks than are stored already? It is read once, then.
    ///
    /// The wait is bounded: only older ones are waited for, and only while they can run.
    fn is_being_read(&self, number: u64, tokens: &[u32]) -> bool {
        let wanted = tokens.len().saturating_sub(1);
        let shared_with = |entry: &Entry<T>| {
            let agreeing = (0..wanted as u32)
                .zip(tokens)
                .take_while(|(position, token)| *position < entry.sequence.n_known() && entry.sequence.token(*position) == **token);
            agreeing.count() as u32 / self.limits.block_len * self.limits.block_len
        };
        let readers = self.running.iter().filter(|entry| entry.number < number && entry.sequence.is_prefilling() && !entry.is_stalled());
        let shared = readers.filter(|entry| !entry.cancelled).map(shared_with).max().unwrap_or(0);
        shared > 0 && shared > self.pool.n_found(tokens)
    }

    /// Makes room for all known tokens of one that runs, by preempting others if need be: those whose client is behind, then the youngest of those
    /// that have gone beyond their promise, of which it is one. False if it had to go itself.
    pub(super) fn make_room(&mut self, number: u64) -> bool {
        loop {
            let Ok(place) = self.running.binary_search_by_key(&number, |entry| entry.number) else { return false };
            self.keep_more(place);
            if self.extend(place, self.running[place].sequence.n_known()) {
                return true;
            }
            let youngest = |is_it: fn(&Entry<T>) -> bool| self.running.iter().rposition(is_it);
            let victim = youngest(Entry::is_stalled).or_else(|| youngest(Entry::is_beyond_promise)).unwrap_or(place);
            self.preempt(victim);
            if victim == place {
                return false;
            }
        }
    }

    /// Sends the youngest whose client is behind back into the queue, for the one that waits at `i`, which follows that one if it moves. False if
    /// there is none.
    fn preempt_stalled(&mut self, i: &mut usize) -> bool {
        let Some(stalled) = self.running.iter().rposition(Entry::is_stalled) else { return false };
        let entry = &self.running[stalled];
        *i += usize::from(!entry.cancelled && entry.number < self.waiting[*i].number); // it will wait before that one
        self.preempt(stalled);
        true
    }

    /// Sends one that runs back into the queue, to its old place.
    fn preempt(&mut self, place: usize) {
        let entry = self.remove(place);
        if entry.cancelled {
            return;
        }
        self.counts.preemptions += 1;
        let i = self.waiting.partition_point(|other| other.number < entry.number);
        self.waiting.insert(i, entry);
    }
}

impl<T> Entry<T> {
    /// It has a place and cannot use it now: its client is behind, or has left.
    pub(super) fn is_stalled(&self) -> bool {
        self.cancelled || self.sequence.pending() == 0
    }
}
