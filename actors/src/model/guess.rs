//! Guesses of a sequence's next tokens from its own text: where its last tokens stood before, the same may follow again.
//!
//! Costs nothing but rows of a step, which are cheap while few sequences run, and changes no token: a draw depends on its position and on the
//! tokens before it only. Pays where an answer quotes: code that is edited, documents that are summarised, tool calls that repeat names.
//! Source: prompt lookup decoding, Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>.

use std::collections::HashMap;

/// Tokens that must have stood together before: fewer recur by chance.
const GRAM: usize = 3;
/// Earlier occurrences that are looked at, the latest first.
const CANDIDATES_MAX: usize = 16;
/// How far back two occurrences are compared.
const SUFFIX_MAX: u32 = 32;
/// Tokens guessed at first, and at least.
const LENGTH_FIRST: u32 = 4;
const LENGTH_MIN: u32 = 2;
/// Most tokens guessed at a time.
pub const LENGTH_MAX: u32 = 16;
/// After so many wrong guesses in a row the pause between two of them grows no more.
const MISSES_MAX: u32 = 6;
/// A passage that was followed for so many tokens, and then differed in one, is taken to have been edited there: it may go on behind that.
const FOLLOWED_MIN: u32 = 2;
/// Tokens guessed of how it goes on, and times that this is tried.
const RESUMED_LEN: u32 = 3;
const RESUME_TRIES: u32 = 2;

/// Finds guesses in a sequence's tokens, and learns how far they can be trusted there.
#[derive(Debug, Clone)]
pub struct Guesser {
    /// Where each gram ended last.
    last: HashMap<[u32; GRAM], u32>,
    /// `[n_read]` where the gram that ends at a position ended the time before; the position itself if never.
    before: Vec<u32>,
    /// Tokens to guess at a time.
    length: u32,
    /// Guesses in a row of which nothing was right.
    misses: u32,
    /// Steps to sit out.
    pause: u32,
    /// The latest guess.
    latest: Followed,
    /// [`Followed::back`] of a passage that was left lately, and how often it may still be tried whether the text has come back to it.
    left: u32,
    tries: u32,
}

/// A passage that is guessed from.
#[derive(Debug, Clone, Copy, Default)]
struct Followed {
    /// Tokens from a token of it to the one that repeats it.
    back: u32,
    /// The last tokens are not like it: it was left before, and is taken up again.
    resumed: bool,
}

impl Default for Guesser {
    fn default() -> Self {
        Self {
            last: HashMap::new(),
            before: Vec::new(),
            length: LENGTH_FIRST,
            misses: 0,
            pause: 0,
            latest: Followed::default(),
            left: 0,
            tries: 0,
        }
    }
}

impl Guesser {
    /// Reads on up to `n` tokens of the sequence: each token once.
    pub fn read(&mut self, n: u32, token: impl Fn(u32) -> u32) {
        for end in self.before.len() as u32..n {
            let earlier = gram(end, &token).and_then(|gram| self.last.insert(gram, end));
            self.before.push(earlier.unwrap_or(end));
        }
    }

    /// Guesses up to `max` tokens that follow those read: what followed the longest of the like passages, of equals the latest; or else how the
    /// passage goes on that was followed until one of its tokens was replaced by another. Empty if there is none, or guessing does not pay at
    /// present.
    pub fn guess(&mut self, max: u32, token: impl Fn(u32) -> u32) -> Vec<u32> {
        let Some(end) = self.before.len().checked_sub(1).map(|end| end as u32) else { return Vec::new() };
        let found = if self.pause > 0 {
            self.pause -= 1;
            None
        } else {
            self.find(end, &token)
        };
        let (followed, length) = match found {
            Some(found) => (Followed { back: end - found, resumed: false }, self.length),
            None if self.tries > 0 => (Followed { back: self.left, resumed: true }, RESUMED_LEN),
            None => return Vec::new(),
        };
        self.latest = followed;
        let mut guesses: Vec<u32> = Vec::new();
        for position in end + 1..=end + max.min(length) {
            // A passage that reaches into the guesses repeats itself.
            let source = position - followed.back;
            guesses.push(if source <= end { token(source) } else { guesses[(source - end - 1) as usize] });
        }
        guesses
    }

    /// Where the longest passage ended before that is like the last tokens, of equals the latest.
    fn find(&self, end: u32, token: impl Fn(u32) -> u32) -> Option<u32> {
        let alike = |other: u32| (0..SUFFIX_MAX.min(other + 1)).take_while(|back| token(other - back) == token(end - back)).count();
        let mut best: Option<(usize, u32)> = None;
        let mut candidate = end;
        for _ in 0..CANDIDATES_MAX {
            let earlier = self.before[candidate as usize];
            if earlier == candidate {
                break;
            }
            candidate = earlier;
            let n_alike = alike(candidate);
            if best.is_none_or(|(so_far, _)| n_alike > so_far) {
                best = Some((n_alike, candidate));
            }
        }
        best.map(|(_, found)| found)
    }

