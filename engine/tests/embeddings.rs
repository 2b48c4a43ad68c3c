//! Encoders against an independent implementation: sentence vectors of a tiny BERT and a tiny XLM-R with random weights of our own, made with
//! transformers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/embed.rs"]
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use plexus_engine::{EngineError, KvPlan};
use plexus_types::{ModelKind, Prompt};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use support::{SLOT, candle, change, copy_of, embed, golden, open, reference, texts, worst};

const KV: KvPlan = KvPlan { n_blocks: 4, block_len: 16 };
/// Weights are the same numbers; only the order of sums differs.
const EXACT: f32 = 1e-5;

/// The folder's texts, tokenized and embedded, against a tensor of its golden vectors.
fn check(folder: &Path, name: &str, tensor: &str) {
    let files = open(folder).unwrap();
    assert_eq!(files.kind(), ModelKind::Embed);
    let mut executor = candle(&files, KV).unwrap();
    let encode = |(text, ids): (String, Vec<u32>)| {
        assert_eq!(files.codec.encode(&Prompt::Text(text)).unwrap(), ids);
        ids
    };
    let ids: Vec<Vec<u32>> = texts(name).into_iter().map(encode).collect();
    let together = embed(&mut *executor, &ids).unwrap();
    let expected = reference(name, tensor);
    assert_eq!(together.len(), expected.len());
    for ((ids, vector), expected) in ids.iter().zip(&together).zip(expected) {
        assert!(worst(vector, &expected) < EXACT, "{name}, {tensor}: {}", worst(vector, &expected));
        assert_eq!(&embed(&mut *executor, std::slice::from_ref(ids)).unwrap()[0], vector, "alone and among others");
    }
}

#[test]
fn texts_become_the_reference_vectors() {
    check(&golden("bert"), "bert", "embeddings");
    assert_eq!(open(&golden("bert")).unwrap().context_length(), 64);
    check(&golden("xlm_roberta"), "xlm_roberta", "first");
    assert_eq!(open(&golden("xlm_roberta")).unwrap().context_length(), 256, "two positions are the padding's");
}

#[test]
fn the_folder_says_how_tokens_are_pooled() {
    for (flags, tensor) in [
        (json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false}), "mean"),
        (json!({"pooling_mode_lasttoken": true}), "last"),
        (json!({"pooling_mode": "cls"}), "first"),
    ] {
        let folder = copy_of("xlm_roberta");
        change(&folder.path().join("1_Pooling/config.json"), |config| *config = flags);
        check(folder.path(), "xlm_roberta", tensor);
        fs::remove_file(folder.path().join("modules.json")).unwrap();
        check(folder.path(), "xlm_roberta", tensor);
    }
    for flags in [json!({"pooling_mode_max_tokens": true}), json!({"pooling_mode": "max"}), json!({})] {
        let folder = copy_of("xlm_roberta");
        change(&folder.path().join("1_Pooling/config.json"), |config| *config = flags.clone());
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("pooling by") && error.contains("mean"), "{error}");
        assert_eq!(error.contains("max"), flags != json!({}), "{error}");
    }
}

/// Small numbers that look drawn by chance, the same each time: those of a 64-bit linear congruential generator (Knuth, TAOCP 2, 3.3.4).
fn numbers(n: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.1 * next()).collect()
}

