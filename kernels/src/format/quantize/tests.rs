//! The searches on every instruction set, against a plain one with more candidates that goes number by number.

use super::*;
use crate::format::{can_quantize, dequantize};
use crate::matrix::tests::{Random, normal};

const SEARCHED: [Format; 3] = [Format::Q8_0, Format::Q4K, Format::Q6K];

fn quantized(isa: OpsIsa, format: Format, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xAA; format.row_bytes(x.len()).unwrap()];
    blocks(isa, format, x, &mut bytes);
    bytes
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    let mut random = Random::new(3);
    for round in 0..300u64 {
        let mut x = normal(round, 256 * (1 + round as usize % 5));
        match round % 6 {
            0 => {}
            1 => x.iter_mut().for_each(|x| *x = f32::from_bits(random.next() as u32)), // of any size, and what is no number
            2 => x.iter_mut().for_each(|x| *x *= 1e-38),
            3 => x.iter_mut().for_each(|x| *x *= 1e37),
            4 => x.iter_mut().for_each(|x| *x = (*x * 3.0).round() * 0.25), // many alike, and ties
            _ => x.iter_mut().for_each(|x| *x = x.abs() - if random.next().is_multiple_of(2) { 0.0 } else { 9.0 }),
        }
        if round % 7 == 0 {
            for special in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX] {
                let at = random.next() as usize % x.len();
                x[at] = special;
            }
        }
        for format in SEARCHED {
            let want = quantized(OpsIsa::Portable, format, &x);
            for isa in OpsIsa::all() {
                assert!(quantized(isa, format, &x) == want, "{format} on {isa:?}, round {round}");
            }
        }
    }
}

#[test]
fn blocks_are_quantized_alike_in_whatever_company() {
    let x = normal(5, 7 * 256);
    for format in Format::ALL.into_iter().filter(|format| can_quantize(*format) && !format.is_dense()) {
        let together = quantized(OpsIsa::best(), format, &x);
        let alone: Vec<u8> = x.chunks_exact(format.block_len()).flat_map(|x| quantized(OpsIsa::best(), format, x)).collect();
        assert!(together == alone, "{format}");
    }
}

#[test]
fn numbers_of_any_size_are_quantized_as_well() {
    let x = normal(11, 2048);
    for (format, limit) in [(Format::Q8_0, 0.008), (Format::Q6K, 0.02), (Format::Q4K, 0.085)] {
        for size in [1e-3, 1.0, 1e3, 1e5] {
            let x: Vec<f32> = x.iter().map(|x| x * size).collect();
            let loss = relative_error(format, &quantized(OpsIsa::best(), format, &x), &x).sqrt();
            assert!(loss < limit, "{format} at {size} loses {loss}");
        }
    }
}

/// Squared error over the square of the numbers.
fn relative_error(format: Format, bytes: &[u8], x: &[f32]) -> f64 {
    let mut back = vec![0.0; x.len()];
    dequantize(format, bytes, &mut back);
    let error: f64 = x.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    error / x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
}

/// Distributions that weights have: normal, with long tails, with an offset for each 32, and with every 50th number ten times as large.
fn weights(kind: u64, n: usize) -> Vec<f32> {
    let mut x = normal(kind + 77, n);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= match kind {
            0 => 0.02,
            1 => 0.02 * *x * *x,
            2 => 0.01,
            _ if i % 50 == 0 => 0.2,
            _ => 0.02,
        };
        if kind == 2 {
            *x += ((i / 32) as f32).sin() * 0.03;
        }
    }
    x
}

