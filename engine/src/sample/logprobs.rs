//! How likely tokens are under the model itself: at temperature 1, before penalties, bias, masks and filters.

use plexus_kernels::logits::{log_sum_exp, top_k};

use super::argmax;
use crate::error::EngineError;

/// How likely a drawn token was, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawLogprobs {
    /// Natural logarithm of the drawn token's probability; minus infinity for one that the model holds impossible.
    pub drawn: f32,
    /// As many of the likeliest tokens as were asked for, with theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl DrawLogprobs {
    /// `logits`: `[vocab_size]`, as the model gave them. Errors: as for drawing from them.
    pub(super) fn new(logits: &[f32], drawn: u32, n_top: u32) -> Result<Self, EngineError> {
        let total = log_sum_exp(logits, argmax(logits)?.logit);
        let logprob = |logit: f32| (f64::from(logit) - total).min(0.0) as f32;
        let top = top_k(logits, n_top as usize);
        Ok(Self {
            drawn: logits.get(drawn as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit)),
            top: top.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect(),
        })
    }
}
