//! The functions between the projections of a feed-forward network, and the cap of logits.

#![allow(unsafe_code, reason = "entries that enable the processor's vector instructions")]

use crate::simd::{LANES, OpsIsa, Simd, on_isa};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    Gelu,
}

/// `x = activation(x) * up`, or `x = activation(x)` without `up`, which is as long as `x`.
///
/// # Panics
/// If it is not.
pub fn activate(activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
    assert!(up.is_none_or(|up| up.len() == x.len()), "{} numbers, not as many to multiply with", x.len());
    on_isa!(OpsIsa::best(), all(activation: Activation, x: &mut [f32], up: Option<&[f32]>) using (activation, x, up));
}

/// `x = cap * tanh(x * scale / cap)`, or `x * scale` without a cap.
pub fn softcap(x: &mut [f32], scale: f32, cap: Option<f32>) {
    match cap {
        Some(cap) => on_isa!(OpsIsa::best(), capped(x: &mut [f32], scale: f32, cap: f32) using (x, scale, cap)),
        None if scale != 1.0 => x.iter_mut().for_each(|x| *x *= scale),
        None => {}
    }
}

/// `1 / (1 + e^-x)`, the same on every instruction set.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// A function of each number. No closure: a closure would be compiled without the instructions of the function that it is passed to.
trait Each: Copy {
    fn of<S: Simd>(self, x: S::V) -> S::V;
}

#[derive(Clone, Copy)]
struct Silu;

impl Each for Silu {
    #[inline(always)]
    fn of<S: Simd>(self, x: S::V) -> S::V {
        S::mul(x, S::sigmoid(x))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Each for GeluTanh {
    /// `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
    #[inline(always)]
    fn of<S: Simd>(self, x: S::V) -> S::V {
        let inner = S::fma(S::mul(S::mul(x, x), x), S::splat(0.044_715), x);
        S::mul(x, S::sigmoid(S::mul(inner, S::splat(1.595_769))))
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Each for Gelu {
    #[inline(always)]
    fn of<S: Simd>(self, x: S::V) -> S::V {
        let erf = erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
        S::mul(S::mul(x, S::splat(0.5)), S::add(S::splat(1.0), erf))
    }
}

/// `cap * tanh(x * factor)`.
#[derive(Clone, Copy)]
struct Capped {
    factor: f32,
    cap: f32,
}

impl Each for Capped {
    #[inline(always)]
    fn of<S: Simd>(self, x: S::V) -> S::V {
        S::mul(S::tanh(S::mul(x, S::splat(self.factor))), S::splat(self.cap))
    }
}

/// Applies `f` to all, the rest that fills no vector included.
#[inline(always)]
fn map<S: Simd>(x: &mut [f32], up: Option<&[f32]>, f: impl Each) {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    match up {
        Some(up) => {
            let (ups, ups_rest) = up.as_chunks::<LANES>();
            for (x, up) in chunks.iter_mut().zip(ups) {
                S::store(S::mul(f.of::<S>(S::load(x)), S::load(up)), x);
            }
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            S::store(f.of::<S>(S::load(&last)), &mut last);
            rest.iter_mut().zip(last).zip(ups_rest).for_each(|((x, last), up)| *x = last * up);
        }
        None => {
            for x in chunks {
                S::store(f.of::<S>(S::load(x)), x);
            }
            let mut last = [0.0; LANES];
            last[..rest.len()].copy_from_slice(rest);
            S::store(f.of::<S>(S::load(&last)), &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

#[inline(always)]
fn all<S: Simd>(activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
    match activation {
        Activation::Silu => map::<S>(x, up, Silu),
        Activation::GeluTanh => map::<S>(x, up, GeluTanh),
        Activation::Gelu => map::<S>(x, up, Gelu),
    }
}

/// The error function, with an absolute error below 3e-7. Source: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn erf<S: Simd>(x: S::V) -> S::V {
    let size = S::max(x, S::sub(S::splat(0.0), x));
    let one = S::splat(1.0);
    let t = S::div(one, S::fma(size, S::splat(0.327_591_1), one));
    let mut sum = S::splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = S::fma(sum, t, S::splat(coefficient));
    }
    let tail = S::mul(S::mul(sum, t), S::exp(S::sub(S::splat(0.0), S::mul(size, size))));
    S::with_sign(S::sub(one, tail), x)
}

#[inline(always)]
fn capped<S: Simd>(x: &mut [f32], scale: f32, cap: f32) {
    map::<S>(x, None, Capped { factor: scale / cap, cap });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its series.
    fn series(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn activations_agree_with_their_definitions() {
        let x: Vec<f32> = (-1003..1004).map(|i| i as f32 * 0.02).collect();
        let up: Vec<f32> = x.iter().map(|x| 1.0 + x * 0.1).collect();
        for isa in OpsIsa::all() {
            for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
                for up in [None, Some(up.as_slice())] {
                    let mut out = x.clone();
                    on_isa!(isa, all(activation: Activation, x: &mut [f32], up: Option<&[f32]>) using (activation, &mut out, up));
                    for (i, (out, x)) in out.iter().zip(&x).enumerate() {
                        let x = f64::from(*x);
                        let want = match activation {
                            Activation::Silu => x / (1.0 + (-x).exp()),
                            Activation::GeluTanh => {
                                x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                            }
                            Activation::Gelu => x / 2.0 * (1.0 + series(x / 2f64.sqrt())),
                        };
                        let want = want * up.map_or(1.0, |up| f64::from(up[i]));
                        assert!(
                            (f64::from(*out) - want).abs() < 1e-5 + want.abs() * 1e-6,
                            "{isa:?} {activation:?}({x}): {out}, not {want}"
                        );
                    }
                }
            }
            let mut out = x.clone();
            on_isa!(isa, capped(x: &mut [f32], scale: f32, cap: f32) using (&mut out, 3.0, 30.0));
            for (out, x) in out.iter().zip(&x) {
                assert!((f64::from(*out) - 30.0 * (f64::from(*x) * 3.0 / 30.0).tanh()).abs() < 2e-5);
            }
        }
    }
}
