//! Every model family against logits and greedy tokens of an independent implementation, from safetensors and from GGUF files.
//!
//! The references in `tests/golden/` were made with transformers 5.23.0 and torch 2.9.1 in f32 on tiny models with random weights
//! of our own; `golden.json` holds prompts and greedy tokens, `golden.safetensors` logits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plexus_engine::{
    Batch, BlockCopy, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings,
    Slot,
};
use plexus_types::{DeviceId, DeviceKind, Sampling};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Weights are the same numbers; only the order of sums differs.
const EXACT: f32 = 1e-3;
/// Activations meet Q8_0 weights in 8 bits; logits have a standard deviation of 2 to 3.
const Q8_0: f32 = 0.6;
/// Activations, keys and values are rounded to bf16, and a token near the border between two experts may take the other.
const NATIVE: f32 = 0.6;

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
const KV: KvPlan = KvPlan { n_blocks: 16, block_len: 16 };

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

fn gguf(family: &str, kind: &str) -> PathBuf {
    golden_folder().join(family).join(format!("{family}-{kind}.gguf"))
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

impl Reference for CpuExecutor {
    fn logits(&mut self, slot: Slot, batch: &Batch) -> Result<Vec<Vec<f32>>, EngineError> {
        CpuExecutor::logits(self, slot, batch)
    }
}

const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

/// A way of computing on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Tensor operations in f32.
    Candle,
    /// Our own kernels as small models are computed: in f32 on one thread.
    Small,
    /// Our own kernels as large models are computed: weights as stored, keys and values in bf16, a team of two threads.
    Large,
}

/// Those that compute in f32 whatever the file holds.
const EXACT_WAYS: [Way; 2] = [Way::Candle, Way::Small];
const WAYS: [Way; 3] = [Way::Candle, Way::Small, Way::Large];

impl Way {
    fn load(self, path: &Path) -> Box<dyn Reference> {
        let files = ModelFiles::open(&ModelPath::Path(path.to_owned())).unwrap();
        let (mut executor, files): (Box<dyn Reference>, _) = match self {
            Self::Candle => (Box::new(CandleExecutor::open(CPU, 0.5).unwrap()), files),
            Self::Small => (Box::new(CpuExecutor::open(CPU, 0.5, Some(2)).unwrap()), files),
            Self::Large => (Box::new(CpuExecutor::open(CPU, 0.5, Some(2)).unwrap()), files.held_as_large()),
        };
        executor.load(SLOT, &files, KV).unwrap();
        executor
    }
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
    for way in EXACT_WAYS {
        for family in FAMILIES {
            for config in ["config.json", "config.v5.json"] {
                check_exact(&mut *way.load(folder(family, config).path()), family, &format!("{way:?} {family} {config}"));
            }
        }
    }
}

