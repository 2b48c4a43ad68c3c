//! Rounding a row of f32 to the form that a kernel multiplies. One code for all machines: compiled again for wider vectors, with the same bits.
#![allow(unsafe_code, reason = "writes to places in a buffer that other threads write to as well")]

use super::{Block32, Block256, Form};
use crate::isa::Isa;
use half::bf16;

/// Writes row `x` in `form`, its blocks `step` bytes apart from `to` on.
///
/// # Safety
/// `to` and the places `step` bytes on, one for each block of `x`, must be writable, aligned for the form, and nobody else's.
pub(super) unsafe fn row(form: Form, x: &[f32], to: *mut u8, step: usize) {
    match Isa::best() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this machine has the instructions; the caller vouches for the places.
        Isa::Avx512 => unsafe { x86::row_avx512(form, x, to, step) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe { x86::row_avx2(form, x, to, step) },
        // SAFETY: the caller vouches for the places.
        _ => unsafe { convert(form, x, to, step) },
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Form, convert};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn row_avx512(form: Form, x: &[f32], to: *mut u8, step: usize) {
        // SAFETY: passed on.
        unsafe { convert(form, x, to, step) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn row_avx2(form: Form, x: &[f32], to: *mut u8, step: usize) {
        // SAFETY: passed on.
        unsafe { convert(form, x, to, step) }
    }
}

#[inline(always)]
unsafe fn convert(form: Form, x: &[f32], to: *mut u8, step: usize) {
    match form {
        Form::F32 => {
            for (i, x) in x.iter().enumerate() {
                // SAFETY: place `i` of the row, by contract.
                unsafe { to.add(i * step).cast::<f32>().write(*x) };
            }
        }
        Form::Bf16 => {
            let (pairs, rest) = x.as_chunks::<2>();
            for (i, pair) in pairs.iter().enumerate() {
                // SAFETY: place `i` of the row, by contract.
                unsafe { to.add(i * step).cast::<u32>().write(round_bf16(pair[0]) | round_bf16(pair[1]) << 16) };
            }
            if let [last] = rest {
                // SAFETY: the last place of the row, by contract.
                unsafe { to.add(pairs.len() * step).cast::<u32>().write(round_bf16(*last)) };
            }
        }
        Form::Blocks32 => {
            for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
                // SAFETY: place `i` of the row, by contract; nothing is read from it before it is written.
                let block = unsafe { &mut *to.add(i * step).cast::<Block32>() };
                block.d = bytes(x, &mut block.qs);
                let sum: i32 = block.qs.iter().map(|&q| i32::from(q)).sum();
                block.zero = -128 * sum;
                block.sum = block.d * sum as f32;
            }
        }
        Form::Blocks256 => {
            for (i, x) in x.as_chunks::<256>().0.iter().enumerate() {
                // SAFETY: place `i` of the row, by contract; nothing is read from it before it is written.
                let block = unsafe { &mut *to.add(i * step).cast::<Block256>() };
                block.d = bytes(x, &mut block.qs);
                for (sum, qs) in block.sums16.iter_mut().zip(block.qs.as_chunks::<16>().0) {
                    *sum = qs.iter().map(|&q| i16::from(q)).sum();
                }
                for (sum, pair) in block.sums32.iter_mut().zip(block.sums16.as_chunks::<2>().0) {
                    *sum = pair[0] + pair[1];
                }
            }
        }
    }
}

/// The bf16 nearest to `x`, ties to even; a number that is none stays none.
#[inline(always)]
fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { u32::from(bf16::NAN.to_bits()) } else { (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 }
}

/// Rounds `x` to whole multiples, -127 to 127, of the scale that is returned. A scale that is no number (an input was not finite) makes
/// the product no number either, rather than a wrong one.
#[inline(always)]
fn bytes<const N: usize>(x: &[f32; N], qs: &mut [i8; N]) -> f32 {
    /// Adding it leaves the nearest whole number, ties to even, in the low bits, for numbers up to 2^22.
    const ROUND: f32 = 12_582_912.0;
    // As whole numbers, magnitudes order like the floats, and what is no number is the largest of all.
    let largest = f32::from_bits(x.iter().fold(0u32, |a, x| a.max(x.to_bits() & 0x7FFF_FFFF)));
    if largest < 1e-30 {
        qs.fill(0);
        return 0.0;
    }
    let inv = 127.0 / largest;
    for (q, x) in qs.iter_mut().zip(x) {
        *q = ((x * inv + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_nearest_multiples_of_the_scale() {
        let x: [f32; 256] = crate::matrix::tests::normal(5, 256).try_into().unwrap();
        let mut qs = [0i8; 256];
        let d = bytes(&x, &mut qs);
        assert!(x.iter().zip(qs).all(|(x, q)| (x - d * f32::from(q)).abs() <= d * 0.5001));
        assert_eq!(qs.iter().map(|q| q.unsigned_abs()).max(), Some(127));
        assert_eq!(bytes(&[0.0; 32], &mut [1; 32]), 0.0);
        assert!(bytes(&[1.0, f32::NAN], &mut [0; 2]).is_nan());
        assert!(!bytes(&[1.0, f32::INFINITY], &mut [0; 2]).is_finite());
    }

    #[test]
    fn rounding_to_bf16_agrees_with_the_library() {
        for x in crate::matrix::tests::normal(6, 4096).into_iter().chain([
            0.0,
            -0.0,
            f32::INFINITY,
            f32::MAX,
            1e-40,
            257.0 / 256.0,
            259.0 / 256.0,
        ]) {
            assert_eq!(round_bf16(x), u32::from(bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(bf16::from_bits(round_bf16(f32::NAN) as u16).is_nan());
    }
}
