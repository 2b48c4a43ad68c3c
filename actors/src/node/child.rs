//! A supervised actor, whatever its type: how to start it, to find it and to ask it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorCell, Message, RpcReplyPort, SpawnErr};

use crate::address::{Address, CallError};
use crate::inspect::Inspection;

/// What the supervisor does with a child.
#[async_trait]
pub(super) trait Child: Send + Sync {
    /// Starts a life of it, linked to the supervisor.
    async fn start(&self, supervisor: ActorCell) -> Result<ActorCell, SpawnErr>;
    /// Takes its address away until the next life.
    fn detach(&self);
    /// Messages that wait, and for how long without progress.
    fn mailbox(&self) -> (u64, Duration);
    /// Asks how it is.
    async fn inspect(&self, deadline: Duration) -> Result<Inspection, CallError>;
}

/// How a child says how it is: when asked by a message, or by counters that it shares.
pub(super) enum Ask<M> {
    Message(fn(RpcReplyPort<Inspection>) -> M),
    Shared(Box<dyn Fn() -> Inspection + Send + Sync>),
}

/// A child of actor type `A`, started with a clone of the same arguments each time.
pub(super) struct Kind<A: Actor> {
    pub(super) actor: fn() -> A,
    pub(super) args: A::Arguments,
    pub(super) address: Address<A::Msg>,
    pub(super) ask: Ask<A::Msg>,
}

impl<A: Actor> fmt::Debug for Kind<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kind")
    }
}

#[async_trait]
impl<A> Child for Kind<A>
where
    A: Actor,
    A::Msg: Message,
    A::Arguments: Clone + Sync,
{
    async fn start(&self, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
        let (actor, _task) = Actor::spawn_linked(None, (self.actor)(), self.args.clone(), supervisor).await?;
        self.address.attach(actor.clone());
        Ok(actor.get_cell())
    }

    fn detach(&self) {
        self.address.detach();
    }

    fn mailbox(&self) -> (u64, Duration) {
        (self.address.waiting(), self.address.stalled())
    }

    async fn inspect(&self, deadline: Duration) -> Result<Inspection, CallError> {
        match &self.ask {
            Ask::Message(question) => self.address.call(question, deadline).await,
            Ask::Shared(read) if self.address.actor().is_some() => Ok(read()),
            Ask::Shared(_) => Err(CallError::Gone),
        }
    }
}
