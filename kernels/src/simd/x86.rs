//! The vectors of x86-64: AVX-512 with or without bfloat16 products, and AVX2.

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Methods that are one expression of vector instructions.
macro_rules! instructions {
    ($($(#[$doc:meta])* fn $name:ident ($($argument:ident : $type:ty),*) $(-> $result:ty)? { $body:expr })*) => {
        $($(#[$doc])* #[inline(always)] fn $name ($($argument: $type),*) $(-> $result)? {
            // SAFETY: only `on_isa` names this type, in a function that enables the instructions on a processor that has them, and
            // whatever is read or written through a pointer lies in an array of the very size.
            #[allow(unused_unsafe, clippy::macro_metavars_in_unsafe, reason = "the expressions are those of this file")]
            unsafe { $body }
        })*
    };
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Where sixteen rows begin, of which 16 bytes are looked at.
#[inline(always)]
fn start_of_rows(rows: &[u8], stride: usize) -> *const u8 {
    assert!(rows.len() >= (LANES - 1) * stride + 16, "sixteen rows");
    rows.as_ptr()
}

/// 16 bytes of this row, of the fourth after it, the eighth and the twelfth.
#[inline(always)]
unsafe fn every_fourth_row(row: *const u8, stride: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_castsi128_si512(_mm_loadu_si128(row.cast()));
        let low = _mm512_inserti32x4::<1>(low, _mm_loadu_si128(row.add(4 * stride).cast()));
        let high = _mm512_inserti32x4::<2>(low, _mm_loadu_si128(row.add(8 * stride).cast()));
        _mm512_inserti32x4::<3>(high, _mm_loadu_si128(row.add(12 * stride).cast()))
    }
}

/// Both from where `out` begins a line of the cache, cut to whole lines, what is before them and what is after.
#[inline(always)]
fn lines<'a>(from: &'a [u8], out: &'a mut [u8]) -> [(&'a [u8], &'a mut [u8]); 3] {
    assert_eq!(from.len(), out.len(), "as many bytes as there is room for");
    let before = out.as_ptr().align_offset(LINE).min(out.len());
    let whole = (out.len() - before) / LINE * LINE;
    let ((from, rest_from), (out, rest_out)) = (from.split_at(before), out.split_at_mut(before));
    let ((lines_from, after_from), (lines_out, after_out)) = (rest_from.split_at(whole), rest_out.split_at_mut(whole));
    [(from, out), (lines_from, lines_out), (after_from, after_out)]
}

/// 16 bytes of this row and of the fourth after it.
#[inline(always)]
unsafe fn row_and_fourth_after(row: *const u8, stride: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(row.cast()));
        _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(row.add(4 * stride).cast()))
    }
}

