//! Products with byte dot products of 512 bits (AVX-512 VNNI): a register holds four columns of the 16 rows of a tile, weights as bytes
//! without sign, activations broadcast. What a weight's code lacks (a zero point, a minimum) is added per block from the sums of the
//! activations, so that the inner loop is one load, a few bit operations, and one instruction per row of activations.
//!
//! Sums of whole numbers are exact in any order; the few operations on floats come in one order for any number of rows.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use crate::format::Format;
use crate::matrix::layout::TILE_ROWS;
use crate::matrix::product::{Kernel, Span};
use crate::rows::{Block32, Block256};
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
    // SAFETY: the contract of kernels; rows `0..m` are covered once each.
    unsafe {
        match span.m {
            1 => rows::<B, 1>(span, 0),
            2 => rows::<B, 2>(span, 0),
            3 => rows::<B, 3>(span, 0),
            8 => rows::<B, 8>(span, 0),
            m => {
                rows::<B, 4>(span, 0);
                match m {
                    5 => rows::<B, 1>(span, 4),
                    6 => rows::<B, 2>(span, 4),
                    7 => rows::<B, 3>(span, 4),
                    _ => {}
                }
            }
        }
    }
}

/// Rows `first..first + M` of the span.
#[inline(always)]
unsafe fn rows<B: Blocks, const M: usize>(span: &Span, first: usize) {
    // SAFETY: the contract of kernels; the mask keeps the stores within the output's row.
    unsafe {
        let mut acc = earlier(span, first);
        let (mut t, mut x) = (span.tile, span.x.add(first * B::ROW));
        for _ in 0..span.n_blocks {
            B::add::<M>(t, x, &mut acc);
            t = t.wrapping_add(B::TILE);
            x = x.wrapping_add(span.step);
        }
        store(span, first, &acc);
    }
}

/// What rows `first..first + M` of the result begin with.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn earlier<const M: usize>(span: &Span, first: usize) -> [__m512; M] {
    // SAFETY: `n_out` numbers of each row are ours.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); M];
        if span.add {
            let mask = (u32::MAX >> (32 - span.n_out)) as u16;
            for (m, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_maskz_loadu_ps(mask, span.out.add((first + m) * span.stride));
            }
        }
        acc
    }
}

/// Stores rows `first..first + M` of the result.
///
/// # Safety
/// The contract of kernels.
#[inline(always)]
pub(super) unsafe fn store<const M: usize>(span: &Span, first: usize, acc: &[__m512; M]) {
    let mask = (u32::MAX >> (32 - span.n_out)) as u16;
    for (m, acc) in acc.iter().enumerate() {
        // SAFETY: `n_out` numbers of this row are ours to write.
        unsafe { _mm512_mask_storeu_ps(span.out.add((first + m) * span.stride), mask, *acc) };
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

/// The values of IQ4 with 128 added, for codes.
#[inline(always)]
unsafe fn iq4(mut codes: [__m512i; 8]) -> [__m512i; 8] {
    const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
    // SAFETY: reads the constant.
    let table = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE.as_ptr().cast())) };
    for code in &mut codes {
        // SAFETY: no memory is touched.
        *code = unsafe { _mm512_shuffle_epi8(table, *code) };
    }
    codes
}

/// A format with blocks of 32.
trait Codes {
    const TILE: usize;
    /// `Block32::zero` is shifted right by this to give the zero point's part; `None`: there is a minimum instead.
    const ZERO: Option<u32>;
    /// The codes of columns `4 * i..` of all rows.
    unsafe fn codes(t: *const u8) -> [__m512i; 8];
}

struct Of32<C>(C);

impl<C: Codes> Blocks for Of32<C> {
    const TILE: usize = C::TILE;
    const ROW: usize = size_of::<Block32>();

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let codes = C::codes(t);
            let d = halves(t, 0);
            for m in 0..M {
                let x = x.add(m * Self::ROW);
                let mut even = match C::ZERO {
                    Some(0) => spread(x, 36),
                    Some(shift) => _mm512_sra_epi32(spread(x, 36), _mm_cvtsi32_si128(shift as i32)),
                    None => _mm512_setzero_si512(),
                };
                let mut odd = _mm512_setzero_si512();
                for i in 0..8 {
                    if M < 4 && i % 2 == 1 {
                        odd = _mm512_dpbusd_epi32(odd, codes[i], spread(x, 4 * i));
                    } else {
                        even = _mm512_dpbusd_epi32(even, codes[i], spread(x, 4 * i));
                    }
                }
                if M < 4 {
                    even = _mm512_add_epi32(even, odd);
                }
                let x_d = _mm512_set1_ps(x.add(32).cast::<f32>().read());
                acc[m] = _mm512_fmadd_ps(d, _mm512_mul_ps(_mm512_cvtepi32_ps(even), x_d), acc[m]);
                if C::ZERO.is_none() {
                    acc[m] = _mm512_fmadd_ps(halves(t, 32), _mm512_set1_ps(x.add(40).cast::<f32>().read()), acc[m]);
                }
            }
        }
    }
}

/// The codes of 4 bits in the 4 words at `t + at`.
#[inline(always)]
unsafe fn nibbles(t: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let w = [load(t, at), load(t, at + 64), load(t, at + 128), load(t, at + 192)];
        let high = |w| _mm512_and_si512(_mm512_srli_epi16::<4>(w), low);
        let low = |w| _mm512_and_si512(w, low);
        [low(w[0]), low(w[1]), low(w[2]), low(w[3]), high(w[0]), high(w[1]), high(w[2]), high(w[3])]
    }
}

/// As [`nibbles`], with the fifth bits before them.
#[inline(always)]
unsafe fn fifths(t: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let (bits, one) = (load(t, at), _mm512_set1_epi8(16));
        let n = nibbles(t, at + 64);
        [
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<4>(bits), one, n[0]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<3>(bits), one, n[1]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<2>(bits), one, n[2]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<1>(bits), one, n[3]),
            _mm512_ternarylogic_epi32::<AND_OR>(bits, one, n[4]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<1>(bits), one, n[5]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<2>(bits), one, n[6]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<3>(bits), one, n[7]),
        ]
    }
}

macro_rules! codes {
    ($($name:ident, $tile:expr, $zero:expr, |$t:ident| $codes:expr;)*) => { $(
        struct $name;
        impl Codes for $name {
            const TILE: usize = $tile;
            const ZERO: Option<u32> = $zero;
            #[inline(always)]
            unsafe fn codes($t: *const u8) -> [__m512i; 8] {
                // SAFETY: a tile of this format.
                unsafe { $codes }
            }
        }
    )* };
}
codes! {
    Q8_0, 544, Some(0), |t| std::array::from_fn(|i| load(t, 32 + 64 * i));
    Q4_0, 288, Some(4), |t| nibbles(t, 32);
    Q4_1, 320, None, |t| nibbles(t, 64);
    Q5_0, 352, Some(3), |t| fifths(t, 32);
    Q5_1, 384, None, |t| fifths(t, 64);
    Iq4Nl, 288, Some(0), |t| iq4(nibbles(t, 32));
}

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
struct Q45K<const FIFTH: bool>;

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

struct Q6K;

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

struct Q3K;

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

struct Q2K;

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

struct Iq4Xs;

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
