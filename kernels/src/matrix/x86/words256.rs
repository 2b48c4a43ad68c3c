//! Vectors of eight rows in registers of 256 bits: AVX2, alone or with byte dot products.
#![allow(unsafe_code, reason = "vector instructions, and addresses of tiles and blocks")]
#![allow(clippy::needless_range_loop, reason = "one index for codes in registers and for addresses")]

use crate::format::Format;
use crate::matrix::product::{Kernel, Span};
use crate::matrix::words::{Words, entries};
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

/// The largest magnitude of an activation.
const X_MAX: usize = 127;

entries!(avx2, "avx2,fma,f16c", Avx2);
entries!(vnni, "avx2,fma,f16c,avxvnni", Vnni<false>);
entries!(vnni512, "avx2,fma,f16c,avx512vl,avx512vnni", Vnni<true>);
entries!(dense dense, "avx2,fma,f16c", Avx2);

/// The kernel for `format` with AVX2, and with byte dot products if `vnni`.
pub(super) fn kernel(format: Format, vnni: bool) -> Kernel {
    match vnni {
        _ if format.is_dense() => dense(format),
        false => avx2(format),
        true if is_x86_feature_detected!("avxvnni") => self::vnni(format),
        true => vnni512(format),
    }
}

/// AVX2: sums of pairs in 16 bits, added as long as they cannot overflow, then widened by a multiplication with the scale.
struct Avx2;

/// Byte dot products: of AVX-512 if `EVEX`, of AVX-VNNI otherwise. The same operation in two encodings.
struct Vnni<const EVEX: bool>;

/// Four bytes at `x + at`, in all lanes.
#[inline(always)]
unsafe fn spread(x: *const u8, at: usize) -> __m256i {
    // SAFETY: the caller's block has these bytes.
    unsafe { _mm256_set1_epi32(x.add(at).cast::<i32>().read_unaligned()) }
}

/// Methods of [`Words`] that are one expression of vector instructions.
macro_rules! instructions {
    ($(fn $name:ident $(<const $constant:ident: $kind:ty>)? ($($argument:ident: $type:ty),*) $(-> $result:ty)? { $body:expr })*) => { $(
        #[inline(always)]
        unsafe fn $name $(<const $constant: $kind>)? ($($argument: $type),*) $(-> $result)? {
            // SAFETY: the contract of `Words`: the machine has the instructions, and what is behind an address is long enough.
            unsafe { $body }
        }
    )* };
}

/// What both kinds share.
macro_rules! shared {
    () => {
        type I = __m256i;
        type F = __m256;
        instructions! {
            fn words(p: *const u8) -> __m256i { _mm256_loadu_si256(p.cast()) }
            fn signed_pairs(p: *const u8) -> __m256i { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
            fn unsigned_pairs(p: *const u8) -> __m256i { _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast())) }
            fn bytes(p: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
            fn halves(p: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
            fn floats(p: *const u8) -> __m256 { _mm256_loadu_ps(p.cast()) }
            fn fetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
            fn store(v: __m256, out: *mut f32) { _mm256_storeu_ps(out, v) }
            fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
            fn nibble<const HIGH: bool>(a: __m256i) -> __m256i {
                _mm256_and_si256(if HIGH { _mm256_srli_epi16::<4>(a) } else { a }, _mm256_set1_epi8(15))
            }
            fn moved(a: __m256i, from: usize, to: usize, mask: u8) -> __m256i {{
                let shifted = if from > to {
                    _mm256_srl_epi32(a, _mm_cvtsi32_si128((from - to) as i32))
                } else {
                    _mm256_sll_epi32(a, _mm_cvtsi32_si128((to - from) as i32))
                };
                _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
            }}
            fn whole_bytes(a: __m256i) -> __m256i { if Self::SIGNED { _mm256_xor_si256(a, _mm256_set1_epi8(-128)) } else { a } }
            fn look_up(table: &[u8; 16], codes: __m256i) -> __m256i {
                _mm256_shuffle_epi8(Self::whole_bytes(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()))), codes)
            }
            fn splat(x: i32) -> __m256i { _mm256_set1_epi32(x) }
            fn less<const SHIFT: i32>(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, _mm256_slli_epi32::<SHIFT>(b)) }
            fn of_pair<const SECOND: bool>(pairs: __m256i) -> __m256i {
                _mm256_srai_epi32::<16>(if SECOND { pairs } else { _mm256_slli_epi32::<16>(pairs) })
            }
            fn add_pairs(sums: __m256i, pairs: __m256i, x: *const u8) -> __m256i {
                _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, spread(x, 0)))
            }
            fn number(x: f32) -> __m256 { _mm256_set1_ps(x) }
            fn converted(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
            fn of_bf16(pairs: __m256i) -> [__m256; 2] {
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
                    _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536))),
                ]
            }
            fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        }
    };
}

