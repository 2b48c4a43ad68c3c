//! One request on a replica: from its token ids to its end. Decides, does no I/O.

use std::sync::Arc;

use plexus_engine::batch::{Batch, Draw};
use plexus_engine::codec::StreamDecoder;
use plexus_engine::grammar::Grammar;
use plexus_engine::kv::{BlockPool, BlockTable};
use plexus_engine::sample::{DrawLogprobs, SamplerSettings};
use plexus_types::{Delta, FinishReason, TokenLogprob, TokenLogprobs};

use super::guess::Guesser;
use super::prefixes::Prefixes;

/// The tokens of a request and how far they have been computed.
#[derive(Debug)]
pub struct Sequence {
    settings: Arc<SamplerSettings>,
    prompt: Arc<[u32]>,
    sampled: Vec<u32>,
    decoder: StreamDecoder,
    /// Most tokens to sample.
    sampled_max: u32,
    /// Log probabilities that the request asks for: of the token drawn, and of so many beside it.
    logprobs: Option<u32>,
    /// What the answer must look like.
    grammar: Option<Grammar>,
    /// Tokens with an index below this may be sampled before more credit comes.
    credit_until: u32,
    /// Its KV blocks; empty unless it has a place in the batch.
    table: BlockTable,
    /// Tokens whose keys and values are in the blocks.
    n_computed: u32,
    /// Guesses of its next tokens, computed with the step at hand.
    guesses: Vec<u32>,
    guesser: Guesser,
    /// Tokens that a draft model may guess in the step at hand, and those that it may read before.
    n_draft: u32,
    n_catch_up: u32,
    /// Tokens that the step at hand or the last one guessed, and how many of them were right.
    last_guess: Guessed,
    /// Nothing has been drawn since it got its place.
    prefilling: bool,
    /// Prompt tokens that it did not have to compute when it first got a place.
    n_cached: Option<u32>,
    /// Digests of what its prompt begins with, each with the number of tokens that it covers, the shortest first.
    digests: Vec<(u32, u32)>,
    /// The first so many of them are noted: see [`Self::note_prefixes`].
    n_noted: usize,
}

/// What was guessed in a step, and how much of it was right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guessed {
    /// Tokens guessed from the sequence's own text.
    pub n_looked_up: u32,
    /// Tokens guessed by a draft model.
    pub n_drafted: u32,
    /// Of either, those that were right.
    pub n_right: u32,
}

/// What a step brought.
#[derive(Debug, PartialEq)]
pub struct Progress {
    /// Index of the first of `ids`.
    pub index: u32,
    /// The ids sampled, none beyond the end.
    pub ids: Vec<u32>,
    /// What they add to the answer.
    pub deltas: Vec<Delta>,
    /// One for each of `ids` where the request asks for them, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why the sequence ended, if it did.
    pub end: Option<FinishReason>,
    /// Why its grammar cannot go on, if it cannot: the sequence failed.
    pub refused: Option<String>,
}

impl Sequence {
    /// A sequence that continues `prompt` and the `sampled` of a journal: the decoder is brought to where the journal stands by replaying it.
    ///
    /// Returns with it the end, if the journal has reached it already.
    pub fn new(
        settings: SamplerSettings,
        prompt: Vec<u32>,
        sampled: Vec<u32>,
        mut decoder: StreamDecoder,
        sampled_max: u32,
        credit_until: u32,
    ) -> (Self, Option<FinishReason>) {
        let mut end = None;
        for id in &sampled {
            end = end.or(decoder.push(*id).finish);
        }
        if end.is_none() && sampled.len() as u32 >= sampled_max {
            end = Some(FinishReason::Length);
        }
        let prompt = prompt.into();
        let sequence = Self {
            settings: Arc::new(settings),
            prompt,
            sampled,
            decoder,
            sampled_max,
            logprobs: None,
            grammar: None,
            credit_until,
            table: BlockTable::default(),
            n_computed: 0,
            guesses: Vec::new(),
            guesser: Guesser::default(),
            n_draft: 0,
            n_catch_up: 0,
            last_guess: Guessed::default(),
            prefilling: true,
            n_cached: None,
            digests: Vec::new(),
            n_noted: 0,
        };
        (sequence, end)
    }

    /// Asks for the log probability of each token, and of so many of the likeliest beside it.
    pub fn want_logprobs(&mut self, n_top: Option<u32>) {
        self.logprobs = n_top;
    }

    /// The answer must follow this grammar, which is brought to where the journal stands.
    pub fn constrain(&mut self, grammar: Grammar) {
        grammar.push(&self.sampled);
        self.grammar = Some(grammar);
    }

    /// Tokens of the prompt.
    pub fn n_prompt(&self) -> u32 {
        self.prompt.len() as u32
    }

