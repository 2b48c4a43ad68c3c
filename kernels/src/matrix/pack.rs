//! How rows of a model file become tiles.

use super::layout::{
    Field, IQ4_NL, IQ4_XS, Layout, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, RECORD_MAX, TILE_ROWS, expand, expands,
};
use crate::format::Format;
use crate::simd::{OpsIsa, Simd, on_isa};

/// Bytes of four words of each row.
const FOUR: usize = 4 * 4 * TILE_ROWS;

/// Bytes of tiles that are put together where they stay in the first cache, before they leave it line by line: memory is then only written.
const PIECE: usize = 4 << 10;

/// Packs up to 16 rows of `row_bytes` bytes, which follow each other in `rows`, into `tiles`. Rows that are missing become some that give 0.
pub(super) fn pack(layout: &'static Layout, row_bytes: usize, rows: &[u8], tiles: &mut [u8]) {
    pack_as(OpsIsa::best(), layout, row_bytes, rows, tiles);
}

/// The same with given instructions.
pub(super) fn pack_as(isa: OpsIsa, layout: &'static Layout, row_bytes: usize, rows: &[u8], tiles: &mut [u8]) {
    if rows.len() < TILE_ROWS * row_bytes {
        let mut all = vec![0; TILE_ROWS * row_bytes];
        all[..rows.len()].copy_from_slice(rows);
        return pack_as(isa, layout, row_bytes, &all, tiles);
    }
    on_isa!(isa, pack_pieces(layout: &Layout, row_bytes: usize, rows: &[u8], tiles: &mut [u8]) using (layout, row_bytes, rows, tiles));
}

#[inline(always)]
fn pack_pieces<S: Simd>(layout: &Layout, row_bytes: usize, rows: &[u8], tiles: &mut [u8]) {
    let mut room = [0; PIECE];
    let n_tiles = PIECE / layout.tile;
    let n_bytes = n_tiles * layout.row_bytes();
    for (piece, tiles) in tiles.chunks_mut(n_tiles * layout.tile).enumerate() {
        let from = piece * n_bytes;
        let room = &mut room[..tiles.len()];
        pack_rows::<S>(layout, n_bytes.min(row_bytes - from), row_bytes, &rows[from..], room);
        S::copy_past(room, tiles);
    }
    S::fence();
}

/// Packs `n_bytes` bytes of each of sixteen rows, which begin `stride` bytes from each other.
#[inline(always)]
fn pack_rows<S: Simd>(layout: &Layout, n_bytes: usize, stride: usize, rows: &[u8], tiles: &mut [u8]) {
    // Where the layout is known to the compiler, a block is moved without a branch.
    match layout.format {
        Format::F16 => pack_halves(n_bytes, stride, rows, tiles),
        Format::F32 | Format::Bf16 => pack_words::<S>(n_bytes, stride, rows, tiles),
        Format::Q8_0 => pack_q8_0::<S>(stride, rows, tiles),
        Format::Q4_0 => pack_blocks::<S>(&Q4_0, stride, rows, tiles),
        Format::Q4_1 => pack_blocks::<S>(&Q4_1, stride, rows, tiles),
        Format::Q5_0 => pack_blocks::<S>(&Q5_0, stride, rows, tiles),
        Format::Q5_1 => pack_blocks::<S>(&Q5_1, stride, rows, tiles),
        Format::Q2K => pack_blocks::<S>(&Q2K, stride, rows, tiles),
        Format::Q3K => pack_blocks::<S>(&Q3K, stride, rows, tiles),
        Format::Q4K => pack_k::<S>(&Q4K, stride, rows, tiles),
        Format::Q5K => pack_k::<S>(&Q5K, stride, rows, tiles),
        Format::Q6K => pack_blocks::<S>(&Q6K, stride, rows, tiles),
        Format::Iq4Nl => pack_blocks::<S>(&IQ4_NL, stride, rows, tiles),
        Format::Iq4Xs => pack_blocks::<S>(&IQ4_XS, stride, rows, tiles),
    }
}

