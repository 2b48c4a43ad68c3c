//! The formats in which model files hold numbers, and what they mean.
//!
//! Layouts and formulas are those of the GGUF files in the wild (ggml's block types); the code is ours. All integers and floats are
//! little-endian. A *block* is the smallest part of a row that stands alone; a row is a whole number of blocks.

mod blocks;
mod quantize;

use crate::simd::OpsIsa;
pub(crate) use blocks::{scales_of_k, scales_of_q3k};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats (IEEE half).
    F16,
    /// 16-bit floats with the exponent of f32.
    Bf16,
    /// 32 signed bytes and a scale.
    Q8_0,
    /// 32 times 4 bits around 8 and a scale.
    Q4_0,
    /// 32 times 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 times 5 bits around 16 and a scale.
    Q5_0,
    /// 32 times 5 bits, a scale and a minimum.
    Q5_1,
    /// 256 times 2 bits; per 16 a scale and a minimum of 4 bits.
    Q2K,
    /// 256 times 3 bits around 4; per 16 a scale of 6 bits.
    Q3K,
    /// 256 times 4 bits; per 32 a scale and a minimum of 6 bits.
    Q4K,
    /// 256 times 5 bits; per 32 a scale and a minimum of 6 bits.
    Q5K,
    /// 256 times 6 bits around 32; per 16 a scale of 8 bits.
    Q6K,
    /// 32 times 4 bits that choose from 16 uneven values, and a scale.
    Iq4Nl,
    /// 256 times 4 bits that choose from 16 uneven values; per 32 a scale of 6 bits.
    Iq4Xs,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// The format that a GGUF file numbers `id`; `None` for those we do not read.
    pub fn from_gguf(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.gguf() == id)
    }

    /// The number of this format in GGUF files.
    pub fn gguf(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Iq4Xs => 23,
            Self::Bf16 => 30,
        }
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
        }
    }

    /// Numbers in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Iq4Xs => 136,
        }
    }

    /// Bytes of a row of `columns` numbers; `None` if such a row is no whole number of blocks, or too long for this machine.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let whole = columns.is_multiple_of(self.block_len());
        whole.then(|| (columns / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }

    /// True for the formats that hold plain floats.
    pub const fn is_dense(self) -> bool {
        self.block_len() == 1
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The numbers that `bytes`, whole blocks of `format`, stand for, in f32 and in the file's order of operations.
///
/// # Panics
/// If `bytes` and `out` are not the same whole number of blocks.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(format.row_bytes(out.len()), Some(bytes.len()), "{} bytes of {format} for {} numbers", bytes.len(), out.len());
    match format {
        Format::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        Format::Bf16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = bf16::from_le_bytes(*b).to_f32();
            }
        }
        Format::F16 => {
            let mut halves = [f16::ZERO; 64]; // converted many at a time, by instruction where there is one
            for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                let halves = &mut halves[..out.len()];
                for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *h = f16::from_le_bytes(*b);
                }
                halves.convert_to_f32_slice(out);
            }
        }
        _ => {
            for (block, out) in bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(format.block_len())) {
                blocks::dequantize_block(format, block, out);
            }
        }
    }
}

/// Stores `x` in `format`, rounding to nearest; `bytes` is wholly written.
///
/// Q8_0 takes the largest magnitude as its scale; Q4_K and Q6_K search scales (and minima) that lose least, weighing large numbers more. The
/// bytes are the same on every machine. Two rows at once take Q4_K less time than one and one where a row is an odd number of blocks.
///
/// # Panics
/// If `x` and `bytes` are not the same whole number of blocks, or `format` is one that is only read: see [`can_quantize`].
pub fn quantize(format: Format, x: &[f32], bytes: &mut [u8]) {
    assert_eq!(format.row_bytes(x.len()), Some(bytes.len()), "{} bytes of {format} for {} numbers", bytes.len(), x.len());
    match format {
        Format::F32 => x.iter().zip(bytes.as_chunks_mut::<4>().0).for_each(|(x, b)| *b = x.to_le_bytes()),
        Format::F16 => x.iter().zip(bytes.as_chunks_mut::<2>().0).for_each(|(x, b)| *b = f16::from_f32(*x).to_le_bytes()),
        Format::Bf16 => x.iter().zip(bytes.as_chunks_mut::<2>().0).for_each(|(x, b)| *b = bf16::from_f32(*x).to_le_bytes()),
        _ => quantize::blocks(OpsIsa::best(), format, x, bytes),
    }
}

/// Can [`quantize`] write this format?
pub const fn can_quantize(format: Format) -> bool {
    format.is_dense() || matches!(format, Format::Q8_0 | Format::Q4K | Format::Q6K)
}

#[cfg(test)]
mod tests;
