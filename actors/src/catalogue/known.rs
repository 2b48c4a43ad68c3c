//! What is known of one model's files: pure.

use std::time::Duration;

use plexus_store::{Names, Unread};
use plexus_types::{CatalogueEntry, FilesState, ModelProfile};
use tokio::time::Instant;

use crate::shelf::Fingerprint;

/// What could not be read is read again after so long, then after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(5);
/// At most so long.
const AGAIN_MAX: Duration = Duration::from_secs(80);

/// What came of a look at a model's files.
#[derive(Debug)]
pub enum Look {
    /// They are this, under this fingerprint.
    Seen(FilesState, Fingerprint),
    /// They are there, with this fingerprint, and could not be read.
    Unreadable(String, Fingerprint),
    /// It could not be told whether they are there, or the same.
    Unseen(String),
}

/// What a look says that was not known.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// The files are something else now.
    Files,
    /// They can no longer be looked at; what was known stays.
    Unseen(String),
}

/// A model, and what is known of its files.
#[derive(Debug)]
pub(super) struct Known {
    /// As the others are told.
    pub(super) entry: CatalogueEntry,
    print: Fingerprint,
    /// The files could not be read.
    again: Option<Again>,
}

#[derive(Debug, Clone, Copy)]
struct Again {
    pause: Duration,
    at: Instant,
}

impl Again {
    fn next(before: Option<Self>, now: Instant) -> Self {
        let pause = before.map_or(AGAIN, |before| (2 * before.pause).min(AGAIN_MAX));
        Self { pause, at: now + pause }
    }
}

impl Known {
    pub(super) fn new(profile: ModelProfile, found: bool) -> Self {
        Self { entry: CatalogueEntry { profile, found, files: FilesState::Unknown }, print: Fingerprint::default(), again: None }
    }

    /// The fingerprint with which the files need not be opened again, unless they are to be in any case.
    pub(super) fn unchanged_if(&self, now: Instant) -> Option<Fingerprint> {
        let is_known = matches!(self.entry.files, FilesState::Present(_) | FilesState::Refused(_));
        let is_due = self.again.is_some_and(|again| again.at <= now);
        (is_known && !is_due).then_some(self.print)
    }

    /// Its files were looked at. Gives what is new.
    pub(super) fn on_look(&mut self, look: Look, is_fetched: bool, now: Instant) -> Option<News> {
        let files = match look {
            Look::Seen(files, print) => {
                (self.print, self.again) = (print, None);
                files
            }
            Look::Unreadable(why, print) => {
                (self.print, self.again) = (print, Some(Again::next(self.again, now)));
                FilesState::Refused(why)
            }
            // A disk or a network that does not answer for a moment says nothing of the files, which may be served from where they are loaded.
            Look::Unseen(why) => {
                let is_news = self.again.replace(Again::next(self.again, now)).is_none();
                match self.entry.files {
                    FilesState::Present(_) | FilesState::Fetching(_) => return is_news.then_some(News::Unseen(why)),
                    FilesState::Unknown | FilesState::Absent | FilesState::Refused(_) => FilesState::Refused(why),
                }
            }
        };
        if self.entry.files == files || (is_fetched && is_still_coming(&self.entry.files, &files)) {
            return None;
        }
        self.entry.files = files;
        Some(News::Files)
    }

    /// Is it to be kept, where these models were found, and these folders could not be read?
    ///
    /// What is listed is, and what is `served` from here, which goes on whether its files are there or not. So is what lies in a folder that could
    /// not be read.
    pub(super) fn stays(&self, found: &Names, unread: &[Unread], served: bool) -> bool {
        let CatalogueEntry { profile: ModelProfile { id, source, .. }, found: is_found, .. } = &self.entry;
        !is_found || served || found.get(id) == Some(source) || unread.iter().any(|unread| unread.hides(source))
    }
}

