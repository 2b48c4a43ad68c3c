//! Formats with blocks of 256 columns.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a tile")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use std::arch::x86_64::*;

use super::blocks32::{iq4, nibbles};
use super::{AND_OR, Blocks, halves, load, spread};
use crate::matrix::layout::TILE_ROWS;
use crate::rows::Block256;

/// Where a [`Block256`] has its sums and its scale.
const SUMS16: usize = 256;
const SUMS32: usize = 288;
const SCALE: usize = 304;
const ROW256: usize = size_of::<Block256>();

/// Adds `scale * (d * sum - dmin * min)` to each row.
#[inline(always)]
unsafe fn finish<const M: usize>(x: *const u8, acc: &mut [__m512; M], value: impl Fn(usize) -> __m512) {
    for (m, acc) in acc.iter_mut().enumerate() {
        // SAFETY: row `m` has a scale.
        *acc = unsafe { _mm512_fmadd_ps(value(m), _mm512_set1_ps(x.add(m * ROW256 + SCALE).cast::<f32>().read()), *acc) };
    }
}

/// Scales (or minima), in pairs of 16 bits, times the sums at `at` of each row.
#[inline(always)]
unsafe fn times_sums<const M: usize, const N: usize>(x: *const u8, at: usize, pair: impl Fn(usize) -> __m512i) -> [__m512i; M] {
    // SAFETY: each row has `2 * N` sums at `at`.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); M];
        for p in 0..N {
            let pair = pair(p);
            for m in 0..M {
                sums[m] = _mm512_dpwssd_epi32(sums[m], pair, spread(x, m * ROW256 + at + 4 * p));
            }
        }
        sums
    }
}

/// 32 bytes at `t + at` as signed numbers of 16 bits.
#[inline(always)]
unsafe fn signed_pairs(t: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's tile has these bytes.
    unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(t.add(at).cast())) }
}

/// As [`signed_pairs`], without sign.
#[inline(always)]
unsafe fn unsigned_pairs(t: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller's tile has these bytes.
    unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(t.add(at).cast())) }
}

/// The first and the second of each pair of 16 bits, as 32 bits.
#[inline(always)]
unsafe fn split(pairs: __m512i) -> [__m512i; 2] {
    // SAFETY: no memory is touched.
    unsafe { [_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)), _mm512_srai_epi32::<16>(pairs)] }
}

/// Adds `a * scale[0] + b * scale[1]` to the sums.
#[inline(always)]
unsafe fn scaled<const M: usize>(sums: &mut [__m512i; M], parts: &[[__m512i; M]; 2], scales: [__m512i; 2]) {
    for m in 0..M {
        // SAFETY: no memory is touched.
        unsafe {
            let both = _mm512_add_epi32(_mm512_mullo_epi32(parts[0][m], scales[0]), _mm512_mullo_epi32(parts[1][m], scales[1]));
            sums[m] = _mm512_add_epi32(sums[m], both);
        }
    }
}

/// Q4_K, and with `FIFTH` bits Q5_K.
pub(super) struct Q45K<const FIFTH: bool>;

impl<const FIFTH: bool> Blocks for Q45K<FIFTH> {
    const TILE: usize = if FIFTH { 2880 } else { 2368 };
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let words = if FIFTH { 832 } else { 320 };
            let mut sums = [_mm512_setzero_si512(); M];
            for j in 0..4 {
                let mut parts = [[_mm512_setzero_si512(); M]; 2];
                for w in 0..8 {
                    let word = load(t, words + 64 * (8 * j + w));
                    let mut a = _mm512_and_si512(word, low);
                    let mut b = _mm512_and_si512(_mm512_srli_epi16::<4>(word), low);
                    if FIFTH {
                        // Bits 2j and 2j + 1 to the place of the fifth; turning keeps them in their byte.
                        let (bits, one) = (_mm512_loadu_si512(t.add(320 + 64 * w).cast()), _mm512_set1_epi8(16));
                        a = _mm512_ternarylogic_epi32::<AND_OR>(turn(bits, 2 * j as i32 - 4), one, a);
                        b = _mm512_ternarylogic_epi32::<AND_OR>(turn(bits, 2 * j as i32 - 3), one, b);
                    }
                    for m in 0..M {
                        let at = m * ROW256 + 64 * j + 4 * w;
                        parts[0][m] = _mm512_dpbusd_epi32(parts[0][m], a, spread(x, at));
                        parts[1][m] = _mm512_dpbusd_epi32(parts[1][m], b, spread(x, at + 32));
                    }
                }
                let scale = |s: usize| _mm512_cvtepu8_epi32(_mm_loadu_si128(t.add(64 + 16 * s).cast()));
                scaled(&mut sums, &parts, [scale(2 * j), scale(2 * j + 1)]);
            }
            let mins = times_sums::<M, 4>(x, SUMS32, |p| unsigned_pairs(t, 192 + 32 * p));
            let (d, dmin) = (halves(t, 0), halves(t, 32));
            finish(x, acc, |m| _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(mins[m]), _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums[m]))));
        }
    }
}

