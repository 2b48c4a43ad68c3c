//! What each format's codes, scales and minima are.
#![allow(unsafe_code, reason = "vector instructions, and addresses of tiles and blocks")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::{Blocks, Half, Words};
use crate::matrix::layout::TILE_ROWS;
use crate::rows::{Block32, Block256};

/// A format with blocks of 32.
pub(in crate::matrix) trait Codes {
    const TILE: usize;
    /// The largest code; 255: bytes as [`Words::SIGNED`] says.
    const MAX: usize;
    /// `Block32::zero` is shifted right by this to give the zero point's part; `None`: there is a minimum instead.
    const ZERO: Option<i32>;
    /// The codes of columns `4 * i..` of all rows.
    unsafe fn codes<W: Words>(t: Half) -> [W::I; 8];
    /// `start + codes . x`.
    unsafe fn sum<W: Words>(start: W::I, codes: &[W::I; 8], x: *const u8) -> W::I;
}

pub(in crate::matrix) struct Of32<C>(C);

impl<C: Codes> Blocks for Of32<C> {
    const TILE: usize = C::TILE;
    const ROW: usize = size_of::<Block32>();

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let codes = C::codes::<W>(t);
            let d = W::halves(t.field(0, 2));
            for m in 0..M {
                let x = x.add(m * Self::ROW);
                let start = match C::ZERO {
                    Some(shift) if C::MAX < 255 || !W::SIGNED => W::splat(x.add(36).cast::<i32>().read() >> shift),
                    _ => W::splat(0),
                };
                let sum = C::sum::<W>(start, &codes, x);
                let x_d = W::number(x.add(32).cast::<f32>().read());
                acc[m] = W::fma(d, W::mul(W::converted(sum), x_d), acc[m]);
                if C::ZERO.is_none() {
                    acc[m] = W::fma(W::halves(t.field(32, 2)), W::number(x.add(40).cast::<f32>().read()), acc[m]);
                }
            }
        }
    }
}

/// What the codes of IQ4 stand for, with 128 added.
const IQ4: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// The codes of 4 bits in the 4 words at `t + at`.
#[inline(always)]
unsafe fn nibbles<W: Words>(t: Half, at: usize) -> [W::I; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let w = [t.fetched::<W>(at), t.fetched::<W>(at + 64), t.fetched::<W>(at + 128), t.fetched::<W>(at + 192)];
        std::array::from_fn(|i| if i < 4 { W::nibble::<false>(w[i]) } else { W::nibble::<true>(w[i - 4]) })
    }
}

/// As [`nibbles`], with the fifth bits before them.
#[inline(always)]
unsafe fn fifths<W: Words>(t: Half, at: usize) -> [W::I; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let (bits, low) = (t.fetched::<W>(at), nibbles::<W>(t, at + 64));
        std::array::from_fn(|i| W::or(W::moved(bits, i, 4, 16), low[i]))
    }
}

macro_rules! codes {
    ($($name:ident, $tile:expr, $max:literal, $zero:expr, |$t:ident| $codes:expr;)*) => { $(
        pub(in crate::matrix) struct $name;
        impl Codes for $name {
            const TILE: usize = $tile;
            const MAX: usize = $max;
            const ZERO: Option<i32> = $zero;
            #[inline(always)]
            unsafe fn codes<W: Words>($t: Half) -> [W::I; 8] {
                // SAFETY: a tile of this format.
                unsafe { $codes }
            }
            #[inline(always)]
            unsafe fn sum<W: Words>(start: W::I, codes: &[W::I; 8], x: *const u8) -> W::I {
                // SAFETY: a block of 32 columns.
                unsafe { W::sum::<8, $max>(start, codes, x) }
            }
        }
    )* };
}
codes! {
    Q8_0, 544, 255, Some(0), |t| std::array::from_fn(|i| W::whole_bytes(t.fetched::<W>(32 + 64 * i)));
    Q4_0, 288, 15, Some(4), |t| nibbles::<W>(t, 32);
    Q4_1, 320, 15, None, |t| nibbles::<W>(t, 64);
    Q5_0, 352, 31, Some(3), |t| fifths::<W>(t, 32);
    Q5_1, 384, 31, None, |t| fifths::<W>(t, 64);
    Iq4Nl, 288, 255, Some(0), |t| nibbles::<W>(t, 32).map(|codes| W::look_up(&IQ4, codes));
}

/// Where a [`Block256`] has its sums and its scale.
const SUMS16: usize = 256;
const SUMS32: usize = 288;
const SCALE: usize = 304;
const ROW256: usize = size_of::<Block256>();

/// Adds `x_d * value` to each row.
#[inline(always)]
unsafe fn finish<W: Words, const M: usize>(x: *const u8, acc: &mut [W::F; M], value: impl Fn(usize) -> W::F) {
    for m in 0..M {
        // SAFETY: row `m` has a scale.
        acc[m] = unsafe { W::fma(value(m), W::number(x.add(m * ROW256 + SCALE).cast::<f32>().read()), acc[m]) };
    }
}

