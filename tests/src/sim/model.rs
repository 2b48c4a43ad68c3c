//! The model of the simulator: its next token is a pure function of the tokens before it and the seed, its words are the demo model's.

use std::sync::{Arc, OnceLock};

use plexus_actors::model::plan::BLOCK_LEN;
use plexus_actors::model::sequence::Sequence;
use plexus_engine::batch::{Batch, BatchOutput, BlockId};
use plexus_engine::codec::Codec;
use plexus_engine::model::{ModelFiles, ModelSource};
use plexus_engine::sample::SamplerSettings;
use plexus_types::{FinishReason, GenerateRequest, Sampling};

/// One token in so many ends the answer.
const STOP_ONE_IN: u64 = 97;
/// What the alphabet is made of: short and long tokens, and characters of which each token holds only a part.
const TEXT: &str = "The capital of France is Paris. \u{e9}t\u{e9} \u{6f22}\u{5b57} \u{1f600} one two three";

/// The tokenizer, and the ids that the model says.
#[derive(Debug)]
struct Language {
    codec: Arc<Codec>,
    alphabet: Vec<u32>,
    stop: u32,
}

fn language() -> &'static Language {
    static LANGUAGE: OnceLock<Language> = OnceLock::new();
    LANGUAGE.get_or_init(|| {
        let codec = ModelFiles::open(&ModelSource::Embedded).expect("the demo model is part of the binary").codec.clone();
        let alphabet = codec.encode(&plexus_types::Prompt::Text(TEXT.to_owned())).expect("the text is short");
        let stop = (0..codec.vocab_size() as u32).find(|id| codec.is_stop(*id)).expect("the demo model knows how to stop");
        Language { codec, alphabet, stop }
    })
}

/// The tokenizer of the model.
pub fn codec() -> &'static Codec {
    &language().codec
}

/// The token after `before`.
fn next_token(seed: u64, before: impl Iterator<Item = u32>) -> u32 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    for id in before {
        state = (state ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    state = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 29;
    let language = language();
    if state.is_multiple_of(STOP_ONE_IN) { language.stop } else { language.alphabet[(state >> 8) as usize % language.alphabet.len()] }
}

/// How a request's tokens are drawn.
pub fn settings(seed: u64) -> SamplerSettings {
    SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), seed)
}

/// What a request is answered if nothing goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ends.
    pub reason: FinishReason,
}

/// Answers a request in one go.
pub fn reference(request: &GenerateRequest, seed: u64, context: u32) -> Reference {
    let prompt = codec().encode(&request.prompt).expect("the simulator's prompts are sound");
    let n_prompt = prompt.len() as u32;
    let sampled_max = request.max_tokens.map_or(context - n_prompt, |max| max.min(context - n_prompt));
    let (mut sequence, end) =
        Sequence::new(settings(seed), prompt.clone(), Vec::new(), codec().decoder(&request.stop), sampled_max, u32::MAX);
    let mut reference = Reference { n_prompt, ids: Vec::new(), text: String::new(), reason: FinishReason::Length };
    let mut end = end;
    while end.is_none() {
        let id = next_token(seed, prompt.iter().chain(&reference.ids).copied());
        let progress = sequence.on_step(1, &[id]);
        reference.ids.extend(progress.ids);
        reference.text += &plexus_types::Delta::text_of(&progress.deltas);
        end = progress.end;
    }
    reference.reason = end.expect("the loop ends with it");
    reference
}

/// The memory of a device: which token each place of each block was computed for.
#[derive(Debug)]
pub struct KvMemory {
    places: Vec<Option<u32>>,
    tokens_per_step: usize,
}

impl KvMemory {
    /// Memory of `n_blocks`, for a device that samples so many tokens of a sequence in a step.
    pub fn new(n_blocks: u32, tokens_per_step: usize) -> Self {
        Self { places: vec![None; (n_blocks * BLOCK_LEN) as usize], tokens_per_step }
    }

    /// Computes a step. What is sampled depends on what the blocks hold, so that a block that is shared or read too early shows.
    ///
    /// Errors: a position without a block, or one that was never computed.
    pub fn execute(&mut self, batch: &Batch) -> Result<BatchOutput, String> {
        let mut output = BatchOutput::default();
        for sequence in 0..batch.len() {
            let tokens = batch.seq_starts[sequence] as usize..batch.seq_starts[sequence + 1] as usize;
            let table = &batch.blocks[batch.block_starts[sequence] as usize..batch.block_starts[sequence + 1] as usize];
            for token in tokens {
                let place = place_of(table, batch.positions[token])?;
                self.places[place] = Some(batch.tokens[token]);
            }
            let mut sampled = Vec::new();
            if let Some(draw) = &batch.draws[sequence] {
                let mut before = Vec::with_capacity(draw.position as usize + self.tokens_per_step);
                for position in 0..draw.position {
                    let id = self.places[place_of(table, position)?];
                    before.push(id.ok_or_else(|| format!("position {position} was read before it was computed"))?);
                }
                for _ in 0..self.tokens_per_step {
                    let id = next_token(draw.settings.seed, before.iter().copied());
                    before.push(id);
                    sampled.push(id);
                }
            }
            output.sampled.push(sampled);
        }
        Ok(output)
    }
}

fn place_of(table: &[BlockId], position: u32) -> Result<usize, String> {
    let block = table.get((position / BLOCK_LEN) as usize).ok_or_else(|| format!("position {position} has no block"))?;
    Ok((block.0 * BLOCK_LEN + position % BLOCK_LEN) as usize)
}
