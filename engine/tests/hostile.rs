//! Model files that lie: each is refused with a reason, never with a panic or an allocation that the file does not back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plexus_engine::{Batch, BlockId, CandleExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelSource, SamplerSettings, Slot};
use plexus_types::{DeviceId, DeviceKind, Sampling};
use proptest::prelude::*;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn open_bytes(bytes: &[u8]) -> Result<ModelFiles, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let files = ModelFiles::open(&ModelSource::Path(path))?;
    run(&files)?;
    Ok(files)
}

/// What opens must also load and compute, or fail with a reason.
fn run(files: &ModelFiles) -> Result<(), EngineError> {
    let mut executor = CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5)?;
    executor.load(Slot(0), files, KvPlan { n_blocks: 2, block_len: 4 })?;
    let settings = Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 0));
    let mut batch = Batch::default();
    let draw = Draw::new(settings, 3);
    batch.push(&[0, 1, 2], 0, &[BlockId(1)], Some(draw));
    executor.step(Slot(0), &batch).map(drop)
}

/// A header of the given counts and what follows.
fn header(n_tensors: u64, n_metadata: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_metadata.to_le_bytes(), rest].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn u32_entry(key: &str, value: u32) -> Vec<u8> {
    [text(key), 4u32.to_le_bytes().into(), value.to_le_bytes().into()].concat()
}

fn tensor(dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    [text("t"), (dims.len() as u32).to_le_bytes().into(), dims_bytes, kind.to_le_bytes().into(), offset.to_le_bytes().into()].concat()
}

