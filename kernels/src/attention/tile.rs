//! The rows of one task: some tokens of a sequence times the query heads that share a head of keys and values.

use crate::simd::{LANES, Simd};
use crate::team::SharedMut;

use super::{Attention, KvPool, Span};

/// Positions that are weighed together, and groups of them.
const TILE: usize = 64;
const GROUPS: usize = TILE / LANES;
/// Rows computed at once where there are many, and where there are some. Eight rows against two vectors, or four against four, keep sixteen sums in
/// registers; the former reads keys and values half as often.
const MANY_ROWS: usize = 8;
const SOME_ROWS: usize = 4;

/// What is to be computed.
pub(super) struct Task<'a> {
    pub(super) attention: &'a Attention,
    pub(super) pool: &'a KvPool,
    pub(super) span: &'a Span<'a>,
    /// `[n_tokens, heads * head_dim]`
    pub(super) q: &'a [f32],
    /// The same shape.
    pub(super) out: SharedMut<f32>,
    /// Query heads that share a head of the pool.
    pub(super) group: usize,
    pub(super) kv_head: usize,
    /// First token of the span, and how many.
    pub(super) first: usize,
    pub(super) len: usize,
}

/// Room to work in. Row `r` is token `r / group`, head `r % group`.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[rows, padded / w]` words of queries.
    q: Vec<u32>,
    /// `[rows, padded]` weighted sums of values.
    out: Vec<f32>,
    /// `[rows]` largest score and sum of weights so far.
    rows: Vec<(f32, f32)>,
}

impl Task<'_> {
    /// Where a row lies in `q` and `out`.
    fn place(&self, row: usize) -> usize {
        let dim = self.pool.head_dim();
        let token = self.span.start + self.first + row / self.group;
        (token * self.attention.heads + self.kv_head * self.group + row % self.group) * dim
    }

    /// The positions that a row sees.
    fn sees(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.span.first_position + self.first + row / self.group + 1;
        end.saturating_sub(self.attention.window.map_or(end, |window| window as usize))..end
    }

    /// Keys and values of the groups from position `tile` on; beyond the position `last - 1` those of its group again.
    fn groups_at(&self, tile: usize, last: usize) -> [(&[u32], &[u32]); GROUPS] {
        std::array::from_fn(|i| self.group_at((tile + i * LANES).min(last - 1)))
    }

    /// Keys and values of the group that holds `position`.
    fn group_at(&self, position: usize) -> (&[u32], &[u32]) {
        let len = self.pool.block_len();
        let block = self.span.blocks[position / len] as usize;
        self.pool.group(self.kv_head, (block * len + position % len) / LANES)
    }
}

#[inline(always)]
pub(super) fn attend_f32<S: Simd>(task: &Task<'_>, scratch: &mut Scratch) {
    attend::<S, false>(task, scratch);
}

#[inline(always)]
pub(super) fn attend_bf16<S: Simd>(task: &Task<'_>, scratch: &mut Scratch) {
    attend::<S, true>(task, scratch);
}

#[inline(always)]
fn attend<S: Simd, const BF16: bool>(task: &Task<'_>, scratch: &mut Scratch) {
    let (dim, padded) = (task.pool.head_dim(), task.pool.padded());
    let per_word = if BF16 { 2 } else { 1 };
    let steps = padded / per_word;
    let n_rows = task.len * task.group;
    scratch.q.resize(n_rows * steps, 0);
    scratch.out.clear();
    scratch.out.resize(n_rows * padded, 0.0);
    scratch.rows.clear();
    scratch.rows.resize(n_rows, (f32::NEG_INFINITY, 0.0));
    for row in 0..n_rows {
        words::<S, BF16>(&task.q[task.place(row)..][..dim], &mut scratch.q[row * steps..][..steps]);
    }
    let last = task.sees(n_rows - 1).end;
    for tile in (task.sees(0).start / TILE..last.div_ceil(TILE)).map(|tile| tile * TILE) {
        let groups = task.groups_at(tile, last);
        let next = task.groups_at(tile + TILE, last).map(|(keys, _)| keys);
        let mut row = 0;
        while row < n_rows {
            let at_once = match n_rows - row {
                MANY_ROWS.. if S::WIDE => MANY_ROWS,
                SOME_ROWS.. if S::WIDE => SOME_ROWS,
                left => left.min(2), // also where there are fewer registers
            };
            let sees = task.sees(row).start..task.sees(row + at_once - 1).end;
            if sees.start < tile + TILE && sees.end > tile {
                match at_once {
                    MANY_ROWS => rows_of_tile::<S, BF16, MANY_ROWS>(task, scratch, row, tile, &groups, &next),
                    SOME_ROWS => rows_of_tile::<S, BF16, SOME_ROWS>(task, scratch, row, tile, &groups, &next),
                    2 => rows_of_tile::<S, BF16, 2>(task, scratch, row, tile, &groups, &next),
                    _ => rows_of_tile::<S, BF16, 1>(task, scratch, row, tile, &groups, &next),
                }
            }
            row += at_once;
        }
    }
    for row in 0..n_rows {
        // SAFETY: each row of `out`, whose length `Attention::run` checked, belongs to one task, and is borrowed until the team is done.
        let out = unsafe { std::slice::from_raw_parts_mut(task.out.get().add(task.place(row)), dim) };
        let sum = scratch.rows[row].1;
        out.iter_mut().zip(&scratch.out[row * padded..]).for_each(|(out, x)| *out = x / sum);
    }
}

