//! Products against plain arithmetic in f64, on every instruction set that this machine has.

mod robustness;

use super::*;
use crate::format::{dequantize, quantize};
use crate::isa::Isa;
use crate::rows::{Activations, Form, Forms};
use crate::simd::OpsIsa;
use half::{bf16, f16};

/// A small generator of random numbers (xorshift), the same on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// `n` numbers, about normally distributed.
pub(crate) fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut unit = || (random.next() >> 40) as f32 / (1 << 24) as f32;
    (0..n).map(|_| (0..12).map(|_| unit()).sum::<f32>() - 6.0).collect()
}

/// Random bytes that are valid rows of `format`: its floats are made small.
pub(crate) fn random_rows(format: Format, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => {
            let mut bytes = vec![0; rows * format.row_bytes(columns).unwrap()];
            quantize(format, &normal(seed, rows * columns), &mut bytes);
            bytes
        }
        _ => {
            let mut bytes: Vec<u8> = (0..rows * format.row_bytes(columns).unwrap()).map(|_| (random.next() >> 32) as u8).collect();
            let halves: &[usize] = match format {
                Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
                Format::Q2K => &[80, 82],
                Format::Q3K => &[108],
                Format::Q6K => &[208],
                _ => &[0],
            };
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for &at in halves {
                    let d = ((random.next() >> 40) as f32 / (1 << 24) as f32 - 0.3) * 0.01;
                    block[at..at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                }
            }
            bytes
        }
    }
}

/// What the activations' form makes of row `x`.
fn rounded(form: Form, x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        // In f32, as activations are rounded: where a number lies near the middle, another arithmetic would choose the other side.
        let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
        let (scale, d) = if largest < 1e-30 { (0.0, 0.0) } else { (127.0 / largest, f64::from(largest / 127.0)) };
        x.iter().map(|x| f64::from((x * scale).round_ties_even()) * d).collect::<Vec<_>>()
    };
    match form {
        Form::F32 => x.iter().map(|x| f64::from(*x)).collect(),
        Form::Bf16 => x.iter().map(|x| bf16::from_f32(*x).to_f64()).collect(),
        Form::Blocks32 => x.chunks(32).flat_map(block).collect(),
        Form::Blocks256 => x.chunks(256).flat_map(block).collect(),
    }
}

