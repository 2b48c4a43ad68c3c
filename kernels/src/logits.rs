//! Passes over one row of logits, `[vocab_size]`, for the draw of a token: plain code of which the compiler makes vector instructions, for the
//! widest instruction set that the processor has.
//!
//! Only additions, multiplications and comparisons of IEEE numbers in a fixed order are used, and the weights are whole numbers, whose sums are
//! exact: lanes, chunks and instruction sets leave no trace in a result.

#![allow(unsafe_code, reason = "code for a wider instruction set is called once it is known to be there")]

use std::cmp::Ordering;

#[cfg(target_arch = "x86_64")]
use crate::simd::OpsIsa;

/// Logits looked at together; few enough to stay in the first cache, many enough that a pass over the chunks costs nothing.
pub const CHUNK: usize = 1024;
/// Logits compared with a threshold together.
const GROUP: usize = 64;
/// Independent lanes: four vectors of SSE2, one of AVX-512.
const LANES: usize = 16;

/// The weight of the likeliest token. A token less than half of `1 / ONE` times as likely as that has weight 0.
pub const ONE: f32 = 4_294_967_296.0; // 2^32: sums over two million tokens stay below 2^53

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

/// The likelier first, then the lower id: a total order, because ids differ and no logit is NaN once [`argmax`] has passed.
#[inline(always)]
pub fn likelier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Why no token of a row can be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BadRow {
    /// There are no logits.
    Empty,
    /// All are minus infinity.
    Impossible,
    /// One is not a number, or plus infinity.
    NotANumber {
        /// Its place in the row.
        id: u32,
        /// What it is.
        logit: f32,
    },
}

/// Defines a function whose body is compiled for each instruction set, and which runs the widest that the processor has.
macro_rules! widest {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) -> $result {
            #[inline(always)]
            fn plain($($argument: $type),*) -> $result $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($argument: $type),*) -> $result {
                    plain($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) -> $result {
                    plain($($argument),*)
                }
                match OpsIsa::best() {
                    // SAFETY: the processor has each of the four sets that the function is compiled for.
                    OpsIsa::Avx512 | OpsIsa::Avx512Bf16 => return unsafe { avx512($($argument),*) },
                    // SAFETY: the processor has the set that the function is compiled for.
                    OpsIsa::Avx2 => return unsafe { avx2($($argument),*) },
                    OpsIsa::Portable => {}
                }
            }
            plain($($argument),*)
        }
    };
}

widest! {
    /// The likeliest token, ties to the lowest id. A logit of minus infinity is a token that cannot be.
    argmax(logits: &[f32]) -> Result<Candidate, BadRow> {
        let mut best = (0, f32::NEG_INFINITY);
        for (i, chunk) in logits.chunks(CHUNK).enumerate() {
            let (max, sound) = max_of(chunk);
            if !sound {
                let bad = chunk.iter().position(|logit| is_bad(*logit)).unwrap_or(0);
                return Err(BadRow::NotANumber { id: (i * CHUNK + bad) as u32, logit: chunk[bad] });
            }
            if max > best.1 {
                best = (i, max);
            }
        }
        let (chunk, logit) = best;
        if logits.is_empty() {
            return Err(BadRow::Empty);
        }
        if logit == f32::NEG_INFINITY {
            return Err(BadRow::Impossible);
        }
        let start = chunk * CHUNK;
        let id = start + logits[start..].iter().position(|other| *other == logit).unwrap_or(0);
        Ok(Candidate { id: id as u32, logit })
    }
}

/// The largest value, and whether all are numbers below infinity; minus infinity for none.
#[inline(always)]
fn max_of(values: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut bad = [0u32; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            let value = group[lane];
            max[lane] = if value > max[lane] { value } else { max[lane] };
            bad[lane] |= u32::from(is_bad(value));
        }
    }
    let fold = |max: f32, value: &f32| if *value > max { *value } else { max };
    let largest = max.iter().chain(rest).fold(f32::NEG_INFINITY, fold);
    (largest, bad.iter().fold(0, |all, bad| all | bad) == 0 && !rest.iter().any(|value| is_bad(*value)))
}

/// Plus infinity, or not a number.
#[inline(always)]
fn is_bad(value: f32) -> bool {
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "one comparison finds both")]
    let bad = !(value < f32::INFINITY);
    bad
}

widest! {
    /// The `k` likeliest tokens, the likeliest first; all of them if there are fewer.
    ///
    /// One pass that keeps what lies above the `k`-th best so far. Groups without such a logit, soon nearly all, cost a vector comparison. Later
    /// logits that equal the `k`-th have higher ids, so they need not be kept. However the logits are ordered, the work is linear but for the sort.
    top_k(logits: &[f32], k: usize) -> Vec<Candidate> {
        let k = k.min(logits.len());
        if k == 0 {
            return Vec::new();
        }
        let room = 2 * k + 2 * GROUP;
        let mut kept: Vec<Candidate> = Vec::with_capacity(room + GROUP);
        let mut threshold = None;
        for (i, group) in logits.chunks(GROUP).enumerate() {
            if threshold.is_some_and(|threshold| !any_above(group, threshold)) {
                continue;
            }
            let candidates = group.iter().enumerate().map(|(j, logit)| Candidate { id: (i * GROUP + j) as u32, logit: *logit });
            kept.extend(candidates.filter(|candidate| threshold.is_none_or(|threshold| candidate.logit > threshold)));
            if kept.len() >= room {
                kept.select_nth_unstable_by(k - 1, likelier_first);
                kept.truncate(k);
                threshold = Some(kept[k - 1].logit);
            }
        }
        if kept.len() > k {
            kept.select_nth_unstable_by(k - 1, likelier_first);
            kept.truncate(k);
        }
        kept.sort_unstable_by(likelier_first);
        kept
    }
}

