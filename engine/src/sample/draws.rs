//! The draws of a step: one for each sequence that asks, more where guesses are right.

use super::adjust::{adjust, forbid};
use super::logprobs::DrawLogprobs;
use super::{History, choose_token};
use crate::batch::{Batch, BatchOutput, Draw};
use crate::error::EngineError;

/// Draws all that `batch` asks for. `rows` gives the logits of [`crate::layout::Layout::rows`], in order, `[vocab_size]` each; they are changed
/// in place.
///
/// After the first wrong guess of a sequence the rows that depend on it are passed over.
pub(crate) fn draw_all<'a>(batch: &Batch, rows: &mut dyn Iterator<Item = &'a mut [f32]>) -> Result<BatchOutput, EngineError> {
    let mut output = BatchOutput::default();
    for (sequence, draw) in batch.draws.iter().enumerate() {
        let (mut sampled, mut logprobs) = (Vec::new(), Vec::new());
        if let Some(draw) = draw {
            let end = batch.seq_starts[sequence + 1] as usize;
            let guesses = &batch.tokens[end - draw.n_guesses as usize..end];
            let mut sampled_history = draw.sampled_history.clone();
            for i in 0..=guesses.len() {
                let row = rows.next().ok_or_else(|| EngineError::shape("there are fewer logits than draws"))?;
                if sampled.len() < i || (i > 0 && sampled[i - 1] != guesses[i - 1]) {
                    continue;
                }
                let raw = draw.logprobs.map(|n_top| (row.to_vec(), n_top));
                let id = draw_row(row, draw, i as u32, &sampled_history)?;
                if let Some((raw, n_top)) = raw {
                    logprobs.push(DrawLogprobs::new(&raw, id, n_top)?);
                }
                sampled.push(id);
                if draw.settings.needs_history() {
                    sampled_history.push(id);
                }
            }
        }
        output.sampled.push(sampled);
        output.logprobs.push(logprobs);
    }
    Ok(output)
}

/// The `i`-th token of a draw.
fn draw_row(row: &mut [f32], draw: &Draw, i: u32, sampled_history: &[u32]) -> Result<u32, EngineError> {
    let settings = &draw.settings;
    adjust(row, settings, History { prompt: &draw.prompt_history, sampled: sampled_history });
    if draw.index + i < settings.min_tokens {
        forbid(row, &settings.stop_ids);
    }
    choose_token(row, settings, draw.position + i)
}
