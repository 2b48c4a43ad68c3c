//! What a request needs before it can wait for a place: its prompt as token ids, and the grammar of its answer. Not quick; the blocking pool
//! does it.

use std::pin::pin;
use std::time::Duration;

use plexus_engine::codec::Codec;
use plexus_engine::grammar::Grammar;
use plexus_types::{Constraint, GenerateRequest, RequestError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;

use super::{ModelMsg, SequenceKey};
use crate::address::Address;
use crate::prefix::PromptDigests;

/// Bytes of prompts that the node encodes at once: tokenizers take up to some hundred bytes of memory for each. A longer prompt is encoded alone.
const AT_ONCE: u32 = 2 << 20;
/// Prompts of fewer bytes wait for nobody.
const SHORT: u64 = 64 << 10;
/// Who asks is told that the request has arrived if its prompt takes longer than this.
const SLOW: Duration = Duration::from_millis(500);

/// As long as this is taken what needs a vocabulary that has to be read first: one of them at a time.
pub(crate) const READS_VOCABULARY: u64 = u64::MAX;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE as usize);

/// A request, ready to wait for a place.
#[derive(Debug)]
pub struct Prepared {
    /// Its prompt.
    pub prompt: Vec<u32>,
    /// What its text begins with.
    pub digests: PromptDigests,
    /// What its answer must look like; absent: anything.
    pub grammar: Option<Grammar>,
}

/// A request that is being prepared. Dropped while it waits for its turn, it is not prepared any more.
#[derive(Debug)]
pub(super) struct Preparing(AbortHandle);

impl Drop for Preparing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Prepares a request whose prompt has so many bytes: then [`ModelMsg::Encoded`], and [`ModelMsg::IsLong`] before that if it takes its time.
pub(super) fn start(
    address: Address<ModelMsg>,
    key: SequenceKey,
    n_bytes: u64,
    work: impl FnOnce() -> Result<Prepared, RequestError> + Send + 'static,
) -> Preparing {
    let task = tokio::spawn(async move {
        let mut prepared = pin!(in_turn(n_bytes, work));
        let prepared = match tokio::time::timeout(SLOW, &mut prepared).await {
            Ok(prepared) => prepared,
            Err(_) => {
                address.tell(ModelMsg::IsLong(key.clone()));
                prepared.await
            }
        };
        address.tell(ModelMsg::Encoded(key, prepared));
    });
    Preparing(task.abort_handle())
}

/// Does some work on a prompt of so many bytes in the blocking pool, once there is room for it.
pub(crate) async fn in_turn<T: Send + 'static>(
    n_bytes: u64,
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    let turn = turn(n_bytes).await;
    let done = tokio::task::spawn_blocking(move || {
        let _held_to_the_end = turn;
        work()
    });
    done.await.unwrap_or_else(|_| Err(RequestError::Internal { message: "the tokenizer panicked".into() }))
}

async fn turn(n_bytes: u64) -> Option<SemaphorePermit<'static>> {
    if n_bytes < SHORT {
        return None;
    }
    TURNS.acquire_many(u32::try_from(n_bytes).unwrap_or(u32::MAX).min(AT_ONCE)).await.ok()
}

/// Encodes the prompt for a model that holds `context` tokens, unless it is `known` from a journal, and compiles the grammar, if there is one.
///
/// Errors: the client's, named by the field at fault.
pub(super) fn prepare(codec: &Codec, context: u32, request: &GenerateRequest, known: Vec<u32>) -> Result<Prepared, RequestError> {
    let prompt = if known.is_empty() { codec.encode_within(&request.prompt, context)? } else { known };
    let constraint = codec.constraint(request, &prompt)?;
    if constraint.is_some() && request.sampling.ignore_eos {
        return Err(RequestError::invalid("ignore_eos", "an answer that must follow a grammar ends where that ends: leave ignore_eos out"));
    }
    // The field that a grammar comes from: the request's own constraint, or else a tool that must be called.
    let field = if request.constraint.is_some() { Constraint::FIELD } else { "tool_choice" };
    let grammar = constraint.map(|constraint| codec.grammar(&constraint, field)).transpose()?;
    Ok(Prepared { prompt, digests: PromptDigests::of(&request.prompt), grammar })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn long_prompts_take_turns_short_ones_do_not_wait_and_one_that_nobody_wants_is_not_begun() {
        let (go_on, holds) = mpsc::channel::<()>();
        let first = tokio::spawn(in_turn(u64::MAX, move || {
            holds.recv().ok();
            Ok(1)
        }));
        while TURNS.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(in_turn(SHORT - 1, || Ok(2)).await, Ok(2));
        let key = ("a#1".parse().unwrap(), plexus_types::RequestId(1), crate::messages::Attempt(1));
        let (begun, nobody) = tokio::sync::oneshot::channel::<()>();
        let waits = start(Address::new(), key, SHORT, move || {
            drop(begun);
            Err(RequestError::Internal { message: "it was begun".into() })
        });
        tokio::task::yield_now().await;
        drop(waits);
        assert!(nobody.await.is_err());
        let next = tokio::spawn(in_turn(SHORT, || Ok(3)));
        go_on.send(()).unwrap();
        assert_eq!((first.await.unwrap(), next.await.unwrap()), (Ok(1), Ok(3)));
        assert_eq!(
            in_turn(1 << 20, || -> Result<(), _> { panic!("on purpose") }).await,
            Err(RequestError::Internal { message: "the tokenizer panicked".into() })
        );
        assert_eq!(TURNS.available_permits(), AT_ONCE as usize);
    }
}
