//! Every format of weights, files in several parts, and quantization at load, on models wide enough for the formats of 256 numbers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gguf.rs"]
mod gguf;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf::{Parts, Tensor};
use plexus_engine::model::Quantization;
use plexus_engine::{Batch, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath};
use plexus_engine::{SamplerSettings, Slot};
use plexus_kernels::Format;
use plexus_kernels::format::{dequantize, quantize};
use plexus_types::{DeviceId, DeviceKind, Sampling};

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 8, block_len: 16 };
const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
const HIDDEN: usize = 256;
const FFN: usize = 512;
const VOCAB: usize = 288;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn len_of(kind: u32, n: u64) -> usize {
    Format::from_gguf(kind).unwrap().row_bytes(n as usize).unwrap()
}

/// Numbers of a normal distribution, roughly: the sum of four even ones.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn number(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum::<f32>() * 0.866
    }
}

/// A block of random whole numbers whose values have a standard deviation of about `deviation`.
fn random_block(format: Format, deviation: f32, random: &mut Random) -> Vec<u8> {
    // Where the scale and the minimum lie, and how large the latter is beside the former, to even the values out around 0.
    let (scale, minimum): (usize, Option<(usize, f32)>) = match format {
        Format::Q4_1 => (0, Some((2, -7.5))),
        Format::Q5_1 => (0, Some((2, -15.5))),
        Format::Q4K => (0, Some((2, 7.5))),
        Format::Q5K => (0, Some((2, 15.5))),
        Format::Q2K => (80, Some((82, 1.5))),
        Format::Q3K => (108, None),
        Format::Q6K => (208, None),
        _ => (0, None),
    };
    let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| (random.bits() >> 24) as u8).collect();
    let mut set = |d: f32| {
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        bytes[scale..scale + 2].copy_from_slice(&half(d));
        if let Some((at, factor)) = minimum {
            bytes[at..at + 2].copy_from_slice(&half(d * factor));
        }
        let mut values = vec![0.0; format.block_len()];
        dequantize(format, &bytes, &mut values);
        (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
    };
    let d = 0.01;
    let now = set(d);
    set(d * deviation / now);
    bytes
}

/// A matrix of random numbers in `format`.
fn random_matrix(format: Format, rows: usize, columns: usize, random: &mut Random) -> Vec<u8> {
    let deviation = 1.5 / (columns as f32).sqrt();
    if format.is_dense() {
        let values: Vec<f32> = (0..rows * columns).map(|_| random.number() * deviation).collect();
        let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
        quantize(format, &values, &mut bytes);
        return bytes;
    }
    (0..rows * columns / format.block_len()).flat_map(|_| random_block(format, deviation, random)).collect()
}

/// A model of the llama family with all matrices in `format`.
fn model(format: Format) -> Parts {
    let mut parts = Parts::read(&fs::read(golden("llama/llama-bf16.gguf")).unwrap(), len_of);
    for (key, value) in [
        ("llama.embedding_length", HIDDEN as u32),
        ("llama.feed_forward_length", FFN as u32),
        ("llama.block_count", 2),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.attention.key_length", 64),
        ("llama.attention.value_length", 64),
        ("llama.rope.dimension_count", 64),
    ] {
        parts.set_u32(key, value);
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut tensors = Vec::new();
    let mut matrix = |name: &str, rows: usize, columns: usize| {
        let data = random_matrix(format, rows, columns, &mut random);
        tensors.push(Tensor { name: format!("{name}.weight"), dims: vec![columns as u64, rows as u64], kind: format.gguf(), data });
    };
    matrix("token_embd", VOCAB, HIDDEN);
    matrix("output", VOCAB, HIDDEN);
    for layer in 0..2 {
        for (name, rows, columns) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", 128, HIDDEN),
            ("attn_v", 128, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FFN, HIDDEN),
            ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ] {
            matrix(&format!("blk.{layer}.{name}"), rows, columns);
        }
    }
    let ones: Vec<u8> = [1f32; HIDDEN].iter().flat_map(|x| x.to_le_bytes()).collect();
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"] {
        tensors.push(Tensor { name: format!("{name}.weight"), dims: vec![HIDDEN as u64], kind: 0, data: ones.clone() });
    }
    parts.tensors = tensors;
    parts
}

