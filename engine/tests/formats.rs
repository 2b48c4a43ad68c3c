//! Every format of weights, files in several parts, and quantization at load, on models wide enough for the formats of 256 numbers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/wide.rs"]
mod wide;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf::Parts;
use plexus_engine::model::Quantization;
use plexus_engine::{Batch, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath};
use plexus_engine::{SamplerSettings, Slot};
use plexus_kernels::Format;
use plexus_kernels::format::dequantize;
use plexus_types::{DeviceId, DeviceKind, Sampling};
use wide::{HIDDEN, VOCAB, model};

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 8, block_len: 16 };
const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
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

fn draw() -> Draw {
    Draw::new(Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 0)), 0)
}

fn batch(ids: &[u32], first_position: u32) -> Batch {
    let mut batch = Batch::default();
    batch.push(ids, first_position, &[BlockId(5), BlockId(2), BlockId(7), BlockId(0)], Some(draw()));
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
        let other: Vec<u32> = prompt().into_iter().rev().take(45).collect();
        let elsewhere = [BlockId(1), BlockId(3), BlockId(4)];
        let mut alone = Batch::default();
        alone.push(&other, 0, &elsewhere, Some(draw()));
        let alone = executor.logits(SLOT, &alone).unwrap().remove(0);
        let mut together = batch(&prompt(), 0);
        together.push(&other, 0, &elsewhere, Some(draw()));
        assert_eq!(executor.logits(SLOT, &together).unwrap(), [native.clone(), alone], "{format} in a batch");
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
