//! What the network part of a node hands to the rest of it.

use std::time::Duration;

use async_trait::async_trait;
use plexus_types::{NodeFacts, NodeId};

use crate::messages::{Answer, Notice, Question, StreamNotice};

/// A change in what gossip says. For each node name only its newest generation counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterChange {
    /// A node is alive.
    Up(NodeFacts),
    /// A living node changed its facts.
    Changed(NodeFacts),
    /// A node, or a former life of one, is gone.
    Gone(NodeId),
}

/// A change in whom we can speak to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// A link to this node stands, with its gateway and token sink found: [`crate::peers::Peers`] has it.
    Up(NodeId),
    /// The link is gone or was cut because the node does not answer: [`crate::peers::Peers`] no longer has it.
    Down {
        /// Which node.
        id: NodeId,
        /// Why, for the log and the status.
        why: String,
    },
    /// A ping came back.
    RoundTrip(NodeId, Duration),
}

/// Where the network part delivers. Nothing here may block: implementations pass on to mailboxes.
#[async_trait]
pub trait Inbound: Send + Sync + 'static {
    /// A peer asks. Runs in a task of its own, under the asker's deadline.
    async fn answer(&self, from: &NodeId, question: Question) -> Answer;
    /// A peer notifies.
    fn notice(&self, from: &NodeId, notice: Notice);
    /// A peer sends events of streams whose ingress is here.
    fn events(&self, from: &NodeId, events: Vec<StreamNotice>);
    /// Gossip changed its mind.
    fn cluster_changed(&self, change: ClusterChange);
    /// A link came or went.
    fn peer_changed(&self, change: PeerChange);
}
