//! The CPU executor against the candle executor, which computes in another way, and against itself cut in other ways.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::Arc;

use plexus_engine::{
    Batch, BlockCopy, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings,
    Slot,
};
use plexus_types::{DeviceId, DeviceKind, Sampling};

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 16, block_len: 16 };
const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
/// The same numbers, summed in another order.
const EXACT: f32 = 1e-3;

fn open(path: &str) -> ModelFiles {
    let source = match path {
        "" => ModelPath::Embedded,
        path => ModelPath::Path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)),
    };
    ModelFiles::open(&source).unwrap()
}

fn cpu(files: &ModelFiles) -> CpuExecutor {
    let mut executor = CpuExecutor::open(CPU, 0.5, Some(2)).unwrap();
    executor.load(SLOT, files, KV).unwrap();
    executor
}

fn draw(n_guesses: u32, position: u32) -> Option<Draw> {
    let sampling = Sampling { temperature: Some(0.8), ..Sampling::default() };
    let settings = Arc::new(SamplerSettings::resolve(&sampling, &Sampling::default(), 5));
    Some(Draw { n_guesses, ..Draw::new(settings, position) })
}

fn blocks(ids: &[u32]) -> Vec<BlockId> {
    ids.iter().copied().map(BlockId).collect()
}

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + 11) % 250).collect()
}

const MODELS: [&str; 5] =
    ["", "llama/llama-bf16.gguf", "llama3_tied/llama3_tied-q8_0.gguf", "qwen2/qwen2-bf16.gguf", "qwen3/qwen3-bf16.gguf"];

#[test]
fn between_the_parts_of_a_load_other_models_take_their_steps_and_what_is_coming_has_its_memory() {
    let (there, coming) = (open("llama/llama-bf16.gguf"), open("qwen3/qwen3-bf16.gguf"));
    let memory = there.footprint(KV) + coming.footprint(KV);
    let mut executor = CpuExecutor::open(CPU, 0.5, Some(2)).unwrap().with_memory(memory);
    executor.load(SLOT, &there, KV).unwrap();
    let mut batch = Batch::default();
    batch.push(&prompt(20), 0, &blocks(&[3, 9]), draw(5, 0));
    let alone = executor.logits(SLOT, &batch).unwrap();
    let (held, next, other) = (executor.holds(), Slot(7), Slot(8));
    executor.begin_load(next, &coming, KV).unwrap();
    assert!(!executor.load_part(next).unwrap());
    assert!(matches!(executor.begin_load(other, &coming, KV), Err(EngineError::Memory { .. })), "its memory is nobody else's");
    assert!(executor.begin_load(next, &coming, KV).is_err(), "its slot neither");
    executor.unload(next);
    assert!(executor.load_part(next).is_err(), "it is given up");

    executor.begin_load(other, &coming, KV).unwrap();
    let mut n_parts = 1;
    while !executor.load_part(other).unwrap() {
        n_parts += 1;
        assert_eq!(executor.holds(), held, "it is not there yet");
        assert_eq!(executor.logits(SLOT, &batch).unwrap(), alone);
    }
    assert_eq!(n_parts, coming.config.layers.len() + if coming.config.tied_embeddings { 2 } else { 3 });
    let of_other = executor.logits(other, &batch).unwrap();
    assert_eq!(of_other, cpu(&coming).logits(SLOT, &batch).unwrap());
}

#[test]
fn large_matrices_come_in_parts_of_bounded_size_and_change_nothing() {
    for path in ["llama/llama-bf16.gguf", "llama3_tied/llama3_tied-q8_0.gguf"] {
        let files = open(path);
        let mut executor = CpuExecutor::open(CPU, 0.5, Some(2)).unwrap().with_load_parts(1);
        executor.begin_load(SLOT, &files, KV).unwrap();
        let mut n_parts = 1;
        while !executor.load_part(SLOT).unwrap() {
            n_parts += 1;
        }
        let config = &files.config;
        let of_matrix = config.vocab_size.div_ceil(16); // sixteen rows are the least
        assert_eq!(n_parts, of_matrix * if config.tied_embeddings { 1 } else { 2 } + config.layers.len() + 1, "{path}");
        let mut batch = Batch::default();
        batch.push(&prompt(20), 0, &blocks(&[3, 9]), draw(5, 0));
        assert_eq!(executor.logits(SLOT, &batch).unwrap(), cpu(&files).logits(SLOT, &batch).unwrap(), "{path}");
    }
}

