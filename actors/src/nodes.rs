//! All nodes of the cluster, this one among them, to be asked alike: here by the very code that answers peers, elsewhere over the link.

use std::sync::Arc;
use std::time::Duration;

use plexus_types::{Explanation, NodeId, RequestError};

use crate::dispatch::Dispatch;
use crate::inbound::Inbound;
use crate::messages::{Answer, Ensure, Question};
use crate::peers::{PeerError, Peers};

/// This node and its peers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// The others.
    pub peers: Peers,
    here: Arc<Dispatch>,
}

impl Nodes {
    /// The peers, and who answers for this node.
    pub fn new(peers: Peers, here: Arc<Dispatch>) -> Self {
        Self { peers, here }
    }

    /// This node.
    pub fn me(&self) -> &NodeId {
        self.peers.me()
    }

    /// Those to whom a link stands.
    pub fn others(&self) -> Vec<NodeId> {
        self.peers.list().iter().map(|peer| peer.id().clone()).collect()
    }

    /// This node, and those.
    pub fn all(&self) -> Vec<NodeId> {
        [vec![self.me().clone()], self.others()].concat()
    }

    /// Asks a node, and waits at most `deadline` for what it says, which is of the type that belongs to the question.
    pub async fn ask<T>(&self, node: &NodeId, question: Question, deadline: Duration) -> Result<T, PeerError>
    where
        T: TryFrom<Answer, Error = PeerError>,
    {
        let answer = if node == self.me() {
            tokio::time::timeout(deadline, self.here.answer(node, question)).await.map_err(|_elapsed| PeerError::Late)?
        } else {
            self.peers.get(node).ok_or(PeerError::Gone)?.ask(question, deadline).await?
        };
        T::try_from(answer)
    }

    /// Has a node do something.
    pub async fn order(&self, node: &NodeId, question: Question, deadline: Duration) -> Result<(), RequestError> {
        let done = self.ask(node, question, deadline).await;
        done.map_err(|error| no_answer(node, error)).flatten()
    }

    /// Asks the home of a model that it be loaded.
    pub async fn ensure(&self, home: &NodeId, ensure: Ensure, deadline: Duration) -> Result<Explanation, RequestError> {
        let ensured = self.ask(home, Question::Ensure(ensure), deadline).await;
        let lost = |error| RequestError::soon(format!("the node '{}', which places the model, did not answer: {error}", home.name));
        ensured.map_err(lost).flatten()
    }
}

/// A node did not answer; it may the next time.
pub(crate) fn no_answer(node: &NodeId, error: PeerError) -> RequestError {
    RequestError::soon(format!("the node '{}' did not answer: {error}", node.name))
}
