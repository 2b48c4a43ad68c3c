//! Masks, promised before they are computed.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use llguidance::toktrie::SimpleVob;
use plexus_kernels::logits;

/// A mask that takes longer than this holds up all who share its step; its sequence is given up.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Which tokens may be drawn at the next places of an answer: the first and, for each guess that the grammar allows, the one behind it. Clones
/// are the same masks.
#[derive(Clone)]
pub struct Masks(Arc<Slot>);

/// Bits, one for each token, for each place.
type Computed = Result<Arc<[SimpleVob]>, String>;

struct Slot {
    computed: Mutex<Option<Computed>>,
    done: Condvar,
}

/// Who computes the masks keeps this. Dropped unkept, it says that they will not come.
pub(super) struct Promise(Arc<Slot>);

impl Masks {
    pub(super) fn promised() -> (Self, Promise) {
        let slot = Arc::new(Slot { computed: Mutex::new(None), done: Condvar::new() });
        (Self(Arc::clone(&slot)), Promise(slot))
    }

    /// Waits until they are computed. Errors: why there are none.
    pub(crate) fn wait(&self) -> Computed {
        let guard = self.0.computed.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.done.wait_timeout_while(guard, WAIT_MAX, |computed| computed.is_none());
        let (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &*guard {
            Some(computed) => computed.clone(),
            None => Err(format!("it takes more than {WAIT_MAX:?} to tell which tokens it allows")),
        }
    }
}

impl PartialEq for Masks {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masks").finish_non_exhaustive()
    }
}

impl Promise {
    pub(super) fn keep(self, computed: Result<Vec<SimpleVob>, String>) {
        self.set(computed.map(Into::into));
    }

    fn set(&self, result: Computed) {
        let mut computed = self.0.computed.lock().unwrap_or_else(PoisonError::into_inner);
        computed.get_or_insert(result);
        self.0.done.notify_all();
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.set(Err("computing which tokens it allows failed".into())); // nothing, if it was kept
    }
}

/// Makes the tokens that a mask does not allow impossible. `row`: `[vocab_size]` logits.
pub(crate) fn apply(mask: &SimpleVob, row: &mut [f32]) {
    logits::allow_only(row, mask.as_slice());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mask_does_not_allow_is_impossible_and_all_else_as_it_was() {
        for n in [1, 31, 32, 33, 100] {
            let mut mask = SimpleVob::alloc(n);
            (0..n as u32).filter(|id| id % 3 == 0 || (32..64).contains(id)).for_each(|id| mask.allow_token(id));
            let mut row: Vec<f32> = (0..n + 5).map(|id| id as f32).collect();
            apply(&mask, &mut row);
            for (id, logit) in row.iter().enumerate() {
                let allowed = id < n && (id % 3 == 0 || (32..64).contains(&id));
                assert_eq!(*logit, if allowed { id as f32 } else { f32::NEG_INFINITY }, "{id} of {n}");
            }
        }
    }

    #[test]
    fn a_promise_that_is_dropped_is_an_error_and_one_that_is_kept_is_not() {
        let (masks, promise) = Masks::promised();
        drop(promise);
        assert!(masks.wait().is_err());
        let (masks, promise) = Masks::promised();
        promise.keep(Ok(vec![SimpleVob::alloc(3)]));
        assert_eq!(masks.wait().unwrap().len(), 1);
    }
}
