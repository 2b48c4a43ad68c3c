//! How far fetches are, and how fast: pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use plexus_store::{Origin, UnderWay};
use plexus_types::{Bytes, FilesFetch, FilesFrom, ModelProfile, ModelSource};
use tokio::time::Instant;

/// Speed is what came in so long: long enough for a line that stutters, short enough to notice one that becomes slow.
const OF_LATE: Duration = Duration::from_secs(20);
/// What came in less is no measure.
const MEASURED: Duration = Duration::from_secs(1);

/// The speeds of fetches.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<ModelSource, Pace>);

#[derive(Debug)]
struct Pace {
    from: Origin,
    /// What had come at some moments, the oldest first.
    marks: VecDeque<(Instant, Bytes)>,
}

impl Paces {
    /// These are the fetches now. Adds to each how many bytes come in a second; absent if none did of late.
    pub(super) fn on_fetches(&mut self, fetching: Vec<UnderWay>, now: Instant) -> Vec<(UnderWay, Option<Bytes>)> {
        self.0.retain(|source, _| fetching.iter().any(|one| one.source == *source));
        let with_speed = |one: UnderWay| {
            let new = || Pace { from: one.progress.from.clone(), marks: VecDeque::new() };
            let pace = self.0.entry(one.source.clone()).or_insert_with(new);
            if pace.from != one.progress.from {
                *pace = new();
            }
            let speed = pace.on_came(one.progress.came, now);
            (one, speed)
        };
        fetching.into_iter().map(with_speed).collect()
    }
}

impl Pace {
    fn on_came(&mut self, came: Bytes, now: Instant) -> Option<Bytes> {
        if self.marks.back().is_some_and(|(_, before)| came < *before) {
            self.marks.clear(); // it has begun anew
        }
        self.marks.push_back((now, came));
        while self.marks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= OF_LATE) {
            self.marks.pop_front();
        }
        let (since, before) = self.marks.front()?;
        let (time, more) = (now.saturating_duration_since(*since), came.saturating_sub(*before));
        (time >= MEASURED && more > Bytes(0)).then(|| Bytes((more.0 as f64 / time.as_secs_f64()) as u64))
    }
}

/// Is some of a model's files being fetched, its own or those of its draft model?
pub(super) fn is_fetched(profile: &ModelProfile, fetching: &[UnderWay]) -> bool {
    fetching.iter().any(|one| is_of(profile, one))
}

/// How far a model's files are that are being fetched, its own and those of its draft model; absent if none are. `hub`: the address of the hub.
pub(super) fn fetch_of(profile: &ModelProfile, fetching: &[(UnderWay, Option<Bytes>)], hub: &str) -> Option<FilesFetch> {
    let its: Vec<&(UnderWay, Option<Bytes>)> = fetching.iter().filter(|(one, _)| is_of(profile, one)).collect();
    let from = its.iter().map(|(one, _)| from(&one.progress.from, hub)).reduce(|a, b| if a == FilesFrom::Unknown { b } else { a })?;
    Some(FilesFetch {
        done: its.iter().map(|(one, _)| one.progress.done).sum(),
        total: its.iter().map(|(one, _)| one.progress.total).sum(),
        per_second: its.iter().filter_map(|(_, speed)| *speed).reduce(|a, b| a + b),
        from,
        failure: its.iter().find_map(|(one, _)| one.failure.clone()),
    })
}

fn is_of(profile: &ModelProfile, one: &UnderWay) -> bool {
    one.source == profile.source || profile.draft.as_ref() == Some(&one.source)
}

fn from(origin: &Origin, hub: &str) -> FilesFrom {
    match origin {
        Origin::Unknown => FilesFrom::Unknown,
        Origin::Hub => FilesFrom::Hub(hub.to_owned()),
        Origin::Peers(n) => FilesFrom::Nodes(u32::try_from(*n).unwrap_or(u32::MAX)),
        Origin::Awaited(node) => FilesFrom::Awaited(node.clone()),
    }
}

#[cfg(test)]
mod tests {
    use plexus_store::Progress;

    use super::*;

    fn source(name: &str) -> ModelSource {
        ModelSource::Path(name.into())
    }

    fn under_way(name: &str, done: u64, from: Origin) -> UnderWay {
        let progress = Progress { done: Bytes(done), total: Bytes(10), from, came: Bytes(done) };
        UnderWay { source: source(name), progress, failure: None }
    }

    #[test]
    fn a_model_is_being_fetched_while_its_files_are_or_those_of_its_draft_model() {
        let profile = ModelProfile { draft: Some(source("draft")), ..ModelProfile::new("m".parse().unwrap(), source("own")) };
        let some = |name, done, from| (under_way(name, done, from), Some(Bytes(done)));
        let of = |fetching: &[(UnderWay, Option<Bytes>)]| fetch_of(&profile, fetching, "http://hub");
        let fetch = |done, total, per_second, from| {
            Some(FilesFetch { done: Bytes(done), total: Bytes(total), per_second: Some(Bytes(per_second)), from, failure: None })
        };
        let other = some("other", 1, Origin::Hub);
        assert_eq!(of(std::slice::from_ref(&other)), None);
        assert_eq!(of(&[some("own", 1, Origin::Hub), other]), fetch(1, 10, 1, FilesFrom::Hub("http://hub".into())));
        assert_eq!(of(&[some("draft", 2, Origin::Peers(2))]), fetch(2, 10, 2, FilesFrom::Nodes(2)));
        assert_eq!(of(&[some("own", 1, Origin::Unknown), some("draft", 2, Origin::Peers(1))]), fetch(3, 20, 3, FilesFrom::Nodes(1)));
        let mut failed = some("own", 1, Origin::Unknown);
        (failed.0.failure, failed.1) = (Some("status 503".into()), None);
        let fetch = of(&[failed]).unwrap();
        assert_eq!((fetch.failure.as_deref(), fetch.per_second), (Some("status 503"), None));
    }

    #[test]
    fn the_speed_of_a_fetch_is_that_of_late_and_nothing_is_said_while_nothing_comes() {
        let (mut paces, begun) = (Paces::default(), Instant::now());
        let mut at = |seconds: f64, came, from| {
            let now = begun + Duration::from_secs_f64(seconds);
            paces.on_fetches(vec![under_way("m", came, from)], now)[0].1.map(|speed| speed.0)
        };
        assert_eq!(at(0.0, 1000, Origin::Hub), None, "those came before it was looked at");
        assert_eq!(at(0.5, 1100, Origin::Hub), None, "that is too short");
        assert_eq!(at(1.0, 1100, Origin::Hub), Some(100));
        assert_eq!(at(10.0, 1500, Origin::Hub), Some(50));
        assert_eq!(at(30.0, 1500, Origin::Hub), None, "nothing has come for long");
        assert_eq!(at(40.0, 1700, Origin::Hub), Some(6), "it comes again, after a pause");
        assert_eq!(at(41.0, 5000, Origin::Peers(1)), None, "those are others");
        assert_eq!(at(42.0, 5001, Origin::Peers(1)), Some(1));
        assert_eq!(at(43.0, 0, Origin::Peers(1)), None, "it begins anew");
    }
}
