//! Products in vectors of eight rows: one text of each format for the instruction sets that have registers of 256 bits, or many of 128.
//!
//! A kernel is a generic function over [`Words`], inlined into an entry of its own for each instruction set. Each block of a tile is
//! computed in two halves of eight rows. Sums of whole numbers are exact in any order; the few operations on floats come in one order
//! for any number of rows, and for all instruction sets.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]

mod dense;
mod formats;

pub(super) use dense::{Bf16, F16, F32, product as dense_product};
pub(super) use formats::{Iq4Nl, Iq4Xs, Of32, Q2K, Q3K, Q4_0, Q4_1, Q5_0, Q5_1, Q6K, Q8_0, Q45K};

use super::product::Span;

/// How far ahead of use weights are fetched, in bytes: what memory delivers within its latency.
const AHEAD: usize = 2048;

/// Vectors of one word of 32 bits, or one f32, for each of eight rows.
///
/// # Safety
/// Of all functions: they are inlined into one that has the instructions, on a machine that has them, and what is behind an address
/// is as long as they say.
pub(super) trait Words {
    /// Words: whole numbers, pairs of 16 bits, or four bytes.
    type I: Copy;
    /// Floats.
    type F: Copy;
    /// Are bytes that use all 8 bits signed numbers (no zero point needed), rather than numbers with 128 added?
    const SIGNED: bool;

    /// 32 bytes.
    unsafe fn words(p: *const u8) -> Self::I;
    /// 16 signed bytes, as pairs of 16 bits.
    unsafe fn signed_pairs(p: *const u8) -> Self::I;
    /// As [`Words::signed_pairs`], without sign.
    unsafe fn unsigned_pairs(p: *const u8) -> Self::I;
    /// 8 bytes without sign, as words.
    unsafe fn bytes(p: *const u8) -> Self::I;
    /// 8 numbers of f16.
    unsafe fn halves(p: *const u8) -> Self::F;
    /// 8 numbers of f32.
    unsafe fn floats(p: *const u8) -> Self::F;
    /// The hint to fetch what is there.
    unsafe fn fetch(p: *const u8);
    /// Writes 8 numbers.
    unsafe fn store(v: Self::F, out: *mut f32);

    /// `a | b`.
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// The low or, if `HIGH`, the high 4 bits of each byte.
    unsafe fn nibble<const HIGH: bool>(a: Self::I) -> Self::I;
    /// Moves what lies `from` bits from the right to `to` bits from there, and keeps the bits of `mask` in each byte.
    unsafe fn moved(a: Self::I, from: usize, to: usize, mask: u8) -> Self::I;
    /// Bytes that use all 8 bits, of numbers with 128 added.
    unsafe fn whole_bytes(a: Self::I) -> Self::I;
    /// The entries of `table`, numbers with 128 added, that the bytes name, as bytes that use all 8 bits.
    unsafe fn look_up(table: &[u8; 16], codes: Self::I) -> Self::I;

    /// The same word everywhere.
    unsafe fn splat(x: i32) -> Self::I;
    /// `a - b * 2^SHIFT`.
    unsafe fn less<const SHIFT: i32>(a: Self::I, b: Self::I) -> Self::I;
    /// The first or, if `SECOND`, the second of each pair of 16 bits, as words.
    unsafe fn of_pair<const SECOND: bool>(pairs: Self::I) -> Self::I;
    /// Adds to `sums` both products of each pair of 16 bits with the two numbers of 16 bits at `x`.
    unsafe fn add_pairs(sums: Self::I, pairs: Self::I, x: *const u8) -> Self::I;

    /// Words that fit 16 bits with their sign, as a scale for [`Words::scaled`].
    unsafe fn scale(words: Self::I) -> Self::I;
    /// `start + scale * (codes . x)`, where `x` are `4 * N` activations and codes are at most `MAX`; with a `MAX` of 255 they are
    /// bytes as [`Words::SIGNED`] says.
    unsafe fn scaled<const N: usize, const MAX: usize>(start: Self::I, codes: &[Self::I; N], x: *const u8, scale: Self::I) -> Self::I;
    /// `start + codes . x`.
    unsafe fn sum<const N: usize, const MAX: usize>(start: Self::I, codes: &[Self::I; N], x: *const u8) -> Self::I;

    /// The same number everywhere.
    unsafe fn number(x: f32) -> Self::F;
    /// Whole numbers as floats.
    unsafe fn converted(a: Self::I) -> Self::F;
    /// The first and the second of pairs of bf16.
    unsafe fn of_bf16(pairs: Self::I) -> [Self::F; 2];
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
}

/// Half of a tile: 8 of the 16 numbers of each field.
#[derive(Clone, Copy)]
pub(super) struct Half {
    tile: *const u8,
    half: usize,
}

impl Half {
    /// Where this half of the field at byte `at` of the tile begins, whose numbers have `width` bytes.
    #[inline(always)]
    fn field(self, at: usize, width: usize) -> *const u8 {
        self.tile.wrapping_add(at + 8 * width * self.half)
    }

    /// The words at byte `at` of the tile.
    ///
    /// # Safety
    /// The tile has them.
    #[inline(always)]
    unsafe fn words<W: Words>(self, at: usize) -> W::I {
        // SAFETY: the caller's.
        unsafe { W::words(self.field(at, 4)) }
    }

