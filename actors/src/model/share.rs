//! How many requests each who asks may have at a replica (CX-93).
//!
//! Who asks is told by the key that a client sends. Keys are not checked, so that they keep apart clients that mean well; those that send none
//! are one, and have what those with a key leave: [`super::scheduler`] gives places to them last, and at most `anonymous_max` run or wait. A queue that
//! is full is no wall either: who has fewer requests here takes the place of one that waits of who has most.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_types::{ModelProfile, RequestError};

use super::late::overloaded;
use super::rejected::Reason;
use super::scheduler::Principal;

/// Who asks for one request more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    pub(super) principal: Principal,
    /// Of its requests, those that run or wait.
    pub(super) own: u32,
    /// Of all requests, those that run or wait.
    pub(super) present: u32,
}

/// May one request more come in? True if it takes the place of another, which `displace` sends away with the same error if there is one that has less
/// of a right to wait: one without a key, or one of a key that has more requests here.
pub(super) fn admit(
    profile: &ModelProfile,
    Asking { principal, own, present }: Asking,
    place_wait: Duration,
    displace: impl FnOnce(&RequestError) -> bool,
) -> Result<bool, (Reason, RequestError)> {
    let too_many = |message| (Reason::KeyLimit, RequestError::Overloaded { message, retry_after: place_wait });
    may_have_more(profile, principal, own).map_err(too_many)?;
    if present < profile.running_max.saturating_add(profile.waiting_max) {
        return Ok(false);
    }
    let full = overloaded(profile, present, place_wait);
    if principal.is_some() && displace(&full) { Ok(true) } else { Err((Reason::Full, full)) }
}

/// How many requests each principal has, and whether one of them has not had a place yet.
pub(super) type Shares = BTreeMap<Principal, (u32, bool)>;

/// Whose youngest request makes way for one with a key, who has `own`: of those that have not had a place yet one without a key or, if there is none,
/// one of the key that has most, if it would still not have fewer than who asks.
pub(super) fn makes_way(shares: &Shares, own: u32) -> Option<Principal> {
    let waits = |principal: &Principal| shares.get(principal).is_some_and(|(_, waits)| *waits);
    let larger = shares.iter().filter(|(principal, (n, _))| waits(principal) && *n > own.saturating_add(1));
    let largest = || larger.max_by_key(|(_, (n, _))| *n).map(|(principal, _)| *principal);
    Some(None).filter(waits).or_else(largest)
}

/// May `principal`, of whom `own` requests run or wait, have one more? Says why not.
fn may_have_more(profile: &ModelProfile, principal: Principal, own: u32) -> Result<(), String> {
    let model = &profile.id;
    match principal {
        None => match profile.anonymous_max.or(profile.principal_max) {
            Some(most) if own >= most => {
                Err(format!("{own} requests without a key run or wait for the model '{model}', {most} may; send a key, or come back later"))
            }
            Some(_) | None => Ok(()),
        },
        Some(_) => match profile.principal_max {
            Some(most) if own >= most => Err(format!("{own} requests of this key run or wait for the model '{model}', {most} may")),
            Some(_) | None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use plexus_types::ModelSource;

    use super::*;

    #[test]
    fn a_queue_without_a_bound_takes_everybody() {
        let boundless = ModelProfile { waiting_max: u32::MAX, ..ModelProfile::new("m".parse().unwrap(), ModelSource::Embedded) };
        let asking = Asking { principal: None, own: 0, present: 1_000_000 };
        assert_eq!(admit(&boundless, asking, Duration::ZERO, |_| false), Ok(false));
    }

    #[test]
    fn each_key_may_have_so_many_and_all_without_one_together_so_many() {
        let profile = ModelProfile::new("m".parse().unwrap(), ModelSource::Embedded);
        let limited = ModelProfile { principal_max: Some(3), anonymous_max: Some(2), ..profile.clone() };
        let most = |profile: &ModelProfile, principal| (0..10).take_while(|own| may_have_more(profile, principal, *own).is_ok()).count();
        assert_eq!([most(&limited, Some(1)), most(&limited, None)], [3, 2]);
        assert_eq!([most(&profile, Some(1)), most(&profile, None)], [10, 10]);
        let of_a_key = ModelProfile { principal_max: Some(3), ..profile.clone() };
        assert_eq!([most(&of_a_key, Some(1)), most(&of_a_key, None)], [3, 3], "those without a key are as one");
        let error = may_have_more(&limited, None, 2).unwrap_err();
        assert_eq!(error, "2 requests without a key run or wait for the model 'm', 2 may; send a key, or come back later");
    }
}
