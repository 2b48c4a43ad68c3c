//! From logits to a token: a pure function of the logits, the settings, the seed, the position and the tokens before.
//!
//! Order of steps, each on what the one before left:
//! 1. repetition penalty, then presence and frequency penalties, then the request's bias;
//! 2. tokens that may not come are made impossible: those that end the answer too soon (`min_tokens`), and those that the request's grammar
//!    does not allow;
//! 3. temperature; at 0 the likeliest token is taken, ties to the lowest id, and nothing below applies;
//! 4. `top_k`; 5. `top_p`; 6. `min_p`;
//! 7. one draw, from a counter-based generator keyed by (seed, position): no generator state exists to be lost.
//!
//! Only additions, multiplications, divisions and comparisons of IEEE numbers are used, never a platform's `exp`, and weights are whole
//! numbers, whose sums do not depend on their order: equal logits give equal tokens on every machine and with every instruction set.

mod adjust;
mod choose;
mod draws;
mod logprobs;
mod philox;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use plexus_kernels::logits::{self, BadRow, Candidate};
use plexus_types::{RequestError, Sampling};

use crate::error::EngineError;

pub(crate) use draws::draw_all;
pub use logprobs::DrawLogprobs;

/// How tokens are drawn, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
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
    /// Added to the logits of these tokens, by id, after the penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// None of `stop_ids` can be drawn before the answer has so many tokens.
    pub min_tokens: u32,
    /// Tokens that end an answer. Needed for `min_tokens` only; see [`SamplerSettings::with_stop_ids`].
    pub stop_ids: Arc<[u32]>,
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
            logit_bias: if request.logit_bias.is_empty() { model.logit_bias.clone() } else { request.logit_bias.clone() },
            min_tokens: request.min_tokens.or(model.min_tokens).unwrap_or(0),
            stop_ids: Arc::new([]),
            seed,
        }
    }

    /// The same, for a model whose answers end with any of these tokens.
    pub fn with_stop_ids(self, stop_ids: Arc<[u32]>) -> Self {
        Self { stop_ids, ..self }
    }

    /// Checks what only a model's vocabulary can tell.
    ///
    /// Errors: a bias for a token that does not exist, or one that is not a number.
    pub fn check(&self, vocab_size: usize) -> Result<(), RequestError> {
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab_size {
                let message = format!("logit_bias: token {id} is not one of this model's {vocab_size} tokens; leave it out");
                return Err(RequestError::invalid("logit_bias", message));
            }
            if !bias.is_finite() {
                return Err(RequestError::invalid(
                    "logit_bias",
                    format!("logit_bias: the bias of token {id} is {bias}; give a finite number"),
                ));
            }
        }
        Ok(())
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
/// `logits`: `[vocab_size]`, changed in place by the penalties. `min_tokens` is not looked at: it concerns places in an answer.
/// Errors: [`EngineError::Sampling`] if there are no logits, or one is not a number or infinitely likely, as a broken model gives.
pub fn sample(logits: &mut [f32], settings: &SamplerSettings, position: u32, history: History<'_>) -> Result<u32, EngineError> {
    adjust::adjust(logits, settings, history);
    choose_token(logits, settings, position)
}

/// Steps 3 to 7.
fn choose_token(logits: &[f32], settings: &SamplerSettings, position: u32) -> Result<u32, EngineError> {
    let best = argmax(logits)?;
    if settings.temperature.is_nan() || settings.temperature <= 0.0 {
        return Ok(best.id);
    }
    Ok(choose::choose(logits, best, settings, philox::random_53(settings.seed, position)))
}

/// The likeliest token. Errors: as of [`sample`].
fn argmax(row: &[f32]) -> Result<Candidate, EngineError> {
    logits::argmax(row).map_err(|bad| EngineError::Sampling {
        reason: match bad {
            BadRow::Empty => "there are no logits".into(),
            BadRow::Impossible => "no token is possible".into(),
            BadRow::NotANumber { id, logit } => format!("the logit of token {id} is {logit}"),
        },
    })
}
