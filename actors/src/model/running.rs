//! The batch of a replica: a [`Scheduler`] whose sequences each have a client, which is told what a step brought.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use plexus_engine::batch::{Batch, BatchOutput};
use plexus_engine::sample::SamplerSettings;
use plexus_types::{Journal, ModelId, ModelProfile, NodeId, ReplicaLoad, RequestError, StreamEvent, Timing, Usage};
use tokio::time::Instant;
use tracing::{Span, info_span};

use super::SequenceKey;
use super::generate::Arrival;
use super::load::Resident;
use super::prepare::Prepared;
use super::rejected::Reason;
use super::scheduler::{Counts, DRAFTS_MAX, Limits, PROMPT_TOKENS_MAX, Principal, Scheduler};
use super::sequence::{Progress, Sequence};
use super::share::makes_way;
use super::sink::{Ingresses, Sink};
use crate::device::StepQueue;
use crate::messages::{Attempt, StreamNotice};
use crate::metrics;

/// Most tokens of one step that are guessed from the sequences' own texts; the speeds measured allow fewer.
const GUESSES_MAX: u32 = 64;

/// How often the ingresses of those that get no tokens are told that they are still here.
const REASSURE_EVERY: Duration = Duration::from_secs(2);

/// The client of a sequence, and when what happened to it.
#[derive(Debug)]
pub(super) struct Seat {
    sink: Sink,
    arrived: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    serve_span: Span,
    /// The stage at hand: queue, prefill or decode.
    stage_span: Span,
}

impl Seat {
    fn key(&self) -> SequenceKey {
        let (request, attempt) = self.sink.key();
        (self.sink.ingress().clone(), request, attempt)
    }

    fn is(&self, key: &SequenceKey) -> bool {
        (key.1, key.2) == self.sink.key() && key.0 == *self.sink.ingress()
    }

    /// Its sequence got a place. It may lose it again, and get another: that is part of the stage at hand.
    fn on_place(&mut self, now: Instant) {
        if self.admitted.is_none() {
            self.admitted = Some(now);
            self.stage_span = info_span!(parent: &self.serve_span, "prefill", otel.kind = "internal");
        }
    }

