//! What goes wrong at the hub while it is still being tried: told in the log, and shown beside how far a fetch is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plexus_types::{HubSource, ModelSource, chain};
use tokio::time::Instant;
use tracing::warn;

use crate::error::FetchError;

/// A hub that says nothing for so long is told of, long before it is given up.
pub(super) const QUIET: Duration = Duration::from_secs(5);
/// The same is told again after so long, while it goes on.
const TOLD_FOR: Duration = Duration::from_secs(30);

/// The tries of all models that a hub is asked for now.
#[derive(Debug, Default)]
pub(crate) struct AllTries(Mutex<HashMap<ModelSource, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    /// What went wrong last, if nothing has come since.
    last: Option<String>,
    /// When each was told of.
    told: HashMap<String, Instant>,
}

impl Failures {
    /// Something went wrong. Is it to be told of?
    fn on_failure(&mut self, why: &str, now: Instant) -> bool {
        self.last = Some(why.to_owned());
        self.told.retain(|_, told| now.saturating_duration_since(*told) < TOLD_FOR);
        let is_known = self.told.contains_key(why);
        if !is_known {
            self.told.insert(why.to_owned(), now);
        }
        !is_known
    }
}

impl AllTries {
    /// Begins to ask for a model.
    pub(super) fn of(&self, source: &HubSource) -> Tries<'_> {
        Tries { all: self, source: ModelSource::Hub(source.clone()) }
    }

    /// What went wrong last of each model, if nothing has come since.
    pub(crate) fn failures(&self) -> HashMap<ModelSource, String> {
        self.all().iter().filter_map(|(source, failures)| Some((source.clone(), failures.last.clone()?))).collect()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ModelSource, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tries of one model, which are over when this is dropped.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    all: &'a AllTries,
    source: ModelSource,
}

impl Tries<'_> {
    /// A try has failed; the next begins after `next`.
    pub(super) fn on_failure(&self, url: &str, error: &FetchError, next: Duration, now: Instant) {
        if self.note(&error.in_short(url), now) {
            warn!(model = %self.source, url, error = %chain(error), next_try_in = ?next, "a hub does not give a model's files");
        }
    }

    /// There was no answer for [`QUIET`], which is still waited for.
    pub(super) fn on_silence(&self, url: &str, now: Instant) {
        if self.note(&format!("{url} has said nothing for {QUIET:?}"), now) {
            warn!(model = %self.source, url, quiet = ?QUIET, "a hub does not answer; it is waited for");
        }
    }

    /// Something came.
    pub(super) fn on_answer(&self) {
        if let Some(failures) = self.all.all().get_mut(&self.source) {
            failures.last = None;
        }
    }

    fn note(&self, why: &str, now: Instant) -> bool {
        self.all.all().entry(self.source.clone()).or_default().on_failure(why, now)
    }
}

impl Drop for Tries<'_> {
    fn drop(&mut self) {
        self.all.all().remove(&self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_is_told_once_in_a_while_and_shown_until_something_comes_or_nobody_asks() {
        let (all, begun) = (AllTries::default(), Instant::now());
        let source: HubSource = match "hf:org/name".parse().unwrap() {
            ModelSource::Hub(hub) => hub,
            other => panic!("{other}"),
        };
        let tries = all.of(&source);
        let shown = || all.failures().into_values().next();
        assert!(tries.note("one", begun) && tries.note("two", begun));
        assert!(!tries.note("one", begun + TOLD_FOR / 2), "that is known");
        assert_eq!(shown().as_deref(), Some("one"));
        assert!(tries.note("one", begun + TOLD_FOR), "it goes on");
        tries.on_answer();
        assert_eq!(shown(), None);
        assert!(!tries.note("one", begun + TOLD_FOR), "what comes and goes is told no more often");
        let error = FetchError::HubFails { url: "http://hub/x".into(), problem: "status 503".into() };
        tries.on_failure("http://hub/x", &error, Duration::ZERO, begun);
        assert_eq!(shown().as_deref(), Some("http://hub/x: status 503"));
        drop(tries);
        assert_eq!(shown(), None);
    }
}