#[test]
fn the_search_loses_no_more_than_a_plain_one_with_more_candidates() {
    for kind in 0..4 {
        let x = weights(kind, 256 * 512);
        for format in [Format::Q6K, Format::Q4K] {
            let plain: Vec<u8> = x.as_chunks::<256>().0.iter().flat_map(|x| plain::block(format, x)).collect();
            let (plain, ours) = (relative_error(format, &plain, &x), relative_error(format, &quantized(OpsIsa::best(), format, &x), &x));
            println!("{format} of kind {kind}: {ours:.7} of the square, plain {plain:.7}: {:.4} times", ours / plain);
            // Three in a thousand: it weighs large numbers more, which here all count alike.
            assert!(ours < 1.003 * plain, "{format} of kind {kind} loses {ours}, plain {plain}");
        }
    }
}

/// The same least squares, in f64, candidate by candidate and number by number.
mod plain {
    use super::*;

    pub(super) fn block(format: Format, x: &[f32; 256]) -> Vec<u8> {
        let mut bytes = vec![0; format.block_bytes()];
        if format == Format::Q6K {
            let x: &[[f32; 16]; 16] = x.as_chunks().0.try_into().unwrap();
            q6k_block(x, &x.map(|x| symmetric_scale(&x)), bytes.as_mut_slice().try_into().unwrap());
        } else {
            let x: &[[f32; 32]; 8] = x.as_chunks().0.try_into().unwrap();
            let fits = x.map(|x| affine_fit(&x));
            let largest = |of: fn(&(f32, f32)) -> f32| half(fits.iter().map(of).fold(0.0, f32::max) / 63.0);
            let (d, dmin) = (largest(|fit| fit.0), largest(|fit| fit.1));
            let whole = |x: f32, step: f32| (x / step).round_ties_even().clamp(0.0, 63.0) as u8;
            let (scales, mins) = (fits.map(|fit| whole(fit.0, d.1)), fits.map(|fit| whole(fit.1, dmin.1)));
            q4k_block(x, &Steps { d, dmin, scales, mins }, bytes.as_mut_slice().try_into().unwrap());
        }
        bytes
    }

    fn symmetric_scale(x: &[f32]) -> f32 {
        let largest = f64::from(x.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a }));
        let (mut best, mut scale) = (0.0, 0.0);
        for step in -9..=9 {
            let (mut xq, mut qq) = (0.0, 0.0);
            for x in x.iter().map(|x| f64::from(*x)) {
                let q = (x * -(32.0 + 0.1 * f64::from(step)) / largest).round_ties_even().clamp(-32.0, 31.0);
                xq += x.powi(3) * q;
                qq += x * x * q * q;
            }
            if qq > 0.0 && xq * xq > best * qq {
                (best, scale) = (xq * xq / qq, xq / qq);
            }
        }
        scale as f32
    }

    fn affine_fit(x: &[f32]) -> (f32, f32) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let size = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let weight = |x: f64| size + x.abs();
        let least = x.iter().fold(0f64, |a, x| a.min(*x));
        let range = x.iter().fold(f64::NEG_INFINITY, |a, x| a.max(*x)) - least;
        let mut best = (f64::INFINITY, (0.0, -least));
        for step in -10..=10 {
            let inv = (15.0 + 0.1 * f64::from(step)) / range;
            let quant = |x: f64| ((x - least) * inv).round_ties_even().clamp(0.0, 15.0);
            let (mut w, mut wq, mut wqq, mut wx, mut wxq) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for &x in &x {
                let (v, q) = (weight(x), quant(x));
                w += v;
                wq += v * q;
                wqq += v * q * q;
                wx += v * x;
                wxq += v * x * q;
            }
            let det = w * wqq - wq * wq;
            let mut fit = ((w * wxq - wx * wq) / det, -(wqq * wx - wq * wxq) / det);
            if fit.1 < 0.0 || fit.0 < 0.0 {
                fit = ((wxq / wqq).max(0.0), 0.0);
            }
            let error: f64 = x.iter().map(|&x| weight(x) * (fit.0 * quant(x) - fit.1 - x).powi(2)).sum();
            if error < best.0 {
                best = (error, fit);
            }
        }
        (best.1.0 as f32, best.1.1 as f32)
    }
}
