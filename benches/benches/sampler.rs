//! One draw from the logits of a step, beside one pass over the same logits, which no sampler can undercut.
#![allow(missing_docs, reason = "criterion's macros make items without documentation")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use plexus_engine::sample::{History, SamplerSettings, sample};
use plexus_types::Sampling;

/// Vocabularies of the embedded model and of a large one.
const VOCABULARIES: [usize; 2] = [1536, 151_936];

/// Tokens drawn before, for the settings that look back.
const N_HISTORY: u32 = 1000;

/// Names, and settings as a request would ask for them.
fn settings() -> [(&'static str, SamplerSettings); 4] {
    let resolve = |sampling| SamplerSettings::resolve(&sampling, &Sampling::default(), 7);
    [
        ("greedy", resolve(Sampling { temperature: Some(0.0), ..Sampling::default() })),
        ("top_k 40, top_p 0.9", resolve(Sampling { temperature: Some(0.7), top_k: Some(40), top_p: Some(0.9), ..Sampling::default() })),
        ("top_p 0.9", resolve(Sampling { temperature: Some(0.7), top_p: Some(0.9), ..Sampling::default() })),
        ("repetition penalty", resolve(Sampling { temperature: Some(0.0), repetition_penalty: Some(1.1), ..Sampling::default() })),
    ]
}

/// Logits shaped like a model's: most about 0, a few far above. The same at every run.
fn logits(n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            let noise = (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32; // [0, 1)
            if noise > 0.999 { 8.0 + 8.0 * noise.fract() } else { 4.0 * noise }
        })
        .collect()
}

fn draws(c: &mut Criterion) {
    let sampled: Vec<u32> = (0..N_HISTORY).collect();
    for n in VOCABULARIES {
        let mut group = c.benchmark_group(format!("sampler/{n} logits"));
        group.throughput(Throughput::Elements(n as u64));
        let logits = logits(n);
        group.bench_function("floor: one pass", |b| b.iter(|| black_box(&logits).iter().copied().fold(f32::MIN, f32::max)));
        for (name, settings) in settings() {
            let history = if settings.needs_history() { History { prompt: &[], sampled: &sampled } } else { History::default() };
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_batched_ref(
                    || logits.clone(), // penalties change them
                    |logits| sample(logits, &settings, 1000, history).expect("finite logits can be drawn from"),
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, draws);
criterion_main!(benches);