/// The same numbers as f32.
fn widened(parts: &Parts) -> Parts {
    let mut parts = parts.clone();
    for tensor in &mut parts.tensors {
        let format = Format::from_gguf(tensor.kind).unwrap();
        let mut values = vec![0.0; tensor.dims.iter().product::<u64>() as usize];
        dequantize(format, &tensor.data, &mut values);
        tensor.data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor.kind = 0;
    }
    parts
}

fn open(folder: &Path, name: &str, parts: &Parts) -> ModelFiles {
    let path = folder.join(name);
    fs::write(&path, parts.bytes()).unwrap();
    ModelFiles::open(&ModelPath::Path(path)).unwrap()
}

fn cpu(files: &ModelFiles) -> CpuExecutor {
    let mut executor = CpuExecutor::open(CPU, 0.5, Some(2)).unwrap();
    executor.load(SLOT, files, KV).unwrap();
    executor
}

fn candle(files: &ModelFiles) -> Result<CandleExecutor, EngineError> {
    let mut executor = CandleExecutor::open(CPU, 0.5).unwrap();
    executor.load(SLOT, files, KV).map(|()| executor)
}

fn prompt() -> Vec<u32> {
    (0..50).map(|i| (i * 37 + 11) % 250).collect()
}

fn batch(ids: &[u32], first_position: u32) -> Batch {
    let settings = Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 0));
    let mut batch = Batch::default();
    batch.push(ids, first_position, &[BlockId(5), BlockId(2), BlockId(7), BlockId(0)], Some(Draw::new(settings, 0)));
    batch
}

/// The distance between two vectors beside the length of the second.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn a_model_in_any_format_gives_what_its_numbers_give() {
    let folder = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let parts = model(format);
        let (files, plain) = (open(folder.path(), "stored.gguf", &parts), open(folder.path(), "plain.gguf", &widened(&parts)));
        let exact = cpu(&plain).logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
        assert!(distance(&[0.0; VOCAB], &exact) == 1.0 && exact.iter().all(|x| x.is_finite()));
        assert_eq!(cpu(&files).logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0), exact, "{format}, widened");
        // As large models are held: weights as stored, activations in 8 or 16 bits.
        let large = files.clone().held_as_large();
        let mut executor = cpu(&large);
        let native = executor.logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
        let error = distance(&native, &exact);
        assert!(error < 0.05, "{format}: {error}");
        for chunk in [1, 13, 32] {
            let mut last = Vec::new();
            for (i, part) in prompt().chunks(chunk).enumerate() {
                last = executor.logits(SLOT, &batch(part, (i * chunk) as u32)).unwrap().remove(0);
            }
            assert_eq!(last, native, "{format} in chunks of {chunk}");
        }
        match candle(&large) {
            Ok(mut candle) => {
                let error = distance(&candle.logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0), &exact);
                assert!(error < 0.05, "{format} by candle: {error}");
            }
            Err(error) => {
                let refused = matches!(format, Format::Iq4Nl | Format::Iq4Xs) && error.to_string().contains(format.name());
                assert!(refused, "{format}: {error}");
            }
        }
    }
}

#[test]
fn a_model_in_several_files_is_the_model_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let whole = model(Format::Q5K);
    let expected = cpu(&open(folder.path(), "whole.gguf", &whole)).logits(SLOT, &batch(&prompt(), 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (number, tensors) in whole.tensors.chunks(7).enumerate() {
        let mut part = Parts { metadata: if number == 0 { whole.metadata.clone() } else { Vec::new() }, tensors: tensors.to_vec() };
        let u16_of = |value: usize| [2u32.to_le_bytes().to_vec(), (value as u16).to_le_bytes().to_vec()].concat();
        part.set("split.no", u16_of(number));
        part.set("split.count", u16_of(3));
        fs::write(folder.path().join(format!("m-{:05}-of-00003.gguf", number + 1)), part.bytes()).unwrap();
    }
    let open = |path: &Path| ModelFiles::open(&ModelPath::Path(path.to_owned()));
    for path in [folder.path().to_owned(), folder.path().join("m-00001-of-00003.gguf")] {
        assert_eq!(cpu(&open(&path).unwrap()).logits(SLOT, &batch(&prompt(), 0)).unwrap(), expected);
    }
    let error = open(&folder.path().join("m-00002-of-00003.gguf")).unwrap_err().to_string();
    assert!(error.contains("not the first of a model's 3 files") && error.contains("-00001-of-00003.gguf"), "{error}");
    fs::copy(folder.path().join("m-00002-of-00003.gguf"), folder.path().join("m-00003-of-00003.gguf")).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("number 3 of 3"));
    fs::remove_file(folder.path().join("m-00003-of-00003.gguf")).unwrap();
    assert!(matches!(open(&folder.path().join("m-00001-of-00003.gguf")), Err(EngineError::Io { .. })));
    assert!(open(folder.path()).unwrap_err().to_string().contains("several .gguf files"));
}

