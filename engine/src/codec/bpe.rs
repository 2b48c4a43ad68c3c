//! Byte-pair encoding over a vocabulary that is held compactly.
//!
//! The tokenizer library has a model of this kind too. It holds every token as two strings, which takes four times the memory (31 MB for a vocabulary
//! of 151,000 tokens: nearly a tenth of the weights of a small model), and several times as long to build. This one gives the same tokens,
//! which the tests prove; all that stands around it (normalizers, pre-tokenizers, added tokens) is the library's.
//!
//! Source of the method: Sennrich et al. 2016, arXiv:1508.07909; the merge of the best rank first, of equal ones the leftmost.

mod json;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap as StdHashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

use crate::model::Texts;

/// Characters below this have their token in a table: those that stand for bytes ([`super::vocabulary`]) are among them.
const TABLE_LEN: usize = 0x180;

/// Merges are looked for by so many threads, each of which has at least so many to find.
const THREADS_MAX: usize = 8;
const PIECE_MIN: usize = 16 << 10;

/// Hashes of tokens, and their ids.
type IdsByHash = HashTable<(u64, u32)>;

/// How texts are cut and what is done with what no token spells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The token that stands for characters without one; without it they are left out.
    pub(super) unknown: Option<String>,
    /// Neighbouring unknown characters become one token.
    pub(super) fuse_unknown: bool,
    /// Unknown characters become tokens of their bytes, `<0x41>`, where those exist.
    pub(super) byte_fallback: bool,
    /// A word that is a token is that token, whatever its merges give.
    pub(super) ignore_merges: bool,
}

/// Tokens and merges.
pub(crate) struct Bpe {
    texts: Texts,
    /// The id of each text, ascending; absent where it is the text's index.
    ids: Option<Box<[u32]>>,
    /// Indices of the texts by their hash; of equal texts only the first.
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// What a pair of tokens becomes.
    merges: HashMap<(u32, u32), Merge>,
    options: Options,
    /// The token of [`Options::unknown`], if it is in the vocabulary.
    unknown_id: Option<u32>,
    /// The tokens of single bytes.
    bytes: Box<[Option<u32>; 256]>,
    /// The tokens of the first characters.
    characters: Box<[Option<u32>; TABLE_LEN]>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    /// The lowest is done first.
    rank: u32,
    /// The token that the pair becomes.
    id: u32,
}

/// A merge of tokens that the vocabulary lacks.
#[derive(Debug, thiserror::Error)]
#[error("it merges tokens that it does not have: {left:?} and {right:?}")]
pub(super) struct UnknownMerge {
    left: String,
    right: String,
}

impl Bpe {
    /// A vocabulary without merges. A token's id is its index; of equal tokens the first counts.
    pub(super) fn new(texts: Texts, options: Options) -> Self {
        Self::with_ids(texts, None, options)
    }

