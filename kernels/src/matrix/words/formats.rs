//! What each format's codes, scales and minima are.
#![allow(unsafe_code, reason = "vector instructions, and addresses of tiles and blocks")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::{Blocks, Half, Words};
use crate::matrix::layout::TILE_ROWS;
use crate::rows::{Block32, Block256};

/// An array, element by element in place. Closures would be functions of their own, without the instructions.
macro_rules! array {
    ($n:literal, |$i:ident| $element:expr) => {{
        let mut all = [W::splat(0); $n];
        for $i in 0..$n {
            all[$i] = $element;
        }
        all
    }};
}

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
        array!(8, |i| if i < 4 { W::nibble::<false>(w[i]) } else { W::nibble::<true>(w[i - 4]) })
    }
}

/// What [`nibbles`] of IQ4 stand for, as bytes that use all 8 bits.
#[inline(always)]
unsafe fn iq4<W: Words>(t: Half, at: usize) -> [W::I; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let codes = nibbles::<W>(t, at);
        array!(8, |i| W::look_up(&IQ4, codes[i]))
    }
}

/// As [`nibbles`], with the fifth bits before them.
#[inline(always)]
unsafe fn fifths<W: Words>(t: Half, at: usize) -> [W::I; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let (bits, low) = (t.fetched::<W>(at), nibbles::<W>(t, at + 64));
        array!(8, |i| W::or(W::moved(bits, i, 4, 16), low[i]))
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
    Q8_0, 544, 255, Some(0), |t| array!(8, |i| W::whole_bytes(t.fetched::<W>(32 + 64 * i)));
    Q4_0, 288, 15, Some(4), |t| nibbles::<W>(t, 32);
    Q4_1, 320, 15, None, |t| nibbles::<W>(t, 64);
    Q5_0, 352, 31, Some(3), |t| fifths::<W>(t, 32);
    Q5_1, 384, 31, None, |t| fifths::<W>(t, 64);
    Iq4Nl, 288, 255, Some(0), |t| iq4::<W>(t, 32);
}

/// Where a [`Block256`] has its sums and its scale.
const SUMS16: usize = 256;
const SUMS32: usize = 288;
const SCALE: usize = 304;
const ROW256: usize = size_of::<Block256>();

/// `sum + x_d * value`, for the row whose block is at `x`.
#[inline(always)]
unsafe fn finish<W: Words>(x: *const u8, sum: W::F, value: W::F) -> W::F {
    // SAFETY: the block has a scale.
    unsafe { W::fma(value, W::number(x.add(SCALE).cast::<f32>().read()), sum) }
}

