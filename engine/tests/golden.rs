//! Every model family against logits and greedy tokens of an independent implementation, from safetensors and from GGUF files.
//!
//! The references in `tests/golden/` were made with transformers 5.23.0 and torch 2.9.1 in f32 on tiny models with random weights
//! of our own; `golden.json` holds prompts and greedy tokens, `golden.safetensors` logits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/golden.rs"]
mod support;

use std::fs;
use std::path::Path;

use plexus_engine::{Batch, BlockCopy, BlockId, Draw, ModelFiles, ModelPath};
#[cfg(feature = "cuda")]
use plexus_engine::{CandleExecutor, Executor};
#[cfg(feature = "cuda")]
use plexus_types::{DeviceId, DeviceKind};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
#[cfg(feature = "cuda")]
use support::KV;
use support::{
    EXACT, EXACT_WAYS, FAMILIES, NATIVE, Q8_0, Q8_0_FAMILIES, SLOT, WAYS, Way, blocks, check_exact, draw, folder, for_all, gguf, golden,
    has_gguf, last_logits, reference, worst,
};

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
fn safetensors_in_f32_and_f16_give_what_those_in_bf16_give() {
    for family in ["llama", "gemma3", "qwen3_moe", "phi3"] {
        let folder = folder(family, "config.json");
        let stored = Way::Small.load(folder.path());
        let prompts = golden(family).prompts;
        let logits =
            |mut model: Box<dyn support::Reference>| prompts.iter().map(|p| last_logits(&mut *model, &p.ids, 0)).collect::<Vec<_>>();
        let stored = logits(stored);
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        for dtype in [Dtype::F32, Dtype::F16] {
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let mut converted = Vec::new();
            for (name, tensor) in tensors.iter() {
                assert_eq!(tensor.dtype(), Dtype::BF16, "{family} {name}");
                let numbers = tensor.data().as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32());
                let data: Vec<u8> = match dtype {
                    Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
                    _ => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                };
                converted.push((name.to_owned(), tensor.shape().to_vec(), data));
            }
            let views = converted.iter().map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
            fs::remove_file(&path).unwrap();
            fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
            for (ours, stored) in logits(Way::Small.load(folder.path())).iter().zip(&stored) {
                // In f32 the same numbers; in f16 but for some next to zero, which have fewer bits there.
                let limit = if dtype == Dtype::F32 { 0.0 } else { EXACT };
                assert!(worst(ours, stored) <= limit, "{family} in {dtype:?}: {} off", worst(ours, stored));
            }
            for way in EXACT_WAYS {
                check_exact(&mut *way.load(folder.path()), family, &format!("{way:?} {family} {dtype:?}"));
            }
        }
    }
}

