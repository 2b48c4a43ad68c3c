//! Choosing the whole numbers and scales that lose least. Ours, by weighted least squares over a few candidates; the file formats leave it open.
//!
//! The bytes do not depend on the instruction set: all that is rounded is computed by additions, multiplications and divisions that round each
//! for itself, in an order that is the same everywhere.
#![allow(unsafe_code, reason = "the same text is compiled for several instruction sets, which the caller has asked for")]

mod search;

use super::Format;
use crate::simd::{LANES, OpsIsa, Simd, on_isa};
use half::f16;
use search::{Stretches, symmetric_scales};

/// Whole blocks of one of the formats that [`super::can_quantize`], computed by `isa`. The caller has checked the lengths.
pub(super) fn blocks(isa: OpsIsa, format: Format, x: &[f32], bytes: &mut [u8]) {
    match format {
        Format::Q8_0 => on_isa!(isa, q8_0(x: &[f32], bytes: &mut [u8]) using (x, bytes)),
        Format::Q4K => on_isa!(isa, q4k(x: &[f32], bytes: &mut [u8]) using (x, bytes)),
        Format::Q6K => on_isa!(isa, q6k(x: &[f32], bytes: &mut [u8]) using (x, bytes)),
        _ => unreachable!("{format} is only read"),
    }
}

/// Inverse of `x`, or zero where that would be no number.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x.abs() > 1e-30 { x.recip() } else { 0.0 }
}

/// The lowest byte of the whole number nearest to `x`, ties to even, within `low` and `high`, which are less than 2^22 from 0; `high` for what
/// is no number. Adding 1.5 * 2^23 leaves that number in the lowest bits of the sum, so that no instruction is needed which a machine may not have.
#[inline(always)]
fn nearest(x: f32, low: f32, high: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0;
    let x = if x < high { x } else { high };
    let x = if x > low { x } else { low };
    (x + ROUND).to_bits() as u8
}

/// The f16 nearest to `x` that is finite, its bytes, and its value.
#[inline(always)]
fn half(x: f32) -> ([u8; 2], f32) {
    // One pattern for what is no number, as instruction sets leave different ones.
    let h = if x.is_nan() { f16::NAN } else { f16::from_f32(x.clamp(-65504.0, 65504.0)) };
    (h.to_le_bytes(), h.to_f32())
}

/// 32 numbers into each 34 bytes.
#[inline(always)]
fn q8_0<S: Simd>(x: &[f32], bytes: &mut [u8]) {
    for (x, block) in x.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
        // The bits of magnitudes are in the order of the magnitudes.
        let largest = f32::from_bits(x.iter().fold(0, |a, x| a.max(x.to_bits() & 0x7fff_ffff)));
        let (d_bytes, d) = half(largest / 127.0);
        block[..2].copy_from_slice(&d_bytes);
        let id = inverse(d);
        for (q, x) in block[2..].iter_mut().zip(x) {
            *q = nearest(x * id, -127.0, 127.0);
        }
    }
}

/// 256 numbers into each 210 bytes: per 16 a signed scale, chosen on the side of the largest magnitude, since -32 reaches further than 31.
#[inline(always)]
fn q6k<S: Simd>(x: &[f32], bytes: &mut [u8]) {
    let stretches = x.as_chunks::<16>().0;
    for (x, block) in stretches.as_chunks::<LANES>().0.iter().zip(bytes.as_chunks_mut::<210>().0) {
        let mut scales = [0.0; LANES];
        symmetric_scales::<S>(x, &mut scales);
        q6k_block(x, &scales, block);
    }
}

/// A block of Q6_K with scales near these.
#[inline(always)]
fn q6k_block(x: &[[f32; 16]; 16], scales: &[f32; 16], block: &mut [u8; 210]) {
    let largest = scales.iter().fold(0f32, |a, s| if s.abs() > a.abs() { *s } else { a });
    let (d_bytes, d) = half(largest / -128.0);
    block[208..].copy_from_slice(&d_bytes);
    let id = inverse(d);
    let mut numbers = [[0u8; 16]; 16];
    for (i, (x, numbers)) in x.iter().zip(&mut numbers).enumerate() {
        let scale = nearest(scales[i] * id, -128.0, 127.0);
        block[192 + i] = scale;
        let inv = inverse(d * f32::from(scale as i8));
        for (q, x) in numbers.iter_mut().zip(x) {
            *q = nearest(x * inv + 32.0, 0.0, 63.0);
        }
    }
    let quarters = numbers.as_flattened().as_chunks::<32>().0;
    for (h, [a, b, c, d]) in quarters.as_chunks::<4>().0.iter().enumerate() {
        for l in 0..32 {
            block[64 * h + l] = a[l] & 15 | c[l] << 4;
            block[64 * h + 32 + l] = b[l] & 15 | d[l] << 4;
            block[128 + 32 * h + l] = a[l] >> 4 | b[l] >> 4 << 2 | c[l] >> 4 << 4 | d[l] >> 4 << 6;
        }
    }
}

