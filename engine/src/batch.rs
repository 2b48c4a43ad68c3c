//! What a device computes in one step: flat arrays, the same for prefill, chunked prefill and decode.

use std::sync::Arc;
use std::time::Duration;

use crate::grammar::{Grammar, Masks};
use crate::sample::{DrawLogprobs, SamplerSettings};

/// Index of a KV block in a model's pool. Handed out by [`crate::kv::BlockPool`], which gives only ids below the pool's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Sequences with the tokens to process for each, flattened.
///
/// Sequence `s` owns tokens `seq_starts[s]..seq_starts[s + 1]` and blocks `block_starts[s]..block_starts[s + 1]`, in order of position:
/// block `b` of a sequence holds the keys and values of its positions `b * block_len..(b + 1) * block_len`.
/// What lies before the first given position must be in the blocks already.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n_tokens]` token ids.
    pub tokens: Vec<u32>,
    /// `[n_tokens]` absolute positions, counted from the start of each sequence, consecutive within it.
    pub positions: Vec<u32>,
    /// `[n_seqs + 1]` offsets into `tokens`.
    pub seq_starts: Vec<u32>,
    /// Block tables of all sequences, one after the other.
    pub blocks: Vec<BlockId>,
    /// `[n_seqs + 1]` offsets into `blocks`.
    pub block_starts: Vec<u32>,
    /// `[n_seqs]` what to sample after the last given token of each sequence; `None` while a prompt is not read to its end.
    pub draws: Vec<Option<Draw>>,
    /// Blocks to copy before anything is computed, in this order.
    pub copies: Vec<BlockCopy>,
}

/// The keys and values of a whole block, copied to another: a sequence that goes its own way within a shared block gets one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read.
    pub from: BlockId,
    /// Overwritten.
    pub to: BlockId,
}

impl Batch {
    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.draws.len()
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// Adds a sequence: `tokens` at positions from `first_position` on, its whole block table, and what to sample at its end.
    pub fn push(&mut self, tokens: &[u32], first_position: u32, blocks: &[BlockId], draw: Option<Draw>) {
        if self.seq_starts.is_empty() {
            self.seq_starts.push(0);
            self.block_starts.push(0);
        }
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((first_position..).take(tokens.len()));
        self.seq_starts.push(self.tokens.len() as u32);
        self.blocks.extend_from_slice(blocks);
        self.block_starts.push(self.blocks.len() as u32);
        self.draws.push(draw);
    }
}

/// One token to sample, or more where some are guessed.
///
/// A draw depends on its position and on the tokens before it only. So a guess is right or wrong beforehand, and sampling with guesses gives
/// the very tokens that sampling without them gives: after each right guess the next position is drawn in the same step.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// How.
    pub settings: Arc<SamplerSettings>,
    /// Position of the first token to be sampled, counted from the start of its sequence; with the seed it keys the generator.
    pub position: u32,
    /// The last so many of the sequence's tokens in this batch are guesses of what will be sampled from `position` on. What the cache holds
    /// beyond the last right one is written anew by a later step.
    pub n_guesses: u32,
    /// A draft model may guess up to so many tokens more, if there is one and nothing is guessed yet. The blocks have room for them.
    pub n_draft: u32,
    /// Tokens of the sequence that the draft model may read before it guesses, of those that it has not read. What is left then it reads in later
    /// steps, and guesses nothing before.
    pub n_catch_up: u32,
    /// Prompt tokens seen so far; empty unless [`SamplerSettings::needs_history`].
    pub prompt_history: Arc<[u32]>,
    /// Tokens sampled so far; empty unless [`SamplerSettings::needs_history`].
    pub sampled_history: Vec<u32>,
    /// Index in the answer of the first token to be sampled; `min_tokens` goes by it.
    pub index: u32,
    /// Give the log probability of each token drawn, and of so many of the likeliest beside it; absent: none.
    pub logprobs: Option<u32>,
    /// Which tokens may be drawn, from [`crate::grammar::Grammar::masks`] with the same guesses; absent: all.
    pub masks: Option<Masks>,
    /// Where the masks come from, for those behind what a draft model guesses; absent: all tokens may be drawn, or `n_draft` is 0.
    pub grammar: Option<Grammar>,
}

impl Draw {
    /// One token at `position`, the first of its answer, without guesses, history and log probabilities.
    pub fn new(settings: Arc<SamplerSettings>, position: u32) -> Self {
        Self {
            settings,
            position,
            n_guesses: 0,
            n_draft: 0,
            n_catch_up: 0,
            prompt_history: Arc::new([]),
            sampled_history: Vec::new(),
            index: 0,
            logprobs: None,
            masks: None,
            grammar: None,
        }
    }
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchOutput {
    /// `[n_seqs]`: the tokens sampled for each sequence. Empty where the batch asked for none; one more than guesses that were right.
    pub sampled: Vec<Vec<u32>>,
    /// `[n_seqs]`: one for each token sampled where the draw asks for log probabilities, else empty.
    pub logprobs: Vec<Vec<DrawLogprobs>>,
    /// `[n_seqs]` what the draft model did for each sequence; empty if there is none, or none any more, for it failed.
    pub drafts: Vec<Drafted>,
    /// How long the draft model computed: a part of the step's time.
    pub drafting: Duration,
    /// How long the batch waited for the device, before the step; told by whoever runs the steps of several models in turn.
    pub queued: Duration,
    /// Sequences, by their place in the batch, whose grammar cannot go on, and why. The others are as they would be without them.
    pub refused: Vec<(usize, String)>,
}

/// What a draft model did for a sequence in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drafted {
    /// Tokens that it read first.
    pub n_read: u32,
    /// Tokens that it guessed.
    pub n_guessed: u32,
    /// Tokens that it has to read before it can guess what follows this step.
    pub n_unread: u32,
}
