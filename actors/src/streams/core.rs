//! The life of one stream at its ingress: a plain struct that decides and does no I/O.
//!
//! ```text
//! Routing ──Routed──> Sent ──Accepted──> Reading ──Tokens──> Streaming ──Done──> ended
//!  │ ^ ^               │                    │                    │
//!  │ │ └── refusal, silence beyond the deadline, replica gone ───┘      (the journal goes to the next replica)
//!  v │
//! Parked: no replica now, but one may come back soon
//! ```
//! Each phase has a deadline: a router that does not answer is asked again, as its question may have been lost with a life of it.
//! Tokens carry the index of the first: duplicates are dropped, a gap counts as a lost replica. What a former attempt still says is ignored.

use plexus_types::{
    Delta, FinishReason, GenerateEvent, Journal, NodeId, ReplicaId, RequestError, RequestId, StreamEvent, TokenLogprobs, Usage,
};
use std::time::Duration;

use tokio::time::Instant;

use super::search::{RECOVERY_POLL, Search};
use crate::args::StreamsConfig;
use crate::messages::Attempt;
use crate::router::Routed;

/// A router answers from memory. One that does not within this is asked again: the question was lost with a life of it, or will be answered twice.
pub const ROUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// What happens to a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The router answered.
    Routed(Routed),
    /// A replica said something, in this attempt.
    Replica(Attempt, StreamEvent),
    /// A node went away, or the link to it.
    NodeLost(NodeId),
    /// The order could not be handed to the replica.
    NotSent(Attempt, String),
    /// The client took tokens.
    Consumed(u32),
    /// What it waits for may be there now.
    Retry,
    /// Time passed.
    Clock,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the router for a replica other than those in `tried`.
    AskRouter,
    /// Send the journal to the replica.
    Send {
        /// To whom.
        replica: ReplicaId,
        /// In which attempt.
        attempt: Attempt,
        /// Tokens with an index below this may be sent.
        credit_until: u32,
    },
    /// Tell the replica that nothing more is wanted.
    Cancel {
        /// Whom.
        replica: ReplicaId,
        /// In which attempt.
        attempt: Attempt,
    },
    /// Let the replica send on.
    Credit {
        /// Whom.
        replica: ReplicaId,
        /// In which attempt.
        attempt: Attempt,
        /// Tokens with an index below this may be sent.
        until: u32,
    },
    /// Hand this to the client.
    Deliver(GenerateEvent),
    /// The stream has ended: forget it.
    End,
}

/// One stream at its ingress.
#[derive(Debug)]
pub struct StreamCore {
    /// Which request.
    pub id: RequestId,
    /// All that is needed to continue it elsewhere.
    pub journal: Journal,
    /// What it has tried, and how long it waits.
    pub search: Search,
    /// Why the router chose the replica, in a line for the client.
    pub route: String,
    phase: Phase,
    attempt: Attempt,
    started: bool,
    /// Tokens handed to the client's channel and not yet taken from it.
    unread_tokens: u32,
    /// Tokens whose text is still incomplete.
    textless_tokens: u32,
    granted_until: u32,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// The router is asked, and answers by `until`.
    Routing {
        until: Instant,
    },
    /// No replica can serve it for the moment: the router is asked again at `until`.
    Parked {
        until: Instant,
    },
    /// Sent to the replica, which must accept by `until`; or accepted, and the next token must come by `until`.
    With {
        replica: ReplicaId,
        stage: Stage,
        until: Instant,
    },
    Ended,
}

/// How far the replica has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The order is on its way.
    Sent,
    /// The replica has the prompt and has not sent a token yet.
    Reading,
    /// Tokens are coming.
    Streaming,
}

impl StreamCore {
    /// A stream that has no replica yet. Its first effect is [`Effect::AskRouter`].
    pub fn new(id: RequestId, journal: Journal, now: Instant) -> Self {
        Self {
            id,
            journal,
            search: Search::default(),
            route: String::new(),
            phase: routing(now),
            attempt: Attempt(0),
            started: false,
            unread_tokens: 0,
            textless_tokens: 0,
            granted_until: 0,
        }
    }

