//! The codec of links: what a frame between two nodes looks like, in bytes.
//!
//! ```text
//! version u8 | pass u64 | position u64 | clock_ms u64 | head (bincode) | payload (bincode, by kind of head)
//! ```
//! Integers of the fixed part are little-endian. A frame has at most [`FRAME_MAX`] bytes; a longer message travels as [`Head::Part`]s whose
//! payloads, put together, are `head | payload` of the message. Decoding never panics and never allocates more than it was sent:
//! every error is a value. The payload is decoded apart from the head, so that a question of a newer version can be refused in words.

use plexus_types::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the frame. A frame of another version is counted and dropped.
pub const VERSION: u8 = 8;
/// Most bytes of a frame: what is behind it on the link, pings among it, waits no longer than this takes.
pub const FRAME_MAX: usize = 64 << 10;
/// Most bytes of a message that travels in one frame, and of each part of a longer one; the rest of the frame is room for its head.
pub const PART_MAX: usize = 60 << 10;
/// Most bytes of a message.
pub const MESSAGE_MAX: usize = 16 << 20;

const FIXED_LEN: usize = 1 + 3 * 8;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The frame is shorter than its fixed part.
    #[error("a frame of {0} bytes is too short")]
    Short(usize),
    /// The frame is of another version.
    #[error("wire version {0} is not {VERSION}")]
    Version(u8),
    /// The codec refuses.
    #[error("{0}")]
    Codec(String),
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Tells the receiver who speaks: the receiver gave this number to that one peer, over that peer's own link. 0 before it did.
    pub pass: u64,
    /// What the sender's budget for this actor of the receiver had been spent on before this frame.
    pub position: u64,
    /// The sender's monotonic clock, by which the receiver sees how long the frame was under way.
    pub clock_ms: u64,
}

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// I see your gateway and your token sink: use this pass when you speak to me. Repeated until answered.
    Hello {
        /// Who says so; not believed until a [`Head::Welcome`] returns the pass that only that node was given.
        from: NodeId,
        /// The pass for the receiver.
        pass: u64,
    },
    /// I have your pass; here is mine again. From now on both sides know whom they speak to.
    Welcome {
        /// The pass for the receiver.
        pass: u64,
        /// The pass that the receiver gave.
        echo: u64,
    },
    /// I have taken your frames up to these positions.
    Ack {
        /// By the gateway.
        gateway: u64,
        /// By the token sink.
        sink: u64,
    },
    /// A question. Payload: [`crate::messages::Question`].
    Call {
        /// Number of the question, chosen by the asker.
        call: u64,
        /// How long the asker waits.
        ttl_ms: u32,
    },
    /// What came of a question. Payload: [`crate::messages::Answer`] if `outcome` is [`Outcome::Answered`], else empty.
    Reply {
        /// Number of the question.
        call: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// A notice. Payload: [`crate::messages::Notice`].
    Notice,
    /// Events of streams. Payload: `Vec<`[`crate::messages::StreamNotice`]`>`.
    Events,
    /// A part of a message that is too long for one frame. Payload: its bytes, as they are.
    Part {
        /// Number of the message, unique on this link and in this direction.
        message: u64,
        /// Where the part begins; parts come in order.
        offset: u32,
        /// Length of the whole message.
        total: u32,
        /// Time until the receiver may forget an incomplete message.
        ttl_ms: u32,
    },
    /// Nobody waits for the answer to a question any more.
    Forgo {
        /// Number of the question.
        call: u64,
    },
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The answer follows.
    Answered,
    /// Too many questions of this asker are being answered.
    Busy,
    /// The question is not understood.
    Malformed,
    /// The answer is longer than [`MESSAGE_MAX`].
    TooLarge,
}

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|error| WireError::Codec(error.to_string()))
}

/// Decodes a value. Bytes behind it are left alone: a newer version may have added to it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    bincode::serde::decode_from_slice(bytes, config()).map(|(value, _read)| value).map_err(|error| WireError::Codec(error.to_string()))
}

/// A message: its head, then its payload.
pub fn message(head: &Head, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut bytes = encode(head)?;
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Takes a message apart.
pub fn open_message(bytes: &[u8]) -> Result<(Head, &[u8]), WireError> {
    let (head, read) = bincode::serde::decode_from_slice(bytes, config()).map_err(|error| WireError::Codec(error.to_string()))?;
    Ok((head, &bytes[read..]))
}

/// A frame round a message.
pub fn frame(envelope: Envelope, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED_LEN + message.len());
    bytes.push(VERSION);
    for field in [envelope.pass, envelope.position, envelope.clock_ms] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(message);
    bytes
}

/// Takes a frame apart into its envelope and its message.
pub fn open_frame(bytes: &[u8]) -> Result<(Envelope, &[u8]), WireError> {
    let (fixed, message) = bytes.split_at_checked(FIXED_LEN).ok_or(WireError::Short(bytes.len()))?;
    if fixed[0] != VERSION {
        return Err(WireError::Version(fixed[0]));
    }
    let field = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("eight bytes are eight bytes"));
    Ok((Envelope { pass: field(1), position: field(9), clock_ms: field(17) }, message))
}

/// Bytes of the frame round a message of `len` bytes.
pub const fn frame_len(len: usize) -> u64 {
    (FIXED_LEN + len) as u64
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MESSAGE_MAX>()
}

#[cfg(test)]
mod tests;
