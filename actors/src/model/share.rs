//! How many requests each who asks may have at a replica (CX-93).
//!
//! Who asks is told by the key that a client sends. Keys are not checked, so that they keep apart clients that mean well; those that send none
//! are one, and have what those with a key leave: [`super::scheduler`] gives places to them last, and at most `anonymous_max` run or wait.

use plexus_types::ModelProfile;

use super::scheduler::Principal;

/// May `principal`, of whom `own` requests run or wait, have one more? Says why not.
pub(super) fn may_have_more(profile: &ModelProfile, principal: Principal, own: u32) -> Result<(), String> {
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
