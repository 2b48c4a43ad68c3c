//! Products of any shape and of any bits that a file may hold, on every instruction set that this machine has; and what is refused.

use super::{normal, random_rows, rounded};
use crate::format::{Format, dequantize};
use crate::isa::Isa;
use crate::matrix::tests::Random;
use crate::matrix::{Matrix, Product, multiply, multiply_as};
use crate::rows::{Activations, Form, Forms};
use crate::team::Team;
use proptest::prelude::*;

/// The rows of `x` times the matrix of these bytes, `[n, rows]`.
fn product(isa: Isa, team: &Team, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut activations = Activations::new();
    activations.load(team, x, matrix.columns(), Forms::of(matrix.format()));
    let mut out = vec![f32::NAN; activations.n() * matrix.rows()];
    multiply_as(isa, team, &mut [Product { matrix, out: &mut out }], &activations);
    out
}

/// Says where `got` is not what plain arithmetic on the dequantized matrix gives: near it where that is a number, else none either.
fn disagreement(format: Format, bytes: &[u8], columns: usize, x: &[f32], got: &[f32]) -> Option<String> {
    let rows = bytes.len() / format.row_bytes(columns).unwrap();
    let mut w = vec![0f32; rows * columns];
    dequantize(format, bytes, &mut w);
    for (i, x) in x.chunks(columns).enumerate() {
        let x = rounded(Form::of(format), x);
        for (r, w) in w.chunks(columns).enumerate() {
            let terms = || w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x);
            let (want, size, got) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>(), f64::from(got[i * rows + r]));
            let good = if size > 1e37 {
                true // may leave the range of f32 on the way
            } else if want.is_finite() {
                (got - want).abs() <= 3e-6 * size + 1e-9
            } else {
                !got.is_finite()
            };
            if !good {
                return Some(format!("[{i}, {r}] is {got}, not {want}, of terms of {size} together"));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_shape_is_multiplied_right(which in 0..Format::ALL.len(), rows in 1usize..70, blocks in 1usize..6, odd in 0usize..2, n in 1usize..20, seed in any::<u64>()) {
        let format = Format::ALL[which];
        let columns = if format.is_dense() { 13 * blocks + odd } else { format.block_len() * blocks };
        let (team, bytes, x) = (Team::new(2).unwrap(), random_rows(format, rows, columns, seed), normal(seed, n * columns));
        let matrix = Matrix::pack(format, rows, columns, &bytes, &team).unwrap();
        for isa in Isa::available() {
            let whole = product(isa, &team, &matrix, &x);
            prop_assert_eq!(disagreement(format, &bytes, columns, &x, &whole), None, "{} {}: {}x{}, n {}", format, isa, rows, columns, n);
            let last = product(isa, &team, &matrix, &x[(n - 1) * columns..]);
            prop_assert_eq!(&whole[(n - 1) * rows..], &last, "{} {}: alone", format, isa);
        }
    }
}

#[test]
fn whatever_bits_a_file_holds_the_product_is_right_or_visibly_none() {
    let (team, rows, columns) = (Team::new(1).unwrap(), 64, 512);
    for format in Format::ALL {
        // Scales of every kind: not numbers, infinite, subnormal, negative.
        let mut random = Random::new(format as u64 + 1);
        let bytes: Vec<u8> = (0..rows * format.row_bytes(columns).unwrap()).map(|_| (random.next() >> 32) as u8).collect();
        let matrix = Matrix::pack(format, rows, columns, &bytes, &team).unwrap();
        for size in [1.0, 1e-20, 1e10] {
            let x: Vec<f32> = normal(2, 3 * columns).iter().map(|x| x * size).collect();
            for isa in Isa::available() {
                let wrong = disagreement(format, &bytes, columns, &x, &product(isa, &team, &matrix, &x));
                assert_eq!(wrong, None, "{format} {isa}, x {size}");
            }
        }
    }
}

#[test]
fn infinite_and_subnormal_activations_are_multiplied_as_such() {
    let (team, columns) = (Team::new(1).unwrap(), 256);
    for format in Format::ALL {
        let bytes = random_rows(format, 16, columns, 6);
        let matrix = Matrix::pack(format, 16, columns, &bytes, &team).unwrap();
        for isa in Isa::available() {
            let mut x = normal(3, columns);
            x[17] = f32::INFINITY;
            assert!(product(isa, &team, &matrix, &x).iter().all(|x| !x.is_finite()), "{format} {isa}");
            x.fill(1e-40);
            assert!(product(isa, &team, &matrix, &x).iter().all(|x| x.abs() < 1e-30), "{format} {isa}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn both_kinds_of_byte_products_give_the_same_bits() {
    let (team, columns) = (Team::new(1).unwrap(), 1024);
    if !Isa::available().contains(&Isa::AvxVnni) {
        println!("skipped: this machine has no byte dot products");
        return;
    }
    for format in Format::ALL {
        let matrix = Matrix::pack(format, 40, columns, &random_rows(format, 40, columns, 4), &team).unwrap();
        let x = normal(8, 9 * columns);
        assert!(product(Isa::Avx2, &team, &matrix, &x) == product(Isa::AvxVnni, &team, &matrix, &x), "{format}");
    }
}

/// A matrix of 32 columns and rows for it.
fn small() -> (Team, Matrix, Activations) {
    let team = Team::new(1).unwrap();
    let matrix = Matrix::pack(Format::Q8_0, 16, 32, &[0; 16 * 34], &team).unwrap();
    let mut activations = Activations::new();
    activations.load(&team, &[1.0; 64], 32, Forms::of(Format::Q8_0));
    (team, matrix, activations)
}

#[test]
#[should_panic(expected = "room for 2 rows of 16")]
fn a_result_without_room_is_refused() {
    let (team, matrix, activations) = small();
    multiply(&team, &mut [Product { matrix: &matrix, out: &mut [0.0; 31] }], &activations);
}

#[test]
#[should_panic(expected = "a matrix of 32 columns and rows of 64")]
fn rows_of_another_width_are_refused() {
    let (team, matrix, mut activations) = small();
    activations.load(&team, &[1.0; 64], 64, Forms::of(Format::Q8_0));
    multiply(&team, &mut [Product { matrix: &matrix, out: &mut [0.0; 16] }], &activations);
}

#[test]
#[should_panic(expected = "activations were not made for Blocks32")]
fn rows_in_another_form_are_refused() {
    let (team, matrix, mut activations) = small();
    activations.load(&team, &[1.0; 64], 32, Forms::of(Format::F32));
    multiply(&team, &mut [Product { matrix: &matrix, out: &mut [0.0; 32] }], &activations);
}

#[test]
#[should_panic(expected = "33 columns are no whole number of blocks of 32")]
fn rows_that_are_no_whole_blocks_are_refused() {
    let (team, _, mut activations) = small();
    activations.load(&team, &[1.0; 33], 33, Forms::of(Format::Q8_0));
}

#[test]
#[should_panic(expected = "a row beyond the 2 there are")]
fn gathering_a_row_that_is_not_there_is_refused() {
    let (team, _, mut activations) = small();
    activations.gather(&team, &[1.0; 64], 32, &[0, 2], Forms::of(Format::Q8_0));
}

#[test]
fn rows_that_failed_on_the_way_are_not_held() {
    let (team, matrix, mut activations) = small();
    let forms = Forms::of(Format::F32).and(Forms::of(Format::Q8_0));
    let load = std::panic::AssertUnwindSafe(|| activations.compute(&team, 1000, 32, forms, &|row, _| assert!(row < 2, "no row {row}")));
    assert!(std::panic::catch_unwind(load).is_err());
    assert_eq!(activations.n(), 0);
    multiply(&team, &mut [Product { matrix: &matrix, out: &mut [] }], &activations); // of no rows
    let huge = std::panic::AssertUnwindSafe(|| activations.compute(&team, usize::MAX / 64, 32, forms, &|_, _| {}));
    assert!(std::panic::catch_unwind(huge).is_err());
}
