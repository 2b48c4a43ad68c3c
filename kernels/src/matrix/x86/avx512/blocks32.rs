//! Formats with blocks of 32 columns.
#![allow(unsafe_code, reason = "vector instructions, and addresses of a tile")]
#![allow(clippy::needless_range_loop, reason = "one index for accumulators in registers and for addresses")]

use std::arch::x86_64::*;

use super::{AND_OR, Blocks, halves, load, spread};
use crate::rows::Block32;

/// The values of IQ4 with 128 added, for codes.
#[inline(always)]
pub(super) unsafe fn iq4(mut codes: [__m512i; 8]) -> [__m512i; 8] {
    const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
    // SAFETY: reads the constant.
    let table = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE.as_ptr().cast())) };
    for code in &mut codes {
        // SAFETY: no memory is touched.
        *code = unsafe { _mm512_shuffle_epi8(table, *code) };
    }
    codes
}

/// A format with blocks of 32.
pub(super) trait Codes {
    const TILE: usize;
    /// `Block32::zero` is shifted right by this to give the zero point's part; `None`: there is a minimum instead.
    const ZERO: Option<u32>;
    /// The codes of columns `4 * i..` of all rows.
    unsafe fn codes(t: *const u8) -> [__m512i; 8];
}

pub(super) struct Of32<C>(C);

impl<C: Codes> Blocks for Of32<C> {
    const TILE: usize = C::TILE;
    const ROW: usize = size_of::<Block32>();

    #[inline(always)]
    unsafe fn add<const M: usize>(t: *const u8, x: *const u8, acc: &mut [__m512; M]) {
        // SAFETY: the contract of `add`.
        unsafe {
            let codes = C::codes(t);
            let d = halves(t, 0);
            for m in 0..M {
                let x = x.add(m * Self::ROW);
                let mut even = match C::ZERO {
                    Some(0) => spread(x, 36),
                    Some(shift) => _mm512_sra_epi32(spread(x, 36), _mm_cvtsi32_si128(shift as i32)),
                    None => _mm512_setzero_si512(),
                };
                let mut odd = _mm512_setzero_si512();
                for i in 0..8 {
                    if M < 4 && i % 2 == 1 {
                        odd = _mm512_dpbusd_epi32(odd, codes[i], spread(x, 4 * i));
                    } else {
                        even = _mm512_dpbusd_epi32(even, codes[i], spread(x, 4 * i));
                    }
                }
                if M < 4 {
                    even = _mm512_add_epi32(even, odd);
                }
                let x_d = _mm512_set1_ps(x.add(32).cast::<f32>().read());
                acc[m] = _mm512_fmadd_ps(d, _mm512_mul_ps(_mm512_cvtepi32_ps(even), x_d), acc[m]);
                if C::ZERO.is_none() {
                    acc[m] = _mm512_fmadd_ps(halves(t, 32), _mm512_set1_ps(x.add(40).cast::<f32>().read()), acc[m]);
                }
            }
        }
    }
}

/// The codes of 4 bits in the 4 words at `t + at`.
#[inline(always)]
pub(super) unsafe fn nibbles(t: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let w = [load(t, at), load(t, at + 64), load(t, at + 128), load(t, at + 192)];
        let high = |w| _mm512_and_si512(_mm512_srli_epi16::<4>(w), low);
        let low = |w| _mm512_and_si512(w, low);
        [low(w[0]), low(w[1]), low(w[2]), low(w[3]), high(w[0]), high(w[1]), high(w[2]), high(w[3])]
    }
}

/// As [`nibbles`], with the fifth bits before them.
#[inline(always)]
unsafe fn fifths(t: *const u8, at: usize) -> [__m512i; 8] {
    // SAFETY: the caller's tile has these bytes.
    unsafe {
        let (bits, one) = (load(t, at), _mm512_set1_epi8(16));
        let n = nibbles(t, at + 64);
        [
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<4>(bits), one, n[0]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<3>(bits), one, n[1]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<2>(bits), one, n[2]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_slli_epi32::<1>(bits), one, n[3]),
            _mm512_ternarylogic_epi32::<AND_OR>(bits, one, n[4]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<1>(bits), one, n[5]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<2>(bits), one, n[6]),
            _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<3>(bits), one, n[7]),
        ]
    }
}

macro_rules! codes {
    ($($name:ident, $tile:expr, $zero:expr, |$t:ident| $codes:expr;)*) => { $(
        pub(super) struct $name;
        impl Codes for $name {
            const TILE: usize = $tile;
            const ZERO: Option<u32> = $zero;
            #[inline(always)]
            unsafe fn codes($t: *const u8) -> [__m512i; 8] {
                // SAFETY: a tile of this format.
                unsafe { $codes }
            }
        }
    )* };
}
codes! {
    Q8_0, 544, Some(0), |t| std::array::from_fn(|i| load(t, 32 + 64 * i));
    Q4_0, 288, Some(4), |t| nibbles(t, 32);
    Q4_1, 320, None, |t| nibbles(t, 64);
    Q5_0, 352, Some(3), |t| fifths(t, 32);
    Q5_1, 384, None, |t| fifths(t, 64);
    Iq4Nl, 288, Some(0), |t| iq4(nibbles(t, 32));
}
