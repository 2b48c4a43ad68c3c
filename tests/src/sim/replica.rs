//! A replica: the shell of the model actor round the real sequences, block pool and step former, on a device of [`super::model`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use plexus_actors::evictor::ledger::Lease;
use plexus_actors::messages::{Attempt, Generate, StreamNotice};
use plexus_actors::model::plan::BLOCK_LEN;
use plexus_actors::model::sequence::{Sequence, form_step};
use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::kv::BlockPool;
use plexus_types::{FinishReason, NodeId, ReplicaLoad, ReplicaReport, ReplicaState, RequestError, RequestId, StreamEvent, Usage};

use super::model::{KvMemory, codec, settings};
use super::{DEVICE, MODEL, MODEL_MEMORY};

/// Most tokens of one step: small, so that prompts are read in chunks.
const STEP_TOKENS_MAX: u32 = 32;

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
    waiting: VecDeque<Seat>,
    running: Vec<Seat>,
    pool: BlockPool,
    memory: KvMemory,
    step: Option<Step>,
    reported: Option<(bool, u32, u32)>,
}

#[derive(Debug)]
struct Seat {
    key: Key,
    sequence: Sequence,
    cancelled: bool,
    n_blocks: u32,
}

#[derive(Debug)]
struct Step {
    members: Vec<(usize, u32)>,
    output: BatchOutput,
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
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: BlockPool::new(profile.n_blocks),
            memory: KvMemory::new(profile.n_blocks, profile.tokens_per_step),
            step: None,
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
        let present = self.encoding.len() + self.waiting.len() + self.running.len();
        let retry_after = Duration::from_secs(1);
        let refusal = if !self.loaded {
            Some(RequestError::Unavailable { message: format!("the model is not loaded on '{}'", self.me.name), retry_after })
        } else if present as u32 >= self.profile.running_max + self.profile.waiting_max {
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
        let n_blocks = sequence.n_max().div_ceil(BLOCK_LEN);
        self.waiting.push_back(Seat { key: key.clone(), sequence, cancelled: false, n_blocks });
    }

    /// Begins the next step, if there is one and none is under way. Says how long it takes.
    ///
    /// Errors: the step reads what was never computed.
    pub fn next_step(&mut self) -> Result<Option<Duration>, String> {
        if self.step.is_some() || !self.loaded {
            return Ok(None);
        }
        while self.running.len() < self.profile.running_max as usize
            && let Some(first) = self.waiting.front()
            && let Some(blocks) = self.pool.allocate(first.n_blocks)
            && let Some(mut seat) = self.waiting.pop_front()
        {
            seat.sequence.give_blocks(blocks);
            self.running.push(seat);
        }
        let members = form_step(self.running.iter().map(|seat| &seat.sequence), STEP_TOKENS_MAX);
        if members.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        members.iter().for_each(|(i, n)| self.running[*i].sequence.join(&mut batch, *n));
        let output = self.memory.execute(&batch)?;
        self.step = Some(Step { members, output });
        Ok(Some(self.profile.step_time))
    }

    /// The step on the device ended.
    pub fn on_stepped(&mut self, out: &mut Outgoing) {
        let Some(Step { members, output }) = self.step.take() else { return };
        let mut ended = Vec::new();
        for ((i, n), ids) in members.iter().zip(&output.sampled) {
            let seat = &mut self.running[*i];
            if seat.cancelled {
                continue;
            }
            let progress = seat.sequence.on_step(*n, ids);
            if !progress.ids.is_empty() {
                send(
                    out,
                    &seat.key,
                    StreamEvent::Tokens { index: progress.index, ids: progress.ids, deltas: progress.deltas, logprobs: Vec::new() },
                );
            }
            if let Some(reason) = progress.end {
                send(out, &seat.key, done(&seat.sequence, reason));
                ended.push(*i);
            }
        }
        ended.into_iter().rev().for_each(|i| self.remove(i));
        self.drop_cancelled();
    }

