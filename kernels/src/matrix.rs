//! Matrices of weights, repacked for the products of a forward pass.
//!
//! A matrix lies in tiles of 16 rows, one after another, so that a product reads one stream; within a tile the rows alternate word by word
//! (`layout`), so that a vector register holds the same columns of several rows. One layout serves every instruction set, and
//! it loses nothing: the file's blocks can be had back, which is how a row is dequantized exactly.
#![allow(unsafe_code, reason = "threads pack into one buffer, each its tiles")]

mod buffer;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod product;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::format::{Format, dequantize, quantize};
use crate::team::{SharedMut, Team};
use buffer::Buffer;
use layout::{Layout, TILE_ROWS};
pub use product::{Product, multiply, multiply_as};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that a thread packs at once.
const TASK_BYTES: usize = 256 << 10;
/// Tasks after which their rows are said to be done: to let go of pages interrupts all threads, which is not worth it for a few.
const DONE_TASKS: usize = 16;

/// Why bytes are no matrix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MatrixError {
    /// Rows cannot be cut into blocks.
    #[error("a row of {columns} numbers is no whole number of {format} blocks of {}", format.block_len())]
    Columns {
        /// The format asked for.
        format: Format,
        /// Numbers in a row.
        columns: usize,
    },
    /// There are more or fewer bytes than rows and columns need.
    #[error("{rows} x {columns} numbers in {format} do not take {got} bytes")]
    Bytes {
        /// The format asked for.
        format: Format,
        /// Rows asked for.
        rows: usize,
        /// Numbers in a row.
        columns: usize,
        /// Bytes given.
        got: usize,
    },
    /// The system gives no memory.
    #[error("no memory for a matrix of {bytes} bytes")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// Packs up to 16 rows into a tile, with room to work in.
type Pack<'a> = dyn Fn(Range<usize>, &mut Vec<u8>, &mut [u8]) + Sync + 'a;

/// A matrix `[rows, columns]`, packed.
#[derive(Debug)]
pub struct Matrix {
    format: Format,
    rows: usize,
    columns: usize,
    layout: &'static Layout,
    /// `[tiles, blocks, layout.tile]` bytes; rows beyond the last are zeros.
    data: Buffer,
}

impl Matrix {
    /// Packs `rows` rows of `columns` numbers in `format` from `bytes`, as a model file holds them. Each byte is read once, so `bytes` may be
    /// a file mapped into memory.
    pub fn pack(format: Format, rows: usize, columns: usize, bytes: &[u8], team: &Team) -> Result<Self, MatrixError> {
        Self::load(format, format, rows, columns, bytes, team, &|_| {})
    }

    /// Packs the same numbers in another format `to`, one that [`crate::format::can_quantize`]: rows are converted as they are packed, and no
    /// second copy of the matrix is made.
    pub fn convert(from: Format, to: Format, rows: usize, columns: usize, bytes: &[u8], team: &Team) -> Result<Self, MatrixError> {
        Self::load(from, to, rows, columns, bytes, team, &|_| {})
    }

