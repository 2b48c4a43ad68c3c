//! The golden models: where they are, ways of computing them, and what is asked of each.

#![allow(dead_code, reason = "each test uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plexus_engine::{
    Batch, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot,
};
use plexus_types::{DeviceId, DeviceKind, Sampling};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Weights are the same numbers; only the order of sums differs.
pub(crate) const EXACT: f32 = 1e-3;
/// Activations meet Q8_0 weights in 8 bits; logits have a standard deviation of 2 to 3.
pub(crate) const Q8_0: f32 = 0.6;
/// Activations, keys and values are rounded to bf16, and a token near the border between two experts may take the other.
pub(crate) const NATIVE: f32 = 0.6;

/// With safetensors.
pub(crate) const FAMILIES: [&str; 21] = [
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
    "qwen2_yarn",
    "phi4",
];
/// Of them those without a GGUF file of the same numbers. SmolLM 3 has one, but in GGUF each fourth layer does not rotate, whatever the
/// configuration says, and the golden model has two layers of which the second does not.
const WITHOUT_GGUF: [&str; 3] = ["llama_mha", "mistral_sw16", "smollm3"];
/// With a quantized GGUF file.
pub(crate) const Q8_0_FAMILIES: [&str; 8] = ["llama", "llama3_tied", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3", "phi3"];
pub(crate) const SLOT: Slot = Slot(0);
pub(crate) const KV: KvPlan = KvPlan { n_blocks: 16, block_len: 16 };

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) argmax: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
}

/// Has the family a GGUF file of the same numbers?
pub(crate) fn has_gguf(family: &str) -> bool {
    !WITHOUT_GGUF.contains(&family)
}

pub(crate) fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub(crate) fn golden(family: &str) -> Golden {
    serde_json::from_str(&fs::read_to_string(golden_folder().join(family).join("golden.json")).unwrap()).unwrap()
}

/// Reference logits of each prompt; the last row is that of the prompt's end.
pub(crate) fn reference(family: &str, file: &str) -> Vec<Vec<Vec<f32>>> {
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
pub(crate) fn folder(family: &str, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = golden_folder();
    fs::copy(from.join(family).join(config), folder.path().join("config.json")).unwrap();
    fs::copy(from.join(family).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

pub(crate) fn gguf(family: &str, kind: &str) -> PathBuf {
    golden_folder().join(family).join(format!("{family}-{kind}.gguf"))
}

/// An executor that also tells the logits from which it would draw.
pub(crate) trait Reference: Executor {
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

pub(crate) const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

/// A way of computing on this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Way {
    /// Tensor operations in f32.
    Candle,
    /// Our own kernels as small models are computed: in f32 on one thread.
    Small,
    /// Our own kernels as large models are computed: weights as stored, keys and values in bf16, a team of two threads.
    Large,
}

/// Those that compute in f32 whatever the file holds.
pub(crate) const EXACT_WAYS: [Way; 2] = [Way::Candle, Way::Small];
pub(crate) const WAYS: [Way; 3] = [Way::Candle, Way::Small, Way::Large];

impl Way {
    pub(crate) fn load(self, path: &Path) -> Box<dyn Reference> {
        self.load_files(ModelFiles::open(&ModelPath::Path(path.to_owned())).unwrap())
    }

    pub(crate) fn load_files(self, files: ModelFiles) -> Box<dyn Reference> {
        let (mut executor, files): (Box<dyn Reference>, _) = match self {
            Self::Candle => (Box::new(CandleExecutor::open(CPU, 0.5).unwrap()), files),
            Self::Small => (Box::new(CpuExecutor::open(CPU, 0.5, Some(2)).unwrap()), files),
            Self::Large => (Box::new(CpuExecutor::open(CPU, 0.5, Some(2)).unwrap()), files.held_as_large()),
        };
        executor.load(SLOT, &files, KV).unwrap();
        executor
    }
}

pub(crate) fn draw() -> Option<Draw> {
    let greedy = Sampling { temperature: Some(0.0), ..Sampling::default() };
    let settings = Arc::new(SamplerSettings::resolve(&greedy, &Sampling::default(), 0));
    Some(Draw::new(settings, 0))
}

/// Every other block, so that neighbours in the sequence are none in the pool.
pub(crate) fn blocks() -> Vec<BlockId> {
    (0..KV.n_blocks).map(|block| BlockId(block * 5 % KV.n_blocks)).collect()
}

pub(crate) fn last_logits(executor: &mut dyn Reference, ids: &[u32], first_position: u32) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push(ids, first_position, &blocks(), draw());
    executor.logits(SLOT, &batch).unwrap().remove(0)
}

pub(crate) fn greedy(executor: &mut dyn Reference, prompt: &[u32], n: usize) -> Vec<u32> {
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

pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap() as u32
}

/// Logits at the end of each prompt and of each of its beginnings for which there is a reference, and the greedy continuation.
pub(crate) fn check_exact(executor: &mut dyn Reference, family: &str, what: &str) {
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

/// Every model in every way of computing: `f(way, family, path)`.
pub(crate) fn for_all(f: impl Fn(Way, &str, &Path)) {
    for way in WAYS {
        for family in FAMILIES {
            f(way, family, folder(family, "config.json").path());
        }
        for family in Q8_0_FAMILIES {
            f(way, family, &gguf(family, "q8_0"));
        }
    }
    // Computed in f32 they are what the folders are.
    for family in FAMILIES.into_iter().filter(|family| has_gguf(family)) {
        f(Way::Large, family, &gguf(family, "bf16"));
    }
}
