//! What each format's codes, scales and minima are in registers of 256 bits; see [`super::bytes256`]. The steps are those of the kernels for
//! 512 bits, eight rows at a time.
#![allow(unsafe_code, reason = "vector instructions, and addresses of tiles and blocks")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::bytes256::{Blocks, Dot, Half, Pairs, Quads, product, spread};
use crate::format::Format;
use crate::matrix::layout::TILE_ROWS;
use crate::matrix::product::{Kernel, Span};
use crate::rows::{Block32, Block256};
use std::arch::x86_64::*;

macro_rules! kernels {
    ($($format:ident: $blocks:ty),* $(,)?) => {
        kernels!(entries avx2, "avx2,fma,f16c", Pairs, $($format: $blocks),*);
        kernels!(entries vnni, "avx2,fma,f16c,avxvnni", Quads<false>, $($format: $blocks),*);
        kernels!(entries vnni512, "avx2,fma,f16c,avx512vl,avx512vnni", Quads<true>, $($format: $blocks),*);
    };
    (entries $set:ident, $features:literal, $dot:ty, $($format:ident: $blocks:ty),*) => {
        /// The kernel for `format` with the instructions of this set.
        pub(super) fn $set(format: Format) -> Kernel {
            $(
                #[target_feature(enable = $features)]
                #[allow(non_snake_case, reason = "called as its format")]
                unsafe fn $format(span: &Span) {
                    // SAFETY: the contract of kernels, passed on.
                    unsafe { product::<$blocks, $dot>(span) }
                }
            )*
            match format {
                $(Format::$format => $format,)*
                Format::F32 | Format::F16 | Format::Bf16 => unreachable!("{format} is dense"),
            }
        }
    };
}
kernels!(
    Q8_0: Of32<Q8_0>,
    Q4_0: Of32<Q4_0>,
    Q4_1: Of32<Q4_1>,
    Q5_0: Of32<Q5_0>,
    Q5_1: Of32<Q5_1>,
    Iq4Nl: Of32<Iq4Nl>,
    Q2K: Q2K,
    Q3K: Q3K,
    Q4K: Q45K<false>,
    Q5K: Q45K<true>,
    Q6K: Q6K,
    Iq4Xs: Iq4Xs,
);

/// A format with blocks of 32.
trait Codes {
    const TILE: usize;
    /// The largest code; 255: bytes as [`Dot::SIGNED`] says.
    const MAX: usize;
    /// `Block32::zero` is shifted right by this to give the zero point's part; `None`: there is a minimum instead.
    const ZERO: Option<i32>;
    /// The codes of columns `4 * i..` of all rows.
    unsafe fn codes<D: Dot>(t: Half) -> [__m256i; 8];
    /// `start + codes . x`.
    unsafe fn sum<D: Dot>(start: __m256i, codes: &[__m256i; 8], x: *const u8) -> __m256i;
}

struct Of32<C>(C);

impl<C: Codes> Blocks for Of32<C> {
    const TILE: usize = C::TILE;
    const ROW: usize = size_of::<Block32>();

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let codes = C::codes::<D>(t);
            let d = t.floats(0);
            for m in 0..M {
                let x = x.add(m * Self::ROW);
                let start = match C::ZERO {
                    Some(shift) if C::MAX < 255 || !D::SIGNED => _mm256_sra_epi32(spread(x, 36), _mm_cvtsi32_si128(shift)),
                    _ => _mm256_setzero_si256(),
                };
                let sum = C::sum::<D>(start, &codes, x);
                let x_d = _mm256_set1_ps(x.add(32).cast::<f32>().read());
                acc[m] = _mm256_fmadd_ps(d, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), x_d), acc[m]);
                if C::ZERO.is_none() {
                    acc[m] = _mm256_fmadd_ps(t.floats(32), _mm256_set1_ps(x.add(40).cast::<f32>().read()), acc[m]);
                }
            }
        }
    }
}

/// Bytes that use all 8 bits, of numbers with 128 added.
#[inline(always)]
unsafe fn whole_bytes<D: Dot>(bytes: __m256i) -> __m256i {
    // SAFETY: no memory is touched.
    unsafe { if D::SIGNED { _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)) } else { bytes } }
}

/// What the codes of IQ4 stand for, as bytes that use all 8 bits.
#[inline(always)]
unsafe fn iq4_values<D: Dot>(codes: [__m256i; 8]) -> [__m256i; 8] {
    const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
    // SAFETY: reads the constant.
    unsafe {
        let table = whole_bytes::<D>(_mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast())));
        codes.map(|code| _mm256_shuffle_epi8(table, code))
    }
}

