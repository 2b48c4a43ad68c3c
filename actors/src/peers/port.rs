//! The way to one clustered actor of a peer: its present life, and how much is under way to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use ractor::{ActorId, ActorRef, Message};

use crate::gateway::Carries;
use crate::peers::PeerError;

/// An actor of a peer, found by process group. Only the life behind our own session with that peer counts: any member could join a group.
pub(crate) struct Port<M> {
    group: String,
    session: u64,
    actor: RwLock<Option<ActorRef<M>>>,
    /// Lives found so far.
    lives: AtomicU64,
    sent: AtomicU64,
    acknowledged: AtomicU64,
}

impl<M: Message + Carries> Port<M> {
    pub(crate) fn new(group: String, session: u64) -> Self {
        Self {
            group,
            session,
            actor: RwLock::new(None),
            lives: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Looks the actor up. False if it is not visible.
    pub(crate) fn resolve(&self) -> bool {
        let members = ractor::pg::get_members(&self.group);
        let found = members.into_iter().find(|cell| matches!(cell.get_id(), ActorId::Remote { node_id, .. } if node_id == self.session));
        let visible = found.is_some();
        *self.actor.write().unwrap_or_else(PoisonError::into_inner) = found.map(ActorRef::from);
        visible
    }

    /// Sends a frame that is made once its position is known. When the actor's former life is gone, tries the next one.
    pub(crate) fn send(&self, cost: u64, frame: impl Fn(u64) -> Vec<u8>) -> Result<(), PeerError> {
        let position = self.sent.fetch_add(cost, Ordering::AcqRel);
        if self.try_send(frame(position)) || (self.resolve_next_life() && self.try_send(frame(position))) {
            return Ok(());
        }
        self.sent.fetch_sub(cost, Ordering::AcqRel);
        Err(PeerError::Gone)
    }

    /// Which life of the actor is spoken to.
    pub(crate) fn life(&self) -> u64 {
        self.lives.load(Ordering::Acquire)
    }

    /// Cost of what is under way.
    pub(crate) fn in_flight(&self) -> u64 {
        let acknowledged = self.acknowledged.load(Ordering::Acquire);
        self.sent.load(Ordering::Acquire).saturating_sub(acknowledged)
    }

    /// The actor has taken all up to `position`.
    pub(crate) fn acknowledge(&self, position: u64) {
        self.acknowledged.fetch_max(position, Ordering::AcqRel);
    }

    fn try_send(&self, frame: Vec<u8>) -> bool {
        let actor = self.actor.read().unwrap_or_else(PoisonError::into_inner).clone();
        actor.is_some_and(|actor| actor.cast(M::carry(frame)).is_ok())
    }

    /// What waited for the former life died with it, and nobody will acknowledge it.
    fn resolve_next_life(&self) -> bool {
        let visible = self.resolve();
        if visible {
            self.lives.fetch_add(1, Ordering::AcqRel);
            self.acknowledge(self.sent.load(Ordering::Acquire));
        }
        visible
    }
}
