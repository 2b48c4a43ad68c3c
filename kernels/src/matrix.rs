//! Matrices of weights, repacked for the products of a forward pass.
//!
//! A matrix lies in tiles of 16 rows, one after another, so that a product reads one stream; within a tile the rows alternate word by word
//! (`layout`), so that a vector register holds the same columns of several rows. One layout serves every instruction set, and
//! it loses nothing: the file's blocks can be had back, which is how a row is dequantized exactly.
#![allow(unsafe_code, reason = "threads pack into one buffer, each its tiles")]

mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod portable;
mod product;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod words;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::format::{Format, dequantize, quantize};
use crate::memory::Buffer;
use crate::team::{SharedMut, Team};
use layout::{Layout, TILE_ROWS};
pub use product::{Product, multiply, multiply_as};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes that a thread reads and packs at once: they stay in its second cache on the way.
const TASK_BYTES: usize = 256 << 10;

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

/// Why a matrix was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E> {
    /// It would be none.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// Its rows could not be read.
    #[error("{0}")]
    Read(E),
}

/// Reads some rows, one after another as a model file holds them, into a slice of their length. Several threads read at a time.
pub type ReadRows<'a, E> = dyn Fn(Range<usize>, &mut [u8]) -> Result<(), E> + Sync + 'a;

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
    /// Packs `rows` rows of `columns` numbers in `format` from `bytes`, as a model file holds them.
    pub fn pack(format: Format, rows: usize, columns: usize, bytes: &[u8], team: &Team) -> Result<Self, MatrixError> {
        Self::convert(format, format, rows, columns, bytes, team)
    }

    /// Packs the same numbers in another format `to`, one that [`crate::format::can_quantize`].
    pub fn convert(from: Format, to: Format, rows: usize, columns: usize, bytes: &[u8], team: &Team) -> Result<Self, MatrixError> {
        let row_bytes = from.row_bytes(columns).ok_or(MatrixError::Columns { format: from, columns })?;
        if rows.checked_mul(row_bytes) != Some(bytes.len()) {
            return Err(MatrixError::Bytes { format: from, rows, columns, got: bytes.len() });
        }
        let read = |rows: Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            Ok::<(), Infallible>(())
        };
        Self::load(from, to, rows, columns, team, &read).map_err(|error| match error {
            LoadError::Matrix(error) => error,
            LoadError::Read(never) => match never {},
        })
    }

    /// Reads `rows` rows of `columns` numbers in the format `from` and packs them in the format `to`, the same or one that
    /// [`crate::format::can_quantize`]. The team's threads read, pack and convert piece by piece: no second copy of the matrix is made.
    pub fn load<E: Send + Sync>(
        from: Format,
        to: Format,
        rows: usize,
        columns: usize,
        team: &Team,
        read: &ReadRows<'_, E>,
    ) -> Result<Self, LoadError<E>> {
        let bytes_of = |format: Format| format.row_bytes(columns).ok_or(MatrixError::Columns { format, columns });
        let (from_row, to_row) = (bytes_of(from)?, bytes_of(to)?);
        let layout = Layout::of(to);
        let tile_bytes = layout.n_blocks(columns) * layout.tile;
        let n_tiles = rows.div_ceil(TILE_ROWS);
        let bytes = n_tiles.checked_mul(tile_bytes).ok_or(MatrixError::Memory { bytes: usize::MAX })?;
        let mut data = Buffer::new(bytes).ok_or(MatrixError::Memory { bytes })?;
        let start = SharedMut(data.as_mut_ptr());
        let per_task = (TASK_BYTES / tile_bytes.max(1)).max(1);
        let rooms: Vec<Mutex<Room>> = (0..team.n_threads()).map(|_| Mutex::default()).collect();
        let failed = OnceLock::new();
        team.run_on(n_tiles.div_ceil(per_task), &|thread, task| {
            let mut room = rooms[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let Room { read: bytes, numbers, converted } = &mut *room;
            let tiles = task * per_task..n_tiles.min((task + 1) * per_task);
            let rows = tiles.start * TILE_ROWS..rows.min(tiles.end * TILE_ROWS);
            bytes.resize(rows.len() * from_row, 0);
            if failed.get().is_some() {
                return;
            }
            if let Err(error) = read(rows.clone(), bytes) {
                let _another_failed_first = failed.set(error);
                return;
            }
            let bytes = if from == to {
                &*bytes
            } else {
                converted.resize(rows.len() * to_row, 0);
                // Two rows at a time, so that blocks come in pairs.
                for (rows, out) in bytes.chunks((2 * from_row).max(1)).zip(converted.chunks_mut((2 * to_row).max(1))) {
                    numbers.resize(rows.len() / from_row.max(1) * columns, 0.0);
                    dequantize(from, rows, numbers);
                    quantize(to, numbers, out);
                }
                &*converted
            };
            for (tile, bytes) in tiles.zip(bytes.chunks((TILE_ROWS * to_row).max(1))) {
                // SAFETY: tile by tile, each in one task; the buffer is `n_tiles` tiles long and not used before the team is done.
                let out = unsafe { std::slice::from_raw_parts_mut(start.get().add(tile * tile_bytes), tile_bytes) };
                pack::pack(layout, to_row, bytes, out);
            }
        });
        match failed.into_inner() {
            Some(error) => Err(LoadError::Read(error)),
            None => Ok(Self { format: to, rows, columns, layout, data }),
        }
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

/// What a thread works in while it loads.
#[derive(Debug, Default)]
struct Room {
    read: Vec<u8>,
    /// Two rows.
    numbers: Vec<f32>,
    converted: Vec<u8>,
}
