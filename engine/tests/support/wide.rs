//! Models of random weights that are wide enough for the formats of 256 numbers.

#![allow(dead_code, reason = "each test uses a part")]

use plexus_kernels::Format;
use plexus_kernels::format::{dequantize, quantize};

use super::gguf::{Parts, Tensor};

pub(crate) const HIDDEN: usize = 256;
const FFN: usize = 512;
pub(crate) const VOCAB: usize = 288;
/// Gives the metadata and the vocabulary.
const LLAMA: &[u8] = include_bytes!("../golden/llama/llama-bf16.gguf");

pub(crate) fn len_of(kind: u32, n: u64) -> usize {
    Format::from_gguf(kind).unwrap().row_bytes(n as usize).unwrap()
}

/// Numbers of a normal distribution, roughly: the sum of four even ones.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn number(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum::<f32>() * 0.866
    }
}

/// A block of random whole numbers whose values have a standard deviation of about `deviation`.
fn random_block(format: Format, deviation: f32, random: &mut Random) -> Vec<u8> {
    // Where the scale and the minimum lie, and how large the latter is beside the former, to even the values out around 0.
    let (scale, minimum): (usize, Option<(usize, f32)>) = match format {
        Format::Q4_1 => (0, Some((2, -7.5))),
        Format::Q5_1 => (0, Some((2, -15.5))),
        Format::Q4K => (0, Some((2, 7.5))),
        Format::Q5K => (0, Some((2, 15.5))),
        Format::Q2K => (80, Some((82, 1.5))),
        Format::Q3K => (108, None),
        Format::Q6K => (208, None),
        _ => (0, None),
    };
    let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| (random.bits() >> 24) as u8).collect();
    let mut set = |d: f32| {
        quantize(Format::F16, &[d], &mut bytes[scale..scale + 2]);
        if let Some((at, factor)) = minimum {
            quantize(Format::F16, &[d * factor], &mut bytes[at..at + 2]);
        }
        let mut values = vec![0.0; format.block_len()];
        dequantize(format, &bytes, &mut values);
        (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
    };
    let d = 0.01;
    let now = set(d);
    set(d * deviation / now);
    bytes
}

/// A matrix of random numbers in `format`.
fn random_matrix(format: Format, rows: usize, columns: usize, random: &mut Random) -> Vec<u8> {
    let deviation = 1.5 / (columns as f32).sqrt();
    if format.is_dense() {
        let values: Vec<f32> = (0..rows * columns).map(|_| random.number() * deviation).collect();
        let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
        quantize(format, &values, &mut bytes);
        return bytes;
    }
    (0..rows * columns / format.block_len()).flat_map(|_| random_block(format, deviation, random)).collect()
}

/// A model of the llama family with all matrices in `format`.
pub(crate) fn model(format: Format) -> Parts {
    let mut parts = Parts::read(LLAMA, len_of);
    for (key, value) in [
        ("llama.embedding_length", HIDDEN as u32),
        ("llama.feed_forward_length", FFN as u32),
        ("llama.block_count", 2),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.attention.key_length", 64),
        ("llama.attention.value_length", 64),
        ("llama.rope.dimension_count", 64),
    ] {
        parts.set_u32(key, value);
    }
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut tensors = Vec::new();
    let mut matrix = |name: &str, rows: usize, columns: usize| {
        let data = random_matrix(format, rows, columns, &mut random);
        tensors.push(Tensor { name: format!("{name}.weight"), dims: vec![columns as u64, rows as u64], kind: format.gguf(), data });
    };
    matrix("token_embd", VOCAB, HIDDEN);
    matrix("output", VOCAB, HIDDEN);
    for layer in 0..2 {
        for (name, rows, columns) in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", 128, HIDDEN),
            ("attn_v", 128, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FFN, HIDDEN),
            ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ] {
            matrix(&format!("blk.{layer}.{name}"), rows, columns);
        }
    }
    let ones: Vec<u8> = [1f32; HIDDEN].iter().flat_map(|x| x.to_le_bytes()).collect();
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"] {
        tensors.push(Tensor { name: format!("{name}.weight"), dims: vec![HIDDEN as u64], kind: 0, data: ones.clone() });
    }
    parts.tensors = tensors;
    parts
}