/// Rows of 2 bytes for each number.
#[inline(always)]
fn pack_halves(n_bytes: usize, stride: usize, rows: &[u8], tiles: &mut [u8]) {
    let lanes = tiles.as_chunks_mut::<2>().0;
    for row in 0..TILE_ROWS {
        let numbers = rows[row * stride..][..n_bytes].as_chunks::<2>().0;
        for (number, lanes) in numbers.iter().zip(lanes.as_chunks_mut::<TILE_ROWS>().0) {
            lanes[row] = *number;
        }
    }
}

/// Rows of words: a number of 4 bytes, or two of 2 bytes, of which an odd last one has the neighbour 0.
#[inline(always)]
fn pack_words<S: Simd>(n_bytes: usize, stride: usize, rows: &[u8], tiles: &mut [u8]) {
    let n_whole = n_bytes / 16;
    let (fours, rest) = tiles.split_at_mut(n_whole * FOUR);
    for (i, out) in fours.as_chunks_mut::<FOUR>().0.iter_mut().enumerate() {
        S::transpose(&rows[16 * i..], stride, 0, out);
    }
    if !rest.is_empty() {
        rest.fill(0);
        for row in 0..TILE_ROWS {
            let bytes = &rows[row * stride..][16 * n_whole..n_bytes];
            for (word, lanes) in bytes.chunks(4).zip(rest.as_chunks_mut::<{ 4 * TILE_ROWS }>().0) {
                lanes[4 * row..][..word.len()].copy_from_slice(word);
            }
        }
    }
}

/// As [`pack_blocks`] of Q8_0, without a record on the way: the largest files have this format, and reading one is then waiting for memory.
#[inline(always)]
fn pack_q8_0<S: Simd>(stride: usize, rows: &[u8], tiles: &mut [u8]) {
    const BLOCK: usize = Format::Q8_0.block_bytes();
    for (b, tile) in tiles.as_chunks_mut::<{ BLOCK * TILE_ROWS }>().0.iter_mut().enumerate() {
        let (scales, words) = tile.split_at_mut(2 * TILE_ROWS);
        let rows = &rows[b * BLOCK..];
        for (row, scale) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            scale.copy_from_slice(&rows[row * stride..][..2]);
        }
        for (i, out) in words.as_chunks_mut::<FOUR>().0.iter_mut().enumerate() {
            S::transpose(&rows[2 + 16 * i..], stride, 0x8080_8080, out);
        }
    }
}

/// As [`pack_blocks`] of Q4_K and Q5_K, without a record on the way: the packed scales of sixteen rows are spread together.
#[inline(always)]
fn pack_k<S: Simd>(layout: &Layout, stride: usize, rows: &[u8], tiles: &mut [u8]) {
    /// Bytes of a block before its words: d, dmin, packed scales and minima.
    const PACKED: usize = 16;
    /// The same of a tile, spread.
    const SPREAD: usize = 20 * TILE_ROWS;
    for (b, tile) in tiles.chunks_exact_mut(layout.tile).enumerate() {
        let blocks = &rows[b * layout.format.block_bytes()..];
        let (head, words) = tile.split_first_chunk_mut::<SPREAD>().expect("a tile begins with its scales");
        spread_scales::<S>(blocks, stride, head);
        for (i, out) in words.as_chunks_mut::<FOUR>().0.iter_mut().enumerate() {
            S::transpose(&blocks[PACKED + 16 * i..], stride, 0, out);
        }
    }
}

