//! `top_k`, `top_p`, `min_p` and the draw itself, over weights that are whole numbers.
//!
//! Every filter but `min_p` keeps a run of the likeliest tokens. So a short list of them, selected in one pass, answers nearly every draw;
//! where `top_p` keeps thousands, a histogram finds the border and the drawn token without sorting the vocabulary.

use plexus_kernels::logits::{self, CHUNK, Candidate, ONE, Scale, at_least, likelier_first, top_k};

use super::SamplerSettings;

/// Candidates looked at first when `top_p` is the only filter. Real distributions rarely need more.
const TOP_P_FIRST_LOOK: usize = 256;
/// Draws a token of a row whose likeliest is `best`. `random`: 53 random bits. The temperature is above 0.
///
/// With `top_k` or `top_p` the draw counts weights from the likeliest token on, else from the lowest id on.
pub(super) fn choose(row: &[f32], best: Candidate, settings: &SamplerSettings, random: u64) -> u32 {
    let scale = Scale::new(best.logit, settings.temperature);
    let least = settings.min_p.clamp(0.0, 1.0) * ONE;
    let k = settings.top_k as usize;
    let by_rank = |candidates: Vec<Candidate>| draw_by_rank(&candidates, &scale, least, random);
    match (k > 0 && k < row.len(), settings.top_p < 1.0) {
        (false, false) => draw_by_id(row, &scale, least, random),
        (true, false) => by_rank(top_k(row, k)),
        (true, true) => {
            let mut candidates = top_k(row, k);
            let total = candidates.iter().map(|candidate| f64::from(scale.weight(candidate.logit))).sum();
            if let Some(n) = n_reaching(&candidates, &scale, share(total, settings.top_p)) {
                candidates.truncate(n);
            }
            by_rank(candidates)
        }
        (false, true) => {
            let goal = share(logits::totals(row, scale, 0.0).iter().sum(), settings.top_p);
            let mut candidates = top_k(row, TOP_P_FIRST_LOOK);
            match n_reaching(&candidates, &scale, goal) {
                Some(n) => {
                    candidates.truncate(n);
                    by_rank(candidates)
                }
                None => draw_by_histogram(row, &scale, goal, least, random),
            }
        }
    }
}

/// The weight that the kept tokens must reach.
fn share(total: f64, top_p: f32) -> f64 {
    (total * f64::from(top_p.max(0.0))).ceil()
}

/// How many of the likeliest tokens reach the weight `goal`, at least one; `None` if all of them do not.
fn n_reaching(candidates: &[Candidate], scale: &Scale, goal: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = candidates.iter().position(|candidate| {
        sum += f64::from(scale.weight(candidate.logit));
        sum >= goal
    });
    Some(reached? + 1)
}

/// Where in a total weight the draw falls: a whole number below `total`.
fn aim(random: u64, total: f64) -> f64 {
    ((u128::from(random) * total as u128) >> 53) as f64
}

/// The first of some tokens at which the sum of weights passes `goal`, from `sum` on; of those alone whose weight is at least `least`.
fn first_beyond(candidates: impl Iterator<Item = Candidate>, scale: &Scale, least: f32, mut sum: f64, goal: f64) -> Option<Candidate> {
    let mut candidates = candidates;
    candidates.find(|candidate| {
        sum += f64::from(at_least(scale.weight(candidate.logit), least));
        sum > goal
    })
}

fn draw_by_rank(candidates: &[Candidate], scale: &Scale, least: f32, random: u64) -> u32 {
    let total = candidates.iter().map(|candidate| f64::from(at_least(scale.weight(candidate.logit), least))).sum();
    let drawn = first_beyond(candidates.iter().copied(), scale, least, 0.0, aim(random, total));
    drawn.expect("the goal is below the total").id
}

fn draw_by_id(row: &[f32], scale: &Scale, least: f32, random: u64) -> u32 {
    let totals: Vec<f64> = logits::totals(row, *scale, least);
    let goal = aim(random, totals.iter().sum());
    let mut sum = 0.0;
    let chunk = totals.iter().position(|total| {
        sum += total;
        sum > goal
    });
    let chunk = chunk.expect("the goal is below the total");
    let tokens = (chunk * CHUNK..row.len()).map(|id| Candidate { id: id as u32, logit: row[id] });
    first_beyond(tokens, scale, least, sum - totals[chunk], goal).expect("the chunk's total passes the goal").id
}

/// A draw from the likeliest tokens that reach `top_p_goal`, however many they are.
fn draw_by_histogram(row: &[f32], scale: &Scale, top_p_goal: f64, least: f32, random: u64) -> u32 {
    let all = logits::histogram(row, *scale, 0.0);
    // The sum reaches the goal where it passes one less: weights are whole. A goal of 0 is reached by the first look.
    let (bin, before) = find(&all, top_p_goal - 1.0).expect("the goal is not above the total");
    let members = logits::members(row, *scale, bin as u32);
    let last = first_beyond(members.iter().copied(), scale, 0.0, before, top_p_goal - 1.0).expect("the bin's total passes the goal");
    let some = if least == 0.0 { all } else { logits::histogram(row, *scale, least) };
    let inside = members.iter().take_while(|member| likelier_first(member, &last).is_le());
    let kept = some[..bin].iter().sum::<f64>() + inside.map(|member| f64::from(at_least(scale.weight(member.logit), least))).sum::<f64>();
    let goal = aim(random, kept);
    let (bin, before) = find(&some, goal).expect("the goal is below the total");
    let members = logits::members(row, *scale, bin as u32);
    first_beyond(members.into_iter(), scale, least, before, goal).expect("the bin's total passes the goal").id
}

/// The bin in which the sum of weights passes `goal`, and the sum before it.
fn find(bins: &[f64], goal: f64) -> Option<(usize, f64)> {
    let mut sum = 0.0;
    let bin = bins.iter().position(|weight| {
        sum += weight;
        sum > goal
    })?;
    Some((bin, sum - bins[bin]))
}
