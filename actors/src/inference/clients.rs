//! The requests of this node's clients: while it stops it waits for them, takes no more of them at last, and those that it waits for no longer
//! hear so.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plexus_types::{NodeName, RequestError, RequestId};
use tokio::sync::watch;

use super::stopping;

/// Those that are under way, wherever they are served.
#[derive(Debug, Default)]
pub struct Clients {
    requests: Mutex<Requests>,
    broken_off: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Requests {
    under_way: BTreeSet<RequestId>,
    closed: bool,
}

impl Clients {
    /// Which they are: each from before anything is done for it until its client has what it asked for, or has left.
    pub fn requests(&self) -> BTreeSet<RequestId> {
        self.known().under_way.clone()
    }

    /// Takes no more of them.
    pub fn close(&self) {
        self.known().closed = true;
    }

    /// Ends requests to embed texts, now and later, with an error.
    pub fn break_off(&self) {
        self.broken_off.send_replace(true);
    }

    /// One more, counted until what is returned is dropped. Refused once the node takes no more.
    pub(super) fn enter(self: &Arc<Self>, id: RequestId, me: &NodeName) -> Result<Counted, RequestError> {
        let mut known = self.known();
        if known.closed {
            return Err(stopping::closed(me));
        }
        known.under_way.insert(id);
        Ok(Counted { all: Arc::clone(self), id })
    }

    /// Works on a request until it is broken off.
    pub(super) async fn run<T>(&self, work: impl Future<Output = Result<T, RequestError>>) -> Result<T, RequestError> {
        let mut broken_off = self.broken_off.subscribe();
        tokio::select! {
            done = work => done,
            _ = async { broken_off.wait_for(|it_is| *it_is).await.is_ok() } => {
                Err(RequestError::Lost { message: "the node stops, and has no more time for this request".into() })
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is waited for.
#[derive(Debug)]
pub(super) struct Counted {
    all: Arc<Clients>,
    id: RequestId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.known().under_way.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_counted_until_its_end_and_none_is_taken_once_the_doors_are_closed() {
        let (all, me) = (Arc::new(Clients::default()), "a".parse().unwrap());
        let counted = all.enter(RequestId(1), &me).unwrap();
        assert_eq!(all.requests(), BTreeSet::from([RequestId(1)]));
        all.close();
        let Err(RequestError::Unavailable { message, .. }) = all.enter(RequestId(2), &me) else { panic!("it is taken") };
        assert_eq!(message, "the node 'a' is stopping and takes nothing more; ask another node");
        assert_eq!(all.requests(), BTreeSet::from([RequestId(1)]));
        drop(counted);
        assert!(all.requests().is_empty());
    }

    #[tokio::test]
    async fn what_is_broken_off_says_so() {
        let all = Clients::default();
        let endless = all.run(std::future::pending::<Result<(), _>>());
        let (ended, ()) = tokio::join!(endless, async { all.break_off() });
        assert!(matches!(ended, Err(RequestError::Lost { .. })), "{ended:?}");
    }
}
