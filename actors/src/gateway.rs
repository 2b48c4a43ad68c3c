//! The two actors of a node that other nodes speak to: the gateway takes questions, answers and notices, the token sink takes stream events.
//!
//! They are the only clustered actors: unnamed, long-lived, found by process group. All that reaches them is checked here before it goes on
//! to [`Inbound`]. What cannot be decoded is counted and dropped; a question that cannot be decoded is refused in words. A restart of either
//! loses the frames in its mailbox; peers find the next life by its group. Frames of peers do not pass through the actors' [`Address`]:
//! what waits is bounded by the senders' budgets and shows in [`Traffic::inspection`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, BytesConvertable, Message};
use ractor_cluster::RactorClusterMessage;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::address::Address;
use crate::inbound::Inbound;
use crate::inspect::Inspection;
use crate::messages::{Answer, Notice, Question, StreamNotice};
use crate::peers::{Part, Peer, Peers, Sink, group_of_gateway, group_of_tokens};
use crate::wire::{self, Envelope, Head, Outcome};

/// Bytes of a frame. Taking them from the link cannot fail; they are looked at in `handle`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire(pub Vec<u8>);

impl BytesConvertable for Wire {
    fn into_bytes(self) -> Vec<u8> {
        self.0
    }
    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// A message that is nothing but a frame.
pub(crate) trait Carries: Message {
    /// The message that carries this frame.
    fn carry(frame: Vec<u8>) -> Self;
}

/// What the gateway is sent. The names of variants are on the wire: never rename one.
#[derive(Debug, RactorClusterMessage)]
pub enum GatewayMsg {
    /// A frame of a peer.
    Frame(Wire),
}

/// What the token sink is sent. The names of variants are on the wire: never rename one.
#[derive(Debug, RactorClusterMessage)]
pub enum TokenSinkMsg {
    /// A frame of a peer.
    Frame(Wire),
}

impl Carries for GatewayMsg {
    fn carry(frame: Vec<u8>) -> Self {
        Self::Frame(Wire(frame))
    }
}

impl Carries for TokenSinkMsg {
    fn carry(frame: Vec<u8>) -> Self {
        Self::Frame(Wire(frame))
    }
}

/// What has passed through one of the two actors. Cheap to clone; all clones are one count.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    inner: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    bytes: AtomicU64,
    questions: AtomicU64,
    answers: AtomicU64,
    notices: AtomicU64,
    events: AtomicU64,
    malformed: AtomicU64,
    strangers: AtomicU64,
    expired: AtomicU64,
    busy: AtomicU64,
    parts_refused: AtomicU64,
}

impl Traffic {
    /// What the actor says of itself.
    pub fn inspection(&self) -> Inspection {
        let counts = &self.inner;
        let named = [
            ("frames", &counts.frames),
            ("bytes", &counts.bytes),
            ("questions", &counts.questions),
            ("answers", &counts.answers),
            ("notices", &counts.notices),
            ("events", &counts.events),
            ("malformed", &counts.malformed),
            ("strangers", &counts.strangers),
            ("expired", &counts.expired),
            ("busy", &counts.busy),
            ("parts_refused", &counts.parts_refused),
        ];
        let counters: BTreeMap<_, _> = named.into_iter().map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed))).collect();
        Inspection { state: "running".to_owned(), counters }
    }
}

/// What the gateway needs to start.
#[derive(Clone)]
pub struct GatewayArgs {
    /// Where it is reached.
    pub address: Address<GatewayMsg>,
    /// The table of peers.
    pub peers: Peers,
    /// Where it delivers.
    pub inbound: Arc<dyn Inbound>,
    /// What it counts.
    pub traffic: Traffic,
}

/// What the token sink needs to start.
#[derive(Clone)]
pub struct TokenSinkArgs {
    /// Where it is reached.
    pub address: Address<TokenSinkMsg>,
    /// The table of peers.
    pub peers: Peers,
    /// Where it delivers.
    pub inbound: Arc<dyn Inbound>,
    /// What it counts.
    pub traffic: Traffic,
}

