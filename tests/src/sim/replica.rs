//! A replica: the shell of the model actor round the real scheduler, on a device of [`super::model`].

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_actors::evictor::ledger::Lease;
use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::messages::{Attempt, Generate, StreamNotice};
use plexus_actors::model::scheduler::{Counts, Limits, Scheduler};
use plexus_actors::model::sequence::{Progress, Sequence};
use plexus_engine::batch::BatchOutput;
use plexus_types::{
    FinishReason, ModelKind, NodeId, ReplicaLoad, ReplicaReport, ReplicaState, RequestError, RequestId, StreamEvent, Usage,
};
use tokio::time::Instant;

use super::model::{KvMemory, codec, settings};
use super::{DEVICE, MODEL, MODEL_MEMORY};

/// Most prompt tokens of one step: small, so that prompts are read in chunks.
const PROMPT_TOKENS_MAX: u32 = 32;

/// Whose try at a request.
pub type Key = (NodeId, RequestId, Attempt);

/// How a replica is sized.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaProfile {
    /// Most requests in its batch.
    pub running_max: u32,
    /// Most requests that wait.
    pub waiting_max: u32,
    /// Blocks of its pool.
    pub n_blocks: u32,
    /// Tokens of its context.
    pub context: u32,
    /// Tokens that a sequence gains in a step.
    pub tokens_per_step: usize,
    /// Time that a step takes.
    pub step_time: Duration,
}

/// Events of attempts, by ingress.
pub type Outgoing = Vec<(NodeId, Vec<StreamNotice>)>;

/// A model on a device.
#[derive(Debug)]
pub struct Replica {
    /// Which promise of memory it holds.
    pub lease: Lease,
    /// It answers.
    pub loaded: bool,
    me: NodeId,
    profile: ReplicaProfile,
    encoding: BTreeMap<Key, Box<Generate>>,
    scheduler: Scheduler<Key>,
    memory: KvMemory,
    /// What the step on the device will give.
    step: Option<BatchOutput>,
    counted: Counts,
    reported: Option<(bool, u32, u32)>,
}

impl Replica {
    /// One that is being loaded.
    pub fn new(me: NodeId, profile: ReplicaProfile, lease: Lease) -> Self {
        Self {
            lease,
            loaded: false,
            me,
            profile,
            encoding: BTreeMap::new(),
            scheduler: Scheduler::new(Limits {
                running_max: profile.running_max,
                n_blocks: profile.n_blocks,
                block_len: BLOCK_LEN,
                prompt_tokens_max: PROMPT_TOKENS_MAX,
                guesses_max: 6,
                drafts_max: 0,
            }),
            memory: KvMemory::new(profile.n_blocks, profile.tokens_per_step),
            step: None,
            counted: Counts::default(),
            reported: None,
        }
    }

    /// How it is sized.
    pub fn profile(&self) -> &ReplicaProfile {
        &self.profile
    }

    /// An order to generate. True if the prompt is now being encoded, for which [`Self::on_encoded`] is due.
    pub fn on_generate(&mut self, from: &NodeId, generate: Box<Generate>, out: &mut Outgoing) -> bool {
        let key = (from.clone(), generate.request, generate.attempt);
        let present = self.encoding.len() + self.scheduler.n_waiting() + self.scheduler.n_running();
        let refusal = if !self.loaded {
            Some(RequestError::soon(format!("the model is not loaded on '{}'", self.me.name)))
        } else if present as u32 >= self.profile.running_max + self.profile.waiting_max {
            let retry_after = Duration::from_secs(1);
            Some(RequestError::Overloaded { message: format!("'{}' is busy", self.me.name), retry_after })
        } else {
            None
        };
        if let Some(error) = refusal {
            send(out, &key, StreamEvent::Failed(error));
            return false;
        }
        self.encoding.insert(key, generate);
        true
    }

    /// The prompt of an order has been encoded.
    pub fn on_encoded(&mut self, key: &Key, out: &mut Outgoing) {
        let Some(generate) = self.encoding.remove(key) else { return }; // cancelled meanwhile
        let journal = generate.journal;
        let prompt = if journal.prompt_ids.is_empty() { codec().encode(&journal.request.prompt) } else { Ok(journal.prompt_ids) };
        let prompt = match prompt {
            Ok(prompt) if (prompt.len() as u32) < self.profile.context => prompt,
            Ok(prompt) => {
                let error = RequestError::ContextLength { prompt_tokens: prompt.len() as u32, max_tokens: self.profile.context };
                return send(out, key, StreamEvent::Failed(error));
            }
            Err(error) => return send(out, key, StreamEvent::Failed(error)),
        };
        let room = self.profile.context - prompt.len() as u32;
        let sampled_max = journal.request.max_tokens.map_or(room, |max| max.min(room));
        let decoder = codec().decoder(&journal.request.stop);
        send(out, key, StreamEvent::Accepted { prompt_ids: prompt.clone() });
        let settings = settings(journal.seed);
        let (sequence, end) = Sequence::new(settings, prompt, journal.sampled_ids, decoder, sampled_max, generate.credit_until);
        if let Some(reason) = end {
            return send(out, key, done(&sequence, reason));
        }
        self.scheduler.push(key.clone(), sequence, Some(u64::from(key.1.0 as u8 % 3)));
    }

