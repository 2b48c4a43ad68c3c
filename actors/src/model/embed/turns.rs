//! Whose texts are on the device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plexus_types::RequestId;
use tokio::sync::oneshot;

use super::Number;
use crate::model::scheduler::Principal;
use crate::model::share::{Shares, makes_way};

/// So many principals are known by when they had their last turn.
const KNOWN_MAX: usize = 256;

/// One request's texts are on the device at a time, since a text in pieces keeps its state in the model's KV pool. A turn ends with each text. The
/// next is of those with a key before those without, among keys of the one whose last turn is the longest ago, and of one key in order (CX-93). Of the
/// messages of one request the one that came first goes on to its end, so that the next can be sent while another is at work.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Line>>);

/// The device, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Turns);

#[derive(Debug, Default)]
struct Line {
    is_taken: bool,
    waiting: Vec<Waiter>,
    /// Those that had turns since the line was last empty, whoever had the last one at the end.
    served: Vec<Principal>,
}

/// Some texts of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) principal: Principal,
    pub(super) request: RequestId,
    /// Grows from message to message.
    pub(super) number: Number,
}

#[derive(Debug)]
struct Waiter {
    who: Who,
    /// It has had no turn yet.
    is_first: bool,
    called: oneshot::Sender<Turn>,
}

impl Turns {
    /// Waits for a turn of a message that has none. Nothing if it was displaced.
    pub(super) async fn take(&self, who: Who, is_first: bool) -> Option<Turn> {
        let called = {
            let mut line = self.line();
            if !line.is_taken {
                line.is_taken = true;
                line.on_turn(who.principal);
                return Some(Turn(self.clone()));
            }
            line.on_wait(who, is_first)
        };
        called.await.ok()
    }

    /// Ends a turn of a message that wants another one: it stands in the line before the next is called.
    pub(super) async fn again(&self, turn: Turn, who: Who) -> Option<Turn> {
        let called = self.line().on_wait(who, false);
        drop(turn);
        called.await.ok()
    }

    /// Sends away the youngest of whoever [`makes_way`] of those that have had no turn yet, so that one with a key, who has `own` requests, can wait in its
    /// stead. False if there is none.
    pub(super) fn displace(&self, own: u32, n_of: impl Fn(Principal) -> u32) -> bool {
        let mut line = self.line();
        let waits = |one: &&Waiter| one.is_first && !one.called.is_closed();
        let shares: Shares = line.waiting.iter().filter(waits).map(|one| (one.who.principal, (n_of(one.who.principal), true))).collect();
        let Some(principal) = makes_way(&shares, own) else { return false };
        let youngest = line.waiting.iter().rposition(|one| one.who.principal == principal && waits(&one));
        youngest.map(|at| drop(line.waiting.remove(at))).is_some()
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever is next, or nobody: then the device is free.
    fn call(&self) -> Option<oneshot::Sender<Turn>> {
        let mut line = self.line();
        line.waiting.retain(|one| !one.called.is_closed());
        let ago = |line: &Line, principal| line.served.iter().position(|known| *known == principal).map_or(0, |at| at + 1);
        let Some(next) = (0..line.waiting.len()).min_by_key(|at| {
            let principal = line.waiting[*at].who.principal;
            (principal.is_none(), ago(&line, principal), *at)
        }) else {
            *line = Line::default();
            return None;
        };
        let of_request = |at: &usize| line.waiting[*at].who.request == line.waiting[next].who.request;
        if let Some(oldest) = (0..line.waiting.len()).filter(of_request).min_by_key(|at| line.waiting[*at].who.number) {
            line.waiting.swap(next, oldest); // the turn is the request's
        }
        let Waiter { who, called, .. } = line.waiting.remove(next);
        line.on_turn(who.principal);
        Some(called)
    }
}

impl Line {
    fn on_wait(&mut self, who: Who, is_first: bool) -> oneshot::Receiver<Turn> {
        let (called, turn) = oneshot::channel();
        self.waiting.push(Waiter { who, is_first, called });
        turn
    }

