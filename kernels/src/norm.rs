//! Norms and sums over the rows of the residual stream. Each row by itself, always in the same order.

#![allow(unsafe_code, reason = "entries that enable the processor's vector instructions")]

use crate::simd::{LANES, OpsIsa, Simd, on_isa};

/// `x / sqrt(mean(x^2) + eps) * weight`, in place. `x` and `weight` have the same length, which is not 0.
/// Source: Zhang and Sennrich 2019, arXiv:1910.07467.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "a row and its weights");
    on_isa!(OpsIsa::best(), rms(x: &mut [f32], weight: &[f32], eps: f32) using (x, weight, eps));
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, in place. All have the same length, which is not 0.
/// Source: Ba et al. 2016, arXiv:1607.06450.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "a row of {} with {} weights, {} biases", x.len(), weight.len(), bias.len());
    on_isa!(OpsIsa::best(), layer(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) using (x, weight, bias, eps));
}

/// `x += y * factor`.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
    assert_eq!(x.len(), y.len(), "what is added");
    on_isa!(OpsIsa::best(), scaled(x: &mut [f32], y: &[f32], factor: f32) using (x, y, factor));
}

/// The sum of `f` of each number: lanes in two chains, then a tree, then what is left over.
#[inline(always)]
fn total<S: Simd>(x: &[f32], vector: impl Fn(S::V, S::V) -> S::V, scalar: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
    for pair in chunks.chunks(2) {
        even = vector(S::load(&pair[0]), even);
        if let Some(second) = pair.get(1) {
            odd = vector(S::load(second), odd);
        }
    }
    S::sum(S::add(even, odd)) + rest.iter().map(|x| scalar(*x)).sum::<f32>()
}

#[inline(always)]
fn rms<S: Simd>(x: &mut [f32], weight: &[f32], eps: f32) {
    let squares = total::<S>(x, |x, sum| S::fma(x, x, sum), |x| x * x);
    let factor = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let (weights, weights_rest) = weight.as_chunks::<LANES>();
    for (x, weight) in chunks.iter_mut().zip(weights) {
        S::store(S::mul(S::mul(S::load(x), S::splat(factor)), S::load(weight)), x);
    }
    for (x, weight) in rest.iter_mut().zip(weights_rest) {
        *x = *x * factor * weight;
    }
}

#[inline(always)]
fn layer<S: Simd>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = total::<S>(x, |x, sum| S::add(x, sum), |x| x) / x.len() as f32;
    let centred = |x, sum| {
        let x = S::sub(x, S::splat(mean));
        S::fma(x, x, sum)
    };
    let variance = total::<S>(x, centred, |x| (x - mean) * (x - mean)) / x.len() as f32;
    let factor = 1.0 / (variance + eps).sqrt();
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    let ((weights, weights_rest), (biases, biases_rest)) = (weight.as_chunks::<LANES>(), bias.as_chunks::<LANES>());
    for ((x, weight), bias) in chunks.iter_mut().zip(weights).zip(biases) {
        let normed = S::mul(S::sub(S::load(x), S::splat(mean)), S::splat(factor));
        S::store(S::fma(normed, S::load(weight), S::load(bias)), x);
    }
    for ((x, weight), bias) in rest.iter_mut().zip(weights_rest).zip(biases_rest) {
        *x = (*x - mean) * factor * weight + bias;
    }
}

#[inline(always)]
fn scaled<S: Simd>(x: &mut [f32], y: &[f32], factor: f32) {
    let ((chunks, rest), (added, added_rest)) = (x.as_chunks_mut::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in chunks.iter_mut().zip(added) {
        S::store(S::fma(S::load(y), S::splat(factor), S::load(x)), x);
    }
    for (x, y) in rest.iter_mut().zip(added_rest) {
        *x += y * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f32], b: impl Iterator<Item = f64>) {
        for (a, b) in a.iter().zip(b) {
            assert!((f64::from(*a) - b).abs() < 2e-6 * (1.0 + b.abs()), "{a} is not {b}");
        }
    }

    #[test]
    fn norms_agree_with_plain_arithmetic_at_any_width() {
        for isa in OpsIsa::all() {
            for n in [1, 15, 16, 17, 64, 100, 1024] {
                let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 40.0) * 0.03).collect();
                let weight: Vec<f32> = (0..n).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
                let bias: Vec<f32> = (0..n).map(|i| (i % 5) as f32 * 0.2).collect();
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let mean = wide.iter().sum::<f64>() / n as f64;
                let rms_factor = 1.0 / (wide.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
                let factor = 1.0 / (wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64 + 1e-5).sqrt();
                let mut out = x.clone();
                on_isa!(isa, rms(x: &mut [f32], weight: &[f32], eps: f32) using (&mut out, &weight, 1e-5));
                close(&out, (0..n).map(|i| wide[i] * rms_factor * f64::from(weight[i])));
                out.clone_from(&x);
                on_isa!(isa, layer(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) using (&mut out, &weight, &bias, 1e-5));
                close(&out, (0..n).map(|i| (wide[i] - mean) * factor * f64::from(weight[i]) + f64::from(bias[i])));
                out.clone_from(&x);
                on_isa!(isa, scaled(x: &mut [f32], y: &[f32], factor: f32) using (&mut out, &bias, 0.25));
                close(&out, (0..n).map(|i| wide[i] + f64::from(bias[i]) * 0.25));
            }
        }
    }
}
