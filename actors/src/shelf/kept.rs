//! The files that somebody asked about last, kept open: to read a vocabulary takes longer than to count the tokens of a prompt, and who counts one
//! counts the next, or has the model loaded. One model's at a time, so that this takes no more memory than one question does.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use plexus_types::ModelProfile;
use tokio::time::Instant;

use super::{Fingerprint, OpenError, Opened, Shelf};

/// Files that nobody has asked about for so long are closed.
const KEEP: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Kept {
    profile: ModelProfile,
    print: Fingerprint,
    opened: Opened,
    asked: Instant,
}

impl Shelf {
    /// As [`Shelf::open`], but the files stay open for a while, for those who ask next.
    pub fn keep_open(&self, profile: &ModelProfile) -> Result<Opened, OpenError> {
        let print = self.readable(profile)?;
        let opened = match self.take_kept(profile, print) {
            Some(opened) => opened,
            None => self.open(profile)?,
        };
        let kept = Kept { profile: profile.clone(), print, opened: opened.clone(), asked: Instant::now() };
        let _closed_unlocked = self.kept().replace(kept);
        Ok(opened)
    }

    /// Are these files open already, unless they have changed?
    pub fn is_open(&self, profile: &ModelProfile) -> bool {
        self.kept().as_ref().is_some_and(|kept| kept.profile == *profile)
    }

    /// As [`Shelf::open`]. What was kept open is no longer: who loads the model answers for it from now on.
    pub fn take_opened(&self, profile: &ModelProfile) -> Result<Opened, OpenError> {
        match self.take_kept(profile, self.readable(profile)?) {
            Some(opened) => Ok(opened),
            None => self.open(profile),
        }
    }

    /// Closes what nobody has asked about for some time.
    pub fn close_unused(&self, now: Instant) {
        let unused = |kept: &mut Kept| now.saturating_duration_since(kept.asked) >= KEEP;
        let _closed_unlocked = self.kept().take_if(unused);
    }

    fn readable(&self, profile: &ModelProfile) -> Result<Fingerprint, OpenError> {
        self.fingerprint(profile).map_err(|error| OpenError::Unreadable(error.to_string()))
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_kept(&self, profile: &ModelProfile, print: Fingerprint) -> Option<Opened> {
        let is_it = |kept: &mut Kept| kept.profile == *profile && kept.print == print;
        self.kept().take_if(is_it).map(|kept| kept.opened)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use plexus_types::ModelSource;

    use super::*;
    use crate::router::view::tests::facts;
    use crate::shelf::tests::alone;

    #[test]
    fn who_asks_again_or_loads_what_was_asked_about_does_not_read_it_again_and_what_was_replaced_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let pip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip/pip-q8_0.gguf");
        let file = folder.path().join("m.gguf");
        std::fs::copy(&pip, &file).unwrap();
        let profile = ModelProfile::new("m".parse().unwrap(), ModelSource::Path(file.clone()));
        let other = ModelProfile { context_length: Some(64), ..profile.clone() };
        let shelf = alone(facts("a").id, folder.path());
        let is_same = |a: &Opened, b: &Opened| Arc::ptr_eq(&a.files.codec, &b.files.codec);

        assert!(!shelf.is_open(&profile));
        let first = shelf.keep_open(&profile).unwrap();
        assert!(is_same(&first, &shelf.keep_open(&profile).unwrap()) && shelf.is_open(&profile));
        assert!(is_same(&first, &shelf.take_opened(&profile).unwrap()));
        assert!(!shelf.is_open(&profile), "who loads it has it");

        let first = shelf.keep_open(&profile).unwrap();
        std::fs::copy(&pip, folder.path().join("new")).unwrap();
        let later = std::time::SystemTime::now() + Duration::from_secs(1);
        std::fs::File::open(folder.path().join("new")).unwrap().set_modified(later).unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        let second = shelf.keep_open(&profile).unwrap();
        assert!(!is_same(&first, &second), "its file was replaced");
        assert_eq!(shelf.keep_open(&other).unwrap().files.context_length(), 64, "one file, held otherwise");
        assert!(!shelf.is_open(&profile), "one at a time");

        let now = Instant::now();
        shelf.close_unused(now);
        assert!(shelf.is_open(&other));
        shelf.close_unused(now + KEEP);
        assert!(!shelf.is_open(&other));
        std::fs::remove_file(&file).unwrap();
        assert!(shelf.keep_open(&profile).unwrap_err().to_string().contains("is not on this node"));
    }
}