/// d and dmin, eight scales, eight minima as four pairs: field after field, each of sixteen rows.
#[inline(always)]
fn spread_scales<S: Simd>(blocks: &[u8], stride: usize, head: &mut [u8; 20 * TILE_ROWS]) {
    let [d, low_scales, low_mins, high] = lanes::<S>(blocks, stride);
    let (d_out, rest) = head.split_at_mut(4 * TILE_ROWS);
    let (scales_out, mins_out) = rest.split_at_mut(8 * TILE_ROWS);
    write_halves(&d, d_out);
    let (first, second) = scales_out.split_at_mut(4 * TILE_ROWS);
    write_bytes(&low_scales.map(|low| low & 0x3f3f_3f3f), first);
    write_bytes(&std::array::from_fn(|row| high[row] & 0x0f0f_0f0f | low_scales[row] >> 2 & 0x3030_3030), second);
    let (first, second) = mins_out.split_at_mut(4 * TILE_ROWS);
    write_halves(&low_mins.map(|low| low & 0x3f3f_3f3f), first);
    write_halves(&std::array::from_fn(|row| high[row] >> 4 & 0x0f0f_0f0f | low_mins[row] >> 2 & 0x3030_3030), second);
}

/// A word of each of sixteen rows.
type Lanes = [u32; TILE_ROWS];

/// The first four words of each of sixteen rows.
#[inline(always)]
fn lanes<S: Simd>(rows: &[u8], stride: usize) -> [Lanes; 4] {
    let mut bytes = [0; FOUR];
    S::transpose(rows, stride, 0, &mut bytes);
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| std::array::from_fn(|row| u32::from_le_bytes(words[i * TILE_ROWS + row])))
}

/// Two fields of 2 bytes from one of 4.
#[inline(always)]
fn write_halves(lanes: &Lanes, out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(2 * TILE_ROWS).enumerate() {
        for (lane, out) in lanes.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = ((lane >> (16 * i)) as u16).to_le_bytes();
        }
    }
}

/// Four fields of a byte from one of 4 bytes.
#[inline(always)]
fn write_bytes(lanes: &Lanes, out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(TILE_ROWS).enumerate() {
        for (lane, out) in lanes.iter().zip(out) {
            *out = (lane >> (8 * i)) as u8;
        }
    }
}

#[inline(always)]
fn pack_blocks<S: Simd>(layout: &Layout, stride: usize, rows: &[u8], tiles: &mut [u8]) {
    let mut records = [0u8; RECORD_MAX * TILE_ROWS];
    let block_bytes = layout.format.block_bytes();
    for (b, tile) in tiles.chunks_exact_mut(layout.tile).enumerate() {
        let blocks = &rows[b * block_bytes..];
        let (records, stride) = if expands(layout.format) {
            for (row, record) in records.as_chunks_mut::<RECORD_MAX>().0.iter_mut().enumerate() {
                expand(layout.format, &blocks[row * stride..][..block_bytes], record);
            }
            (&records[..], RECORD_MAX)
        } else {
            (blocks, stride)
        };
        for field in layout.fields {
            match field.width {
                1 => scatter::<1>(field, records, stride, tile),
                2 => scatter::<2>(field, records, stride, tile),
                _ if field.count.is_multiple_of(4) => {
                    for i in 0..field.count / 4 {
                        let out = tile[field.to + i * FOUR..].first_chunk_mut().expect("a field lies within its tile");
                        S::transpose(&records[field.from + 16 * i..], stride, 0, out);
                    }
                }
                _ => scatter::<4>(field, records, stride, tile),
            }
        }
    }
}

#[inline(always)]
fn scatter<const W: usize>(field: &Field, records: &[u8], stride: usize, tile: &mut [u8]) {
    let lanes = tile[field.to..field.to + field.count * W * TILE_ROWS].as_chunks_mut::<W>().0;
    for row in 0..TILE_ROWS {
        let from = records[row * stride + field.from..][..field.count * W].as_chunks::<W>().0;
        for (x, lanes) in from.iter().zip(lanes.as_chunks_mut::<TILE_ROWS>().0) {
            lanes[row] = *x;
        }
    }
}