    fn usage(&self, sequence: &Sequence, now: Instant) -> Usage {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: sequence.n_prompt(),
            cached_tokens: sequence.n_cached(),
            completion_tokens: sequence.n_sampled(),
            timing: Timing { queue: admitted - self.arrived, prefill: first_token - admitted, decode: now - first_token },
        }
    }

    /// What a step brought, as events for its ingress.
    fn on_progress(&mut self, sequence: &Sequence, progress: Progress, now: Instant, events: &mut Vec<StreamNotice>) {
        let Progress { index, ids, deltas, logprobs, end, refused } = progress;
        if !ids.is_empty() {
            if self.first_token.is_none() {
                self.first_token = Some(now);
                self.stage_span = info_span!(parent: &self.serve_span, "decode", otel.kind = "internal");
            }
            events.push(self.sink.label(StreamEvent::Tokens { index, ids, deltas, logprobs }));
        }
        if let Some(reason) = end {
            self.serve_span.record("completion_tokens", sequence.n_sampled());
            let usage = self.usage(sequence, now);
            events.push(self.sink.label(StreamEvent::Done { last_index: sequence.n_sampled(), reason, usage }));
        }
        if let Some(reason) = refused {
            let message = format!("the grammar of the answer cannot go on: {reason}; simplify it");
            events.push(self.sink.label(StreamEvent::Failed(RequestError::Invalid { message, param: None })));
        }
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

/// The requests of a replica.
#[derive(Debug)]
pub(super) struct Batcher {
    scheduler: Scheduler<Seat>,
    /// What has been counted in the metrics.
    counted: Counts,
    pub(super) n_cancelled: u64,
    /// Longest time that a prompt may take to be read; absent: any.
    prompt_time_max: Option<Duration>,
    /// When the ingresses of those without tokens were last told that they are still here.
    reassured: Option<Instant>,
}

impl Batcher {
    /// An empty batch over the pool of `resident`.
    pub(super) fn new(profile: &ModelProfile, resident: &Resident, prompt_time_max: Option<Duration>) -> Self {
        let kv = resident.plan.kv;
        let limits = Limits {
            running_max: profile.running_max,
            n_blocks: kv.n_blocks,
            block_len: kv.block_len,
            prompt_tokens_max: PROMPT_TOKENS_MAX,
            guesses_max: if profile.prompt_lookup { GUESSES_MAX } else { 0 },
            drafts_max: if profile.draft.is_some() { DRAFTS_MAX } else { 0 },
        };
        Self { scheduler: Scheduler::new(limits), counted: Counts::default(), n_cancelled: 0, prompt_time_max, reassured: None }
    }

    /// Takes a request whose prompt is known, behind those that wait, and tells its ingress so. If it is refused, or ended already, the
    /// ingress is told that. Gives why it is refused, if that is counted.
    pub(super) fn push(&mut self, arrival: Arrival, prepared: Result<Prepared, RequestError>, resident: &Resident) -> Option<Reason> {
        let Arrival { mut sink, generate, at, serve_span, queue_span, .. } = arrival;
        let context = resident.plan.context_length;
        let is_new = generate.journal.prompt_ids.is_empty(); // or else another replica has taken it already
        let Journal { request, seed, sampled_ids, .. } = generate.journal;
        let codec = &resident.codec;
        let settings = SamplerSettings::resolve(&request.sampling, &resident.defaults, seed).with_stop_ids(codec.stop_ids());
        let fitting = |Prepared { prompt, digests, grammar }| {
            let prompt = fitting(prompt, context)?;
            if is_new {
                self.check_reading(&prompt, at)?;
            }
            Ok((prompt, digests, grammar))
        };
        let (prompt, digests, grammar) = match settings.check(codec.vocab_size()).and(prepared).and_then(fitting) {
            Ok(fit) => fit,
            Err(error) => {
                let reason = Reason::of(&error);
                sink.fail(error);
                return reason;
            }
        };
        serve_span.record("prompt_tokens", prompt.len());
        let digests = digests.positions(prompt.len() as u32);
        let room = context - prompt.len() as u32;
        let sampled_max = request.max_tokens.map_or(room, |max| max.min(room));
        let decoder = codec.answer(&request, seed, &prompt);
        sink.send(StreamEvent::Accepted { prompt_ids: prompt.clone() });
        let (mut sequence, end) = Sequence::new(settings, prompt, sampled_ids, decoder, sampled_max, generate.credit_until);
        sequence.begins_with(digests);
        sequence.want_logprobs(request.logprobs);
        if let Some(grammar) = grammar {
            sequence.constrain(grammar);
        }
        let mut seat = Seat { sink, arrived: at, admitted: None, first_token: None, serve_span, stage_span: queue_span };
        match end {
            None => self.scheduler.push(seat, sequence, request.principal),
            Some(reason) => {
                let usage = seat.usage(&sequence, at);
                seat.sink.send(StreamEvent::Done { last_index: sequence.n_sampled(), reason, usage });
            }
        }
        None
    }

    /// Refuses a prompt of which more is to be read than can be in the time that it may take, at the speed measured of late (CX-30). What is in the
    /// prefix cache is read already.
    fn check_reading(&self, prompt: &[u32], now: Instant) -> Result<(), RequestError> {
        let prompt_tokens = prompt.len() as u32;
        let Some(most) = self.prompt_max(now).filter(|most| *most < prompt_tokens) else { return Ok(()) };
        let max_tokens = most.saturating_add(self.scheduler.pool().n_found(prompt));
        if prompt_tokens > max_tokens { Err(RequestError::ContextLength { prompt_tokens, max_tokens }) } else { Ok(()) }
    }

    /// Tokens that can be read in the time that a prompt may take; absent if it may take any, or the speed was not measured of late.
    pub(super) fn prompt_max(&self, now: Instant) -> Option<u32> {
        let speed = self.scheduler.reading_tokens_per_s(now)?;
        self.prompt_time_max.map(|time| (time.as_secs_f32() * speed) as u32)
    }

    /// Requests that wait or run.
    pub(super) fn n_present(&self) -> usize {
        self.scheduler.n_waiting() + self.scheduler.n_running()
    }

    /// How busy and how fast it is; the limits are the caller's.
    pub(super) fn load(&self) -> ReplicaLoad {
        let speeds = self.scheduler.speeds();
        ReplicaLoad {
            running: self.scheduler.n_running() as u32,
            waiting: self.scheduler.n_waiting() as u32,
            prefill_tokens_per_s: speeds.prefill_tokens_per_s(),
            decode_tokens_per_s: speeds.decode_tokens_per_s(),
            answer_tokens: self.scheduler.mean_answer().unwrap_or_default(),
            ..ReplicaLoad::default()
        }
    }

    /// What has happened so far.
    pub(super) fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// Blocks that hold nothing of a sequence that runs, and of them those whose content is remembered.
    pub(super) fn blocks(&self) -> (u32, u32) {
        (self.scheduler.pool().available(), self.scheduler.pool().idle())
    }

    /// Digests of what the pool holds of prompts, sorted.
    pub(super) fn prefixes(&mut self) -> Arc<[u32]> {
        self.scheduler.prefixes()
    }

    /// Changes when [`Self::prefixes`] may have changed.
    pub(super) fn prefix_changes(&self) -> u64 {
        self.scheduler.prefix_changes()
    }

    /// Brings the metrics up to date.
    pub(super) fn count(&mut self, model: &ModelId) {
        let counts = self.scheduler.counts();
        if counts != self.counted {
            metrics::on_schedule(model, self.counted, counts);
            self.counted = counts;
        }
    }

    /// Requests of a principal, running and waiting.
    pub(super) fn n_of(&self, principal: Principal) -> usize {
        self.scheduler.n_of(principal)
    }

    /// Refuses those that have waited for a place for longer than they may. Says how many these are.
    pub(super) fn refuse_late(&mut self, now: Instant, waiting_time: Duration, error: impl Fn() -> RequestError) -> usize {
        let is_late = |seat: &Seat| seat.admitted.is_none() && now.saturating_duration_since(seat.arrived) >= waiting_time;
        let late = self.scheduler.take_late(is_late);
        let n_late = late.len();
        late.into_iter().for_each(|seat| seat.sink.fail(error()));
        n_late
    }

    /// In what time the first of those that have not had a place yet will have waited for longer than it may; absent if all have had one.
    pub(super) fn time_to_late(&self, now: Instant, waiting_time: Duration) -> Option<Duration> {
        let waiting = self.scheduler.owners().filter(|seat| seat.admitted.is_none());
        waiting.map(|seat| waiting_time.saturating_sub(now.saturating_duration_since(seat.arrived))).min()
    }

    /// Tells the ingresses of those that wait for a place, or whose prompt is being read, that they are still here, from time to time: however long
    /// that takes, they are not given up for lost while steps come to their ends. Called after each.
    pub(super) fn reassure(&mut self, now: Instant) {
        if now.saturating_duration_since(*self.reassured.get_or_insert(now)) < REASSURE_EVERY {
            return;
        }
        self.reassured = Some(now);
        self.scheduler.without_tokens().for_each(|seat| seat.sink.send(StreamEvent::Accepted { prompt_ids: Vec::new() }));
    }

    /// In what time an answer as long as those of late is generated, at the speed of the whole batch; absent while that is not known.
    pub(super) fn time_of_answer(&self) -> Option<Duration> {
        let speed = self.scheduler.speeds().decode_tokens_per_s();
        (speed > 0.0).then(|| Duration::from_secs_f32((self.scheduler.expected_answer() / speed).min(1e6)))
    }

    /// Refuses the youngest of whoever [`makes_way`], those that are being encoded first, so that one with a key, who has `own` requests here, can wait in
    /// its stead. False if there is none.
    pub(super) fn displace(
        &mut self,
        encoding: &mut HashMap<SequenceKey, Arrival>,
        own: u32,
        error: impl FnOnce() -> RequestError,
    ) -> bool {
        let waits = |seat: &Seat| seat.admitted.is_none();
        let of = |arrival: &Arrival| arrival.generate.journal.request.principal;
        let mut shares = self.scheduler.shares(waits);
        for arrival in encoding.values() {
            let (n, one_waits) = shares.entry(of(arrival)).or_default();
            (*n, *one_waits) = (*n + 1, true);
        }
        let Some(principal) = makes_way(&shares, own) else { return false };
        let youngest = encoding.iter().filter(|(_, arrival)| of(arrival) == principal).max_by_key(|(_, arrival)| arrival.at);
        let sink = match youngest.map(|(key, _)| key.clone()) {
            Some(key) => encoding.remove(&key).map(|arrival| arrival.sink),
            None => self.scheduler.take_youngest(principal, waits).map(|seat| seat.sink),
        };
        sink.map(|sink| sink.fail(error())).is_some()
    }

    /// Requests that wait and for which there is no place here, of `running_max`.
    pub(super) fn n_without_place(&self, running_max: u32) -> usize {
        let n_free = (running_max as usize).saturating_sub(self.scheduler.n_running());
        self.scheduler.n_waiting().saturating_sub(n_free)
    }

    /// Gives up the first of those that have not had a place yet, at most so many: they go elsewhere. None that was sent on already.
    pub(super) fn give_up(&mut self, n_max: usize, error: impl Fn() -> RequestError) {
        let given_up = self.scheduler.take_first(n_max, |seat| seat.admitted.is_none() && seat.sink.key().1 == Attempt(1));
        given_up.into_iter().for_each(|seat| seat.sink.fail(error()));
    }

    /// The next step, if one can run and none is under way. The device is shared with the other models that `steps` knows of, and they with this.
    pub(super) fn next_step(&mut self, steps: &StepQueue, now: Instant) -> Option<Batch> {
        self.scheduler.set_beside(steps.beside());
        let step = self.scheduler.next_step(now, |seat| seat.on_place(now));
        steps.set_generating(self.scheduler.decode_step());
        step
    }

    /// A step ended well: sends what it brought, one message to each ingress.
    pub(super) fn on_step(&mut self, output: &BatchOutput, now: Instant, ingresses: &Ingresses) {
        let mut outgoing: Vec<(NodeId, Vec<StreamNotice>)> = Vec::new();
        self.scheduler.on_step(output, now, |seat, sequence, progress| {
            let to = match outgoing.iter().position(|(ingress, _)| ingress == seat.sink.ingress()) {
                Some(known) => known,
                None => {
                    outgoing.push((seat.sink.ingress().clone(), Vec::new()));
                    outgoing.len() - 1
                }
            };
            seat.on_progress(sequence, progress, now, &mut outgoing[to].1);
        });
        for (ingress, events) in outgoing.into_iter().filter(|(_, events)| !events.is_empty()) {
            ingresses.send(&ingress, events);
        }
    }

    /// A step failed, but the device is sound: its members cannot go on here.
    pub(super) fn on_step_failed(&mut self, error: &RequestError) {
        self.scheduler.on_step_failed().into_iter().for_each(|seat| seat.sink.fail(error.clone()));
    }

    /// The client left. True if the request was here.
    pub(super) fn cancel(&mut self, key: &SequenceKey) -> bool {
        let was_here = self.scheduler.cancel(|seat| seat.is(key), |seat| seat.sink.close());
        self.n_cancelled += u64::from(was_here);
        was_here
    }

    /// Requests of other ingresses than this.
    pub(super) fn n_of_others(&self, me: &NodeId) -> usize {
        self.scheduler.owners().filter(|seat| seat.sink.ingress() != me).count()
    }

    /// The requests of an ingress.
    pub(super) fn keys_of(&self, ingress: &NodeId) -> impl Iterator<Item = SequenceKey> {
        self.scheduler.owners().filter(move |seat| seat.sink.ingress() == ingress).map(Seat::key)
    }

    /// The ingress lets a request go on.
    pub(super) fn credit(&mut self, key: &SequenceKey, until: u32) {
        self.scheduler.credit(|seat| seat.is(key), until);
    }
}
