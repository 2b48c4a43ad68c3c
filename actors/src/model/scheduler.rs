//! Who waits, who runs, and what the next step computes: decides, does no I/O. The model's actor and the simulator run the same.
//!
//! ```text
//!              room, in order of arrival            one step at a time
//!   waiting ────────────────────────────> running ─────────────────────> ended
//!      ^                                     │
//!      └──────── preempted: no blocks left ──┘
//! ```
//! Places are shared among those who ask: whoever has fewer sequences running comes before one who has more, however many that one sends.
//! Nobody gets a place before there is room for the answer that it is likely to have (`promise`). Of those whose answers are longer, the
//! youngest is preempted when blocks run out: what it has computed stays in the pool as long as there is room, it waits at its old place in the
//! queue, and goes on with the very tokens that it would have had. Nobody overtakes it there, a whole context fits the pool, and with each place
//! it gets on by what it is promised: everybody ends (CX-93).

mod admission;
mod draft;
mod measured;
mod promise;
mod reading;
mod speed;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::kv::BlockPool;
use tokio::time::Instant;

use self::draft::Record;
use self::promise::Answers;
use self::reading::Reading;
pub(super) use self::reading::SPEED_BELIEVED;
use self::speed::Did;
pub use self::speed::Speeds;
use super::prefixes::Prefixes;
use super::sequence::{Progress, Sequence};

/// Most prompt tokens of one step while nobody generates: enough to compute at full speed, and a bound on what a request that comes next waits.
pub const PROMPT_TOKENS_MAX: u32 = 512;
/// Most tokens that a draft model guesses for a sequence in a step: as many rows in all as products compute at once.
pub const DRAFTS_MAX: u32 = 15;

/// What a scheduler may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most sequences in the batch.
    pub running_max: u32,
    /// Blocks of the pool: at least a whole context.
    pub n_blocks: u32,
    /// Tokens in a block.
    pub block_len: u32,
    /// Most prompt tokens in a step.
    pub prompt_tokens_max: u32,
    /// Most tokens of a step that are guessed from the sequences' own texts; 0: none ever.
    pub guesses_max: u32,
    /// Most tokens of a sequence that a draft model guesses in a step; 0: there is none.
    pub drafts_max: u32,
}

impl Limits {
    /// Blocks that so many tokens need.
    fn blocks(&self, n_tokens: u32) -> u32 {
        n_tokens.div_ceil(self.block_len)
    }
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prompt tokens that did not have to be computed.
    pub cached_tokens: u64,
    /// Times that a sequence lost its place: for want of blocks, or for another while its client was behind.
    pub preemptions: u64,
    /// Tokens guessed from the sequences' own texts.
    pub guessed: u64,
    /// Of them, those that were right.
    pub guessed_right: u64,
    /// Tokens guessed by a draft model.
    pub drafted: u64,
    /// Of them, those that were right.
    pub drafted_right: u64,
    /// Sequences that came to their end.
    pub ended: u64,
}

/// Who asks: all without a key are one.
pub type Principal = Option<u64>;

/// The sequences of a replica, each with what its owner keeps beside it.
#[derive(Debug)]
pub struct Scheduler<T> {
    limits: Limits,
    pool: BlockPool,
    /// What of prompts is in the pool.
    prefixes: Prefixes,
    /// In order of arrival.
    waiting: VecDeque<Entry<T>>,
    /// In order of arrival.
    running: Vec<Entry<T>>,
    step: Option<Step>,
    speeds: Speeds,
    reading: Reading,
    /// How long the steps of another model take that generates on the device.
    beside: Option<Duration>,
    answers: Answers,
    counts: Counts,
    n_arrived: u64,
    /// Nobody gets a place who has not had one.
    closed: bool,
}

#[derive(Debug)]
struct Entry<T> {
    /// Grows with each arrival.
    number: u64,
    owner: T,
    sequence: Sequence,
    principal: Principal,
    cancelled: bool,
    /// Prompt tokens that were computed for others while this one's prompt waited.
    passed_over: u32,
    /// While it has a place: tokens in all that it was promised room for when it got it, and for which blocks are kept now.
    promised: u32,
    kept: u32,
    /// How often a draft model was right, and tokens that it has to read before it can guess.
    right: Record,
    n_unread: u32,
    /// It has a place, or had one and lost it.
    had_place: bool,
}

