//! Every format against a second, slower reading of its description, and the losses of quantizing.

use super::*;
use proptest::prelude::*;

/// The value at `i` of a block, computed bit by bit.
fn value(format: Format, b: &[u8], i: usize) -> f32 {
    let h = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let nibble = |at: usize, i: usize| f32::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let bit = |at: usize, i: usize| f32::from(b[at + i / 8] >> (i % 8) & 1);
    let table = |q: f32| f32::from(blocks::IQ4_VALUES[q as usize]);
    match format {
        Format::Q8_0 => h(0) * f32::from(b[2 + i] as i8),
        Format::Q4_0 => h(0) * (nibble(2, i) - 8.0),
        Format::Q4_1 => h(0) * nibble(4, i) + h(2),
        Format::Q5_0 => h(0) * (nibble(6, i) + 16.0 * bit(2, i) - 16.0),
        Format::Q5_1 => h(0) * (nibble(8, i) + 16.0 * bit(4, i)) + h(2),
        Format::Iq4Nl => h(0) * table(nibble(2, i)),
        Format::Iq4Xs => {
            let s = i / 32;
            let low = if s & 1 == 0 { b[4 + s / 2] & 15 } else { b[4 + s / 2] >> 4 };
            let high = (u16::from_le_bytes([b[2], b[3]]) >> (2 * s) & 3) as u8;
            h(0) * (f32::from(low) + 16.0 * f32::from(high) - 32.0) * table(nibble(8 + 16 * s, i % 32))
        }
        Format::Q2K => {
            let q = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            h(80) * f32::from(b[i / 16] & 15) * f32::from(q) - h(82) * f32::from(b[i / 16] >> 4)
        }
        Format::Q3K => {
            let q = f32::from(b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
            let q = if b[i % 32] & 1 << (i / 32) == 0 { q - 4.0 } else { q };
            let s = i / 16;
            let low = if s < 8 { b[96 + s] & 15 } else { b[96 + s - 8] >> 4 };
            let high = b[104 + s % 4] >> (s / 4 * 2) & 3;
            h(108) * (f32::from(low) + 16.0 * f32::from(high) - 32.0) * q
        }
        Format::Q4K | Format::Q5K => {
            let s = i / 32;
            let (scale, min) =
                if s < 4 { (b[4 + s] % 64, b[8 + s] % 64) } else { (b[8 + s] % 16 + b[s] / 64 * 16, b[8 + s] / 16 + b[4 + s] / 64 * 16) };
            let qs = if format == Format::Q4K { 16 } else { 48 };
            let byte = b[qs + i / 64 * 32 + i % 32];
            let mut q = f32::from(if s & 1 == 0 { byte % 16 } else { byte / 16 });
            if format == Format::Q5K {
                q += 16.0 * f32::from(b[16 + i % 32] >> s & 1);
            }
            h(0) * f32::from(scale) * q - h(2) * f32::from(min)
        }
        Format::Q6K => {
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = b[half * 64 + quarter % 2 * 32 + l];
            let low = f32::from(if quarter < 2 { low % 16 } else { low / 16 });
            let high = f32::from(b[128 + half * 32 + l] >> (2 * quarter) & 3);
            h(208) * f32::from(b[192 + i / 16] as i8) * (low + 16.0 * high - 32.0)
        }
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!(),
    }
}

/// Where a block of `format` has its f16 numbers.
fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        _ => &[0],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_block_means_what_its_description_says(bytes in prop::collection::vec(any::<u8>(), 210), d in -2f32..2.0, m in -2f32..2.0) {
        for format in Format::ALL.into_iter().filter(|format| !format.is_dense()) {
            let mut block = bytes[..format.block_bytes()].to_vec();
            for (&at, x) in halves(format).iter().zip([d, m]) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
            }
            let mut out = vec![f32::NAN; format.block_len()];
            dequantize(format, &block, &mut out);
            for (i, x) in out.iter().enumerate() {
                let want = value(format, &block, i);
                prop_assert!((x - want).abs() <= 1e-5 * (1.0 + want.abs()), "{} at {}: {} instead of {}", format, i, x, want);
            }
        }
    }

    #[test]
    fn quantizing_loses_no_more_than_the_format_must(seed in any::<u64>(), size in 1e-4f32..100.0) {
        let x = crate::matrix::tests::normal(seed, 1024).iter().map(|x| x * size).collect::<Vec<_>>();
        // Root of the mean squared error over that of the numbers; a normal distribution, so a property of format and search.
        for (format, limit) in [(Format::F32, 0.0), (Format::F16, 4e-4), (Format::Bf16, 3e-3), (Format::Q8_0, 0.008), (Format::Q6K, 0.02), (Format::Q4K, 0.085)] {
            let mut bytes = vec![0xAA; format.row_bytes(x.len()).unwrap()];
            quantize(format, &x, &mut bytes);
            let mut back = vec![0f32; x.len()];
            dequantize(format, &bytes, &mut back);
            let error = x.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
            let loss = error / x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            prop_assert!(loss <= limit, "{} loses {}", format, loss);
        }
    }
}

#[test]
fn zeros_stay_zeros_and_constants_stay_near() {
    for format in [Format::Q8_0, Format::Q4K, Format::Q6K] {
        for constant in [0.0, 0.5, -0.5, 1e-9] {
            let mut bytes = vec![0xAA; format.block_bytes()];
            quantize(format, &vec![constant; format.block_len()], &mut bytes);
            let mut back = vec![0f32; format.block_len()];
            dequantize(format, &bytes, &mut back);
            assert!(back.iter().all(|x| (x - constant).abs() <= 0.02 * f32::abs(constant) + 1e-7), "{format} of {constant}: {back:?}");
        }
    }
}

#[test]
fn formats_know_their_numbers_and_lengths() {
    for format in Format::ALL {
        assert_eq!(Format::from_gguf(format.gguf()), Some(format));
        assert_eq!(format.row_bytes(512), Some(512 / format.block_len() * format.block_bytes()));
        assert_eq!(format.row_bytes(33).is_some(), format.is_dense());
    }
    assert_eq!(Format::from_gguf(9), None);
}
