//! How many requests each who asks may have at a replica (CX-93).
//!
//! Who asks is told by the key that a client sends. Keys are not checked, so that they keep apart clients that mean well; those that send none
//! are one, and have what those with a key leave: [`super::scheduler`] gives places to them last, and at most `anonymous_max` run or wait.

use plexus_types::ModelProfile;

use super::scheduler::Principal;

/// May `principal`, of whom `own` requests run or wait, have one more? Says why not.
pub(super) fn may_have_more(profile: &ModelProfile, principal: Principal, own: u32) -> Result<(), String> {
    let full = |most: &u32| own >= *most;
    if let Some(most) = profile.anonymous_max.filter(|most| principal.is_none() && full(most)) {
        let model = &profile.id;
        return Err(format!(
            "{own} requests without a key run or wait for the model '{model}', {most} may; send a key, or come back later"
        ));
    }
    match profile.principal_max.filter(full) {
        Some(most) => Err(format!("{own} requests of this key run or wait for the model '{}', {most} may", profile.id)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use plexus_types::ModelSource;

    use super::*;

    #[test]
    fn each_key_may_have_so_many_and_all_without_one_together_so_many() {
        let profile = ModelProfile::new("m".parse().unwrap(), ModelSource::Embedded);
        let limited = ModelProfile { principal_max: Some(3), anonymous_max: Some(2), ..profile.clone() };
        let most = |profile: &ModelProfile, principal| (0..10).take_while(|own| may_have_more(profile, principal, *own).is_ok()).count();
        assert_eq!([most(&limited, Some(1)), most(&limited, None)], [3, 2]);
        assert_eq!([most(&profile, Some(1)), most(&profile, None)], [10, 10]);
        let error = may_have_more(&limited, None, 2).unwrap_err();
        assert_eq!(error, "2 requests without a key run or wait for the model 'm', 2 may; send a key, or come back later");
    }
}
