//! How a request looks for a replica: one that has failed it is passed over for others, and what may come back soon, or is being loaded, is
//! waited for. A plain struct that decides and does no I/O; streams keep to it, and so do requests that are none.

use std::time::Duration;

use plexus_types::{ReplicaId, RequestError, Retry};
use tokio::time::Instant;

/// How long a request waits for a replica when none can serve it for the moment: an actor, a device or a process that is restarted takes less.
pub const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// How often it asks again meanwhile, if nobody wakes it.
pub const RECOVERY_POLL: Duration = Duration::from_millis(250);

/// A request on its search for a replica. What is an error here is for its client; else the router is asked again.
#[derive(Debug, Default)]
pub struct Search {
    /// Replicas that have failed this request since it waited last.
    pub tried: Vec<ReplicaId>,
    last_error: Option<RequestError>,
    /// Replicas that have failed this request since its last token, those forgiven by waiting included.
    n_failed: u32,
    /// When the wait for a replica to come back is over; absent while none is waited for.
    recover_by: Option<Instant>,
    /// When the wait for the model to be loaded is over; absent while it is not waited for.
    load_by: Option<Instant>,
}

impl Search {
    /// Had the model to be loaded for it?
    pub fn is_cold_start(&self) -> bool {
        self.load_by.is_some()
    }

    /// No replica is left. One that may come back soon is waited for; else the client hears of what went wrong with the last one, which says
    /// more than that none is left.
    pub fn on_refused(&mut self, error: RequestError, now: Instant) -> Result<(), RequestError> {
        let soon = match &error {
            RequestError::Unavailable { .. } => true,
            // No node tells of the model any more, but one did: it was lost with its replica, and both may come back.
            RequestError::ModelNotFound { .. } => self.last_error.is_some(),
            _ => false,
        };
        let may_come_back = soon && matches!(&self.last_error, None | Some(RequestError::Lost { .. } | RequestError::Unavailable { .. }));
        if may_come_back && self.may_recover(now) { Ok(()) } else { Err(self.last_error.take().unwrap_or(error)) }
    }

    /// The model is being loaded, or waits for room.
    pub fn on_wait(&mut self, error: RequestError, load_timeout: Duration, now: Instant) -> Result<(), RequestError> {
        if now >= *self.load_by.get_or_insert(now + load_timeout) {
            return Err(error);
        }
        self.recover_by = None; // nothing recovers: it is loaded anew
        Ok(())
    }

    /// The router has not answered.
    pub fn on_no_route(&mut self, error: RequestError, now: Instant) -> Result<(), RequestError> {
        if self.may_recover(now) { Ok(()) } else { Err(self.last_error.take().unwrap_or(error)) }
    }

    /// A replica has failed the request; it `had_begun` with it, or just was no longer there or had no place for it, by which nothing was tried.
    pub fn on_failed(&mut self, replica: ReplicaId, error: RequestError, had_begun: bool, attempts_max: u32) -> Result<(), RequestError> {
        self.tried.push(replica);
        let had_gone = !had_begun && matches!(error, RequestError::Unavailable { .. });
        self.n_failed += u32::from(!had_gone);
        if error.retry() == Retry::Never || self.n_failed >= attempts_max {
            return Err(error);
        }
        self.last_error = Some(error);
        Ok(())
    }

    /// It has waited. Whoever failed before may be a new life of itself by now.
    pub fn on_waited(&mut self) {
        self.tried.clear();
    }

    /// What went wrong before counts no more, so that a long stream survives any number of losses.
    pub fn on_progress(&mut self) {
        self.recover_by = None;
        self.load_by = None;
        self.n_failed = 0;
    }

    fn may_recover(&mut self, now: Instant) -> bool {
        now < *self.recover_by.get_or_insert(now + RECOVERY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(node: &str) -> ReplicaId {
        ReplicaId { model: "m".parse().unwrap(), node: format!("{node}#1").parse().unwrap(), device: "cpu-0".parse().unwrap() }
    }

    fn gone() -> RequestError {
        RequestError::soon("it has just gone")
    }

    #[test]
    fn a_replica_that_had_gone_is_asked_again_after_a_wait_as_often_as_it_takes_but_not_for_longer_than_one_that_is_restarted() {
        let begun = Instant::now();
        let mut search = Search::default();
        let mut now = begun;
        let told = loop {
            search.on_failed(on("a"), gone(), false, 3).expect("nothing was tried");
            assert_eq!(search.tried, [on("a")]);
            if let Err(told) = search.on_refused(gone(), now) {
                break told;
            }
            now += RECOVERY_POLL;
            search.on_waited();
            assert_eq!(search.tried, [], "it may be there again");
        };
        assert_eq!((told, now - begun), (gone(), RECOVERY_MAX));
    }

    #[test]
    fn a_load_is_waited_for_as_long_as_loads_may_take_and_what_came_before_it_is_forgotten() {
        let begun = Instant::now();
        let mut search = Search::default();
        search.on_refused(gone(), begun).unwrap();
        let minute = Duration::from_secs(60);
        search.on_wait(gone(), minute, begun + RECOVERY_MAX).unwrap();
        assert!(search.is_cold_start());
        search.on_refused(gone(), begun + 2 * RECOVERY_MAX).expect("the wait for it begins anew");
        assert_eq!(search.on_wait(gone(), minute, begun + RECOVERY_MAX + minute), Err(gone()));
    }
}
