//! Draft models: a small model says what a large one will probably say, and the large one checks several such tokens in one step.
//!
//! ```text
//!   step of the scheduler ──> the draft model proposes, token by token ──> one step of the model: the proposals are its guesses
//! ```
//! A draw depends on its position and on the tokens before it only, so that the proposals change how many tokens a step gives, never which. Both
//! models draw with the same random numbers, so that they agree as often as their distributions do.
//!
//! The draft model has a KV pool of as many blocks, and the same block tables. It computes a token only when it is to propose what follows: what
//! it lacks, after a prompt was read, a block copied or its last proposal accepted, it makes up for then, as far as the draw lets it. A ledger knows
//! what that is, and the output of each step tells how much: whether it is worth its time is decided where time is measured.
//! Source: Leviathan, Kalman, Matias 2023, "Fast inference from transformers via speculative decoding", arXiv:2211.17192; draws that are keyed by
//! position make its acceptance a comparison.

mod ledger;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use plexus_types::ModelKind;
use tracing::warn;

use self::ledger::Ledger;
use crate::batch::{Batch, BatchOutput, BlockId, Drafted, Draw};
use crate::embed::EmbedWork;
use crate::error::EngineError;
use crate::executor::{DeviceDescription, Executor, Held, KvPlan, Slot};
use crate::layout::{Layout, Span};
use crate::model::ModelFiles;

/// Set in the slots of draft models.
const DRAFT_BIT: u32 = 1 << 31;

/// A device whose models may have draft models beside them.
pub struct DraftingExecutor {
    device: Box<dyn Executor>,
    drafts: HashMap<Slot, Draft>,
}

/// A draft model on the device.
#[derive(Debug)]
struct Draft {
    slot: Slot,
    kv: KvPlan,
    /// Tokens that the model knows, and those that its draft model does.
    vocab_sizes: (usize, usize),
    /// Tokens that the draft model's context holds.
    context: u32,
    ledger: Ledger,
    /// The model itself is there: what is loaded now is this one, or it is there too.
    is_next: bool,
    /// It failed, and is not asked again.
    failed: bool,
}

impl DraftingExecutor {
    /// The device, without models.
    pub fn new(device: Box<dyn Executor>) -> Self {
        Self { device, drafts: HashMap::new() }
    }

    /// What the device is.
    pub fn describe(&self) -> DeviceDescription {
        self.device.describe()
    }

    /// Begins to load a model as [`Executor::begin_load`] does, and its draft model with a pool of as many blocks.
    ///
    /// Errors: those of either, and [`EngineError::Unsupported`] if the draft model cannot speak for the model. The device is then as it was.
    pub fn begin_load(&mut self, slot: Slot, files: &ModelFiles, draft: Option<&ModelFiles>, kv: KvPlan) -> Result<(), EngineError> {
        if let Some(draft) = draft {
            check_pair(files, draft)?;
        }
        self.device.begin_load(slot, files, kv)?;
        let Some(draft) = draft else { return Ok(()) };
        let draft_slot = Slot(slot.0 | DRAFT_BIT);
        if let Err(error) = self.device.begin_load(draft_slot, draft, kv) {
            self.device.unload(slot);
            return Err(error);
        }
        let vocab_sizes = (files.config.vocab_size, draft.config.vocab_size);
        let (context, ledger) = (draft.context_length(), Ledger::new(kv));
        self.drafts.insert(slot, Draft { slot: draft_slot, kv, vocab_sizes, context, ledger, is_next: false, failed: false });
        Ok(())
    }

