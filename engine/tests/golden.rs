//! Every model family against logits and greedy tokens of an independent implementation, from safetensors and from GGUF files.
//!
//! The references in `tests/golden/` were made with transformers 5.23.0 and torch 2.9.1 in f32 on tiny models with random weights
//! of our own; `golden.json` holds prompts and greedy tokens, `golden.safetensors` logits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plexus_engine::{
    Batch, BlockCopy, BlockId, CandleExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelSource, SamplerSettings, Slot,
};
use plexus_types::{DeviceId, DeviceKind, Sampling};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Weights are the same numbers; only the order of sums differs.
const EXACT: f32 = 1e-3;
/// Activations meet Q8_0 weights in 8 bits; logits have a standard deviation of 2 to 3.
const Q8_0: f32 = 0.6;

/// With safetensors.
const FAMILIES: [&str; 19] = [
    "llama",
    "llama_mha",
    "llama3_tied",
    "mistral",
    "mistral_sw16",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "glm4",
    "starcoder2",
];
/// With a GGUF file of the same numbers. That of SmolLM 3 is not among them: in GGUF each fourth layer does not rotate, whatever the
/// configuration says, and the golden model has two layers of which the second does not.
const GGUF_FAMILIES: [&str; 16] = [
    "llama",
    "llama3_tied",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
    "glm4",
    "starcoder2",
];
/// With a quantized GGUF file.
const Q8_0_FAMILIES: [&str; 8] = ["llama", "llama3_tied", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3", "phi3"];
const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 16, block_len: 8 };

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    argmax: Vec<u32>,
    greedy: Vec<u32>,
}

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(family: &str) -> Golden {
    serde_json::from_str(&fs::read_to_string(golden_folder().join(family).join("golden.json")).unwrap()).unwrap()
}

