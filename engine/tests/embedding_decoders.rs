//! Decoders that were trained to embed, from text to vector, against transformers: a tiny one in the manner of Qwen3-Embedding, as a folder and as
//! GGUF.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/embed.rs"]
mod support;

use std::fs;
use std::path::Path;

use plexus_engine::embed::EmbedWork;
use plexus_engine::{EngineError, Executor, KvPlan, ModelFiles};
use plexus_types::{ModelKind, Prompt};
use serde_json::{Value, json};
use support::{SLOT, candle, change, copy_of, embed, embed_in_pieces, golden, host, open, reference, texts, worst};

const NAME: &str = "qwen3_embedding";
const KV: KvPlan = KvPlan { n_blocks: 128, block_len: 16 };
/// Weights are the same numbers; only the order of sums differs.
const EXACT: f32 = 1e-5;
/// Keys and values of models that are held as large ones are bf16.
const ROUNDED: f32 = 1e-2;

type Load = fn(&ModelFiles, KvPlan) -> Result<Box<dyn Executor>, EngineError>;
const DEVICES: [Load; 2] = [candle, host];

fn encode(files: &ModelFiles) -> Vec<Vec<u32>> {
    texts(NAME).into_iter().map(|(text, _)| files.codec.encode(&Prompt::Text(text)).unwrap()).collect()
}

/// The golden texts by the model in `files`, against a golden tensor.
fn check(files: &ModelFiles, tensor: &str) {
    assert_eq!(files.kind(), ModelKind::Embed);
    let ids = encode(files);
    assert_eq!(ids, texts(NAME).into_iter().map(|(_, ids)| ids).collect::<Vec<_>>());
    let expected = reference(NAME, tensor);
    for load in DEVICES {
        let vectors = embed(&mut *load(files, KV).unwrap(), &ids).unwrap();
        assert_eq!(vectors.len(), expected.len());
        for (vector, expected) in vectors.iter().zip(&expected) {
            assert!(worst(vector, expected) < EXACT, "{tensor}: {}", worst(vector, expected));
        }
    }
}

fn gguf_with(change: impl FnOnce(&mut gguf::Parts)) -> Result<ModelFiles, EngineError> {
    let bytes = fs::read(golden(NAME).join("qwen3_embedding-bf16.gguf")).unwrap();
    let mut parts = gguf::Parts::read(&bytes, |kind, n| if kind == 30 { n as usize * 2 } else { n as usize * 4 });
    change(&mut parts);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, parts.bytes()).unwrap();
    open(&path)
}

fn set_mode(folder: &Path, mode: &str) {
    change(&folder.join("1_Pooling/config.json"), |config| *config = json!({ format!("pooling_mode_{mode}"): true }));
}

#[test]
fn a_folder_becomes_the_reference_vectors() {
    let files = open(&golden(NAME)).unwrap();
    assert_eq!((files.kind(), files.context_length()), (ModelKind::Embed, 2048));
    check(&files, "last");
    for (mode, tensor) in [("mean_tokens", "mean"), ("cls_token", "first")] {
        let folder = copy_of(NAME);
        set_mode(folder.path(), mode);
        check(&open(folder.path()).unwrap(), tensor);
    }
}

#[test]
fn a_gguf_file_becomes_the_reference_vectors() {
    check(&open(&golden(NAME).join("qwen3_embedding-bf16.gguf")).unwrap(), "last");
    for (number, tensor) in [(1, "mean"), (2, "first")] {
        check(&gguf_with(|parts| parts.set_u32("qwen3.pooling_type", number)).unwrap(), tensor);
    }
}