    /// Goes on with a load by a part, see [`Executor::load_part`]: the model itself, then its draft model.
    pub fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let part_of = self.drafts.get(&slot).filter(|draft| draft.is_next).map_or(slot, |draft| draft.slot);
        let is_there = match self.device.load_part(part_of) {
            Ok(is_there) => is_there,
            Err(error) => {
                self.unload(slot);
                return Err(error);
            }
        };
        match self.drafts.get_mut(&slot).filter(|draft| !draft.is_next) {
            Some(draft) => {
                draft.is_next = is_there;
                Ok(false)
            }
            None => Ok(is_there),
        }
    }

    /// Loads both in one go, for those who have the device to themselves.
    pub fn load(&mut self, slot: Slot, files: &ModelFiles, draft: Option<&ModelFiles>, kv: KvPlan) -> Result<(), EngineError> {
        self.begin_load(slot, files, draft, kv)?;
        while !self.load_part(slot)? {}
        Ok(())
    }

    /// Frees what `slot` holds, with its draft model.
    pub fn unload(&mut self, slot: Slot) {
        if let Some(draft) = self.drafts.remove(&slot) {
            self.device.unload(draft.slot);
        }
        self.device.unload(slot);
    }

    /// What the device holds, see [`Executor::holds`]: a model together with its draft model.
    pub fn holds(&self) -> Vec<(Slot, Held)> {
        let (drafts, mut models): (Vec<_>, Vec<_>) = self.device.holds().into_iter().partition(|(slot, _)| slot.0 & DRAFT_BIT != 0);
        for (Slot(draft), held) in drafts {
            match models.iter_mut().find(|(slot, _)| slot.0 == draft & !DRAFT_BIT) {
                Some((_, model)) => *model = Held { weights: model.weights + held.weights, kv: model.kv + held.kv },
                None => models.push((Slot(draft), held)),
            }
        }
        models
    }

    /// Nothing is to be loaded soon: see [`Executor::rest`].
    pub fn rest(&mut self) {
        self.device.rest();
    }

    /// Runs one step as [`Executor::step`] does. Draws with [`Draw::n_draft`] are given proposals first, if the model has a draft model.
    pub fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        let Some(draft) = self.drafts.get_mut(&slot).filter(|draft| !draft.failed) else { return self.device.step(slot, batch) };
        let layout = Layout::new(batch, draft.vocab_sizes.0, draft.kv)?;
        draft.ledger.copy(&batch.copies);
        draft.ledger.record(layout.slots.iter().copied().zip(batch.tokens.iter().copied()));
        let begun = Instant::now();
        let Proposed { proposals, n_read } = match draft.propose(self.device.as_mut(), batch, &layout) {
            Ok(proposed) => proposed,
            Err(error @ EngineError::Device { .. }) => return Err(error),
            Err(error) => {
                warn!(%error, "a draft model failed and is not asked again");
                draft.failed = true;
                return self.device.step(slot, batch);
            }
        };
        let drafting = begun.elapsed();
        let output = match proposals.iter().all(Vec::is_empty) {
            true => self.device.step(slot, batch)?,
            false => self.device.step(slot, &with_guesses(batch, &proposals))?,
        };
        let n_guessed = proposals.iter().map(|proposals| proposals.len() as u32);
        let after = layout.spans.iter().zip(&batch.draws).zip(&output.sampled);
        let n_unread = after.map(|((span, draw), sampled)| draft.n_unread(span, draw.as_ref(), sampled.len()));
        let drafts = n_read.into_iter().zip(n_guessed).zip(n_unread);
        let drafts = drafts.map(|((n_read, n_guessed), n_unread)| Drafted { n_read, n_guessed, n_unread }).collect();
        Ok(BatchOutput { drafts, drafting, ..output })
    }

    /// Goes on with texts to embed as [`Executor::embed`] does.
    pub fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError> {
        self.device.embed(slot, work)
    }
}

impl fmt::Debug for DraftingExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DraftingExecutor").field("device", &self.device.describe()).field("drafts", &self.drafts).finish()
    }
}

/// Can this draft model speak for this model?
///
/// Errors: [`EngineError::Unsupported`] if either does not generate, or a token that both have is not the same text in both.
pub fn check_pair(files: &ModelFiles, draft: &ModelFiles) -> Result<(), EngineError> {
    const SUPPORTED: &str = "a smaller model of the same family, with the same vocabulary";
    if files.kind() == ModelKind::Embed || draft.kind() == ModelKind::Embed {
        return Err(EngineError::unsupported("a draft model that embeds, or for a model that embeds", SUPPORTED));
    }
    match files.codec.differs_from(&draft.codec) {
        Some(id) => Err(EngineError::unsupported(
            format!(
                "a draft model of another vocabulary (token {id} is {:?} and {:?})",
                files.codec.spell(&[id]),
                draft.codec.spell(&[id])
            ),
            SUPPORTED,
        )),
        None => Ok(()),
    }
}

/// What the draft model gave in a step.
struct Proposed {
    /// `[n_seqs]` what it proposes.
    proposals: Vec<Vec<u32>>,
    /// `[n_seqs]` tokens that it read first.
    n_read: Vec<u32>,
}

/// A sequence that the draft model continues in this step.
struct Continued<'a> {
    /// Its place in the batch.
    place: usize,
    draw: &'a Draw,
    table: &'a [BlockId],
    /// Tokens to propose.
    n: u32,
    /// Tokens that have been proposed.
    proposals: Vec<u32>,
}

impl Draft {
    /// What the draft model proposes for each sequence of the batch; nothing for those that want nothing, and for those whose tokens it has
    /// yet to make up for.
    fn propose(&mut self, device: &mut dyn Executor, batch: &Batch, layout: &Layout<'_>) -> Result<Proposed, EngineError> {
        let mut proposals = vec![Vec::new(); batch.len()];
        let mut n_read = vec![0; batch.len()];
        let (mut continued, first) = self.catch_up(batch, layout, &mut n_read);
        let mut step = first;
        while !step.is_empty() {
            let output = device.step(self.slot, &step)?;
            let mut drawn = output.sampled.iter().zip(&step.draws).filter(|(_, draw)| draw.is_some()).map(|(ids, _)| ids.first());
            for sequence in &mut continued {
                let id = drawn.next().flatten().copied().filter(|id| (*id as usize) < self.vocab_sizes.0);
                let Some(id) = id else {
                    sequence.n = 0;
                    continue;
                };
                let position = sequence.draw.position + sequence.proposals.len() as u32;
                self.ledger.record([(self.kv.slot(sequence.table, position), id)]);
                sequence.proposals.push(id);
                // Nothing follows the end, and what the draft model does not know it cannot continue.
                if sequence.draw.settings.stop_ids.contains(&id) || id as usize >= self.vocab_sizes.1 {
                    sequence.n = 0;
                }
            }
            let is_done = |sequence: &mut Continued<'_>| sequence.proposals.len() as u32 >= sequence.n;
            for done in continued.extract_if(.., is_done) {
                proposals[done.place] = done.proposals;
            }
            step = Batch::default();
            for Continued { draw, table, proposals, .. } in &continued {
                let Some(last) = proposals.last() else { continue };
                let position = draw.position + proposals.len() as u32 - 1;
                step.push(&[*last], position, table, Some(draft_draw(draw, proposals)));
                self.ledger.mark(self.kv.slot(table, position));
            }
        }
        Ok(Proposed { proposals, n_read })
    }

