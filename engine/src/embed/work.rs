//! Texts on their way to vectors.

use std::num::NonZeroUsize;

use super::readout::Readout;
use crate::batch::{Batch, BlockId};
use crate::error::EngineError;
use crate::executor::KvPlan;

/// Texts to embed, as token ids, and what is known of their vectors so far. They are computed in pieces:
/// [`crate::Executor::embed`] goes on by one, so that others on the device wait for no more than that.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedWork {
    inputs: Vec<Vec<u32>>,
    /// Of each text, once it is known.
    vectors: Vec<Option<Vec<f32>>>,
    /// Tokens of a decoder's next text that were read: their keys and values are in the pool's first blocks.
    n_read: usize,
    /// What is pooled of them.
    pooled: Vec<f64>,
    /// See [`Self::set_piece_tokens`].
    piece_tokens: Option<NonZeroUsize>,
}

/// Texts that an encoder computes together, each filled up to one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Tokens of each, with what fills it up.
    pub(crate) padded: usize,
    /// Which texts.
    pub(crate) texts: Vec<usize>,
}

impl EmbedWork {
    /// Nothing of these texts is computed yet.
    pub fn new(inputs: Vec<Vec<u32>>) -> Self {
        Self { vectors: vec![None; inputs.len()], inputs, n_read: 0, pooled: Vec::new(), piece_tokens: None }
    }

    /// From now on a piece has at most so many tokens, if that is less than what is usual for the model; an encoder takes no less than a whole
    /// text. Where a text is cut changes no bit of its vector.
    pub fn set_piece_tokens(&mut self, most: NonZeroUsize) {
        self.piece_tokens = Some(most);
    }

    /// Tokens of a piece, where so many are usual.
    fn of_usual(&self, usual: usize) -> usize {
        self.piece_tokens.map_or(usual, |most| most.get().min(usual))
    }

    /// Have all texts their vectors?
    pub fn is_done(&self) -> bool {
        self.vectors.iter().all(Option::is_some)
    }

    /// Is a part of a text in the model's KV pool? Until its end no other work may use that.
    pub fn is_within_text(&self) -> bool {
        self.n_read > 0
    }

    /// The vectors of the texts, in order. Nothing as long as one has none.
    pub fn into_vectors(self) -> Option<Vec<Vec<f32>>> {
        self.vectors.into_iter().collect()
    }

    /// The texts that have no vector yet.
    fn left(&self) -> impl Iterator<Item = usize> {
        self.vectors.iter().enumerate().filter(|(_, vector)| vector.is_none()).map(|(i, _)| i)
    }

    /// The next piece for a decoder, of at most `n_tokens` tokens: what is left of a text that was begun, and whole texts behind it; or the
    /// beginning of a text that is longer. Only the first is ever cut: it has the first blocks of the pool, where its next piece finds them.
    ///
    /// Errors: [`EngineError::Shape`] if a text is empty or longer than the pool.
    pub(crate) fn piece(&self, n_tokens: usize, pool: KvPlan) -> Result<Batch, EngineError> {
        let mut batch = Batch::default();
        let (mut room, mut first_block) = (self.of_usual(n_tokens), 0);
        for (i, ids) in self.left().map(|text| &self.inputs[text]).enumerate() {
            let from = if i == 0 { self.n_read } else { 0 };
            let n_blocks = ids.len().div_ceil(pool.block_len as usize);
            if ids.is_empty() || n_blocks > pool.n_blocks as usize {
                let most = u64::from(pool.n_blocks) * u64::from(pool.block_len);
                return Err(EngineError::shape(format!("a text of {} tokens; 1 to {most} are possible", ids.len())));
            }
            let fits = ids.len() - from <= room && first_block + n_blocks <= pool.n_blocks as usize;
            if i > 0 && !fits {
                break;
            }
            let until = ids.len().min(from + room);
            let blocks: Vec<BlockId> = (first_block..first_block + n_blocks).map(|block| BlockId(block as u32)).collect();
            batch.push(&ids[from..until], from as u32, &blocks, None);
            room -= until - from;
            first_block += n_blocks;
        }
        Ok(batch)
    }

    /// Takes what a piece gave: the hidden states of its tokens, `hidden [n_tokens, width]`.
    pub(crate) fn take(&mut self, piece: &Batch, hidden: &[f32], width: usize, readout: &Readout) {
        for tokens in piece.seq_starts.windows(2) {
            let (from, until) = (tokens[0] as usize, tokens[1] as usize);
            readout.add(&mut self.pooled, &hidden[from * width..until * width], width);
            self.n_read += until - from;
            let Some(text) = self.left().next() else { return };
            if self.n_read == self.inputs[text].len() {
                self.vectors[text] = Some(readout.finish(&self.pooled, self.n_read));
                self.pooled.clear();
                self.n_read = 0;
            }
        }
    }

    /// The next piece for an encoder, which takes whole texts: stacks of those that are filled up to the same length by `padded`, of at most
    /// `n_tokens` tokens together, what fills them up included; or one text that is longer. A stack has at most `stack_max` texts.
    pub(crate) fn stacks(&self, n_tokens: usize, stack_max: usize, padded: impl Fn(usize) -> usize) -> Vec<Stack> {
        let mut room = self.of_usual(n_tokens);
        let mut left: Vec<(usize, usize)> = self.left().map(|text| (text, padded(self.inputs[text].len()))).collect();
        let mut stacks = Vec::new();
        while let Some((_, len)) = left.first().copied() {
            let fit = room.checked_div(len).unwrap_or(room).min(stack_max).max(usize::from(stacks.is_empty()));
            if fit == 0 {
                break;
            }
            let texts: Vec<usize> = left.iter().filter(|one| one.1 == len).take(fit).map(|one| one.0).collect();
            room = room.saturating_sub(len * texts.len());
            left.retain(|one| !texts.contains(&one.0));
            stacks.push(Stack { padded: len, texts });
        }
        stacks
    }

