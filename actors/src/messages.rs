//! What nodes say to each other once their link stands. Encoded by [`crate::wire`]; carried by [`crate::peers`].
//!
//! Variants and fields are only ever added at the end: version N and N-1 of the binary understand each other.

use plexus_types::{ActorReport, Journal, ModelId, NodeSummary, RequestId, StreamEvent, TraceContext};
use serde::{Deserialize, Serialize};

/// Which try at a request. Grows with each replica tried, so that what a former one still says is told from what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt(pub u32);

/// A question to a node; always answered, always under a deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// Are you there? Answered by the gateway itself. The asker measures the round trip.
    Ping,
    /// The state of all your actors.
    Actors,
    /// Tokens of this prompt, by the tokenizer of a replica that you hold.
    CountTokens(Box<plexus_types::GenerateRequest>),
    /// The vectors of these texts, by a replica that you hold.
    Embed(Box<plexus_types::EmbedRequest>),
}

/// The answer to a [`Question`], variant by variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// I am, and so many bytes of yours have been taken from the mailboxes of my gateway and token sink since the link stands.
    Pong {
        /// Bytes taken, notices, questions and events together.
        received_bytes: u64,
    },
    /// In the order of the supervision tree.
    Actors(Vec<ActorReport>),
    /// The count, or why there is none.
    CountTokens(Result<u32, plexus_types::RequestError>),
    /// The vectors, or why there are none.
    Embed(Result<plexus_types::Embeddings, plexus_types::RequestError>),
}

/// A notice to a node; not answered. Order is kept from one sender to one receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Notice {
    /// My devices and replicas are now these.
    Summary(NodeSummary),
    /// Generate, and send the events to my token sink.
    Generate(Box<Generate>),
    /// Stop generating; nothing more is wanted.
    Cancel {
        /// Which request.
        request: RequestId,
        /// Which try at it.
        attempt: Attempt,
    },
    /// The client has read on: tokens up to this index may be sent.
    Credit {
        /// Which request.
        request: RequestId,
        /// Which try at it.
        attempt: Attempt,
        /// Tokens with an index below this may be sent.
        until: u32,
    },
    /// All that I ordered before is void: my streams were lost with the actor that held them.
    Forget,
}

/// An order to generate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// Which request.
    pub request: RequestId,
    /// Which try at it.
    pub attempt: Attempt,
    /// The model, by the id that the chosen replica goes by.
    pub model: ModelId,
    /// All that is needed to begin or to continue.
    pub journal: Journal,
    /// Tokens with an index below this may be sent before more credit comes.
    pub credit_until: u32,
    /// Where the request's trace stands.
    pub trace: TraceContext,
}

/// Events of streams, from a replica to the ingress, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamNotice {
    /// Which request.
    pub request: RequestId,
    /// Which try at it.
    pub attempt: Attempt,
    /// What happened.
    pub event: StreamEvent,
}