/// The step on the device.
#[derive(Debug)]
struct Step {
    members: Vec<Member>,
    begun: Instant,
}

/// A sequence in a step: its place in `running`, and how many of its known tokens are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    place: usize,
    n: u32,
    is_prompt: bool,
}

impl<T> Scheduler<T> {
    /// One without sequences, over an empty pool.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pool: BlockPool::new(limits.n_blocks, limits.block_len),
            prefixes: Prefixes::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step: None,
            speeds: Speeds::default(),
            reading: Reading::default(),
            beside: None,
            answers: Answers::default(),
            counts: Counts::default(),
            n_arrived: 0,
            closed: false,
        }
    }

    /// Adds a sequence of a principal behind those that wait.
    pub fn push(&mut self, owner: T, sequence: Sequence, principal: Principal) {
        self.n_arrived += 1;
        self.waiting.push_back(Entry {
            number: self.n_arrived,
            owner,
            sequence,
            principal,
            cancelled: false,
            passed_over: 0,
            promised: 0,
            kept: 0,
            right: Record::default(),
            n_unread: 0,
            had_place: false,
        });
    }

    /// Sequences of a principal, running and waiting.
    pub fn n_of(&self, principal: Principal) -> usize {
        self.waiting.iter().chain(&self.running).filter(|entry| !entry.cancelled && entry.principal == principal).count()
    }

    /// Takes those out of the queue that have waited long enough, and have not run yet.
    pub fn take_late(&mut self, is_late: impl Fn(&T) -> bool) -> Vec<T> {
        let (late, left) = std::mem::take(&mut self.waiting).into_iter().partition::<Vec<_>, _>(|entry| is_late(&entry.owner));
        self.waiting = left.into();
        late.into_iter().map(|entry| entry.owner).collect()
    }

    /// How many sequences each principal has, and whether one of them waits that is such.
    pub fn shares(&self, is_it: impl Fn(&T) -> bool) -> BTreeMap<Principal, (u32, bool)> {
        let mut shares: BTreeMap<Principal, (u32, bool)> = BTreeMap::new();
        let running = self.running.iter().map(|entry| (entry, false));
        let present = running.chain(self.waiting.iter().map(|entry| (entry, is_it(&entry.owner))));
        for (entry, is_such) in present.filter(|(entry, _)| !entry.cancelled) {
            let (n, has_such) = shares.entry(entry.principal).or_default();
            *n += 1;
            *has_such |= is_such;
        }
        shares
    }

    /// Takes the first of those that wait and are such out of the queue, at most so many.
    pub fn take_first(&mut self, n_max: usize, is_it: impl Fn(&T) -> bool) -> Vec<T> {
        let mut n_left = n_max;
        let mut is_taken = |entry: &Entry<T>| {
            let is_taken = n_left > 0 && !entry.cancelled && is_it(&entry.owner);
            n_left -= usize::from(is_taken);
            is_taken
        };
        let (taken, left) = std::mem::take(&mut self.waiting).into_iter().partition::<Vec<_>, _>(|entry| is_taken(entry));
        self.waiting = left.into();
        taken.into_iter().map(|entry| entry.owner).collect()
    }

    /// Takes the youngest of a principal's sequences that wait and are such out of the queue.
    pub fn take_youngest(&mut self, principal: Principal, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let i = self.waiting.iter().rposition(|entry| entry.principal == principal && is_it(&entry.owner))?;
        self.waiting.remove(i).map(|entry| entry.owner)
    }

    /// Sequences that wait.
    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Closes the batch to those that have not had a place yet, or opens it again.
    pub fn set_closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Sequences that have a place, or had one and wait for the next.
    pub fn n_begun(&self) -> usize {
        self.running.len() + self.waiting.iter().filter(|entry| entry.had_place).count()
    }

    /// Sequences that have a place in the batch.
    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    /// Measured speeds.
    pub fn speeds(&self) -> &Speeds {
        &self.speeds
    }

    /// Tokens of long prompts that are read in a second; absent while that was not measured of late.
    pub fn reading_tokens_per_s(&self, now: Instant) -> Option<f32> {
        self.reading.speed(now)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Digests of what the pool holds of prompts, sorted.
    pub fn prefixes(&mut self) -> Arc<[u32]> {
        self.prefixes.held(&self.pool)
    }

    /// Changes when [`Self::prefixes`] may have changed.
    pub fn prefix_changes(&self) -> u64 {
        self.prefixes.n_new() + self.pool.n_evicted()
    }

    /// The owners of all sequences that have not been cancelled.
    pub fn owners(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().chain(&self.running).filter(|entry| !entry.cancelled).map(|entry| &entry.owner)
    }

    /// The owners of those that wait, or whose prompts are being read.
    pub fn without_tokens(&mut self) -> impl Iterator<Item = &mut T> {
        let reading = self.running.iter_mut().filter(|entry| !entry.cancelled && entry.sequence.is_prefilling());
        self.waiting.iter_mut().chain(reading).map(|entry| &mut entry.owner)
    }

    /// Tokens that answers had lately, in the mean; absent while none has ended.
    pub fn mean_answer(&self) -> Option<f32> {
        self.answers.mean()
    }

    /// Tokens that an answer is taken to have: the mean, or a guess while none has ended.
    pub fn expected_answer(&self) -> f32 {
        self.answers.mean().unwrap_or(promise::UNKNOWN as f32)
    }

    /// Another model on the device generates, in steps that take so long; or none does. Heeded from the next step on.
    pub fn set_beside(&mut self, beside: Option<Duration>) {
        self.beside = beside;
    }

    /// How long its steps take in which sequences generate, if any does now; zero while that is not known.
    pub fn decode_step(&self) -> Option<Duration> {
        let generating = self.running.iter().filter(|entry| !entry.sequence.is_prefilling() && entry.sequence.pending() > 0).count();
        (generating > 0).then(|| self.speeds.decode_step(generating))
    }

    /// The next step, if one can run and none is under way. `on_place` is told of each that gets a place, once more after a preemption.
    pub fn next_step(&mut self, now: Instant, mut on_place: impl FnMut(&mut T)) -> Option<Batch> {
        if self.step.is_some() {
            return None;
        }
        self.admit(&mut on_place);
        let members = self.form_step();
        if members.is_empty() {
            return None;
        }
        let mut batch = Batch::default();
        for Member { place, n, .. } in &members {
            let sequence = &mut self.running[*place].sequence;
            batch.copies.extend(self.pool.take_copy(sequence.table_mut()));
            sequence.join(&mut batch, *n);
        }
        self.step = Some(Step { members, begun: now });
        Some(batch)
    }

    /// A step ended well. `on_progress` is told what it brought to each of its members that are still wanted.
    pub fn on_step(&mut self, output: &BatchOutput, now: Instant, mut on_progress: impl FnMut(&mut T, &Sequence, Progress)) {
        let Some(step) = self.step.take() else { return };
        let mut ended = Vec::new();
        let n_prompt = step.members.iter().filter(|member| member.is_prompt).map(|member| member.n).sum();
        let n_generating = step.members.iter().filter(|member| !member.is_prompt).count() as u32;
        let mut did = Did { n_prompt, n_generating, ..Did::default() };
        did.drafted.seconds = output.drafting.as_secs_f32();
        did.queued = output.queued.as_secs_f32();
        if output.drafts.is_empty() {
            self.limits.drafts_max = 0; // there is no draft model, or none any more
        }
        for (i, (member, ids)) in step.members.iter().zip(&output.sampled).enumerate() {
            let Entry { owner, sequence, cancelled, right, n_unread, .. } = &mut self.running[member.place];
            let drafted = output.drafts.get(i).copied().unwrap_or_default();
            did.n_sampled += ids.len() as u32;
            did.n_guessed += sequence.n_guesses() - sequence.n_draft();
            did.drafted.on_work(drafted.n_read, drafted.n_guessed);
            if *cancelled {
                continue;
            }
            *n_unread = drafted.n_unread;
            let n_drafted = drafted.n_guessed;
            let mut progress = sequence.on_drafted_step(member.n, ids, n_drafted);
            progress.logprobs = sequence.describe(&progress.ids, output.logprobs.get(i).map_or(&[], Vec::as_slice));
            progress.refused = output.refused.iter().find(|(place, _)| *place == i).map(|(_, reason)| reason.clone());
            let guessed = sequence.last_guess();
            if n_drafted > 0 {
                did.drafted.on_guess(n_drafted, guessed.n_right);
                right.on_guess(n_drafted, guessed.n_right);
            }
            if guessed.n_looked_up > 0 {
                did.n_right += guessed.n_right;
                did.n_judged += guessed.n_right + u32::from(guessed.n_right < guessed.n_looked_up);
            }
            let (n, n_right) = match guessed.n_drafted {
                0 => (&mut self.counts.guessed, &mut self.counts.guessed_right),
                _ => (&mut self.counts.drafted, &mut self.counts.drafted_right),
            };
            *n += u64::from(guessed.n_looked_up + guessed.n_drafted);
            *n_right += u64::from(guessed.n_right);
            sequence.store(&mut self.pool);
            sequence.note_prefixes(&self.pool, &mut self.prefixes);
            if progress.end.is_some() || progress.refused.is_some() {
                self.answers.on_end(sequence.n_sampled());
                ended.push(member.place);
            }
            on_progress(owner, sequence, progress);
        }
        let time = now.saturating_duration_since(step.begun).saturating_sub(output.queued);
        let others = self.speeds.decode_step(n_generating as usize);
        self.reading.on_step(n_prompt, time, others, now);
        self.speeds.on_step(did, time.max(Duration::from_nanos(1)));
        self.counts.ended += ended.len() as u64;
        ended.sort_unstable();
        for place in ended.into_iter().rev() {
            self.remove(place);
        }
        self.drop_cancelled();
    }

    /// A step failed, but the device is sound: its members cannot go on here. Gives the owners of those that are still wanted.
    pub fn on_step_failed(&mut self) -> Vec<T> {
        let Some(step) = self.step.take() else { return Vec::new() };
        let mut places: Vec<usize> = step.members.iter().map(|member| member.place).collect();
        places.sort_unstable();
        let failed: Vec<Entry<T>> = places.into_iter().rev().map(|place| self.remove(place)).collect();
        self.drop_cancelled();
        failed.into_iter().filter(|entry| !entry.cancelled).map(|entry| entry.owner).collect()
    }

    /// Nobody wants this sequence any more. It is dropped now, or when the step that reads its blocks has ended; `on_cancel` is told of it now.
    /// True if it was here.
    pub fn cancel(&mut self, is_it: impl Fn(&T) -> bool, on_cancel: impl FnOnce(&mut T)) -> bool {
        if let Some(i) = self.waiting.iter().position(|entry| is_it(&entry.owner)) {
            let Some(mut entry) = self.waiting.remove(i) else { return false };
            on_cancel(&mut entry.owner);
            return true;
        }
        let Some(entry) = self.running.iter_mut().find(|entry| !entry.cancelled && is_it(&entry.owner)) else { return false };
        entry.cancelled = true;
        on_cancel(&mut entry.owner);
        if self.step.is_none() {
            self.drop_cancelled();
        }
        true
    }

    /// A sequence may go on.
    pub fn credit(&mut self, is_it: impl Fn(&T) -> bool, until: u32) {
        if let Some(entry) = self.waiting.iter_mut().chain(&mut self.running).find(|entry| is_it(&entry.owner)) {
            entry.sequence.on_credit(until);
        }
    }

    /// What must hold at any time.
    ///
    /// Errors: a block is lost, counted wrongly, kept for two, or may be written by two; or a queue is not in order.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.pool.check_invariants(self.running.iter().map(|entry| entry.sequence.table()))?;
        if self.waiting.iter().any(|entry| !entry.sequence.table().blocks().is_empty()) {
            return Err("a sequence that waits has blocks".into());
        }
        let in_order =
            self.running.iter().is_sorted_by_key(|entry| entry.number) && self.waiting.iter().is_sorted_by_key(|entry| entry.number);
        if !in_order || self.running.len() > self.limits.running_max as usize {
            return Err(format!("{} sequences run, {} wait; in order of arrival: {in_order}", self.running.len(), self.waiting.len()));
        }
        if self.set_aside() > self.pool.available() {
            return Err(format!("{} blocks are kept for those that run, and {} can be had", self.set_aside(), self.pool.available()));
        }
        Ok(())
    }

    fn drop_cancelled(&mut self) {
        while let Some(place) = self.running.iter().position(|entry| entry.cancelled) {
            self.remove(place);
        }
    }

    /// Takes a sequence out of the batch and gives its blocks back. Only between steps: a step names its members by their place.
    fn remove(&mut self, place: usize) -> Entry<T> {
        let mut entry = self.running.remove(place);
        self.pool.release(entry.sequence.take_place());
        entry
    }
}