#[test]
fn a_product_is_what_plain_arithmetic_says_on_every_instruction_set() {
    let team = Team::new(2).unwrap();
    for format in Format::ALL {
        for (rows, columns) in [(37, 512), (16, 256), (1, 1024), (19, 5120), (130, if format.is_dense() { 77 } else { 768 })] {
            let bytes = random_rows(format, rows, columns, 7);
            let matrix = Matrix::pack(format, rows, columns, &bytes, &team).unwrap();
            let mut w = vec![0f32; rows * columns];
            dequantize(format, &bytes, &mut w);
            for n in [1, 2, 3, 4, 5, 8, 13] {
                let x = normal(n as u64, n * columns);
                let mut activations = Activations::new();
                activations.load(&team, &x, columns, Forms::of(format));
                for isa in Isa::available() {
                    let mut out = vec![f32::NAN; n * rows];
                    multiply_as(isa, &team, &mut [Product { matrix: &matrix, out: &mut out }], &activations);
                    for i in 0..n {
                        let x = rounded(Form::of(format), &x[i * columns..(i + 1) * columns]);
                        for r in 0..rows {
                            let terms = || w[r * columns..(r + 1) * columns].iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
                            let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                            let got = f64::from(out[i * rows + r]);
                            // Sums in f32 of terms as large as these.
                            assert!(
                                (got - want).abs() <= 3e-6 * size + 1e-9,
                                "{format} {isa:?} {rows}x{columns} n {n} [{i}, {r}]: {got}, not {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_its_company_and_its_place() {
    const PLACES: [(usize, usize); 14] =
        [(0, 1), (1, 1), (7, 1), (300, 1), (529, 1), (5, 2), (3, 3), (100, 4), (9, 5), (2, 6), (1, 7), (6, 8), (260, 17), (18, 512)];
    // The longer rows are summed in several parts.
    for (rows, columns, all) in [(50, 512, 530), (18, 5120, 20)] {
        for format in Format::ALL {
            let team = Team::new(1).unwrap();
            let matrix = Matrix::pack(format, rows, columns, &random_rows(format, rows, columns, 3), &team).unwrap();
            let x = normal(11, all * columns);
            for isa in Isa::available() {
                let product = |team: &Team, first: usize, n: usize| {
                    let mut activations = Activations::new();
                    activations.load(team, &x[first * columns..(first + n) * columns], columns, Forms::of(format));
                    let mut out = vec![0f32; n * rows];
                    multiply_as(isa, team, &mut [Product { matrix: &matrix, out: &mut out }], &activations);
                    out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                };
                let whole = product(&Team::new(3).unwrap(), 0, all);
                for (first, n) in PLACES.into_iter().filter(|(first, n)| first + n <= all) {
                    let same = product(&team, first, n) == whole[first * rows..(first + n) * rows];
                    assert!(same, "{format} {isa:?}: rows {first}.. of {n}, {columns} columns");
                }
            }
        }
    }
}

#[test]
fn packing_loses_nothing() {
    let team = Team::new(2).unwrap();
    for format in Format::ALL {
        for (rows, columns) in [(1, 256), (16, 512), (45, 768), (45, if format.is_dense() { 301 } else { 1024 })] {
            let bytes = random_rows(format, rows, columns, 5);
            let matrix = Matrix::pack(format, rows, columns, &bytes, &team).unwrap();
            let (mut want, mut got) = (vec![0f32; columns], vec![f32::NAN; columns]);
            for (row, bytes) in bytes.chunks(format.row_bytes(columns).unwrap()).enumerate() {
                dequantize(format, bytes, &mut want);
                matrix.embed(row, &mut got);
                assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{format} row {row}");
            }
            let file = rows.next_multiple_of(16) * format.row_bytes(columns).unwrap();
            assert!(matrix.bytes() <= file * 106 / 100 + 64, "{format}: {} bytes of {file}", matrix.bytes());
        }
    }
}

#[test]
fn a_tile_is_the_same_on_every_instruction_set_whatever_it_held_before() {
    for format in Format::ALL {
        for (rows, columns) in [(16, 512), (5, 768), (16, if format.is_dense() { 301 } else { 256 })] {
            let (bytes, layout) = (random_rows(format, rows, columns, 6), Layout::of(format));
            let row_bytes = format.row_bytes(columns).unwrap();
            let tiles = |isa, held| {
                let mut tiles = vec![held; layout.n_blocks(columns) * layout.tile];
                pack::pack_as(isa, layout, row_bytes, &bytes, &mut tiles);
                tiles
            };
            let want = tiles(OpsIsa::Portable, 0);
            for isa in OpsIsa::all() {
                assert!(want == tiles(isa, 0xab), "{format} {isa:?} {rows} x {columns}");
            }
        }
    }
}

#[test]
fn rows_that_cannot_be_read_are_no_matrix() {
    let (team, columns) = (Team::new(2).unwrap(), 1024);
    let read = |rows: Range<usize>, out: &mut [u8]| {
        out.fill(0);
        if rows.contains(&1234) { Err("row 1234") } else { Ok(()) }
    };
    let load = |rows| Matrix::load(Format::F32, Format::Q8_0, rows, columns, &team, &read);
    assert_eq!(load(1234).unwrap().rows(), 1234);
    assert_eq!(load(2500).unwrap_err().to_string(), "row 1234");
}

#[test]
fn several_matrices_of_different_formats_share_their_rows() {
    let (team, n, columns) = (Team::new(2).unwrap(), 9, 512);
    let x = normal(1, n * columns);
    let formats = [Format::Q4K, Format::Q6K, Format::Q8_0, Format::Bf16, Format::F32];
    let matrices: Vec<Matrix> = formats
        .iter()
        .zip([48, 20, 33, 16, 7])
        .map(|(&format, rows)| Matrix::pack(format, rows, columns, &random_rows(format, rows, columns, 2), &team).unwrap())
        .collect();
    let alone = |matrix: &Matrix| {
        let (mut activations, mut out) = (Activations::new(), vec![0f32; n * matrix.rows()]);
        activations.load(&team, &x, columns, Forms::of(matrix.format()));
        multiply(&team, &mut [Product { matrix, out: &mut out }], &activations);
        out
    };
    let mut activations = Activations::new();
    activations.load(&team, &x, columns, formats.iter().fold(Forms::default(), |forms, &format| forms.and(Forms::of(format))));
    let mut outs: Vec<Vec<f32>> = matrices.iter().map(|matrix| vec![0f32; n * matrix.rows()]).collect();
    let mut products: Vec<Product<'_>> = matrices.iter().zip(&mut outs).map(|(matrix, out)| Product { matrix, out }).collect();
    multiply(&team, &mut products, &activations);
    for (matrix, out) in matrices.iter().zip(&outs) {
        assert_eq!(&alone(matrix), out, "{}", matrix.format());
    }
}

#[test]
fn gathered_and_computed_rows_are_those_that_were_loaded() {
    let (team, columns) = (Team::new(2).unwrap(), 1024);
    let x = normal(4, 40 * columns);
    let rows: Vec<u32> = (0..33).map(|i| i * 7 % 40).collect();
    let dense: Vec<f32> = rows.iter().flat_map(|&r| &x[r as usize * columns..(r as usize + 1) * columns]).copied().collect();
    for format in [Format::Q8_0, Format::Q4K, Format::Bf16, Format::F16] {
        let matrix = Matrix::pack(format, 20, columns, &random_rows(format, 20, columns, 9), &team).unwrap();
        let product = |activations: &Activations| {
            let mut out = vec![0f32; activations.n() * 20];
            multiply(&team, &mut [Product { matrix: &matrix, out: &mut out }], activations);
            out
        };
        let mut activations = Activations::new();
        activations.load(&team, &dense, columns, Forms::of(format));
        let want = product(&activations);
        activations.gather(&team, &x, columns, &rows, Forms::of(format));
        assert_eq!(product(&activations), want);
        activations
            .compute(&team, rows.len(), columns, Forms::of(format), &|i, out| out.copy_from_slice(&dense[i * columns..(i + 1) * columns]));
        assert_eq!(product(&activations), want);
    }
}

#[test]
fn a_number_that_is_none_is_not_hidden() {
    let team = Team::new(1).unwrap();
    for format in Format::ALL {
        let matrix = Matrix::pack(format, 16, 256, &random_rows(format, 16, 256, 9), &team).unwrap();
        let mut x = normal(1, 256);
        x[100] = f32::NAN;
        let (mut activations, mut out) = (Activations::new(), vec![0f32; 16]);
        activations.load(&team, &x, 256, Forms::of(format));
        for isa in Isa::available() {
            multiply_as(isa, &team, &mut [Product { matrix: &matrix, out: &mut out }], &activations);
            assert!(out.iter().all(|x| x.is_nan()), "{format} {isa:?}: {out:?}");
        }
    }
}

#[test]
fn converting_while_packing_is_quantizing_what_was_dequantized() {
    let team = Team::new(2).unwrap();
    for from in [Format::F32, Format::Bf16, Format::Q8_0, Format::Q6K] {
        for to in [Format::Q8_0, Format::Q4K, Format::Q6K, Format::F16].into_iter().filter(|&to| to != from) {
            // An odd number of blocks, too.
            let (rows, columns) = (19, if from.block_len() < 256 && to.block_len() < 256 { 288 } else { 768 });
            let bytes = random_rows(from, rows, columns, 8);
            let mut numbers = vec![0f32; rows * columns];
            dequantize(from, &bytes, &mut numbers);
            let mut quantized = vec![0; rows * to.row_bytes(columns).unwrap()];
            quantize(to, &numbers, &mut quantized);
            let (converted, packed) =
                (Matrix::convert(from, to, rows, columns, &bytes, &team), Matrix::pack(to, rows, columns, &quantized, &team));
            assert!(converted.unwrap().data.as_slice() == packed.unwrap().data.as_slice(), "{from} to {to}");
        }
    }
}

#[test]
fn bytes_that_are_no_matrix_are_refused() {
    let team = Team::new(1).unwrap();
    let columns = Matrix::pack(Format::Q4K, 2, 300, &[0; 288], &team).unwrap_err();
    assert_eq!(columns.to_string(), "a row of 300 numbers is no whole number of Q4_K blocks of 256");
    let bytes = Matrix::pack(Format::Q8_0, 2, 32, &[0; 67], &team).unwrap_err();
    assert_eq!(bytes.to_string(), "2 x 32 numbers in Q8_0 do not take 67 bytes");
    assert!(Matrix::pack(Format::F32, usize::MAX, 64, &[], &team).is_err());
}
