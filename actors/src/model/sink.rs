//! Where the events of one attempt go: to the streams of this node, or over the link to those of the ingress.

use plexus_types::{NodeId, RequestError, RequestId, StreamEvent};

use crate::address::Address;
use crate::messages::{Attempt, StreamNotice};
use crate::peers::Peers;
use crate::streams::StreamsMsg;

/// How a replica reaches ingresses.
#[derive(Debug, Clone)]
pub struct Ingresses {
    /// This node.
    pub me: NodeId,
    /// The streams whose client is here.
    pub streams: Address<StreamsMsg>,
    /// The other nodes.
    pub peers: Peers,
}

impl Ingresses {
    /// Sends events. A node that is gone needs none; one that is congested notices the gap and goes elsewhere.
    pub fn send(&self, ingress: &NodeId, events: Vec<StreamNotice>) {
        if *ingress == self.me {
            self.streams.tell(StreamsMsg::Events { from: self.me.clone(), events });
        } else if let Some(peer) = self.peers.get(ingress)
            && let Err(error) = peer.send_events(events)
        {
            tracing::debug!(node = %ingress, %error, "events not sent");
        }
    }
}

/// The events of one attempt. Dropped before [`Self::finish`], it says that the replica was lost: so that no stream ever waits for an actor
/// that ended.
#[derive(Debug)]
pub struct Sink {
    ingresses: Ingresses,
    ingress: NodeId,
    request: RequestId,
    attempt: Attempt,
    finished: bool,
}

impl Sink {
    /// Events of `attempt` at `request`, for the node `ingress`.
    pub fn new(ingresses: Ingresses, ingress: NodeId, request: RequestId, attempt: Attempt) -> Self {
        Self { ingresses, ingress, request, attempt, finished: false }
    }

    /// The node that holds the client's connection.
    pub fn ingress(&self) -> &NodeId {
        &self.ingress
    }

    /// Whose events these are.
    pub fn key(&self) -> (RequestId, Attempt) {
        (self.request, self.attempt)
    }

    /// Labels an event, to be sent together with others by [`Ingresses::send`]. An event that ends the attempt finishes the sink.
    pub fn label(&mut self, event: StreamEvent) -> StreamNotice {
        self.finished |= matches!(event, StreamEvent::Done { .. } | StreamEvent::Failed(_));
        StreamNotice { request: self.request, attempt: self.attempt, event }
    }

    /// Sends one event now.
    pub fn send(&mut self, event: StreamEvent) {
        let notice = self.label(event);
        self.ingresses.send(&self.ingress, vec![notice]);
    }

    /// Ends the attempt with an error.
    pub fn fail(mut self, error: RequestError) {
        self.send(StreamEvent::Failed(error));
    }

    /// Nothing more is wanted: no event is sent.
    pub fn finish(mut self) {
        self.close();
    }

    /// Nothing more is wanted, although the sink is kept for a while: no event is sent when it is dropped.
    pub fn close(&mut self) {
        self.finished = true;
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            let message = format!("the replica on '{}' ended while it had the request", self.ingresses.me.name);
            self.send(StreamEvent::Failed(RequestError::Lost { message }));
        }
    }
}