    /// The tokens of a text.
    pub(crate) fn ids(&self, text: usize) -> &[u32] {
        &self.inputs[text]
    }

    /// Takes the vectors of some texts.
    pub(crate) fn take_vectors(&mut self, texts: &[usize], vectors: Vec<Vec<f32>>) {
        for (text, vector) in texts.iter().zip(vectors) {
            self.vectors[*text] = Some(vector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::readout::Pooling;
    use super::*;

    const POOL: KvPlan = KvPlan { n_blocks: 8, block_len: 4 };

    fn lengths(batch: &Batch) -> Vec<u32> {
        batch.seq_starts.windows(2).map(|tokens| tokens[1] - tokens[0]).collect()
    }

    /// The lengths of the texts of a piece, and the position of its first token.
    type Piece = (Vec<u32>, u32);

    /// All pieces, and the vectors; a token's vector is its position in its text.
    fn pieces(lens: &[usize], n_tokens: usize) -> (Vec<Piece>, Vec<Vec<f32>>) {
        let readout = Readout { pooling: Pooling::Last, layers: Vec::new() };
        let mut work = EmbedWork::new(lens.iter().map(|n| vec![0; *n]).collect());
        let mut pieces = Vec::new();
        while !work.is_done() {
            let piece = work.piece(n_tokens, POOL).unwrap();
            let hidden: Vec<f32> = piece.positions.iter().flat_map(|position| [1.0, *position as f32]).collect();
            work.take(&piece, &hidden, 2, &readout);
            pieces.push((lengths(&piece), piece.positions[0]));
        }
        (pieces, work.into_vectors().unwrap())
    }

    #[test]
    fn only_the_first_text_of_a_piece_is_cut_and_short_ones_share_a_piece() {
        let (pieces, vectors) = pieces(&[2, 3, 11, 1, 2, 6], 6);
        let expected = [(vec![2, 3], 0), (vec![6], 0), (vec![5, 1], 6), (vec![2], 0), (vec![6], 0)];
        assert_eq!(pieces, expected);
        let last: Vec<f32> = vectors.iter().map(|vector| (vector[1] / vector[0]).round()).collect();
        assert_eq!(last, [1.0, 2.0, 10.0, 0.0, 1.0, 5.0]);
    }

    #[test]
    fn a_piece_takes_no_more_blocks_than_there_are_and_a_text_none_of_another() {
        let work = EmbedWork::new(vec![vec![0; 5]; 6]);
        let piece = work.piece(100, POOL).unwrap();
        assert_eq!(lengths(&piece), [5; 4]);
        assert_eq!(piece.blocks, (0..8).map(BlockId).collect::<Vec<_>>());
        for (len, possible) in [(0, false), (1, true), (32, true), (33, false)] {
            assert_eq!(EmbedWork::new(vec![vec![0; len]]).piece(100, POOL).is_ok(), possible, "{len} tokens");
        }
    }

    /// The stacks of each piece, as the length of their texts and which these are.
    fn stacks(lens: &[usize], n_tokens: usize, stack_max: usize) -> Vec<Vec<(usize, Vec<usize>)>> {
        let mut work = EmbedWork::new(lens.iter().map(|n| vec![0; *n]).collect());
        let mut pieces = Vec::new();
        while !work.is_done() {
            assert!(work.clone().into_vectors().is_none());
            let stacks = work.stacks(n_tokens, stack_max, |len| len.next_multiple_of(4));
            stacks.iter().for_each(|stack| work.take_vectors(&stack.texts, vec![Vec::new(); stack.texts.len()]));
            pieces.push(stacks.into_iter().map(|stack| (stack.padded, stack.texts)).collect());
        }
        pieces
    }

    #[test]
    fn encoders_take_whole_texts_those_of_one_length_together_and_no_more_than_a_piece() {
        let lens = [3, 9, 2, 40, 4, 10, 1];
        let expected = [vec![(4, vec![0, 2, 4, 6])], vec![(12, vec![1])], vec![(40, vec![3])], vec![(12, vec![5])]];
        assert_eq!(stacks(&lens, 16, 99), expected);
        let expected = [vec![(4, vec![0, 2, 4, 6]), (12, vec![1, 5])], vec![(40, vec![3])]];
        assert_eq!(stacks(&lens, 40, 99), expected);
        assert_eq!(stacks(&[3, 2, 4], 100, 1), [vec![(4, vec![0]), (4, vec![1]), (4, vec![2])]], "one at a time");
        assert_eq!(stacks(&[0, 0], 100, 99), [[(0, vec![0, 1])]], "it is the executor that refuses what is empty");
    }

    #[test]
    fn pieces_are_as_small_as_is_asked_for() {
        let mut work = EmbedWork::new(vec![vec![0; 3]; 4]);
        assert_eq!((lengths(&work.piece(100, POOL).unwrap()).len(), work.stacks(100, 99, |len| len)[0].texts.len()), (4, 4));
        work.set_piece_tokens(NonZeroUsize::new(6).unwrap());
        assert_eq!((lengths(&work.piece(100, POOL).unwrap()).len(), work.stacks(100, 99, |len| len)[0].texts.len()), (2, 2));
        work.set_piece_tokens(NonZeroUsize::MIN);
        assert_eq!((lengths(&work.piece(100, POOL).unwrap()), work.stacks(100, 99, |len| len)[0].texts.len()), (vec![1], 1));
    }
}