#[test]
fn both_executors_agree() {
    for path in MODELS {
        let files = open(path);
        let mut candle = CandleExecutor::open(CPU, 0.5).unwrap();
        candle.load(SLOT, &files, KV).unwrap();
        let mut batch = Batch::default();
        batch.push(&prompt(70), 0, &blocks(&[3, 9, 1, 4, 7]), draw(5, 0));
        batch.push(&prompt(3), 0, &blocks(&[2]), draw(0, 0));
        let (ours, theirs) = (cpu(&files).logits(SLOT, &batch).unwrap(), candle.logits(SLOT, &batch).unwrap());
        assert_eq!((ours.len(), theirs.len()), (7, 7));
        for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            assert!((ours - theirs).abs() < EXACT, "{path}: {ours} against {theirs}");
        }
    }
}

#[test]
fn chunks_batches_and_copied_blocks_give_the_same_bits() {
    for path in MODELS {
        let mut executor = cpu(&open(path));
        let ids = prompt(75);
        let logits = |executor: &mut CpuExecutor, batch: &Batch| executor.logits(SLOT, batch).unwrap();
        let mut batch = Batch::default();
        batch.push(&ids, 0, &blocks(&[0, 1, 2, 3, 4]), draw(0, 75));
        let whole = logits(&mut executor, &batch).remove(0);
        for chunk in [1, 7, 40] {
            let table = blocks(&[9, 5, 8, 6, 7]);
            for (i, part) in ids.chunks(chunk).enumerate() {
                let mut batch = Batch::default();
                batch.push(&prompt(5), 0, &blocks(&[12]), draw(0, 5)); // another sequence beside it
                let last = (i + 1) * chunk >= ids.len();
                batch.push(part, (i * chunk) as u32, &table, last.then(|| draw(0, 75)).flatten());
                let mut given = logits(&mut executor, &batch);
                if last {
                    assert_eq!(given.remove(1), whole, "{path} in chunks of {chunk}");
                }
            }
        }
        // The last block of the first sequence, copied: its last token again, from the copy.
        let mut batch = Batch { copies: vec![BlockCopy { from: BlockId(4), to: BlockId(11) }], ..Batch::default() };
        batch.push(&ids[74..], 74, &blocks(&[0, 1, 2, 3, 11]), draw(0, 75));
        assert_eq!(logits(&mut executor, &batch).remove(0), whole, "{path} from a copy");
    }
}

/// A step of many tokens goes through a layer in pieces of 256: here sequences lie across two borders.
#[test]
fn a_long_step_gives_the_bits_of_short_ones() {
    let plan = KvPlan { n_blocks: 64, block_len: 16 };
    let lens: [u32; 4] = [200, 150, 1, 200];
    for path in [&MODELS[..], &["gemma3/gemma3-q8_0.gguf", "qwen2_moe/qwen2_moe-bf16.gguf"]].concat() {
        let files = open(path);
        let mut executor = CpuExecutor::open(CPU, 0.5, Some(2)).unwrap();
        executor.load(SLOT, &files, plan).unwrap();
        let table = |i: usize| blocks(&(0..13).map(|block| i as u32 * 13 + (block * 5) % 13).collect::<Vec<_>>());
        let mut together = Batch::default();
        for (i, len) in lens.iter().enumerate() {
            together.push(&prompt(*len), 0, &table(i), draw(0, *len));
        }
        let given = executor.logits(SLOT, &together).unwrap();
        for (i, len) in lens.iter().enumerate() {
            let ids = prompt(*len);
            for (chunk, part) in ids.chunks(64).enumerate() {
                let mut alone = Batch::default();
                let end = (chunk * 64 + part.len()) as u32;
                alone.push(part, chunk as u32 * 64, &table(i), (end == *len).then(|| draw(0, *len)).flatten());
                let logits = executor.logits(SLOT, &alone).unwrap();
                assert!(end < *len || logits[0] == given[i], "{path}: sequence {i} of {len}");
            }
        }
    }
}

#[test]
fn guesses_right_or_wrong_give_the_tokens_of_plain_sampling() {
    let mut executor = cpu(&open(""));
    let ids = prompt(30);
    let table = blocks(&[0, 1, 2, 3, 4]);
    let mut plain = Vec::new();
    for i in 0..12 {
        let mut batch = Batch::default();
        let given = if i == 0 { ids.clone() } else { vec![plain[i - 1]] };
        let first = if i == 0 { 0 } else { 29 + i as u32 };
        batch.push(&given, first, &table, draw(0, 30 + i as u32));
        plain.extend(executor.step(SLOT, &batch).unwrap().sampled.remove(0));
    }
    for n_right in 0..4 {
        let mut guessed = plain[..4].to_vec();
        if let Some(wrong) = guessed.get_mut(n_right) {
            *wrong = (*wrong + 1) % 200;
        }
        let mut batch = Batch::default();
        let given: Vec<u32> = ids.iter().copied().chain(guessed).collect();
        batch.push(&given, 0, &blocks(&[9, 8, 7, 6, 5]), draw(4, 30));
        assert_eq!(executor.step(SLOT, &batch).unwrap().sampled.remove(0), plain[..n_right + 1]);
    }
}
