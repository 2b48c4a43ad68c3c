//! Reading a matrix from a file, some rows after others.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::layout::{Layout, TILE_ROWS};
use super::{Matrix, MatrixError, ReadRows, pack};
use crate::format::{Format, dequantize, quantize};
use crate::memory::Buffer;
use crate::team::{SharedMut, Team};

/// Bytes that a thread reads and packs at once: they stay in its second cache on the way.
const TASK_BYTES: usize = 256 << 10;

/// A matrix of which some rows are there. It has its memory from the beginning.
#[derive(Debug)]
pub struct Loading {
    matrix: Matrix,
    from: Format,
    n_tiles_read: usize,
}

impl Loading {
    /// A matrix of `rows` rows of `columns` numbers, to be read in the format `from` and packed in the format `to`, of which none is there yet.
    pub fn new(from: Format, to: Format, rows: usize, columns: usize) -> Result<Self, MatrixError> {
        for format in [from, to] {
            format.row_bytes(columns).ok_or(MatrixError::Columns { format, columns })?;
        }
        let layout = Layout::of(to);
        let tile_bytes = layout.n_blocks(columns) * layout.tile;
        let bytes = rows.div_ceil(TILE_ROWS).checked_mul(tile_bytes).ok_or(MatrixError::Memory { bytes: usize::MAX })?;
        let data = Buffer::new(bytes).ok_or(MatrixError::Memory { bytes })?;
        Ok(Self { matrix: Matrix { format: to, rows, columns, layout, data }, from, n_tiles_read: 0 })
    }

    /// Reads the next rows, as many as take `bytes_max` packed, but 16 at least. The team's threads read, pack and convert piece by piece: no second
    /// copy of the matrix is made. True once all rows are there. After an error nothing more is to be read.
    pub fn read<E: Send + Sync>(&mut self, bytes_max: usize, team: &Team, read: &ReadRows<'_, E>) -> Result<bool, E> {
        let Matrix { format: to, rows: n_rows, columns, layout, .. } = self.matrix;
        let row_bytes = |format: Format| format.row_bytes(columns).expect("it was looked at when the matrix was made");
        let (from, from_row, to_row) = (self.from, row_bytes(self.from), row_bytes(to));
        let tile_bytes = layout.n_blocks(columns) * layout.tile;
        let n_tiles = n_rows.div_ceil(TILE_ROWS);
        let first = self.n_tiles_read;
        let end = n_tiles.min(first.saturating_add((bytes_max / tile_bytes.max(1)).max(1)));
        let start = SharedMut(self.matrix.data.as_mut_ptr());
        let per_task = (TASK_BYTES / tile_bytes.max(1)).max(1);
        let rooms: Vec<Mutex<Room>> = (0..team.n_threads()).map(|_| Mutex::default()).collect();
        let failed = OnceLock::new();
        team.run_on((end - first).div_ceil(per_task), &|thread, task| {
            let mut room = rooms[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let Room { read: bytes, numbers, converted } = &mut *room;
            let tiles = first + task * per_task..end.min(first + (task + 1) * per_task);
            let rows = tiles.start * TILE_ROWS..n_rows.min(tiles.end * TILE_ROWS);
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
        self.n_tiles_read = end;
        failed.into_inner().map_or(Ok(end == n_tiles), Err)
    }

    /// The matrix; rows that were not read are zeros.
    pub fn so_far(self) -> Matrix {
        self.matrix
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::random_rows;
    use super::*;

    #[test]
    fn read_in_parts_it_is_the_same_to_the_bit_and_no_part_is_larger_than_it_may_be() {
        let (rows, columns) = (16 * 37 + 5, 512);
        for (from, to) in [(Format::Bf16, Format::Bf16), (Format::Q8_0, Format::Q8_0), (Format::Bf16, Format::Q4K)] {
            let row_bytes = from.row_bytes(columns).unwrap();
            let file = random_rows(from, rows, columns, 3);
            let team = Team::new(2).unwrap();
            let whole = Matrix::convert(from, to, rows, columns, &file, &team).unwrap();
            let tile_bytes = Matrix::packed_bytes(to, TILE_ROWS, columns).unwrap();
            for tiles_max in [0, 1, 5, 38, 100] {
                let n_read = AtomicUsize::new(0);
                let read = |rows: Range<usize>, out: &mut [u8]| {
                    n_read.fetch_add(rows.len(), Ordering::Relaxed);
                    out.copy_from_slice(&file[rows.start * row_bytes..rows.end * row_bytes]);
                    Ok::<(), Infallible>(())
                };
                let (mut loading, mut n_parts) = (Loading::new(from, to, rows, columns).unwrap(), 0);
                loop {
                    let is_there = loading.read(tiles_max * tile_bytes, &team, &read).unwrap();
                    n_parts += 1;
                    let n_read = n_read.swap(0, Ordering::Relaxed);
                    assert!(n_read > 0 && n_read <= tiles_max.max(1) * TILE_ROWS, "{n_read} rows in a part of {tiles_max} tiles");
                    if is_there {
                        break;
                    }
                }
                assert_eq!(n_parts, 38_usize.div_ceil(tiles_max.max(1)));
                assert!(loading.so_far().data.as_slice() == whole.data.as_slice(), "{from} to {to}, {tiles_max} tiles in a part");
            }
        }
    }
}
