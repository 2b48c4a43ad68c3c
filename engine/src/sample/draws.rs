//! The draws of a step: one for each sequence that asks, more where guesses are right.

use llguidance::toktrie::SimpleVob;
use plexus_kernels::Team;

use super::adjust::{adjust, forbid};
use super::logprobs::DrawLogprobs;
use super::{History, choose_token};
use crate::batch::{Batch, BatchOutput, Draw};
use crate::error::EngineError;
use crate::grammar;

/// Draws all that `batch` asks for, sequences side by side. `rows` gives the logits of [`crate::layout::Layout::rows`], in order, `[vocab_size]`
/// each; they are changed in place.
///
/// After the first wrong guess of a sequence the rows that depend on it are passed over.
pub(crate) fn draw_all(team: &Team, batch: &Batch, rows: &mut dyn Iterator<Item = &mut [f32]>) -> Result<BatchOutput, EngineError> {
    let mut asked = Vec::with_capacity(batch.draws.len());
    for (sequence, draw) in batch.draws.iter().enumerate() {
        let Some(draw) = draw else { continue };
        let end = batch.seq_starts[sequence + 1] as usize;
        let guesses = &batch.tokens[end - draw.n_guesses as usize..end];
        let rows: Vec<&mut [f32]> = rows.take(guesses.len() + 1).collect();
        if rows.len() <= guesses.len() {
            return Err(EngineError::shape("there are fewer logits than draws"));
        }
        asked.push(Asked { sequence, draw, guesses, rows, outcome: Ok(Outcome::Drawn(Drawn::default())) });
    }
    team.run_chunks(&mut asked, 1, &|_, asked| asked.iter_mut().for_each(Asked::draw));
    let mut output =
        BatchOutput { sampled: vec![vec![]; batch.draws.len()], logprobs: vec![vec![]; batch.draws.len()], ..BatchOutput::default() };
    for Asked { sequence, outcome, .. } in asked {
        match outcome? {
            Outcome::Drawn(drawn) => (output.sampled[sequence], output.logprobs[sequence]) = (drawn.ids, drawn.logprobs),
            Outcome::Refused(reason) => output.refused.push((sequence, reason)),
        }
    }
    Ok(output)
}

/// A sequence that is drawn for.
struct Asked<'a> {
    sequence: usize,
    draw: &'a Draw,
    guesses: &'a [u32],
    rows: Vec<&'a mut [f32]>,
    outcome: Result<Outcome, EngineError>,
}

enum Outcome {
    Drawn(Drawn),
    /// Its grammar does not say which tokens it allows.
    Refused(String),
}

impl Asked<'_> {
    fn draw(&mut self) {
        self.outcome = match self.draw.masks.as_ref().map(|masks| masks.wait()).transpose() {
            Ok(masks) => draw_sequence(self.draw, self.guesses, std::mem::take(&mut self.rows), masks.as_deref()).map(Outcome::Drawn),
            Err(reason) => Ok(Outcome::Refused(reason)),
        };
    }
}

/// What was drawn for a sequence.
#[derive(Default)]
struct Drawn {
    ids: Vec<u32>,
    logprobs: Vec<DrawLogprobs>,
}

/// One token, and one more after each guess that turns out right.
fn draw_sequence(draw: &Draw, guesses: &[u32], rows: Vec<&mut [f32]>, masks: Option<&[SimpleVob]>) -> Result<Drawn, EngineError> {
    let mut drawn = Drawn::default();
    let mut sampled_history = draw.sampled_history.clone();
    for (i, row) in rows.into_iter().enumerate() {
        if i > 0 && drawn.ids[i - 1] != guesses[i - 1] {
            break;
        }
        let mask = match masks {
            None => None,
            Some(masks) => match masks.get(i) {
                Some(mask) => Some(mask),
                None => break, // the grammar ends with the guess before
            },
        };
        let raw = draw.logprobs.map(|n_top| (row.to_vec(), n_top));
        let id = draw_row(row, draw, i as u32, &sampled_history, mask)?;
        if let Some((raw, n_top)) = raw {
            drawn.logprobs.push(DrawLogprobs::new(&raw, id, n_top)?);
        }
        drawn.ids.push(id);
        if draw.settings.needs_history() {
            sampled_history.push(id);
        }
    }
    Ok(drawn)
}

/// The `i`-th token of a draw.
fn draw_row(row: &mut [f32], draw: &Draw, i: u32, sampled_history: &[u32], mask: Option<&SimpleVob>) -> Result<u32, EngineError> {
    let settings = &draw.settings;
    adjust(row, settings, History { prompt: &draw.prompt_history, sampled: sampled_history });
    // The end of a grammar is its only way on, so it wins over `min_tokens`.
    if draw.index + i < settings.min_tokens && mask.is_none_or(|mask| goes_on(mask, &settings.stop_ids)) {
        forbid(row, &settings.stop_ids);
    }
    if let Some(mask) = mask {
        grammar::apply(mask, row);
    }
    choose_token(row, settings, draw.position + i)
}

/// Does the mask allow any token that does not end the answer?
fn goes_on(mask: &SimpleVob, stop_ids: &[u32]) -> bool {
    let n_stop = stop_ids.iter().filter(|id| mask.get(**id as usize)).count();
    mask.num_set() > n_stop
}