/// A query as words; what `x` does not fill is 0.
#[inline(always)]
fn words<S: Simd, const BF16: bool>(x: &[f32], out: &mut [u32]) {
    let lanes = if BF16 { LANES / 2 } else { LANES };
    for (x, out) in x.chunks(LANES).zip(out.chunks_exact_mut(lanes)) {
        let mut chunk = [0.0; LANES];
        chunk[..x.len()].copy_from_slice(x);
        pack::<S, BF16>(S::load(&chunk), out);
    }
}

/// A vector as words: [`LANES`] of them, or half as many.
#[inline(always)]
fn pack<S: Simd, const BF16: bool>(v: S::V, out: &mut [u32]) {
    if BF16 {
        let mut halves = [0u16; LANES];
        S::store_bf16(v, &mut halves);
        for (out, pair) in out.iter_mut().zip(halves.as_chunks::<2>().0) {
            *out = u32::from(pair[0]) | u32::from(pair[1]) << 16;
        }
    } else {
        let mut lanes = [0.0; LANES];
        S::store(v, &mut lanes);
        out.iter_mut().zip(lanes).for_each(|(out, x)| *out = x.to_bits());
    }
}

/// Rows `row..row + M` meet the positions from `tile` on. `next` are the keys that come after them: each is asked for while something else is computed,
/// for the processor itself does not look beyond a page, and a group's keys are one.
#[inline(always)]
fn rows_of_tile<S: Simd, const BF16: bool, const M: usize>(
    task: &Task<'_>,
    scratch: &mut Scratch,
    row: usize,
    tile: usize,
    groups: &[(&[u32], &[u32]); GROUPS],
    next: &[&[u32]; GROUPS],
) {
    let padded = task.pool.padded();
    let (steps, per_group) = if BF16 { (padded / 2, LANES / 2) } else { (padded, LANES) };
    let end = task.sees(row + M - 1).end;
    let n_groups = (end - tile).div_ceil(LANES).min(GROUPS);
    let q: [&[u32]; M] = std::array::from_fn(|m| &scratch.q[(row + m) * steps..][..steps]);
    let mut scores = [[[0.0; LANES]; GROUPS]; M];
    let keys = groups.map(|(keys, _)| keys);
    let values = groups.map(|(_, values)| values);
    match n_groups {
        4 if S::WIDE && M <= SOME_ROWS => score::<S, BF16, M, 4>(q, [keys[0], keys[1], keys[2], keys[3]], values, 0, &mut scores),
        4 => {
            score::<S, BF16, M, 2>(q, [keys[0], keys[1]], [values[0], values[1]], 0, &mut scores);
            score::<S, BF16, M, 2>(q, [keys[2], keys[3]], [values[2], values[3]], 2, &mut scores);
        }
        3 => {
            score::<S, BF16, M, 2>(q, [keys[0], keys[1]], [values[0], values[1]], 0, &mut scores);
            score::<S, BF16, M, 1>(q, [keys[2]], [values[2]], 2, &mut scores);
        }
        2 => score::<S, BF16, M, 2>(q, [keys[0], keys[1]], [values[0], values[1]], 0, &mut scores),
        _ => score::<S, BF16, M, 1>(q, [keys[0]], [values[0]], 0, &mut scores),
    }
    let mut weights = [[0u32; TILE]; M];
    let mut factors = [1.0; M];
    for m in 0..M {
        let sees = task.sees(row + m);
        let visible = sees.start.saturating_sub(tile)..sees.end.saturating_sub(tile).min(TILE);
        factors[m] = weigh::<S, BF16>(task.attention, &mut scores[m][..n_groups], visible, &mut scratch.rows[row + m], &mut weights[m]);
    }
    let out = &mut scratch.out[row * padded..][..M * padded];
    let passed: [(&[u32], &[u32]); GROUPS] = std::array::from_fn(|i| (values[i], next[i]));
    let columns = padded / LANES;
    let mut column = 0;
    while column < columns {
        if S::WIDE && M <= SOME_ROWS && columns - column >= 4 {
            gather::<S, BF16, M, 4>(&weights, &passed[..n_groups], per_group, padded, column, &factors, out);
            column += 4;
        } else if columns - column >= 2 {
            gather::<S, BF16, M, 2>(&weights, &passed[..n_groups], per_group, padded, column, &factors, out);
            column += 2;
        } else {
            gather::<S, BF16, M, 1>(&weights, &passed[..n_groups], per_group, padded, column, &factors, out);
            column += 1;
        }
    }
}

