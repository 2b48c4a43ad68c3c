//! From logits to a token: a pure function of the logits, the settings, the seed, the position and the tokens before.
//!
//! Order of steps, each on what the one before left:
//! 1. repetition penalty, then presence and frequency penalties;
//! 2. temperature; at 0 the likeliest token is taken, ties to the lowest id, and nothing below applies;
//! 3. `top_k`; 4. `top_p`; 5. `min_p`;
//! 6. one draw, from a counter-based generator keyed by (seed, position): no generator state exists to be lost.
//!
//! Only additions, multiplications, divisions and comparisons of IEEE numbers are used, never a platform's `exp`, so that equal
//! logits give equal tokens on every machine.

mod philox;

use std::cmp::Ordering;
use std::collections::HashMap;

use plexus_types::Sampling;

use crate::batch::{Batch, BatchOutput};
use crate::error::EngineError;

/// Candidates looked at first when `top_p` is the only filter. Real distributions rarely need more.
const TOP_P_FIRST_LOOK: usize = 256;

/// How tokens are drawn, with every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerSettings {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only so many likeliest tokens may be drawn; 0 is off.
    pub top_k: u32,
    /// Only the likeliest tokens that sum to this probability may be drawn; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this many times as likely as the likeliest may be drawn; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 is off.
    pub repetition_penalty: f32,
    /// How far back `repetition_penalty` looks, in tokens; absent: over everything.
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logits of tokens generated before; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens generated before, once for each time; 0 is off.
    pub frequency_penalty: f32,
    /// Keys all draws of the stream.
    pub seed: u64,
}

impl SamplerSettings {
    /// What the request says, else what the model's makers say, else the fallback: plain sampling at temperature 1 (CX-81).
    pub fn resolve(request: &Sampling, model: &Sampling, seed: u64) -> Self {
        Self {
            temperature: request.temperature.or(model.temperature).unwrap_or(1.0),
            top_k: request.top_k.or(model.top_k).unwrap_or(0),
            top_p: request.top_p.or(model.top_p).unwrap_or(1.0),
            min_p: request.min_p.or(model.min_p).unwrap_or(0.0),
            repetition_penalty: request.repetition_penalty.or(model.repetition_penalty).unwrap_or(1.0),
            repeat_last_n: request.repeat_last_n.or(model.repeat_last_n),
            presence_penalty: request.presence_penalty.or(model.presence_penalty).unwrap_or(0.0),
            frequency_penalty: request.frequency_penalty.or(model.frequency_penalty).unwrap_or(0.0),
            seed,
        }
    }

    /// Must [`sample`] be told the tokens before?
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// The tokens before the one to be drawn; both empty unless [`SamplerSettings::needs_history`].
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// The prompt.
    pub prompt: &'a [u32],
    /// What was drawn so far.
    pub sampled: &'a [u32],
}

/// Draws the token at `position` of a stream.
///
/// `logits`: `[vocab_size]`, changed in place by the penalties.
/// Errors: [`EngineError::Sampling`] if there are no logits, or one is not a number or infinitely likely, as a broken model gives.
pub fn sample(logits: &mut [f32], settings: &SamplerSettings, position: u32, history: History<'_>) -> Result<u32, EngineError> {
    penalize(logits, settings, history);
    let best = argmax(logits)?;
    if settings.temperature.is_nan() || settings.temperature <= 0.0 {
        return Ok(best);
    }
    let mut candidates = Candidates::new(logits);
    candidates.keep_top_k(settings.top_k as usize); // no temperature changes their order
    candidates.weigh(logits[best as usize], settings.temperature);
    candidates.keep_top_p(settings.top_p);
    candidates.keep_min_p(settings.min_p);
    Ok(candidates.draw(philox::uniform(settings.seed, position)))
}