impl std::fmt::Debug for GatewayArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayArgs").field("address", &self.address).field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for TokenSinkArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSinkArgs").field("address", &self.address).field("peers", &self.peers).finish_non_exhaustive()
    }
}

/// Takes questions, answers and notices of peers.
#[derive(Debug, Clone, Copy, Default)]
pub struct GatewayActor;

/// Takes stream events of peers.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenSinkActor;

impl Actor for GatewayActor {
    type Msg = GatewayMsg;
    type State = Receiver;
    type Arguments = GatewayArgs;

    async fn pre_start(&self, myself: ActorRef<GatewayMsg>, args: GatewayArgs) -> Result<Receiver, ActorProcessingErr> {
        ractor::pg::join(group_of_gateway(args.peers.me()), vec![myself.get_cell()]);
        Ok(Receiver { sink: Sink::Gateway, peers: args.peers, inbound: args.inbound, traffic: args.traffic })
    }

    async fn handle(&self, _: ActorRef<GatewayMsg>, message: GatewayMsg, receiver: &mut Receiver) -> Result<(), ActorProcessingErr> {
        let GatewayMsg::Frame(Wire(frame)) = message;
        receiver.on_frame(&frame);
        Ok(())
    }
}

impl Actor for TokenSinkActor {
    type Msg = TokenSinkMsg;
    type State = Receiver;
    type Arguments = TokenSinkArgs;

    async fn pre_start(&self, myself: ActorRef<TokenSinkMsg>, args: TokenSinkArgs) -> Result<Receiver, ActorProcessingErr> {
        ractor::pg::join(group_of_tokens(args.peers.me()), vec![myself.get_cell()]);
        Ok(Receiver { sink: Sink::Tokens, peers: args.peers, inbound: args.inbound, traffic: args.traffic })
    }

    async fn handle(&self, _: ActorRef<TokenSinkMsg>, message: TokenSinkMsg, receiver: &mut Receiver) -> Result<(), ActorProcessingErr> {
        let TokenSinkMsg::Frame(Wire(frame)) = message;
        receiver.on_frame(&frame);
        Ok(())
    }
}

/// State of either actor: checks frames and passes on what they say.
pub struct Receiver {
    sink: Sink,
    peers: Peers,
    inbound: Arc<dyn Inbound>,
    traffic: Traffic,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("sink", &self.sink).finish_non_exhaustive()
    }
}

impl Receiver {
    fn on_frame(&self, frame: &[u8]) {
        let counts = &self.traffic.inner;
        counts.frames.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let opened = wire::open_frame(frame).and_then(|(envelope, message)| Ok((envelope, wire::open_message(message)?)));
        match opened {
            Ok((_, (Head::Hello { from, pass }, _))) => {
                // Only whoever really is `from` can read the welcome: it goes over the link of that node.
                for peer in self.peers.linked_as(&from) {
                    peer.welcome(pass);
                }
            }
            Ok((_, (Head::Welcome { pass, echo }, _))) => self.on_welcome(pass, echo),
            Ok((envelope, (head, payload))) => match self.peers.by_pass(envelope.pass) {
                Some(peer) => self.on_message_of(&peer, envelope, frame.len(), head, payload),
                None => count(&counts.strangers),
            },
            Err(error) => {
                count(&counts.malformed);
                warn!(%error, "a frame of a peer is malformed");
            }
        }
    }

    /// The node that `echo` was given to shows itself, and gives us the pass to show to it.
    fn on_welcome(&self, pass: u64, echo: u64) {
        let Some(peer) = self.peers.by_pass(echo) else { return count(&self.traffic.inner.strangers) };
        if peer.keep_pass(pass) {
            peer.welcome(pass); // before all else, so that it knows us when our first frame comes
            self.peers.admit(&peer, &*self.inbound);
        }
    }