/// The low or, if `HIGH`, the high 4 bits of each byte.
#[inline(always)]
unsafe fn nibble<const HIGH: bool>(word: __m256i) -> __m256i {
    // SAFETY: no memory is touched.
    unsafe { _mm256_and_si256(if HIGH { _mm256_srli_epi16::<4>(word) } else { word }, _mm256_set1_epi8(15)) }
}

/// The codes of 4 bits in the 4 words at `t + at`.
#[inline(always)]
unsafe fn nibbles(t: Half, at: usize) -> [__m256i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let w = [t.fetched(at), t.fetched(at + 64), t.fetched(at + 128), t.fetched(at + 192)];
        std::array::from_fn(|i| if i < 4 { nibble::<false>(w[i]) } else { nibble::<true>(w[i - 4]) })
    }
}

/// The bits of `mask`, the same in each byte, of what lies `from` bits from the right and shall lie `to` bits from there.
#[inline(always)]
unsafe fn moved(bits: __m256i, from: usize, to: usize, mask: i8) -> __m256i {
    // SAFETY: no memory is touched.
    unsafe {
        let shifted = if from > to {
            _mm256_srl_epi32(bits, _mm_cvtsi32_si128((from - to) as i32))
        } else {
            _mm256_sll_epi32(bits, _mm_cvtsi32_si128((to - from) as i32))
        };
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

/// As [`nibbles`], with the fifth bits before them.
#[inline(always)]
unsafe fn fifths(t: Half, at: usize) -> [__m256i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let (bits, low) = (t.fetched(at), nibbles(t, at + 64));
        std::array::from_fn(|i| _mm256_or_si256(moved(bits, i, 4, 16), low[i]))
    }
}

macro_rules! codes {
    ($($name:ident, $tile:expr, $max:literal, $zero:expr, |$t:ident| $codes:expr;)*) => { $(
        struct $name;
        impl Codes for $name {
            const TILE: usize = $tile;
            const MAX: usize = $max;
            const ZERO: Option<i32> = $zero;
            #[inline(always)]
            unsafe fn codes<D: Dot>($t: Half) -> [__m256i; 8] {
                // SAFETY: a tile of this format.
                unsafe { $codes }
            }
            #[inline(always)]
            unsafe fn sum<D: Dot>(start: __m256i, codes: &[__m256i; 8], x: *const u8) -> __m256i {
                // SAFETY: a block of 32 columns.
                unsafe { D::sum::<8, $max>(start, codes, x) }
            }
        }
    )* };
}
codes! {
    Q8_0, 544, 255, Some(0), |t| std::array::from_fn(|i| whole_bytes::<D>(t.fetched(32 + 64 * i)));
    Q4_0, 288, 15, Some(4), |t| nibbles(t, 32);
    Q4_1, 320, 15, None, |t| nibbles(t, 64);
    Q5_0, 352, 31, Some(3), |t| fifths(t, 32);
    Q5_1, 384, 31, None, |t| fifths(t, 64);
    Iq4Nl, 288, 255, Some(0), |t| iq4_values::<D>(nibbles(t, 32));
}

/// Where a [`Block256`] has its sums and its scale.
const SUMS16: usize = 256;
const SUMS32: usize = 288;
const SCALE: usize = 304;
const ROW256: usize = size_of::<Block256>();

/// Adds `x_d * value` to each row.
#[inline(always)]
unsafe fn finish<const M: usize>(x: *const u8, acc: &mut [__m256; M], value: impl Fn(usize) -> __m256) {
    for m in 0..M {
        // SAFETY: row `m` has a scale.
        acc[m] = unsafe { _mm256_fmadd_ps(value(m), _mm256_set1_ps(x.add(m * ROW256 + SCALE).cast::<f32>().read()), acc[m]) };
    }
}

/// Scales (or minima), in pairs of 16 bits, times the sums at `at` of each row.
#[inline(always)]
unsafe fn times_sums<const M: usize, const N: usize>(x: *const u8, at: usize, pair: impl Fn(usize) -> __m256i) -> [__m256i; M] {
    // SAFETY: each row has `2 * N` sums at `at`.
    unsafe {
        let mut sums = [_mm256_setzero_si256(); M];
        for p in 0..N {
            let pair = pair(p);
            for m in 0..M {
                sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(pair, spread(x, m * ROW256 + at + 4 * p)));
            }
        }
        sums
    }
}