/// Scales (or minima), in pairs of 16 bits, times the sums at `at` of each row.
#[inline(always)]
unsafe fn times_sums<W: Words, const M: usize, const N: usize>(x: *const u8, at: usize, pair: impl Fn(usize) -> W::I) -> [W::I; M] {
    // SAFETY: each row has `2 * N` sums at `at`.
    unsafe {
        let mut sums = [W::splat(0); M];
        for p in 0..N {
            let pair = pair(p);
            for m in 0..M {
                sums[m] = W::add_pairs(sums[m], pair, x.add(m * ROW256 + at + 4 * p));
            }
        }
        sums
    }
}

/// Adds `scale` times the product of `N` words of codes with each row, from byte `at` of its block on, to the sums.
#[inline(always)]
unsafe fn add_scaled<W: Words, const M: usize, const N: usize, const MAX: usize>(
    sums: &mut [W::I; M],
    codes: &[W::I; N],
    x: *const u8,
    at: usize,
    scale: W::I,
) {
    for m in 0..M {
        // SAFETY: each row has these columns.
        unsafe { sums[m] = W::scaled::<N, MAX>(sums[m], codes, x.add(m * ROW256 + at), scale) };
    }
}

/// `d * sum - dmin * min`.
#[inline(always)]
unsafe fn less_minimum<W: Words>(d: W::F, sum: W::I, dmin: W::F, min: W::I) -> W::F {
    // SAFETY: no memory is touched.
    unsafe { W::fnma(dmin, W::converted(min), W::mul(d, W::converted(sum))) }
}

/// `d * (sum - zero * 2^SHIFT)`.
#[inline(always)]
unsafe fn less_zero<W: Words, const SHIFT: i32>(d: W::F, sum: W::I, zero: W::I) -> W::F {
    // SAFETY: no memory is touched.
    unsafe { W::mul(d, W::converted(W::less::<SHIFT>(sum, zero))) }
}

/// Q4_K, and with `FIFTH` bits Q5_K.
pub(in crate::matrix) struct Q45K<const FIFTH: bool>;

impl<const FIFTH: bool> Blocks for Q45K<FIFTH> {
    const TILE: usize = if FIFTH { 2880 } else { 2368 };
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let words = if FIFTH { 832 } else { 320 };
            let mut sums = [W::splat(0); M];
            for s in 0..8 {
                let at = words + 512 * (s / 2);
                let codes: [W::I; 8] = std::array::from_fn(|w| {
                    let code = if s % 2 == 0 {
                        W::nibble::<false>(t.fetched::<W>(at + 64 * w))
                    } else {
                        W::nibble::<true>(t.words::<W>(at + 64 * w))
                    };
                    if FIFTH { W::or(W::moved(t.words::<W>(320 + 64 * w), s, 4, 16), code) } else { code }
                });
                let scale = W::scale(W::bytes(t.field(64 + 16 * s, 1)));
                if FIFTH {
                    add_scaled::<W, M, 8, 31>(&mut sums, &codes, x, 32 * s, scale);
                } else {
                    add_scaled::<W, M, 8, 15>(&mut sums, &codes, x, 32 * s, scale);
                }
            }
            let mins = times_sums::<W, M, 4>(x, SUMS32, |p| W::unsigned_pairs(t.field(192 + 32 * p, 2)));
            let (d, dmin) = (W::halves(t.field(0, 2)), W::halves(t.field(32, 2)));
            finish::<W, M>(x, acc, |m| less_minimum::<W>(d, sums[m], dmin, mins[m]));
        }
    }
}

pub(in crate::matrix) struct Q6K;

impl Blocks for Q6K {
    const TILE: usize = 3360;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [W::splat(0); M];
            // Half `h` of the columns, its quarter `s` of 32 columns: the low bits of quarters 2 and 3 lie above those of 0 and 1.
            for h in 0..2 {
                for s in 0..4 {
                    let pairs = W::signed_pairs(t.field(32 + 32 * (4 * h + s), 2));
                    let code = |w: usize| {
                        let bits = 288 + 768 * (2 * h + w / 4) + 64 * (w % 4);
                        let at = bits + 256 * (1 + s % 2);
                        let low = if s < 2 { W::nibble::<false>(t.fetched::<W>(at)) } else { W::nibble::<true>(t.words::<W>(at)) };
                        W::or(W::moved(if s == 0 { t.fetched::<W>(bits) } else { t.words::<W>(bits) }, 2 * s, 4, 0x30), low)
                    };
                    let (first, second): ([W::I; 4], [W::I; 4]) = (std::array::from_fn(code), std::array::from_fn(|w| code(w + 4)));
                    let at = 128 * h + 32 * s;
                    add_scaled::<W, M, 4, 63>(&mut sums, &first, x, at, W::scale(W::of_pair::<false>(pairs)));
                    add_scaled::<W, M, 4, 63>(&mut sums, &second, x, at + 16, W::scale(W::of_pair::<true>(pairs)));
                }
            }
            let zeros = times_sums::<W, M, 8>(x, SUMS16, |p| W::signed_pairs(t.field(32 + 32 * p, 2)));
            let d = W::halves(t.field(0, 2));
            finish::<W, M>(x, acc, |m| less_zero::<W, 5>(d, sums[m], zeros[m]));
        }
    }
}

