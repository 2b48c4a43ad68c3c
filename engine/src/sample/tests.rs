//! Each step by itself, and the fast ways against the plain one.

use plexus_kernels::Team;
use plexus_kernels::logits::{ONE, Scale, likelier_first};
use plexus_types::Sampling;
use proptest::prelude::*;

use super::*;
use crate::batch::{Batch, BlockId, Draw};

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
    let repetition = SamplerSettings { repetition_penalty: 1.5, ..greedy.clone() };
    assert_eq!(run(repetition.clone(), &[0], &[]), 1);
    assert_eq!(run(SamplerSettings { repeat_last_n: Some(1), ..repetition.clone() }, &[0, 2], &[]), 0);
    let presence = SamplerSettings { presence_penalty: 0.5, ..greedy.clone() };
    assert_eq!(run(presence.clone(), &[0], &[]), 0);
    assert_eq!(run(presence.clone(), &[], &[0]), 1);
    let frequency = SamplerSettings { frequency_penalty: 0.06, ..greedy.clone() };
    assert_eq!((run(frequency.clone(), &[], &[0]), run(frequency.clone(), &[], &[0, 0])), (0, 1));
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

/// The definition, spelled out: sort everything, then filter, then count.
fn oracle(logits: &[f32], settings: &SamplerSettings, position: u32) -> u32 {
    let best = argmax(logits).unwrap();
    if settings.temperature <= 0.0 {
        return best.id;
    }
    let scale = Scale::new(best.logit, settings.temperature);
    let mut kept: Vec<Candidate> = logits.iter().enumerate().map(|(id, logit)| Candidate { id: id as u32, logit: *logit }).collect();
    let weight = |candidate: &Candidate| f64::from(scale.weight(candidate.logit));
    let total = |kept: &[Candidate]| kept.iter().map(weight).sum::<f64>();
    let top_k = settings.top_k as usize;
    let by_rank = (top_k > 0 && top_k < kept.len()) || settings.top_p < 1.0;
    if by_rank {
        kept.sort_by(likelier_first);
    }
    if top_k > 0 {
        kept.truncate(top_k);
    }
    if settings.top_p < 1.0 {
        let goal = total(&kept) * f64::from(settings.top_p);
        let n = (1..=kept.len()).find(|n| total(&kept[..*n]) >= goal).unwrap_or(kept.len());
        kept.truncate(n);
    }
    kept.retain(|candidate| weight(candidate) >= f64::from(settings.min_p * ONE));
    let goal = ((total(&kept) as u128 * u128::from(philox::random_53(settings.seed, position))) >> 53) as f64;
    kept[(1..=kept.len()).find(|n| total(&kept[..*n]) > goal).unwrap() - 1].id
}

proptest! {
    #[test]
    fn the_fast_ways_draw_the_very_tokens_of_the_plain_one(
        logits in prop::collection::vec(prop_oneof![-8.0f32..8.0, (-4i32..4).prop_map(|x| x as f32 * 0.5), Just(f32::NEG_INFINITY)], 1..1500),
        finite in -8.0f32..8.0,
        top_k in prop_oneof![Just(0u32), 0u32..1600],
        top_p in prop_oneof![Just(1.0f32), 0.0f32..1.1, Just(0.999)],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        temperature in prop_oneof![Just(0.0f32), Just(1.0), 0.05f32..3.0, Just(100.0)],
        position in 0u32..9,
    ) {
        let mut logits = logits;
        logits.push(finite); // some token is possible
        let settings = SamplerSettings { temperature, top_k, top_p, min_p, ..settings() };
        prop_assert_eq!(draw(&logits, &settings, position), oracle(&logits, &settings, position));
    }
}

#[test]
fn a_flat_row_as_long_as_a_vocabulary_is_drawn_as_the_plain_way_draws_it() {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let logits: Vec<f32> = (0..4_000).map(|_| next()).collect();
    let sharp: Vec<f32> = (0..4_000).map(|_| 20.0 * next()).collect();
    for logits in [logits, sharp] {
        for (top_p, min_p, top_k) in [(0.9, 0.0, 0), (0.9, 0.5, 0), (1.0, 0.5, 0), (1.0, 0.0, 0), (0.5, 0.0, 3_000), (0.001, 0.0, 0)] {
            let settings = SamplerSettings { top_p, min_p, top_k, ..settings() };
            for position in 0..4 {
                assert_eq!(draw(&logits, &settings, position), oracle(&logits, &settings, position), "{top_p} {min_p} {top_k}");
            }
        }
    }
}