/// The first or, if `SECOND`, the second of each pair of 16 bits, as 32 bits.
#[inline(always)]
unsafe fn of_pair<const SECOND: bool>(pairs: __m256i) -> __m256i {
    // SAFETY: no memory is touched.
    unsafe { _mm256_srai_epi32::<16>(if SECOND { pairs } else { _mm256_slli_epi32::<16>(pairs) }) }
}

/// Adds `scale` times the product of `N` words of codes with each row, from byte `at` of its block on, to the sums.
#[inline(always)]
unsafe fn add_scaled<D: Dot, const M: usize, const N: usize, const MAX: usize>(
    sums: &mut [__m256i; M],
    codes: &[__m256i; N],
    x: *const u8,
    at: usize,
    scale: __m256i,
) {
    for m in 0..M {
        // SAFETY: each row has these columns.
        unsafe { sums[m] = D::scaled::<N, MAX>(sums[m], codes, x.add(m * ROW256 + at), scale) };
    }
}

/// `d * sum - dmin * min`.
#[inline(always)]
unsafe fn less_minimum(d: __m256, sum: __m256i, dmin: __m256, min: __m256i) -> __m256 {
    // SAFETY: no memory is touched.
    unsafe { _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(min), _mm256_mul_ps(d, _mm256_cvtepi32_ps(sum))) }
}

/// `d * (sum - zero * 2^SHIFT)`.
#[inline(always)]
unsafe fn less_zero<const SHIFT: i32>(d: __m256, sum: __m256i, zero: __m256i) -> __m256 {
    // SAFETY: no memory is touched.
    unsafe { _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_slli_epi32::<SHIFT>(zero)))) }
}

/// Q4_K, and with `FIFTH` bits Q5_K.
struct Q45K<const FIFTH: bool>;

impl<const FIFTH: bool> Blocks for Q45K<FIFTH> {
    const TILE: usize = if FIFTH { 2880 } else { 2368 };
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let words = if FIFTH { 832 } else { 320 };
            let mut sums = [_mm256_setzero_si256(); M];
            for s in 0..8 {
                let at = words + 512 * (s / 2);
                let codes: [__m256i; 8] = std::array::from_fn(|w| {
                    let code = if s % 2 == 0 { nibble::<false>(t.fetched(at + 64 * w)) } else { nibble::<true>(t.words(at + 64 * w)) };
                    if FIFTH { _mm256_or_si256(moved(t.words(320 + 64 * w), s, 4, 16), code) } else { code }
                });
                let scale = D::scale(t.bytes(64 + 16 * s));
                if FIFTH {
                    add_scaled::<D, M, 8, 31>(&mut sums, &codes, x, 32 * s, scale);
                } else {
                    add_scaled::<D, M, 8, 15>(&mut sums, &codes, x, 32 * s, scale);
                }
            }
            let mins = times_sums::<M, 4>(x, SUMS32, |p| t.unsigned_pairs(192 + 32 * p));
            let (d, dmin) = (t.floats(0), t.floats(32));
            finish(x, acc, |m| less_minimum(d, sums[m], dmin, mins[m]));
        }
    }
}

struct Q6K;

impl Blocks for Q6K {
    const TILE: usize = 3360;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); M];
            // Half `h` of the columns, its quarter `s` of 32 columns: the low bits of quarters 2 and 3 lie above those of 0 and 1.
            for h in 0..2 {
                for s in 0..4 {
                    let pairs = t.signed_pairs(32 + 32 * (4 * h + s));
                    let code = |w: usize| {
                        let at = 288 + 64 * (16 * h + 8 * (s % 2) + w);
                        let low = if s < 2 { nibble::<false>(t.fetched(at)) } else { nibble::<true>(t.words(at)) };
                        let bits = 2336 + 64 * (8 * h + w);
                        _mm256_or_si256(moved(if s == 0 { t.fetched(bits) } else { t.words(bits) }, 2 * s, 4, 0x30), low)
                    };
                    let (first, second): ([__m256i; 4], [__m256i; 4]) = (std::array::from_fn(code), std::array::from_fn(|w| code(w + 4)));
                    let at = 128 * h + 32 * s;
                    add_scaled::<D, M, 4, 63>(&mut sums, &first, x, at, D::scale(of_pair::<false>(pairs)));
                    add_scaled::<D, M, 4, 63>(&mut sums, &second, x, at + 16, D::scale(of_pair::<true>(pairs)));
                }
            }
            let zeros = times_sums::<M, 8>(x, SUMS16, |p| t.signed_pairs(32 + 32 * p));
            let d = t.floats(0);
            finish(x, acc, |m| less_zero::<5>(d, sums[m], zeros[m]));
        }
    }
}