#[test]
fn bf16_gguf_models_agree_with_the_reference() {
    for way in EXACT_WAYS {
        for family in FAMILIES.into_iter().filter(|family| has_gguf(family)) {
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
        paths.extend(has_gguf(family).then(|| gguf(family, "bf16")));
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

#[test]
fn long_factors_are_used_or_not_by_the_context_that_was_asked_for() {
    let family = "phi4"; // its first training had 128 tokens, the prompts have up to 58
    let folder = folder(family, "config.json");
    let short = reference(family, "golden_short.safetensors");
    for way in EXACT_WAYS {
        for path in [folder.path().to_owned(), gguf(family, "bf16")] {
            let files = ModelFiles::open(&ModelPath::Path(path.clone())).unwrap();
            assert_eq!(files.context_length(), 512);
            for (context, is_short) in [(128, true), (129, false), (1 << 20, false)] {
                let files = files.clone().with_context_length(context);
                assert_eq!(files.context_length(), context.min(512));
                let mut model = way.load_files(files);
                if !is_short {
                    check_exact(&mut *model, family, &format!("{way:?} {} in {context}", path.display()));
                    continue;
                }
                let mut apart = 0f32;
                for ((prompt, short), long) in golden(family).prompts.iter().zip(&short).zip(reference(family, "golden.safetensors")) {
                    let logits = last_logits(&mut *model, &prompt.ids, 0);
                    let error = worst(&logits, &short[0]);
                    assert!(error < EXACT, "{way:?} {}: {error} off after {} tokens", path.display(), prompt.ids.len());
                    apart = apart.max(worst(&logits, long.last().unwrap()));
                }
                assert!(apart > 0.1, "{way:?}: the factors make no difference");
            }
        }
    }
}

/// A copy of a folder, its tensors dealt out to several files, with an index if `indexed`.
fn in_shards(whole: &Path, n_shards: usize, indexed: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(whole.join(file), folder.path().join(file)).unwrap();
    }
    let bytes = fs::read(whole.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut shards = vec![Vec::new(); n_shards];
    let mut map = serde_json::Map::new();
    let name = |shard: usize| format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1);
    for (i, (tensor, view)) in tensors.tensors().into_iter().enumerate() {
        map.insert(tensor.clone(), name(i % n_shards).into());
        shards[i % n_shards].push((tensor, view));
    }
    for (shard, tensors) in shards.into_iter().enumerate() {
        safetensors::serialize_to_file(tensors, None, &folder.path().join(name(shard))).unwrap();
    }
    if indexed {
        let index = serde_json::json!({"metadata": {"total_size": bytes.len()}, "weight_map": map});
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        // Not of the index, and not of the model.
        fs::write(folder.path().join("consolidated.safetensors"), "other").unwrap();
    }
    folder
}

#[test]
fn a_model_in_several_files_gives_the_bits_that_it_gives_in_one() {
    // Fused projections, experts, and a vocabulary of its own for the logits are among them.
    for family in ["llama", "phi3", "qwen3_moe", "gemma3"] {
        let whole = folder(family, "config.json");
        for (n_shards, indexed) in [(2, true), (5, true), (3, false)] {
            let shards = in_shards(whole.path(), n_shards, indexed);
            for way in WAYS {
                let (mut one, mut several) = (way.load(whole.path()), way.load(shards.path()));
                for prompt in golden(family).prompts {
                    let (one, several) = (last_logits(&mut *one, &prompt.ids, 0), last_logits(&mut *several, &prompt.ids, 0));
                    assert_eq!(one, several, "{way:?} {family} in {n_shards} files");
                }
            }
        }
    }
}

#[test]
fn a_missing_file_of_several_and_a_tensor_in_two_are_named() {
    let whole = folder("llama", "config.json");
    let open = |folder: &Path| ModelFiles::open(&ModelPath::Path(folder.to_owned())).unwrap_err().to_string();
    for indexed in [true, false] {
        let shards = in_shards(whole.path(), 3, indexed);
        let (second, third) = ("model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors");
        fs::copy(shards.path().join(second), shards.path().join(third)).unwrap();
        let error = open(shards.path());
        assert!(error.contains(third) && error.contains("is in two files"), "{error}");
        fs::remove_file(shards.path().join(third)).unwrap();
        let error = open(shards.path());
        assert!(error.contains(if indexed { third } else { "is missing" }), "{error}");
    }
}

/// With `cargo test -p plexus-engine --features cuda --test golden`, on a machine with a GPU.
#[cfg(feature = "cuda")]
#[test]
fn models_on_a_gpu_agree_with_the_reference_up_to_rounding() {
    const GPU: DeviceId = DeviceId { kind: DeviceKind::Cuda, ordinal: 0 };
    for family in FAMILIES {
        let folder = folder(family, "config.json");
        let mut paths = vec![folder.path().to_owned()];
        paths.extend(has_gguf(family).then(|| gguf(family, "bf16")));
        for path in paths {
            let files = ModelFiles::open(&ModelPath::Path(path.clone())).unwrap().placed_on(DeviceKind::Cuda);
            let mut model = CandleExecutor::open(GPU, 0.5).unwrap();
            model.load(SLOT, &files, KV).unwrap();
            for (prompt, rows) in golden(family).prompts.iter().zip(reference(family, "golden.safetensors")) {
                let error = worst(&last_logits(&mut model, &prompt.ids, 0), rows.last().unwrap());
                assert!(error < NATIVE, "{}: {error} off", path.display());
            }
        }
    }
}