/// Reference logits of each prompt; the last row is that of the prompt's end.
fn reference(family: &str, file: &str) -> Vec<Vec<Vec<f32>>> {
    let bytes = fs::read(golden_folder().join(family).join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    (0..tensors.len())
        .map(|i| {
            let tensor = tensors.tensor(&format!("logits.{i}")).unwrap();
            let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            values.chunks_exact(*tensor.shape().last().unwrap()).map(<[f32]>::to_vec).collect()
        })
        .collect()
}

/// A folder as one downloads it: weights, configuration and tokenizer together.
fn folder(family: &str, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = golden_folder();
    fs::copy(from.join(family).join(config), folder.path().join("config.json")).unwrap();
    fs::copy(from.join(family).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// An executor that also tells the logits from which it would draw.
trait Reference: Executor {
    fn logits(&mut self, slot: Slot, batch: &Batch) -> Result<Vec<Vec<f32>>, EngineError>;
}

impl Reference for CandleExecutor {
    fn logits(&mut self, slot: Slot, batch: &Batch) -> Result<Vec<Vec<f32>>, EngineError> {
        CandleExecutor::logits(self, slot, batch)
    }
}

type Open = fn() -> Box<dyn Reference>;

/// Every executor that computes on this machine.
const EXECUTORS: [(&str, Open); 1] = [("candle", || Box::new(CandleExecutor::open(CPU, 0.5).unwrap()))];

const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

fn load(open: Open, path: &Path) -> Box<dyn Reference> {
    let files = ModelFiles::open(&ModelSource::Path(path.to_owned())).unwrap();
    let mut executor = open();
    executor.load(SLOT, &files, KV).unwrap();
    executor
}

fn draw() -> Option<Draw> {
    let greedy = Sampling { temperature: Some(0.0), ..Sampling::default() };
    let settings = Arc::new(SamplerSettings::resolve(&greedy, &Sampling::default(), 0));
    Some(Draw::new(settings, 0))
}

/// Every other block, so that neighbours in the sequence are none in the pool.
fn blocks() -> Vec<BlockId> {
    (0..KV.n_blocks).map(|block| BlockId(block * 5 % KV.n_blocks)).collect()
}

fn last_logits(executor: &mut dyn Reference, ids: &[u32], first_position: u32) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push(ids, first_position, &blocks(), draw());
    executor.logits(SLOT, &batch).unwrap().remove(0)
}

fn greedy(executor: &mut dyn Reference, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut given = prompt.to_vec();
    let mut position = 0;
    let mut tokens = Vec::new();
    while tokens.len() < n {
        let mut batch = Batch::default();
        batch.push(&given, position, &blocks(), draw());
        let sampled = executor.step(SLOT, &batch).unwrap().sampled.remove(0);
        position += given.len() as u32;
        tokens.extend(&sampled);
        given = sampled;
    }
    tokens
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap() as u32
}

/// Logits at the end of each prompt and of each of its beginnings for which there is a reference, and the greedy continuation.
fn check_exact(executor: &mut dyn Reference, family: &str, what: &str) {
    let reference = reference(family, "golden.safetensors");
    for (prompt, rows) in golden(family).prompts.iter().zip(&reference) {
        for (i, row) in rows.iter().rev().enumerate() {
            let ids = &prompt.ids[..prompt.ids.len() - i];
            let logits = last_logits(executor, ids, 0);
            let error = worst(&logits, row);
            assert!(error < EXACT, "{what}: {error} off after {} tokens", ids.len());
            assert_eq!(argmax(&logits), prompt.argmax[ids.len() - 1]);
        }
        assert_eq!(greedy(executor, &prompt.ids, prompt.greedy.len()), prompt.greedy, "{what}");
    }
}

#[test]
fn safetensors_models_agree_with_the_reference_under_both_configuration_styles() {
    for (executor, open) in EXECUTORS {
        for family in FAMILIES {
            for config in ["config.json", "config.v5.json"] {
                check_exact(&mut *load(open, folder(family, config).path()), family, &format!("{executor} {family} {config}"));
            }
        }
    }
}

#[test]
fn bf16_gguf_models_agree_with_the_reference() {
    for (executor, open) in EXECUTORS {
        for family in GGUF_FAMILIES {
            let path = golden_folder().join(family).join(format!("{family}-bf16.gguf"));
            check_exact(&mut *load(open, &path), family, &format!("{executor} {family} gguf"));
        }
    }
}

#[test]
fn a_gguf_model_whose_layers_all_rotate_gives_what_its_folder_gives() {
    let family = "smollm3";
    let folder = folder(family, "config.json");
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["no_rope_layers"] = serde_json::json!([1, 1]);
    fs::write(&path, config.to_string()).unwrap();
    for (executor, open) in EXECUTORS {
        let mut from_folder = load(open, folder.path());
        let mut from_gguf = load(open, &golden_folder().join(family).join("smollm3-bf16.gguf"));
        for prompt in golden(family).prompts {
            let logits = last_logits(&mut *from_folder, &prompt.ids, 0);
            assert_eq!(logits, last_logits(&mut *from_gguf, &prompt.ids, 0), "{executor}");
        }
    }
}

#[test]
fn q8_0_gguf_models_agree_with_the_reference_up_to_quantization() {
    for (executor, open) in EXECUTORS {
        for family in Q8_0_FAMILIES {
            let mut model = load(open, &golden_folder().join(family).join(format!("{family}-q8_0.gguf")));
            for (prompt, rows) in golden(family).prompts.iter().zip(reference(family, "golden_q8_0.safetensors")) {
                let error = worst(&last_logits(&mut *model, &prompt.ids, 0), rows.last().unwrap());
                assert!(error < Q8_0, "{executor} {family}: {error} off");
            }
        }
    }
}

#[test]
fn prefill_chunked_prefill_and_decode_give_the_same_bits() {
    for (executor, open) in EXECUTORS {
        for family in FAMILIES {
            let mut model = load(open, folder(family, "config.json").path());
            let ids = golden(family).prompts.remove(4).ids;
            let whole = last_logits(&mut *model, &ids, 0);
            for chunk in [1, 7, 27] {
                let mut last = Vec::new();
                for (i, part) in ids.chunks(chunk).enumerate() {
                    last = last_logits(&mut *model, part, (i * chunk) as u32);
                }
                assert_eq!(last, whole, "{executor} {family} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_a_batch() {
    for (executor, open) in EXECUTORS {
        let folders = FAMILIES.map(|family| (family, folder(family, "config.json")));
        let folders = folders.iter().map(|(family, folder)| (*family, folder.path().to_owned()));
        for (family, path) in folders.chain([("qwen3", golden_folder().join("qwen3/qwen3-q8_0.gguf"))]) {
            let mut model = load(open, &path);
            let prompts = golden(family).prompts;
            let alone: Vec<Vec<f32>> = prompts[..4].iter().map(|prompt| last_logits(&mut *model, &prompt.ids, 0)).collect();
            // One prompt is read only, one is at its last token, the others begin: all in one step.
            let tables: Vec<Vec<BlockId>> = [0..1, 1..2, 2..4, 4..9].map(|range| range.map(BlockId).collect()).into();
            let (last, before) = prompts[2].ids.split_last().unwrap();
            let mut batch = Batch::default();
            batch.push(before, 0, &tables[2], None);
            assert!(model.logits(SLOT, &batch).unwrap().is_empty());
            let mut batch = Batch::default();
            batch.push(&prompts[3].ids, 0, &tables[3], draw());
            batch.push(&[*last], before.len() as u32, &tables[2], draw());
            batch.push(&prompts[1].ids, 0, &tables[1], None);
            batch.push(&prompts[0].ids, 0, &tables[0], draw());
            let together = model.logits(SLOT, &batch).unwrap();
            assert_eq!(together, [alone[3].clone(), alone[2].clone(), alone[0].clone()], "{executor} {family}");
            assert_eq!(model.step(SLOT, &batch).unwrap().sampled[2], Vec::<u32>::new());
        }
    }
}

#[test]
fn a_sequence_goes_on_from_a_copy_of_a_block_with_the_same_bits() {
    for (executor, open) in EXECUTORS {
        for family in ["llama", "gemma3"] {
            let mut model = load(open, folder(family, "config.json").path());
            let ids = golden(family).prompts.remove(3).ids; // 40 tokens, 5 blocks
            let whole = last_logits(&mut *model, &ids, 0);
            let first: Vec<BlockId> = (0..5).map(BlockId).collect();
            let mut batch = Batch::default();
            batch.push(&ids[..36], 0, &first, None);
            model.logits(SLOT, &batch).unwrap();
            // The last block is copied twice, the second time from the copy; then another sequence spoils the original.
            let (from, between, to) = (BlockId(4), BlockId(9), BlockId(11));
            let mut table = first.clone();
            table[4] = to;
            let mut batch = Batch { copies: vec![BlockCopy { from, to: between }, BlockCopy { from: between, to }], ..Batch::default() };
            batch.push(&[1, 2, 3, 4], 32, &first, None);
            batch.push(&ids[36..], 36, &table, draw());
            assert_eq!(model.logits(SLOT, &batch).unwrap(), [whole], "{executor} {family}");
        }
    }
}

#[test]
fn guesses_give_the_tokens_that_are_drawn_without_them() {
    for (executor, open) in EXECUTORS {
        for family in ["mistral_sw16", "qwen3_moe"] {
            let mut model = load(open, folder(family, "config.json").path());
            let prompt = golden(family).prompts.remove(2);
            let tokens = &prompt.greedy;
            // Two guesses are right and the third is wrong: three tokens and no more.
            let given = [&prompt.ids[..], &tokens[..2], &[tokens[2] ^ 1]].concat();
            let mut batch = Batch::default();
            let draw = draw().map(|draw| Draw { n_guesses: 3, position: prompt.ids.len() as u32, ..draw });
            batch.push(&given, 0, &blocks(), draw);
            assert_eq!(model.step(SLOT, &batch).unwrap().sampled, [tokens[..3].to_vec()], "{executor} {family}");
        }
    }
}