/// Files that are being fetched are not here yet: that says nothing new, while the fetch goes on.
fn is_still_coming(before: &FilesState, now: &FilesState) -> bool {
    matches!((before, now), (FilesState::Fetching(_), FilesState::Absent))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use plexus_types::{Bytes, FilesFetch, FilesFrom, ModelId, ModelSource};

    use super::*;
    use crate::evictor::core::tests::facts;

    fn id(text: &str) -> ModelId {
        text.parse().unwrap()
    }

    fn at(path: &str) -> ModelSource {
        ModelSource::Path(path.into())
    }

    fn lying(name: &str, path: &str) -> Known {
        Known::new(ModelProfile::new(id(name), at(path)), true)
    }

    fn unread(folder: &str, is_certain: bool) -> Unread {
        Unread { folder: PathBuf::from(folder), why: "it is said in a test".into(), is_certain }
    }

    fn present() -> FilesState {
        FilesState::Present(facts(40))
    }

    #[test]
    fn what_lies_in_a_folder_that_cannot_be_read_for_a_moment_stays_and_what_was_taken_away_goes() {
        let (known, none) = (lying("m", "/models/sub/m.gguf"), Names::new());
        assert!(!known.stays(&none, &[], false), "it was taken away");
        assert!(known.stays(&none, &[], true), "it is loaded");
        assert!(known.stays(&Names::from([(id("m"), at("/models/sub/m.gguf"))]), &[], false));
        assert!(!known.stays(&Names::from([(id("m"), at("/models/m.gguf"))]), &[], false), "another is called so by now");
        assert!(known.stays(&none, &[unread("/models", false)], false));
        assert!(known.stays(&none, &[unread("/models/sub", false)], false));
        assert!(!known.stays(&none, &[unread("/models/other", false)], false), "the folder that it lay in was read");
        assert!(!known.stays(&none, &[unread("/models", true)], false), "the folder itself was taken away");
        assert!(Known { entry: CatalogueEntry { found: false, ..known.entry }, ..known }.stays(&none, &[], false), "it is listed");
    }

    #[test]
    fn what_could_not_be_read_is_read_again_ever_more_seldom_until_it_is() {
        let (mut known, begun) = (lying("m", "/m.gguf"), Instant::now());
        let print = Fingerprint::default();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let why = || "too many open files".to_owned();
        let refused = FilesState::Refused(why());
        assert_eq!(known.unchanged_if(begun), None, "nothing is known yet");
        assert_eq!(known.on_look(Look::Unreadable(why(), print), false, begun), Some(News::Files));
        assert_eq!([4, 5].map(|s| known.unchanged_if(after(s)).is_none()), [false, true]);
        assert_eq!(known.entry.files, refused);
        assert_eq!(known.on_look(Look::Unreadable(why(), print), false, after(5)), None, "that is no news");
        assert_eq!([14, 15].map(|s| known.unchanged_if(after(s)).is_none()), [false, true]);
        (0..10).for_each(|_| drop(known.on_look(Look::Unreadable(why(), print), false, begun)));
        assert_eq!([79, 80].map(|s| known.unchanged_if(after(s)).is_none()), [false, true]);
        assert_eq!(known.on_look(Look::Seen(present(), print), false, after(80)), Some(News::Files));
        assert_eq!(known.unchanged_if(after(1000)), Some(print), "it is read now");
        known.on_look(Look::Seen(FilesState::Refused("it is cut".into()), print), false, after(80));
        assert_eq!(known.unchanged_if(after(1000)), Some(print), "what was read, and is no model, is one only once it changes");
    }

    #[test]
    fn a_disk_that_does_not_answer_takes_nothing_away_that_was_there() {
        let (mut known, now) = (lying("m", "/m.gguf"), Instant::now());
        let unseen = || Look::Unseen("stale file handle".into());
        assert_eq!(known.on_look(unseen(), false, now), Some(News::Files));
        assert_eq!(known.on_look(Look::Seen(present(), Fingerprint::default()), false, now), Some(News::Files));
        assert_eq!(known.on_look(unseen(), false, now), Some(News::Unseen("stale file handle".into())));
        assert_eq!(known.on_look(unseen(), false, now), None, "once is enough");
        assert_eq!(known.entry.files, present());
        let absent = || Look::Seen(FilesState::Absent, Fingerprint::default());
        assert_eq!(known.on_look(absent(), false, now), Some(News::Files), "it was looked at, and is gone");
    }

    #[test]
    fn while_files_are_being_fetched_that_they_are_not_here_is_no_news() {
        let fetch = FilesFetch { done: Bytes(1), total: Bytes(2), per_second: None, from: FilesFrom::Unknown, failure: None };
        let fetching = FilesState::Fetching(fetch);
        let look = |before: &FilesState, now: FilesState, is_fetched| {
            let mut known = lying("m", "/m.gguf");
            known.entry.files = before.clone();
            known.on_look(Look::Seen(now, Fingerprint::default()), is_fetched, Instant::now()).is_some()
        };
        assert!(!look(&fetching, FilesState::Absent, true));
        assert!(look(&fetching, FilesState::Absent, false), "the fetch has ended");
        assert!(look(&fetching, FilesState::Refused("damaged".into()), true));
        assert!(look(&FilesState::Unknown, FilesState::Absent, true));
    }
}
