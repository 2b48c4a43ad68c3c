//! Why a replica does not take requests, counted for those who look after it (CX-46).

use plexus_api::service::{Rejected, ReplicaVitals};
use plexus_types::RequestError;

use super::{ModelState, Phase};

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Batch and queue are full.
    Full,
    /// Whoever asks has as many requests as each may.
    KeyLimit,
    /// It has waited for a place for as long as it may.
    Late,
    /// Its prompt does not fit.
    TooLong,
    /// The model is not loaded.
    NotLoaded,
}

impl Reason {
    /// That of an error that says it by itself.
    pub(super) fn of(error: &RequestError) -> Option<Self> {
        match error {
            RequestError::ContextLength { .. } | RequestError::TextLength { .. } => Some(Self::TooLong),
            RequestError::Invalid { .. }
            | RequestError::ModelNotFound { .. }
            | RequestError::WrongModality { .. }
            | RequestError::Overloaded { .. }
            | RequestError::Unavailable { .. }
            | RequestError::Unservable { .. }
            | RequestError::Lost { .. }
            | RequestError::Internal { .. } => None,
        }
    }
}

/// One more was not taken for this reason.
pub(super) fn count(rejected: &mut Rejected, reason: Reason) {
    let counter = match reason {
        Reason::Full => &mut rejected.full,
        Reason::KeyLimit => &mut rejected.key_limit,
        Reason::Late => &mut rejected.late,
        Reason::TooLong => &mut rejected.too_long,
        Reason::NotLoaded => &mut rejected.not_loaded,
    };
    *counter += 1;
}

impl ModelState {
    pub(super) fn vitals(&self) -> ReplicaVitals {
        let (budget, available) = match &self.phase {
            Phase::Loaded { resident, batcher } => {
                let mib = |n_blocks: u32| (u64::from(n_blocks) * resident.kv_per_block.0) as f64 / f64::from(1 << 20);
                (Some(mib(resident.plan.kv.n_blocks)), Some(mib(batcher.blocks().0)))
            }
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => (None, None),
        };
        ReplicaVitals { rejected: self.rejected, kv_budget_mb: budget, kv_available_mb: available }
    }
}