#[inline(always)]
fn any_above(group: &[f32], threshold: f32) -> bool {
    let mut any = false;
    for logit in group {
        any |= *logit > threshold;
    }
    any
}

widest! {
    /// Makes the tokens impossible whose bit is not set in `mask`, 32 to a word from the lowest id and the lowest bit on. Those beyond it are.
    allow_only(logits: &mut [f32], mask: &[u32]) -> () {
        const BITS: usize = u32::BITS as usize;
        let covered = logits.len().min(mask.len() * BITS);
        let (covered, beyond) = logits.split_at_mut(covered);
        beyond.fill(f32::NEG_INFINITY);
        let (groups, rest) = covered.as_chunks_mut::<BITS>();
        for (logits, word) in groups.iter_mut().zip(mask) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
            }
        }
        for (bit, logit) in rest.iter_mut().enumerate() {
            *logit = if mask[groups.len()] >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

/// How logits become weights: `exp((logit - max) / temperature)`, the likeliest token having [`ONE`].
///
/// Weights are whole numbers, so their sums, as f64, are exact and the same in whichever order they are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    max: f32,
    per_temperature: f32,
}

impl Scale {
    /// For logits of at most `max`, at a temperature above 0.
    pub fn new(max: f32, temperature: f32) -> Self {
        Self { max, per_temperature: (1.0 / temperature).min(f32::MAX) }
    }

    /// How far below the likeliest token a logit lies, in natural logarithms of the ratio of their weights; not above 0.
    #[inline(always)]
    pub fn below(&self, logit: f32) -> f32 {
        (logit - self.max) * self.per_temperature
    }

    /// The weight of one token.
    #[inline(always)]
    pub fn weight(&self, logit: f32) -> f32 {
        /// From here on every f32 is whole. Added and subtracted it rounds what lies below to whole numbers.
        const WHOLE: f32 = 8_388_608.0; // 2^23
        let weight = exp(self.below(logit)) * ONE;
        if weight < WHOLE { (weight + WHOLE) - WHOLE } else { weight }
    }

    /// Where in a [`histogram`] a logit counts: never lower for a less likely one.
    #[inline(always)]
    pub fn bin(&self, logit: f32) -> u32 {
        /// Added it rounds to whole numbers, which then stand in the lowest bits of the sum.
        const ROUND: f32 = 8_388_608.0; // 2^23
        let place = self.below(logit) * -BINS_PER_UNIT;
        (if place < UNITS * BINS_PER_UNIT { place } else { UNITS * BINS_PER_UNIT } + ROUND).to_bits() & 0x7F_FFFF
    }

    /// The weights of at most [`CHUNK`] tokens, 0 in the place of those below `least` and beyond the end.
    #[inline(always)]
    fn weights(&self, logits: &[f32], least: f32) -> [f32; CHUNK] {
        let mut weights = [0.0; CHUNK];
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = at_least(self.weight(*logit), least);
        }
        weights
    }

    /// The sum of the weights of at most [`CHUNK`] tokens, of those that are at least `least`.
    #[inline(always)]
    fn total(&self, logits: &[f32], least: f32) -> f64 {
        let mut sums = [0.0; LANES];
        for group in self.weights(logits, least).as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sums[lane] += f64::from(group[lane]);
            }
        }
        sums.iter().sum()
    }
}

/// The weight, or 0 if it is below `least`.
#[inline(always)]
pub fn at_least(weight: f32, least: f32) -> f32 {
    if weight >= least { weight } else { 0.0 }
}

widest! {
    /// The sums of the weights of each [`CHUNK`] of a row, of those that are at least `least`.
    totals(logits: &[f32], scale: Scale, least: f32) -> Vec<f64> {
        let mut totals = Vec::with_capacity(logits.len().div_ceil(CHUNK));
        for chunk in logits.chunks(CHUNK) {
            totals.push(scale.total(chunk, least)); // in a closure it would not be compiled for the instruction set
        }
        totals
    }
}

