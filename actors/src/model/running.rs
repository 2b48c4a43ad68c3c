//! The batch of a replica: who waits, who runs, which step is on the device.

use std::collections::VecDeque;
use std::time::Duration;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::kv::BlockPool;
use plexus_engine::sample::SamplerSettings;
use plexus_types::{FinishReason, Journal, NodeId, ReplicaLoad, RequestError, StreamEvent, Timing, Usage};
use tokio::time::Instant;
use tracing::{Span, info_span};

use super::load::Resident;
use super::plan::BLOCK_LEN;
use super::sequence::{Sequence, form_step};
use super::sink::{Ingresses, Sink};
use super::{Arrival, SequenceKey};
use crate::messages::StreamNotice;

/// Most tokens of one step: bounds how long a prompt holds up the tokens of others.
const STEP_TOKENS_MAX: u32 = 256;
/// Weight of the newest measurement in a speed.
const SPEED_WEIGHT: f32 = 0.2;

/// A request that waits for a place or has one.
#[derive(Debug)]
pub(super) struct Seat {
    sink: Sink,
    sequence: Sequence,
    cancelled: bool,
    arrived: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    serve_span: Span,
    /// The stage at hand: queue, prefill or decode.
    stage_span: Span,
}

impl Seat {
    /// Seats a request whose prompt is known, and tells its ingress so. `None` if it is refused, or ended already: the ingress is told that.
    pub(super) fn new(arrival: Arrival, prompt: Result<Vec<u32>, RequestError>, resident: &Resident) -> Option<Self> {
        let Arrival { mut sink, generate, at, serve_span, queue_span } = arrival;
        let context = resident.plan.context_length;
        let prompt = match prompt.and_then(|prompt| fitting(prompt, context)) {
            Ok(prompt) => prompt,
            Err(error) => {
                sink.fail(error);
                return None;
            }
        };
        serve_span.record("prompt_tokens", prompt.len());
        let Journal { request, seed, sampled_ids, .. } = generate.journal;
        let settings = SamplerSettings::resolve(&request.sampling, &resident.defaults, seed);
        let room = context - prompt.len() as u32;
        let sampled_max = request.max_tokens.map_or(room, |max| max.min(room));
        let decoder = resident.codec.decoder(&request.stop);
        sink.send(StreamEvent::Accepted { prompt_ids: prompt.clone() });
        let (sequence, end) = Sequence::new(settings, prompt, sampled_ids, decoder, sampled_max, generate.credit_until);
        let seat =
            Self { sink, sequence, cancelled: false, arrived: at, admitted: None, first_token: None, serve_span, stage_span: queue_span };
        let Some(reason) = end else { return Some(seat) };
        let usage = seat.usage(at);
        let Self { mut sink, sequence, .. } = seat;
        sink.send(StreamEvent::Done { last_index: sequence.n_sampled(), reason, usage });
        None
    }

    fn key(&self) -> SequenceKey {
        let (request, attempt) = self.sink.key();
        (self.sink.ingress().clone(), request, attempt)
    }

    /// Blocks that it needs to its end: reserved on admission, so that nothing runs out mid-stream (CX-93).
    fn n_blocks(&self) -> u32 {
        self.sequence.n_max().div_ceil(BLOCK_LEN)
    }

    fn admit(&mut self, now: Instant) {
        self.admitted = Some(now);
        self.stage_span = info_span!(parent: &self.serve_span, "prefill", otel.kind = "internal");
    }

