//! What a prompt begins with, in numbers that an ingress and a replica compute alike.
//!
//! An ingress has no tokenizer. So both read the request itself: what a chat template is given, in the order in which templates write it, as one
//! stream of bytes. At fixed places of that stream a digest covers all that comes before. Two prompts that begin alike have their first digests in
//! common, however they end; a conversation that goes on keeps those it had. A replica says which digests stand for tokens that are still in its
//! blocks, and the longest that a request has among them tells how much of its prompt need not be read.
//!
//! Estimates, all of it: a template may write an earlier turn in another way once there is a later one. A wrong guess costs time, never an answer.

use std::iter::successors;
use std::sync::Arc;

use plexus_types::{Chat, Message, Prompt};

/// Bytes of text that make a token, to estimate the length of a prompt before it is encoded.
const BYTES_PER_TOKEN: u64 = 4;
/// The first digest is after so many bytes, and so far apart are two at least.
const SPACING_MIN: u64 = 512;
/// So many digests lie between a length and its double, where they are not as close as they may be.
const PER_OCTAVE: u64 = 8;
/// Stands before each field of the stream, with a byte that says which; it is no byte of any text.
const FIELD: u8 = 0xff;

/// How long a prompt is, and what it begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptDigests {
    /// Bytes of the stream.
    len: u64,
    /// A digest at each of [`places`] that is not beyond the end.
    digests: Arc<[u32]>,
}

impl PromptDigests {
    /// Reads a prompt. Takes a fifth of a millisecond for half a megabyte.
    pub fn of(prompt: &Prompt) -> Self {
        let mut stream = Stream::new();
        match prompt {
            Prompt::Chat(chat) => stream.chat(chat),
            Prompt::Text(text) => stream.field(b't', text),
            Prompt::Tokens(ids) => {
                stream.put(&[FIELD, b'i']);
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                stream.put(&bytes);
            }
        }
        Self { len: stream.len, digests: stream.digests.into() }
    }

    /// A prompt of so many bytes of which nothing else is known.
    pub fn of_length(bytes: u64) -> Self {
        Self { len: bytes, digests: Arc::default() }
    }

    /// About how many tokens it has.
    pub fn n_tokens(&self) -> u32 {
        tokens(self.len)
    }

    /// The digests, the shortest prefix first.
    pub fn digests(&self) -> &[u32] {
        &self.digests
    }

    /// About how many of its first tokens are held where the prefixes of the digests `held` are; `held` is sorted.
    ///
    /// What holds a prefix holds all that are shorter, so that the longest is found by bisection.
    pub fn n_cached(&self, held: &[u32]) -> u32 {
        if held.is_empty() {
            return 0;
        }
        let n_held = self.digests.partition_point(|digest| held.binary_search(digest).is_ok());
        n_held.checked_sub(1).and_then(|last| places().nth(last)).map_or(0, tokens)
    }

    /// Each digest with the number of tokens that it covers, in proportion: the whole prompt was encoded as `n_tokens`.
    pub fn positions(&self, n_tokens: u32) -> Vec<(u32, u32)> {
        let position = |place: u64| (u128::from(n_tokens) * u128::from(place) / u128::from(self.len.max(1))) as u32;
        self.digests.iter().copied().zip(places().map(position)).collect()
    }
}

/// Where digests are taken: every 512 bytes up to 4 KiB, then 8 times between a length and its double. Half a megabyte has 64.
fn places() -> impl Iterator<Item = u64> {
    successors(Some(SPACING_MIN), |place| Some(place + ((1 << place.ilog2()) / PER_OCTAVE).max(SPACING_MIN)))
}

fn tokens(bytes: u64) -> u32 {
    u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX)
}

/// The bytes of a prompt on their way into the hash. No length stands before anything, so that texts that begin alike are alike so far.
struct Stream<P> {
    hasher: blake3::Hasher,
    len: u64,
    digests: Vec<u32>,
    next: u64,
    places: P,
}

impl Stream<()> {
    fn new() -> Stream<impl Iterator<Item = u64>> {
        Stream { hasher: blake3::Hasher::new(), len: 0, digests: Vec::new(), next: SPACING_MIN, places: places().skip(1) }
    }
}

impl<P: Iterator<Item = u64>> Stream<P> {
    /// What templates read of a conversation: the settings, which may change any of it, then turn by turn.
    fn chat(&mut self, chat: &Chat) {
        for (name, value) in &chat.template_kwargs {
            self.field(b'k', name);
            self.field(b'v', value);
        }
        for tool in &chat.tools {
            self.field(b'f', &tool.name);
            self.optional(b'd', tool.description.as_deref());
            self.optional(b'p', tool.parameters.as_deref());
        }
        chat.messages.iter().for_each(|message| self.message(message));
    }

    fn message(&mut self, message: &Message) {
        self.field(b'm', message.role.as_str());
        self.optional(b'n', message.name.as_deref());
        self.optional(b'r', message.tool_call_id.as_deref());
        self.optional(b'h', message.reasoning.as_deref());
        self.field(b'c', &message.content);
        for call in &message.tool_calls {
            self.field(b'u', &call.id);
            self.field(b'f', &call.name);
            self.field(b'a', &call.arguments);
        }
    }

    fn optional(&mut self, which: u8, text: Option<&str>) {
        if let Some(text) = text {
            self.field(which, text);
        }
    }

    fn field(&mut self, which: u8, text: &str) {
        self.put(&[FIELD, which]);
        self.put(text.as_bytes());
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while let Some((before, after)) = usize::try_from(self.next - self.len).ok().and_then(|left| bytes.split_at_checked(left)) {
            self.hasher.update(before);
            self.len = self.next;
            let [a, b, c, d, ..] = *self.hasher.finalize().as_bytes();
            self.digests.push(u32::from_le_bytes([a, b, c, d]));
            self.next = self.places.next().unwrap_or(u64::MAX);
            bytes = after;
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests;
