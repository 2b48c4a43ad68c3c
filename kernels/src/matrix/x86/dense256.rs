//! Products with floats in registers of 256 bits, two for the 16 rows of a tile. Even and odd columns are summed apart and added at the end,
//! whatever the number of rows: one chain of additions would wait for itself.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::bytes256::store;
use crate::format::Format;
use crate::matrix::product::{Kernel, Span};
use std::arch::x86_64::*;

/// How far ahead of use weights are fetched, in bytes.
const AHEAD: usize = 2048;

/// Sixteen numbers.
type Two = [__m256; 2];

/// How two neighbouring columns are multiplied. All functions are inlined into one that has the instructions.
trait Columns {
    /// Bytes of a tile.
    const TILE: usize;
    /// Tiles of two columns.
    const TILES: usize;
    /// The weights of both columns; if there is no `second`, its are 0.
    unsafe fn weights(t: *const u8, second: bool) -> [Two; 2];
    /// The activations of both columns, the second block `step` bytes on; if there is no `second`, it is 0.
    unsafe fn numbers(x: *const u8, step: usize, second: bool) -> Two;
}

/// The kernel for `format`.
pub(super) fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => f32,
        Format::F16 => f16,
        _ => bf16,
    }
}

macro_rules! kernels {
    ($($name:ident: $columns:ty;)*) => { $(
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(span: &Span) {
            // SAFETY: the contract of kernels, passed on.
            unsafe { product::<$columns>(span) }
        }
    )* };
}
kernels! {
    f32: F32;
    f16: F16;
    bf16: Bf16;
}

/// Three rows at once: their twelve sums, two weights and an activation fill the registers.
#[inline(always)]
unsafe fn product<C: Columns>(span: &Span) {
    // SAFETY: the contract of kernels; rows `0..m` are covered once each.
    unsafe {
        match span.m {
            1 => rows::<C, 1>(span, 0),
            2 | 4 => rows::<C, 2>(span, 0),
            _ => rows::<C, 3>(span, 0),
        }
        match span.m {
            4 => rows::<C, 2>(span, 2),
            5 => rows::<C, 2>(span, 3),
            6 => rows::<C, 3>(span, 3),
            7 => {
                rows::<C, 2>(span, 3);
                rows::<C, 2>(span, 5);
            }
            8 => {
                rows::<C, 3>(span, 3);
                rows::<C, 2>(span, 6);
            }
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn rows<C: Columns, const M: usize>(span: &Span, first: usize) {
    // SAFETY: the contract of kernels: `n_blocks` tiles, and as many blocks of each row.
    unsafe {
        let mut sums = [[[_mm256_setzero_ps(); 2]; 2]; M];
        let (mut t, mut x) = (span.tile, span.x.add(first * 4));
        let mut add = |t: *const u8, x: *const u8, second: bool| {
            let w = C::weights(t, second);
            for m in 0..M {
                let x = C::numbers(x.add(4 * m), span.step, second);
                for parity in 0..2 {
                    for half in 0..2 {
                        sums[m][parity][half] = _mm256_fmadd_ps(w[parity][half], x[parity], sums[m][parity][half]);
                    }
                }
            }
        };
        for _ in 0..span.n_blocks / C::TILES {
            _mm_prefetch::<_MM_HINT_T0>(t.wrapping_add(AHEAD).cast());
            if C::TILES * C::TILE > 64 {
                _mm_prefetch::<_MM_HINT_T0>(t.wrapping_add(AHEAD + 64).cast());
            }
            add(t, x, true);
            t = t.wrapping_add(C::TILES * C::TILE);
            x = x.wrapping_add(C::TILES * span.step);
        }
        if span.n_blocks % C::TILES == 1 {
            add(t, x, false);
        }
        for m in 0..M {
            let [even, odd] = sums[m];
            store(span, first + m, [_mm256_add_ps(even[0], odd[0]), _mm256_add_ps(even[1], odd[1])]);
        }
    }
}

/// The floats at `x` and `step` bytes on, each in all lanes.
#[inline(always)]
unsafe fn floats(x: *const u8, step: usize, second: bool) -> Two {
    // SAFETY: the contract of `numbers`.
    unsafe {
        let next = if second { x.add(step).cast::<f32>().read() } else { 0.0 };
        [_mm256_set1_ps(x.cast::<f32>().read()), _mm256_set1_ps(next)]
    }
}

struct F32;

impl Columns for F32 {
    const TILE: usize = 64;
    const TILES: usize = 2;

    #[inline(always)]
    unsafe fn weights(t: *const u8, second: bool) -> [Two; 2] {
        // SAFETY: one tile of this format, or two.
        unsafe {
            let load = |at: usize| _mm256_loadu_ps(t.add(at).cast());
            let zero = _mm256_setzero_ps();
            [[load(0), load(32)], if second { [load(64), load(96)] } else { [zero; 2] }]
        }
    }

    #[inline(always)]
    unsafe fn numbers(x: *const u8, step: usize, second: bool) -> Two {
        // SAFETY: passed on.
        unsafe { floats(x, step, second) }
    }
}

struct F16;

impl Columns for F16 {
    const TILE: usize = 32;
    const TILES: usize = 2;

    #[inline(always)]
    unsafe fn weights(t: *const u8, second: bool) -> [Two; 2] {
        // SAFETY: one tile of this format, or two.
        unsafe {
            let load = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(t.add(at).cast()));
            let zero = _mm256_setzero_ps();
            [[load(0), load(16)], if second { [load(32), load(48)] } else { [zero; 2] }]
        }
    }

    #[inline(always)]
    unsafe fn numbers(x: *const u8, step: usize, second: bool) -> Two {
        // SAFETY: passed on.
        unsafe { floats(x, step, second) }
    }
}

/// Pairs of bf16; an odd last column has a zero beside it.
struct Bf16;

/// The first and the second of each pair, as f32.
#[inline(always)]
unsafe fn halves(words: __m256i) -> Two {
    // SAFETY: no memory is touched.
    unsafe {
        let second = _mm256_and_si256(words, _mm256_set1_epi32(-65536));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(second)]
    }
}

impl Columns for Bf16 {
    const TILE: usize = 64;
    const TILES: usize = 1;

    #[inline(always)]
    unsafe fn weights(t: *const u8, _: bool) -> [Two; 2] {
        // SAFETY: a tile of this format.
        unsafe {
            let (a, b) = (halves(_mm256_loadu_si256(t.cast())), halves(_mm256_loadu_si256(t.add(32).cast())));
            [[a[0], b[0]], [a[1], b[1]]]
        }
    }

    #[inline(always)]
    unsafe fn numbers(x: *const u8, _: usize, _: bool) -> Two {
        // SAFETY: a block of two numbers.
        unsafe { halves(_mm256_set1_epi32(x.cast::<i32>().read())) }
    }
}