    /// As [`Half::words`], with the hint to fetch those further on: every other line for each half.
    ///
    /// # Safety
    /// The tile has them.
    #[inline(always)]
    unsafe fn fetched<W: Words>(self, at: usize) -> W::I {
        // SAFETY: the caller's; a hint may point anywhere.
        unsafe {
            if self.half == at / 64 % 2 {
                W::fetch(self.tile.wrapping_add(at + AHEAD));
            }
            self.words::<W>(at)
        }
    }
}

/// How blocks of one format are multiplied.
pub(super) trait Blocks {
    /// Bytes of a tile.
    const TILE: usize;
    /// Bytes from a row of activations to the next.
    const ROW: usize;
    /// Adds the product of half of one block with `M` rows.
    ///
    /// # Safety
    /// That of [`Words`]; `t` is of a tile of the format, `x` the block of the first of `M` rows.
    unsafe fn add<W: Words, const M: usize>(t: Half, x: *const u8, acc: &mut [W::F; M]);
}

/// The kernel for a format of blocks, to be inlined into an entry that has the instructions.
///
/// # Safety
/// That of [`Words`], and the contract of kernels.
#[inline(always)]
pub(super) unsafe fn product<B: Blocks, W: Words>(span: &Span) {
    // SAFETY: the contract of kernels; rows `0..m` are covered once each.
    unsafe {
        match span.m {
            1 => rows::<B, W, 1>(span, 0),
            2 | 3 => rows::<B, W, 2>(span, 0),
            8 => rows::<B, W, 8>(span, 0),
            _ => rows::<B, W, 4>(span, 0),
        }
        if matches!(span.m, 6 | 7) {
            rows::<B, W, 2>(span, 4);
        }
        if matches!(span.m, 3 | 5 | 7) {
            rows::<B, W, 1>(span, span.m - 1);
        }
    }
}

/// Rows `first..first + M` of the span.
#[inline(always)]
unsafe fn rows<B: Blocks, W: Words, const M: usize>(span: &Span, first: usize) {
    // SAFETY: the contract of kernels: `n_blocks` tiles, and as many blocks of each row.
    unsafe {
        let mut acc = [[W::number(0.0); M]; 2];
        let (mut tile, mut x) = (span.tile, span.x.add(first * B::ROW));
        for _ in 0..span.n_blocks {
            for (half, acc) in acc.iter_mut().enumerate() {
                B::add::<W, M>(Half { tile, half }, x, acc);
            }
            tile = tile.wrapping_add(B::TILE);
            x = x.wrapping_add(span.step);
        }
        for (m, (first_half, second_half)) in acc[0].iter().zip(&acc[1]).enumerate() {
            store::<W>(span, first + m, [*first_half, *second_half]);
        }
    }
}

/// Stores row `m` of the result.
///
/// # Safety
/// That of [`Words`], and the contract of kernels.
#[inline(always)]
unsafe fn store<W: Words>(span: &Span, m: usize, sums: [W::F; 2]) {
    let out = span.out.wrapping_add(m * span.stride);
    // SAFETY: `n_out` numbers of this row are ours to write, and no more are written.
    unsafe {
        if span.n_out == 16 {
            W::store(sums[0], out);
            W::store(sums[1], out.add(8));
        } else {
            let mut lanes = [0f32; 16];
            W::store(sums[0], lanes.as_mut_ptr());
            W::store(sums[1], lanes.as_mut_ptr().add(8));
            out.copy_from_nonoverlapping(lanes.as_ptr(), span.n_out);
        }
    }
}

/// Defines `$set(format) -> Kernel`: an entry for each format, with the instructions `$features` and the vectors `$vectors`.
macro_rules! entries {
    ($set:ident, $features:literal, $vectors:ty) => {
        $crate::matrix::words::entries!(
            $set, $features, $vectors, product,
            Q8_0: words::Of32<words::Q8_0>, Q4_0: words::Of32<words::Q4_0>, Q4_1: words::Of32<words::Q4_1>,
            Q5_0: words::Of32<words::Q5_0>, Q5_1: words::Of32<words::Q5_1>, Iq4Nl: words::Of32<words::Iq4Nl>,
            Q2K: words::Q2K, Q3K: words::Q3K, Q4K: words::Q45K<false>, Q5K: words::Q45K<true>, Q6K: words::Q6K, Iq4Xs: words::Iq4Xs;
            Format::F32 | Format::F16 | Format::Bf16
        );
    };
    (dense $set:ident, $features:literal, $vectors:ty) => {
        $crate::matrix::words::entries!(
            $set, $features, $vectors, dense_product,
            F32: words::F32, F16: words::F16, Bf16: words::Bf16;
            _
        );
    };
    ($set:ident, $features:literal, $vectors:ty, $product:ident, $($format:ident: $blocks:ty),*; $others:pat) => {
        fn $set(format: Format) -> Kernel {
            use $crate::matrix::words;
            $(
                #[target_feature(enable = $features)]
                #[allow(non_snake_case, reason = "called as its format")]
                unsafe fn $format(span: &Span) {
                    // SAFETY: the contract of kernels, passed on; the vectors are those of the instructions just enabled.
                    unsafe { words::$product::<$blocks, $vectors>(span) }
                }
            )*
            match format {
                $(Format::$format => $format,)*
                $others => unreachable!("{format} has kernels of another kind"),
            }
        }
    };
}
pub(super) use entries;
