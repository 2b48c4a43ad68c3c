//! Requests to embed texts whose clients are at this node: while it stops it waits for them, and those that it waits for no longer hear so.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use plexus_types::{RequestError, RequestId};
use tokio::sync::watch;

/// Those that are under way.
#[derive(Debug, Default)]
pub struct UnderWay {
    requests: Mutex<BTreeSet<RequestId>>,
    broken_off: watch::Sender<bool>,
}

impl UnderWay {
    /// Which they are.
    pub fn requests(&self) -> BTreeSet<RequestId> {
        self.known().clone()
    }

    /// Ends all of them, now and later, with an error.
    pub fn break_off(&self) {
        self.broken_off.send_replace(true);
    }

    /// Counts a request as long as it is worked on.
    pub(super) async fn run<T>(&self, id: RequestId, work: impl Future<Output = Result<T, RequestError>>) -> Result<T, RequestError> {
        self.known().insert(id);
        let _counted = Counted { all: self, id };
        let mut broken_off = self.broken_off.subscribe();
        tokio::select! {
            done = work => done,
            _ = async { broken_off.wait_for(|it_is| *it_is).await.is_ok() } => {
                Err(RequestError::Lost { message: "the node stops, and has no more time for this request".into() })
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<RequestId>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Counted<'a> {
    all: &'a UnderWay,
    id: RequestId,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.all.known().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_counted_until_its_end_or_until_it_is_broken_off() {
        let all = UnderWay::default();
        let seen = all.run(RequestId(1), async { Ok(all.requests()) }).await;
        assert_eq!((seen, all.requests()), (Ok(BTreeSet::from([RequestId(1)])), BTreeSet::new()));
        let endless = all.run(RequestId(2), std::future::pending::<Result<(), _>>());
        let (ended, ()) = tokio::join!(endless, async { all.break_off() });
        assert!(matches!(ended, Err(RequestError::Lost { .. })), "{ended:?}");
        assert!(all.requests().is_empty());
    }
}
