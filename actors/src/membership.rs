//! Who is in the cluster: gossip, sealed with the cluster's secret, on a thread and runtime of its own.
//!
//! The actor is a shell: the thread runs chitchat, turns what it sees into [`ClusterChange`](crate::inbound::ClusterChange)s by a pure
//! function and hands them to [`Inbound`]. A thread of its own, because a node whose workers are busy computing must not be taken for dead.
//! Supervised by the node; supervises the thread. A restart, of the actor or of chitchat alone, keeps who this node is: each start of
//! chitchat gossips under a generation of its own, and the node's generation travels as a fact. What gossip says is a hint: who a node
//! really is, its certificate says (see [`crate::link`]).

mod gossip;
mod seal;
mod timing;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};

use plexus_types::{NodeFacts, NodeId, NodeName};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::sync::mpsc;
use tracing::info;

use crate::address::Address;
use crate::inbound::Inbound;
use crate::inspect::Inspection;
use crate::membership::gossip::{Command, GossipThread, Status};
use crate::secret::ClusterSecret;

pub use timing::NetTiming;
pub use view::FactsError;

/// The nodes that gossip counts as living, without this one. Cheap to clone; all clones are one list, which outlives restarts.
#[derive(Clone, Default)]
pub struct KnownNodes {
    inner: Arc<Mutex<BTreeMap<NodeName, NodeFacts>>>,
}

impl fmt::Debug for KnownNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.list().iter().map(|facts| &facts.id)).finish()
    }
}

impl KnownNodes {
    /// All of them, by name.
    pub fn list(&self) -> Vec<NodeFacts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Their names.
    pub fn names(&self) -> BTreeSet<NodeName> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn replace(&self, nodes: BTreeMap<NodeName, NodeFacts>) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

/// What membership needs to start.
#[derive(Clone)]
pub struct MembershipArgs {
    /// Where it is reached.
    pub address: Address<MembershipMsg>,
    /// Who this node is and where it can be reached.
    pub facts: NodeFacts,
    /// Name of the cluster: nodes of another name are not heard.
    pub cluster: String,
    /// The secret that all nodes of the cluster share.
    pub secret: ClusterSecret,
    /// The socket to gossip on, kept over restarts.
    pub socket: Arc<UdpSocket>,
    /// Where to look for other nodes at first: `host:port` of their gossip. Names are looked up again while this node is alone.
    pub seeds: Vec<String>,
    /// Intervals and deadlines.
    pub timing: NetTiming,
    /// The nodes that are known; empty at first.
    pub known: KnownNodes,
    /// Where changes are told.
    pub inbound: Arc<dyn Inbound>,
    /// Called, on the gossip thread, each time that a newer life of this node's own name is first seen: this node should end.
    pub on_replaced: Arc<dyn Fn(NodeId) + Send + Sync>,
}

impl fmt::Debug for MembershipArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembershipArgs").field("facts", &self.facts).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What membership is sent.
#[derive(Debug, RactorMessage)]
pub enum MembershipMsg {
    /// Tell the others that this node goes, so that they drop it at once. Answered when they have been told; gossip is over then.
    Leave {
        /// Answered when the others have been told.
        reply: RpcReplyPort<()>,
    },
    /// How are you?
    Inspect(RpcReplyPort<Inspection>),
    /// Sent by the actor's own thread, and not through its address.
    Own(ThreadEnded),
}

/// The gossip thread is over.
#[derive(Debug)]
pub struct ThreadEnded(());

/// The actor.
#[derive(Debug, Clone, Copy, Default)]
pub struct MembershipActor;

/// State of [`MembershipActor`].
#[derive(Debug)]
pub struct MembershipState {
    address: Address<MembershipMsg>,
    commands: mpsc::UnboundedSender<Command>,
    status: Arc<Status>,
    leaving: bool,
}

impl Actor for MembershipActor {
    type Msg = MembershipMsg;
    type State = MembershipState;
    type Arguments = MembershipArgs;

    async fn pre_start(&self, myself: ActorRef<MembershipMsg>, args: MembershipArgs) -> Result<MembershipState, ActorProcessingErr> {
        let (commands, to_thread) = mpsc::unbounded_channel();
        let status = Arc::new(Status::default());
        let address = args.address.clone();
        let thread = GossipThread::new(args, Arc::clone(&status));
        std::thread::Builder::new().name("gossip".to_owned()).spawn(move || {
            let _tells = TellsTheEnd(myself); // also when the thread panics
            thread.run(to_thread);
        })?;
        Ok(MembershipState { address, commands, status, leaving: false })
    }

    async fn handle(
        &self,
        _: ActorRef<MembershipMsg>,
        message: MembershipMsg,
        state: &mut MembershipState,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, MembershipMsg::Own(_)) {
            state.address.taken();
        }
        match message {
            MembershipMsg::Leave { reply } => {
                info!("this node leaves the cluster");
                state.leaving = true;
                let (told, when_told) = tokio::sync::oneshot::channel();
                let sent = state.commands.send(Command::Leave(told));
                tokio::spawn(async move {
                    let _told_or_over = when_told.await;
                    let _gone = reply.send(());
                });
                drop(sent); // a thread that is over has nobody to tell, and the answer comes at once
            }
            MembershipMsg::Inspect(reply) => {
                let _gone = reply.send(state.status.inspection(state.leaving));
            }
            MembershipMsg::Own(ThreadEnded(())) if state.leaving => {}
            MembershipMsg::Own(ThreadEnded(())) => return Err("the gossip thread ended".into()),
        }
        Ok(())
    }
}

struct TellsTheEnd(ActorRef<MembershipMsg>);

impl Drop for TellsTheEnd {
    fn drop(&mut self) {
        let _gone = self.0.cast(MembershipMsg::Own(ThreadEnded(())));
    }
}
