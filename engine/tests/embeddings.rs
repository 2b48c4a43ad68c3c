//! Encoders against an independent implementation: sentence vectors of a tiny BERT with random weights of our own, made with transformers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use plexus_engine::embed::EmbeddingExecutor;
use plexus_engine::{CandleExecutor, CpuExecutor, EngineError, Executor, KvPlan, ModelFiles, ModelPath, Slot};
use plexus_types::{DeviceId, DeviceKind, ModelKind, Prompt};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 4, block_len: 16 };
/// Weights are the same numbers; only the order of sums differs.
const EXACT: f32 = 1e-5;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert")
}

/// The folder with `config.json` changed, and `pooling` as sentence-transformers writes it.
fn folder(change: impl FnOnce(&mut Value), pooling: Option<Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(golden().join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_str(&fs::read_to_string(golden().join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    if let Some(pooling) = pooling {
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    }
    folder
}

fn open(path: &Path) -> Result<ModelFiles, EngineError> {
    ModelFiles::open(&ModelPath::Path(path.to_owned()))
}

fn load(files: &ModelFiles) -> EmbeddingExecutor<CandleExecutor> {
    let decoders = CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5).unwrap();
    let device = decoders.device().clone();
    let mut executor = EmbeddingExecutor::new(decoders, device);
    executor.load(SLOT, files, KV).unwrap();
    executor
}

fn texts() -> Vec<(String, Vec<u32>)> {
    let json: Value = serde_json::from_str(&fs::read_to_string(golden().join("golden.json")).unwrap()).unwrap();
    let texts = json["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    texts.zip(serde_json::from_value::<Vec<Vec<u32>>>(json["ids"].clone()).unwrap()).collect()
}

/// The tensor's rows.
fn reference(name: &str) -> Vec<Vec<f32>> {
    let bytes = fs::read(golden().join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn texts_become_the_reference_vectors() {
    let files = open(&golden()).unwrap();
    assert_eq!((files.kind(), files.context_length()), (ModelKind::Embed, 64));
    let mut executor = load(&files);
    let ids: Vec<Vec<u32>> = texts()
        .into_iter()
        .map(|(text, ids)| {
            assert_eq!(files.codec.encode(&Prompt::Text(text)).unwrap(), ids);
            ids
        })
        .collect();
    let together = executor.embed(SLOT, &ids).unwrap();
    for ((ids, vector), expected) in ids.iter().zip(&together).zip(reference("embeddings")) {
        assert!(worst(vector, &expected) < EXACT, "{}", worst(vector, &expected));
        assert_eq!(&executor.embed(SLOT, std::slice::from_ref(ids)).unwrap()[0], vector, "alone and among others");
    }
}

#[test]
fn the_folder_says_how_tokens_are_pooled() {
    let ids = texts()[0].1.clone();
    let hidden = reference("hidden.0");
    for (mode, token) in [("cls_token", 0), ("lasttoken", hidden.len() - 1)] {
        let pooling = json!({ format!("pooling_mode_{mode}"): true, "pooling_mode_max_tokens": false });
        let folder = folder(|_| {}, Some(pooling));
        let vector = load(&open(folder.path()).unwrap()).embed(SLOT, std::slice::from_ref(&ids)).unwrap().remove(0);
        let length = hidden[token].iter().map(|x| x * x).sum::<f32>().sqrt();
        let expected: Vec<f32> = hidden[token].iter().map(|x| x / length).collect();
        assert!(worst(&vector, &expected) < EXACT, "{mode}");
    }
    let error = open(folder(|_| {}, Some(json!({"pooling_mode_max_tokens": true}))).path()).unwrap_err().to_string();
    assert!(error.contains("max_tokens") && error.contains("mean_tokens"), "{error}");
}

#[test]
fn a_pooled_decoder_gives_the_vector_that_its_reference_logits_come_from() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folder = tempfile::tempdir().unwrap();
    for file in ["qwen3/config.json", "qwen3/model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        let name = Path::new(file).file_name().unwrap();
        fs::copy(golden.join(file), folder.path().join(name)).unwrap();
    }
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), json!({"pooling_mode_lasttoken": true}).to_string()).unwrap();
    let files = open(folder.path()).unwrap();
    assert_eq!(files.kind(), ModelKind::Embed);
    // The embedding is the output projection too: what it makes of the vector are the logits, but for their length.
    let weights = fs::read(golden.join("qwen3/model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let projection = weights.tensor("model.embed_tokens.weight").unwrap();
    let width = projection.shape()[1];
    let projection: Vec<f32> =
        projection.data().chunks_exact(2).map(|b| f32::from_bits(u32::from(b[1]) << 24 | u32::from(b[0]) << 16)).collect();
    let unit = |x: Vec<f32>| {
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.into_iter().map(|x| x / length).collect::<Vec<_>>()
    };
    let prompts: Value = serde_json::from_str(&fs::read_to_string(golden.join("qwen3/golden.json")).unwrap()).unwrap();
    let logits = fs::read(golden.join("qwen3/golden.safetensors")).unwrap();
    let logits = SafeTensors::deserialize(&logits).unwrap();
    let cpu = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
    let executors: [Box<dyn Executor>; 2] =
        [Box::new(load(&files)), Box::new(EmbeddingExecutor::on_host(CpuExecutor::open(cpu, 0.5, Some(1)).unwrap()))];
    for (i, mut executor) in executors.into_iter().enumerate() {
        if i == 1 {
            executor.load(SLOT, &files, KV).unwrap();
        }
        let ids: Vec<Vec<u32>> = (0..5).map(|k| serde_json::from_value(prompts["prompts"][k]["ids"].clone()).unwrap()).collect();
        for (k, vector) in executor.embed(SLOT, &ids).unwrap().iter().enumerate() {
            let logits = logits.tensor(&format!("logits.{k}")).unwrap();
            let rows: Vec<f32> = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let expected = unit(rows[rows.len() - projection.len() / width..].to_vec());
            let given = unit(projection.chunks_exact(width).map(|row| row.iter().zip(vector).map(|(w, x)| w * x).sum()).collect());
            assert!(worst(&given, &expected) < 1e-4, "executor {i}, prompt {k}: {}", worst(&given, &expected));
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert!(matches!(executor.embed(SLOT, &[vec![1; 65]]), Err(EngineError::Shape { .. })), "more tokens than the pool holds");
    }
}

#[test]
fn what_is_impossible_is_refused_with_its_name() {
    let cases = [
        ("hidden_size", json!(65), "cannot be shared by 4 heads"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("vocab_size", json!("many"), "vocab_size is missing or not a size"),
        ("hidden_act", json!("swiglu"), "swiglu"),
        ("intermediate_size", json!(95), "shape"),
    ];
    for (key, value, reason) in cases {
        let folder = folder(|config| config[key] = value, None);
        let mut executor = EmbeddingExecutor::new(
            CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5).unwrap(),
            candle_core::Device::Cpu,
        );
        let error = open(folder.path()).and_then(|files| executor.load(SLOT, &files, KV)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    let files = open(&golden()).unwrap();
    let mut executor = load(&files);
    for ids in [vec![], vec![0; 65], vec![9999]] {
        assert!(matches!(executor.embed(SLOT, &[ids]), Err(EngineError::Shape { .. })));
    }
    assert!(executor.step(SLOT, &plexus_engine::Batch::default()).is_err());
    executor.unload(SLOT);
    assert!(executor.embed(SLOT, &[vec![1]]).is_err());
}
