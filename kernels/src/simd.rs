//! Sixteen numbers at a time, in whatever registers the processor has: one text of each kernel for all instruction sets.
//!
//! A kernel is a generic function over [`Simd`], inlined into an entry of its own for each instruction set ([`on_isa`]). Within one
//! instruction set a kernel always does the same operations in the same order; between two of them the last bits may differ.

#![allow(unsafe_code, reason = "vector instructions have no safe form outside the functions that enable them")]

use crate::isa::Isa;

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;

/// The instruction sets that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OpsIsa {
    /// Whatever the compiler's target has.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with products of bfloat16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl OpsIsa {
    /// The best that this processor has, within the limit of this process.
    pub(crate) fn best() -> Self {
        let limit = match Isa::limit() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self::Avx512Bf16,
            _ => Self::Portable,
        };
        Self::detected().min(limit)
    }

    /// The best that this processor has.
    fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            }
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All that this processor has, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let all = [
            Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16,
        ];
        all.into_iter().filter(|isa| *isa <= Self::detected()).collect()
    }
}

/// Runs `$function::<S>` on the arguments with the vectors `S` of `$isa`, in a function that enables its instructions.
///
/// `$isa` must come from [`OpsIsa::best`] or [`OpsIsa::all`]: only then does the processor have the instructions.
macro_rules! on_isa {
    ($isa:expr, $function:ident ( $($name:ident : $type:ty),* $(,)? ) using ( $($argument:expr),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($name: $type),*) {
            $function::<$crate::simd::Avx2>($($name),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn avx512($($name: $type),*) {
            $function::<$crate::simd::Avx512<false>>($($name),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        unsafe fn avx512_bf16($($name: $type),*) {
            $function::<$crate::simd::Avx512<true>>($($name),*)
        }
        match $isa {
            $crate::simd::OpsIsa::Portable => $function::<$crate::simd::Portable>($($argument),*),
            // SAFETY: an `OpsIsa` other than `Portable` is only ever made where the processor has its instructions.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::OpsIsa::Avx2 => unsafe { avx2($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::OpsIsa::Avx512 => unsafe { avx512($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::OpsIsa::Avx512Bf16 => unsafe { avx512_bf16($($argument),*) },
        }
    }};
}
pub(crate) use on_isa;

/// Vectors of sixteen f32.
pub(crate) trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Do sixteen vectors of sums fit the registers, or four?
    const WIDE: bool;

    fn splat(x: f32) -> Self::V;
    fn load(x: &[f32; LANES]) -> Self::V;
    fn store(v: Self::V, out: &mut [f32; LANES]);
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the processor can.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(a: Self::V, b: Self::V) -> Self::V;
    fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The nearest whole numbers.
    fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` from -126 to 127.
    fn scale(a: Self::V, n: Self::V) -> Self::V;
    /// `value` where `a >= limit`, else 0.
    fn where_at_least(a: Self::V, limit: Self::V, value: Self::V) -> Self::V;
    /// `above` where `a > limit`, else `otherwise`: also where one of them is no number.
    fn where_above(a: Self::V, limit: Self::V, above: Self::V, otherwise: Self::V) -> Self::V;
    /// The same number with the sign of `sign`.
    fn with_sign(a: Self::V, sign: Self::V) -> Self::V;
    /// Adds to each of `sums` the product of two bfloat16 numbers in `a` with those in a word of `b`.
    fn dot_bf16(sums: Self::V, a: u32, b: &[u32; LANES]) -> Self::V;
    /// Asks for words that are read soon, where the processor can be asked.
    #[inline(always)]
    fn fetch(_: &[u32; LANES]) {}
    /// Rounds to bfloat16, ties to even.
    fn store_bf16(v: Self::V, out: &mut [u16; LANES]);
    /// The first four words of each of sixteen rows, which begin `stride` bytes from each other, word by word: `[4, 16]` words. The bits of `flip`
    /// are turned round in each.
    ///
    /// # Panics
    /// If the rows lie beyond the end of `rows`.
    fn transpose(rows: &[u8], stride: usize, flip: u32, out: &mut [u8; 16 * LANES]);
    /// Copies bytes past the caches where the processor can: lines that are written whole and not read soon are then not
    /// fetched before. Then see [`Simd::fence`].
    ///
    /// # Panics
    /// If they are not of the same length.
    #[inline(always)]
    fn copy_past(from: &[u8], out: &mut [u8]) {
        out.copy_from_slice(from);
    }
    /// What [`Simd::copy_past`] wrote before it is there before anything that is written after it, for other threads too.
    #[inline(always)]
    fn fence() {}

    /// The sum of all lanes, in a tree.
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        Self::store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        Self::store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// `e^x`, with a relative error below 2e-7; 0 below -87 and, above 88, `e^88`. Exactly 1 at 0.
    ///
    /// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then a polynomial of `r` and a scaling by `2^n`.
    #[inline(always)]
    fn exp(x: Self::V) -> Self::V {
        const LN_2_HIGH: f32 = 0.693_359_4; // its low bits are zero, so that n * LN_2_HIGH is exact
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        let lowest = Self::splat(-87.0);
        let bounded = Self::min(Self::max(x, lowest), Self::splat(88.0));
        let n = Self::round(Self::mul(bounded, Self::splat(std::f32::consts::LOG2_E)));
        let r = Self::fma(n, Self::splat(-LN_2_HIGH), bounded);
        let r = Self::fma(n, Self::splat(-LN_2_LOW), r);
        let mut sum = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = Self::fma(sum, r, Self::splat(coefficient));
        }
        Self::where_at_least(x, lowest, Self::scale(sum, n))
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    fn sigmoid(x: Self::V) -> Self::V {
        let one = Self::splat(1.0);
        Self::div(one, Self::add(one, Self::exp(Self::sub(Self::splat(0.0), x))))
    }

    /// `tanh(x)`, with an absolute error below 2e-7.
    #[inline(always)]
    fn tanh(x: Self::V) -> Self::V {
        let two = Self::splat(2.0);
        Self::sub(Self::mul(two, Self::sigmoid(Self::mul(two, x))), Self::splat(1.0))
    }
}

/// Plain arithmetic on arrays, which the compiler puts into the vectors of its target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

/// Rounds to bfloat16, ties to even; what is no number stays none.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn store(v: Self::V, out: &mut [f32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without an instruction for it `mul_add` is a call into the C library.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            each(|i| a[i].mul_add(b[i], c[i]))
        } else {
            each(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(a: Self::V) -> Self::V {
        // Adding and subtracting 1.5 * 2^23 leaves the nearest whole number of what lies below 2^22.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (a[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn scale(a: Self::V, n: Self::V) -> Self::V {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn where_at_least(a: Self::V, limit: Self::V, value: Self::V) -> Self::V {
        each(|i| if a[i] >= limit[i] { value[i] } else { 0.0 })
    }
    #[inline(always)]
    fn where_above(a: Self::V, limit: Self::V, above: Self::V, otherwise: Self::V) -> Self::V {
        each(|i| if a[i] > limit[i] { above[i] } else { otherwise[i] })
    }
    #[inline(always)]
    fn with_sign(a: Self::V, sign: Self::V) -> Self::V {
        each(|i| a[i].copysign(sign[i]))
    }
    #[inline(always)]
    fn dot_bf16(sums: Self::V, a: u32, b: &[u32; LANES]) -> Self::V {
        let (low, high) = (f32::from_bits(a << 16), f32::from_bits(a & 0xffff_0000));
        let sums = Self::fma([low; LANES], each(|i| f32::from_bits(b[i] << 16)), sums);
        Self::fma([high; LANES], each(|i| f32::from_bits(b[i] & 0xffff_0000)), sums)
    }
    #[inline(always)]
    fn store_bf16(v: Self::V, out: &mut [u16; LANES]) {
        for (out, x) in out.iter_mut().zip(v) {
            *out = to_bf16(x);
        }
    }
    #[inline(always)]
    fn transpose(rows: &[u8], stride: usize, flip: u32, out: &mut [u8; 16 * LANES]) {
        let lines = out.as_chunks_mut::<{ 4 * LANES }>().0;
        for row in 0..LANES {
            let words = rows[row * stride..][..16].as_chunks::<4>().0;
            for (word, line) in words.iter().zip(lines.iter_mut()) {
                line[4 * row..][..4].copy_from_slice(&(u32::from_ne_bytes(*word) ^ flip).to_ne_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<S: Simd>(x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) {
        let v = S::load(x);
        S::store(S::exp(v), &mut out[0]);
        S::store(S::tanh(v), &mut out[1]);
        S::store(S::splat(S::sum(v)), &mut out[2]);
        S::store(S::splat(S::largest(v)), &mut out[3]);
    }

    fn copy_past<S: Simd>(from: &[u8], out: &mut [u8]) {
        S::copy_past(from, out);
        S::fence();
    }

    #[test]
    fn bytes_are_copied_past_the_caches_wherever_they_begin_and_end() {
        let from: Vec<u8> = (0..400u32).map(|i| ((i * 7) >> 1) as u8).collect();
        for isa in OpsIsa::all() {
            for (start, len) in (0..130).flat_map(|start| [0, 1, 31, 63, 64, 65, 127, 128, 200, 270].map(|len| (start, len))) {
                let (from, mut out) = (&from[start / 2..start / 2 + len], vec![0xab; 400]);
                let part = &mut out[start..start + len];
                on_isa!(isa, copy_past(from: &[u8], part: &mut [u8]) using (from, part));
                assert!(out[start..start + len] == *from, "{isa:?}: {len} bytes at {start}");
                assert!(out[..start].iter().chain(&out[start + len..]).all(|byte| *byte == 0xab), "{isa:?}: {len} bytes at {start}");
            }
        }
    }

    #[test]
    fn functions_agree_with_the_library_on_every_instruction_set() {
        for isa in OpsIsa::all() {
            for i in -2000..2000 {
                let x: [f32; LANES] = std::array::from_fn(|lane| (i as f32 + lane as f32 / 16.0) * 0.04);
                let mut out = [[0.0; LANES]; 4];
                on_isa!(isa, map(x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) using (&x, &mut out));
                for lane in 0..LANES {
                    let (got, want) = (f64::from(out[0][lane]), f64::from(x[lane]).exp());
                    assert!((got - want).abs() <= want * 2e-7, "{isa:?}: exp({}) is {got}, not {want}", x[lane]);
                    let error = f64::from(out[1][lane]) - f64::from(x[lane]).tanh();
                    assert!(error.abs() < 3e-7, "{isa:?}: tanh({}) is {error} off", x[lane]);
                }
                let sum: f32 = x.iter().sum();
                assert!((out[2][0] - sum).abs() <= 1e-5 * (1.0 + sum.abs()), "{isa:?}");
                assert_eq!(out[3][0], x[LANES - 1]);
            }
            let mut out = [[0.0; LANES]; 4];
            let x = [f32::NEG_INFINITY; LANES];
            on_isa!(isa, map(x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) using (&x, &mut out));
            assert_eq!(out[0], [0.0; LANES]);
            let x = [0.0; LANES];
            on_isa!(isa, map(x: &[f32; LANES], out: &mut [[f32; LANES]; 4]) using (&x, &mut out));
            assert_eq!(out[0], [1.0; LANES]);
        }
    }

    fn bf16<S: Simd>(a: &[f32; LANES], b: &[u32; LANES], out: &mut [f32; LANES]) {
        let mut words = [0u16; LANES];
        S::store_bf16(S::load(a), &mut words);
        let word = u32::from(words[0]) | u32::from(words[1]) << 16;
        S::store(S::dot_bf16(S::splat(0.5), word, b), out);
    }

    fn rounded<S: Simd>(x: &[f32; LANES], out: &mut [u16; LANES]) {
        S::store_bf16(S::load(x), out);
    }

    #[test]
    fn bfloat16_is_rounded_alike_on_every_instruction_set() {
        let mut bits = 1u32;
        for round in 0..20_000 {
            let x: [f32; LANES] = std::array::from_fn(|_| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(if round % 2 == 0 { bits } else { bits & 0xffff_8000 }) // the other half: ties
            });
            // The instruction of AVX-512 takes subnormal numbers for zero.
            let x = x.map(|x| if x.is_subnormal() { 0.0 } else { x });
            for isa in OpsIsa::all() {
                let mut out = [0u16; LANES];
                on_isa!(isa, rounded(x: &[f32; LANES], out: &mut [u16; LANES]) using (&x, &mut out));
                assert_eq!(out, x.map(to_bf16), "{isa:?} {x:?}");
            }
        }
    }

    #[test]
    fn products_of_bfloat16_pairs_are_what_they_should_be() {
        for isa in OpsIsa::all() {
            let a: [f32; LANES] = std::array::from_fn(|i| 1.0 + i as f32 / 128.0);
            let b: [u32; LANES] = std::array::from_fn(|i| u32::from(to_bf16(i as f32)) | u32::from(to_bf16(2.0)) << 16);
            let mut out = [0.0; LANES];
            on_isa!(isa, bf16(a: &[f32; LANES], b: &[u32; LANES], out: &mut [f32; LANES]) using (&a, &b, &mut out));
            let want: [f32; LANES] = std::array::from_fn(|i| 0.5 + i as f32 + 2.0 * (1.0 + 1.0 / 128.0));
            assert_eq!(out, want, "{isa:?}");
        }
    }
}