/// One sequence at `index` of its answer, with `guesses`, over the same `row` at each place.
fn draw_once(row: &[f32], draw: Draw, guesses: &[u32]) -> crate::batch::BatchOutput {
    let mut batch = Batch::default();
    let tokens: Vec<u32> = [&[0], guesses].concat();
    batch.push(&tokens, 4, &[BlockId(0)], Some(Draw { n_guesses: guesses.len() as u32, ..draw }));
    let mut rows = vec![row.to_vec(); tokens.len()];
    draw_all(&Team::new(2).unwrap(), &batch, &mut rows.iter_mut().map(Vec::as_mut_slice)).unwrap()
}

#[test]
fn sequences_that_are_drawn_side_by_side_get_what_each_gets_alone() {
    let row = |i: u32| -> Vec<f32> { (0..1000).map(|id| ((id * 37 + i * 11) % 101) as f32 * 0.05).collect() };
    let settings = Arc::new(settings());
    let draw = |i: u32| Draw::new(settings.clone(), 5 + i);
    let mut batch = Batch::default();
    let mut rows = vec![];
    for i in 0..9 {
        let asks = i % 3 != 1; // a part of a prompt, after which nothing is drawn
        batch.push(&[0], 4, &[BlockId(i)], asks.then(|| draw(i)));
        rows.extend(asks.then(|| row(i)));
    }
    let together = draw_all(&Team::new(3).unwrap(), &batch, &mut rows.iter_mut().map(Vec::as_mut_slice)).unwrap();
    let alone = |i: u32| if i % 3 == 1 { vec![] } else { draw_once(&row(i), draw(i), &[]).sampled[0].clone() };
    assert_eq!(together.sampled, (0..9).map(alone).collect::<Vec<_>>());
}

#[test]
fn a_bias_forces_and_forbids_and_an_unknown_token_is_refused() {
    let greedy = SamplerSettings { temperature: 0.0, ..settings() };
    let biased = |bias: &[(u32, f32)]| SamplerSettings { logit_bias: bias.to_vec(), ..greedy.clone() };
    let row = [2.0, 1.0, 0.5];
    assert_eq!(draw(&row, &biased(&[(2, 100.0)]), 0), 2);
    assert_eq!(draw(&row, &biased(&[(0, -100.0)]), 0), 1);
    let warm = SamplerSettings { temperature: 1.0, ..biased(&[(0, -100.0), (1, -100.0)]) };
    assert_eq!(support(&row, &warm), [2]);
    assert!(biased(&[(2, 1.0)]).check(3).is_ok());
    assert!(matches!(biased(&[(3, 1.0)]).check(3), Err(RequestError::Invalid { .. })));
    assert!(matches!(biased(&[(0, f32::NAN)]).check(3), Err(RequestError::Invalid { .. })));
}

#[test]
fn an_end_cannot_be_drawn_before_the_least_number_of_tokens_whether_guessed_or_not() {
    let settings = SamplerSettings { temperature: 0.0, min_tokens: 3, ..settings() }.with_stop_ids(Arc::new([1]));
    let settings = Arc::new(settings);
    let row = [0.0, 9.0, 1.0];
    let at = |index| Draw { index, ..Draw::new(settings.clone(), 5 + index) };
    assert_eq!(draw_once(&row, at(2), &[]).sampled, [[2]]);
    assert_eq!(draw_once(&row, at(3), &[]).sampled, [[1]]);
    assert_eq!(draw_once(&row, at(1), &[2, 2]).sampled, [[2, 2, 1]]);
    assert_eq!(draw_once(&row, at(1), &[2, 1]).sampled, [vec![2, 2]]);
}

#[test]
fn log_probabilities_are_the_log_softmax_of_what_the_model_gave() {
    let row: Vec<f32> = (0..1500).map(|id| ((id * 37) % 101) as f32 * 0.1).collect();
    let settings = SamplerSettings { temperature: 0.3, logit_bias: vec![(7, 50.0)], ..settings() };
    let draw = Draw { logprobs: Some(5), ..Draw::new(Arc::new(settings), 5) };
    let output = draw_once(&row, draw.clone(), &[]);
    let total = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let expected = |id: u32| (f64::from(row[id as usize]) - total) as f32;
    assert_eq!(output.sampled, [[7]]);
    let [logprobs] = output.logprobs[0].as_slice() else { panic!("one token, one entry") };
    assert!((logprobs.drawn - expected(7)).abs() < 1e-5, "the bias is not part of it");
    let ids: Vec<u32> = logprobs.top.iter().map(|(id, _)| *id).collect();
    let mut order: Vec<u32> = (0..1500).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
    assert_eq!(ids, order[..5]);
    assert!(logprobs.top.iter().all(|(id, logprob)| (logprob - expected(*id)).abs() < 1e-5));
    let all = draw_once(&row, Draw { logprobs: Some(1500), ..draw.clone() }, &[]).logprobs[0][0].clone();
    let sum: f64 = all.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let none = draw_once(&row, Draw { logprobs: None, ..draw }, &[]);
    assert_eq!(none.logprobs, [vec![]]);
}
