//! Requests to generate: from their arrival at the replica to the step that they take part in.

use plexus_engine::batch::BatchOutput;
use plexus_types::{GenerateRequest, ModelKind, NodeId, RequestError, StreamEvent};
use ractor::{ActorProcessingErr, RpcReplyPort};
use tokio::time::Instant;
use tracing::{Span, info_span, warn};

use super::kind::check_kind;
use super::prepare::{self, Prepared, Preparing, prepare};
use super::rejected::{self, Reason};
use super::share::{Asking, admit};
use super::sink::Sink;
use super::{ModelMsg, ModelState, Phase, SequenceKey};
use crate::device::{DeviceError, Reply};
use crate::messages::Generate;
use crate::trace;

/// A request before its prompt is known.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(super) sink: Sink,
    pub(super) generate: Box<Generate>,
    pub(super) at: Instant,
    pub(super) serve_span: Span,
    pub(super) queue_span: Span,
    _preparing: Preparing,
}

impl ModelState {
    pub(super) fn on_generate(&mut self, from: NodeId, generate: Box<Generate>) {
        let sink = Sink::new(self.args.ingresses.clone(), from, generate.request, generate.attempt);
        let place_wait = self.place_wait();
        let Phase::Loaded { resident, batcher, .. } = &mut self.phase else {
            rejected::count(&mut self.rejected, Reason::NotLoaded);
            return sink.fail(self.not_loaded());
        };
        if let Err(error) = check_kind(&self.args.profile.id, resident.facts.kind, ModelKind::Generate) {
            return sink.fail(error);
        }
        let principal = generate.journal.request.principal;
        let encoding = self.encoding.values().filter(|arrival| arrival.generate.journal.request.principal == principal).count();
        let own = (batcher.n_of(principal) + encoding) as u32;
        let asking = Asking { principal, own, present: (self.encoding.len() + batcher.n_present()) as u32 };
        let admitted = admit(&self.args.profile, asking, place_wait, |full| batcher.displace(&mut self.encoding, own, || full.clone()));
        match admitted {
            Ok(false) => {}
            Ok(true) => rejected::count(&mut self.rejected, Reason::Full),
            Err((reason, error)) => {
                rejected::count(&mut self.rejected, reason);
                return sink.fail(error);
            }
        }
        let serve_span = info_span!("serve", otel.kind = "server", request = %generate.request, model = %self.args.profile.id,
            attempt = generate.attempt.0, node = %self.args.ingresses.me.name, prompt_tokens = tracing::field::Empty,
            completion_tokens = tracing::field::Empty);
        trace::set_parent(&serve_span, &generate.trace);
        let queue_span = info_span!(parent: &serve_span, "queue", otel.kind = "internal");
        let key = (sink.ingress().clone(), generate.request, generate.attempt);
        let (codec, request, context) = (resident.codec.clone(), generate.journal.request.clone(), resident.plan.context_length);
        let (known, n_bytes) = (generate.journal.prompt_ids.clone(), request.prompt.text_len());
        let work = move || prepare(&codec, context, &request, known);
        let preparing = prepare::start(self.args.address.clone(), key.clone(), n_bytes, work);
        let arrival = Arrival { sink, at: Instant::now(), serve_span, queue_span, generate, _preparing: preparing };
        self.encoding.insert(key, arrival);
        self.note_use();
    }

    /// Whoever waits for the request to be accepted hears that it is here.
    pub(super) fn on_is_long(&mut self, key: &SequenceKey) {
        if let Some(arrival) = self.encoding.get_mut(key) {
            arrival.sink.send(StreamEvent::Accepted { prompt_ids: Vec::new() });
        }
    }

    pub(super) fn on_encoded(&mut self, key: &SequenceKey, prepared: Result<Prepared, RequestError>) {
        let Some(arrival) = self.encoding.remove(key) else { return }; // cancelled meanwhile
        let Phase::Loaded { resident, batcher, .. } = &mut self.phase else { return };
        if let Some(reason) = batcher.push(arrival, prepared, resident) {
            rejected::count(&mut self.rejected, reason);
        }
        self.go_on();
    }

    pub(super) fn on_stepped(&mut self, output: Result<BatchOutput, DeviceError>) -> Result<(), ActorProcessingErr> {
        let Phase::Loaded { batcher, .. } = &mut self.phase else { return Ok(()) };
        match output {
            Ok(output) => batcher.on_step(&output, Instant::now(), &self.args.ingresses),
            Err(DeviceError::Lost) => return Err("the device was lost".into()),
            Err(error @ DeviceError::Engine(_)) => {
                warn!(model = %self.args.profile.id, %error, "a step failed");
                batcher.on_step_failed(&RequestError::Internal { message: format!("the model failed: {error}") });
            }
        }
        self.go_on();
        Ok(())
    }

    /// Starts the next step, if there is one and none is under way, and tells the router of the load.
    pub(super) fn go_on(&mut self) {
        self.refuse_late();
        self.hand_over();
        let Phase::Loaded { resident, batcher, .. } = &mut self.phase else { return };
        batcher.reassure(Instant::now());
        if let Some(batch) = batcher.next_step(resident.steps(), Instant::now()) {
            let address = self.args.address.clone();
            let life = self.life;
            let reply = Reply::new(move |output| address.tell_life(life, ModelMsg::Stepped(output)));
            resident.steps().step(batch, reply);
        }
        batcher.count(&self.args.profile.id);
        self.report();
    }

    pub(super) fn on_cancel(&mut self, key: &SequenceKey) {
        if let Some(arrival) = self.encoding.remove(key) {
            arrival.sink.finish();
            self.report();
        } else if let Phase::Loaded { batcher, .. } = &mut self.phase
            && batcher.cancel(key)
        {
            self.go_on(); // its place is free
        }
    }

    pub(super) fn on_ingress_lost(&mut self, ingress: &NodeId) {
        let mut lost: Vec<SequenceKey> = self.encoding.keys().filter(|(from, ..)| from == ingress).cloned().collect();
        if let Phase::Loaded { batcher, .. } = &self.phase {
            lost.extend(batcher.keys_of(ingress));
        }
        lost.iter().for_each(|key| self.on_cancel(key));
    }

    pub(super) fn on_credit(&mut self, key: &SequenceKey, until: u32) {
        if let Some(arrival) = self.encoding.get_mut(key) {
            arrival.generate.credit_until = arrival.generate.credit_until.max(until);
        } else if let Phase::Loaded { batcher, .. } = &mut self.phase {
            batcher.credit(key, until);
            self.go_on();
        }
    }

    pub(super) fn on_count_tokens(&self, request: GenerateRequest, reply: RpcReplyPort<Result<u32, RequestError>>) {
        let Phase::Loaded { resident, .. } = &self.phase else {
            return drop(reply.send(Err(self.not_loaded())));
        };
        if let Err(error) = check_kind(&self.args.profile.id, resident.facts.kind, ModelKind::Generate) {
            return drop(reply.send(Err(error)));
        }
        let codec = resident.codec.clone();
        let count = prepare::in_turn(request.prompt.text_len(), move || codec.token_count(&request.prompt));
        tokio::spawn(async move { drop(reply.send(count.await)) });
    }
}