/// Turns each lane of 32 bits right by `bits`, which may be negative.
#[inline(always)]
unsafe fn turn(x: __m512i, bits: i32) -> __m512i {
    // SAFETY: no memory is touched.
    unsafe { _mm512_rorv_epi32(x, _mm512_set1_epi32(bits & 31)) }
}

pub(super) struct Q6K;

impl Blocks for Q6K {
    const TILE: usize = 3360;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); M];
            for h in 0..2 {
                sixteens_of_q6k::<M, false>(t, x, h, &mut sums);
                sixteens_of_q6k::<M, true>(t, x, h, &mut sums);
            }
            let zeros = times_sums::<M, 8>(x, SUMS16, |p| signed_pairs(t, 32 + 32 * p));
            let d = halves(t, 0);
            finish(x, acc, |m| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[m], _mm512_slli_epi32::<5>(zeros[m])))));
        }
    }
}

/// The first or the second 16 columns of each quarter of half `h`: a scale for each.
#[inline(always)]
unsafe fn sixteens_of_q6k<const M: usize, const SECOND: bool>(t: *const u8, x: *const u8, h: usize, sums: &mut [__m512i; M]) {
    // SAFETY: a tile and rows of 256 columns, by the caller's contract.
    unsafe {
        let words = t.add(288 + 768 * (2 * h + usize::from(SECOND)));
        let bits: [__m512i; 4] = [load(words, 0), load(words, 64), load(words, 128), load(words, 192)];
        if M < 4 {
            for c in 0..4 {
                sixteen_of_q6k::<M, SECOND>(t, words, x, h, c, bits, sums);
            }
        } else {
            // Written out: in a loop that the compiler does not unroll for every `M`, the accumulators are kept in memory.
            sixteen_of_q6k::<M, SECOND>(t, words, x, h, 0, bits, sums);
            sixteen_of_q6k::<M, SECOND>(t, words, x, h, 1, bits, sums);
            sixteen_of_q6k::<M, SECOND>(t, words, x, h, 2, bits, sums);
            sixteen_of_q6k::<M, SECOND>(t, words, x, h, 3, bits, sums);
        }
    }
}

/// Sixteen columns of quarter `c`: their four low bits are half of each byte of `words`, their two high ones at `2 * c` of those of `bits`.
#[inline(always)]
unsafe fn sixteen_of_q6k<const M: usize, const SECOND: bool>(
    t: *const u8,
    words: *const u8,
    x: *const u8,
    h: usize,
    c: usize,
    bits: [__m512i; 4],
    sums: &mut [__m512i; M],
) {
    // SAFETY: a tile and rows of 256 columns, by the caller's contract.
    unsafe {
        let (low, top) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let mut part = [_mm512_setzero_si512(); M];
        for w in 0..4 {
            let word = load(words, 256 * (1 + c % 2) + 64 * w);
            let word = if c < 2 { word } else { _mm512_srli_epi16::<4>(word) };
            let high = match c {
                0 => _mm512_slli_epi16::<4>(bits[w]),
                1 => _mm512_slli_epi16::<2>(bits[w]),
                2 => bits[w],
                _ => _mm512_srli_epi16::<2>(bits[w]),
            };
            let code = _mm512_ternarylogic_epi32::<AND_OR>(high, top, _mm512_and_si512(word, low));
            for m in 0..M {
                let at = m * ROW256 + 128 * h + 32 * c + 16 * usize::from(SECOND) + 4 * w;
                part[m] = _mm512_dpbusd_epi32(part[m], code, spread(x, at));
            }
        }
        let pairs = signed_pairs(t, 32 + 32 * (4 * h + c));
        let scale = _mm512_srai_epi32::<16>(if SECOND { pairs } else { _mm512_slli_epi32::<16>(pairs) });
        for m in 0..M {
            sums[m] = _mm512_add_epi32(sums[m], _mm512_mullo_epi32(part[m], scale));
        }
    }
}

