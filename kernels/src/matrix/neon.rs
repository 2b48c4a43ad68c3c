//! Vectors of eight rows in two registers of 128 bits: NEON with byte dot products, for 64-bit ARM.
#![allow(unsafe_code, reason = "vector instructions, and addresses of tiles and blocks")]
#![allow(clippy::needless_range_loop, reason = "one index for codes in registers and for lanes")]

use super::product::{Kernel, Span};
use super::words::{Words, entries};
use crate::format::Format;
use std::arch::aarch64::*;
use std::arch::asm;

entries!(bytes, "neon,dotprod", Neon);
entries!(dense dense, "neon", Neon);

/// The kernel for `format`.
pub(super) fn kernel(format: Format) -> Kernel {
    if format.is_dense() { dense(format) } else { bytes(format) }
}

/// NEON with dot products of signed bytes.
struct Neon;

/// Eight words.
type Two = [int32x4_t; 2];

/// Adds to each lane of `sums` the product of its four signed bytes in `a` with those of lane `LANE` of `x`.
///
/// # Safety
/// The machine has the instruction.
#[inline(always)]
unsafe fn dot<const LANE: i32>(mut sums: int32x4_t, a: int32x4_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers in, a register out. (The compiler's own name for the instruction is not stable yet.)
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {x:v}.4b[{lane}]",
            sums = inlateout(vreg) sums, a = in(vreg) a, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Methods of [`Words`] that are one expression of vector instructions.
macro_rules! instructions {
    ($(fn $name:ident $(<const $constant:ident: $kind:ty>)? ($($argument:ident: $type:ty),*) $(-> $result:ty)? { $body:expr })*) => { $(
        #[inline(always)]
        unsafe fn $name $(<const $constant: $kind>)? ($($argument: $type),*) $(-> $result)? {
            // SAFETY: the contract of `Words`: the machine has the instructions, and what is behind an address is long enough.
            #[allow(unused_unsafe, reason = "some instructions are safe to name")]
            unsafe { $body }
        }
    )* };
}

impl Words for Neon {
    type I = Two;
    type F = [float32x4_t; 2];
    const SIGNED: bool = true;

    instructions! {
        fn words(p: *const u8) -> Two { [vld1q_s32(p.cast()), vld1q_s32(p.add(16).cast())] }
        fn signed_pairs(p: *const u8) -> Two {{
            let x = vld1q_s8(p.cast());
            [vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(x))), vreinterpretq_s32_s16(vmovl_high_s8(x))]
        }}
        fn unsigned_pairs(p: *const u8) -> Two {{
            let x = vld1q_u8(p);
            [vreinterpretq_s32_u16(vmovl_u8(vget_low_u8(x))), vreinterpretq_s32_u16(vmovl_high_u8(x))]
        }}
        fn bytes(p: *const u8) -> Two {{
            let x = vmovl_u8(vld1_u8(p));
            [vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(x))), vreinterpretq_s32_u32(vmovl_high_u16(x))]
        }}
        fn halves(p: *const u8) -> [float32x4_t; 2] {{
            let x = vreinterpretq_f16_u8(vld1q_u8(p));
            [vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)]
        }}
        fn floats(p: *const u8) -> [float32x4_t; 2] { [vld1q_f32(p.cast()), vld1q_f32(p.add(16).cast())] }
        fn fetch(p: *const u8) { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
        fn store(v: [float32x4_t; 2], out: *mut f32) {{
            vst1q_f32(out, v[0]);
            vst1q_f32(out.add(4), v[1]);
        }}
        fn or(a: Two, b: Two) -> Two { [vorrq_s32(a[0], b[0]), vorrq_s32(a[1], b[1])] }
        fn nibble<const HIGH: bool>(a: Two) -> Two {
            a.map(|a| {
                let a = vreinterpretq_u8_s32(a);
                vreinterpretq_s32_u8(if HIGH { vshrq_n_u8::<4>(a) } else { vandq_u8(a, vdupq_n_u8(15)) })
            })
        }
        fn moved(a: Two, from: usize, to: usize, mask: u8) -> Two {{
            let by = vdupq_n_s32(to as i32 - from as i32); // below 0: to the right
            a.map(|a| {
                let shifted = vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_s32(a), by));
                vreinterpretq_s32_u8(vandq_u8(shifted, vdupq_n_u8(mask)))
            })
        }}
        fn whole_bytes(a: Two) -> Two { a.map(|a| veorq_s32(a, vreinterpretq_s32_u8(vdupq_n_u8(0x80)))) }
        fn look_up(table: &[u8; 16], codes: Two) -> Two {{
            let table = veorq_u8(vld1q_u8(table.as_ptr()), vdupq_n_u8(0x80));
            codes.map(|codes| vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(codes))))
        }}
        fn splat(x: i32) -> Two { [vdupq_n_s32(x); 2] }
        fn less<const SHIFT: i32>(a: Two, b: Two) -> Two {
            [vsubq_s32(a[0], vshlq_n_s32::<SHIFT>(b[0])), vsubq_s32(a[1], vshlq_n_s32::<SHIFT>(b[1]))]
        }
        fn of_pair<const SECOND: bool>(pairs: Two) -> Two {
            pairs.map(|pairs| vshrq_n_s32::<16>(if SECOND { pairs } else { vshlq_n_s32::<16>(pairs) }))
        }
        fn add_pairs(sums: Two, pairs: Two, x: *const u8) -> Two {{
            let [first, second] = x.cast::<[i16; 2]>().read_unaligned().map(i32::from);
            let (a, b) = (Self::of_pair::<false>(pairs), Self::of_pair::<true>(pairs));
            std::array::from_fn(|i| vmlaq_n_s32(vmlaq_n_s32(sums[i], a[i], first), b[i], second))
        }}
        fn scale(words: Two) -> Two { words }
        fn number(x: f32) -> [float32x4_t; 2] { [vdupq_n_f32(x); 2] }
        fn converted(a: Two) -> [float32x4_t; 2] { a.map(|a| vcvtq_f32_s32(a)) }
        fn of_bf16(pairs: Two) -> [[float32x4_t; 2]; 2] {
            [
                pairs.map(|pairs| vreinterpretq_f32_s32(vshlq_n_s32::<16>(pairs))),
                pairs.map(|pairs| vreinterpretq_f32_s32(vandq_s32(pairs, vdupq_n_s32(-65536)))),
            ]
        }
        fn add(a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
        fn mul(a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
        fn fma(a: [float32x4_t; 2], b: [float32x4_t; 2], c: [float32x4_t; 2]) -> [float32x4_t; 2] {
            [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])]
        }
        fn fnma(a: [float32x4_t; 2], b: [float32x4_t; 2], c: [float32x4_t; 2]) -> [float32x4_t; 2] {
            [vfmsq_f32(c[0], a[0], b[0]), vfmsq_f32(c[1], a[1], b[1])]
        }
    }

    #[inline(always)]
    unsafe fn scaled<const N: usize, const MAX: usize>(start: Two, codes: &[Two; N], x: *const u8, scale: Two) -> Two {
        // SAFETY: passed on.
        unsafe {
            let sum = Self::sum::<N, MAX>([vdupq_n_s32(0); 2], codes, x);
            [vmlaq_s32(start[0], sum[0], scale[0]), vmlaq_s32(start[1], sum[1], scale[1])]
        }
    }

    #[inline(always)]
    unsafe fn sum<const N: usize, const MAX: usize>(start: Two, codes: &[Two; N], x: *const u8) -> Two {
        const { assert!(N.is_multiple_of(4), "activations come in fours of words") };
        // SAFETY: `x` has `4 * N` bytes, by contract.
        unsafe {
            let mut sum = start;
            for i in 0..N / 4 {
                let x = vld1q_s8(x.add(16 * i).cast());
                for half in 0..2 {
                    sum[half] = dot::<0>(sum[half], codes[4 * i][half], x);
                    sum[half] = dot::<1>(sum[half], codes[4 * i + 1][half], x);
                    sum[half] = dot::<2>(sum[half], codes[4 * i + 2][half], x);
                    sum[half] = dot::<3>(sum[half], codes[4 * i + 3][half], x);
                }
            }
            sum
        }
    }
}
