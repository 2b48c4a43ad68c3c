//! Model files that lie: each is refused with a reason, never with a panic or an allocation that the file does not back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/gguf.rs"]
mod gguf;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf::{Parts, text};
use plexus_engine::{
    Batch, BlockId, CandleExecutor, CpuExecutor, Draw, EngineError, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot,
};
use plexus_kernels::Format;
use plexus_types::{Chat, DeviceId, DeviceKind, Message, Prompt, RequestError, Role, Sampling};
use proptest::prelude::*;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn open_bytes(bytes: &[u8]) -> Result<ModelFiles, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let files = ModelFiles::open(&ModelPath::Path(path))?;
    run(&files)?;
    Ok(files)
}

/// What opens must also load and compute, on either executor, or fail with a reason.
fn run(files: &ModelFiles) -> Result<(), EngineError> {
    let cpu = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
    let ours: Box<dyn Executor> = Box::new(CpuExecutor::open(cpu, 0.5, Some(1))?);
    for mut executor in [ours, Box::new(CandleExecutor::open(cpu, 0.5)?)] {
        executor.load(Slot(0), files, KvPlan { n_blocks: 2, block_len: 16 })?;
        let settings = Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 0));
        let mut batch = Batch::default();
        batch.push(&[0, 1, 2], 0, &[BlockId(1)], Some(Draw::new(settings, 3)));
        executor.step(Slot(0), &batch)?;
    }
    Ok(())
}

/// A header of the given counts and what follows.
fn header(n_tensors: u64, n_metadata: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_metadata.to_le_bytes(), rest].concat()
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

