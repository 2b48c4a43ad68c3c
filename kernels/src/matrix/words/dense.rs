//! Products with floats. Even and odd columns are summed apart and added at the end, whatever the number of rows: one chain of additions
//! would wait for itself.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a span")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use super::{AHEAD, Words, store};
use crate::matrix::product::Span;

/// How two neighbouring columns are multiplied. All functions are inlined into one that has the instructions.
pub(in crate::matrix) trait Columns {
    /// Bytes of a tile.
    const TILE: usize;
    /// Tiles of two columns.
    const TILES: usize;
    /// The weights of both columns; if there is no `second`, its are 0.
    unsafe fn weights<W: Words>(t: *const u8, second: bool) -> [[W::F; 2]; 2];
    /// The activations of both columns, the second block `step` bytes on; if there is no `second`, it is 0.
    unsafe fn numbers<W: Words>(x: *const u8, step: usize, second: bool) -> [W::F; 2];
}

/// Three rows at once: their twelve sums, two weights and an activation fill the registers.
#[inline(always)]
pub(in crate::matrix) unsafe fn product<C: Columns, W: Words>(span: &Span) {
    // SAFETY: the contract of kernels; rows `0..m` are covered once each.
    unsafe {
        match span.m {
            1 => rows::<C, W, 1>(span, 0),
            2 | 4 => rows::<C, W, 2>(span, 0),
            _ => rows::<C, W, 3>(span, 0),
        }
        match span.m {
            4 => rows::<C, W, 2>(span, 2),
            5 => rows::<C, W, 2>(span, 3),
            6 => rows::<C, W, 3>(span, 3),
            7 => {
                rows::<C, W, 2>(span, 3);
                rows::<C, W, 2>(span, 5);
            }
            8 => {
                rows::<C, W, 3>(span, 3);
                rows::<C, W, 2>(span, 6);
            }
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn rows<C: Columns, W: Words, const M: usize>(span: &Span, first: usize) {
    // SAFETY: the contract of kernels: `n_blocks` tiles, and as many blocks of each row.
    unsafe {
        let mut sums = [[[W::number(0.0); 2]; 2]; M]; // [row, parity, half]
        let (mut t, mut x) = (span.tile, span.x.add(first * 4));
        for _ in 0..span.n_blocks / C::TILES {
            W::fetch(t.wrapping_add(AHEAD));
            if C::TILES * C::TILE > 64 {
                W::fetch(t.wrapping_add(AHEAD + 64));
            }
            add::<C, W, M>(t, x, span.step, true, &mut sums);
            t = t.wrapping_add(C::TILES * C::TILE);
            x = x.wrapping_add(C::TILES * span.step);
        }
        if span.n_blocks % C::TILES == 1 {
            add::<C, W, M>(t, x, span.step, false, &mut sums);
        }
        for m in 0..M {
            let [even, odd] = sums[m];
            store::<W>(span, first + m, [W::add(even[0], odd[0]), W::add(even[1], odd[1])]);
        }
    }
}

/// Adds the products of two columns with `M` rows.
#[inline(always)]
unsafe fn add<C: Columns, W: Words, const M: usize>(t: *const u8, x: *const u8, step: usize, second: bool, sums: &mut [[[W::F; 2]; 2]; M]) {
    // SAFETY: the caller's tiles and blocks.
    unsafe {
        let w = C::weights::<W>(t, second);
        for m in 0..M {
            let x = C::numbers::<W>(x.add(4 * m), step, second);
            for parity in 0..2 {
                for half in 0..2 {
                    sums[m][parity][half] = W::fma(w[parity][half], x[parity], sums[m][parity][half]);
                }
            }
        }
    }
}

/// The floats at `x` and `step` bytes on, each in all lanes.
#[inline(always)]
unsafe fn floats<W: Words>(x: *const u8, step: usize, second: bool) -> [W::F; 2] {
    // SAFETY: the contract of `numbers`.
    unsafe {
        let next = if second { x.add(step).cast::<f32>().read() } else { 0.0 };
        [W::number(x.cast::<f32>().read()), W::number(next)]
    }
}

/// f32, a column to a tile.
pub(in crate::matrix) struct F32;

impl Columns for F32 {
    const TILE: usize = 64;
    const TILES: usize = 2;

    #[inline(always)]
    unsafe fn weights<W: Words>(t: *const u8, second: bool) -> [[W::F; 2]; 2] {
        // SAFETY: one tile of this format, or two.
        unsafe {
            let next = if second { [W::floats(t.add(64)), W::floats(t.add(96))] } else { [W::number(0.0); 2] };
            [[W::floats(t), W::floats(t.add(32))], next]
        }
    }

    #[inline(always)]
    unsafe fn numbers<W: Words>(x: *const u8, step: usize, second: bool) -> [W::F; 2] {
        // SAFETY: passed on.
        unsafe { floats::<W>(x, step, second) }
    }
}

/// f16, a column to a tile.
pub(in crate::matrix) struct F16;

impl Columns for F16 {
    const TILE: usize = 32;
    const TILES: usize = 2;

    #[inline(always)]
    unsafe fn weights<W: Words>(t: *const u8, second: bool) -> [[W::F; 2]; 2] {
        // SAFETY: one tile of this format, or two.
        unsafe {
            let next = if second { [W::halves(t.add(32)), W::halves(t.add(48))] } else { [W::number(0.0); 2] };
            [[W::halves(t), W::halves(t.add(16))], next]
        }
    }

    #[inline(always)]
    unsafe fn numbers<W: Words>(x: *const u8, step: usize, second: bool) -> [W::F; 2] {
        // SAFETY: passed on.
        unsafe { floats::<W>(x, step, second) }
    }
}

/// Pairs of bf16; an odd last column has a zero beside it.
pub(in crate::matrix) struct Bf16;

impl Columns for Bf16 {
    const TILE: usize = 64;
    const TILES: usize = 1;

    #[inline(always)]
    unsafe fn weights<W: Words>(t: *const u8, _: bool) -> [[W::F; 2]; 2] {
        // SAFETY: a tile of this format.
        unsafe {
            let (a, b) = (W::of_bf16(W::words(t)), W::of_bf16(W::words(t.add(32))));
            [[a[0], b[0]], [a[1], b[1]]]
        }
    }

    #[inline(always)]
    unsafe fn numbers<W: Words>(x: *const u8, _: usize, _: bool) -> [W::F; 2] {
        // SAFETY: a block of two numbers.
        unsafe { W::of_bf16(W::splat(x.cast::<i32>().read())) }
    }
}
