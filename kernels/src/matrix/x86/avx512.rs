//! Products with byte dot products of 512 bits (AVX-512 VNNI): a register holds four columns of the 16 rows of a tile, weights as bytes
//! without sign, activations broadcast. What a weight's code lacks (a zero point, a minimum) is added per block from the sums of the
//! activations, so that the inner loop is one load, a few bit operations, and one instruction per row of activations.
//!
//! Sums of whole numbers are exact in any order; the few operations on floats come in one order for any number of rows.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

mod blocks256;
mod blocks32;

use crate::format::Format;
use crate::matrix::product::{Kernel, Span};
use blocks32::{Iq4Nl, Of32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use blocks256::{Iq4Xs, Q2K, Q3K, Q6K, Q45K};
use std::arch::x86_64::*;

/// Of three operands: (a and b) or c.
const AND_OR: i32 = 0xEA;

/// How blocks of one format are multiplied. All functions are inlined into one that has the instructions.
trait Blocks {
    /// Bytes of a tile.
    const TILE: usize;
    /// Bytes from a row of activations to the next.
    const ROW: usize;
    /// Adds the product of one block with `M` rows.
    ///
    /// # Safety
    /// `t` is a tile, `x` the block of the first of `M` rows; the machine has the instructions.
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]);
}

/// The kernel for `format`.
pub(super) fn kernel(format: Format) -> Kernel {
    match format {
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4_1 => q4_1,
        Format::Q5_0 => q5_0,
        Format::Q5_1 => q5_1,
        Format::Iq4Nl => iq4_nl,
        Format::Q2K => q2k,
        Format::Q3K => q3k,
        Format::Q4K => q4k,
        Format::Q5K => q5k,
        Format::Q6K => q6k,
        Format::Iq4Xs => iq4_xs,
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!("{format} is dense"),
    }
}

/// Calls `rows::<B, M>` for the span's number of rows, each of which is compiled by itself: sums stay in registers.
macro_rules! for_rows {
    ($rows:ident::<$of:ty>($span:expr)) => {
        match $span.m {
            1 => $rows::<$of, 1>($span),
            2 => $rows::<$of, 2>($span),
            3 => $rows::<$of, 3>($span),
            4 => $rows::<$of, 4>($span),
            5 => $rows::<$of, 5>($span),
            6 => $rows::<$of, 6>($span),
            7 => $rows::<$of, 7>($span),
            _ => $rows::<$of, 8>($span),
        }
    };
}
pub(super) use for_rows;

macro_rules! kernels {
    ($($name:ident: $blocks:ty),*) => { $(
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn $name(span: &Span) {
            // SAFETY: the contract of kernels, passed on.
            unsafe { product::<$blocks>(span) }
        }
    )* };
}
kernels!(
    q8_0: Of32<Q8_0>, q4_0: Of32<Q4_0>, q4_1: Of32<Q4_1>, q5_0: Of32<Q5_0>, q5_1: Of32<Q5_1>, iq4_nl: Of32<Iq4Nl>,
    q2k: Q2K, q3k: Q3K, q4k: Q45K<false>, q5k: Q45K<true>, q6k: Q6K, iq4_xs: Iq4Xs
);

#[inline(always)]
unsafe fn product<B: Blocks>(span: &Span) {
    // SAFETY: the contract of kernels.
    unsafe { for_rows!(rows::<B>(span)) }
}

/// All `M` rows of the span.
#[inline(always)]
unsafe fn rows<B: Blocks, const M: usize>(span: &Span) {
    // SAFETY: the contract of kernels; the mask keeps the stores within the output's row.
    unsafe {
        let mut acc = earlier(span);
        let (mut t, mut x) = (span.tile, span.x);
        for _ in 0..span.n_blocks {
            B::add::<M>(t, x, &mut acc);
            t = t.wrapping_add(B::TILE);
            x = x.wrapping_add(span.step);
        }
        store(span, &acc);
    }
}

/// What the rows of the result begin with.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn earlier<const M: usize>(span: &Span) -> [__m512; M] {
    // SAFETY: `n_out` numbers of each row are ours.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); M];
        if span.add {
            let mask = (u32::MAX >> (32 - span.n_out)) as u16;
            for (m, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_maskz_loadu_ps(mask, span.out.add(m * span.stride));
            }
        }
        acc
    }
}

/// Stores the rows of the result.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn store<const M: usize>(span: &Span, acc: &[__m512; M]) {
    let mask = (u32::MAX >> (32 - span.n_out)) as u16;
    for (m, acc) in acc.iter().enumerate() {
        // SAFETY: `n_out` numbers of this row are ours to write.
        unsafe { _mm512_mask_storeu_ps(span.out.add(m * span.stride), mask, *acc) };
    }
}

/// 64 bytes at `t + at`. There is no hint to fetch those further on: the tiles are one stream, which the processor follows by itself, and
/// on Zen 4 hints took the places of its own and a quarter of the bandwidth.
#[inline(always)]
pub(super) unsafe fn load(t: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's tile has these bytes.
    unsafe { _mm512_loadu_si512(t.add(at).cast()) }
}

/// Four bytes at `x + at`, in all lanes.
#[inline(always)]
unsafe fn spread(x: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's block has these bytes.
    unsafe { _mm512_set1_epi32(x.add(at).cast::<i32>().read_unaligned()) }
}

/// 16 numbers of f16 at `t + at`.
#[inline(always)]
unsafe fn halves(t: *const u8, at: usize) -> __m512 {
    // SAFETY: the caller's tile has these bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(t.add(at).cast())) }
}