/// 256 numbers into each 144 bytes: per 32 a scale and a minimum, as `scale * q - minimum` with q from 0 to 15.
#[inline(always)]
fn q4k<S: Simd>(x: &[f32], bytes: &mut [u8]) {
    let (stretches, blocks) = (x.as_chunks::<32>().0, bytes.as_chunks_mut::<144>().0);
    let mut filled = [[0.0; 32]; LANES];
    for (x, blocks) in stretches.chunks(LANES).zip(blocks.chunks_mut(2)) {
        // Two blocks at a time; a last one alone is searched beside zeros.
        let x: &[[f32; 32]; LANES] = x.try_into().unwrap_or_else(|_| {
            filled[..x.len()].copy_from_slice(x);
            &filled
        });
        let steps = q4k_steps::<S>(x);
        for ((x, steps), block) in x.as_chunks::<8>().0.iter().zip(&steps).zip(blocks) {
            q4k_block(x, steps, block);
        }
    }
}

/// The scales of a block of Q4_K: its f16 numbers, and the whole numbers of 6 bits that multiply them.
#[derive(Default)]
struct Steps {
    d: ([u8; 2], f32),
    dmin: ([u8; 2], f32),
    scales: [u8; 8],
    mins: [u8; 8],
}

/// Those for two blocks. Each scale is the nearest one or a neighbour of it, whichever loses less with the minimum as it is rounded.
#[inline(always)]
fn q4k_steps<S: Simd>(x: &[[f32; 32]; LANES]) -> [Steps; 2] {
    let stretches = Stretches::<S>::new(x);
    let (mut scales, mut mins) = ([0.0; LANES], [0.0; LANES]);
    stretches.fit(&mut scales, &mut mins);
    let mut steps = [Steps::default(), Steps::default()];
    let (mut scale_step, mut min) = ([0.0; LANES], [0.0; LANES]);
    for (b, steps) in steps.iter_mut().enumerate() {
        let lanes = 8 * b..8 * b + 8;
        steps.d = half(scales[lanes.clone()].iter().fold(0f32, |a, x| a.max(*x)) / 63.0);
        steps.dmin = half(mins[lanes].iter().fold(0f32, |a, x| a.max(*x)) / 63.0);
        let (inv_d, inv_dmin) = (inverse(steps.d.1), inverse(steps.dmin.1));
        for i in 0..8 {
            let lane = 8 * b + i;
            (steps.scales[i], steps.mins[i]) = (nearest(scales[lane] * inv_d, 0.0, 63.0), nearest(mins[lane] * inv_dmin, 0.0, 63.0));
            (scale_step[lane], min[lane]) = (steps.d.1, steps.dmin.1 * f32::from(steps.mins[i]));
        }
    }
    let rounded: [u8; LANES] = std::array::from_fn(|lane| steps[lane / 8].scales[lane % 8]);
    let mut least = [f32::INFINITY; LANES];
    for shift in [0, -1, 1] {
        let mut tried = [0; LANES];
        let mut scales = [0.0; LANES];
        for lane in 0..LANES {
            tried[lane] = rounded[lane].saturating_add_signed(shift).min(63);
            scales[lane] = scale_step[lane] * f32::from(tried[lane]);
        }
        let losses = stretches.losses(&scales, &min);
        for lane in 0..LANES {
            if losses[lane] < least[lane] {
                (least[lane], steps[lane / 8].scales[lane % 8]) = (losses[lane], tried[lane]);
            }
        }
    }
    steps
}

/// A block of Q4_K with these scales.
#[inline(always)]
fn q4k_block(x: &[[f32; 32]; 8], steps: &Steps, block: &mut [u8; 144]) {
    let Steps { d: (d_bytes, d), dmin: (min_bytes, dmin), scales, mins } = steps;
    block[..2].copy_from_slice(d_bytes);
    block[2..4].copy_from_slice(min_bytes);
    for i in 0..4 {
        block[4 + i] = scales[i] | scales[4 + i] >> 4 << 6;
        block[8 + i] = mins[i] | mins[4 + i] >> 4 << 6;
        block[12 + i] = scales[4 + i] & 15 | mins[4 + i] << 4;
    }
    let mut inv_and_min = [(0.0, 0.0); 8];
    for (i, pair) in inv_and_min.iter_mut().enumerate() {
        *pair = (inverse(d * f32::from(scales[i])), dmin * f32::from(mins[i]));
    }
    let pairs = x.as_chunks::<2>().0.iter().zip(inv_and_min.as_chunks::<2>().0);
    for (([a, b], [(inv_a, min_a), (inv_b, min_b)]), out) in pairs.zip(block[16..].as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = nearest((a[l] + min_a) * inv_a, 0.0, 15.0) | nearest((b[l] + min_b) * inv_b, 0.0, 15.0) << 4;
        }
    }
}

#[cfg(test)]
mod tests;
