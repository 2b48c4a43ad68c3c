//! Texts to vectors on a replica: encoded, checked, and computed in pieces between the steps of others.

mod turns;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plexus_engine::codec::Codec;
use plexus_engine::embed::EmbedWork;
use plexus_types::{EmbedInput, EmbedRequest, Embeddings, ModelKind, Prompt, RequestError, RequestId};
use ractor::RpcReplyPort;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::turns::{Turns, Who};
use super::kind::check_kind;
use super::late::{late, overloaded};
use super::prepare;
use super::rejected::{self, Reason};
use super::scheduler::Principal;
use super::share::{Asking, admit};
use super::{ModelMsg, ModelState, Phase};
use crate::device::{DeviceError, Reply, StepQueue};

/// Weight of the newest measurement.
const WEIGHT: f32 = 0.2;

/// Most tokens of a piece while another model on the device generates, whose tokens wait for it.
const PIECE_BESIDE: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// A message with texts to embed, as long as it is under way.
pub(super) type Number = u64;

/// The requests to embed texts that are under way. One of many texts comes in several messages and counts as one.
#[derive(Debug, Default)]
pub(super) struct Embeds {
    under_way: HashMap<Number, UnderWay>,
    next: Number,
    /// How long they took lately, from their coming to their end.
    took: Option<Duration>,
    /// Pieces computed so far.
    pieces: Arc<AtomicU64>,
    turns: Turns,
}

#[derive(Debug)]
struct UnderWay {
    request: RequestId,
    principal: Principal,
    since: Instant,
    /// Ends with this: what a life of the replica has begun is lost with it, rather than failed by a device that no longer holds the model.
    _task: AbortOnDrop,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Embeds {
    /// Requests that are under way.
    pub(super) fn n_requests(&self) -> u32 {
        self.count(|_| true)
    }

    /// Those that are not among `own`.
    pub(super) fn n_of_others(&self, own: &BTreeSet<RequestId>) -> u32 {
        self.count(|one| !own.contains(&one.request))
    }

    fn count(&self, is_it: impl Fn(&UnderWay) -> bool) -> u32 {
        let mut requests: Vec<RequestId> = self.under_way.values().filter(|one| is_it(one)).map(|one| one.request).collect();
        requests.sort_unstable();
        requests.dedup();
        requests.len() as u32
    }

    /// Pieces computed so far, whosever they were.
    pub(super) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    fn next_number(&mut self) -> Number {
        self.next += 1;
        self.next
    }

    pub(super) fn on_end(&mut self, number: Number, now: Instant) {
        let Some(ended) = self.under_way.remove(&number) else { return };
        let took = now.saturating_duration_since(ended.since);
        self.took = Some(self.took.map_or(took, |before| before.mul_f32(1.0 - WEIGHT) + took.mul_f32(WEIGHT)));
    }

    /// In what time one of those under way ends: of so many that each take so long, one in that part of it (Little's law).
    pub(super) fn time_to_next_end(&self) -> Option<Duration> {
        Some(self.took? / self.n_requests().max(1))
    }
}

/// Says that a message's texts are done with, whatever became of them.
#[derive(Debug)]
struct Seat {
    model: crate::address::Address<ModelMsg>,
    life: ractor::ActorId,
    number: Number,
    refused: Option<Reason>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.model.tell_life(self.life, ModelMsg::Embedded(self.number, self.refused));
    }
}

impl ModelState {
    pub(super) fn on_embed(&mut self, id: RequestId, request: EmbedRequest, reply: RpcReplyPort<Result<Embeddings, RequestError>>) {
        let profile = &self.args.profile;
        let Phase::Loaded { resident, .. } = &self.phase else {
            rejected::count(&mut self.rejected, Reason::NotLoaded);
            return drop(reply.send(Err(self.not_loaded())));
        };
        if let Err(error) = check_kind(&profile.id, resident.facts.kind, ModelKind::Embed) {
            return drop(reply.send(Err(error)));
        }
        let (principal, place_wait) = (request.principal, self.place_wait());
        let own = self.embeds.count(|one| one.principal == principal && one.request != id);
        let present = self.embeds.count(|one| one.request != id);
        let admitted = admit(profile, Asking { principal, own, present }, place_wait, |_| {
            self.embeds.turns.displace(own, |principal| self.embeds.count(|one| one.principal == principal))
        });
        match admitted {
            Ok(false) => {}
            Ok(true) => rejected::count(&mut self.rejected, Reason::Full),
            Err((reason, error)) => {
                rejected::count(&mut self.rejected, reason);
                return drop(reply.send(Err(error)));
            }
        }
        let is_first = self.embeds.count(|one| one.request == id) == 0;
        let (number, since) = (self.embeds.next_number(), Instant::now());
        let mut seat = Seat { model: self.args.address.clone(), life: self.life, number, refused: None };
        let work = Work {
            codec: resident.codec.clone(),
            context: resident.plan.context_length,
            steps: resident.steps().clone(),
            turns: self.embeds.turns.clone(),
            pieces: self.embeds.pieces.clone(),
            who: Who { principal, request: id, number },
            is_first,
            waiting_time: profile.waiting_time,
            late: late(profile, place_wait),
            full: overloaded(profile, present, place_wait),
        };
        let is_late = work.late.clone();
        let task = tokio::spawn(async move {
            let embedded = work.embed(request, || !reply.is_closed()).await;
            seat.refused = embedded.as_ref().err().and_then(|error| if *error == is_late { Some(Reason::Late) } else { Reason::of(error) });
            drop(seat);
            drop(reply.send(embedded)); // at once: nothing waits from here on, where the task might be ended
        });
        let one = UnderWay { request: id, principal, since, _task: AbortOnDrop(task.abort_handle()) };
        self.embeds.under_way.insert(number, one);
        self.note_use();
    }
}