#[test]
fn headers_that_lie_are_refused_with_the_reason() {
    let array = |kind: u32, len: u64| [text("k"), 9u32.to_le_bytes().into(), kind.to_le_bytes().into(), len.to_le_bytes().into()].concat();
    let padded = |bytes: Vec<u8>| [bytes, vec![0; 256]].concat();
    let cases: [(Vec<u8>, &str); 16] = [
        (b"GG".to_vec(), "ends inside its header"),
        (b"GGML0000".to_vec(), "does not start with GGUF"),
        (padded(header(u64::MAX, 0, &[])), "tensors, more than it can hold"),
        (padded(header(0, u64::MAX / 2, &[])), "metadata entries, more than it can hold"),
        (padded(header(0, 1, &u64::MAX.to_le_bytes())), "string of"),
        (padded(header(0, 1, &u32_entry("general.alignment", 0))), "general.alignment"),
        (padded(header(0, 1, &u32_entry("general.alignment", 48))), "general.alignment"),
        (padded(header(0, 2, &[u32_entry("a", 1), u32_entry("a", 2)].concat())), "given twice"),
        (padded(header(0, 1, &array(4, u64::MAX))), "list of"),
        (padded(header(0, 1, &array(9, 1))), "nested type"),
        (padded(header(0, 1, &[text("k"), 99u32.to_le_bytes().into()].concat())), "unknown type 99"),
        (padded(header(1, 0, &tensor(&[1 << 40, 1 << 40], 0, 0))), "impossible dimensions"),
        (padded(header(1, 0, &tensor(&[0, 4], 0, 0))), "impossible dimensions"),
        (padded(header(1, 0, &tensor(&[33], 8, 0))), "whole blocks"),
        (padded(header(1, 0, &tensor(&[8], 0, 1 << 62))), "beyond the end of the file"),
        (padded(header(1, 0, &tensor(&[8], 0, 7))), "not aligned"),
    ];
    for (bytes, reason) in cases {
        let error = open_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    let error = open_bytes(&padded(header(1, 0, &tensor(&[32], 39, 0)))).unwrap_err().to_string();
    assert!(error.contains("MXFP4") && error.contains("Q4_K"), "{error}");
    let big_endian = [b"GGUF".as_slice(), &3u32.to_be_bytes(), &[0; 64]].concat();
    assert!(matches!(open_bytes(&big_endian), Err(EngineError::Unsupported { .. })));
}

/// Opens a folder with this configuration beside sound weights and tokenizer.
fn open_with_config(edit: impl FnOnce(&mut serde_json::Value)) -> Result<ModelFiles, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::from_str(&fs::read_to_string(golden("qwen2/config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(golden("qwen2/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let files = ModelFiles::open(&ModelSource::Path(folder.path().to_owned()))?;
    run(&files)?;
    Ok(files)
}

#[test]
fn what_we_would_compute_wrongly_is_refused_by_its_name() {
    type Case = (&'static str, serde_json::Value, &'static str);
    let cases: [Case; 9] = [
        ("model_type", "lfm2".into(), "\"lfm2\" is not supported; supported: llama, mistral, mixtral, qwen2"),
        ("hidden_act", "relu".into(), "activation \"relu\""),
        ("rope_scaling", serde_json::json!({"type": "dynamic", "factor": 2.0}), "rope scaling \"dynamic\""),
        ("quantization_config", serde_json::json!({"quant_method": "awq"}), "quantized safetensors (awq)"),
        ("partial_rotary_factor", 0.5.into(), "rotary embedding of 0.5"),
        ("num_hidden_layers", 1.into(), "layer_types lists 2 of 1 layers"),
        ("hidden_size", 65.into(), "the configuration says"),
        ("num_key_value_heads", 3.into(), "cannot share"),
        ("num_attention_heads", 0.into(), "number of heads is 0"),
    ];
    for (key, value, reason) in cases {
        let error = open_with_config(|config| config[key] = value).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    assert_eq!(open_with_config(|_| {}).unwrap().context_length(), 256);
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256});
    assert_eq!(open_with_config(|config| config["rope_scaling"] = yarn).unwrap().context_length(), 1024);
}

#[test]
fn a_path_that_is_no_model_says_what_would_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ModelFiles::open(&ModelSource::Path(path.to_owned())).unwrap_err();
    assert!(matches!(open(&folder.path().join("absent.gguf")), EngineError::Io { .. }));
    assert!(open(folder.path()).to_string().contains("config.json"));
    fs::write(folder.path().join("model.bin"), b"x").unwrap();
    assert!(matches!(open(&folder.path().join("model.bin")), EngineError::Unsupported { .. }));
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), br#"{"weight_map": {"a": "../secret.safetensors"}}"#).unwrap();
    assert!(open(folder.path()).to_string().contains("does not name a file of this folder"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gguf_file_cut_anywhere_never_panics(share in 0.0f64..1.0) {
        let bytes = fs::read(golden("llama3_tied/llama3_tied-q8_0.gguf")).unwrap();
        let cut = (bytes.len() as f64 * share * share) as usize; // mostly in the header
        prop_assert!(open_bytes(&bytes[..cut]).is_err());
    }

    #[test]
    fn a_gguf_file_changed_anywhere_never_panics(changes in prop::collection::vec((0.0f64..1.0, any::<u8>(), any::<bool>()), 1..4)) {
        let mut bytes = fs::read(golden("llama3_tied/llama3_tied-q8_0.gguf")).unwrap();
        for (share, value, in_header) in changes {
            let reach = if in_header { 12_000 } else { bytes.len() };
            let at = (reach as f64 * share) as usize;
            bytes[at] = value;
        }
        drop(open_bytes(&bytes));
    }

    #[test]
    fn a_safetensors_file_cut_or_changed_never_panics(changes in prop::collection::vec((0usize..2600, any::<u8>()), 0..3), cut in 0usize..4000) {
        let folder = tempfile::tempdir().unwrap();
        for file in ["qwen2/config.json", "tokenizer.json"] {
            fs::copy(golden(file), folder.path().join(Path::new(file).file_name().unwrap())).unwrap();
        }
        let mut bytes = fs::read(golden("qwen2/model.safetensors")).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if cut < 3000 {
            bytes.truncate(cut);
        }
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        if let Ok(files) = ModelFiles::open(&ModelSource::Path(folder.path().to_owned())) {
            drop(run(&files));
        }
    }
}
