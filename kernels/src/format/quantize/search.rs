//! The searches: sixteen stretches of numbers at a time, one in each lane of a vector, so that no sum goes across lanes.
//!
//! Numbers are divided by the largest magnitude of their stretch, so that squares and their products neither overflow nor vanish.

use crate::simd::{LANES, Simd};

/// Below this a stretch counts as zeros.
const LEAST: f32 = 1e-30;

/// `1 / x` where `size`, the magnitude of `x`, is not next to nothing, else 0.
#[inline(always)]
fn inverse<S: Simd>(x: S::V, size: S::V) -> S::V {
    S::where_at_least(size, S::splat(LEAST), S::div(S::splat(1.0), x))
}

/// The magnitude.
#[inline(always)]
fn abs<S: Simd>(x: S::V) -> S::V {
    S::max(x, S::sub(S::splat(0.0), x))
}

/// `a * b + c`, rounded twice wherever it runs.
#[inline(always)]
fn mul_add<S: Simd>(a: S::V, b: S::V, c: S::V) -> S::V {
    S::add(S::mul(a, b), c)
}

/// Number by number, that of each stretch side by side: `[LANES, N]` to `[N, LANES]`; `N` a multiple of 4.
#[inline(always)]
fn transposed<S: Simd, const N: usize>(x: &[[f32; N]; LANES]) -> [S::V; N] {
    let numbers = x.as_flattened();
    // SAFETY: floats are four bytes each, of which any is a byte.
    let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) };
    let mut columns = [S::splat(0.0); N];
    for (i, columns) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let mut four = [[0.0; LANES]; 4];
        // SAFETY: as many bytes as the floats have; whatever is written there is a float again.
        let out = unsafe { &mut *(&raw mut four).cast::<[u8; 16 * LANES]>() };
        S::transpose(&bytes[16 * i..], 4 * N, 0, out);
        for (column, numbers) in columns.iter_mut().zip(&four) {
            *column = S::load(numbers);
        }
    }
    columns
}

/// Each vector multiplied by `factor`.
#[inline(always)]
fn scaled<S: Simd, const N: usize>(mut x: [S::V; N], factor: S::V) -> [S::V; N] {
    for x in &mut x {
        *x = S::mul(*x, factor);
    }
    x
}

/// For each of sixteen stretches the scale for whole numbers q from -32 to 31 that minimises the sum of `x^2 * (x - scale * q)^2`, among twelve
/// candidates around the one that just fits. With fewer of the largest numbers cut off or more, they lose less than closer ones.
#[inline(always)]
pub(super) fn symmetric_scales<S: Simd>(x: &[[f32; 16]; LANES], scales: &mut [f32; LANES]) {
    let x = transposed::<S, 16>(x);
    let (mut size, mut largest) = (S::splat(0.0), S::splat(0.0));
    for x in x {
        let a = abs::<S>(x);
        largest = S::where_above(a, size, x, largest);
        size = S::max(a, size);
    }
    let y = scaled::<S, 16>(x, inverse::<S>(largest, size));
    let (mut squares, mut cubes) = (y, y);
    for ((y, square), cube) in y.iter().zip(&mut squares).zip(&mut cubes) {
        *square = S::mul(*y, *y);
        *cube = S::mul(*square, *y);
    }
    let (mut best, mut scale) = (S::splat(0.0), S::splat(0.0));
    for step in 0..12 {
        let steps = S::splat(-29.6 - 4.8 / 11.0 * step as f32);
        let (mut yq, mut qq) = (S::splat(0.0), S::splat(0.0));
        for j in 0..16 {
            let q = S::round(S::max(S::min(S::mul(y[j], steps), S::splat(31.0)), S::splat(-32.0)));
            yq = mul_add::<S>(cubes[j], q, yq);
            qq = mul_add::<S>(S::mul(squares[j], q), q, qq);
        }
        // With the best scale for these whole numbers, yq / qq, the error falls by yq^2 / qq.
        let fit = S::div(yq, qq);
        let gain = S::mul(yq, fit);
        scale = S::where_above(gain, best, fit, scale);
        best = S::max(gain, best);
    }
    S::store(S::mul(scale, largest), scales);
}

/// Sixteen stretches that are to be `scale * q - minimum`, scale and minimum at least 0 and q from 0 to 15. Larger numbers weigh more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretches<S: Simd> {
    /// The numbers over `size`.
    z: [S::V; 32],
    weight: [S::V; 32],
    /// The largest magnitude, and its inverse.
    size: S::V,
    inv_size: S::V,
}

/// `z ~ scale * q + offset`, the offset not above 0.
#[derive(Clone, Copy)]
struct Fit<S: Simd> {
    scale: S::V,
    offset: S::V,
    /// By how much the weighted squares of z are more than the squares of what is lost.
    gain: S::V,
}

impl<S: Simd> Fit<S> {
    /// In each lane the one that gains more.
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self {
            scale: S::where_above(other.gain, self.gain, other.scale, self.scale),
            offset: S::where_above(other.gain, self.gain, other.offset, self.offset),
            gain: S::max(other.gain, self.gain),
        }
    }
}