impl Words for Avx2 {
    const SIGNED: bool = true;
    shared!();

    #[inline(always)]
    unsafe fn scale(words: __m256i) -> __m256i {
        // SAFETY: no memory is touched.
        unsafe { _mm256_blend_epi16::<0xAA>(words, _mm256_slli_epi32::<16>(words)) }
    }

    #[inline(always)]
    unsafe fn scaled<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8, scale: __m256i) -> __m256i {
        // SAFETY: `x` has `4 * N` bytes, by contract.
        unsafe {
            let mut sum = start;
            if MAX == 255 {
                // Signed bytes: the sign moves to the activations. 2 * 128 * 127 is below 2^15.
                for i in 0..N {
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(spread(x, 4 * i), codes[i]));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
                }
                return sum;
            }
            // So many sums of pairs fit 16 bits.
            let run = i16::MAX as usize / (2 * MAX * X_MAX);
            let mut i = 0;
            while i < N {
                let mut pairs = _mm256_maddubs_epi16(codes[i], spread(x, 4 * i));
                for j in i + 1..N.min(i + run) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[j], spread(x, 4 * j)));
                }
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
                i += run;
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn sum<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8) -> __m256i {
        // SAFETY: passed on.
        unsafe { Self::scaled::<N, MAX>(start, codes, x, _mm256_set1_epi16(1)) }
    }
}

impl<const EVEX: bool> Vnni<EVEX> {
    /// Adds to each lane of `sums` the product of its four codes with those of `x`.
    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the entry that this is inlined into has the instruction; no memory is touched.
        unsafe { if EVEX { _mm256_dpbusd_epi32(sums, codes, x) } else { _mm256_dpbusd_avx_epi32(sums, codes, x) } }
    }
}

impl<const EVEX: bool> Words for Vnni<EVEX> {
    const SIGNED: bool = false;
    shared!();

    #[inline(always)]
    unsafe fn scale(words: __m256i) -> __m256i {
        words
    }

    #[inline(always)]
    unsafe fn scaled<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8, scale: __m256i) -> __m256i {
        // SAFETY: passed on.
        unsafe { _mm256_add_epi32(start, _mm256_mullo_epi32(Self::sum::<N, MAX>(_mm256_setzero_si256(), codes, x), scale)) }
    }

    #[inline(always)]
    unsafe fn sum<const N: usize, const MAX: usize>(start: __m256i, codes: &[__m256i; N], x: *const u8) -> __m256i {
        // SAFETY: `x` has `4 * N` bytes, by contract.
        unsafe {
            // Two chains: one would wait for itself.
            let (mut even, mut odd) = (start, _mm256_setzero_si256());
            for i in 0..N / 2 {
                even = Self::dot(even, codes[2 * i], spread(x, 8 * i));
                odd = Self::dot(odd, codes[2 * i + 1], spread(x, 8 * i + 4));
            }
            _mm256_add_epi32(even, odd)
        }
    }
}
