//! Embedding models in the tests: golden vectors, folders with changes, work run to its end.

#![allow(dead_code, reason = "each test uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use plexus_engine::embed::{EmbedWork, EmbeddingExecutor};
use plexus_engine::{CandleExecutor, CpuExecutor, EngineError, Executor, KvPlan, ModelFiles, ModelPath, Slot};
use plexus_types::{DeviceId, DeviceKind};
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) const SLOT: Slot = Slot(0);
pub(crate) const CPU: DeviceId = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };

/// A folder of `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub(crate) fn open(path: &Path) -> Result<ModelFiles, EngineError> {
    ModelFiles::open(&ModelPath::Path(path.to_owned()))
}

/// A copy of a golden folder.
pub(crate) fn copy_of(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else if entry.path().extension().is_none_or(|extension| extension != "gguf") {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&golden(name), folder.path());
    folder
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Changes a JSON file.
pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = read_json(path);
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The texts of a golden folder, each with its ids by the reference.
pub(crate) fn texts(name: &str) -> Vec<(String, Vec<u32>)> {
    let json = read_json(&golden(name).join("golden.json"));
    let texts = json["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    texts.zip(serde_json::from_value::<Vec<Vec<u32>>>(json["ids"].clone()).unwrap()).collect()
}

/// The rows of a golden folder's tensor.
pub(crate) fn reference(name: &str, tensor: &str) -> Vec<Vec<f32>> {
    let bytes = fs::read(golden(name).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(tensor).unwrap();
    let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

pub(crate) fn candle(files: &ModelFiles, kv: KvPlan) -> Result<Box<dyn Executor>, EngineError> {
    let decoders = CandleExecutor::open(CPU, 0.5).unwrap();
    let device = decoders.device().clone();
    let mut executor = EmbeddingExecutor::new(decoders, device);
    executor.load(SLOT, files, kv)?;
    Ok(Box::new(executor))
}

pub(crate) fn host(files: &ModelFiles, kv: KvPlan) -> Result<Box<dyn Executor>, EngineError> {
    let mut executor = EmbeddingExecutor::on_host(CpuExecutor::open(CPU, 0.5, Some(2)).unwrap());
    executor.load(SLOT, files, kv)?;
    Ok(Box::new(executor))
}

/// All vectors, and in how many pieces they were computed.
pub(crate) fn embed_in_pieces(executor: &mut dyn Executor, inputs: &[Vec<u32>]) -> Result<(Vec<Vec<f32>>, usize), EngineError> {
    let mut work = EmbedWork::new(inputs.to_vec());
    let mut n_pieces = 0;
    while !work.is_done() {
        executor.embed(SLOT, &mut work)?;
        n_pieces += 1;
    }
    Ok((work.into_vectors().unwrap(), n_pieces))
}

pub(crate) fn embed(executor: &mut dyn Executor, inputs: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
    embed_in_pieces(executor, inputs).map(|(vectors, _)| vectors)
}

/// The largest difference between two vectors.
pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
