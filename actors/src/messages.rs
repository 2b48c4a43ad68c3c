//! What nodes say to each other once their link stands. Encoded by [`crate::wire`]; carried by [`crate::peers`].
//!
//! Whoever changes a variant or a field raises [`crate::wire::VERSION`]: the bytes name neither, and only nodes of one version link up.
//! A question that is added behind the others needs no new version: who does not know it says so ([`PeerError::Malformed`]).

use plexus_types::{
    ActorReport, Catalogue, DeviceId, Embeddings, Explanation, Journal, ModelFacts, ModelId, ModelProfile, NodeSummary, RequestError,
    RequestId, StreamEvent, TraceContext,
};
use serde::{Deserialize, Serialize};

use crate::peers::PeerError;

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
    /// Tokens of this prompt, by a replica that you hold or by the files that you have.
    CountTokens(Box<plexus_types::GenerateRequest>),
    /// The vectors of these texts, which are all of a request or some, by the replica that you hold on this device.
    Embed(RequestId, DeviceId, Box<plexus_types::EmbedRequest>),
    /// See that this model is loaded somewhere: you are its home.
    Ensure(Ensure),
    /// Load this model on a device of yours.
    Load(Box<LoadOrder>),
    /// Unload this model, from one device or from all.
    Unload(ModelId, Option<DeviceId>),
    /// Pin this model where you hold it, or let it go again.
    Pin(ModelId, bool),
    /// Where did you send this request, and why there?
    Explain(RequestId),
    /// Bring the files of this model to you, without loading it.
    Pull(ModelId),
    /// Why was this model placed where it was placed last, as far as you decided or heard?
    Placement(ModelId),
    /// How many pieces of texts has the replica that you hold of this model on this device embedded? It tells one that is slow from one that hangs.
    EmbeddedPieces(ModelId, DeviceId),
    /// Has each of these texts at most so many tokens, by the files that you have? Answered as by a replica, without loading one.
    CheckTexts(Box<plexus_types::EmbedRequest>, u32),
}

/// A model is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ensure {
    /// Which.
    pub model: ModelId,
    /// So many replicas are wanted.
    pub replicas: u32,
    /// Somebody asks by hand: also where it could not be loaded before.
    pub by_hand: bool,
}

/// An order to load a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// Which, and how it is to be served.
    pub profile: ModelProfile,
    /// Where to.
    pub device: DeviceId,
    /// What its files say, if somebody knows.
    pub facts: Option<ModelFacts>,
    /// It has waited for others to become idle: it queues there for its turn, though there is no room yet.
    pub in_turn: bool,
}

/// The answer to a [`Question`], variant by variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// I am.
    Pong,
    /// In the order of the supervision tree.
    Actors(Vec<ActorReport>),
    /// The count, or why there is none.
    CountTokens(Result<u32, RequestError>),
    /// The vectors, or why there are none.
    Embed(Result<Embeddings, RequestError>),
    /// Where it is being loaded and why there; or why nowhere.
    Ensure(Result<Explanation, RequestError>),
    /// It was done, or begun; or why not.
    Done(Result<(), RequestError>),
    /// What was decided, if you remember.
    Explain(Option<Explanation>),
    /// So many since it was loaded; nothing if I hold none.
    EmbeddedPieces(Option<u64>),
}

/// What is said in an answer to a question is of a type of its own, by which it is told from answers to others.
macro_rules! said {
    ($($answer:ident: $said:ty),+) => {$(
        impl TryFrom<Answer> for $said {
            type Error = PeerError;

            fn try_from(answer: Answer) -> Result<Self, PeerError> {
                if let Answer::$answer(said) = answer { Ok(said) } else { Err(PeerError::Malformed) }
            }
        }
    )+};
}

said! {
    Actors: Vec<ActorReport>,
    CountTokens: Result<u32, RequestError>,
    Embed: Result<Embeddings, RequestError>,
    Ensure: Result<Explanation, RequestError>,
    Done: Result<(), RequestError>,
    Explain: Option<Explanation>,
    EmbeddedPieces: Option<u64>
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
    /// What I list, and which files I have, is now this.
    Catalogue(Catalogue),
    /// Tell me all of yourself: what you said before is lost with a part of me that was restarted.
    Announce,
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
    /// The device of the chosen replica.
    pub device: DeviceId,
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