    /// The same, telling `done`, from the team's threads, which of `bytes` will not be looked at again: those of a mapped file may be let go
    /// while the others are read.
    pub fn load(
        from: Format,
        to: Format,
        rows: usize,
        columns: usize,
        bytes: &[u8],
        team: &Team,
        done: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self, MatrixError> {
        let from_row = row_bytes(from, rows, columns, bytes)?;
        let done = |rows: Range<usize>| done(rows.start * from_row..rows.end * from_row);
        if from == to {
            let layout = Layout::of(from);
            let pack = |rows: Range<usize>, room: &mut Vec<u8>, tile: &mut [u8]| {
                // Copied first: packing goes through sixteen rows at once, more streams than processors read ahead in.
                room.clear();
                room.extend_from_slice(&bytes[rows.start * from_row..rows.end * from_row]);
                layout.pack(from_row, room, tile);
            };
            return Self::fill(from, rows, columns, team, &pack, &done);
        }
        let to_row = to.row_bytes(columns).ok_or(MatrixError::Columns { format: to, columns })?;
        let layout = Layout::of(to);
        let pack = |rows: Range<usize>, converted: &mut Vec<u8>, tile: &mut [u8]| {
            let mut numbers = vec![0f32; columns];
            converted.resize(rows.len() * to_row, 0);
            for (row, out) in rows.zip(converted.chunks_exact_mut(to_row.max(1))) {
                dequantize(from, &bytes[row * from_row..][..from_row], &mut numbers);
                quantize(to, &numbers, out);
            }
            layout.pack(to_row, converted, tile);
        };
        Self::fill(to, rows, columns, team, &pack, &done)
    }

    /// Fills tiles with `pack(rows, room, tile)`, up to 16 rows at a time; `room` is for it to work in. `done` is told which rows are packed.
    fn fill(
        format: Format,
        rows: usize,
        columns: usize,
        team: &Team,
        pack: &Pack<'_>,
        done: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self, MatrixError> {
        let layout = Layout::of(format);
        let tile_bytes = layout.n_blocks(columns) * layout.tile;
        let n_tiles = rows.div_ceil(TILE_ROWS);
        let bytes = n_tiles.checked_mul(tile_bytes).ok_or(MatrixError::Memory { bytes: usize::MAX })?;
        let mut data = Buffer::zeroed(bytes).ok_or(MatrixError::Memory { bytes })?;
        let start = SharedMut(data.as_mut_ptr());
        let per_task = (TASK_BYTES / tile_bytes.max(1)).max(1);
        let n_tasks = n_tiles.div_ceil(per_task);
        // Tasks of each group that are still to be done.
        let groups = (0..n_tasks).step_by(DONE_TASKS).map(|first| AtomicUsize::new(DONE_TASKS.min(n_tasks - first)));
        let groups: Vec<AtomicUsize> = groups.collect();
        team.run(n_tasks, &|task| {
            let mut room = Vec::new();
            for tile in task * per_task..n_tiles.min((task + 1) * per_task) {
                // SAFETY: tile by tile, each in one task; the buffer is `n_tiles` tiles long and not used before the team is done.
                let out = unsafe { std::slice::from_raw_parts_mut(start.get().add(tile * tile_bytes), tile_bytes) };
                pack(tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS), &mut room, out);
            }
            let group = task / DONE_TASKS;
            if groups[group].fetch_sub(1, Ordering::AcqRel) == 1 {
                let rows_each = DONE_TASKS * per_task * TILE_ROWS;
                done(group * rows_each..rows.min((group + 1) * rows_each));
            }
        });
        Ok(Self { format, rows, columns, layout, data })
    }

    /// Rows: numbers in a row of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: numbers in a row of activations.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The format it was packed from.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Bytes of memory that a matrix of this shape takes; `None` if there is none such.
    pub fn packed_bytes(format: Format, rows: usize, columns: usize) -> Option<usize> {
        format.row_bytes(columns)?;
        let layout = Layout::of(format);
        rows.div_ceil(TILE_ROWS).checked_mul(layout.n_blocks(columns).checked_mul(layout.tile)?)
    }

    /// Row `row`, dequantized exactly as [`dequantize`] does with the file's bytes: the look-up of a token's embedding.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not one row long.
    pub fn embed(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "a row has {} numbers", self.columns);
        let tile_bytes = self.layout.n_blocks(self.columns) * self.layout.tile;
        let tile = &self.data.as_slice()[row / TILE_ROWS * tile_bytes..][..tile_bytes];
        self.layout.dequantize_row(tile, row % TILE_ROWS, out);
    }
}

/// Bytes of a row, if `bytes` are `rows` of them.
fn row_bytes(format: Format, rows: usize, columns: usize, bytes: &[u8]) -> Result<usize, MatrixError> {
    let row_bytes = format.row_bytes(columns).ok_or(MatrixError::Columns { format, columns })?;
    match rows.checked_mul(row_bytes) {
        Some(all) if all == bytes.len() => Ok(row_bytes),
        _ => Err(MatrixError::Bytes { format, rows, columns, got: bytes.len() }),
    }
}
