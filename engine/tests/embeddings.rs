//! Encoders against an independent implementation: sentence vectors of a tiny BERT and a tiny XLM-R with random weights of our own, made with
//! transformers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/embed.rs"]
mod support;

use std::fs;
use std::path::Path;

use plexus_engine::{EngineError, KvPlan};
use plexus_types::{ModelKind, Prompt};
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
