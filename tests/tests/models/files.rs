//! Models of any size for tests: untrained llamas with the demo model's tokenizer and chat template, as GGUF files.

use std::path::{Path, PathBuf};

use plexus_tests::binary;

use crate::gguf::{Parts, Tensor};

const HIDDEN: u64 = 512;
const INNER: u64 = 1536;
const HEADS: u64 = 8;
const KV_HEADS: u64 = 2;
const HEAD_DIM: u64 = 64;

/// As what a model's matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    Q8_0,
}

impl Stored {
    /// Bytes of so many numbers.
    fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers * 4,
            Self::F16 => numbers * 2,
            Self::Q8_0 => numbers / 32 * 34,
        }
    }

    /// The number of the type in a GGUF file.
    fn kind(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
        }
    }

    /// Numbers of both signs below 1/16, as they are stored: `random` gives their bits.
    fn numbers(self, count: u64, mut random: impl FnMut() -> u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes(count) as usize);
        match self {
            Self::F32 => (0..count).for_each(|_| out.extend((random() & 0x807f_ffff | 122 << 23).to_le_bytes())),
            Self::F16 => (0..count).for_each(|_| out.extend((random() as u16 & 0x83ff | 10 << 10).to_le_bytes())),
            Self::Q8_0 => (0..count / 32).for_each(|_| {
                out.extend(0x0c00u16.to_le_bytes()); // 2^-12
                (0..8).for_each(|_| out.extend(random().to_le_bytes()));
            }),
        }
        out
    }
}

/// Writes a model of about `megabytes` into `folder`; no two with different `seed` give the same answers.
pub(crate) fn untrained(folder: &Path, name: &str, megabytes: u64, stored: Stored, seed: u32) -> PathBuf {
    let pip = std::fs::read(binary::pip_folder().join("pip-q8_0.gguf")).expect("the demo model is part of the repository");
    let mut parts = Parts::read(&pip, |kind, numbers| if kind == 0 { numbers as usize * 4 } else { numbers as usize / 32 * 34 });
    let vocabulary = parts.tensors.iter().find(|tensor| tensor.name == "token_embd.weight").expect("every model has one").dims[1];
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let matrices = [
        ("attn_q", HIDDEN, queries),
        ("attn_k", HIDDEN, keys),
        ("attn_v", HIDDEN, keys),
        ("attn_output", queries, HIDDEN),
        ("ffn_gate", HIDDEN, INNER),
        ("ffn_up", HIDDEN, INNER),
        ("ffn_down", INNER, HIDDEN),
    ];
    let per_layer: u64 = matrices.iter().map(|(_, from, to)| stored.bytes(from * to)).sum();
    let layers = ((megabytes * 1_000_000).saturating_sub(stored.bytes(HIDDEN * vocabulary)) / per_layer).max(1);
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("block_count", layers),
        ("feed_forward_length", INNER),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("rope.dimension_count", HEAD_DIM),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
    ] {
        parts.set_u32(&format!("llama.{key}"), value as u32);
    }
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut random = || {
        state ^= state << 13; // xorshift: Marsaglia 2003
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut matrix = |name: String, from: u64, to: u64| {
        let data = stored.numbers(from * to, &mut random);
        Tensor { name, dims: vec![from, to], kind: stored.kind(), data }
    };
    let ones = |name: String| Tensor { name, dims: vec![HIDDEN], kind: 0, data: 1.0f32.to_le_bytes().repeat(HIDDEN as usize) };
    parts.tensors = vec![matrix("token_embd.weight".into(), HIDDEN, vocabulary), ones("output_norm.weight".into())];
    // All layers hold the same: written quickly, and an answer needs no more.
    let layer: Vec<Tensor> = matrices.iter().map(|(name, from, to)| matrix(format!("{name}.weight"), *from, *to)).collect();
    for i in 0..layers {
        let named = |tensor: &Tensor| Tensor { name: format!("blk.{i}.{}", tensor.name), ..tensor.clone() };
        parts.tensors.extend(layer.iter().map(named));
        parts.tensors.extend(["attn_norm", "ffn_norm"].map(|name| ones(format!("blk.{i}.{name}.weight"))));
    }
    let path = folder.join(format!("{}.gguf", name.replace('/', "-")));
    std::fs::write(&path, parts.bytes()).expect("there is room for a model in the temporary folder");
    path
}