#[test]
fn a_model_quantized_at_load_is_close_and_takes_less_memory() {
    let folder = tempfile::tempdir().unwrap();
    let files = open(folder.path(), "bf16.gguf", &model(Format::Bf16));
    let exact = cpu(&files).logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
    let stored = files.clone().held_as_large().weights_bytes.0 as f64;
    for (quantization, tolerance, bits) in [(Quantization::Q8_0, 0.04, 8.5), (Quantization::Q6K, 0.15, 6.57), (Quantization::Q4K, 0.4, 4.9)]
    {
        let quantized = files.clone().quantized(quantization).unwrap();
        let share = quantized.weights_bytes.0 as f64 / stored;
        assert!((share - bits / 16.0).abs() < 0.02, "{quantization}: {share} of the memory");
        let mut executor = cpu(&quantized);
        let logits = executor.logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
        let error = distance(&logits, &exact);
        assert!(error > 1e-4 && error < tolerance, "{quantization}: {error}");
        // In chunks the same bits; by candle, which quantizes activations its own way, the same but for that.
        executor.logits(SLOT, &batch(&prompt()[..21], 0)).unwrap();
        assert_eq!(executor.logits(SLOT, &batch(&prompt()[21..], 21)).unwrap(), std::slice::from_ref(&logits), "{quantization}");
        let theirs = candle(&quantized).unwrap().logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
        let error = distance(&theirs, &logits);
        assert!(error < 0.05, "{quantization} by candle: {error}");
    }
}

#[test]
fn experts_are_quantized_and_their_routers_are_not() {
    // Rows of 32 and 64 numbers are no blocks of 256: they take Q8_0.
    let files = ModelFiles::open(&ModelPath::Path(golden("qwen2_moe/qwen2_moe-bf16.gguf"))).unwrap();
    let quantized = files.clone().quantized(Quantization::Q4K).unwrap();
    let (large, less) = (files.clone().held_as_large().weights_bytes.0, quantized.weights_bytes.0);
    assert!(less < large * 6 / 10 && less > large / 2, "{less} of {large}");
    let exact = cpu(&files).logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0);
    let error = distance(&cpu(&quantized).logits(SLOT, &batch(&prompt(), 0)).unwrap().remove(0), &exact);
    assert!(error < 0.5, "{error}"); // a token near the border may take another expert
}

#[test]
fn an_encoder_is_not_quantized() {
    let files = ModelFiles::open(&ModelPath::Path(golden("bert"))).unwrap();
    assert!(files.quantized(Quantization::Q8_0).unwrap_err().to_string().contains("encoder"));
}

/// Peak of this process's resident memory, bytes.
#[cfg(target_os = "linux")]
fn peak_resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// In a process of its own: others would add to the peak.
#[cfg(target_os = "linux")]
#[test]
fn loading_takes_little_more_memory_than_the_weights() {
    const FILE: &str = "PLEXUS_TEST_MODEL_FILE";
    if let Ok(path) = std::env::var(FILE) {
        let files = ModelFiles::open(&ModelPath::Path(path.into())).unwrap();
        let before = peak_resident();
        let executor = cpu(&files);
        let (grown, held) = (peak_resident() - before, files.footprint(KV).0);
        drop(executor);
        assert!(held > 128 << 20 && (grown as f64) < held as f64 * 1.1, "{grown} bytes at the peak for {held}");
        return;
    }
    // One tensor is nearly all of it: it must not be in memory twice.
    let mut parts = model(Format::F16);
    let embedding = &mut parts.tensors[0];
    embedding.dims = vec![HIDDEN as u64, 1 << 18];
    embedding.data = vec![0; HIDDEN << 19];
    parts.tensors.remove(1); // the output projection is the embedding
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gguf");
    fs::write(&path, parts.bytes()).unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", "loading_takes_little_more_memory_than_the_weights"]).env(FILE, &path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