/// A golden encoder with sizes at which products are computed in blocks, as those of real models are: 384 numbers for a token, 1,536 within.
fn of_real_width(name: &str) -> tempfile::TempDir {
    let folder = copy_of(name);
    let wider = HashMap::from([(64, 384), (96, 1536)]);
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut state = 1;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let mut shape: Vec<usize> = tensor.shape().iter().map(|dim| *wider.get(dim).unwrap_or(dim)).collect();
            if name.contains("position_embeddings") {
                shape[0] = 530;
            }
            let numbers = numbers(shape.iter().product(), &mut state);
            (name, shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    change(&folder.path().join("config.json"), |config| {
        for (key, size) in [("hidden_size", 384), ("intermediate_size", 1536), ("max_position_embeddings", 530)] {
            config[key] = json!(size);
        }
    });
    folder
}

#[test]
fn a_text_has_the_same_bits_alone_and_among_others_of_any_length() {
    let lens = [5, 1, 511, 33, 5, 2, 128, 34, 17, 5, 200, 36, 18, 1, 100, 64, 5, 127, 2, 33, 97, 3];
    for name in ["bert", "xlm_roberta"] {
        let folder = of_real_width(name);
        let files = open(folder.path()).unwrap();
        let mut executor = candle(&files, KV).unwrap();
        let vocabulary = support::read_json(&folder.path().join("config.json"))["vocab_size"].as_u64().unwrap() as usize;
        let texts: Vec<Vec<u32>> =
            lens.iter().enumerate().map(|(i, len)| (0..*len).map(|at| ((i * 37 + at * 11) % vocabulary) as u32).collect()).collect();
        let alone: Vec<Vec<f32>> = texts.iter().map(|ids| embed(&mut *executor, std::slice::from_ref(ids)).unwrap().remove(0)).collect();
        assert!(alone.iter().all(|vector| vector.iter().all(|x| x.is_finite())) && alone[0] != alone[4]);
        let (together, n_pieces) = support::embed_in_pieces(&mut *executor, &texts).unwrap();
        assert!(n_pieces < 6, "{n_pieces} pieces");
        for first in [0, 7, 13] {
            let order: Vec<usize> = (0..texts.len()).map(|i| (first + i) % texts.len()).collect();
            let texts: Vec<Vec<u32>> = order.iter().map(|i| texts[*i].clone()).collect();
            for (vector, i) in embed(&mut *executor, &texts).unwrap().iter().zip(order) {
                assert!(*vector == alone[i] && *vector == together[i], "{name}: the text of {} tokens", lens[i]);
            }
        }
    }
}

#[test]
fn a_text_is_as_long_as_the_folder_allows() {
    let folder = copy_of("bert");
    let whole = open(folder.path()).unwrap().context_length();
    for (said, context) in
        [(json!(7), Some(7)), (json!(null), Some(whole)), (json!(100_000), Some(whole)), (json!(0), None), (json!("7"), None)]
    {
        fs::write(folder.path().join("sentence_bert_config.json"), json!({"max_seq_length": said, "do_lower_case": false}).to_string())
            .unwrap();
        match (open(folder.path()), context) {
            (Ok(files), Some(context)) => assert_eq!(files.context_length(), context, "{said}"),
            (Err(error), None) => assert!(error.to_string().contains("max_seq_length"), "{error}"),
            (other, _) => panic!("{said}: {:?}", other.map(|files| files.context_length())),
        }
    }
}

#[test]
fn what_is_impossible_is_refused_with_its_name() {
    let cases = [
        ("hidden_size", json!(65), "cannot be shared by 4 heads"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("vocab_size", json!("many"), "vocab_size is missing or not a size"),
        ("hidden_act", json!("swoosh"), "swoosh"),
        ("intermediate_size", json!(95), "shape"),
        ("position_embedding_type", json!("rotary"), "rotary"),
        ("is_decoder", json!(true), "is_decoder"),
    ];
    for name in ["bert", "xlm_roberta"] {
        for (key, value, reason) in cases.clone() {
            let folder = copy_of(name);
            change(&folder.path().join("config.json"), |config| config[key] = value);
            let error = open(folder.path()).and_then(|files| candle(&files, KV).map(drop)).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error:?} does not say {reason:?}");
        }
    }
    let mut executor = candle(&open(&golden("bert")).unwrap(), KV).unwrap();
    for ids in [vec![], vec![0; 65], vec![9999]] {
        assert!(matches!(embed(&mut *executor, &[ids]), Err(EngineError::Shape { .. })));
    }
    assert!(executor.step(SLOT, &plexus_engine::Batch::default()).is_err());
    executor.unload(SLOT);
    assert!(embed(&mut *executor, &[vec![1]]).is_err());
}