/// Adds the product of two words to a vector of sums.
#[inline(always)]
fn dot<S: Simd, const BF16: bool>(sums: S::V, a: u32, b: &[u32; LANES]) -> S::V {
    if BF16 { S::dot_bf16(sums, a, b) } else { S::fma(S::splat(f32::from_bits(a)), S::load(&b.map(f32::from_bits)), sums) }
}

/// The products of M queries with the keys of N groups. Meanwhile `next`, as many words, is fetched.
#[inline(always)]
fn score<S: Simd, const BF16: bool, const M: usize, const N: usize>(
    q: [&[u32]; M],
    keys: [&[u32]; N],
    next: [&[u32]; N],
    first: usize,
    scores: &mut [[[f32; LANES]; GROUPS]; M],
) {
    let mut sums = [[S::splat(0.0); N]; M];
    let [keys, next] = [keys, next].map(|keys| keys.map(|keys| keys.as_chunks::<LANES>().0));
    let steps = q[0].len();
    assert!(q.iter().all(|q| q.len() == steps) && keys.iter().chain(&next).all(|keys| keys.len() == steps));
    for step in 0..steps {
        next.iter().for_each(|next| S::fetch(&next[step]));
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = dot::<S, BF16>(sums[m][n], q[m][step], &keys[n][step]);
            }
        }
    }
    for m in 0..M {
        for n in 0..N {
            S::store(sums[m][n], &mut scores[m][first + n]);
        }
    }
}

/// From scores to weights: updates the row's largest score and sum, gives the factor for what was summed before.
#[inline(always)]
fn weigh<S: Simd, const BF16: bool>(
    attention: &Attention,
    scores: &mut [[f32; LANES]],
    visible: std::ops::Range<usize>,
    row: &mut (f32, f32),
    weights: &mut [u32; TILE],
) -> f32 {
    if visible.is_empty() {
        return 1.0;
    }
    for scores in scores.iter_mut() {
        let scaled = S::mul(S::load(scores), S::splat(attention.scale));
        let capped = match attention.softcap {
            Some(cap) => S::mul(S::tanh(S::mul(scaled, S::splat(1.0 / cap))), S::splat(cap)),
            None => scaled,
        };
        S::store(capped, scores);
    }
    let flat = scores.as_flattened_mut();
    if visible.end < flat.len() {
        flat[visible.end..].fill(f32::NEG_INFINITY);
    }
    flat[..visible.start].fill(f32::NEG_INFINITY);
    let mut largest = S::load(&scores[0]);
    for scores in &scores[1..] {
        largest = S::max(largest, S::load(scores));
    }
    let largest = row.0.max(S::largest(largest));
    let mut sums = S::splat(0.0);
    let lanes = if BF16 { LANES / 2 } else { LANES };
    for (scores, weights) in scores.iter().zip(weights.chunks_exact_mut(lanes)) {
        let weight = S::exp(S::sub(S::load(scores), S::splat(largest)));
        sums = S::add(sums, weight);
        pack::<S, BF16>(weight, weights);
    }
    // Mostly nothing larger has come, and `e^0` is 1.
    let mut factor = [1.0; LANES];
    if largest > row.0 {
        S::store(S::exp(S::splat(row.0 - largest)), &mut factor);
    }
    *row = (largest, row.1 * factor[0] + S::sum(sums));
    factor[0]
}

/// Adds the weighted values of the groups to N vectors of M rows of `out`. `passed` are each group's values and as many words, of which the same part is
/// fetched meanwhile.
#[inline(always)]
fn gather<S: Simd, const BF16: bool, const M: usize, const N: usize>(
    weights: &[[u32; TILE]; M],
    passed: &[(&[u32], &[u32])],
    per_group: usize,
    padded: usize,
    column: usize,
    factors: &[f32; M],
    out: &mut [f32],
) {
    let mut sums = [[S::splat(0.0); N]; M];
    for m in 0..M {
        let out = out[m * padded..][..padded].as_chunks::<LANES>().0;
        for n in 0..N {
            sums[m][n] = S::mul(S::load(&out[column + n]), S::splat(factors[m]));
        }
    }
    for (group, (values, next)) in passed.iter().enumerate() {
        for (step, (row, next)) in values.chunks_exact(padded).zip(next.chunks_exact(padded)).enumerate() {
            next.as_chunks::<LANES>().0[column..column + N].iter().for_each(S::fetch);
            let row = &row.as_chunks::<LANES>().0[column..column + N];
            for m in 0..M {
                let weight = weights[m][group * per_group + step];
                for n in 0..N {
                    sums[m][n] = dot::<S, BF16>(sums[m][n], weight, &row[n]);
                }
            }
        }
    }
    for m in 0..M {
        let out = out[m * padded..][..padded].as_chunks_mut::<LANES>().0;
        for n in 0..N {
            S::store(sums[m][n], &mut out[column + n]);
        }
    }
}