    /// Begins the next step, if there is one and none is under way. Says how long it takes.
    ///
    /// Errors: the step reads what was never computed, or was computed for others.
    pub fn next_step(&mut self, now: Instant) -> Result<Option<Duration>, String> {
        if !self.loaded {
            return Ok(None);
        }
        let Some(batch) = self.scheduler.next_step(now, |_| {}) else { return Ok(None) };
        self.step = Some(self.memory.execute(&batch)?);
        Ok(Some(self.profile.step_time))
    }

    /// The step on the device ended.
    pub fn on_stepped(&mut self, now: Instant, out: &mut Outgoing) {
        let Some(output) = self.step.take() else { return };
        self.scheduler.on_step(&output, now, |key, sequence, progress| {
            let Progress { index, ids, deltas, logprobs, end, .. } = progress;
            if !ids.is_empty() {
                send(out, key, StreamEvent::Tokens { index, ids, deltas, logprobs });
            }
            if let Some(reason) = end {
                send(out, key, done(sequence, reason));
            }
        });
    }

    /// Nothing more is wanted.
    pub fn on_cancel(&mut self, key: &Key) {
        self.encoding.remove(key);
        self.scheduler.cancel(|other| other == key, |_| {});
    }

    /// An ingress is gone, or the link to it: nobody takes what it asked for.
    pub fn on_ingress_lost(&mut self, ingress: &NodeId) {
        let lost: Vec<Key> = self.encoding.keys().chain(self.scheduler.owners()).filter(|key| key.0 == *ingress).cloned().collect();
        lost.iter().for_each(|key| self.on_cancel(key));
    }

    /// The ingress lets a request go on.
    pub fn on_credit(&mut self, key: &Key, until: u32) {
        if let Some(generate) = self.encoding.get_mut(key) {
            generate.credit_until = generate.credit_until.max(until);
        }
        self.scheduler.credit(|other| other == key, until);
    }

    /// Its actor failed: every request that it has is told so.
    pub fn fail(self, out: &mut Outgoing) {
        let message = format!("the replica on '{}' ended while it had the request", self.me.name);
        for key in self.encoding.keys().chain(self.scheduler.owners()) {
            send(out, key, StreamEvent::Failed(RequestError::Lost { message: message.clone() }));
        }
    }

    /// What it says of itself, if that has changed.
    pub fn report(&mut self) -> Option<ReplicaReport> {
        let load = ReplicaLoad {
            running: self.scheduler.n_running() as u32,
            running_max: self.profile.running_max,
            waiting: (self.scheduler.n_waiting() + self.encoding.len()) as u32,
            waiting_max: self.profile.waiting_max,
            ..ReplicaLoad::default()
        };
        let counts = (self.loaded, load.running, load.waiting);
        if self.reported.replace(counts) == Some(counts) {
            return None;
        }
        let state = if self.loaded { ReplicaState::Loaded } else { ReplicaState::Loading };
        let (context_length, memory) = if self.loaded { (self.profile.context, MODEL_MEMORY) } else { Default::default() };
        Some(ReplicaReport {
            model: MODEL.parse().ok()?,
            device: DEVICE.parse().ok()?,
            state,
            context_length,
            memory,
            load,
            kind: ModelKind::Generate,
            residency_priority: 100,
            pinned: false,
            idle: (counts.1 + counts.2 == 0 && self.loaded).then_some(Duration::ZERO),
            load_time: None,
            progress: 0.0,
            prefixes: None,
            digest: None,
            tools: false,
            reasoning: false,
        })
    }

    /// What the scheduler has done since this was asked last.
    pub fn take_counts(&mut self) -> Counts {
        let (before, now) = (self.counted, self.scheduler.counts());
        self.counted = now;
        Counts {
            cached_tokens: now.cached_tokens - before.cached_tokens,
            preemptions: now.preemptions - before.preemptions,
            guessed: now.guessed - before.guessed,
            guessed_right: now.guessed_right - before.guessed_right,
            drafted: now.drafted - before.drafted,
            drafted_right: now.drafted_right - before.drafted_right,
            ended: now.ended - before.ended,
        }
    }

    /// Errors: a block is lost, counted wrongly, or may be written by two sequences.
    pub fn check(&self) -> Result<(), String> {
        self.scheduler.check_invariants()
    }

    /// Errors: it still has a request, or a block is taken.
    pub fn check_idle(&self) -> Result<(), String> {
        self.check()?;
        let left: Vec<&Key> = self.encoding.keys().chain(self.scheduler.owners()).collect();
        let pool = self.scheduler.pool();
        if left.is_empty() && pool.available() == pool.total() {
            return Ok(());
        }
        Err(format!("the replica on '{}' still has {left:?}, and {} of {} blocks can be had", self.me, pool.available(), pool.total()))
    }

    /// Is nothing left to do?
    pub fn is_idle(&self) -> bool {
        self.encoding.is_empty() && self.scheduler.n_waiting() + self.scheduler.n_running() == 0
    }
}

fn done(sequence: &Sequence, reason: FinishReason) -> StreamEvent {
    let usage = Usage { prompt_tokens: sequence.n_prompt(), completion_tokens: sequence.n_sampled(), ..Usage::default() };
    StreamEvent::Done { last_index: sequence.n_sampled(), reason, usage }
}

fn send(out: &mut Outgoing, key: &Key, event: StreamEvent) {
    let notice = StreamNotice { request: key.1, attempt: key.2, event };
    match out.iter_mut().find(|(ingress, _)| *ingress == key.0) {
        Some((_, events)) => events.push(notice),
        None => out.push((key.0.clone(), vec![notice])),
    }
}