    /// Tokens of a sequence, of which `n_sampled` were sampled in a step, that the draft model has yet to read. Whatever was guessed, all that was
    /// sampled but the last was guessed so.
    fn n_unread(&self, span: &Span<'_>, draw: Option<&Draw>, n_sampled: usize) -> u32 {
        let n_known_before = span.first_position + span.len - draw.map_or(0, |draw| draw.n_guesses as usize);
        let n_written = (n_known_before + n_sampled.saturating_sub(1)) as u32;
        n_written - self.ledger.n_drafted(span.blocks, n_written) + u32::from(n_sampled > 0)
    }

    /// The first step of the draft model: it computes what it lacks of the sequences that it is to continue, as far as their draws let it, and
    /// draws behind those that lack nothing then. These are given too, and how much it computes of each.
    fn catch_up<'a>(&mut self, batch: &'a Batch, layout: &Layout<'a>, n_read: &mut [u32]) -> (Vec<Continued<'a>>, Batch) {
        let (mut continued, mut step) = (Vec::new(), Batch::default());
        // Of two sequences that share a block which the draft model lacks, one computes it.
        let mut claimed = BTreeSet::new();
        let mut computed: Vec<u32> = Vec::new();
        for (place, draw) in batch.draws.iter().enumerate() {
            let Some(draw) = draw else { continue };
            let Span { first_position, len, blocks: table, .. } = layout.spans[place];
            let n_places = (table.len() as u32 * self.kv.block_len).min(self.context);
            let n = draw.n_draft.min(n_places.saturating_sub(draw.position));
            if n == 0 || draw.n_guesses > 0 {
                continue;
            }
            let n_positions = (first_position + len) as u32;
            let from = self.ledger.n_drafted(table, n_positions);
            let to = n_positions.min(from.saturating_add(draw.n_catch_up));
            let slots: Vec<u32> = (from..to).map(|position| self.kv.slot(table, position)).collect();
            let blocks: BTreeSet<u32> = slots.iter().map(|slot| slot / self.kv.block_len).collect();
            let tokens: Vec<u32> = slots.iter().map(|slot| self.ledger.token(*slot)).collect();
            if slots.is_empty() || !blocks.is_disjoint(&claimed) || tokens.iter().any(|token| *token as usize >= self.vocab_sizes.1) {
                continue;
            }
            claimed.extend(blocks);
            n_read[place] = to - from;
            let is_whole = to == n_positions;
            step.push(&tokens, from, table, is_whole.then(|| draft_draw(draw, &[])));
            computed.extend(slots);
            if is_whole {
                continued.push(Continued { place, draw, table, n, proposals: Vec::new() });
            }
        }
        computed.into_iter().for_each(|slot| self.ledger.mark(slot));
        (continued, step)
    }
}

/// How the draft model draws behind the `proposals`: as the model will. What a grammar allows is known for the first of them only; the others are
/// judged by the model's own draws.
fn draft_draw(draw: &Draw, proposals: &[u32]) -> Draw {
    let n = proposals.len() as u32;
    let history = draw.settings.needs_history();
    Draw {
        prompt_history: Arc::clone(&draw.prompt_history),
        sampled_history: if history { [&draw.sampled_history[..], proposals].concat() } else { Vec::new() },
        index: draw.index + n,
        masks: draw.masks.clone().filter(|_| n == 0),
        ..Draw::new(Arc::clone(&draw.settings), draw.position + n)
    }
}

/// The batch with the proposals as guesses.
fn with_guesses(batch: &Batch, proposals: &[Vec<u32>]) -> Batch {
    let mut extended = Batch { copies: batch.copies.clone(), ..Batch::default() };
    for (place, (draw, proposals)) in batch.draws.iter().zip(proposals).enumerate() {
        let tokens = batch.seq_starts[place] as usize..batch.seq_starts[place + 1] as usize;
        let table = &batch.blocks[batch.block_starts[place] as usize..batch.block_starts[place + 1] as usize];
        let first = batch.positions[tokens.start];
        let mut draw = draw.clone();
        if let Some(draw) = draw.as_mut().filter(|_| !proposals.is_empty()) {
            draw.n_guesses = proposals.len() as u32;
            draw.masks = draw.grammar.as_ref().map(|grammar| grammar.masks(proposals));
        }
        extended.push(&[&batch.tokens[tokens], &proposals[..]].concat(), first, table, draw);
    }
    extended
}