    fn on_message_of(&self, peer: &Peer, envelope: Envelope, len: usize, head: Head, payload: &[u8]) {
        let late = peer.take(self.sink, envelope, len as u64);
        let Head::Part { message, offset, total, ttl_ms } = head else { return self.on_message(peer, late, head, payload) };
        let ttl = Duration::from_millis(u64::from(ttl_ms));
        let part = peer.assembly(self.sink).add(message, offset, total, ttl, payload, Instant::now());
        match part {
            Part::Kept => {}
            Part::Refused => count(&self.traffic.inner.parts_refused),
            Part::Whole(whole) => match wire::open_message(&whole) {
                Ok((head, payload)) => self.on_message(peer, late, head, payload),
                Err(_) => count(&self.traffic.inner.malformed),
            },
        }
    }

    fn on_message(&self, peer: &Peer, late: Duration, head: Head, payload: &[u8]) {
        let counts = &self.traffic.inner;
        match head {
            Head::Ack { gateway, sink } => peer.acknowledged(gateway, sink),
            Head::Call { call, ttl_ms } => {
                count(&counts.questions);
                match Duration::from_millis(u64::from(ttl_ms)).checked_sub(late) {
                    Some(left) if !left.is_zero() => self.on_question(peer, call, left, payload),
                    _ => count(&counts.expired),
                }
            }
            Head::Reply { call, outcome } => {
                count(&counts.answers);
                if !peer.answered(call, outcome, payload.to_vec()) {
                    count(&counts.expired);
                }
            }
            Head::Forgo { call } => peer.forgo(call),
            Head::Notice => match wire::decode::<Notice>(payload) {
                Ok(notice) => {
                    count(&counts.notices);
                    self.inbound.notice(peer.id(), notice);
                }
                Err(error) => self.on_malformed(peer, &error),
            },
            Head::Events => match wire::decode::<Vec<StreamNotice>>(payload) {
                Ok(events) => {
                    counts.events.fetch_add(events.len() as u64, Ordering::Relaxed);
                    self.inbound.events(peer.id(), events);
                }
                Err(error) => self.on_malformed(peer, &error),
            },
            // A part of a part, or a greeting inside of one: nobody sends that.
            Head::Part { .. } | Head::Hello { .. } | Head::Welcome { .. } => count(&counts.malformed),
        }
    }

    fn on_malformed(&self, peer: &Peer, error: &wire::WireError) {
        count(&self.traffic.inner.malformed);
        warn!(peer = %peer.id(), %error, "a message of a peer is malformed");
    }

    fn on_question(&self, peer: &Peer, call: u64, left: Duration, payload: &[u8]) {
        let question = match wire::decode(payload) {
            Ok(Question::Ping) => {
                peer.send_ack();
                if let Ok(pong) = wire::encode(&Answer::Pong) {
                    peer.reply_now(call, Outcome::Answered, &pong);
                }
                return;
            }
            Ok(question) => question,
            Err(error) => {
                self.on_malformed(peer, &error);
                return peer.reply_now(call, Outcome::Malformed, &[]);
            }
        };
        let Some(mut answering) = peer.answering(call, &question) else {
            count(&self.traffic.inner.busy);
            return peer.reply_now(call, Outcome::Busy, &[]);
        };
        let (peer, inbound) = (peer.clone(), Arc::clone(&self.inbound));
        tokio::spawn(async move {
            let until = Instant::now() + left;
            let work = async {
                let answer = inbound.answer(peer.id(), question).await;
                match wire::encode(&answer) {
                    Ok(payload) => peer.reply(call, Outcome::Answered, &payload, until.saturating_duration_since(Instant::now())).await,
                    Err(_) => peer.reply(call, Outcome::Malformed, &[], left).await,
                }
            };
            tokio::select! {
                () = answering.forgone() => debug!(peer = %peer.id(), "nobody waits for an answer any more"),
                answered = tokio::time::timeout_at(until, work) => match answered {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(peer = %peer.id(), %error, "an answer was not delivered"),
                    Err(_elapsed) => debug!(peer = %peer.id(), "a question was not answered in time"),
                }
            }
        });
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
