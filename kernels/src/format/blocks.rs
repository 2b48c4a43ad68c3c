//! What a block of each quantized format stands for. `d` is always a block's f16 scale, `q` a small whole number.

use super::Format;
use half::f16;

/// The sixteen values that the 4 bits of IQ4_NL and IQ4_XS choose from.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The eight scales and eight minima of 6 bits that Q4_K and Q5_K pack into 12 bytes.
pub(crate) fn scales_of_k(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// The sixteen signed scales that Q3_K packs into 12 bytes.
pub(crate) fn scales_of_q3k(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// One block, whose lengths the caller has checked.
pub(super) fn dequantize_block(format: Format, b: &[u8], out: &mut [f32]) {
    match format {
        Format::Q8_0 => {
            let d = half(b, 0);
            out.iter_mut().zip(&b[2..34]).for_each(|(x, &q)| *x = f32::from(q as i8) * d);
        }
        Format::Q4_0 => {
            let d = half(b, 0);
            nibbles(&b[2..18], out, |q| (f32::from(q) - 8.0) * d);
        }
        Format::Q4_1 => {
            let (d, m) = (half(b, 0), half(b, 2));
            nibbles(&b[4..20], out, |q| f32::from(q) * d + m);
        }
        Format::Q5_0 => {
            let d = half(b, 0);
            fifths(&b[2..6], &b[6..22], out, |q| (f32::from(q) - 16.0) * d);
        }
        Format::Q5_1 => {
            let (d, m) = (half(b, 0), half(b, 2));
            fifths(&b[4..8], &b[8..24], out, |q| f32::from(q) * d + m);
        }
        Format::Iq4Nl => {
            let d = half(b, 0);
            nibbles(&b[2..18], out, |q| d * f32::from(IQ4_VALUES[usize::from(q)]));
        }
        Format::Iq4Xs => {
            let (d, high) = (half(b, 0), u16::from_le_bytes([b[2], b[3]]));
            for (i, out) in out.chunks_exact_mut(32).enumerate() {
                let low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
                let scale = i16::from(low | ((high >> (2 * i) & 3) as u8) << 4) - 32;
                let d = d * f32::from(scale);
                nibbles(&b[8 + 16 * i..24 + 16 * i], out, |q| d * f32::from(IQ4_VALUES[usize::from(q)]));
            }
        }
        Format::Q2K => {
            let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half(b, 80), half(b, 82));
            for (i, x) in out.iter_mut().enumerate() {
                let (h, s, l) = (i / 128, i / 32 % 4, i % 32);
                let scale = scales[i / 16];
                *x = d * f32::from(scale & 15) * f32::from(qs[32 * h + l] >> (2 * s) & 3) - dmin * f32::from(scale >> 4);
            }
        }
        Format::Q3K => {
            let (mask, qs, scales, d) = (&b[..32], &b[32..96], scales_of_q3k(&b[96..108]), half(b, 108));
            for (i, x) in out.iter_mut().enumerate() {
                let (h, s, l) = (i / 128, i / 32 % 4, i % 32);
                let q = qs[32 * h + l] >> (2 * s) & 3 | (mask[l] >> (i / 32) & 1) << 2;
                *x = d * f32::from(scales[i / 16]) * (f32::from(q) - 4.0);
            }
        }
        Format::Q4K | Format::Q5K => {
            let (d, dmin, (scales, mins)) = (half(b, 0), half(b, 2), scales_of_k(&b[4..16]));
            let (high, qs) = if format == Format::Q4K { (None, &b[16..144]) } else { (Some(&b[16..48]), &b[48..176]) };
            for (i, out) in out.chunks_exact_mut(32).enumerate() {
                let (d, m) = (d * f32::from(scales[i]), dmin * f32::from(mins[i]));
                for (l, x) in out.iter_mut().enumerate() {
                    let bit = high.map_or(0, |high| high[l] >> i & 1);
                    *x = d * f32::from(qs[32 * (i / 2) + l] >> (4 * (i % 2)) & 15 | bit << 4) - m;
                }
            }
        }
        Format::Q6K => {
            let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
            for (i, x) in out.iter_mut().enumerate() {
                let (h, s, l) = (i / 128, i / 32 % 4, i % 32);
                let q = low[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2)) & 15 | (high[32 * h + l] >> (2 * s) & 3) << 4;
                *x = d * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
            }
        }
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!("{format} has no blocks"),
    }
}

/// 32 numbers of 4 bits: the low halves of 16 bytes, then the high halves.
fn nibbles(qs: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (l, &q) in qs.iter().enumerate() {
        out[l] = value(q & 15);
        out[l + 16] = value(q >> 4);
    }
}

/// As [`nibbles`], with a fifth bit each, from 4 bytes.
fn fifths(high: &[u8], qs: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (l, &q) in qs.iter().enumerate() {
        out[l] = value(q & 15 | (high[l / 8] >> (l % 8) & 1) << 4);
        out[l + 16] = value(q >> 4 | (high[2 + l / 8] >> (l % 8) & 1) << 4);
    }
}