    /// The same, but the tokens' ids are `ids`, ascending.
    fn with_ids(texts: Texts, ids: Option<Box<[u32]>>, options: Options) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut by_text = HashTable::with_capacity(texts.len());
        let at = |index: u32| texts.get(index as usize).unwrap_or_default();
        for (index, text) in (0u32..).zip(texts.iter()) {
            let rehash = |index: &u32| hasher.hash_one(at(*index));
            by_text.entry(hasher.hash_one(text), |index| at(*index) == text, rehash).or_insert(index);
        }
        let none = || Box::new([None; 256]);
        let characters = Box::new([None; TABLE_LEN]);
        let merges = HashMap::default();
        let mut bpe = Self { texts, ids, by_text, hasher, merges, options, unknown_id: None, bytes: none(), characters };
        bpe.unknown_id = bpe.options.unknown.as_deref().and_then(|text| bpe.id_of(text));
        *bpe.bytes = std::array::from_fn(|byte| bpe.id_of(&format!("<{byte:#04X}>")));
        *bpe.characters = std::array::from_fn(|c| bpe.id_of(char::from_u32(c as u32)?.encode_utf8(&mut [0; 4])));
        bpe
    }

    /// Adds merges of tokens by their texts, the best first. Of equal ones the last counts.
    ///
    /// A vocabulary has hundreds of thousands, and to find their tokens takes longer than to read a small model: so several threads look.
    pub(super) fn merge_texts<'a>(&mut self, merges: &[(&'a str, &'a str)]) -> Result<(), UnknownMerge> {
        let ids = self.by_hash();
        let n_threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
        let piece = merges.len().div_ceil(n_threads).max(PIECE_MIN);
        let found = thread::scope(|scope| {
            let look = |merges| self.find_merges(merges, ids.as_ref());
            let others: Vec<_> = merges.chunks(piece).skip(1).map(|merges| scope.spawn(move || look(merges))).collect();
            let own = look(&merges[..piece.min(merges.len())]);
            let others = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            std::iter::once(own).chain(others).collect::<Result<Vec<_>, _>>()
        })?;
        self.merges.reserve(merges.len());
        self.merge_ids(found.into_iter().flatten());
        Ok(())
    }

    /// The tokens of merges, and what each becomes.
    fn find_merges(&self, merges: &[(&str, &str)], ids: Option<&IdsByHash>) -> Result<Vec<(u32, u32, u32)>, UnknownMerge> {
        let id_of = |text: &str| match ids {
            Some(ids) => {
                let hash = self.hasher.hash_one(text);
                ids.find(hash, |(other, _)| *other == hash).map(|(_, id)| *id)
            }
            None => self.id_of(text),
        };
        let all_differ = self.by_text.len() == self.texts.len();
        let (mut whole, mut index) = (String::new(), 0);
        let find = |(left, right): &(&str, &str)| {
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            // Most vocabularies have tokens in the order in which merges make them: this one or the next, and few have to be looked for.
            let is = |index: &u32| self.texts.get(*index as usize).is_some_and(|text| text.bytes().eq(whole.bytes()));
            let near = (index..index + 2).find(is).filter(|_| all_differ);
            let found = near.or_else(|| self.index_of(&whole));
            index = found.unwrap_or(index);
            let id = found.map(|index| self.id_at(index));
            let unknown = || UnknownMerge { left: (*left).to_owned(), right: (*right).to_owned() };
            id_of(left).zip(id_of(right)).zip(id).map(|((left, right), id)| (left, right, id)).ok_or_else(unknown)
        };
        merges.iter().map(find).collect()
    }

    /// The ids of all tokens by the hashes of their texts, if no two are equal: where hundreds of thousands are looked up, most of the time would go
    /// to texts that lie far from each other. A text that is no token is taken for one with a probability of 2^-46.
    fn by_hash(&self) -> Option<IdsByHash> {
        let mut ids = IdsByHash::with_capacity(self.by_text.len());
        for index in &self.by_text {
            let hash = self.hasher.hash_one(self.texts.get(*index as usize)?);
            match ids.entry(hash, |(other, _)| *other == hash, |(hash, _)| *hash) {
                Entry::Occupied(_) => return None,
                Entry::Vacant(free) => free.insert((hash, self.id_at(*index))),
            };
        }
        Some(ids)
    }

    /// Adds merges of tokens by their ids, `(left, right, whole)`, the best first. Of equal ones the last counts.
    pub(super) fn merge_ids(&mut self, merges: impl Iterator<Item = (u32, u32, u32)>) {
        self.merges.extend((0..).zip(merges).map(|(rank, (left, right, id))| ((left, right), Merge { rank, id })));
    }

    /// Every token and its id, but for those whose text another has already.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let all_differ = self.by_text.len() == self.texts.len();
        let tokens = (0u32..).zip(self.texts.iter()).map(|(index, text)| (self.id_at(index), text));
        tokens.filter(move |(id, text)| all_differ || self.id_of(text) == Some(*id))
    }

    /// The id of the token with this text.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.index_of(text).map(|index| self.id_at(index))
    }

    fn index_of(&self, text: &str) -> Option<u32> {
        self.by_text.find(self.hasher.hash_one(text), |index| self.texts.get(*index as usize) == Some(text)).copied()
    }

    /// The text of a token.
    fn text_of(&self, id: u32) -> Option<&str> {
        let index = match &self.ids {
            None => id as usize,
            Some(ids) => ids.partition_point(|other| *other <= id).checked_sub(1).filter(|index| ids[*index] == id)?,
        };
        self.texts.get(index)
    }

    fn id_at(&self, index: u32) -> u32 {
        self.ids.as_ref().map_or(index, |ids| ids[index as usize])
    }

    fn id_of_character(&self, character: char) -> Option<u32> {
        match self.characters.get(character as usize) {
            Some(id) => *id,
            None => self.id_of(character.encode_utf8(&mut [0; 4])),
        }
    }

    /// The tokens of the characters of a word, and of their bytes where they have none.
    fn split(&self, word: &str) -> Result<Vec<Symbol>, String> {
        let mut symbols = Vec::with_capacity(word.len());
        let mut push = |id: u32, len: usize| symbols.push(Symbol { id, len, previous: None, next: None });
        let mut unknown: Option<(u32, usize)> = None;
        for character in word.chars() {
            let len = character.len_utf8();
            if let Some(id) = self.id_of_character(character) {
                unknown.take().into_iter().for_each(|(id, len)| push(id, len));
                push(id, len);
                continue;
            }
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).bytes().map(|byte| self.bytes[usize::from(byte)]);
            if self.options.byte_fallback && bytes.clone().all(|id| id.is_some()) {
                bytes.flatten().for_each(|id| push(id, 1)); // before an unknown one that is still open, as the library has it
            } else if let Some(text) = &self.options.unknown {
                let id = self.unknown_id.ok_or_else(|| format!("the token for unknown characters, {text:?}, is not in the vocabulary"))?;
                let open = unknown.take();
                unknown = match open {
                    Some((id, open)) if self.options.fuse_unknown => Some((id, open + len)),
                    _ => {
                        open.into_iter().for_each(|(id, len)| push(id, len));
                        Some((id, len))
                    }
                };
            }
        }
        unknown.into_iter().for_each(|(id, len)| push(id, len));
        Ok(symbols)
    }

    /// Merges neighbours until no pair has a merge. What is left has a `len`.
    fn merge(&self, symbols: &mut [Symbol]) {
        let last = symbols.len().saturating_sub(1);
        for (at, symbol) in symbols.iter_mut().enumerate() {
            (symbol.previous, symbol.next) = (at.checked_sub(1), (at < last).then_some(at + 1));
        }
        let pair = |left: Symbol, right: Symbol| self.merges.get(&(left.id, right.id)).copied();
        let candidates = symbols.windows(2).enumerate();
        let candidates = candidates.filter_map(|(at, two)| pair(two[0], two[1]).map(|merge| Reverse((merge.rank, at, merge.id))));
        let mut candidates: BinaryHeap<_> = candidates.collect();
        while let Some(Reverse((_, at, id))) = candidates.pop() {
            let left = symbols[at];
            let Some(next) = left.next.filter(|_| left.len > 0) else { continue };
            let right = symbols[next];
            if pair(left, right).is_none_or(|merge| merge.id != id) {
                continue; // one of the two has become another since
            }
            let merged = Symbol { id, len: left.len + right.len, previous: left.previous, next: right.next };
            symbols[at] = merged;
            symbols[next].len = 0;
            if let Some(next) = merged.next {
                symbols[next].previous = Some(at);
                candidates.extend(pair(merged, symbols[next]).map(|merge| Reverse((merge.rank, at, merge.id))));
            }
            if let Some(previous) = merged.previous {
                candidates.extend(pair(symbols[previous], merged).map(|merge| Reverse((merge.rank, previous, merge.id))));
            }
        }
    }
}