/// Scales (or minima), in pairs of 16 bits, times the sums at `at` of each row.
#[inline(always)]
unsafe fn times_sums<W: Words, const M: usize, const N: usize>(x: *const u8, at: usize, pairs: &[W::I; N]) -> [W::I; M] {
    // SAFETY: each row has `2 * N` sums at `at`.
    unsafe {
        let mut sums = [W::splat(0); M];
        for p in 0..N {
            for m in 0..M {
                sums[m] = W::add_pairs(sums[m], pairs[p], x.add(m * ROW256 + at + 4 * p));
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
                let codes = array!(8, |w| {
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
            let mins = times_sums::<W, M, 4>(x, SUMS32, &array!(4, |p| W::unsigned_pairs(t.field(192 + 32 * p, 2))));
            let (d, dmin) = (W::halves(t.field(0, 2)), W::halves(t.field(32, 2)));
            for m in 0..M {
                acc[m] = finish::<W>(x.add(m * ROW256), acc[m], less_minimum::<W>(d, sums[m], dmin, mins[m]));
            }
        }
    }
}

/// A format of 256 columns in which every 16 have a scale: two halves of four quarters of two times 16.
trait Quarters {
    /// The codes of word `w` of quarter `s` of half `h`.
    unsafe fn code<W: Words>(t: Half, h: usize, s: usize, w: usize) -> W::I;
    /// The scales of the `p`-th two times 16.
    unsafe fn scales<W: Words>(t: Half, p: usize) -> W::I;
    /// [`add_scaled`] with the format's largest code.
    unsafe fn add_scaled<W: Words, const M: usize>(sums: &mut [W::I; M], codes: &[W::I; 4], x: *const u8, at: usize, scale: W::I);
}

/// The words at byte `at`, fetched ahead if they are read for the `first` time.
#[inline(always)]
unsafe fn once<W: Words>(t: Half, at: usize, first: bool) -> W::I {
    // SAFETY: the caller's tile has these bytes.
    unsafe { if first { t.fetched::<W>(at) } else { t.words::<W>(at) } }
}

/// The sums of scaled products of a block with each row.
#[inline(always)]
unsafe fn quarters<Q: Quarters, W: Words, const M: usize>(t: Half, x: *const u8) -> [W::I; M] {
    // SAFETY: a tile and rows of 256 columns, by the caller's contract.
    unsafe {
        let mut sums = [W::splat(0); M];
        for h in 0..2 {
            for s in 0..4 {
                let (pairs, at) = (Q::scales::<W>(t, 4 * h + s), 128 * h + 32 * s);
                let codes = array!(4, |w| Q::code::<W>(t, h, s, w));
                Q::add_scaled::<W, M>(&mut sums, &codes, x, at, W::scale(W::of_pair::<false>(pairs)));
                let codes = array!(4, |w| Q::code::<W>(t, h, s, w + 4));
                Q::add_scaled::<W, M>(&mut sums, &codes, x, at + 16, W::scale(W::of_pair::<true>(pairs)));
            }
        }
        sums
    }
}

macro_rules! quarters {
    ($($name:ident, $max:literal, |$t:ident, $h:ident, $s:ident, $w:ident| $code:expr, |$ts:ident, $p:ident| $scales:expr;)*) => { $(
        pub(in crate::matrix) struct $name;
        impl Quarters for $name {
            #[inline(always)]
            unsafe fn code<W: Words>($t: Half, $h: usize, $s: usize, $w: usize) -> W::I {
                // SAFETY: a tile of this format.
                unsafe { $code }
            }
            #[inline(always)]
            unsafe fn scales<W: Words>($ts: Half, $p: usize) -> W::I {
                // SAFETY: a tile of this format.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn add_scaled<W: Words, const M: usize>(sums: &mut [W::I; M], codes: &[W::I; 4], x: *const u8, at: usize, scale: W::I) {
                // SAFETY: passed on.
                unsafe { add_scaled::<W, M, 4, $max>(sums, codes, x, at, scale) }
            }
        }
    )* };
}
quarters! {
    // The low bits of quarters 2 and 3 lie above those of 0 and 1.
    Q6K, 63, |t, h, s, w| {
        let bits = 288 + 768 * (2 * h + w / 4) + 64 * (w % 4);
        let word = once::<W>(t, bits + 256 * (1 + s % 2), s < 2);
        let low = if s < 2 { W::nibble::<false>(word) } else { W::nibble::<true>(word) };
        W::or(W::moved(once::<W>(t, bits, s == 0), 2 * s, 4, 0x30), low)
    }, |t, p| W::signed_pairs(t.field(32 + 32 * p, 2));
    Q3K, 7, |t, h, s, w| {
        let low = W::moved(once::<W>(t, 800 + 64 * (8 * h + w), s == 0), 2 * s, 0, 3);
        W::or(W::moved(once::<W>(t, 288 + 64 * w, h + s == 0), 4 * h + s, 2, 4), low)
    }, |t, p| W::signed_pairs(t.field(32 + 32 * p, 2));
    Q2K, 3, |t, h, s, w| W::moved(once::<W>(t, 320 + 64 * (8 * h + w), s == 0), 2 * s, 0, 3),
        |t, p| W::nibble::<false>(W::unsigned_pairs(t.field(64 + 32 * p, 2)));
}

/// Adds the product of a block of a format with a zero point of `2^SHIFT`.
///
/// # Safety
/// That of [`Blocks::add`].
#[inline(always)]
unsafe fn add_around_zero<Q: Quarters, W: Words, const M: usize, const SHIFT: i32>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
    // SAFETY: the caller's.
    unsafe {
        let sums = quarters::<Q, W, M>(t, x);
        let zeros = times_sums::<W, M, 8>(x, SUMS16, &array!(8, |p| Q::scales::<W>(t, p)));
        let d = W::halves(t.field(0, 2));
        for m in 0..M {
            acc[m] = finish::<W>(x.add(m * ROW256), acc[m], less_zero::<W, SHIFT>(d, sums[m], zeros[m]));
        }
    }
}

impl Blocks for Q6K {
    const TILE: usize = 3360;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: passed on.
        unsafe { add_around_zero::<Self, W, M, 5>(t, x, acc) }
    }
}

impl Blocks for Q3K {
    const TILE: usize = 1824;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: passed on.
        unsafe { add_around_zero::<Self, W, M, 2>(t, x, acc) }
    }
}

impl Blocks for Q2K {
    const TILE: usize = 1344;
    const ROW: usize = ROW256;

    #[inline(always)]
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let sums = quarters::<Self, W, M>(t, x);
            let mins = array!(8, |p| W::nibble::<true>(W::unsigned_pairs(t.field(64 + 32 * p, 2))));
            let mins = times_sums::<W, M, 8>(x, SUMS16, &mins);
            let (d, dmin) = (W::halves(t.field(0, 2)), W::halves(t.field(32, 2)));
            for m in 0..M {
                acc[m] = finish::<W>(x.add(m * ROW256), acc[m], less_minimum::<W>(d, sums[m], dmin, mins[m]));
            }
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
                let codes = iq4::<W>(t, 160 + 256 * b);
                let pairs = W::signed_pairs(t.field(32 + 32 * (b / 2), 2));
                let scale = W::scale(if b % 2 == 0 { W::of_pair::<false>(pairs) } else { W::of_pair::<true>(pairs) });
                add_scaled::<W, M, 8, 255>(&mut sums, &codes, x, 32 * b, scale);
            }
            let d = W::halves(t.field(0, 2));
            let mut zeros = [W::splat(0); M];
            if !W::SIGNED {
                zeros = times_sums::<W, M, 4>(x, SUMS32, &array!(4, |p| W::signed_pairs(t.field(32 + 32 * p, 2))));
            }
            for m in 0..M {
                acc[m] = finish::<W>(x.add(m * ROW256), acc[m], less_zero::<W, 7>(d, sums[m], zeros[m]));
            }
        }
    }
}
