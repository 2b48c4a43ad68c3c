//! Rotary position embedding, applied in place.

#![allow(unsafe_code, reason = "entries that enable the processor's vector instructions")]

use crate::simd::{LANES, OpsIsa, Simd, on_isa};

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + dim / 2`.
    Halves,
    /// `2 i` and `2 i + 1`.
    Neighbours,
}

/// Turns the first `2 * cos.len()` numbers of each head of a token; the others are kept.
///
/// * `x`: `[n_heads, head_dim]`, `head_dim` at least `2 * cos.len()`
/// * `cos`, `sin`: `[dim / 2]`, of the angle of each pair at the token's position
///
/// Source: Su et al. 2021, arXiv:2104.09864.
///
/// # Panics
/// If the shapes contradict each other.
pub fn rotate(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], pairs: Pairs) {
    let fits = cos.len() == sin.len() && 2 * cos.len() <= head_dim && x.len().is_multiple_of(head_dim);
    assert!(fits, "{} numbers in heads of {head_dim}, {} cosines, {} sines", x.len(), cos.len(), sin.len());
    for head in x.chunks_exact_mut(head_dim) {
        let turned = &mut head[..2 * cos.len()];
        match pairs {
            Pairs::Halves => {
                let (first, second) = turned.split_at_mut(cos.len());
                on_isa!(OpsIsa::best(), halves(first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32])
                    using (first, second, cos, sin));
            }
            Pairs::Neighbours => {
                for ((pair, cos), sin) in turned.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
                }
            }
        }
    }
}

#[inline(always)]
fn halves<S: Simd>(first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32]) {
    let ((a, a_rest), (b, b_rest)) = (first.as_chunks_mut::<LANES>(), second.as_chunks_mut::<LANES>());
    let ((cos, cos_rest), (sin, sin_rest)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y, cos, sin) = (S::load(a), S::load(b), S::load(cos), S::load(sin));
        S::store(S::sub(S::mul(x, cos), S::mul(y, sin)), a);
        S::store(S::add(S::mul(x, sin), S::mul(y, cos)), b);
    }
    for (((a, b), cos), sin) in a_rest.iter_mut().zip(b_rest).zip(cos_rest).zip(sin_rest) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_their_angles_and_the_rest_is_kept() {
        for (pairs, dim) in [(Pairs::Halves, 64), (Pairs::Halves, 20), (Pairs::Neighbours, 32)] {
            let head_dim = dim + 6;
            let (cos, sin): (Vec<f32>, Vec<f32>) = (0..dim / 2).map(|i| ((i as f32 * 0.3).cos(), (i as f32 * 0.3).sin())).unzip();
            let x: Vec<f32> = (0..2 * head_dim).map(|i| (i % 13) as f32 - 6.0).collect();
            let mut out = x.clone();
            rotate(&mut out, head_dim, &cos, &sin, pairs);
            for head in 0..2 {
                for i in 0..dim / 2 {
                    let (a, b) = if pairs == Pairs::Halves { (i, i + dim / 2) } else { (2 * i, 2 * i + 1) };
                    let (a, b) = (head * head_dim + a, head * head_dim + b);
                    assert!((out[a] - (x[a] * cos[i] - x[b] * sin[i])).abs() < 1e-5);
                    assert!((out[b] - (x[a] * sin[i] + x[b] * cos[i])).abs() < 1e-5);
                }
                let kept = head * head_dim + dim..(head + 1) * head_dim;
                assert_eq!(out[kept.clone()], x[kept]);
            }
        }
    }
}