    fn on_turn(&mut self, principal: Principal) {
        self.served.retain(|known| *known != principal);
        self.served.push(principal);
        if self.served.len() > KNOWN_MAX {
            self.served.remove(0);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(called) = self.0.call() {
            drop(called.send(Self(self.0.clone()))); // one that has left meanwhile drops it again: the next is called
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    /// Texts of a request of their own.
    fn of(principal: Principal) -> Who {
        Who { principal, request: RequestId(rand::random()), number: 0 }
    }

    /// Those that wait are called by their names, one turn after the other.
    async fn order(turns: &Turns, first: Turn, names: &[(&'static str, Principal)]) -> Vec<&'static str> {
        let (heard, mut said) = tokio::sync::mpsc::unbounded_channel();
        for (name, principal) in names.iter().copied() {
            let (turns, heard) = (turns.clone(), heard.clone());
            tokio::spawn(async move {
                if let Some(_turn) = turns.take(of(principal), true).await {
                    heard.send(name).unwrap();
                }
            });
            tokio::task::yield_now().await;
        }
        drop((first, heard));
        let mut order = Vec::new();
        while let Some(name) = said.recv().await {
            order.push(name);
        }
        order
    }

    #[tokio::test]
    async fn keys_take_turns_and_those_without_come_last() {
        let turns = Turns::default();
        let first = turns.take(of(Some(1)), true).await.unwrap();
        let waiting =
            [("nobody", None), ("a1", Some(1)), ("a2", Some(1)), ("a3", Some(1)), ("b1", Some(2)), ("b2", Some(2)), ("c", Some(3))];
        assert_eq!(order(&turns, first, &waiting).await, ["b1", "c", "a1", "b2", "a2", "a3", "nobody"]);
        assert_eq!(turns.line().served, [], "nobody is remembered once the line is empty");
    }

    #[tokio::test]
    async fn whoever_leaves_while_it_waits_or_just_as_it_is_called_holds_up_nobody() {
        let turns = Turns::default();
        let first = turns.take(of(None), true).await.unwrap();
        let at_once = Duration::ZERO;
        assert!(tokio::time::timeout(at_once, turns.take(of(None), true)).await.is_err(), "it is taken");
        let mut leaves = Box::pin(turns.take(of(Some(1)), true));
        let mut stays = Box::pin(turns.take(of(Some(2)), true));
        assert!(tokio::time::timeout(at_once, &mut leaves).await.is_err());
        assert!(tokio::time::timeout(at_once, &mut stays).await.is_err());
        drop(first); // the one that leaves is called
        assert!(tokio::time::timeout(at_once, &mut stays).await.is_err());
        drop(leaves);
        drop(stays.await.unwrap());
        assert!(tokio::time::timeout(at_once, turns.take(of(None), true)).await.is_ok_and(|turn| turn.is_some()), "it is free again");
    }

    #[tokio::test]
    async fn those_without_a_key_are_displaced_then_those_of_the_largest_and_none_that_had_a_turn() {
        let turns = Turns::default();
        let _first = turns.take(of(Some(1)), true).await.unwrap();
        let mut waiting = BTreeMap::new();
        let waiters =
            [("old", None, true), ("young", None, true), ("begun", None, false), ("keyed", Some(1), true), ("large", Some(2), true)];
        for (name, principal, is_first) in waiters {
            let turns = turns.clone();
            waiting.insert(name, tokio::spawn(async move { turns.take(of(principal), is_first).await.is_some() }));
            tokio::task::yield_now().await;
        }
        let n_of = |principal| if principal == Some(2) { 3 } else { 1 };
        for name in ["young", "old", "large"] {
            assert!(turns.displace(1, n_of));
            assert!(!waiting.remove(name).unwrap().await.unwrap());
        }
        assert!(!turns.displace(1, n_of) && !turns.displace(0, n_of));
        assert!(waiting.values().all(|one| !one.is_finished()));
    }

    /// Messages of `n` turns each; in which order they have them.
    async fn turns_of(messages: &[(&'static str, Who)], n: usize) -> String {
        let turns = Turns::default();
        let first = turns.take(of(Some(99)), true).await.unwrap();
        let (heard, mut said) = tokio::sync::mpsc::unbounded_channel();
        for (name, who) in messages.iter().copied() {
            let (turns, heard) = (turns.clone(), heard.clone());
            tokio::spawn(async move {
                let mut turn = turns.take(who, true).await.unwrap();
                for left in (0..n).rev() {
                    heard.send(name).unwrap();
                    tokio::task::yield_now().await;
                    if left > 0 {
                        turn = turns.again(turn, who).await.unwrap();
                    }
                }
            });
            tokio::task::yield_now().await;
        }
        drop((first, heard));
        let mut order = String::new();
        while let Some(name) = said.recv().await {
            order += name;
        }
        order
    }

    #[tokio::test]
    async fn a_request_that_has_a_key_goes_on_before_those_without_and_its_messages_one_after_the_other() {
        let who = |principal, request, number| Who { principal, request: RequestId(request), number };
        assert_eq!(turns_of(&[("x", who(None, 1, 1)), ("a", who(Some(1), 2, 2))], 3).await, "aaaxxx");
        assert_eq!(turns_of(&[("1", who(Some(1), 1, 1)), ("2", who(Some(1), 1, 2))], 3).await, "111222");
        let other = [("1", who(None, 1, 1)), ("2", who(None, 1, 2)), ("s", who(None, 2, 3))];
        assert_eq!(turns_of(&other, 2).await, "11s2s2", "another request of the same has its turns between");
    }
}