/// The words of Q2_K and Q3_K: four times 2 bits, each 16 columns with a scale of their own. `code` makes codes from word `w` of half `h`
/// and its quarter `s`, `pairs` gives the scales of a pair of 16.
#[inline(always)]
unsafe fn quarters<W: Words, const M: usize, const MAX: usize>(
    x: *const u8,
    code: impl Fn(usize, usize, usize) -> W::I,
    pairs: impl Fn(usize) -> W::I,
) -> [W::I; M] {
    // SAFETY: rows of 256 columns, by the caller's contract.
    unsafe {
        let mut sums = [W::splat(0); M];
        for h in 0..2 {
            for s in 0..4 {
                let (pairs, at) = (pairs(4 * h + s), 128 * h + 32 * s);
                let (first, second): ([W::I; 4], [W::I; 4]) =
                    (std::array::from_fn(|w| code(h, s, w)), std::array::from_fn(|w| code(h, s, w + 4)));
                add_scaled::<W, M, 4, MAX>(&mut sums, &first, x, at, W::scale(W::of_pair::<false>(pairs)));
                add_scaled::<W, M, 4, MAX>(&mut sums, &second, x, at + 16, W::scale(W::of_pair::<true>(pairs)));
            }
        }
        sums
    }
}

pub(in crate::matrix) struct Q3K;

impl Blocks for Q3K {
    const TILE: usize = 1824;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let code = |h: usize, s: usize, w: usize| {
                let (word, bits) = (800 + 64 * (8 * h + w), 288 + 64 * w);
                let low = W::moved(if s == 0 { t.fetched::<W>(word) } else { t.words::<W>(word) }, 2 * s, 0, 3);
                W::or(W::moved(if h + s == 0 { t.fetched::<W>(bits) } else { t.words::<W>(bits) }, 4 * h + s, 2, 4), low)
            };
            let sums = quarters::<W, M, 7>(x, code, |p| W::signed_pairs(t.field(32 + 32 * p, 2)));
            let zeros = times_sums::<W, M, 8>(x, SUMS16, |p| W::signed_pairs(t.field(32 + 32 * p, 2)));
            let d = W::halves(t.field(0, 2));
            finish::<W, M>(x, acc, |m| less_zero::<W, 2>(d, sums[m], zeros[m]));
        }
    }
}

pub(in crate::matrix) struct Q2K;

impl Blocks for Q2K {
    const TILE: usize = 1344;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let code = |h: usize, s: usize, w: usize| {
                let word = 320 + 64 * (8 * h + w);
                W::moved(if s == 0 { t.fetched::<W>(word) } else { t.words::<W>(word) }, 2 * s, 0, 3)
            };
            let sums = quarters::<W, M, 3>(x, code, |p| W::nibble::<false>(W::unsigned_pairs(t.field(64 + 32 * p, 2))));
            let mins = times_sums::<W, M, 8>(x, SUMS16, |p| W::nibble::<true>(W::unsigned_pairs(t.field(64 + 32 * p, 2))));
            let (d, dmin) = (W::halves(t.field(0, 2)), W::halves(t.field(32, 2)));
            finish::<W, M>(x, acc, |m| less_minimum::<W>(d, sums[m], dmin, mins[m]));
        }
    }
}

pub(in crate::matrix) struct Iq4Xs;

impl Blocks for Iq4Xs {
    const TILE: usize = 138 * TILE_ROWS;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let mut sums = [W::splat(0); M];
            for b in 0..8 {
                let codes = nibbles::<W>(t, 160 + 256 * b).map(|codes| W::look_up(&IQ4, codes));
                let pairs = W::signed_pairs(t.field(32 + 32 * (b / 2), 2));
                let scale = W::scale(if b % 2 == 0 { W::of_pair::<false>(pairs) } else { W::of_pair::<true>(pairs) });
                add_scaled::<W, M, 8, 255>(&mut sums, &codes, x, 32 * b, scale);
            }
            let d = W::halves(t.field(0, 2));
            if W::SIGNED {
                finish::<W, M>(x, acc, |m| W::mul(d, W::converted(sums[m])));
            } else {
                let zeros = times_sums::<W, M, 4>(x, SUMS32, |p| W::signed_pairs(t.field(32 + 32 * p, 2)));
                finish::<W, M>(x, acc, |m| less_zero::<W, 7>(d, sums[m], zeros[m]));
            }
        }
    }
}