    fn usage(&self, now: Instant) -> Usage {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: self.sequence.n_prompt(),
            cached_tokens: 0,
            completion_tokens: self.sequence.n_sampled(),
            timing: Timing { queue: admitted - self.arrived, prefill: first_token - admitted, decode: now - first_token },
        }
    }

    /// What a step brought, as events for its ingress.
    fn on_step(&mut self, n: u32, ids: &[u32], now: Instant, events: &mut Vec<StreamNotice>) -> Option<FinishReason> {
        let progress = self.sequence.on_step(n, ids);
        if !progress.ids.is_empty() && self.first_token.is_none() {
            self.first_token = Some(now);
            self.stage_span = info_span!(parent: &self.serve_span, "decode", otel.kind = "internal");
        }
        if !progress.ids.is_empty() {
            events.push(self.sink.label(StreamEvent::Tokens {
                index: progress.index,
                ids: progress.ids,
                deltas: progress.deltas,
                logprobs: Vec::new(),
            }));
        }
        if let Some(reason) = progress.end.clone() {
            self.serve_span.record("completion_tokens", self.sequence.n_sampled());
            let usage = self.usage(now);
            events.push(self.sink.label(StreamEvent::Done { last_index: self.sequence.n_sampled(), reason, usage }));
        }
        progress.end
    }
}

/// A prompt that leaves room for at least one token.
fn fitting(prompt: Vec<u32>, context: u32) -> Result<Vec<u32>, RequestError> {
    let prompt_tokens = prompt.len() as u32;
    if prompt.is_empty() {
        return Err(RequestError::invalid("prompt", "the prompt is empty: give at least one token"));
    }
    if prompt_tokens >= context {
        return Err(RequestError::ContextLength { prompt_tokens, max_tokens: context });
    }
    Ok(prompt)
}

/// Who waits, who runs, and the step on the device.
#[derive(Debug)]
pub(super) struct Batcher {
    running_max: usize,
    pool: BlockPool,
    waiting: VecDeque<Seat>,
    running: Vec<Seat>,
    step: Option<Step>,
    prefill_speed: f32,
    decode_speed: f32,
    pub(super) n_done: u64,
    pub(super) n_cancelled: u64,
}

/// The step on the device: which of `running` take part, with how many tokens.
#[derive(Debug)]
struct Step {
    members: Vec<(usize, u32)>,
    n_prompt_tokens: u32,
    begun: Instant,
}

