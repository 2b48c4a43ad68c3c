//! The kernels of machines for which there is no better: weights and activations become floats, block by block.
#![allow(unsafe_code, reason = "reads and writes through the addresses of a span")]

use super::layout::{Layout, TILE_ROWS};
use super::product::{Kernel, Span};
use crate::format::Format;
use crate::rows::{Block32, Block256, Form, GROUP};
use half::bf16;

/// The kernel for `format`.
pub(super) fn kernel(format: Format) -> Kernel {
    match format {
        Format::F32 => product::<0>,
        Format::F16 => product::<1>,
        Format::Bf16 => product::<2>,
        Format::Q8_0 => product::<3>,
        Format::Q4_0 => product::<4>,
        Format::Q4_1 => product::<5>,
        Format::Q5_0 => product::<6>,
        Format::Q5_1 => product::<7>,
        Format::Q2K => product::<8>,
        Format::Q3K => product::<9>,
        Format::Q4K => product::<10>,
        Format::Q5K => product::<11>,
        Format::Q6K => product::<12>,
        Format::Iq4Nl => product::<13>,
        Format::Iq4Xs => product::<14>,
    }
}

/// Columns that are made floats at a time.
const PIECE: usize = 256;

/// Formats are numbered as in [`Format::ALL`].
unsafe fn product<const FORMAT: usize>(span: &Span) {
    let format = Format::ALL[FORMAT];
    let layout = Layout::of(format);
    let blocks_per_piece = (PIECE / layout.columns).max(1);
    let mut w = [[0f32; TILE_ROWS]; PIECE]; // [column, row]
    let mut row = [0f32; PIECE];
    let mut acc = [[0f32; TILE_ROWS]; GROUP];
    for first in (0..span.n_blocks).step_by(blocks_per_piece) {
        let n_blocks = blocks_per_piece.min(span.n_blocks - first);
        let n = n_blocks * layout.columns;
        // SAFETY: tiles `first..first + n_blocks` of the span.
        let tiles = unsafe { std::slice::from_raw_parts(span.tile.add(first * layout.tile), n_blocks * layout.tile) };
        for r in 0..TILE_ROWS {
            layout.dequantize_row(tiles, r, &mut row[..n]);
            w.iter_mut().zip(&row[..n]).for_each(|(w, x)| w[r] = *x);
        }
        for (m, acc) in acc[..span.m].iter_mut().enumerate() {
            // SAFETY: row `m` of the span, blocks `first..first + n_blocks`.
            unsafe { activations(format, span, m, first, &mut row[..n]) };
            for (w, x) in w.iter().zip(&row[..n]) {
                acc.iter_mut().zip(w).for_each(|(acc, w)| *acc += w * x);
            }
        }
    }
    for (m, acc) in acc[..span.m].iter().enumerate() {
        // SAFETY: row `m` of the span's output has room for `n_out` numbers.
        unsafe { std::slice::from_raw_parts_mut(span.out.add(m * span.stride), span.n_out) }.copy_from_slice(&acc[..span.n_out]);
    }
}

/// Blocks of row `m` from `first` on, as floats.
///
/// # Safety
/// The span must have them, in the form of `format`.
unsafe fn activations(format: Format, span: &Span, m: usize, first: usize, out: &mut [f32]) {
    let form = Form::of(format);
    let (columns, bytes) = form.block();
    for (i, out) in out.chunks_exact_mut(columns).enumerate() {
        // SAFETY: a block of the row, by contract.
        unsafe {
            let block = span.x.add((first + i) * span.step + m * bytes);
            match form {
                Form::F32 => out[0] = block.cast::<f32>().read(),
                Form::Bf16 => out.iter_mut().zip(block.cast::<[u16; 2]>().read()).for_each(|(x, b)| *x = bf16::from_bits(b).to_f32()),
                Form::Blocks32 => {
                    let block = &*block.cast::<Block32>();
                    out.iter_mut().zip(block.qs).for_each(|(x, q)| *x = f32::from(q) * block.d);
                }
                Form::Blocks256 => {
                    let block = &*block.cast::<Block256>();
                    out.iter_mut().zip(block.qs).for_each(|(x, q)| *x = f32::from(q) * block.d);
                }
            }
        }
    }
}
