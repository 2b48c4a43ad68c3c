//! The questions of a peer that are being answered here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::lock;
use crate::messages::Question;

/// Questions of one peer that are answered from memory, or soon, at the same time.
const SHORT_MAX: usize = 64;
/// Questions of one peer that keep a model or the network busy, beside those. A replica refuses what is too much for it before this does.
const LONG_MAX: usize = 1024;

/// The questions of one peer that are being answered.
#[derive(Debug)]
pub(super) struct Answers {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    under_way: Arc<Mutex<HashMap<u64, oneshot::Sender<()>>>>,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self { short: Arc::new(Semaphore::new(SHORT_MAX)), long: Arc::new(Semaphore::new(LONG_MAX)), under_way: Arc::default() }
    }

    /// A place to answer a question; nothing if all are taken. Those that take long never take the places of others.
    pub(super) fn begin(&self, call: u64, question: &Question) -> Option<Answering> {
        let places = if takes_long(question) { &self.long } else { &self.short };
        let place = Arc::clone(places).try_acquire_owned().ok()?;
        let (forgo, forgone) = oneshot::channel();
        lock(&self.under_way).insert(call, forgo);
        Some(Answering { call, under_way: Arc::clone(&self.under_way), forgone, _place: place })
    }

    /// Nobody waits for the answer to this question any more.
    pub(super) fn forgo(&self, call: u64) {
        lock(&self.under_way).remove(&call);
    }

    /// Nobody waits for any answer any more.
    pub(super) fn forgo_all(&self) {
        lock(&self.under_way).clear();
    }
}

/// A question that is being answered, and its place.
#[derive(Debug)]
pub(crate) struct Answering {
    call: u64,
    under_way: Arc<Mutex<HashMap<u64, oneshot::Sender<()>>>>,
    forgone: oneshot::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

impl Answering {
    /// Ends when nobody waits for the answer any more.
    pub(crate) async fn forgone(&mut self) {
        let _its_sender_was_dropped = (&mut self.forgone).await;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.call);
    }
}

fn takes_long(question: &Question) -> bool {
    matches!(question, Question::Embed(..) | Question::CountTokens(_) | Question::CheckTexts(..) | Question::Pull(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull() -> Question {
        Question::Pull("m".parse().unwrap())
    }

    #[tokio::test]
    async fn a_question_that_its_asker_gives_up_is_given_up_alone() {
        let answers = Answers::new();
        let (mut given_up, mut other) = (answers.begin(1, &pull()).unwrap(), answers.begin(2, &pull()).unwrap());
        answers.forgo(1);
        answers.forgo(7);
        given_up.forgone().await;
        let waits = tokio::time::timeout(std::time::Duration::ZERO, other.forgone());
        assert!(waits.await.is_err());
        answers.forgo_all();
        other.forgone().await;
    }

    #[test]
    fn questions_that_take_long_leave_room_for_short_ones_and_what_is_answered_leaves_its_place() {
        let answers = Answers::new();
        let mut long: Vec<Answering> = (0..LONG_MAX as u64).filter_map(|call| answers.begin(call, &pull())).collect();
        assert_eq!((long.len(), answers.begin(5000, &pull()).is_none()), (LONG_MAX, true));
        let short: Vec<Answering> = (6000..6000 + SHORT_MAX as u64).filter_map(|call| answers.begin(call, &Question::Actors)).collect();
        assert_eq!((short.len(), answers.begin(7000, &Question::Actors).is_none()), (SHORT_MAX, true));
        long.pop();
        assert!(answers.begin(5001, &pull()).is_some());
        drop((long, short));
        assert!(lock(&answers.under_way).is_empty());
    }
}