impl Batcher {
    /// An empty batch over a pool of `n_blocks`.
    pub(super) fn new(running_max: u32, n_blocks: u32) -> Self {
        Self {
            running_max: running_max as usize,
            pool: BlockPool::new(n_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            step: None,
            prefill_speed: 0.0,
            decode_speed: 0.0,
            n_done: 0,
            n_cancelled: 0,
        }
    }

    /// Adds a request behind those that wait.
    pub(super) fn push(&mut self, seat: Seat) {
        self.waiting.push_back(seat);
    }

    /// Requests that wait or run.
    pub(super) fn n_present(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// How busy and how fast it is; the limits are the caller's.
    pub(super) fn load(&self) -> ReplicaLoad {
        ReplicaLoad {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            prefill_tokens_per_s: self.prefill_speed,
            decode_tokens_per_s: self.decode_speed,
            ..ReplicaLoad::default()
        }
    }

    /// The next step, if one can run: places are given to those who wait, in order, then tokens to those who run.
    pub(super) fn next_step(&mut self, now: Instant) -> Option<Batch> {
        if self.step.is_some() {
            return None;
        }
        self.admit(now);
        let members = form_step(self.running.iter().map(|seat| &seat.sequence), STEP_TOKENS_MAX);
        if members.is_empty() {
            return None;
        }
        let mut batch = Batch::default();
        let mut n_prompt_tokens = 0;
        for (i, n) in &members {
            let sequence = &self.running[*i].sequence;
            n_prompt_tokens += if sequence.is_prefilling() { *n } else { 0 };
            sequence.join(&mut batch, *n);
        }
        self.step = Some(Step { members, n_prompt_tokens, begun: now });
        Some(batch)
    }

    /// First come, first served: nobody overtakes one who waits for blocks.
    fn admit(&mut self, now: Instant) {
        while self.running.len() < self.running_max
            && let Some(first) = self.waiting.front()
            && let Some(blocks) = self.pool.allocate(first.n_blocks())
        {
            let mut seat = self.waiting.pop_front().expect("the first was just looked at");
            seat.sequence.give_blocks(blocks);
            seat.admit(now);
            self.running.push(seat);
        }
    }

    /// A step ended well: sends what it brought, frees what ended.
    pub(super) fn on_step(&mut self, output: &BatchOutput, now: Instant, ingresses: &Ingresses) {
        let Some(step) = self.step.take() else { return };
        let mut outgoing: Vec<(NodeId, Vec<StreamNotice>)> = Vec::new();
        let mut ended = Vec::new();
        let mut n_sampled = 0;
        for ((i, n), ids) in step.members.iter().zip(&output.sampled) {
            let seat = &mut self.running[*i];
            n_sampled += ids.len();
            if seat.cancelled {
                continue;
            }
            let to = match outgoing.iter().position(|(ingress, _)| ingress == seat.sink.ingress()) {
                Some(known) => known,
                None => {
                    outgoing.push((seat.sink.ingress().clone(), Vec::new()));
                    outgoing.len() - 1
                }
            };
            if seat.on_step(*n, ids, now, &mut outgoing[to].1).is_some() {
                ended.push(*i);
            }
        }
        for (ingress, events) in outgoing.into_iter().filter(|(_, events)| !events.is_empty()) {
            ingresses.send(&ingress, events);
        }
        self.n_done += ended.len() as u64;
        self.measure(&step, n_sampled, now);
        for i in ended.into_iter().rev() {
            self.remove(i);
        }
        self.drop_cancelled();
    }

    /// A step failed, but the device is sound: its members cannot go on here.
    pub(super) fn on_step_failed(&mut self, error: &RequestError) {
        let Some(step) = self.step.take() else { return };
        let mut members: Vec<usize> = step.members.iter().map(|(i, _)| *i).collect();
        members.sort_unstable();
        for i in members.into_iter().rev() {
            let seat = self.remove(i);
            if seat.cancelled {
                seat.sink.finish();
            } else {
                seat.sink.fail(error.clone());
            }
        }
        self.drop_cancelled();
    }

    /// The client left. True if the request was here.
    pub(super) fn cancel(&mut self, key: &SequenceKey) -> bool {
        if let Some(i) = self.waiting.iter().position(|seat| seat.key() == *key) {
            let seat = self.waiting.remove(i).expect("just found");
            seat.sink.finish();
            self.n_cancelled += 1;
            return true;
        }
        let Some(seat) = self.running.iter_mut().find(|seat| seat.key() == *key) else { return false };
        seat.cancelled = true;
        if self.step.is_none() {
            self.drop_cancelled(); // else when the step ends, which reads its blocks
        }
        true
    }

    /// The requests of an ingress.
    pub(super) fn keys_of(&self, ingress: &NodeId) -> impl Iterator<Item = SequenceKey> {
        self.waiting.iter().chain(&self.running).filter(move |seat| seat.sink.ingress() == ingress).map(Seat::key)
    }

    /// The ingress lets a request go on.
    pub(super) fn credit(&mut self, key: &SequenceKey, until: u32) {
        if let Some(seat) = self.waiting.iter_mut().chain(&mut self.running).find(|seat| seat.key() == *key) {
            seat.sequence.on_credit(until);
        }
    }

    fn drop_cancelled(&mut self) {
        while let Some(i) = self.running.iter().position(|seat| seat.cancelled) {
            self.remove(i).sink.finish();
            self.n_cancelled += 1;
        }
    }

    /// Takes a seat out of the batch and frees its blocks. Only between steps: a step names its members by their place.
    fn remove(&mut self, i: usize) -> Seat {
        let mut seat = self.running.remove(i);
        self.pool.free(seat.sequence.take_blocks());
        seat
    }

    fn measure(&mut self, step: &Step, n_sampled: usize, now: Instant) {
        let seconds = (now - step.begun).max(Duration::from_nanos(1)).as_secs_f32();
        let blend = |speed: &mut f32, tokens: f32| {
            let measured = tokens / seconds;
            *speed = if *speed == 0.0 { measured } else { *speed + SPEED_WEIGHT * (measured - *speed) };
        };
        if step.n_prompt_tokens > 0 {
            blend(&mut self.prefill_speed, step.n_prompt_tokens as f32);
        } else {
            blend(&mut self.decode_speed, n_sampled as f32);
        }
    }
}