/// The words of Q2_K and Q3_K: four times 2 bits, each 16 columns with a scale of their own. `code` makes codes from word `w` of half `h`
/// and its quarter `s`, `pairs` gives the scales of a pair of 16.
#[inline(always)]
unsafe fn quarters<D: Dot, const M: usize, const MAX: usize>(
    x: *const u8,
    code: impl Fn(usize, usize, usize) -> __m256i,
    pairs: impl Fn(usize) -> __m256i,
) -> [__m256i; M] {
    // SAFETY: rows of 256 columns, by the caller's contract.
    unsafe {
        let mut sums = [_mm256_setzero_si256(); M];
        for h in 0..2 {
            for s in 0..4 {
                let (pairs, at) = (pairs(4 * h + s), 128 * h + 32 * s);
                let (first, second): ([__m256i; 4], [__m256i; 4]) =
                    (std::array::from_fn(|w| code(h, s, w)), std::array::from_fn(|w| code(h, s, w + 4)));
                add_scaled::<D, M, 4, MAX>(&mut sums, &first, x, at, D::scale(of_pair::<false>(pairs)));
                add_scaled::<D, M, 4, MAX>(&mut sums, &second, x, at + 16, D::scale(of_pair::<true>(pairs)));
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
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let code = |h: usize, s: usize, w: usize| {
                let (word, bits) = (800 + 64 * (8 * h + w), 288 + 64 * w);
                let low = moved(if s == 0 { t.fetched(word) } else { t.words(word) }, 2 * s, 0, 3);
                _mm256_or_si256(moved(if h + s == 0 { t.fetched(bits) } else { t.words(bits) }, 4 * h + s, 2, 4), low)
            };
            let sums = quarters::<D, M, 7>(x, code, |p| t.signed_pairs(32 + 32 * p));
            let zeros = times_sums::<M, 8>(x, SUMS16, |p| t.signed_pairs(32 + 32 * p));
            let d = t.floats(0);
            finish(x, acc, |m| less_zero::<2>(d, sums[m], zeros[m]));
        }
    }
}

struct Q2K;

impl Blocks for Q2K {
    const TILE: usize = 1344;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let code = |h: usize, s: usize, w: usize| {
                let word = 320 + 64 * (8 * h + w);
                moved(if s == 0 { t.fetched(word) } else { t.words(word) }, 2 * s, 0, 3)
            };
            let scale = _mm256_set1_epi16(15);
            let sums = quarters::<D, M, 3>(x, code, |p| _mm256_and_si256(t.unsigned_pairs(64 + 32 * p), scale));
            let mins = times_sums::<M, 8>(x, SUMS16, |p| _mm256_srli_epi16::<4>(t.unsigned_pairs(64 + 32 * p)));
            let (d, dmin) = (t.floats(0), t.floats(32));
            finish(x, acc, |m| less_minimum(d, sums[m], dmin, mins[m]));
        }
    }
}

struct Iq4Xs;

impl Blocks for Iq4Xs {
    const TILE: usize = 138 * TILE_ROWS;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize>(t: Half, x: *const u8, acc: &mut [__m256; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); M];
            for b in 0..8 {
                let codes = iq4_values::<D>(nibbles(t, 160 + 256 * b));
                let pairs = t.signed_pairs(32 + 32 * (b / 2));
                let scale = D::scale(if b % 2 == 0 { of_pair::<false>(pairs) } else { of_pair::<true>(pairs) });
                add_scaled::<D, M, 8, 255>(&mut sums, &codes, x, 32 * b, scale);
            }
            let d = t.floats(0);
            if D::SIGNED {
                finish(x, acc, |m| _mm256_mul_ps(d, _mm256_cvtepi32_ps(sums[m])));
            } else {
                let zeros = times_sums::<M, 4>(x, SUMS32, |p| t.signed_pairs(32 + 32 * p));
                finish(x, acc, |m| less_zero::<7>(d, sums[m], zeros[m]));
            }
        }
    }
}