/// Opens a folder of `family` with a changed configuration beside sound weights and tokenizer.
fn open_family(family: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Result<ModelFiles, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = serde_json::from_str(&fs::read_to_string(golden(&format!("{family}/config.json"))).unwrap()).unwrap();
    edit(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(golden(&format!("{family}/model.safetensors")), folder.path().join("model.safetensors")).unwrap();
    fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let files = ModelFiles::open(&ModelPath::Path(folder.path().to_owned()))?;
    run(&files)?;
    Ok(files)
}

fn open_with_config(edit: impl FnOnce(&mut serde_json::Value)) -> Result<ModelFiles, EngineError> {
    open_family("qwen2", edit)
}

#[test]
fn configurations_of_every_family_that_lie_are_refused_with_the_reason() {
    type Case = (&'static str, &'static str, serde_json::Value, &'static str);
    let huge = || serde_json::json!(1u64 << 60);
    let cases: [Case; 30] = [
        ("llama", "num_hidden_layers", huge(), "the number of layers is"),
        ("llama", "num_hidden_layers", 1024.into(), "is missing"),
        ("llama", "num_hidden_layers", (-1).into(), "num_hidden_layers is not a size"),
        ("llama", "vocab_size", huge(), "the vocabulary size is"),
        ("llama", "hidden_size", huge(), "the hidden size is"),
        ("llama", "intermediate_size", huge(), "the feed-forward size is"),
        ("llama", "num_attention_heads", huge(), "the number of heads is"),
        ("llama", "max_position_embeddings", huge(), "max_position_embeddings is not"),
        ("llama", "rms_norm_eps", (-1.0).into(), "norm epsilon"),
        ("llama", "rope_theta", 0.into(), "the rope base 0 is impossible"),
        ("mistral", "sliding_window", (-1).into(), "sliding_window is not a size"),
        ("mistral", "head_dim", huge(), "the head size is"),
        ("mistral", "head_dim", 7.into(), "the head size 7 is odd"),
        ("mixtral", "num_local_experts", 0.into(), "the number of experts is 0"),
        ("mixtral", "num_local_experts", 5.into(), "\"layers.0.experts.4.gate\" is missing"),
        ("mixtral", "num_local_experts", huge(), "the number of experts is"),
        ("qwen3_moe", "num_experts", 4096.into(), "is missing"),
        ("qwen3_moe", "num_experts", 3.into(), "has the shape [4, 64]"),
        ("qwen3_moe", "num_experts_per_tok", 5.into(), "the number of active experts is 5; 1 to 4"),
        ("qwen3_moe", "moe_intermediate_size", huge(), "the size of an expert is"),
        ("qwen2_moe", "shared_expert_intermediate_size", huge(), "the size of the shared expert is"),
        ("gemma2", "layer_types", serde_json::json!(["full_attention"]), "layer_types lists 1 of 2 layers"),
        ("gemma2", "final_logit_softcapping", (-30.0).into(), "a scale or cap of -30"),
        ("gemma3", "query_pre_attn_scalar", 0.into(), "a scale or cap of inf"),
        ("phi3", "num_key_value_heads", 4.into(), "tensor \"layers.0.qkv\" has the shape [128, 64], the configuration says 192 rows"),
        ("phi3", "intermediate_size", 7.into(), "the configuration says 14 rows"),
        ("smollm3", "no_rope_layers", serde_json::json!([1]), "no_rope_layers is not a list of 0 or 1 for each layer"),
        ("granite", "logits_scaling", 0.into(), "a scale or cap of inf"),
        ("glm4", "partial_rotary_factor", 1e18.into(), "of each head of 16 cannot be turned"),
        ("olmo2", "num_key_value_heads", 3.into(), "4 heads cannot share 3 key-value heads"),
    ];
    for (family, key, value, reason) in cases {
        let error = open_family(family, |config| config[key] = value).unwrap_err().to_string();
        assert!(error.contains(reason), "{family} {key}: {error:?} does not say {reason:?}");
    }
}

/// The file of a family in parts.
fn parts(path: &str) -> Parts {
    let len_of = |kind, n| Format::from_gguf(kind).unwrap().row_bytes(n as usize).unwrap();
    Parts::read(&fs::read(golden(path)).unwrap(), len_of)
}

#[test]
fn gguf_files_of_every_family_that_lie_are_refused_with_the_reason() {
    type Case = (&'static str, fn(&mut Parts), &'static str);
    let cases: [Case; 16] = [
        ("mixtral/mixtral-bf16.gguf", |parts| parts.set_u32("llama.expert_count", u32::MAX), "the number of experts is 4294967295"),
        ("mixtral/mixtral-bf16.gguf", |parts| parts.set_u32("llama.expert_count", 5), "the configuration says [5, 32, 64]"),
        ("mixtral/mixtral-bf16.gguf", |parts| parts.set_u32("llama.expert_used_count", 5), "the number of active experts is 5; 1 to 4"),
        ("mixtral/mixtral-bf16.gguf", |parts| parts.set_u32("llama.expert_gating_func", 2), "llama.expert_gating_func = 2"),
        ("gemma2/gemma2-bf16.gguf", |parts| parts.set_u32("gemma2.expert_count", 2), "gemma2 with experts"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32("llama.block_count", u32::MAX), "the number of layers is 4294967295"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32("llama.attention.head_count", 0), "the number of heads is 0"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32("llama.attention.key_length", 1 << 30), "beside heads of 1073741824"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32("llama.rope.dimension_count", 1 << 30), "cannot be turned"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32s("llama.feed_forward_length", &[96]), "is not a size, or one for each layer"),
        ("llama/llama-bf16.gguf", |parts| parts.set_u32s("llama.attention.head_count_kv", &[2, 1]), "that differs between layers"),
        ("gemma3/gemma3-bf16.gguf", |parts| parts.set_u32s("gemma3.attention.sliding_window_pattern", &[1, 0]), "an entry for each layer"),
        ("phi3/phi3-bf16.gguf", |parts| parts.set_u32("phi3.attention.head_count_kv", 1), "the configuration says 96 rows"),
        ("qwen2/qwen2-bf16.gguf", |parts| parts.tensors.iter_mut().for_each(|t| t.dims.reverse()), "the configuration says"),
        ("qwen2/qwen2-bf16.gguf", |_| {}, ""),
        ("qwen2/qwen2-bf16.gguf", |parts| parts.tensors.iter_mut().for_each(|t| t.name = "token_embd.weight".into()), "given twice"),
    ];
    for (path, edit, reason) in cases {
        let mut parts = parts(path);
        edit(&mut parts);
        match open_bytes(&parts.bytes()) {
            Err(error) => assert!(error.to_string().contains(reason) && !reason.is_empty(), "{path}: {error} does not say {reason:?}"),
            Ok(_) => assert!(reason.is_empty(), "{path}: it was accepted in spite of {reason:?}"),
        }
    }
}

#[test]
fn a_hostile_chat_template_costs_no_more_than_the_chats_of_its_model() {
    let doubling = |body: &str| {
        format!("{{% set ns = namespace(x='ab', l=[1]) %}}{{% for i in range(100000) %}}{body}{{% endfor %}}{{{{ ns.x | length }}}}")
    };
    let templates = [
        r#"{{ "a\nb" | indent(1000000000000000) }}"#.to_owned(),
        "{{ ('a' ~ 'a') * 100000000000 }}".to_owned(),
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('aa') }}".to_owned(),
        format!("{{{{ 'a'{} }}}}", " ~ 'a'".repeat(40_000)),
        doubling("{% set ns.x = ns.x ~ ns.x %}"),
        doubling("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        doubling("{% set ns.x = ns.x | replace('a', ns.x) %}"),
        doubling("{% set ns.l = [ns.l, ns.l] %}{% set ns.x = ns.l | string %}"),
        doubling("{% set ns.l = [ns.l] %}"),
        doubling("{% set ns.ns = ns %}{{ ns }}"),
    ];
    for template in templates {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden(&format!("qwen2/{name}")), folder.path().join(name)).unwrap();
        }
        fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        fs::write(folder.path().join("chat_template.jinja"), format!("{{# tools #}}{template}")).unwrap();
        // Opening it renders it, to see what it does with tools.
        let files = ModelFiles::open(&ModelPath::Path(folder.path().to_owned())).unwrap();
        let chat = Chat { messages: vec![Message::text(Role::User, "?")], ..Chat::default() };
        let shown: String = template.chars().take(120).collect();
        assert!(matches!(files.codec.encode(&Prompt::Chat(chat)), Err(RequestError::Invalid { .. })), "{shown}");
        assert!(files.codec.encode(&Prompt::Text("a".into())).is_ok(), "{shown}");
    }
}

