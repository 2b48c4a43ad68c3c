//! What the next step computes.

use super::draft::{Candidate, Ration};
use super::promise::UNKNOWN;
use super::{Entry, Member, Scheduler};

impl<T> Scheduler<T> {
    /// Those that generate come first, each with all that it has to compute; then prompts, in chunks, as far as the step has room for them, so that
    /// a long prompt does not stop the others' tokens (CX-95).
    pub(super) fn form_step(&mut self) -> Vec<Member> {
        let generates = |sequence: &super::Sequence| !sequence.is_prefilling() && sequence.pending() > 0;
        let numbers: Vec<u64> = self.running.iter().filter(|entry| generates(&entry.sequence)).map(|entry| entry.number).collect();
        for number in numbers {
            self.make_room(number);
        }
        let generating = self.running.iter().enumerate().filter(|(_, entry)| generates(&entry.sequence));
        let mut members: Vec<Member> =
            generating.map(|(place, entry)| Member { place, n: entry.sequence.pending(), is_prompt: false }).collect();
        let n_guesses = self.guess(&members);
        let room = self.speeds.prompt_tokens(members.len(), self.beside, self.limits.prompt_tokens_max);
        let room = room.saturating_sub(n_guesses).max(room.min(1)); // a row is a row, but prompts are always read on
        let prompts: Vec<Prompt> = (self.running.iter().enumerate())
            .filter(|(_, entry)| entry.sequence.is_prefilling() && entry.sequence.pending() > 0)
            .map(|(place, entry)| Prompt { place, left: entry.sequence.pending(), passed_over: entry.passed_over })
            .collect();
        let shares = share(&prompts, room);
        let n_shared: u32 = shares.iter().map(|(_, n)| n).sum();
        for Prompt { place, .. } in prompts {
            let own = shares.iter().find(|(other, _)| *other == place).map_or(0, |(_, n)| *n);
            let passed_over = &mut self.running[place].passed_over;
            *passed_over = passed_over.saturating_add(n_shared - own);
        }
        members.extend(shares.into_iter().map(|(place, n)| Member { place, n, is_prompt: true }));
        members
    }

    /// Lets those who generate guess, as far as further rows cost little, each as many as the others; for those that find nothing in their own text
    /// a draft model may guess, unless a prompt is being read. Nobody is preempted for a guess. Gives their number.
    fn guess(&mut self, members: &[Member]) -> u32 {
        let room = self.speeds.guesses(members.len()).min(self.limits.guesses_max);
        let (mut n_guesses, mut without) = (0, Vec::new());
        for (i, Member { place, .. }) in members.iter().enumerate() {
            let share = (room - n_guesses).div_ceil((members.len() - i) as u32);
            if self.running[*place].sequence.guess(share) == 0 {
                without.push(*place);
            }
            n_guesses += self.give_room_to_guesses(*place);
        }
        n_guesses + self.draft(members.len(), &without)
    }

    /// Lets a draft model guess for those at these `places`, of `n_generating`. Gives the number of guesses.
    fn draft(&mut self, n_generating: usize, places: &[usize]) -> u32 {
        let is_reading = self.running.iter().any(|entry| entry.sequence.is_prefilling() && entry.sequence.pending() > 0);
        if is_reading || self.limits.drafts_max == 0 {
            return 0;
        }
        let candidates: Vec<Candidate> = places.iter().map(|place| self.candidate(&self.running[*place])).collect();
        let rations = self.speeds.drafts(n_generating, &candidates, self.limits.drafts_max);
        let mut n_guesses = 0;
        for (place, Ration { n, n_read }) in places.iter().zip(rations) {
            self.running[*place].sequence.let_draft(n, n_read);
            n_guesses += self.give_room_to_guesses(*place);
        }
        n_guesses
    }

    /// An answer is expected to become as long as others; one that is longer already, by half as much again.
    fn candidate(&self, entry: &Entry<T>) -> Candidate {
        let n_sampled = entry.sequence.n_sampled() as f32;
        let mean = self.answers.mean().unwrap_or(UNKNOWN as f32);
        let n_left = (mean - n_sampled).max(0.5 * n_sampled).min((entry.sequence.n_max() - entry.sequence.n_known()) as f32);
        Candidate { right: self.speeds.drafts_right(entry.right), n_unread: entry.n_unread, n_left }
    }

    /// Extends a sequence's blocks for its guesses; those for which there is no room are dropped. Gives the number of the others.
    fn give_room_to_guesses(&mut self, place: usize) -> u32 {
        let sequence = &self.running[place].sequence;
        let wanted = sequence.n_known() + sequence.n_guesses();
        let has_room = self.extend(place, wanted);
        let sequence = &mut self.running[place].sequence;
        if !has_room {
            sequence.keep_guesses(sequence.table().blocks().len() as u32 * self.limits.block_len - sequence.n_known());
        }
        sequence.n_guesses()
    }
}

/// A prompt that is being read.
#[derive(Debug, Clone, Copy)]
struct Prompt {
    /// Its sequence's place.
    place: usize,
    /// Tokens to read.
    left: u32,
    /// Tokens that were read for others meanwhile.
    passed_over: u32,
}

/// Which prompts are read on in this step, each with how many tokens: the shortest rest first, so that a short prompt does not wait for a long
/// one, and of equals the one that came first. Tokens read for others meanwhile count as read: so that a prompt is passed over for no more
/// tokens than it has itself, and a stream of short prompts does not starve a long one.
fn share(prompts: &[Prompt], mut room: u32) -> Vec<(usize, u32)> {
    let mut order: Vec<&Prompt> = prompts.iter().collect();
    order.sort_by_key(|prompt| (prompt.left.saturating_sub(prompt.passed_over), prompt.place));
    let mut shares = Vec::new();
    for prompt in order {
        let n = prompt.left.min(room);
        if n > 0 {
            room -= n;
            shares.push((prompt.place, n));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt(place: usize, left: u32, passed_over: u32) -> Prompt {
        Prompt { place, left, passed_over }
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one_that_came_before() {
        assert_eq!(share(&[prompt(0, 4000, 0), prompt(1, 30, 0)], 64), [(1, 30), (0, 34)]);
    }

    #[test]
    fn of_two_that_are_as_long_the_first_is_read_first() {
        assert_eq!(share(&[prompt(0, 100, 0), prompt(1, 100, 0)], 64), [(0, 64)]);
    }

    proptest! {
        #[test]
        fn a_prompt_is_passed_over_for_little_more_than_its_own_length(long in 1u32..500, others in prop::collection::vec(1u32..100, 1..200)) {
            const ROOM: u32 = 32;
            let (mut mine, mut short) = (prompt(0, long, 0), prompt(1, 0, 0));
            for other in others {
                short = if short.left == 0 { prompt(1, other, 0) } else { short }; // the next comes as soon as one is read
                let shares = share(&[mine, short], ROOM);
                let share_of = |place: usize| shares.iter().find(|(of, _)| *of == place).map_or(0, |(_, n)| *n);
                prop_assert_eq!(share_of(0) + share_of(1), ROOM.min(mine.left + short.left));
                mine = prompt(0, mine.left - share_of(0), mine.passed_over + share_of(1));
                short = prompt(1, short.left - share_of(1), 0);
                if mine.left == 0 { break; }
                prop_assert!(mine.passed_over <= long + 100 + ROOM, "{:?}", mine);
            }
        }
    }
}
