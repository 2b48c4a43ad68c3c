//! One peer: what is said to it, and what it says, counted on both sides.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use plexus_types::NodeId;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;

use super::answering::{Answering, Answers};
use super::lateness::Lateness;
use super::port::Port;
use super::{Assembly, PeerError, Sink, group_of_gateway, group_of_tokens, lock};
use crate::gateway::{GatewayMsg, TokenSinkMsg};
use crate::messages::{Answer, Notice, Question, StreamNotice};
use crate::wire::{self, Envelope, Head, MESSAGE_MAX, Outcome, PART_MAX};

/// Most bytes sent to a peer and not yet taken by its actors. Half a second of a 16 MB/s link: more would only hide that the peer is stuck.
pub const BUDGET: u64 = 8 << 20;
/// What a frame costs of the budget beside its bytes: handling it takes as long as reading so many. Without it a budget full of tiny frames
/// would keep a ping waiting for longer than a peer may be silent.
const FRAME_COST: u64 = 480;
/// Share of [`BUDGET`] that long questions and answers may fill; the rest stays free for notices, events and short questions.
const BULK_BUDGET: u64 = 4 << 20;
/// Bytes taken since the last acknowledgement that are worth another one: a sender with a full budget hears from us 32 times.
const ACK_EVERY: u64 = 256 << 10;
/// How long the receiver keeps the parts of an incomplete notice or batch of events; they are sent in one go.
const PARTS_TTL: Duration = Duration::from_secs(10);

/// A node to whom a link stands, or stood: when it is gone, every method says so. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<PeerInner>,
}

struct PeerInner {
    id: NodeId,
    epoch: Instant,
    gateway: Port<GatewayMsg>,
    tokens: Port<TokenSinkMsg>,

    // Who is who.
    /// What the peer shows us.
    given_pass: u64,
    /// What we show the peer; 0 until it gave us one.
    shown_pass: AtomicU64,
    closed: AtomicBool,

    // What we send.
    calls: Mutex<HashMap<u64, Waiting>>,
    next_number: AtomicU64,
    /// Wakes those who wait for room.
    acknowledged: Notify,
    /// Held by the one long question or answer that is being sent.
    bulk: Semaphore,
    /// Held while a long notice or batch of events is sent, so that the peer never puts two of a kind together at the same time.
    one_go: Mutex<()>,

    // What we take; by [`Sink`].
    answers: Answers,
    /// Where the peer's own count stood after the last frame taken: the frames that were lost with an actor of ours are in it too.
    reached: [AtomicU64; 2],
    /// Sum of `reached` when it was last acknowledged.
    told: AtomicU64,
    lateness: Mutex<Lateness>,
    assembly: [Mutex<Assembly>; 2],
}

