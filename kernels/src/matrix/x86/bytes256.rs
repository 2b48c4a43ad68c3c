//! Products with bytes in registers of 256 bits: eight rows of a tile, four columns each. What stands here is how codes meet activations, with
//! AVX2 alone or with byte dot products, and the loops over blocks and rows; the formats are in [`super::formats256`].
//!
//! Each block of a tile is computed in two halves of eight rows. Sums of whole numbers are exact in any order; the few operations on floats
//! come in one order for any number of rows, and for both kinds of dot products: they give the same bits.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use crate::matrix::product::Span;
use std::arch::x86_64::*;

/// How far ahead of use weights are fetched, in bytes: what memory delivers within its latency.
const AHEAD: usize = 2048;
/// The largest magnitude of an activation.
const X_MAX: usize = 127;

/// How codes of 8 bits are multiplied with activations, four columns to a lane of 32 bits. All functions are inlined into one that has the
/// instructions.
pub(super) trait Dot {
    /// Are bytes that use all 8 bits signed numbers (no zero point needed), rather than numbers with 128 added?
    const SIGNED: bool;

    /// Numbers in lanes of 32 bits, that fit 16 with their sign, as a scale for [`Dot::scaled`].
    unsafe fn scale(lanes: __m256i) -> __m256i;

    /// `start + scale * (codes . x)`, where `x` are `4 * N` activations and codes are at most `MAX`; with a `MAX` of 255 they are
    /// bytes as [`Dot::SIGNED`] says.
    ///
    /// # Safety
    /// `x` has `4 * N` bytes; the machine has the instructions.
    unsafe fn scaled<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8, scale: __m256i) -> __m256i;

    /// `start + codes . x`.
    ///
    /// # Safety
    /// As [`Dot::scaled`].
    unsafe fn sum<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8) -> __m256i;
}

/// AVX2: sums of pairs in 16 bits, added as long as they cannot overflow, then widened by a multiplication with the scale.
pub(super) struct Pairs;

impl Dot for Pairs {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scale(lanes: __m256i) -> __m256i {
        // SAFETY: no memory is touched.
        unsafe { _mm256_blend_epi16::<0xAA>(lanes, _mm256_slli_epi32::<16>(lanes)) }
    }

    #[inline(always)]
    unsafe fn scaled<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8, scale: __m256i) -> __m256i {
        // SAFETY: the contract of `scaled`.
        unsafe {
            let mut sum = start;
            if MAX == 255 {
                // Signed bytes: the sign moves to the activations. 2 * 128 * 127 is below 2^15.
                for i in 0..N {
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(spread(x, 4 * i), codes[i]));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
                }
                return sum;
            }
            // So many sums of pairs fit 16 bits.
            let run = i16::MAX as usize / (2 * MAX * X_MAX);
            let mut i = 0;
            while i < N {
                let mut pairs = _mm256_maddubs_epi16(codes[i], spread(x, 4 * i));
                for j in i + 1..N.min(i + run) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[j], spread(x, 4 * j)));
                }
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
                i += run;
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn sum<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8) -> __m256i {
        // SAFETY: passed on.
        unsafe { Self::scaled::<N, MAX>(start, codes, x, _mm256_set1_epi16(1)) }
    }
}

/// Byte dot products: of AVX-512 if `EVEX`, of AVX-VNNI otherwise. The same operation in two encodings.
pub(super) struct Quads<const EVEX: bool>;

impl<const EVEX: bool> Quads<EVEX> {
    #[inline(always)]
    unsafe fn dot(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the entry that this is inlined into has the instruction; no memory is touched.
        unsafe { if EVEX { _mm256_dpbusd_epi32(sum, codes, x) } else { _mm256_dpbusd_avx_epi32(sum, codes, x) } }
    }
}

impl<const EVEX: bool> Dot for Quads<EVEX> {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn scale(lanes: __m256i) -> __m256i {
        lanes
    }

    #[inline(always)]
    unsafe fn scaled<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8, scale: __m256i) -> __m256i {
        // SAFETY: passed on.
        unsafe { _mm256_add_epi32(start, _mm256_mullo_epi32(Self::sum::<N, MAX>(_mm256_setzero_si256(), codes, x), scale)) }
    }

    #[inline(always)]
    unsafe fn sum<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8) -> __m256i {
        // SAFETY: the contract of `sum`.
        unsafe {
            // Two chains: one would wait for itself.
            let (mut even, mut odd) = (start, _mm256_setzero_si256());
            for i in 0..N {
                if i % 2 == 0 {
                    even = Self::dot(even, codes[i], spread(x, 4 * i));
                } else {
                    odd = Self::dot(odd, codes[i], spread(x, 4 * i));
                }
            }
            _mm256_add_epi32(even, odd)
        }
    }
}