/// AVX-512; `BF16` says whether products of bfloat16 pairs are an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// Both bfloat16 numbers of each word, low and high, as f32.
#[inline(always)]
unsafe fn halves_512(words: __m512i) -> (__m512, __m512) {
    // SAFETY: the caller's.
    unsafe {
        let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(high))
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const WIDE: bool = true;

    instructions! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(x: &[f32; LANES]) -> __m512 { _mm512_loadu_ps(x.as_ptr()) }
        fn store(v: __m512, out: &mut [f32; LANES]) { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn scale(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
        fn where_at_least(a: __m512, limit: __m512, value: __m512) -> __m512 {
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, limit), value)
        }
        fn where_above(a: __m512, limit: __m512, above: __m512, otherwise: __m512) -> __m512 {
            _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, limit), above)
        }
        fn fetch(words: &[u32; LANES]) { _mm_prefetch::<_MM_HINT_T1>(words.as_ptr().cast()) }
        fn with_sign(a: __m512, sign: __m512) -> __m512 {
            _mm512_or_ps(_mm512_andnot_ps(_mm512_set1_ps(-0.0), a), _mm512_and_ps(_mm512_set1_ps(-0.0), sign))
        }
        fn dot_bf16(sums: __m512, a: u32, b: &[u32; LANES]) -> __m512 {{
            let (a, b) = (_mm512_set1_epi32(a as i32), _mm512_loadu_si512(b.as_ptr().cast()));
            if BF16 {
                // Both are sixteen words of two bfloat16 numbers; only the names of the types differ.
                _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
            } else {
                let ((a_low, a_high), (b_low, b_high)) = (halves_512(a), halves_512(b));
                _mm512_fmadd_ps(a_high, b_high, _mm512_fmadd_ps(a_low, b_low, sums))
            }
        }}
        fn store_bf16(v: __m512, out: &mut [u16; LANES]) {{
            let words = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
            } else {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
                let numbers = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(v, v);
                let kept = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(kept, numbers, rounded), 16))
            };
            _mm256_storeu_si256(out.as_mut_ptr().cast(), words);
        }}
        fn transpose(rows: &[u8], stride: usize, flip: u32, out: &mut [u8; 16 * LANES]) {{
            let flip = _mm512_set1_epi32(flip as i32);
            // Quarter `q` of register `i` is row `4 q + i`; then all quarters are transposed at once. No closures: they would not have the
            // instructions of the function around them.
            let first = start_of_rows(rows, stride);
            let (a, b) = (every_fourth_row(first, stride), every_fourth_row(first.add(stride), stride));
            let (c, d) = (every_fourth_row(first.add(2 * stride), stride), every_fourth_row(first.add(3 * stride), stride));
            let (a, b) = (_mm512_xor_si512(a, flip), _mm512_xor_si512(b, flip));
            let (c, d) = (_mm512_xor_si512(c, flip), _mm512_xor_si512(d, flip));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            let out = out.as_mut_ptr();
            _mm512_storeu_si512(out.cast(), _mm512_unpacklo_epi64(ab, cd));
            _mm512_storeu_si512(out.add(64).cast(), _mm512_unpackhi_epi64(ab, cd));
            _mm512_storeu_si512(out.add(128).cast(), _mm512_unpacklo_epi64(ab_high, cd_high));
            _mm512_storeu_si512(out.add(192).cast(), _mm512_unpackhi_epi64(ab_high, cd_high));
        }}
        fn copy_past(from: &[u8], out: &mut [u8]) {{
            let [before, (from, out), after] = lines(from, out);
            for (from, out) in from.chunks_exact(LINE).zip(out.chunks_exact_mut(LINE)) {
                _mm512_stream_si512(out.as_mut_ptr().cast(), _mm512_loadu_si512(from.as_ptr().cast()));
            }
            [before, after].into_iter().for_each(|(from, out)| out.copy_from_slice(from));
        }}
        fn fence() { _mm_sfence() }
        fn sum(v: __m512) -> f32 { _mm512_reduce_add_ps(v) }
        fn largest(v: __m512) -> f32 { _mm512_reduce_max_ps(v) }
    }
}

/// AVX2 with fused multiplication and addition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2;

type Two = [__m256; 2];

#[inline(always)]
unsafe fn halves_256(words: __m256i) -> (__m256, __m256) {
    // SAFETY: the caller's.
    unsafe {
        let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(high))
    }
}

impl Simd for Avx2 {
    type V = Two;
    const WIDE: bool = false;