/// What it takes to embed a message's texts.
#[derive(Debug)]
struct Work {
    codec: Arc<Codec>,
    context: u32,
    steps: StepQueue,
    turns: Turns,
    pieces: Arc<AtomicU64>,
    who: Who,
    /// No other texts of its request are here: it has no place yet that it could keep.
    is_first: bool,
    /// How long it may wait for its first turn, as long as it has no place.
    waiting_time: Duration,
    /// What is said if it has waited for longer.
    late: RequestError,
    /// What is said if somebody with a key takes its place.
    full: RequestError,
}

impl Work {
    /// The vectors. Errors name the first text at fault, before anything is computed. Nothing more is computed once nobody `is_waiting` for them.
    async fn embed(self, request: EmbedRequest, is_waiting: impl Fn() -> bool) -> Result<Embeddings, RequestError> {
        let Self { codec, context, steps, turns, pieces, who, is_first, waiting_time, late, full } = self;
        let dimensions = request.dimensions;
        let inputs = prepare::in_turn(request.text_len(), move || encode_texts(&codec, context, request)).await?;
        let prompt_tokens = inputs.iter().map(|ids| ids.len() as u32).sum();
        let mut work = EmbedWork::new(inputs);
        let mut turn = match is_first {
            true => tokio::time::timeout(waiting_time, turns.take(who, true)).await.map_err(|_| late)?.ok_or(full)?,
            false => turns.take(who, false).await.ok_or_else(lost)?,
        };
        while !work.is_done() {
            if !is_waiting() {
                return Err(RequestError::Lost { message: "nobody waits for the vectors".into() });
            }
            let others_generate = steps.beside().is_some();
            work.set_piece_tokens(if others_generate { PIECE_BESIDE } else { NonZeroUsize::MAX });
            work = run_piece(&steps, work).await?;
            pieces.fetch_add(1, Ordering::Relaxed);
            if !work.is_within_text() && !work.is_done() {
                turn = turns.again(turn, who).await.ok_or_else(lost)?;
            }
        }
        drop(turn);
        let mut vectors = work.into_vectors().ok_or_else(|| RequestError::Internal { message: "a text has no vector".into() })?;
        if let Some(dimensions) = dimensions {
            vectors.iter_mut().try_for_each(|vector| shorten(vector, dimensions))?;
        }
        Ok(Embeddings { vectors, prompt_tokens })
    }
}

fn lost() -> RequestError {
    RequestError::Lost { message: "the device was lost while it embedded".into() }
}

async fn run_piece(steps: &StepQueue, work: EmbedWork) -> Result<EmbedWork, RequestError> {
    let (reply, embedded) = oneshot::channel();
    steps.embed(work, Reply::new(move |result| drop(reply.send(result))));
    match embedded.await {
        Ok(Ok(work)) => Ok(work),
        Ok(Err(DeviceError::Engine(why))) => Err(RequestError::Internal { message: format!("the model failed: {why}") }),
        Ok(Err(DeviceError::Lost)) | Err(_) => Err(lost()),
    }
}

/// The tokens of texts, of which each has at most `context`. Errors name the first text at fault.
pub(crate) fn encode_texts(codec: &Codec, context: u32, mut request: EmbedRequest) -> Result<Vec<Vec<u32>>, RequestError> {
    let inputs = std::mem::take(&mut request.inputs);
    let mut encoded = Vec::with_capacity(inputs.len());
    for (at, input) in inputs.into_iter().enumerate() {
        let prompt = match input {
            EmbedInput::Text(text) => Prompt::Text(text),
            EmbedInput::Tokens(ids) => Prompt::Tokens(ids),
        };
        let wrong = |message: String| RequestError::invalid(&request.name(at), message);
        let too_long = |tokens: u32| match request.indices.is_empty() {
            true => RequestError::ContextLength { prompt_tokens: tokens, max_tokens: context },
            false => RequestError::TextLength { input: request.name(at), tokens, max_tokens: context },
        };
        let ids = codec.encode_within(&prompt, context).map_err(|error| match error {
            RequestError::Invalid { message, .. } if request.indices.is_empty() => wrong(message),
            RequestError::Invalid { message, .. } => wrong(format!("{}: {message}", request.name(at))),
            RequestError::ContextLength { prompt_tokens, .. } => too_long(prompt_tokens),
            other => other,
        })?;
        let tokens = ids.len() as u32;
        if ids.is_empty() {
            return Err(wrong(format!("{} is empty: give at least one token", request.name(at))));
        }
        if tokens > context {
            return Err(too_long(tokens));
        }
        encoded.push(ids);
    }
    Ok(encoded)
}

/// The first `dimensions` numbers, scaled to length 1: for models trained so that these stand for the whole.
/// Source: Kusupati et al. 2022, arXiv:2205.13147.
fn shorten(vector: &mut Vec<f32>, dimensions: u32) -> Result<(), RequestError> {
    if dimensions == 0 || dimensions as usize > vector.len() {
        let message = format!("{dimensions} dimensions are not possible: this model's vectors allow 1 to {}", vector.len());
        return Err(RequestError::invalid("dimensions", message));
    }
    vector.truncate(dimensions as usize);
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one_and_no_vector_grows() {
        let mut vector = vec![0.6, 0.0, 0.8];
        assert!(shorten(&mut vector.clone(), 4).is_err() && shorten(&mut vector.clone(), 0).is_err());
        shorten(&mut vector, 1).unwrap();
        assert_eq!(vector, [1.0]);
    }
}