/// Draws all that `batch` asks for. `rows` gives the logits of [`crate::layout::Layout::rows`], in order, `[vocab_size]` each.
///
/// After the first wrong guess of a sequence the rows that depend on it are passed over.
pub(crate) fn draw_all(batch: &Batch, rows: &mut dyn Iterator<Item = Vec<f32>>) -> Result<BatchOutput, EngineError> {
    let mut output = BatchOutput::default();
    for (sequence, draw) in batch.draws.iter().enumerate() {
        let mut sampled = Vec::new();
        if let Some(draw) = draw {
            let end = batch.seq_starts[sequence + 1] as usize;
            let guesses = &batch.tokens[end - draw.n_guesses as usize..end];
            let mut sampled_history = draw.sampled_history.clone();
            for i in 0..=guesses.len() {
                let mut row = rows.next().ok_or_else(|| EngineError::shape("there are fewer logits than draws"))?;
                if sampled.len() < i || (i > 0 && sampled[i - 1] != guesses[i - 1]) {
                    continue;
                }
                let history = History { prompt: &draw.prompt_history, sampled: &sampled_history };
                let id = sample(&mut row, &draw.settings, draw.position + i as u32, history)?;
                sampled.push(id);
                if draw.settings.needs_history() {
                    sampled_history.push(id);
                }
            }
        }
        output.sampled.push(sampled);
    }
    Ok(output)
}

fn penalize(logits: &mut [f32], settings: &SamplerSettings, history: History<'_>) {
    if settings.repetition_penalty != 1.0 {
        let n_seen = history.prompt.len() + history.sampled.len();
        let skip = settings.repeat_last_n.map_or(0, |last| n_seen.saturating_sub(last as usize));
        let mut seen: Vec<u32> = history.prompt.iter().chain(history.sampled).skip(skip).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 { *logit / settings.repetition_penalty } else { *logit * settings.repetition_penalty };
            }
        }
    }
    if settings.presence_penalty != 0.0 || settings.frequency_penalty != 0.0 {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for &id in history.sampled {
            *counts.entry(id).or_default() += 1;
        }
        for (id, count) in counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= settings.presence_penalty + settings.frequency_penalty * count as f32;
            }
        }
    }
}

/// The likeliest token, ties to the lowest id. A logit of minus infinity is a token that cannot be.
fn argmax(logits: &[f32]) -> Result<u32, EngineError> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(EngineError::Sampling { reason: format!("the logit of token {id} is {logit}") });
        }
        if best.is_none_or(|(_, so_far)| logit > so_far) {
            best = Some((id, logit));
        }
    }
    match best {
        Some((id, logit)) if logit.is_finite() => Ok(id as u32),
        Some(_) => Err(EngineError::Sampling { reason: "no token is possible".into() }),
        None => Err(EngineError::Sampling { reason: "there are no logits".into() }),
    }
}

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Relative to the likeliest token, which has 1; 0 until weighed.
    weight: f64,
}

/// The likelier first, then the lower id: a total order, because ids differ.
fn likelier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The tokens that may still be drawn: in order of id, or the likelier first once a filter had to order them.
struct Candidates(Vec<Candidate>);

impl Candidates {
    fn new(logits: &[f32]) -> Self {
        let candidate = |(id, &logit): (usize, &f32)| Candidate { id: id as u32, logit, weight: 0.0 };
        Self(logits.iter().enumerate().map(candidate).collect())
    }

    /// Gives each candidate its weight under the temperature.
    fn weigh(&mut self, max: f32, temperature: f32) {
        let (max, temperature) = (f64::from(max), f64::from(temperature));
        for candidate in &mut self.0 {
            candidate.weight = exp((f64::from(candidate.logit) - max) / temperature);
        }
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|candidate| candidate.weight).sum()
    }

    /// Selects before it sorts: the vocabulary as a whole is never sorted.
    fn keep_top_k(&mut self, k: usize) {
        if k == 0 || k >= self.0.len() {
            return;
        }
        self.0.select_nth_unstable_by(k - 1, likelier_first);
        self.0.truncate(k);
        self.0.sort_unstable_by(likelier_first);
    }

    /// The shortest run of likeliest tokens that reaches `top_p`; at least one.
    fn keep_top_p(&mut self, top_p: f32) {
        if top_p >= 1.0 {
            return;
        }
        let goal = self.total() * f64::from(top_p.max(0.0));
        let mut look = TOP_P_FIRST_LOOK;
        loop {
            let n = look.min(self.0.len());
            if n < self.0.len() {
                self.0.select_nth_unstable_by(n - 1, likelier_first);
            }
            self.0[..n].sort_unstable_by(likelier_first);
            let mut sum = 0.0;
            let reached = self.0[..n].iter().position(|candidate| {
                sum += candidate.weight;
                sum >= goal
            });
            match reached {
                Some(last) => return self.0.truncate(last + 1),
                None if n == self.0.len() => return,
                None => look *= 8,
            }
        }
    }

    fn keep_min_p(&mut self, min_p: f32) {
        if min_p > 0.0 {
            let least = f64::from(min_p.min(1.0));
            self.0.retain(|candidate| candidate.weight >= least);
        }
    }

    /// The candidate at `uniform` (in 0 to 1) of the way through the weights.
    fn draw(&self, uniform: f64) -> u32 {
        let goal = self.total() * uniform;
        let mut sum = 0.0;
        for candidate in &self.0 {
            sum += candidate.weight;
            if sum > goal {
                return candidate.id;
            }
        }
        self.0.last().expect("the likeliest token passes every filter").id
    }
}