    /// Nothing more is wanted.
    pub fn on_cancel(&mut self, key: &Key) {
        self.encoding.remove(key);
        self.waiting.retain(|seat| seat.key != *key);
        self.running.iter_mut().filter(|seat| seat.key == *key).for_each(|seat| seat.cancelled = true);
        if self.step.is_none() {
            self.drop_cancelled();
        }
    }

    /// An ingress is gone, or the link to it: nobody takes what it asked for.
    pub fn on_ingress_lost(&mut self, ingress: &NodeId) {
        let waiting = self.waiting.iter().chain(&self.running).map(|seat| &seat.key);
        let lost: Vec<Key> = self.encoding.keys().chain(waiting).filter(|key| key.0 == *ingress).cloned().collect();
        lost.iter().for_each(|key| self.on_cancel(key));
    }

    /// The ingress lets a request go on.
    pub fn on_credit(&mut self, key: &Key, until: u32) {
        if let Some(generate) = self.encoding.get_mut(key) {
            generate.credit_until = generate.credit_until.max(until);
        }
        if let Some(seat) = self.waiting.iter_mut().chain(&mut self.running).find(|seat| seat.key == *key) {
            seat.sequence.on_credit(until);
        }
    }

    /// Its actor failed: every request that it has is told so.
    pub fn fail(self, out: &mut Outgoing) {
        let message = format!("the replica on '{}' ended while it had the request", self.me.name);
        let seats = self.waiting.iter().chain(&self.running).filter(|seat| !seat.cancelled).map(|seat| &seat.key);
        for key in self.encoding.keys().chain(seats) {
            send(out, key, StreamEvent::Failed(RequestError::Lost { message: message.clone() }));
        }
    }

    /// What it says of itself, if that has changed.
    pub fn report(&mut self) -> Option<ReplicaReport> {
        let load = ReplicaLoad {
            running: self.running.len() as u32,
            running_max: self.profile.running_max,
            waiting: (self.waiting.len() + self.encoding.len()) as u32,
            waiting_max: self.profile.waiting_max,
            ..ReplicaLoad::default()
        };
        let counts = (self.loaded, load.running, load.waiting);
        if self.reported.replace(counts) == Some(counts) {
            return None;
        }
        let state = if self.loaded { ReplicaState::Loaded } else { ReplicaState::Loading };
        let (context_length, memory) = if self.loaded { (self.profile.context, MODEL_MEMORY) } else { Default::default() };
        Some(ReplicaReport { model: MODEL.parse().ok()?, device: DEVICE.parse().ok()?, state, context_length, memory, load })
    }

    /// Errors: a block is neither free nor held by one sequence.
    pub fn check(&self) -> Result<(), String> {
        let held: u32 = self.running.iter().map(|seat| seat.n_blocks).sum();
        if self.pool.available() + held == self.pool.total() {
            return Ok(());
        }
        Err(format!("{} blocks are free and {held} held, of {}", self.pool.available(), self.pool.total()))
    }

    /// Errors: it still has a request, or a block is taken.
    pub fn check_idle(&self) -> Result<(), String> {
        self.pool.check_invariants();
        let left: Vec<&Key> = self.encoding.keys().chain(self.waiting.iter().chain(&self.running).map(|seat| &seat.key)).collect();
        if left.is_empty() && self.pool.available() == self.pool.total() {
            return Ok(());
        }
        Err(format!(
            "the replica on '{}' still has {left:?}, and {} of {} blocks are free",
            self.me,
            self.pool.available(),
            self.pool.total()
        ))
    }

    /// Is nothing left to do?
    pub fn is_idle(&self) -> bool {
        self.encoding.is_empty() && self.waiting.is_empty() && self.running.is_empty()
    }

    fn drop_cancelled(&mut self) {
        while let Some(i) = self.running.iter().position(|seat| seat.cancelled) {
            self.remove(i);
        }
    }

    fn remove(&mut self, i: usize) {
        let mut seat = self.running.remove(i);
        self.pool.free(seat.sequence.take_blocks());
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