/// Somebody waits for an answer.
struct Waiting {
    answer: oneshot::Sender<(Outcome, Vec<u8>)>,
    /// The life of the peer's gateway that has the question; `None` while it is being sent.
    asked: Option<u64>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.inner.id).field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Peer {
    /// One whose link is ractor session number `session`, to show us `given_pass`. Times are counted from `epoch`.
    pub(super) fn new(id: NodeId, session: u64, epoch: Instant, given_pass: u64) -> Self {
        let inner = PeerInner {
            gateway: Port::new(group_of_gateway(&id), session),
            tokens: Port::new(group_of_tokens(&id), session),
            id,
            epoch,
            given_pass,
            shown_pass: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            calls: Mutex::default(),
            next_number: AtomicU64::new(1),
            acknowledged: Notify::new(),
            bulk: Semaphore::new(1),
            one_go: Mutex::default(),
            answers: Answers::new(),
            reached: [AtomicU64::new(0), AtomicU64::new(0)],
            told: AtomicU64::new(0),
            lateness: Mutex::default(),
            assembly: [Mutex::default(), Mutex::default()],
        };
        Self { inner: Arc::new(inner) }
    }

    /// What it is to show us.
    pub(crate) fn given_pass(&self) -> u64 {
        self.inner.given_pass
    }

    /// Are both the same link to the same node?
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Who it is.
    pub fn id(&self) -> &NodeId {
        &self.inner.id
    }

    /// Asks, and waits at most `deadline` for the answer. The peer drops the question if it comes to it later than that.
    pub async fn ask(&self, question: Question, deadline: Duration) -> Result<Answer, PeerError> {
        let urgent = question == Question::Ping;
        let payload = wire::encode(&question).map_err(|_| PeerError::Malformed)?;
        let (call, answer) = self.open_call();
        let _closes = CloseCall { peer: self, call };
        let head = Head::Call { call, ttl_ms: millis(deadline) };
        let work = async {
            if urgent {
                self.post(Sink::Gateway, &wire::message(&head, &payload).map_err(|_| PeerError::Malformed)?, deadline)?;
                self.give_up_what_died();
            } else if payload.len() <= PART_MAX {
                self.send_now(Sink::Gateway, &head, &payload)?;
            } else {
                self.send_with_patience(&head, &payload, deadline).await?;
            }
            if let Some(waiting) = lock(&self.inner.calls).get_mut(&call) {
                waiting.asked = Some(self.inner.gateway.life());
            }
            answer.await.map_err(|_| PeerError::Gone)
        };
        let (outcome, payload) = tokio::time::timeout(deadline, work).await.map_err(|_| PeerError::Late)??;
        match outcome {
            Outcome::Answered => wire::decode(&payload).map_err(|_| PeerError::Malformed),
            Outcome::Busy => Err(PeerError::Congested),
            Outcome::Malformed => Err(PeerError::Malformed),
            Outcome::TooLarge => Err(PeerError::TooLarge),
        }
    }

    /// Notifies. Order is kept.
    pub fn notify(&self, notice: Notice) -> Result<(), PeerError> {
        let payload = wire::encode(&notice).map_err(|_| PeerError::Malformed)?;
        if matches!(notice, Notice::Cancel { .. } | Notice::Credit { .. } | Notice::Forget) {
            // Never refused: they are small and few, and a peer that missed one would hold a place for a stream that is over or stands still.
            let message = wire::message(&Head::Notice, &payload).map_err(|_| PeerError::Malformed)?;
            return self.post(Sink::Gateway, &message, PARTS_TTL);
        }
        self.send_now(Sink::Gateway, &Head::Notice, &payload)
    }

    /// Sends events of streams. Order is kept.
    pub fn send_events(&self, events: Vec<StreamNotice>) -> Result<(), PeerError> {
        let payload = wire::encode(&events).map_err(|_| PeerError::Malformed)?;
        self.send_now(Sink::Tokens, &Head::Events, &payload)
    }

    /// Bytes sent and not yet taken by the peer's actors, with something for each frame.
    pub fn in_flight(&self) -> u64 {
        self.inner.gateway.in_flight() + self.inner.tokens.in_flight()
    }

    /// Has the peer shown who it is?
    pub(crate) fn is_greeted(&self) -> bool {
        self.inner.shown_pass.load(Ordering::Acquire) != 0
    }

    /// Are the peer's gateway and token sink visible?
    pub(crate) fn resolve(&self) -> bool {
        self.inner.gateway.resolve() && self.inner.tokens.resolve()
    }

    /// Gives the peer its pass.
    pub(crate) fn greet(&self, me: &NodeId) {
        self.post_head(&Head::Hello { from: me.clone(), pass: self.inner.given_pass });
    }

    /// Returns `echo`, the pass that the peer claims to have given, with its own.
    pub(crate) fn welcome(&self, echo: u64) {
        self.post_head(&Head::Welcome { pass: self.inner.given_pass, echo });
    }

    /// Keeps the pass that the peer gave. True the first time.
    pub(crate) fn keep_pass(&self, pass: u64) -> bool {
        self.inner.shown_pass.compare_exchange(0, pass, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The peer has taken so many bytes.
    pub(crate) fn acknowledged(&self, gateway: u64, tokens: u64) {
        self.inner.gateway.acknowledge(gateway);
        self.inner.tokens.acknowledge(tokens);
        self.inner.acknowledged.notify_waiters();
    }

    /// Counts a frame of the peer as taken, tells the peer if it is time to, and says how late the frame is.
    pub(crate) fn take(&self, sink: Sink, envelope: Envelope, len: u64) -> Duration {
        let at = sink as usize;
        self.inner.reached[at].fetch_max(envelope.position.saturating_add(len + FRAME_COST), Ordering::AcqRel);
        if self.reached().saturating_sub(self.inner.told.load(Ordering::Acquire)) >= ACK_EVERY {
            self.send_ack();
        }
        let now_ms = millis64(self.inner.epoch.elapsed());
        lock(&self.inner.lateness).of(envelope.clock_ms, now_ms)
    }

    /// Tells the peer what we have taken.
    pub(crate) fn send_ack(&self) {
        let [gateway, sink] = [0, 1].map(|at| self.inner.reached[at].load(Ordering::Acquire));
        self.inner.told.store(gateway.saturating_add(sink), Ordering::Release);
        self.post_head(&Head::Ack { gateway, sink });
    }

    /// Puts the parts of a message of the peer together.
    pub(crate) fn assembly(&self, sink: Sink) -> MutexGuard<'_, Assembly> {
        lock(&self.inner.assembly[sink as usize])
    }

    /// A place to answer a question of the peer; nothing if it has asked too much at once.
    pub(crate) fn answering(&self, call: u64, question: &Question) -> Option<Answering> {
        let answering = self.inner.answers.begin(call, question);
        if self.inner.closed.load(Ordering::Acquire) {
            self.inner.answers.forgo_all(); // the link ended while it was asked
        }
        answering
    }

    /// The peer does not wait for the answer to this question any more.
    pub(crate) fn forgo(&self, call: u64) {
        self.inner.answers.forgo(call);
    }

    /// Brings an answer of the peer to whoever asked. False if nobody waits for it any more.
    pub(crate) fn answered(&self, call: u64, outcome: Outcome, payload: Vec<u8>) -> bool {
        let waiting = lock(&self.inner.calls).remove(&call);
        waiting.is_some_and(|waiting| waiting.answer.send((outcome, payload)).is_ok())
    }

    /// Replies to a question of the peer. Waits for room, up to `patience`, because a refused answer would only look late.
    pub(crate) async fn reply(&self, call: u64, outcome: Outcome, payload: &[u8], patience: Duration) -> Result<(), PeerError> {
        let (outcome, payload) = if payload.len() > MESSAGE_MAX { (Outcome::TooLarge, &[][..]) } else { (outcome, payload) };
        self.send_with_patience(&Head::Reply { call, outcome }, payload, patience).await
    }

    /// Replies at once with something short, whatever is under way.
    pub(crate) fn reply_now(&self, call: u64, outcome: Outcome, payload: &[u8]) {
        if let Ok(message) = wire::message(&Head::Reply { call, outcome }, payload) {
            let _gone = self.post(Sink::Gateway, &message, PARTS_TTL);
        }
    }

    /// Sends if the budget allows it now.
    fn send_now(&self, sink: Sink, head: &Head, payload: &[u8]) -> Result<(), PeerError> {
        let message = wire::message(head, payload).map_err(|_| PeerError::Malformed)?;
        let cost = frames_cost(message.len());
        if cost > BUDGET {
            return Err(PeerError::TooLarge);
        }
        if self.in_flight() + cost > BUDGET {
            return Err(PeerError::Congested);
        }
        if message.len() <= PART_MAX {
            return self.post(sink, &message, PARTS_TTL);
        }
        let _alone = lock(&self.inner.one_go);
        self.post(sink, &message, PARTS_TTL)
    }

    /// Sends as the budget allows it, part by part.
    async fn send_with_patience(&self, head: &Head, payload: &[u8], patience: Duration) -> Result<(), PeerError> {
        if payload.len() > MESSAGE_MAX {
            return Err(PeerError::TooLarge);
        }
        let message = wire::message(head, payload).map_err(|_| PeerError::Malformed)?;
        if message.len() <= PART_MAX {
            self.room(frames_cost(message.len()), BUDGET).await?;
            return self.post(Sink::Gateway, &message, patience);
        }
        let _alone = self.inner.bulk.acquire().await.map_err(|_| PeerError::Gone)?;
        for part in self.parts(&message, patience) {
            let part = part?;
            self.room(frames_cost(part.len()), BULK_BUDGET).await?;
            self.post_frame(Sink::Gateway, &part)?;
        }
        Ok(())
    }

    /// Waits until `cost` more bytes keep what is in flight within `limit`.
    async fn room(&self, cost: u64, limit: u64) -> Result<(), PeerError> {
        loop {
            let acknowledged = self.inner.acknowledged.notified();
            tokio::pin!(acknowledged);
            acknowledged.as_mut().enable(); // from here on no acknowledgement is missed
            if self.inner.closed.load(Ordering::Acquire) {
                return Err(PeerError::Gone);
            }
            if self.in_flight() + cost <= limit {
                return Ok(());
            }
            acknowledged.await;
        }
    }

    fn post_head(&self, head: &Head) {
        if let Ok(message) = wire::message(head, &[]) {
            let _gone = self.post(Sink::Gateway, &message, PARTS_TTL);
        }
    }

    /// Sends a message in as many frames as it takes, whatever is under way.
    fn post(&self, sink: Sink, message: &[u8], ttl: Duration) -> Result<(), PeerError> {
        if message.len() <= PART_MAX {
            return self.post_frame(sink, message);
        }
        for part in self.parts(message, ttl) {
            self.post_frame(sink, &part?)?;
        }
        Ok(())
    }

    /// Cuts a message into messages that each fit a frame.
    fn parts<'a>(&self, message: &'a [u8], ttl: Duration) -> impl Iterator<Item = Result<Vec<u8>, PeerError>> + use<'a> {
        let number = self.inner.next_number.fetch_add(1, Ordering::Relaxed);
        let total = message.len() as u32; // at most MESSAGE_MAX and a head
        let ttl_ms = millis(ttl);
        message.chunks(PART_MAX).enumerate().map(move |(at, part)| {
            let head = Head::Part { message: number, offset: (at * PART_MAX) as u32, total, ttl_ms };
            wire::message(&head, part).map_err(|_| PeerError::Malformed)
        })
    }

    fn post_frame(&self, sink: Sink, message: &[u8]) -> Result<(), PeerError> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(PeerError::Gone);
        }
        let pass = self.inner.shown_pass.load(Ordering::Acquire);
        let frame = |position| {
            let clock_ms = millis64(self.inner.epoch.elapsed());
            wire::frame(Envelope { pass, position, clock_ms }, message)
        };
        let cost = frames_cost(message.len());
        match sink {
            Sink::Gateway => self.inner.gateway.send(cost, frame),
            Sink::Tokens => self.inner.tokens.send(cost, frame),
        }
    }

    fn reached(&self) -> u64 {
        self.inner.reached.iter().fold(0, |sum, reached| sum.saturating_add(reached.load(Ordering::Acquire)))
    }

    fn open_call(&self) -> (u64, oneshot::Receiver<(Outcome, Vec<u8>)>) {
        let (answer, waiting) = oneshot::channel();
        let call = self.inner.next_number.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.calls).insert(call, Waiting { answer, asked: None });
        if self.inner.closed.load(Ordering::Acquire) {
            lock(&self.inner.calls).clear(); // the link ended between our caller's look and ours
        }
        (call, waiting)
    }

    /// Questions that waited in a former life of the peer's gateway died with it: who asked hears so now, rather than at the deadline.
    /// Looked at with each ping, which finds the next life by itself.
    fn give_up_what_died(&self) {
        let life = self.inner.gateway.life();
        lock(&self.inner.calls).retain(|_, waiting| waiting.asked.is_none_or(|asked| asked == life));
    }

    pub(super) fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        lock(&self.inner.calls).clear();
        self.inner.answers.forgo_all();
        self.inner.acknowledged.notify_waiters();
        self.inner.bulk.close();
    }
}

/// Forgets a question when nobody waits for its answer any more, and tells the peer if it may still be at it.
struct CloseCall<'a> {
    peer: &'a Peer,
    call: u64,
}

impl Drop for CloseCall<'_> {
    fn drop(&mut self) {
        let unanswered = lock(&self.peer.inner.calls).remove(&self.call);
        if unanswered.is_some_and(|waiting| waiting.asked.is_some()) {
            self.peer.post_head(&Head::Forgo { call: self.call });
        }
    }
}

/// What a message of `len` bytes costs of the budget, all its frames together; a little more than exact for a split one.
fn frames_cost(len: usize) -> u64 {
    // A part has a head of its own, of 21 bytes at most.
    let (frames, heads) = if len <= PART_MAX + 32 { (1, 0) } else { (len.div_ceil(PART_MAX) as u64, 32) };
    len as u64 + frames * (wire::frame_len(0) + heads + FRAME_COST)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn millis64(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