/// `e^x` for `x <= 0`, with a relative error below 1e-14, from basic operations only; 0 below -700.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then a Taylor polynomial of `r` and a scaling by `2^n`.
fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1; // its low 32 bits are zero, so that n * LN_2_HIGH is exact
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const TERMS: usize = 12;
    /// `1 / k!`
    const COEFFICIENTS: [f64; TERMS] = {
        let mut coefficients = [1.0; TERMS];
        let mut k = 1;
        while k < TERMS {
            coefficients[k] = coefficients[k - 1] / k as f64;
            k += 1;
        }
        coefficients
    };
    if x < -700.0 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i64; // the nearest, since x is not above 0 and the conversion cuts towards 0
    let r = (x - n as f64 * LN_2_HIGH) - n as f64 * LN_2_LOW;
    let sum = COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficient| sum * r + coefficient);
    sum * f64::from_bits(((1023 + n) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> SamplerSettings {
        SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 42)
    }

    fn draw(logits: &[f32], settings: &SamplerSettings, position: u32) -> u32 {
        sample(&mut logits.to_vec(), settings, position, History::default()).unwrap()
    }

    /// Every token that 2,000 draws gave, in order of id.
    fn support(logits: &[f32], settings: &SamplerSettings) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..2000).map(|position| draw(logits, settings, position)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn the_request_wins_over_the_model_and_the_model_over_the_fallback() {
        // CX-81
        let model = Sampling { temperature: Some(0.7), top_p: Some(0.9), ..Sampling::default() };
        let request = Sampling { temperature: Some(0.0), ..Sampling::default() };
        let resolved = SamplerSettings::resolve(&request, &model, 1);
        assert_eq!((resolved.temperature, resolved.top_p, resolved.top_k, resolved.min_p), (0.0, 0.9, 0, 0.0));
        assert!(!resolved.needs_history());
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids() {
        let greedy = SamplerSettings { temperature: 0.0, ..settings() };
        assert_eq!(draw(&[1.0, 3.0, 3.0, 2.0], &greedy, 0), 1);
        assert_eq!(draw(&[f32::NEG_INFINITY, -5.0], &greedy, 0), 1);
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        for bad in [vec![0.0, f32::NAN], vec![f32::INFINITY], vec![], vec![f32::NEG_INFINITY; 3]] {
            for temperature in [0.0, 1.0] {
                let settings = SamplerSettings { temperature, ..settings() };
                let result = sample(&mut bad.clone(), &settings, 0, History::default());
                assert!(matches!(result, Err(EngineError::Sampling { .. })), "{bad:?}");
            }
        }
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let logits = [4.0f32.ln(), 3.0f32.ln(), 2.0f32.ln(), 1.0f32.ln()]; // probabilities 0.4, 0.3, 0.2, 0.1
        assert_eq!(support(&logits, &settings()), [0, 1, 2, 3]);
        assert_eq!(support(&logits, &SamplerSettings { top_k: 2, ..settings() }), [0, 1]);
        assert_eq!(support(&logits, &SamplerSettings { top_p: 0.65, ..settings() }), [0, 1]);
        assert_eq!(support(&logits, &SamplerSettings { top_p: 0.0, ..settings() }), [0]);
        assert_eq!(support(&logits, &SamplerSettings { min_p: 0.45, ..settings() }), [0, 1, 2]);
        assert_eq!(support(&logits, &SamplerSettings { top_k: 3, top_p: 0.8, ..settings() }), [0, 1, 2]);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [4.0f32.ln(), 3.0f32.ln(), 2.0f32.ln(), 1.0f32.ln()];
        let mut counts = [0u32; 4];
        for position in 0..20_000 {
            counts[draw(&logits, &settings(), position) as usize] += 1;
        }
        for (count, share) in counts.iter().zip([0.4, 0.3, 0.2, 0.1]) {
            assert!((f64::from(*count) / 20_000.0 - share).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn penalties_see_the_prompt_or_the_answer_as_they_should() {
        let greedy = SamplerSettings { temperature: 0.0, ..settings() };
        let run = |settings: SamplerSettings, prompt: &[u32], sampled: &[u32]| {
            sample(&mut [2.0, 1.9, 1.0], &settings, 0, History { prompt, sampled }).unwrap()
        };
        let repetition = SamplerSettings { repetition_penalty: 1.5, ..greedy };
        assert_eq!(run(repetition, &[0], &[]), 1);
        assert_eq!(run(SamplerSettings { repeat_last_n: Some(1), ..repetition }, &[0, 2], &[]), 0);
        let presence = SamplerSettings { presence_penalty: 0.5, ..greedy };
        assert_eq!(run(presence, &[0], &[]), 0);
        assert_eq!(run(presence, &[], &[0]), 1);
        let frequency = SamplerSettings { frequency_penalty: 0.06, ..greedy };
        assert_eq!((run(frequency, &[], &[0]), run(frequency, &[], &[0, 0])), (0, 1));
        assert!(frequency.needs_history());
    }

    #[test]
    fn a_given_seed_and_position_draw_the_same_tokens_on_every_machine() {
        let logits: Vec<f32> = (0..1000).map(|id| ((id * 37) % 101) as f32 * 0.05).collect();
        let settings = SamplerSettings { temperature: 0.8, top_p: 0.95, ..settings() };
        let drawn: Vec<u32> = (0..8).map(|position| draw(&logits, &settings, position)).collect();
        assert_eq!(drawn, (0..8).map(|position| draw(&logits, &settings, position)).collect::<Vec<_>>());
        assert_ne!(drawn, (8..16).map(|position| draw(&logits, &settings, position)).collect::<Vec<_>>());
    }

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..70_000 {
            let x = f64::from(i) * -0.01;
            let relative = (exp(x) - x.exp()).abs() / x.exp();
            assert!(relative < 1e-14, "exp({x}) is off by {relative}");
        }
        assert_eq!((exp(0.0), exp(-1000.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    proptest! {
        #[test]
        fn top_k_and_top_p_agree_with_a_plain_sort(
            logits in prop::collection::vec(-8.0f32..8.0, 1..2000), top_k in 0u32..40, top_p in 0.0f32..1.1, position in 0u32..9
        ) {
            let settings = SamplerSettings { top_k, top_p, ..settings() };
            let best = argmax(&logits).unwrap();
            let weighed = |top_k: u32| {
                let mut candidates = Candidates::new(&logits);
                candidates.keep_top_k(top_k as usize);
                candidates.weigh(logits[best as usize], 1.0);
                candidates
            };
            let mut fast = weighed(top_k);
            fast.keep_top_p(top_p);
            let mut plain = weighed(0).0;
            plain.sort_unstable_by(likelier_first);
            if top_k > 0 {
                plain.truncate(top_k as usize);
            }
            let goal = plain.iter().map(|c| c.weight).sum::<f64>() * f64::from(top_p);
            let mut sum = 0.0;
            let mut kept = Vec::new();
            for candidate in &plain {
                if !kept.is_empty() && sum >= goal && top_p < 1.0 {
                    break;
                }
                sum += candidate.weight;
                kept.push(candidate.id);
            }
            // The sums of a thousand weights are added in different orders, so the two may part by one token at the border.
            prop_assert!(fast.0.len().abs_diff(kept.len()) <= 1);
            let drawn = sample(&mut logits.clone(), &settings, position, History::default()).unwrap();
            prop_assert!(fast.0.iter().any(|candidate| candidate.id == drawn));
        }
    }
}
