//! Changes to logits before anything is drawn: penalties, bias, and tokens that may not come.

use std::collections::HashMap;

use super::{History, SamplerSettings};

/// Repetition penalty, then presence and frequency penalties, then the request's bias.
pub(super) fn adjust(logits: &mut [f32], settings: &SamplerSettings, history: History<'_>) {
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
    for (id, bias) in &settings.logit_bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

/// Makes tokens impossible.
pub(super) fn forbid(logits: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}