    /// Does it wait for a replica?
    pub fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Parked { .. })
    }

    /// The replica that has the stream now, and how far it has come.
    pub fn replica(&self) -> Option<(&ReplicaId, Stage)> {
        match &self.phase {
            Phase::With { replica, stage, .. } => Some((replica, *stage)),
            Phase::Routing { .. } | Phase::Parked { .. } | Phase::Ended => None,
        }
    }

    /// The attempt under way.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// When [`Event::Clock`] is next due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Routing { until } | Phase::With { until, .. } | Phase::Parked { until } => Some(*until),
            Phase::Ended => None,
        }
    }

    /// What ends the stream from the client's side: the replica is told, nothing is delivered.
    pub fn abandon(&mut self) -> Option<Effect> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::With { replica, .. } => Some(Effect::Cancel { replica, attempt: self.attempt }),
            Phase::Routing { .. } | Phase::Parked { .. } | Phase::Ended => None,
        }
    }

    /// Decides.
    pub fn on_event(&mut self, event: Event, config: &StreamsConfig, now: Instant) -> Vec<Effect> {
        match event {
            Event::Routed(Routed::To(replica)) if self.is_routing() => self.send_to(replica, config, now),
            Event::Routed(Routed::Wait(error)) if self.is_routing() => {
                let waits = self.search.on_wait(error, config.load_timeout, now);
                self.parked(waits, now)
            }
            Event::Routed(Routed::Refused(error)) if self.is_routing() => {
                let waits = self.search.on_refused(error, now);
                self.parked(waits, now)
            }
            Event::Replica(attempt, event) if attempt == self.attempt => self.on_replica(event, config, now),
            Event::NotSent(attempt, why) if attempt == self.attempt => self.next_replica(RequestError::Lost { message: why }, config, now),
            Event::NodeLost(node) if self.is_with(&node) => self.next_replica(
                RequestError::Lost { message: format!("the node '{}' that served the request is gone", node.name) },
                config,
                now,
            ),
            Event::Consumed(tokens) => self.on_consumed(tokens, config),
            Event::Retry if self.is_parked() => self.ask_again(now),
            Event::Clock => self.on_clock(config, now),
            Event::Routed(_) | Event::Replica(..) | Event::NotSent(..) | Event::NodeLost(_) | Event::Retry => Vec::new(), // of a former attempt
        }
    }

    fn is_routing(&self) -> bool {
        matches!(self.phase, Phase::Routing { .. })
    }

    fn is_with(&self, node: &NodeId) -> bool {
        self.replica().is_some_and(|(replica, _)| replica.node == *node)
    }

    fn n_sampled(&self) -> u32 {
        self.journal.sampled_ids.len() as u32
    }

    fn send_to(&mut self, replica: ReplicaId, config: &StreamsConfig, now: Instant) -> Vec<Effect> {
        self.attempt = Attempt(self.attempt.0 + 1);
        self.granted_until = self.credit_until(config);
        self.phase = Phase::With { replica: replica.clone(), stage: Stage::Sent, until: now + config.accept_timeout };
        vec![Effect::Send { replica, attempt: self.attempt, credit_until: self.granted_until }]
    }

    /// No replica is left, or none yet.
    fn parked(&mut self, waits: Result<(), RequestError>, now: Instant) -> Vec<Effect> {
        match waits {
            Ok(()) => {
                self.phase = Phase::Parked { until: now + RECOVERY_POLL };
                Vec::new()
            }
            Err(error) => self.fail(error),
        }
    }

    /// The router has not answered. Whichever answer comes first then counts.
    fn on_no_route(&mut self, now: Instant) -> Vec<Effect> {
        let error = RequestError::soon("the router of this node does not answer");
        match self.search.on_no_route(error, now) {
            Ok(()) => {
                self.phase = routing(now);
                vec![Effect::AskRouter]
            }
            Err(error) => self.fail(error),
        }
    }

    fn ask_again(&mut self, now: Instant) -> Vec<Effect> {
        self.search.on_waited();
        self.phase = routing(now);
        vec![Effect::AskRouter]
    }

    fn fail(&mut self, error: RequestError) -> Vec<Effect> {
        self.phase = Phase::Ended;
        vec![Effect::Deliver(GenerateEvent::Failed(error)), Effect::End]
    }

    /// The replica is given up; the journal goes elsewhere, if it may.
    fn next_replica(&mut self, error: RequestError, config: &StreamsConfig, now: Instant) -> Vec<Effect> {
        let Phase::With { replica, stage, .. } = &self.phase else { return Vec::new() };
        let (replica, stage) = (replica.clone(), *stage);
        self.phase = routing(now);
        let cancel = Effect::Cancel { replica: replica.clone(), attempt: self.attempt };
        let mut effects = vec![cancel];
        match self.search.on_failed(replica, error, stage == Stage::Streaming, config.attempts_max) {
            Ok(()) => effects.push(Effect::AskRouter),
            Err(error) => effects.extend(self.fail(error)),
        }
        effects
    }

    fn on_replica(&mut self, event: StreamEvent, config: &StreamsConfig, now: Instant) -> Vec<Effect> {
        let Phase::With { replica, stage, until } = &mut self.phase else { return Vec::new() };
        match event {
            StreamEvent::Accepted { prompt_ids } if prompt_ids.is_empty() && self.journal.prompt_ids.is_empty() => {
                // It is there and its prompt is being read; or else its acceptance was lost on the way, and tokens come before the next time is up.
                if *stage == Stage::Sent {
                    (*stage, *until) = (Stage::Reading, now + config.first_token_timeout);
                }
                Vec::new()
            }
            StreamEvent::Accepted { prompt_ids } => {
                *stage = Stage::Reading;
                *until = now + config.first_token_timeout;
                let node = replica.node.name.clone();
                if self.journal.prompt_ids.is_empty() {
                    self.journal.prompt_ids = prompt_ids;
                }
                if std::mem::replace(&mut self.started, true) {
                    return Vec::new();
                }
                let prompt_tokens = self.journal.prompt_ids.len() as u32;
                let (route, cold_start) = (self.route.clone(), self.search.is_cold_start());
                vec![Effect::Deliver(GenerateEvent::Started { prompt_tokens, node, route, cold_start })]
            }
            StreamEvent::Tokens { .. } | StreamEvent::Done { .. } if !self.started => {
                let message = "the replica's acceptance was lost on the way".to_owned();
                self.next_replica(RequestError::Lost { message }, config, now)
            }
            StreamEvent::Tokens { index, ids, deltas, logprobs } => {
                *stage = Stage::Streaming;
                *until = now + config.token_timeout;
                let expected = self.n_sampled();
                if index > expected {
                    return self.next_replica(gap(expected, index), config, now);
                }
                if index < expected {
                    return Vec::new(); // a duplicate
                }
                self.on_tokens(ids, deltas, logprobs, config)
            }
            StreamEvent::Done { last_index, reason, usage } => {
                if last_index != self.n_sampled() {
                    return self.next_replica(gap(self.n_sampled(), last_index), config, now);
                }
                self.done(reason, usage)
            }
            StreamEvent::Failed(error) => self.next_replica(error, config, now),
        }
    }

    fn on_tokens(&mut self, ids: Vec<u32>, deltas: Vec<Delta>, logprobs: Vec<TokenLogprobs>, config: &StreamsConfig) -> Vec<Effect> {
        self.search.on_progress();
        self.textless_tokens += ids.len() as u32;
        self.journal.sampled_ids.extend(ids);
        let mut effects = Vec::new();
        if !deltas.is_empty() || !logprobs.is_empty() {
            let tokens = std::mem::take(&mut self.textless_tokens);
            self.unread_tokens += tokens;
            effects.push(Effect::Deliver(GenerateEvent::Tokens { deltas, tokens, logprobs }));
        }
        effects.extend(self.grant(config));
        effects
    }

    fn done(&mut self, reason: FinishReason, usage: Usage) -> Vec<Effect> {
        self.phase = Phase::Ended;
        vec![Effect::Deliver(GenerateEvent::Done { reason, usage }), Effect::End]
    }

    fn on_consumed(&mut self, tokens: u32, config: &StreamsConfig) -> Vec<Effect> {
        self.unread_tokens = self.unread_tokens.saturating_sub(tokens);
        self.grant(config).into_iter().collect()
    }

    /// How far the replica may go: a window beyond what the client has taken.
    fn credit_until(&self, config: &StreamsConfig) -> u32 {
        self.n_sampled() + config.window_tokens.saturating_sub(self.unread_tokens)
    }

    /// Grants in steps of a quarter window, so that credit costs little.
    fn grant(&mut self, config: &StreamsConfig) -> Option<Effect> {
        let until = self.credit_until(config);
        let Phase::With { replica, .. } = &self.phase else { return None };
        if until < self.granted_until + (config.window_tokens / 4).max(1) {
            return None;
        }
        self.granted_until = until;
        Some(Effect::Credit { replica: replica.clone(), attempt: self.attempt, until })
    }

    fn on_clock(&mut self, config: &StreamsConfig, now: Instant) -> Vec<Effect> {
        let (replica, stage, until) = match &mut self.phase {
            Phase::Routing { until } if now >= *until => return self.on_no_route(now),
            Phase::Parked { until } if now >= *until => return self.ask_again(now),
            Phase::Routing { .. } | Phase::Parked { .. } | Phase::Ended => return Vec::new(),
            Phase::With { replica, stage, until } => (replica, stage, until),
        };
        if *stage != Stage::Sent && self.unread_tokens >= (config.window_tokens / 2).max(1) {
            // The client is slow, not the replica, which may be waiting for credit; one that goes on where another stopped, too.
            *until = now + config.token_timeout;
            return Vec::new();
        }
        if now < *until {
            return Vec::new();
        }
        let (what, after) = match stage {
            Stage::Sent => ("did not accept the request", config.accept_timeout),
            Stage::Reading => ("sent no token", config.first_token_timeout),
            Stage::Streaming => ("fell silent", config.token_timeout),
        };
        let message = format!("the replica on '{}' {what} within {after:?}", replica.node.name);
        self.next_replica(RequestError::Lost { message }, config, now)
    }
}

/// The router is asked now.
fn routing(now: Instant) -> Phase {
    Phase::Routing { until: now + ROUTE_TIMEOUT }
}

fn gap(expected: u32, got: u32) -> RequestError {
    RequestError::Lost { message: format!("tokens {expected} to {got} of the answer were lost on the way") }
}

#[cfg(test)]
mod tests;
