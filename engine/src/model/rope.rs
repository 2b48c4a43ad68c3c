//! Rotary position embedding: the angle by which each pair of a head turns per position.

use super::config::{RopeConfig, RopePairs};

/// How the angles are stretched to reach a longer context than the model was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    None,
    /// All divided by `factor`.
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// Slow pairs divided by `factor`, fast ones kept, a ramp between. Source: Llama 3.1.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Pairs that turn fewer times than this over the original context are slow.
        low_freq_factor: f64,
        /// Pairs that turn more often than this over the original context are fast.
        high_freq_factor: f64,
        /// Context of the first training, tokens.
        original_context: u32,
    },
    /// As a ramp over the pairs, with the attention sharpened. Source: Peng et al. 2023, arXiv:2309.00071.
    Yarn {
        /// How much longer the context is.
        factor: f64,
        /// Context of the first training, tokens.
        original_context: u32,
        /// Turns over the original context above which a pair is kept.
        beta_fast: f64,
        /// Turns over the original context below which a pair is divided by `factor`.
        beta_slow: f64,
        /// Multiplies cosines and sines; absent: `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
    /// Each pair divided by its own number, which the file gives: Llama 3 in GGUF files, and LongRoPE.
    /// Source of the latter: Ding et al. 2024, arXiv:2402.13753.
    Divisors {
        /// `[dim / 2]`.
        divisors: Vec<f32>,
        /// Multiplies cosines and sines; 1 for Llama 3.
        amplitude: f64,
    },
}

impl RopeScaling {
    /// LongRoPE for a context of `max_context` tokens: the long divisors if that is more than the model was first trained on, else the short
    /// ones. The choice holds for all positions, since keys in the cache are turned already; to choose anew as a sequence grows would give
    /// tokens that depend on how a prompt was cut. `amplitude`: absent, `sqrt(1 + ln(max / original) / ln(original))`.
    pub(super) fn long_rope(short: Vec<f32>, long: Vec<f32>, amplitude: Option<f64>, original_context: u32, max_context: u32) -> Self {
        let stretched = max_context > original_context;
        let ratio = f64::from(max_context) / f64::from(original_context);
        let computed = if stretched { (1.0 + ratio.ln() / f64::from(original_context).ln()).sqrt() } else { 1.0 };
        Self::Divisors { divisors: if stretched { long } else { short }, amplitude: amplitude.unwrap_or(computed) }
    }
}

/// A rotary embedding, with the angle per position of each pair.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// The first so many numbers of a head are turned.
    pub(crate) dim: usize,
    pub(crate) pairs: RopePairs,
    /// `[dim / 2]`, radians per position.
    frequencies: Vec<f32>,
    /// Multiplies cosines and sines.
    amplitude: f32,
}

impl Rope {
    pub(crate) fn new(config: &RopeConfig) -> Self {
        let dim = config.dim as f64;
        let base = config.theta;
        let plain = (0..config.dim / 2).map(|i| 1.0 / base.powf(2.0 * i as f64 / dim));
        let mut amplitude = 1.0;
        let frequencies: Vec<f64> = match &config.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Divisors { divisors, amplitude: factor } => {
                amplitude = *factor;
                plain.zip(divisors).map(|(frequency, divisor)| frequency / f64::from(*divisor)).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
                .map(|frequency| {
                    let turns = f64::from(*original_context) * frequency / std::f64::consts::TAU;
                    let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    frequency * (keep + (1.0 - keep) / factor)
                })
                .collect(),
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                amplitude = attention_factor.unwrap_or(if *factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 });
                // The pair that makes so many turns over the original context.
                let pair = |turns: f64| dim * (f64::from(*original_context) / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
                let low = pair(*beta_fast).floor().max(0.0);
                let high = pair(*beta_slow).ceil().min(dim - 1.0);
                let width = if high > low { high - low } else { 0.001 };
                plain
                    .enumerate()
                    .map(|(i, frequency)| {
                        let keep = 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0);
                        frequency * (keep + (1.0 - keep) / factor)
                    })
                    .collect()
            }
        };
        let frequencies = frequencies.into_iter().map(|frequency| frequency as f32).collect();
        Self { dim: config.dim, pairs: config.pairs, frequencies, amplitude: amplitude as f32 }
    }

    /// Cosines and sines for `positions`, each `[n_tokens, dim / 2]`. Angles are f32, as in the reference implementations.
    pub(crate) fn angles(&self, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let n = positions.len() * self.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for &position in positions {
            for frequency in &self.frequencies {
                let angle = position as f32 * frequency;
                cos.push(angle.cos() * self.amplitude);
                sin.push(angle.sin() * self.amplitude);
            }
        }
        (cos, sin)
    }
}
