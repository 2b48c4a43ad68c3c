//! Matrices of weights, repacked for the products of a forward pass.
//!
//! A matrix lies in tiles of 16 rows, one after another, so that a product reads one stream; within a tile the rows alternate word by word
//! (`layout`), so that a vector register holds the same columns of several rows. One layout serves every instruction set, and
//! it loses nothing: the file's blocks can be had back, which is how a row is dequantized exactly.
#![allow(unsafe_code, reason = "threads pack into one buffer, each its tiles")]

mod layout;
mod loading;
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

use crate::format::Format;
use crate::memory::Buffer;
use crate::team::Team;
use layout::{Layout, TILE_ROWS};
pub use loading::Loading;
pub use product::{Product, multiply, multiply_as};
use std::convert::Infallible;
use std::ops::Range;

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
        let mut loading = Loading::new(from, to, rows, columns)?;
        loading.read(usize::MAX, team, read).map_err(LoadError::Read)?;
        Ok(loading.so_far())
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

    /// Row `row`, dequantized exactly as [`crate::format::dequantize`] does with the file's bytes: the look-up of a token's embedding.
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
