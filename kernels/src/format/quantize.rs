//! Choosing the whole numbers and scales that lose least. Ours, by weighted least squares over a few candidates; the file formats leave it open.

use super::blocks::scales_of_k;
use half::f16;

/// Inverse of `x`, or zero where that would be no number.
fn inverse(x: f32) -> f32 {
    if x.abs() > 1e-30 { x.recip() } else { 0.0 }
}

/// The whole number nearest to `x`, ties to even, for magnitudes below 2^22; larger ones stay as large, and what is no number stays none.
/// [`f32::round`] is a call of the C library where the compiler may not count on newer instructions, and keeps the loops below from being
/// vectorized.
fn nearest(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (x + ROUND) - ROUND
}

/// The f16 nearest to `x` that is finite, its bytes, and its value.
fn half(x: f32) -> ([u8; 2], f32) {
    let h = f16::from_f32(x.clamp(-65504.0, 65504.0));
    (h.to_le_bytes(), h.to_f32())
}

/// 32 numbers into 34 bytes.
pub(super) fn q8_0(x: &[f32], block: &mut [u8]) {
    let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
    let (bytes, d) = half(largest / 127.0);
    block[..2].copy_from_slice(&bytes);
    let id = inverse(d);
    for (q, x) in block[2..].iter_mut().zip(x) {
        *q = nearest(x * id).clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// 256 numbers into 210 bytes: per 16 a signed scale, chosen on the side of the largest magnitude, since -32 reaches further than 31.
pub(super) fn q6k(x: &[f32], block: &mut [u8]) {
    let scales: [f32; 16] = std::array::from_fn(|i| symmetric_scale(&x[16 * i..16 * i + 16]));
    let largest = scales.iter().fold(0f32, |a, s| if s.abs() > a.abs() { *s } else { a });
    let (bytes, d) = half(largest / -128.0);
    block.fill(0);
    block[208..].copy_from_slice(&bytes);
    let id = inverse(d);
    for (i, x) in x.chunks_exact(16).enumerate() {
        let scale = nearest(scales[i] * id).clamp(-128.0, 127.0);
        block[192 + i] = scale as i8 as u8;
        let inv = inverse(d * scale);
        for (j, x) in x.iter().enumerate() {
            let q = (nearest(x * inv).clamp(-32.0, 31.0) + 32.0) as u8;
            let (h, s, l) = (i / 8, i / 2 % 4, i % 2 * 16 + j);
            block[64 * h + 32 * (s % 2) + l] |= (q & 15) << (4 * (s / 2));
            block[128 + 32 * h + l] |= (q >> 4) << (2 * s);
        }
    }
}

/// The scale for values -32 to 31 that minimises the sum of `x^2 * (x - scale * q)^2`, among candidates near the one that just fits.
fn symmetric_scale(x: &[f32]) -> f32 {
    let largest = x.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let (mut best, mut scale) = (0.0, 0.0);
    for step in -9..=9 {
        let inv = -(32.0 + 0.1 * step as f32) * inverse(largest);
        let (mut xq, mut qq) = (0.0, 0.0);
        for x in x {
            let q = nearest(x * inv).clamp(-32.0, 31.0);
            xq += x * x * x * q;
            qq += x * x * q * q;
        }
        // With the best scale for these whole numbers, xq / qq, the error falls by xq^2 / qq.
        if qq > 0.0 && xq * xq > best * qq {
            (best, scale) = (xq * xq / qq, xq / qq);
        }
    }
    scale
}

/// 256 numbers into 144 bytes: per 32 a scale and a minimum, as `scale * q - minimum` with q from 0 to 15.
pub(super) fn q4k(x: &[f32], block: &mut [u8]) {
    let fits: [(f32, f32); 8] = std::array::from_fn(|i| affine_fit(&x[32 * i..32 * i + 32]));
    let (bytes_d, d) = half(fits.iter().fold(0f32, |a, fit| a.max(fit.0)) / 63.0);
    let (bytes_min, dmin) = half(fits.iter().fold(0f32, |a, fit| a.max(fit.1)) / 63.0);
    block.fill(0);
    block[..2].copy_from_slice(&bytes_d);
    block[2..4].copy_from_slice(&bytes_min);
    for (i, (scale, min)) in fits.iter().enumerate() {
        let scale = nearest(scale * inverse(d)).clamp(0.0, 63.0) as u8;
        let min = nearest(min * inverse(dmin)).clamp(0.0, 63.0) as u8;
        if i < 4 {
            block[4 + i] |= scale;
            block[8 + i] |= min;
        } else {
            block[8 + i] = scale & 15 | min << 4;
            block[i] |= scale >> 4 << 6;
            block[4 + i] |= min >> 4 << 6;
        }
    }
    let (scales, mins) = scales_of_k(&block[4..16]);
    for (i, x) in x.chunks_exact(32).enumerate() {
        let (inv, min) = (inverse(d * f32::from(scales[i])), dmin * f32::from(mins[i]));
        for (l, x) in x.iter().enumerate() {
            let q = nearest((x + min) * inv).clamp(0.0, 15.0) as u8;
            block[16 + 32 * (i / 2) + l] |= q << (4 * (i % 2));
        }
    }
}

/// Scale and minimum (both at least 0) for `scale * q - minimum` near `x`, q from 0 to 15, weighing larger numbers more.
fn affine_fit(x: &[f32]) -> (f32, f32) {
    let size = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    let weight = |x: f32| size + x.abs();
    let least = x.iter().fold(0f32, |a, x| a.min(*x));
    let range = x.iter().fold(0f32, |a, x| a.max(*x)) - least;
    let mut best = (f32::INFINITY, (0.0, -least));
    for step in -10..=10 {
        let inv = (15.0 + 0.1 * step as f32) * inverse(range);
        let quant = |x: f32| nearest((x - least) * inv).clamp(0.0, 15.0);
        // Weighted least squares for x ~ scale * q + offset.
        let (mut w, mut wq, mut wqq, mut wx, mut wxq) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &x in x {
            let (v, q) = (weight(x), quant(x));
            w += v;
            wq += v * q;
            wqq += v * q * q;
            wx += v * x;
            wxq += v * x * q;
        }
        let det = w * wqq - wq * wq;
        let mut fit = if det > 0.0 { ((w * wxq - wx * wq) / det, -(wqq * wx - wq * wxq) / det) } else { (inverse(inv), -least) };
        if fit.1 < 0.0 || fit.0 < 0.0 {
            fit = (if wqq > 0.0 { (wxq / wqq).max(0.0) } else { 0.0 }, 0.0); // the minimum cannot be negative: the best scale without one
        }
        let error: f32 = x.iter().map(|&x| weight(x) * (fit.0 * quant(x) - fit.1 - x).powi(2)).sum();
        if error < best.0 {
            best = (error, fit);
        }
    }
    best.1
}
