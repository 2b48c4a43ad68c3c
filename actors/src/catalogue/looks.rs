//! One look at the files at a time.
//!
//! A disk that is slow, or a network's file system that hangs, would otherwise be asked for the same again and again, each time by a further thread,
//! until the process had none left for anything that blocks.

use std::time::Duration;

use ractor::ActorId;
use tokio::time::Instant;

use super::CatalogueMsg;
use crate::address::Address;

/// A look that takes longer is told of: nothing that changes is noticed meanwhile.
const LOOK_LONG: Duration = Duration::from_secs(60);

/// Which looks are under way and wanted.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Since when one has been under way.
    since: Option<Instant>,
    /// What it finds may be old: another follows.
    again: bool,
    /// It was told of as taking long.
    is_told: bool,
}

impl Looks {
    /// Somebody wants a look: does one begin? If one is under way already, another follows it.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.again = self.since.is_some();
        self.since.get_or_insert(now);
        !self.again
    }

    /// The look is over. Is another wanted?
    pub(super) fn on_end(&mut self) -> bool {
        std::mem::take(self).again
    }

    /// For how long one has been under way, if that is long and was not said yet.
    pub(super) fn is_long(&mut self, now: Instant) -> Option<Duration> {
        let long = now.saturating_duration_since(self.since?);
        (long >= LOOK_LONG && !std::mem::replace(&mut self.is_told, true)).then_some(long)
    }
}

/// Says that a look is over, even if it panicked.
#[derive(Debug)]
pub(super) struct LookEnds {
    address: Address<CatalogueMsg>,
    life: ActorId,
}

impl LookEnds {
    /// For a look that this life of the catalogue begins.
    pub(super) fn new(address: Address<CatalogueMsg>, life: ActorId) -> Self {
        Self { address, life }
    }
}

impl Drop for LookEnds {
    fn drop(&mut self) {
        self.address.tell_life(self.life, CatalogueMsg::LookEnded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_look_at_a_time_and_one_more_if_somebody_asked_meanwhile() {
        let now = Instant::now();
        let mut looks = Looks::default();
        assert!(looks.begin(now));
        assert!(!looks.on_end(), "nobody asked");
        assert!(looks.begin(now));
        assert_eq!([(); 3].map(|()| looks.begin(now)), [false; 3]);
        assert!(looks.on_end());
        assert!(looks.begin(now), "the one that follows");
        assert!(!looks.on_end(), "one for all three");
    }

    #[test]
    fn a_look_that_takes_long_is_told_of_once() {
        let begun = Instant::now();
        let mut looks = Looks::default();
        assert_eq!(looks.is_long(begun + 2 * LOOK_LONG), None, "none is under way");
        looks.begin(begun);
        looks.begin(begun + LOOK_LONG);
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!([59, 61, 65].map(|seconds| looks.is_long(after(seconds))), [None, Some(Duration::from_secs(61)), None]);
        assert!(looks.on_end() && looks.begin(after(70)));
        assert_eq!(looks.is_long(after(80)), None, "this is another look");
    }
}
