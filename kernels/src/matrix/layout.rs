//! How the blocks of 16 rows lie in a tile.
//!
//! Each block is first written as a *record*: its bytes, but for packed scales, which are spread to one byte each (4 bytes more for
//! Q4_K and Q5_K, 4 for Q3_K, 2 for IQ4_XS), for the fifth bits of Q5_0 and Q5_1, which are sorted by word, and for Q8_0, stored with 128
//! added. A record is a list of fields of 1, 2 or 4 bytes; in the tile, field `i` of the 16 rows lies together. What a kernel loads is thus
//! 16 lanes of 4 bytes for the numbers, 16 lanes of 2 bytes for a scale.

use crate::format::{Format, dequantize, scales_of_k, scales_of_q3k};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// The longest record.
pub(super) const RECORD_MAX: usize = 256;

/// `count` fields of `width` bytes each, from byte `from` of a record on, from byte `to` of a tile on.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) width: usize,
    pub(super) count: usize,
}

const fn field(from: usize, to: usize, width: usize, count: usize) -> Field {
    Field { from, to, width, count }
}

/// The layout of a format's tiles.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) format: Format,
    /// Columns of a tile: those of a block, 2 for BF16, 1 for F16 and F32.
    pub(super) columns: usize,
    /// Bytes of a tile: sixteen records.
    pub(super) tile: usize,
    pub(super) fields: &'static [Field],
}

const fn layout(format: Format, columns: usize, record: usize, fields: &'static [Field]) -> Layout {
    Layout { format, columns, tile: record * TILE_ROWS, fields }
}

pub(super) static F32: Layout = layout(Format::F32, 1, 4, &[field(0, 0, 4, 1)]);
pub(super) static F16: Layout = layout(Format::F16, 1, 2, &[field(0, 0, 2, 1)]);
pub(super) static BF16: Layout = layout(Format::Bf16, 2, 4, &[field(0, 0, 4, 1)]);
/// d, 8 words.
pub(super) static Q8_0: Layout = layout(Format::Q8_0, 32, 34, &[field(0, 0, 2, 1), field(2, 32, 4, 8)]);
/// d, 4 words of two times 4 bits: columns `4w..` low, `16 + 4w..` high.
pub(super) static Q4_0: Layout = layout(Format::Q4_0, 32, 18, &[field(0, 0, 2, 1), field(2, 32, 4, 4)]);
pub(super) static IQ4_NL: Layout = layout(Format::Iq4Nl, 32, 18, &[field(0, 0, 2, 1), field(2, 32, 4, 4)]);
/// d, m, 4 words.
pub(super) static Q4_1: Layout = layout(Format::Q4_1, 32, 20, &[field(0, 0, 2, 2), field(4, 64, 4, 4)]);
/// d, fifth bits (bit `w` of byte `t` is that of column `4w + t`), 4 words.
pub(super) static Q5_0: Layout = layout(Format::Q5_0, 32, 22, &[field(0, 0, 2, 1), field(2, 32, 4, 1), field(6, 96, 4, 4)]);
/// d, m, fifth bits, 4 words.
pub(super) static Q5_1: Layout = layout(Format::Q5_1, 32, 24, &[field(0, 0, 2, 2), field(4, 64, 4, 1), field(8, 128, 4, 4)]);
/// d, dmin, 16 bytes of scale (low) and minimum (high) as 8 pairs, 16 words of four times 2 bits.
pub(super) static Q2K: Layout = layout(Format::Q2K, 256, 84, &[field(80, 0, 2, 2), field(0, 64, 2, 8), field(16, 320, 4, 16)]);
/// d, 16 scales as 8 pairs, 8 words of third bits, 16 words of four times 2 bits.
pub(super) static Q3K: Layout =
    layout(Format::Q3K, 256, 114, &[field(96, 0, 2, 1), field(98, 32, 2, 8), field(0, 288, 4, 8), field(32, 800, 4, 16)]);
