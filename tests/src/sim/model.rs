//! The model of the simulator: its next token is a pure function of the tokens before it and the seed, its words are the demo model's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::model::sequence::Sequence;
use plexus_engine::batch::{Batch, BatchOutput, BlockCopy, BlockId};
use plexus_engine::codec::Codec;
use plexus_engine::embed::EmbedWork;
use plexus_engine::error::EngineError;
use plexus_engine::executor::{DeviceDescription, Executor, Held, KvPlan, Slot};
use plexus_engine::model::{ModelFiles, ModelPath};
use plexus_engine::sample::SamplerSettings;
use plexus_types::{Bytes, DeviceId, DeviceKind, FinishReason, GenerateRequest, Sampling};

/// One token in so many ends the answer.
const STOP_ONE_IN: u64 = 97;
/// One token in so many is new where the text could repeat itself.
const NEW_ONE_IN: u64 = 8;
/// One token in so many is guessed wrongly by a draft model.
const WRONG_ONE_IN: u64 = 5;
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
        let codec = ModelFiles::open(&ModelPath::Embedded).expect("the demo model is part of the binary").codec.clone();
        let alphabet = codec.encode(&plexus_types::Prompt::Text(TEXT.to_owned())).expect("the text is short");
        let stop = (0..codec.vocab_size() as u32).find(|id| codec.is_stop(*id)).expect("the demo model knows how to stop");
        Language { codec, alphabet, stop }
    })
}

/// The tokenizer of the model.
pub fn codec() -> &'static Codec {
    &language().codec
}

/// The token after `before`: often the one that stood where the last two tokens stood before, so that guessing from the text pays at times.
fn next_token(seed: u64, before: &[u32]) -> u32 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    for id in before {
        state = (state ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    state = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 29;
    let language = language();
    if state.is_multiple_of(STOP_ONE_IN) {
        return language.stop;
    }
    if !state.is_multiple_of(NEW_ONE_IN)
        && let Some((earlier, last)) = before.split_at_checked(before.len().saturating_sub(2))
        && let Some(found) = before.windows(2).take(earlier.len()).rposition(|pair| pair == last)
    {
        return before[found + 2];
    }
    language.alphabet[(state >> 8) as usize % language.alphabet.len()]
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
    let room = context - prompt.len() as u32;
    reference_to(&prompt, &request.stop, seed, request.max_tokens.map_or(room, |max| max.min(room)))
}

/// Continues a prompt in one go.
pub fn reference_to(prompt: &[u32], stop: &[String], seed: u64, sampled_max: u32) -> Reference {
    let (mut sequence, mut end) = Sequence::new(settings(seed), prompt.to_vec(), Vec::new(), codec().decoder(stop), sampled_max, u32::MAX);
    let mut reference = Reference { n_prompt: prompt.len() as u32, ids: Vec::new(), text: String::new(), reason: FinishReason::Length };
    let mut tokens = prompt.to_vec();
    while end.is_none() {
        let progress = sequence.on_step(1, &[next_token(seed, &tokens)]);
        tokens.extend(&progress.ids);
        reference.ids.extend(progress.ids);
        reference.text += &plexus_types::Delta::text_of(&progress.deltas);
        end = progress.end;
    }
    reference.reason = end.expect("the loop ends with it");
    reference
}

/// A device of models that are all this model, the first as it is, those loaded after it wrong at times, as draft models are.
#[derive(Debug, Default)]
pub struct SimExecutor {
    memories: BTreeMap<u32, KvMemory>,
}

impl Executor for SimExecutor {
    fn describe(&self) -> DeviceDescription {
        let id = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
        DeviceDescription { id, name: "simulated".into(), memory_total: Bytes::mib(1024), gpu: None }
    }

    fn begin_load(&mut self, slot: Slot, _: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        let wrong_one_in = (!self.memories.is_empty()).then_some(WRONG_ONE_IN);
        self.memories.insert(slot.0, KvMemory { wrong_one_in, ..KvMemory::new(kv.n_blocks, 1) });
        Ok(())
    }

    fn load_part(&mut self, _: Slot) -> Result<bool, EngineError> {
        Ok(true) // it has no weights
    }

    fn unload(&mut self, slot: Slot) {
        self.memories.remove(&slot.0);
    }

    fn holds(&self) -> Vec<(Slot, Held)> {
        self.memories.keys().map(|slot| (Slot(*slot), Held::default())).collect() // it has no bytes
    }

    fn rest(&mut self) {}

    /// Errors: [`EngineError::Device`] if the batch reads what was never computed, or was computed for others.
    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        let failed = |reason| EngineError::Device { device: DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, reason };
        let memory = self.memories.get_mut(&slot.0).ok_or_else(|| failed("the slot holds no model".to_owned()))?;
        memory.execute(batch).map_err(failed)
    }

    fn embed(&mut self, _: Slot, _: &mut EmbedWork) -> Result<(), EngineError> {
        Err(EngineError::Unsupported { what: "a model that embeds".into(), supported: "one that answers".into() })
    }
}