    /// Tokens sampled so far, the journal's included.
    pub fn n_sampled(&self) -> u32 {
        self.sampled.len() as u32
    }

    /// Tokens that it will have at most.
    pub fn n_max(&self) -> u32 {
        self.n_prompt() + self.sampled_max
    }

    /// Tokens that are known: the prompt and what was sampled.
    pub fn n_known(&self) -> u32 {
        self.n_prompt() + self.n_sampled()
    }

    /// The tokens that are known.
    pub fn known(&self) -> Vec<u32> {
        self.prompt.iter().chain(&self.sampled).copied().collect()
    }

    /// Prompt tokens that it did not have to compute.
    pub fn n_cached(&self) -> u32 {
        self.n_cached.unwrap_or(0)
    }

    /// Tokens whose keys and values are in its blocks.
    pub fn n_computed(&self) -> u32 {
        self.n_computed
    }

    /// It gets a place: a table with room for all known tokens, of which the first `n_cached` are computed. True if it is its first.
    pub fn give_place(&mut self, table: BlockTable, n_cached: u32) -> bool {
        self.table = table;
        self.n_computed = n_cached;
        self.prefilling = true;
        let is_first = self.n_cached.is_none();
        if is_first {
            self.n_cached = Some(n_cached.min(self.n_prompt()));
        }
        is_first
    }

    /// It loses its place, and knows as much as before.
    pub fn take_place(&mut self) -> BlockTable {
        self.n_computed = 0;
        self.guesses.clear();
        self.n_draft = 0;
        self.n_noted = 0;
        std::mem::take(&mut self.table)
    }

    /// Its blocks.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Its blocks, for the pool to change.
    pub fn table_mut(&mut self) -> &mut BlockTable {
        &mut self.table
    }

    /// Digests of what its prompt begins with, each with the number of tokens that it covers, the shortest first.
    pub fn begins_with(&mut self, digests: Vec<(u32, u32)>) {
        self.digests = digests;
    }

    /// Notes those of its digests whose tokens are stored, when there are more than before.
    pub fn note_prefixes(&mut self, pool: &BlockPool, prefixes: &mut Prefixes) {
        let stored = |(digest, n_tokens): &(u32, u32)| Some((*digest, pool.stored_prefix(&self.table, *n_tokens)?));
        if self.digests.get(self.n_noted).and_then(stored).is_none() {
            return;
        }
        let all: Vec<_> = self.digests.iter().map_while(stored).collect();
        self.n_noted = all.len();
        all.into_iter().rev().for_each(|(digest, prefix)| prefixes.note(digest, prefix));
    }

    /// Remembers in the pool what is computed.
    pub fn store(&mut self, pool: &mut BlockPool) {
        let mut table = std::mem::take(&mut self.table);
        pool.store(&mut table, self.n_computed, |position| self.token(position));
        self.table = table;
    }

    /// The ingress lets it go on.
    pub fn on_credit(&mut self, until: u32) {
        self.credit_until = self.credit_until.max(until);
    }

    /// Tokens to compute before the next can be sampled; 0 while the client is behind.
    pub fn pending(&self) -> u32 {
        if self.n_sampled() >= self.credit_until {
            return 0;
        }
        self.n_known() - self.n_computed
    }

    /// True from when it gets its place until it is drawn from.
    pub fn is_prefilling(&self) -> bool {
        self.prefilling
    }

    /// Guesses what will be sampled in the next step beyond its first token: up to `max` tokens, and none that its client, its end or its blocks
    /// have no room for. Gives their number.
    pub fn guess(&mut self, max: u32) -> u32 {
        let max = max.min(self.guesses_max());
        self.n_draft = 0;
        let mut guesser = std::mem::take(&mut self.guesser);
        guesser.read(self.n_known(), |position| self.token(position));
        self.guesses = if max > 0 { guesser.guess(max, |position| self.token(position)) } else { Vec::new() };
        self.guesser = guesser;
        self.guesses.len() as u32
    }

    /// Lets a draft model guess in the next step instead: up to `max` tokens, within the same bounds, for which it may read `n_read` before.
    pub fn let_draft(&mut self, max: u32, n_read: u32) {
        self.guesses.clear();
        (self.n_draft, self.n_catch_up) = (max.min(self.guesses_max()), n_read);
    }

    /// Tokens that may be guessed beside the one that is drawn in any case, for its end and its client.
    fn guesses_max(&self) -> u32 {
        let n_free = |limit: u32| limit.saturating_sub(self.n_sampled() + 1);
        n_free(self.sampled_max).min(n_free(self.credit_until))
    }

    /// Guesses that the step at hand computes, those left to a draft model included.
    pub fn n_guesses(&self) -> u32 {
        self.guesses.len() as u32 + self.n_draft
    }

    /// Of them, those left to a draft model.
    pub fn n_draft(&self) -> u32 {
        self.n_draft
    }