    instructions! {
        fn splat(x: f32) -> Two { [_mm256_set1_ps(x); 2] }
        fn load(x: &[f32; LANES]) -> Two { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
        fn store(v: Two, out: &mut [f32; LANES]) {{
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]);
        }}
        fn add(a: Two, b: Two) -> Two { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: Two, b: Two) -> Two { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: Two, b: Two) -> Two { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn div(a: Two, b: Two) -> Two { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn fma(a: Two, b: Two, c: Two) -> Two { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        fn max(a: Two, b: Two) -> Two { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        fn min(a: Two, b: Two) -> Two { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        fn round(a: Two) -> Two {
            a.map(|a| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
        }
        fn scale(a: Two, n: Two) -> Two {{
            let power = |n| _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
            [_mm256_mul_ps(a[0], _mm256_castsi256_ps(power(n[0]))), _mm256_mul_ps(a[1], _mm256_castsi256_ps(power(n[1])))]
        }}
        fn where_at_least(a: Two, limit: Two, value: Two) -> Two {{
            let keep = |i: usize| _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a[i], limit[i]), value[i]);
            [keep(0), keep(1)]
        }}
        fn where_above(a: Two, limit: Two, above: Two, otherwise: Two) -> Two {{
            let choose = |i: usize| _mm256_blendv_ps(otherwise[i], above[i], _mm256_cmp_ps::<_CMP_GT_OQ>(a[i], limit[i]));
            [choose(0), choose(1)]
        }}
        fn fetch(words: &[u32; LANES]) { _mm_prefetch::<_MM_HINT_T1>(words.as_ptr().cast()) }
        fn with_sign(a: Two, sign: Two) -> Two {{
            let zero = _mm256_set1_ps(-0.0);
            let join = |i: usize| _mm256_or_ps(_mm256_andnot_ps(zero, a[i]), _mm256_and_ps(zero, sign[i]));
            [join(0), join(1)]
        }}
        fn dot_bf16(sums: Two, a: u32, b: &[u32; LANES]) -> Two {{
            let (a_low, a_high) = halves_256(_mm256_set1_epi32(a as i32));
            let half = |i: usize| {
                let (b_low, b_high) = halves_256(_mm256_loadu_si256(b[8 * i..].as_ptr().cast()));
                _mm256_fmadd_ps(a_high, b_high, _mm256_fmadd_ps(a_low, b_low, sums[i]))
            };
            [half(0), half(1)]
        }}
        fn store_bf16(v: Two, out: &mut [u16; LANES]) {{
            let words = v.map(|v| {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let kept = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let numbers = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(v, v));
                _mm256_srli_epi32(_mm256_blendv_epi8(kept, rounded, numbers), 16)
            });
            // Packing keeps to quarters: of the one, of the other, of the one, of the other.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(words[0], words[1]));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), packed);
        }}
        fn transpose(rows: &[u8], stride: usize, flip: u32, out: &mut [u8; 16 * LANES]) {{
            let flip = _mm256_set1_epi32(flip as i32);
            let first = start_of_rows(rows, stride);
            for half in 0..2 {
                let first = first.add(8 * half * stride);
                let (a, b) = (row_and_fourth_after(first, stride), row_and_fourth_after(first.add(stride), stride));
                let (c, d) = (row_and_fourth_after(first.add(2 * stride), stride), row_and_fourth_after(first.add(3 * stride), stride));
                let (a, b) = (_mm256_xor_si256(a, flip), _mm256_xor_si256(b, flip));
                let (c, d) = (_mm256_xor_si256(c, flip), _mm256_xor_si256(d, flip));
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                let out = out.as_mut_ptr().add(32 * half);
                _mm256_storeu_si256(out.cast(), _mm256_unpacklo_epi64(ab, cd));
                _mm256_storeu_si256(out.add(64).cast(), _mm256_unpackhi_epi64(ab, cd));
                _mm256_storeu_si256(out.add(128).cast(), _mm256_unpacklo_epi64(ab_high, cd_high));
                _mm256_storeu_si256(out.add(192).cast(), _mm256_unpackhi_epi64(ab_high, cd_high));
            }
        }}
        fn copy_past(from: &[u8], out: &mut [u8]) {{
            let [before, (from, out), after] = lines(from, out);
            for (from, out) in from.chunks_exact(32).zip(out.chunks_exact_mut(32)) {
                _mm256_stream_si256(out.as_mut_ptr().cast(), _mm256_loadu_si256(from.as_ptr().cast()));
            }
            [before, after].into_iter().for_each(|(from, out)| out.copy_from_slice(from));
        }}
        fn fence() { _mm_sfence() }
    }
}