/// The memory of a device: for which token, after which others, each place of each block was computed.
#[derive(Debug)]
pub struct KvMemory {
    places: Vec<Option<Place>>,
    tokens_per_step: usize,
    /// One token in so many is another than the model's.
    wrong_one_in: Option<u64>,
}

/// What is computed for a token depends on all tokens before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    token: u32,
    /// A hash of the tokens up to this one.
    trace: u64,
}

impl Place {
    fn after(before: Option<Self>, token: u32) -> Self {
        let trace = before.map_or(0xcbf2_9ce4_8422_2325, |place| place.trace);
        Self { token, trace: (trace ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3).rotate_left(29) }
    }
}

impl KvMemory {
    /// Memory of `n_blocks`, for a device that samples at least so many tokens of a sequence in a step.
    pub fn new(n_blocks: u32, tokens_per_step: usize) -> Self {
        Self { places: vec![None; (n_blocks * BLOCK_LEN) as usize], tokens_per_step, wrong_one_in: None }
    }

    /// Computes a step. What is sampled depends on what the blocks hold, so that a block that is shared wrongly or read too early shows.
    ///
    /// Errors: a position without a block, or one that was never computed, or that was computed after other tokens; a block that two sequences write.
    pub fn execute(&mut self, batch: &Batch) -> Result<BatchOutput, String> {
        for BlockCopy { from, to } in &batch.copies {
            let start = |block: &BlockId| (block.0 * BLOCK_LEN) as usize;
            self.places.copy_within(start(from)..start(from) + BLOCK_LEN as usize, start(to));
        }
        let mut written = BTreeSet::new();
        for sequence in 0..batch.len() {
            let table = table_of(batch, sequence);
            for token in tokens_of(batch, sequence) {
                let position = batch.positions[token];
                let before = position.checked_sub(1).map(|before| self.read(table, before)).transpose()?;
                let place = place_of(table, position)?;
                self.places[place] = Some(Place::after(before, batch.tokens[token]));
                if !written.insert(place) {
                    return Err(format!("two sequences write to block {}", place / BLOCK_LEN as usize));
                }
            }
        }
        // Only now, when all is written: what one sequence wrote to another's blocks shows.
        let sampled = (0..batch.len()).map(|sequence| self.sample(batch, sequence)).collect::<Result<_, _>>()?;
        Ok(BatchOutput { sampled, ..BatchOutput::default() })
    }

    fn sample(&self, batch: &Batch, sequence: usize) -> Result<Vec<u32>, String> {
        let Some(draw) = &batch.draws[sequence] else { return Ok(Vec::new()) };
        let table = table_of(batch, sequence);
        let mut before = Vec::with_capacity(draw.position as usize + self.tokens_per_step);
        let mut last = None;
        for position in 0..draw.position {
            let place = self.read(table, position)?;
            if place != Place::after(last, place.token) {
                return Err(format!("position {position} was computed after other tokens than those before it"));
            }
            before.push(place.token);
            last = Some(place);
        }
        let given = &batch.tokens[tokens_of(batch, sequence)];
        let guesses = &given[given.len() - draw.n_guesses as usize..];
        let mut sampled: Vec<u32> = Vec::new();
        loop {
            let mut id = next_token(draw.settings.seed, &before);
            if self.wrong_one_in.is_some_and(|n| (draw.settings.seed + before.len() as u64).is_multiple_of(n)) {
                id ^= 1;
            }
            before.push(id);
            sampled.push(id);
            let is_right = sampled.iter().eq(guesses.iter().take(sampled.len()));
            if !is_right && sampled.len() >= self.tokens_per_step {
                return Ok(sampled);
            }
        }
    }

    fn read(&self, table: &[BlockId], position: u32) -> Result<Place, String> {
        self.places[place_of(table, position)?].ok_or_else(|| format!("position {position} was read before it was computed"))
    }
}

fn tokens_of(batch: &Batch, sequence: usize) -> Range<usize> {
    batch.seq_starts[sequence] as usize..batch.seq_starts[sequence + 1] as usize
}

fn table_of(batch: &Batch, sequence: usize) -> &[BlockId] {
    &batch.blocks[batch.block_starts[sequence] as usize..batch.block_starts[sequence + 1] as usize]
}

fn place_of(table: &[BlockId], position: u32) -> Result<usize, String> {
    let block = table.get((position / BLOCK_LEN) as usize).ok_or_else(|| format!("position {position} has no block"))?;
    Ok((block.0 * BLOCK_LEN + position % BLOCK_LEN) as usize)
}
