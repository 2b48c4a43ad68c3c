//! Products with floats in registers of 512 bits. Even and odd columns (or pairs of columns) are summed apart and added at the end, whatever
//! the number of rows: one chain of additions would wait for itself.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::avx512::{earlier, for_rows, load, store};
use crate::format::Format;
use crate::matrix::product::{Kernel, Span};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

/// How one column (of BF16: a pair of columns) is multiplied. All functions are inlined into one that has the instructions.
trait Column {
    const TILE: usize;
    /// The weights of the 16 rows.
    unsafe fn weights(t: *const u8) -> __m512i;
    /// Adds their product with the four bytes `x`.
    unsafe fn add(acc: __m512, w: __m512i, x: i32) -> __m512;
}

/// The kernel for `format`.
pub(super) fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => f32,
        Format::F16 => f16,
        _ if is_x86_feature_detected!("avx512bf16") => bf16,
        _ => bf16_wide,
    }
}

macro_rules! kernels {
    ($($name:ident: $column:ty, $features:literal;)*) => { $(
        #[target_feature(enable = $features)]
        unsafe fn $name(span: &Span) {
            // SAFETY: the contract of kernels, passed on.
            unsafe { product::<$column>(span) }
        }
    )* };
}
kernels! {
    f32: F32, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
    f16: F16, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
    bf16: Bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c";
    bf16_wide: Bf16Wide, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
}

#[inline(always)]
unsafe fn product<C: Column>(span: &Span) {
    // SAFETY: the contract of kernels.
    unsafe { for_rows!(rows::<C>(span)) }
}

#[inline(always)]
unsafe fn rows<C: Column, const M: usize>(span: &Span) {
    // SAFETY: the contract of kernels: `n_blocks` columns of tiles and of each row.
    unsafe {
        let (mut even, mut odd) = ([_mm512_setzero_ps(); M], [_mm512_setzero_ps(); M]);
        let (mut t, mut x) = (span.tile, span.x.cast::<i32>());
        let step = span.step / 4;
        for _ in 0..span.n_blocks / 2 {
            let (w0, w1) = (C::weights(t), C::weights(t.add(C::TILE)));
            for m in 0..M {
                even[m] = C::add(even[m], w0, x.add(m).read());
                odd[m] = C::add(odd[m], w1, x.add(step + m).read());
            }
            t = t.wrapping_add(2 * C::TILE);
            x = x.wrapping_add(2 * step);
        }
        if span.n_blocks % 2 == 1 {
            let w = C::weights(t);
            for m in 0..M {
                even[m] = C::add(even[m], w, x.add(m).read());
            }
        }
        let mut sums = earlier::<M>(span);
        for m in 0..M {
            sums[m] = _mm512_add_ps(sums[m], _mm512_add_ps(even[m], odd[m]));
        }
        store(span, &sums);
    }
}

struct F32;

impl Column for F32 {
    const TILE: usize = 64;

    #[inline(always)]
    unsafe fn weights(t: *const u8) -> __m512i {
        // SAFETY: a tile of this format.
        unsafe { load(t, 0) }
    }

    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512i, x: i32) -> __m512 {
        // SAFETY: no memory is touched.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(_mm512_set1_epi32(x)), acc) }
    }
}

struct F16;

impl Column for F16 {
    const TILE: usize = 32;

    #[inline(always)]
    unsafe fn weights(t: *const u8) -> __m512i {
        // SAFETY: a tile of this format.
        unsafe { _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256(t.cast()))) }
    }

    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512i, x: i32) -> __m512 {
        // SAFETY: no memory is touched.
        unsafe { F32::add(acc, w, x) }
    }
}

/// Pairs of bf16, with the instruction for them.
struct Bf16;

impl Column for Bf16 {
    const TILE: usize = 64;

    #[inline(always)]
    unsafe fn weights(t: *const u8) -> __m512i {
        // SAFETY: a tile of this format.
        unsafe { load(t, 0) }
    }

    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512i, x: i32) -> __m512 {
        // SAFETY: both are 64 bytes of any bits; no memory is touched.
        unsafe {
            _mm512_dpbf16_ps(
                acc,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x)),
            )
        }
    }
}

/// Pairs of bf16 on machines without it: two multiplications of f32.
struct Bf16Wide;

impl Column for Bf16Wide {
    const TILE: usize = 64;

    #[inline(always)]
    unsafe fn weights(t: *const u8) -> __m512i {
        // SAFETY: a tile of this format.
        unsafe { load(t, 0) }
    }

    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512i, x: i32) -> __m512 {
        // SAFETY: no memory is touched.
        unsafe {
            let acc = F32::add(acc, _mm512_slli_epi32::<16>(w), x << 16);
            F32::add(acc, _mm512_and_si512(w, _mm512_set1_epi32(-65536)), x & -65536)
        }
    }
}
