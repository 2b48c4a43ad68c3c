//! How actors are spoken to: an address that outlives the actor behind it, counts what waits, and never waits without a deadline.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ractor::{ActorId, ActorRef, Message, RpcReplyPort};
use tokio::time::Instant;

/// Why a message did not reach its actor, or an answer did not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The actor is between two lives, or ended with the question in hand.
    #[error("the actor is gone")]
    Gone,
    /// The answer did not come in time; the question may still be worked on.
    #[error("the actor did not answer within {0:?}")]
    Late(Duration),
}

/// The address of an actor. Cheap to clone; stays valid over restarts, because the supervisor puts each new life behind it.
pub struct Address<M> {
    inner: Arc<Inner<M>>,
}

struct Inner<M> {
    actor: RwLock<Option<ActorRef<M>>>,
    gauge: Gauge,
}

/// Messages sent to an actor and taken by it.
struct Gauge {
    epoch: Instant,
    sent: AtomicU64,
    taken: AtomicU64,
    /// Milliseconds since `epoch` of the last moment at which the mailbox was empty or a message was taken.
    progress_ms: AtomicU64,
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<M> fmt::Debug for Address<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl<M> Default for Address<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Address<M> {
    /// An address with nobody behind it yet.
    pub fn new() -> Self {
        let gauge = Gauge { epoch: Instant::now(), sent: AtomicU64::new(0), taken: AtomicU64::new(0), progress_ms: AtomicU64::new(0) };
        Self { inner: Arc::new(Inner { actor: RwLock::new(None), gauge }) }
    }

    /// Messages in the mailbox.
    pub fn waiting(&self) -> u64 {
        let gauge = &self.inner.gauge;
        let taken = gauge.taken.load(Ordering::Acquire);
        gauge.sent.load(Ordering::Acquire).saturating_sub(taken)
    }

    /// How long the mailbox has made no progress while messages wait; zero when none do.
    pub fn stalled(&self) -> Duration {
        if self.waiting() == 0 {
            return Duration::ZERO;
        }
        let gauge = &self.inner.gauge;
        let now_ms = gauge.epoch.elapsed().as_millis() as u64;
        Duration::from_millis(now_ms.saturating_sub(gauge.progress_ms.load(Ordering::Acquire)))
    }

    /// To be called by the actor at the head of `handle`, once for each message.
    pub fn taken(&self) {
        let gauge = &self.inner.gauge;
        gauge.taken.fetch_add(1, Ordering::AcqRel);
        gauge.progress_ms.store(gauge.epoch.elapsed().as_millis() as u64, Ordering::Release);
    }
}

impl<M: Message> Address<M> {
    /// Puts a new life of the actor behind the address. Messages that waited for the former one are lost with it. Actors that speak to
    /// themselves attach in `pre_start`; the supervisor attaches in any case, which then changes nothing.
    pub fn attach(&self, actor: ActorRef<M>) {
        let mut current = self.inner.actor.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|known| known.get_id() == actor.get_id()) {
            return;
        }
        let gauge = &self.inner.gauge;
        gauge.taken.store(gauge.sent.load(Ordering::Acquire), Ordering::Release);
        *current = Some(actor);
    }

    /// Takes away the actor behind the address: messages fail until the next [`Self::attach`].
    pub fn detach(&self) {
        *self.inner.actor.write().unwrap_or_else(PoisonError::into_inner) = None;
        let gauge = &self.inner.gauge;
        gauge.taken.store(gauge.sent.load(Ordering::Acquire), Ordering::Release);
    }

    /// The present life of the actor.
    pub fn actor(&self) -> Option<ActorRef<M>> {
        self.inner.actor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a message. [`CallError::Gone`] if nobody is there to take it.
    pub fn cast(&self, message: M) -> Result<(), CallError> {
        let actor = self.actor().ok_or(CallError::Gone)?;
        let gauge = &self.inner.gauge;
        if self.waiting() == 0 {
            gauge.progress_ms.store(gauge.epoch.elapsed().as_millis() as u64, Ordering::Release);
        }
        gauge.sent.fetch_add(1, Ordering::AcqRel);
        actor.cast(message).map_err(|_| {
            gauge.taken.fetch_add(1, Ordering::AcqRel);
            CallError::Gone
        })
    }

    /// Sends a message to an actor whose absence needs no answer: whoever restarts it, tells it anew what it must know.
    pub fn tell(&self, message: M) {
        let _gone = self.cast(message);
    }

    /// Sends a message to one life of the actor only: a later life never hears it.
    pub fn tell_life(&self, life: ActorId, message: M) {
        if self.actor().is_some_and(|actor| actor.get_id() == life) {
            self.tell(message);
        }
    }

    /// Sends a message to the present life of the actor after `delay`, unless that life is over by then.
    pub fn tell_after(&self, delay: Duration, message: M) {
        let Some(life) = self.actor().map(|actor| actor.get_id()) else { return };
        let address = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            address.tell_life(life, message);
        });
    }

    /// Asks, and waits at most `deadline` for the answer.
    pub async fn call<T: Send + 'static>(&self, question: impl FnOnce(RpcReplyPort<T>) -> M, deadline: Duration) -> Result<T, CallError> {
        let (reply, answer) = ractor::concurrency::oneshot();
        self.cast(question(reply.into()))?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_dropped)) => Err(CallError::Gone),
            Err(_elapsed) => Err(CallError::Late(deadline)),
        }
    }
}