impl<S: Simd> Stretches<S> {
    #[inline(always)]
    pub(super) fn new(x: &[[f32; 32]; LANES]) -> Self {
        let mut z = transposed::<S, 32>(x);
        let mut size = S::splat(0.0);
        for x in z {
            size = S::max(abs::<S>(x), size);
        }
        let inv_size = inverse::<S>(size, size);
        let mut squares = S::splat(0.0);
        for z in &mut z {
            *z = S::mul(*z, inv_size);
            squares = mul_add::<S>(*z, *z, squares);
        }
        let mut roots = [0.0; LANES];
        S::store(S::mul(squares, S::splat(1.0 / 32.0)), &mut roots);
        for x in &mut roots {
            *x = x.sqrt();
        }
        let mean = S::load(&roots);
        let mut weight = z;
        for weight in &mut weight {
            *weight = S::add(mean, abs::<S>(*weight));
        }
        Self { z, weight, size, inv_size }
    }

    /// Scales and minima that lose little: those of the best of six candidates that spread q from the least to the largest number, more or less,
    /// each improved once.
    #[inline(always)]
    pub(super) fn fit(&self, scales: &mut [f32; LANES], mins: &mut [f32; LANES]) {
        let zero = S::splat(0.0);
        let (mut least, mut most) = (zero, self.z[0]);
        let (mut w, mut wz) = (zero, zero);
        for (z, weight) in self.z.iter().zip(&self.weight) {
            (least, most) = (S::min(*z, least), S::max(*z, most));
            (w, wz) = (S::add(w, *weight), mul_add::<S>(*weight, *z, wz));
        }
        let range = S::sub(most, least);
        let inv_range = inverse::<S>(range, range);
        // To begin with, the best that a minimum alone can do.
        let offset = S::min(S::div(wz, w), zero);
        let mut best = Fit::<S> { scale: zero, offset, gain: S::mul(offset, wz) };
        for step in 0..6 {
            let inv = S::mul(S::splat(14.0 + 0.4 * step as f32), inv_range);
            let first = self.least_squares(least, inv, w, wz);
            let second = self.least_squares(first.offset, inverse::<S>(first.scale, first.scale), w, wz);
            best = best.or(first).or(second);
        }
        S::store(S::mul(best.scale, self.size), scales);
        S::store(S::mul(S::sub(zero, best.offset), self.size), mins);
    }

    /// The best scale and offset for the whole numbers nearest to `(z - from) * inv`. `w` is the sum of the weights, `wz` that of the weighted z.
    #[inline(always)]
    fn least_squares(&self, from: S::V, inv: S::V, w: S::V, wz: S::V) -> Fit<S> {
        let zero = S::splat(0.0);
        let (mut wq, mut wqq, mut wzq) = (zero, zero, zero);
        for (z, weight) in self.z.iter().zip(&self.weight) {
            let q = fifteen::<S>(S::mul(S::sub(*z, from), inv));
            let v = S::mul(*weight, q);
            wq = S::add(wq, v);
            wqq = mul_add::<S>(v, q, wqq);
            wzq = mul_add::<S>(v, *z, wzq);
        }
        let det = S::sub(S::mul(w, wqq), S::mul(wq, wq));
        let scale = S::div(S::sub(S::mul(w, wzq), S::mul(wz, wq)), det);
        let offset = S::div(S::sub(S::mul(wqq, wz), S::mul(wq, wzq)), det);
        // Where all q are one number but for rounding, the equations say nothing of their slope. Then, and where the offset would be above 0, the
        // best scale without one.
        let enough = S::mul(S::splat(1e-5), S::mul(w, wqq));
        let valid = S::where_above(det, enough, S::min(scale, S::sub(zero, offset)), zero);
        let scale = S::where_above(valid, zero, scale, S::max(S::div(wzq, wqq), zero));
        let offset = S::where_above(valid, zero, offset, zero);
        Fit { scale, offset, gain: S::add(S::mul(scale, wzq), S::mul(offset, wz)) }
    }

    /// The weighted squares of what is lost with these scales and minima, in each lane over the square of its size.
    #[inline(always)]
    pub(super) fn losses(&self, scales: &[f32; LANES], mins: &[f32; LANES]) -> [f32; LANES] {
        let (scale, min) = (S::mul(S::load(scales), self.inv_size), S::mul(S::load(mins), self.inv_size));
        let inv = inverse::<S>(scale, scale);
        let mut sum = S::splat(0.0);
        for (z, weight) in self.z.iter().zip(&self.weight) {
            let above = S::add(*z, min);
            let error = S::sub(S::mul(fifteen::<S>(S::mul(above, inv)), scale), above);
            sum = mul_add::<S>(S::mul(*weight, error), error, sum);
        }
        let mut losses = [0.0; LANES];
        S::store(sum, &mut losses);
        losses
    }
}

/// The whole number nearest to `x` from 0 to 15.
#[inline(always)]
fn fifteen<S: Simd>(x: S::V) -> S::V {
    S::round(S::max(S::min(x, S::splat(15.0)), S::splat(0.0)))
}