/// A token of a word that is being merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    /// Bytes of the word; none once it was merged into the one before.
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl fmt::Debug for Bpe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n_tokens, n_merges) = (self.by_text.len(), self.merges.len());
        f.debug_struct("Bpe").field("tokens", &n_tokens).field("merges", &n_merges).field("options", &self.options).finish_non_exhaustive()
    }
}

impl Model for Bpe {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        if self.options.ignore_merges
            && let Some(id) = self.id_of(word)
        {
            return Ok(vec![Token::new(id, word.to_owned(), (0, word.len()))]);
        }
        let mut symbols = self.split(word)?;
        self.merge(&mut symbols);
        let mut start = 0;
        let tokens = symbols.iter().filter(|symbol| symbol.len > 0).map(|symbol| {
            let from = start;
            start += symbol.len;
            Token::new(symbol.id, self.text_of(symbol.id).unwrap_or_default().to_owned(), (from, start))
        });
        Ok(tokens.collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.id_of(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.text_of(id).filter(|text| self.ids.is_some() || self.id_of(text) == Some(id)).map(str::to_owned)
    }

    fn get_vocab(&self) -> StdHashMap<String, u32> {
        self.tokens().map(|(id, text)| (text.to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.by_text.len()
    }

    fn save(&self, folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err(format!("a tokenizer that was loaded is not written to {}", folder.display()).into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        BpeTrainer::default().into()
    }
}