/// d, dmin, 8 scales, 8 minima as 4 pairs, 32 words.
pub(super) static Q4K: Layout =
    layout(Format::Q4K, 256, 148, &[field(0, 0, 2, 2), field(4, 64, 1, 8), field(12, 192, 2, 4), field(20, 320, 4, 32)]);
/// d, dmin, 8 scales, 8 minima as 4 pairs, 8 words of fifth bits, 32 words.
pub(super) static Q5K: Layout = layout(
    Format::Q5K,
    256,
    180,
    &[field(0, 0, 2, 2), field(4, 64, 1, 8), field(12, 192, 2, 4), field(20, 320, 4, 8), field(52, 832, 4, 32)],
);
/// d, 16 scales as 8 pairs; then, for each half and in it each 16 columns of a quarter, what is used together: 4 words of high bits for
/// four quarters, 4 words of low bits for the first and third, 4 words for the second and fourth.
pub(super) static Q6K: Layout = layout(
    Format::Q6K,
    256,
    210,
    &[
        field(208, 0, 2, 1),
        field(192, 32, 2, 8),
        field(128, 288, 4, 4),
        field(0, 544, 4, 4),
        field(32, 800, 4, 4),
        field(144, 1056, 4, 4),
        field(16, 1312, 4, 4),
        field(48, 1568, 4, 4),
        field(160, 1824, 4, 4),
        field(64, 2080, 4, 4),
        field(96, 2336, 4, 4),
        field(176, 2592, 4, 4),
        field(80, 2848, 4, 4),
        field(112, 3104, 4, 4),
    ],
);
/// d, 8 scales as 4 pairs, 32 words.
pub(super) static IQ4_XS: Layout = layout(Format::Iq4Xs, 256, 138, &[field(0, 0, 2, 1), field(2, 32, 2, 4), field(10, 160, 4, 32)]);

impl Layout {
    pub(super) fn of(format: Format) -> &'static Self {
        match format {
            Format::F32 => &F32,
            Format::F16 => &F16,
            Format::Bf16 => &BF16,
            Format::Q8_0 => &Q8_0,
            Format::Q4_0 => &Q4_0,
            Format::Q4_1 => &Q4_1,
            Format::Q5_0 => &Q5_0,
            Format::Q5_1 => &Q5_1,
            Format::Q2K => &Q2K,
            Format::Q3K => &Q3K,
            Format::Q4K => &Q4K,
            Format::Q5K => &Q5K,
            Format::Q6K => &Q6K,
            Format::Iq4Nl => &IQ4_NL,
            Format::Iq4Xs => &IQ4_XS,
        }
    }

    /// Bytes of a row of a file that go into one tile.
    pub(super) fn row_bytes(&self) -> usize {
        self.columns / self.format.block_len() * self.format.block_bytes()
    }

    /// Tiles in a row of tiles that covers `columns` columns.
    pub(super) fn n_blocks(&self, columns: usize) -> usize {
        columns.div_ceil(self.columns)
    }

    /// Row `row` (of 16) of `tiles`, as floats.
    pub(super) fn dequantize_row(&self, tiles: &[u8], row: usize, out: &mut [f32]) {
        let mut record = [0u8; RECORD_MAX];
        let mut block = [0u8; RECORD_MAX];
        for (tile, out) in tiles.chunks_exact(self.tile).zip(out.chunks_mut(self.columns)) {
            for field in self.fields {
                for i in 0..field.count {
                    let (from, to) = (field.from + i * field.width, field.to + (i * TILE_ROWS + row) * field.width);
                    record[from..from + field.width].copy_from_slice(&tile[to..to + field.width]);
                }
            }
            let block = if shrink(self.format, &record, &mut block) { &block } else { &record };
            let n_bytes = out.len() / self.format.block_len() * self.format.block_bytes(); // fewer in an odd last column of BF16
            dequantize(self.format, &block[..n_bytes], out);
        }
    }
}

/// Are a format's records other than its blocks?
pub(super) const fn expands(format: Format) -> bool {
    matches!(format, Format::Q4K | Format::Q5K | Format::Q3K | Format::Iq4Xs | Format::Q5_0 | Format::Q5_1 | Format::Q8_0)
}