#[test]
fn bf16_gguf_models_agree_with_the_reference() {
    for way in EXACT_WAYS {
        for family in GGUF_FAMILIES {
            check_exact(&mut *way.load(&gguf(family, "bf16")), family, &format!("{way:?} {family} gguf"));
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
    for way in WAYS {
        let mut from_folder = way.load(folder.path());
        let mut from_gguf = way.load(&gguf(family, "bf16"));
        for prompt in golden(family).prompts {
            let logits = last_logits(&mut *from_folder, &prompt.ids, 0);
            assert_eq!(logits, last_logits(&mut *from_gguf, &prompt.ids, 0), "{way:?}");
        }
    }
}

#[test]
fn q8_0_gguf_models_agree_with_the_reference_up_to_quantization() {
    for way in WAYS {
        for family in Q8_0_FAMILIES {
            let mut model = way.load(&gguf(family, "q8_0"));
            for (prompt, rows) in golden(family).prompts.iter().zip(reference(family, "golden_q8_0.safetensors")) {
                let error = worst(&last_logits(&mut *model, &prompt.ids, 0), rows.last().unwrap());
                assert!(error < Q8_0, "{way:?} {family}: {error} off");
            }
        }
    }
}

#[test]
fn models_computed_as_large_ones_agree_with_the_reference_up_to_rounding() {
    for family in FAMILIES {
        let folder = folder(family, "config.json");
        let mut paths = vec![folder.path().to_owned()];
        paths.extend(GGUF_FAMILIES.contains(&family).then(|| gguf(family, "bf16")));
        for path in paths {
            let mut model = Way::Large.load(&path);
            let mut largest = 0f32;
            for (prompt, rows) in golden(family).prompts.iter().zip(reference(family, "golden.safetensors")) {
                let error = worst(&last_logits(&mut *model, &prompt.ids, 0), rows.last().unwrap());
                assert!(error < NATIVE, "{}: {error} off", path.display());
                largest = largest.max(error);
            }
            assert!(largest > 1e-4, "{}: nothing was rounded", path.display());
            eprintln!("{}: at most {largest} off", path.display());
        }
    }
}

/// Every model in every way of computing: `f(way, family, path)`.
fn for_all(f: impl Fn(Way, &str, &Path)) {
    for way in WAYS {
        for family in FAMILIES {
            f(way, family, folder(family, "config.json").path());
        }
        for family in Q8_0_FAMILIES {
            f(way, family, &gguf(family, "q8_0"));
        }
    }
}

#[test]
fn prefill_chunked_prefill_and_decode_give_the_same_bits() {
    for_all(|way, family, path| {
        let mut model = way.load(path);
        let ids = golden(family).prompts.remove(4).ids; // 58 tokens, past every window
        let whole = last_logits(&mut *model, &ids, 0);
        for chunk in [1, 7, 16, 27] {
            let mut last = Vec::new();
            for (i, part) in ids.chunks(chunk).enumerate() {
                last = last_logits(&mut *model, part, (i * chunk) as u32);
            }
            assert_eq!(last, whole, "{way:?} {} in chunks of {chunk}", path.display());
        }
    });
}

#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_a_batch() {
    for_all(|way, family, path| {
        let mut model = way.load(path);
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
        assert_eq!(together, [alone[3].clone(), alone[2].clone(), alone[0].clone()], "{way:?} {}", path.display());
        assert_eq!(model.step(SLOT, &batch).unwrap().sampled[2], Vec::<u32>::new());
    });
}

#[test]
fn a_sequence_goes_on_from_a_copy_of_a_block_with_the_same_bits() {
    for_all(|way, family, path| {
        let mut model = way.load(path);
        let ids = golden(family).prompts.remove(3).ids; // 40 tokens, 3 blocks
        let whole = last_logits(&mut *model, &ids, 0);
        let first: Vec<BlockId> = (0..3).map(BlockId).collect();
        let mut batch = Batch::default();
        batch.push(&ids[..36], 0, &first, None);
        model.logits(SLOT, &batch).unwrap();
        // The last block is copied twice, the second time from the copy; then another sequence spoils the original.
        let (from, between, to) = (BlockId(2), BlockId(9), BlockId(11));
        let mut table = first.clone();
        table[2] = to;
        let mut batch = Batch { copies: vec![BlockCopy { from, to: between }, BlockCopy { from: between, to }], ..Batch::default() };
        batch.push(&[1, 2, 3, 4], 32, &first, None);
        batch.push(&ids[36..], 36, &table, draw());
        assert_eq!(model.logits(SLOT, &batch).unwrap(), [whole], "{way:?} {}", path.display());
    });
}

#[test]
fn guesses_give_the_tokens_that_are_drawn_without_them() {
    for way in EXACT_WAYS {
        for family in ["mistral_sw16", "qwen3_moe"] {
            let mut model = way.load(folder(family, "config.json").path());
            let prompt = golden(family).prompts.remove(2);
            let tokens = &prompt.greedy;
            // Two guesses are right and the third is wrong: three tokens and no more.
            let given = [&prompt.ids[..], &tokens[..2], &[tokens[2] ^ 1]].concat();
            let mut batch = Batch::default();
            let draw = draw().map(|draw| Draw { n_guesses: 3, position: prompt.ids.len() as u32, ..draw });
            batch.push(&given, 0, &blocks(), draw);
            assert_eq!(model.step(SLOT, &batch).unwrap().sampled, [tokens[..3].to_vec()], "{way:?} {family}");
        }
    }
}