#[test]
fn a_weight_of_a_type_that_cannot_be_used_is_named_with_its_type() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("qwen2/config.json"), folder.path().join("config.json")).unwrap();
    fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let bytes = fs::read(golden("qwen2/model.safetensors")).unwrap();
    let from = b"\"model.layers.0.input_layernorm.weight\":{\"dtype\":\"BF16\"";
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap() + from.len();
    for (dtype, named) in [("I16\" ", "I16"), ("U16\" ", "U16")] {
        let changed = [&bytes[..at - 5], dtype.as_bytes(), &bytes[at..]].concat();
        fs::write(folder.path().join("model.safetensors"), changed).unwrap();
        let error = ModelFiles::open(&ModelPath::Path(folder.path().to_owned())).unwrap_err().to_string();
        assert!(error.contains(&format!("the type {named} of tensor \"model.layers.0.input_layernorm.weight\"")), "{error}");
        assert!(error.contains("F32, F16 and BF16"), "{error}");
    }
}

/// The tests of lies once more, in a process that can have 2 GiB of addresses and no more: a large allocation would end it.
#[cfg(target_os = "linux")]
#[test]
fn lies_about_sizes_cost_no_memory() {
    let tests = [
        "headers_that_lie_are_refused_with_the_reason",
        "configurations_of_every_family_that_lie_are_refused_with_the_reason",
        "gguf_files_of_every_family_that_lie_are_refused_with_the_reason",
        "a_hostile_chat_template_costs_no_more_than_the_chats_of_its_model",
    ];
    let limited = "ulimit -v 2097152 && exec \"$0\" --exact --test-threads 1 \"$@\"";
    let output =
        std::process::Command::new("sh").arg("-c").arg(limited).arg(std::env::current_exe().unwrap()).args(tests).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("4 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
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

/// With configurations as their makers write them, of which much is known to families that we compute.
#[test]
fn families_that_we_do_not_compute_are_refused_by_their_names() {
    for (family, own) in [
        (
            "phi",
            serde_json::json!({
                "architectures": ["PhiForCausalLM"], "hidden_act": "gelu_new", "hidden_size": 64, "intermediate_size": 96,
                "layer_norm_eps": 1e-5, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
                "partial_rotary_factor": 0.5, "qk_layernorm": false, "rope_theta": 10000.0, "vocab_size": 288,
                "max_position_embeddings": 256, "eos_token_id": 258
            }),
        ),
        (
            "deepseek_v2",
            serde_json::json!({
                "architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 64,
                "intermediate_size": 96, "kv_lora_rank": 32, "max_position_embeddings": 256, "moe_intermediate_size": 32,
                "n_routed_experts": 4, "n_shared_experts": 1, "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2,
                "num_key_value_heads": 4, "q_lora_rank": null, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0, "topk_method": "greedy", "v_head_dim": 16, "vocab_size": 288, "eos_token_id": 258
            }),
        ),
    ] {
        let error = open_with_config(|config| {
            *config = own;
            config["model_type"] = family.into();
        })
        .unwrap_err();
        assert!(matches!(error, EngineError::Unsupported { .. }), "{family}: {error}");
        assert!(error.to_string().contains(&format!("{family:?} is not supported; supported: llama")), "{error}");
    }
}

#[test]
fn a_path_that_is_no_model_says_what_would_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ModelFiles::open(&ModelPath::Path(path.to_owned())).unwrap_err();
    assert!(matches!(open(&folder.path().join("absent.gguf")), EngineError::Io { .. }));
    assert!(open(folder.path()).to_string().contains("config.json"));
    fs::write(folder.path().join("model.bin"), b"x").unwrap();
    assert!(matches!(open(&folder.path().join("model.bin")), EngineError::Unsupported { .. }));
    fs::write(folder.path().join("config.json"), b"{}").unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), br#"{"weight_map": {"a": "../secret.safetensors"}}"#).unwrap();
    assert!(open(folder.path()).to_string().contains("does not name a file of this folder"));
}