/// Half of a tile: 8 of the 16 numbers of each field.
#[derive(Clone, Copy)]
pub(super) struct Half {
    tile: *const u8,
    half: usize,
}

impl Half {
    /// The words at byte `at` of the tile, and the hint to fetch those further on.
    #[inline(always)]
    pub(super) unsafe fn fetched(self, at: usize) -> __m256i {
        // SAFETY: the caller's tile has these bytes; a prefetch may point anywhere.
        unsafe {
            if self.half == at / 64 % 2 {
                _mm_prefetch::<_MM_HINT_T0>(self.tile.wrapping_add(at + AHEAD).cast());
            }
            self.words(at)
        }
    }

    /// The words at byte `at` of the tile.
    #[inline(always)]
    pub(super) unsafe fn words(self, at: usize) -> __m256i {
        // SAFETY: the caller's tile has these bytes.
        unsafe { _mm256_loadu_si256(self.tile.add(at + 32 * self.half).cast()) }
    }

    /// The numbers of f16 at byte `at`.
    #[inline(always)]
    pub(super) unsafe fn floats(self, at: usize) -> __m256 {
        // SAFETY: the caller's tile has these bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(self.tile.add(at + 16 * self.half).cast())) }
    }

    /// The pairs of signed bytes at `at`, as pairs of 16 bits.
    #[inline(always)]
    pub(super) unsafe fn signed_pairs(self, at: usize) -> __m256i {
        // SAFETY: the caller's tile has these bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(self.tile.add(at + 16 * self.half).cast())) }
    }

    /// As [`Half::signed_pairs`], without sign.
    #[inline(always)]
    pub(super) unsafe fn unsigned_pairs(self, at: usize) -> __m256i {
        // SAFETY: the caller's tile has these bytes.
        unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(self.tile.add(at + 16 * self.half).cast())) }
    }

    /// The bytes at `at`, without sign, as 32 bits.
    #[inline(always)]
    pub(super) unsafe fn bytes(self, at: usize) -> __m256i {
        // SAFETY: the caller's tile has these bytes.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(self.tile.add(at + 8 * self.half).cast())) }
    }
}

/// Four bytes at `x + at`, in all lanes.
#[inline(always)]
pub(super) unsafe fn spread(x: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's block has these bytes.
    unsafe { _mm256_set1_epi32(x.add(at).cast::<i32>().read_unaligned()) }
}

/// How blocks of one format are multiplied. All functions are inlined into one that has the instructions.
pub(super) trait Blocks {
    /// Bytes of a tile.
    const TILE: usize;
    /// Bytes from a row of activations to the next.
    const ROW: usize;
    /// Adds the product of half of one block with `M` rows.
    ///
    /// # Safety
    /// `t` is of a tile, `x` the block of the first of `M` rows; the machine has the instructions of `D`.
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]);
}

/// The kernel, to be inlined into an entry that has the instructions.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn product<B: Blocks, D: Dot>(span: &Span) {
    // SAFETY: the contract of kernels; rows `0..m` are covered once each.
    unsafe {
        match span.m {
            1 => rows::<B, D, 1>(span, 0),
            2 | 3 => rows::<B, D, 2>(span, 0),
            8 => rows::<B, D, 8>(span, 0),
            _ => rows::<B, D, 4>(span, 0),
        }
        if matches!(span.m, 6 | 7) {
            rows::<B, D, 2>(span, 4);
        }
        if matches!(span.m, 3 | 5 | 7) {
            rows::<B, D, 1>(span, span.m - 1);
        }
    }
}

/// Rows `first..first + M` of the span.
#[inline(always)]
unsafe fn rows<B: Blocks, D: Dot, const M: usize>(span: &Span, first: usize) {
    // SAFETY: the contract of kernels.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); M]; 2];
        let (mut tile, mut x) = (span.tile, span.x.add(first * B::ROW));
        for _ in 0..span.n_blocks {
            for half in 0..2 {
                B::add::<D, M>(Half { tile, half }, x, &mut acc[half]);
            }
            tile = tile.wrapping_add(B::TILE);
            x = x.wrapping_add(span.step);
        }
        for m in 0..M {
            store(span, first + m, [acc[0][m], acc[1][m]]);
        }
    }
}

/// Stores row `m` of the result.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn store(span: &Span, m: usize, sums: [__m256; 2]) {
    let out = span.out.wrapping_add(m * span.stride);
    // SAFETY: `n_out` numbers of this row are ours to write, and no more are written.
    unsafe {
        if span.n_out == 16 {
            _mm256_storeu_ps(out, sums[0]);
            _mm256_storeu_ps(out.add(8), sums[1]);
        } else {
            let mut lanes = [0f32; 16];
            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[1]);
            out.copy_from_nonoverlapping(lanes.as_ptr(), span.n_out);
        }
    }
}