    /// Of the `n_guessed` tokens of the latest guess the first `n_right` were right. Twice as many are tried after all were, and after none was, a
    /// pause is made, which doubles with each such guess.
    pub fn on_outcome(&mut self, n_guessed: u32, n_right: u32) {
        if n_guessed == 0 {
            return;
        }
        let Followed { back, resumed } = self.latest;
        if n_right >= FOLLOWED_MIN || resumed && n_right > 0 {
            (self.left, self.tries) = (back, RESUME_TRIES);
        } else {
            self.tries = self.tries.saturating_sub(1);
        }
        if resumed {
            // To try is cheap and rare: no pause is made for it.
            if n_right == n_guessed {
                (self.misses, self.pause) = (0, 0);
                self.length = self.length.max(LENGTH_FIRST);
            }
            return;
        }
        if n_right == 0 {
            self.misses = (self.misses + 1).min(MISSES_MAX);
            self.pause = 1 << self.misses;
            self.length = LENGTH_MIN;
            return;
        }
        self.misses = 0;
        let length = if n_right == n_guessed { self.length.max(n_guessed) * 2 } else { n_right + 1 };
        self.length = length.clamp(LENGTH_MIN, LENGTH_MAX);
    }
}

/// The gram that ends at a position.
fn gram(end: u32, token: impl Fn(u32) -> u32) -> Option<[u32; GRAM]> {
    let first = (end + 1).checked_sub(GRAM as u32)?;
    Some(std::array::from_fn(|i| token(first + i as u32)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guess(tokens: &[u32], max: u32) -> Vec<u32> {
        let mut guesser = Guesser { length: LENGTH_MAX, ..Guesser::default() };
        guesser.read(tokens.len() as u32, |position| tokens[position as usize]);
        guesser.guess(max, |position| tokens[position as usize])
    }

    #[test]
    fn what_followed_the_same_tokens_before_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 3), [4, 5, 6]);
        assert_eq!(guess(&[1, 2, 3, 4, 9, 2, 3], 3), [] as [u32; 0], "two tokens are too few");
        assert_eq!(guess(&[1, 2], 3), [] as [u32; 0]);
        assert_eq!(guess(&[], 3), [] as [u32; 0]);
    }

    #[test]
    fn the_longest_of_the_like_passages_is_followed_and_of_equals_the_latest() {
        assert_eq!(guess(&[7, 1, 2, 3, 40, 8, 1, 2, 3, 50, 7, 1, 2, 3], 1), [40]);
        assert_eq!(guess(&[8, 1, 2, 3, 40, 8, 1, 2, 3, 50, 8, 1, 2, 3], 1), [50]);
    }

    #[test]
    fn a_passage_that_repeats_itself_is_guessed_on_and_on() {
        assert_eq!(guess(&[1, 2, 1, 2, 1, 2], 7), [1, 2, 1, 2, 1, 2, 1]);
        assert_eq!(guess(&[5, 5, 5, 5], 3), [5, 5, 5]);
    }

    #[test]
    fn wrong_guesses_become_rare_and_right_ones_long() {
        let tokens = [1, 2, 3, 1, 2, 3, 1, 2, 3];
        let token = |position: u32| tokens[position as usize];
        let mut guesser = Guesser::default();
        guesser.read(9, token);
        let mut lengths = Vec::new();
        for _ in 0..4 {
            let n = guesser.guess(100, token).len() as u32;
            lengths.push(n);
            guesser.on_outcome(n, n);
        }
        assert_eq!(lengths, [4, 8, 16, 16]);
        let mut n_guesses = 0;
        for _ in 0..1000 {
            let n = guesser.guess(100, token).len() as u32;
            n_guesses += u32::from(n > 0);
            guesser.on_outcome(n, 0);
        }
        assert!(n_guesses < 25, "{n_guesses} of 1000 steps were spent on wrong guesses");
        guesser.pause = 0;
        guesser.on_outcome(2, 1);
        assert_eq!(guesser.guess(100, token).len(), 2);
    }

    #[test]
    fn a_passage_is_taken_up_again_behind_a_token_that_was_replaced() {
        let (source, edited) = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 5, 40]);
        let text: Vec<u32> = source.iter().chain(&edited).copied().collect();
        let known = |n: usize| {
            let text = &text;
            move |position: u32| *text[..n].get(position as usize).expect("only known tokens are asked for")
        };
        let mut guesser = Guesser::default();
        guesser.read(15, known(15));
        assert_eq!(guesser.guess(8, known(15)), [4, 5, 6, 7]);
        guesser.on_outcome(4, 2); // 4, 5, and then 40 in place of 6
        guesser.read(18, known(18));
        assert_eq!(guesser.guess(8, known(18)), [7, 8, 9]);
        guesser.on_outcome(3, 0);
        assert_eq!(guesser.guess(8, known(18)), [7, 8, 9], "once more, if not at once");
        guesser.on_outcome(3, 0);
        assert_eq!(guesser.guess(8, known(18)), [] as [u32; 0]);
    }

    proptest! {
        #[test]
        fn reading_piece_by_piece_guesses_the_same(tokens in prop::collection::vec(0u32..3, 0..60), cut in 0usize..60, max in 0u32..10) {
            let token = |position: u32| tokens[position as usize];
            let mut pieces = Guesser { length: LENGTH_MAX, ..Guesser::default() };
            pieces.read(cut.min(tokens.len()) as u32, token);
            pieces.read(tokens.len() as u32, token);
            let guesses = pieces.guess(max, token);
            prop_assert_eq!(&guesses, &guess(&tokens, max));
            prop_assert!(guesses.len() as u32 <= max);
            if let Some(first) = guesses.first() {
                let last = &tokens[tokens.len() - GRAM..];
                prop_assert!(tokens.windows(GRAM + 1).any(|window| window[..GRAM] == *last && window[GRAM] == *first));
            }
        }
    }
}