widest! {
    /// The natural logarithm of the sum of `exp(logit)` over a row whose largest logit is `max`.
    log_sum_exp(logits: &[f32], max: f32) -> f64 {
        let mut total = 0.0;
        for chunk in logits.chunks(CHUNK) {
            let mut sums = [0.0f32; LANES];
            let (groups, rest) = chunk.as_chunks::<LANES>();
            for group in groups {
                for lane in 0..LANES {
                    sums[lane] += exp(group[lane] - max);
                }
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest.iter().map(|logit| f64::from(exp(*logit - max))).sum::<f64>();
        }
        f64::from(max) + total.ln()
    }
}

/// Bins of a [`histogram`] for each natural logarithm below the likeliest token.
const BINS_PER_UNIT: f32 = 32.0;
/// Beyond this many units below the likeliest token every weight is 0.
const UNITS: f32 = 23.0;

widest! {
    /// The sums of the weights that are at least `least`, by [`Scale::bin`].
    histogram(logits: &[f32], scale: Scale, least: f32) -> Vec<f64> {
        /// Sums kept apart, so that neighbours that fall into the same bin do not wait for each other.
        const COPIES: usize = 4;
        let mut bins = vec![[0.0; COPIES]; (UNITS * BINS_PER_UNIT) as usize + 1];
        let mut places = [0; CHUNK];
        for chunk in logits.chunks(CHUNK) {
            for (place, logit) in places.iter_mut().zip(chunk) {
                *place = scale.bin(*logit);
            }
            for (i, (weight, place)) in scale.weights(chunk, least).iter().zip(&places).take(chunk.len()).enumerate() {
                bins[*place as usize][i % COPIES] += f64::from(*weight);
            }
        }
        bins.iter().map(|copies| copies.iter().sum()).collect()
    }
}

widest! {
    /// The tokens whose [`Scale::bin`] is this one, the likeliest first.
    members(logits: &[f32], scale: Scale, bin: u32) -> Vec<Candidate> {
        let mut members = Vec::new();
        for (i, group) in logits.chunks(GROUP).enumerate() {
            let mut any = false;
            for logit in group {
                any |= scale.bin(*logit) == bin;
            }
            if any {
                let tokens = group.iter().enumerate().map(|(j, logit)| Candidate { id: (i * GROUP + j) as u32, logit: *logit });
                members.extend(tokens.filter(|token| scale.bin(token.logit) == bin));
            }
        }
        members.sort_unstable_by(likelier_first);
        members
    }
}

/// `e^x` for `x <= 0`, with a relative error below 3e-7, from basic operations only; what lies below -87 gives `e^-87`.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then the Taylor polynomial of `e^r` of degree 7 and a scaling by `2^n`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0; // the result stays a normal number
    const LN_2_HIGH: f32 = 0.693_359_4; // 355 / 512, so that n * LN_2_HIGH is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Added and subtracted it rounds to whole numbers, which then stand in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    let x = if x > LEAST { x } else { LEAST };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..870_000 {
            let x = i as f32 * -1e-4;
            let relative = (f64::from(exp(x)) - f64::from(x).exp()).abs() / f64::from(x).exp();
            assert!(relative < 3e-7, "exp({x}) is off by {relative}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, exp(-87.0)));
    }

    #[test]
    fn weights_are_one_for_the_likeliest_and_nothing_for_the_impossible() {
        let scale = Scale::new(3.0, 0.5);
        assert_eq!((scale.weight(3.0), scale.weight(f32::NEG_INFINITY), scale.weight(-9.0)), (ONE, 0.0, 0.0));
        assert!((f64::from(scale.weight(2.0)) / f64::from(ONE) - (-2.0f64).exp()).abs() < 1e-6);
        let tiny = Scale::new(3.0, f32::MIN_POSITIVE / 2.0);
        assert_eq!((tiny.weight(3.0), tiny.weight(2.9)), (ONE, 0.0));
    }

    #[test]
    fn a_total_is_the_sum_of_the_weights() {
        let scale = Scale::new(0.0, 1.0);
        for n in [0, 1, 15, 16, 17, 1000, CHUNK] {
            let logits: Vec<f32> = (0..n).map(|i| (i % 7) as f32 * -0.3).collect();
            for least in [0.0, ONE / 2.0] {
                let plain: f64 = logits.iter().map(|logit| scale.weight(*logit)).filter(|w| *w >= least).map(f64::from).sum();
                assert_eq!(scale.total(&logits, least), plain);
            }
        }
        assert_eq!(scale.total(&[0.0; CHUNK], 0.0), CHUNK as f64 * f64::from(ONE));
    }

    #[test]
    fn the_likeliest_are_found_in_any_order_of_logits() {
        let rising: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        let equal = vec![1.0; 5000];
        let ids = |logits: &[f32], k| top_k(logits, k).iter().map(|candidate| candidate.id).collect::<Vec<_>>();
        assert_eq!(ids(&rising, 3), [4999, 4998, 4997]);
        assert_eq!(ids(&falling, 3), [0, 1, 2]);
        assert_eq!(ids(&equal, 3), [0, 1, 2]);
        assert_eq!((ids(&equal, 9000).len(), ids(&equal, 0).len(), ids(&[], 5).len()), (5000, 0, 0));
        assert_eq!((argmax(&rising).unwrap().id, argmax(&falling).unwrap().id, argmax(&equal).unwrap().id), (4999, 0, 0));
    }
}