    /// Keeps only the first `n` guesses.
    pub fn keep_guesses(&mut self, n: u32) {
        self.guesses.truncate(n as usize);
        self.n_draft = self.n_draft.min(n);
    }

    /// What was guessed in the last step.
    pub fn last_guess(&self) -> Guessed {
        self.last_guess
    }

    /// Adds its next `n` known tokens to a batch, and if they are its last, its guesses and a draw.
    pub fn join(&self, batch: &mut Batch, n: u32) {
        let (from, to) = (self.n_computed, self.n_computed + n);
        let mut tokens: Vec<u32> = (from..to).map(|position| self.token(position)).collect();
        let draw = (to == self.n_known()).then(|| self.draw(to));
        if draw.is_some() {
            tokens.extend(&self.guesses);
        }
        batch.push(&tokens, from, self.table.blocks(), draw);
    }

    /// The token at a position that is known.
    pub fn token(&self, position: u32) -> u32 {
        match self.prompt.get(position as usize) {
            Some(id) => *id,
            None => self.sampled[(position - self.n_prompt()) as usize],
        }
    }

    fn draw(&self, position: u32) -> Draw {
        let history = self.settings.needs_history();
        Draw {
            settings: Arc::clone(&self.settings),
            position,
            n_guesses: self.guesses.len() as u32,
            n_draft: self.n_draft,
            n_catch_up: self.n_catch_up,
            prompt_history: if history { Arc::clone(&self.prompt) } else { Arc::from([]) },
            sampled_history: if history { self.sampled.clone() } else { Vec::new() },
            index: self.n_sampled(),
            logprobs: self.logprobs,
            masks: self.grammar.as_ref().map(|grammar| grammar.masks(&self.guesses)),
            grammar: self.grammar.clone().filter(|_| self.n_draft > 0),
        }
    }

    /// The log probabilities of `ids`, for the client.
    pub fn describe(&self, ids: &[u32], logprobs: &[DrawLogprobs]) -> Vec<TokenLogprobs> {
        let token = |id: u32, logprob: f32| {
            let name = self.decoder.control_name(id);
            let bytes = name.map_or_else(|| self.decoder.bytes_of(id), str::as_bytes).to_vec();
            TokenLogprob { id, bytes, control: name.is_some(), logprob }
        };
        let top = |of: &DrawLogprobs| of.top.iter().map(|(id, logprob)| token(*id, *logprob)).collect();
        ids.iter().zip(logprobs).map(|(id, of)| TokenLogprobs { token: token(*id, of.drawn), top: top(of) }).collect()
    }

    /// A step computed `n` of its known tokens, and its guesses if it was drawn from, and sampled `ids`.
    pub fn on_step(&mut self, n: u32, ids: &[u32]) -> Progress {
        self.on_drafted_step(n, ids, 0)
    }

    /// The same for a step in which a draft model guessed `n_drafted` tokens.
    pub fn on_drafted_step(&mut self, n: u32, ids: &[u32], n_drafted: u32) -> Progress {
        let guesses = std::mem::take(&mut self.guesses);
        self.n_draft = 0;
        let checked = &ids[..ids.len().saturating_sub(1)]; // the last is known to nobody before this
        let n_looked_up = guesses.len() as u32;
        let n_right = match n_drafted {
            0 => guesses.iter().zip(checked).take_while(|(guess, id)| guess == id).count() as u32,
            // What is sampled behind a guess is sampled because it was right.
            _ => n_drafted.min(checked.len() as u32),
        };
        self.n_computed += n + n_right;
        self.last_guess = Guessed { n_looked_up, n_drafted, n_right };
        self.guesser.on_outcome(n_looked_up, n_right);
        self.prefilling &= ids.is_empty();
        let mut progress = Progress {
            index: self.n_sampled(),
            ids: Vec::with_capacity(ids.len()),
            deltas: Vec::new(),
            logprobs: Vec::new(),
            end: None,
            refused: None,
        };
        for id in ids {
            let decoded = self.decoder.push(*id);
            self.sampled.push(*id);
            progress.ids.push(*id);
            decoded.deltas.into_iter().for_each(|delta| delta.join(&mut progress.deltas));
            progress.end = decoded.finish.or_else(|| (self.n_sampled() >= self.sampled_max).then_some(FinishReason::Length));
            if progress.end.is_some() {
                break; // what a speculating executor sampled beyond the end is dropped
            }
        }
        if let Some(grammar) = &self.grammar {
            grammar.push(&progress.ids);
        }
        self.n_computed = self.n_computed.min(self.n_known()); // right guesses beyond the end are dropped too
        if progress.end == Some(FinishReason::Length) {
            self.decoder.finish().into_iter().for_each(|delta| delta.join(&mut progress.deltas));
        }
        progress
    }
}

#[cfg(test)]
mod tests;