/// The record of a block `b` of a format that [`expands`].
#[inline(always)]
pub(super) fn expand(format: Format, b: &[u8], record: &mut [u8; RECORD_MAX]) {
    match format {
        Format::Q4K | Format::Q5K => {
            let (scales, mins) = scales_of_k(&b[4..16]);
            record[..4].copy_from_slice(&b[..4]);
            record[4..12].copy_from_slice(&scales);
            record[12..20].copy_from_slice(&mins);
            record[20..b.len() + 4].copy_from_slice(&b[16..]);
        }
        Format::Q3K => {
            record[..96].copy_from_slice(&b[..96]);
            record[96..98].copy_from_slice(&b[108..110]);
            record[98..114].copy_from_slice(&scales_of_q3k(&b[96..108]).map(|x| x as u8));
        }
        Format::Iq4Xs => {
            let high = u16::from_le_bytes([b[2], b[3]]);
            record[..2].copy_from_slice(&b[..2]);
            for i in 0..8 {
                record[2 + i] = (b[4 + i / 2] >> (4 * (i % 2)) & 15 | ((high >> (2 * i) & 3) as u8) << 4).wrapping_sub(32);
            }
            record[10..138].copy_from_slice(&b[8..136]);
        }
        Format::Q5_0 | Format::Q5_1 => {
            let at = b.len() - 20;
            record[..b.len()].copy_from_slice(b);
            let bits = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
            for (t, byte) in record[at..at + 4].iter_mut().enumerate() {
                *byte = (0..8).fold(0, |byte, w| byte | ((bits >> (4 * w + t as u32) & 1) as u8) << w);
            }
        }
        Format::Q8_0 => {
            record[..2].copy_from_slice(&b[..2]);
            for (x, q) in record[2..34].iter_mut().zip(&b[2..34]) {
                *x = q ^ 0x80;
            }
        }
        _ => {}
    }
}

/// The inverse of [`expand`].
fn shrink(format: Format, record: &[u8; RECORD_MAX], b: &mut [u8; RECORD_MAX]) -> bool {
    match format {
        Format::Q4K | Format::Q5K => {
            let (scales, mins) = (&record[4..12], &record[12..20]);
            b[..4].copy_from_slice(&record[..4]);
            for j in 0..4 {
                b[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
                b[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
                b[12 + j] = scales[j + 4] & 15 | mins[j + 4] << 4;
            }
            b[16..176].copy_from_slice(&record[20..180]);
        }
        Format::Q3K => {
            b[..96].copy_from_slice(&record[..96]);
            b[108..110].copy_from_slice(&record[96..98]);
            b[96..108].fill(0);
            for j in 0..16 {
                let scale = record[98 + j].wrapping_add(32);
                b[96 + j % 8] |= (scale & 15) << (4 * (j / 8));
                b[104 + j % 4] |= scale >> 4 << (2 * (j / 4));
            }
        }
        Format::Iq4Xs => {
            b[..2].copy_from_slice(&record[..2]);
            b[2..8].fill(0);
            for i in 0..8 {
                let scale = record[2 + i].wrapping_add(32);
                b[4 + i / 2] |= (scale & 15) << (4 * (i % 2));
                b[2 + i / 4] |= scale >> 4 << (2 * (i % 4));
            }
            b[8..136].copy_from_slice(&record[10..138]);
        }
        Format::Q5_0 | Format::Q5_1 => {
            let at = format.block_bytes() - 20;
            *b = *record;
            let bits = (0..32).fold(0u32, |bits, i| bits | u32::from(record[at + i % 4] >> (i / 4) & 1) << i);
            b[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        }
        Format::Q8_0 => {
            b[..2].copy_from_slice(&record[..2]);
            for (x, q) in b[2..34].iter_mut().zip(&record[2..34]) {
                *x = q ^ 0x80;
            }
        }
        _ => return false,
    }
    true
}