/// The words of Q2_K and Q3_K: four times 2 bits, each 16 columns with a scale of their own. `code` makes codes from word `w` of half `h`
/// and its quarter `s`, `pairs` gives the scales of a pair of 16.
#[inline(always)]
unsafe fn quarters<const M: usize>(
    x: *const u8,
    code: impl Fn(usize, usize, usize) -> __m512i,
    pairs: impl Fn(usize) -> __m512i,
) -> [__m512i; M] {
    // SAFETY: rows of 256 columns, by the caller's contract.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); M];
        for h in 0..2 {
            for s in 0..4 {
                // One loop for each 16 columns: with the accumulators of both in one, the compiler keeps them in memory.
                let mut parts = [[_mm512_setzero_si512(); M]; 2];
                for w in 0..4 {
                    let code = code(h, s, w);
                    for m in 0..M {
                        parts[0][m] = _mm512_dpbusd_epi32(parts[0][m], code, spread(x, m * ROW256 + 128 * h + 32 * s + 4 * w));
                    }
                }
                for w in 4..8 {
                    let code = code(h, s, w);
                    for m in 0..M {
                        parts[1][m] = _mm512_dpbusd_epi32(parts[1][m], code, spread(x, m * ROW256 + 128 * h + 32 * s + 4 * w));
                    }
                }
                scaled(&mut sums, &parts, split(pairs(4 * h + s)));
            }
        }
        sums
    }
}

pub(super) struct Q3K;

impl Blocks for Q3K {
    const TILE: usize = 1824;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let (two, third) = (_mm512_set1_epi8(3), _mm512_set1_epi8(4));
            let code = |h: usize, s: usize, w: usize| {
                let word = load(t, 800 + 64 * (8 * h + w));
                let bits = load(t, 288 + 64 * w);
                let low = _mm512_and_si512(turn(word, 2 * s as i32), two);
                _mm512_ternarylogic_epi32::<AND_OR>(turn(bits, (4 * h + s) as i32 - 2), third, low)
            };
            let sums = quarters::<M>(x, code, |p| signed_pairs(t, 32 + 32 * p));
            let zeros = times_sums::<M, 8>(x, SUMS16, |p| signed_pairs(t, 32 + 32 * p));
            let d = halves(t, 0);
            finish(x, acc, |m| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[m], _mm512_slli_epi32::<2>(zeros[m])))));
        }
    }
}

pub(super) struct Q2K;

impl Blocks for Q2K {
    const TILE: usize = 1344;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let two = _mm512_set1_epi8(3);
            let code = |h: usize, s: usize, w: usize| {
                let word = load(t, 320 + 64 * (8 * h + w));
                _mm512_and_si512(turn(word, 2 * s as i32), two)
            };
            let scale = _mm512_set1_epi16(15);
            let sums = quarters::<M>(x, code, |p| _mm512_and_si512(unsigned_pairs(t, 64 + 32 * p), scale));
            let mins = times_sums::<M, 8>(x, SUMS16, |p| _mm512_srli_epi16::<4>(unsigned_pairs(t, 64 + 32 * p)));
            let (d, dmin) = (halves(t, 0), halves(t, 32));
            finish(x, acc, |m| _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(mins[m]), _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums[m]))));
        }
    }
}

pub(super) struct Iq4Xs;

impl Blocks for Iq4Xs {
    const TILE: usize = 138 * TILE_ROWS;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); M];
            for pair in 0..4 {
                let mut parts = [[_mm512_setzero_si512(); M]; 2];
                for (i, part) in parts.iter_mut().enumerate() {
                    let block = 2 * pair + i;
                    let codes = iq4(nibbles(t, 160 + 256 * block));
                    for m in 0..M {
                        for w in 0..8 {
                            part[m] = _mm512_dpbusd_epi32(part[m], codes[w], spread(x, m * ROW256 + 32 * block + 4 * w));
                        }
                    }
                }
                scaled(&mut sums, &parts, split(signed_pairs(t, 32 + 32 * pair)));
            }
            let zeros = times_sums::<M, 4>(x, SUMS32, |p| signed_pairs(t, 32 + 32 * p));
            let d = halves(t, 0);
            finish(x, acc, |m| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[m], _mm512_slli_epi32::<7>(zeros[m])))));
        }
    }
}