/// Files that differ in what their headers hold.
const CHANGED: [&str; 7] = [
    "llama3_tied/llama3_tied-q8_0.gguf",
    "mixtral/mixtral-bf16.gguf",
    "qwen2_moe/qwen2_moe-bf16.gguf",
    "gemma3/gemma3-q8_0.gguf",
    "phi3/phi3-q8_0.gguf",
    "glm4/glm4-bf16.gguf",
    "starcoder2/starcoder2-bf16.gguf",
];
const FAMILIES: [&str; 9] = ["qwen2", "mistral_sw16", "mixtral", "qwen2_moe", "qwen3_moe", "gemma3", "phi3", "smollm3", "glm4"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gguf_file_cut_anywhere_never_panics(share in 0.0f64..1.0) {
        let bytes = fs::read(golden("llama3_tied/llama3_tied-q8_0.gguf")).unwrap();
        let cut = (bytes.len() as f64 * share * share) as usize; // mostly in the header
        prop_assert!(open_bytes(&bytes[..cut]).is_err());
    }

    #[test]
    fn a_gguf_file_changed_anywhere_never_panics(
        file in prop::sample::select(CHANGED.to_vec()),
        changes in prop::collection::vec((0.0f64..1.0, any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = fs::read(golden(file)).unwrap();
        for (share, value, in_header) in changes {
            let reach = if in_header { 14_000 } else { bytes.len() };
            let at = (reach as f64 * share) as usize;
            bytes[at] = value;
        }
        drop(open_bytes(&bytes));
    }

    #[test]
    fn a_configuration_with_other_values_never_panics(
        family in prop::sample::select(FAMILIES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..17), 1..3),
    ) {
        let values = [
            "0", "1", "-1", "3", "1e400", "4294967296", "9007199254740993", "1e308", "-1e308", "0.5", "null", "true", "\"x\"", "[]", "{}",
            "[1, \"x\", null]", "{\"rope_type\": \"longrope\", \"factor\": 1e30, \"short_factor\": [], \"long_factor\": [0]}",
        ];
        drop(open_family(family, |config| {
            let config = config.as_object_mut().unwrap();
            let keys: Vec<String> = config.keys().cloned().collect();
            for (key, value) in changes {
                // One of them is no JSON number and is left out.
                if let Ok(value) = serde_json::from_str(values[value]) {
                    config[key.get(&keys)] = value;
                }
            }
        }));
    }

    #[test]
    fn a_safetensors_file_cut_or_changed_never_panics(
        family in prop::sample::select(FAMILIES.to_vec()),
        changes in prop::collection::vec((0usize..2600, any::<u8>()), 0..3),
        cut in 0usize..4000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(golden(&format!("{family}/config.json")), folder.path().join("config.json")).unwrap();
        fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        let mut bytes = fs::read(golden(&format!("{family}/model.safetensors"))).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if cut < 3000 {
            bytes.truncate(cut);
        }
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        if let Ok(files) = ModelFiles::open(&ModelPath::Path(folder.path().to_owned())) {
            drop(run(&files));
        }
    }
}