#[test]
fn a_gguf_file_says_what_it_is_for() {
    let kind = |number| gguf_with(|parts| parts.set_u32("qwen3.pooling_type", number)).map(|files| files.kind());
    assert_eq!(kind(0).unwrap(), ModelKind::Generate);
    for (number, reason) in [(4, "ranks"), (5, "pooling_type = 5")] {
        let error = kind(number).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let flag = |yes: bool| [7u32.to_le_bytes().to_vec(), vec![u8::from(yes)]].concat();
    let both_ways = gguf_with(|parts| parts.set("qwen3.attention.causal", flag(false))).unwrap_err().to_string();
    assert!(both_ways.contains("qwen3.attention.causal"), "{both_ways}");
    let without_end = gguf_with(|parts| parts.set("tokenizer.ggml.add_eos_token", flag(false))).unwrap();
    assert!(encode(&without_end).iter().all(|ids| ids.last() != Some(&257)));
    let no_token = gguf_with(|parts| parts.set_u32("tokenizer.ggml.eos_token_id", 9999)).unwrap_err().to_string();
    assert!(no_token.contains("eos_token_id"), "{no_token}");
    let answering = gguf_with(|parts| parts.set_u32("qwen3.pooling_type", 0)).unwrap();
    assert_eq!(answering.codec.encode(&Prompt::Text("a".into())).unwrap(), [97], "only texts to embed are ended");
}

#[test]
fn a_text_in_pieces_has_the_bits_of_the_whole_alone_and_among_others() {
    let ids: Vec<Vec<u32>> = texts(NAME).into_iter().map(|(_, ids)| ids).collect();
    let long = ids.len() - 1;
    for mode in ["lasttoken", "mean_tokens", "cls_token"] {
        let folder = copy_of(NAME);
        set_mode(folder.path(), mode);
        let small = open(folder.path()).unwrap();
        let expected = embed(&mut *host(&small, KV).unwrap(), &ids).unwrap();
        // Held as a large model, a step has twice the tokens, and texts are cut elsewhere.
        for (files, step) in [(small.clone(), 256), (small.held_as_large(), 512)] {
            let mut executor = host(&files, KV).unwrap();
            let (together, n_pieces) = embed_in_pieces(&mut *executor, &ids).unwrap();
            let n_tokens: usize = ids.iter().map(Vec::len).sum();
            assert!(n_pieces <= n_tokens.div_ceil(step) + 1, "{n_pieces} pieces for {n_tokens} tokens");
            let (alone, n_pieces) = embed_in_pieces(&mut *executor, &ids[long..]).unwrap();
            assert_eq!((alone[0].as_slice(), n_pieces), (together[long].as_slice(), ids[long].len().div_ceil(step)), "{mode}");
            // A token more before it moves every cut in the long text.
            let shifted = embed(&mut *executor, &[ids[1].clone(), ids[0].clone(), ids[long].clone(), ids[2].clone()]).unwrap();
            assert_eq!(shifted, [1, 0, long, 2].map(|i| together[i].clone()), "{mode}");
            for (vector, expected) in together.iter().zip(&expected) {
                assert!(worst(vector, expected) < if step == 256 { f32::MIN_POSITIVE } else { ROUNDED }, "{mode}");
            }
        }
    }
}

#[test]
fn pieces_of_a_text_go_on_where_the_text_was_left() {
    let files = open(&golden(NAME)).unwrap();
    let mut executor = host(&files, KV).unwrap();
    let (long, short) = (texts(NAME).pop().unwrap().1, texts(NAME)[0].1.clone());
    let expected = embed(&mut *executor, &[long.clone(), short.clone()]).unwrap();
    let mut work = EmbedWork::new(vec![long.clone(), short]);
    executor.embed(SLOT, &mut work).unwrap();
    assert!(work.is_within_text() && !work.is_done());
    while work.is_within_text() {
        executor.embed(SLOT, &mut work).unwrap();
    }
    // Between two texts others may use the model.
    let mut other = EmbedWork::new(vec![long.iter().rev().copied().collect()]);
    executor.embed(SLOT, &mut other).unwrap();
    while !work.is_done() {
        executor.embed(SLOT, &mut work).unwrap();
    }
    assert_eq!(work.into_vectors().unwrap(), expected);
    let too_long = vec![1; 2049];
    assert!(matches!(embed(&mut *executor, &[too_long]), Err(EngineError::Shape { .. })), "more tokens than the pool holds");
}

#[test]
fn an_output_projection_is_neither_needed_nor_read() {
    let folder = copy_of(NAME);
    change(&folder.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    let untied = open(folder.path()).unwrap();
    check(&untied, "last");
    assert_eq!(untied.weights_bytes, open(&golden(NAME)).unwrap().weights_bytes);
    fs::remove_file(folder.path().join("modules.json")).unwrap();
    fs::remove_dir_all(folder.path().join("1_Pooling")).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("head"), "a model that answers needs one: {error}");
}

#[test]
fn tokens_around_a_text_are_the_tokenizers_or_else_the_configurations() {
    let ends = |add: Value, with_processor: bool| {
        let folder = copy_of(NAME);
        if !with_processor {
            change(&folder.path().join("tokenizer.json"), |json| json["post_processor"] = Value::Null);
        }
        change(&folder.path().join("tokenizer_config.json"), |config| {
            config["eos_token"] = json!("<|endoftext|>");
            config["add_eos_token"] = add;
        });
        open(folder.path()).unwrap().codec.encode(&Prompt::Text("a<|endoftext|>".into())).unwrap()
    };
    assert_eq!(ends(json!(false), true), [97, 257, 257], "the post-processor's, behind the text's own");
    assert_eq!(ends(json!(true), true), [97, 257, 257], "once, where both say it");
    assert_eq!(ends(json!(true), false), [97, 257, 257], "the configuration's");
    assert_eq!(ends(json!(false), false), [97, 257]);
}

#[test]
fn decoders_that_see_what_follows_are_refused() {
    for (key, value) in [("use_bidirectional_attention", json!(true)), ("is_causal", json!(false))] {
        let folder = copy_of(NAME);
        change(&folder.path().join("config.json"), |config| config[key] = value);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    let folder = copy_of(NAME);
    change(&folder.path().join("config.json"), |config| {
        config["use_bidirectional_attention"] = json!(false);
        config["is_causal"] = json!(true);
    });
    check(&open(folder.path()).unwrap(), "last");
}

/// A module of `modules.json`.
fn module(idx: usize, path: &str, kind: &str) -> Value {
    json!({"idx": idx, "name": idx.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")})
}

fn with_modules(modules: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = copy_of(NAME);
    let list = modules.iter().enumerate().map(|(idx, (path, kind))| module(idx, path, kind));
    change(&folder.path().join("modules.json"), |json| *json = list.collect());
    folder
}

const DENSE: [(&str, &str); 4] = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")];

#[test]
fn a_dense_layer_behind_the_pooling_is_applied() {
    let folder = with_modules(&DENSE);
    let files = open(folder.path()).unwrap();
    check(&files, "dense");
    let bytes = 4 * (24 * 64 + 24);
    assert_eq!(files.weights_bytes.0, open(&golden(NAME)).unwrap().weights_bytes.0 + bytes);
}

#[test]
fn modules_that_are_not_served_are_refused_with_their_names() {
    for (modules, reason) in [
        (&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_LSTM", "LSTM")][..], "LSTM"),
        (&[("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")], "0_Transformer"),
        (&[("", "Transformer"), ("2_Dense", "Dense"), ("1_Pooling", "Pooling")], "Dense"),
        (&[("", "Transformer")], "without Pooling"),
        (&[("", "Transformer"), ("../1_Pooling", "Pooling")], "../1_Pooling"),
        (&[("", "Transformer"), ("2_Pooling", "Pooling")], "2_Pooling/config.json is missing"),
        (&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("2_Dense", "Dense")], "64 numbers and is given 24"),
    ] {
        let error = open(with_modules(modules).path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    for (key, value, reason) in [
        ("activation_function", json!("torch.nn.modules.activation.GELU"), "GELU"),
        ("in_features", json!(65), "24 by 64"),
        ("module_input_name", json!("token_embeddings"), "token_embeddings"),
        ("use_residual", json!(true), "use_residual"),
    ] {
        let folder = with_modules(&DENSE);
        change(&folder.path().join("2_Dense/config.json"), |config| config[key] = value);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
    }
    let folder = with_modules(&DENSE);
    fs::rename(folder.path().join("2_Dense/model.safetensors"), folder.path().join("2_Dense/pytorch_model.bin")).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("model.safetensors"));
}

#[test]
fn a_pooled_chat_model_gives_the_vector_that_its_reference_logits_come_from() {
    let folder = copy_of("qwen3");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden(file), folder.path().join(file)).unwrap();
    }
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), json!({"pooling_mode_lasttoken": true}).to_string()).unwrap();
    let files = open(folder.path()).unwrap();
    assert_eq!(files.kind(), ModelKind::Embed);
    // The embedding is the output projection too: what it makes of the vector are the logits, but for their length.
    let weights = fs::read(golden("qwen3/model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let projection = weights.tensor("model.embed_tokens.weight").unwrap();
    let width = projection.shape()[1];
    let projection: Vec<f32> =
        projection.data().chunks_exact(2).map(|b| f32::from_bits(u32::from(b[1]) << 24 | u32::from(b[0]) << 16)).collect();
    let unit = |x: Vec<f32>| {
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.into_iter().map(|x| x / length).collect::<Vec<_>>()
    };
    let prompts = support::read_json(&golden("qwen3/golden.json"));
    for (i, load) in DEVICES.into_iter().enumerate() {
        let ids: Vec<Vec<u32>> = (0..5).map(|k| serde_json::from_value(prompts["prompts"][k]["ids"].clone()).unwrap()).collect();
        for (k, vector) in embed(&mut *load(&files, KV).unwrap(), &ids).unwrap().iter().enumerate() {
            let expected = unit(reference("qwen3", &format!("logits.{k}")).pop().unwrap());
            let given = unit(projection.chunks_exact(width).map(|row| row.iter().zip(vector).map(|(w, x)| w * x).sum()).collect());
            assert!(worst(&given, &expected) < 1e-4, "executor {i}, prompt {k}: {}", worst(&given, &expected));
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
