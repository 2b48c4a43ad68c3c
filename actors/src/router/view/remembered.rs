//! What is remembered of models beyond what nodes say of them now.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use plexus_types::{ModelId, ReplicaReport};

use super::ClusterView;

/// More models than these are remembered only while some node tells of them: their files come and go, and a node may live for years.
const KEPT: usize = 4096;

impl ClusterView {
    /// How long models took to load when they were loaded last, wherever that was.
    pub fn load_times(&self) -> &BTreeMap<ModelId, Duration> {
        &self.load_times
    }

    pub(super) fn note_models(&mut self, models: impl IntoIterator<Item = ModelId>, wall: SystemTime) {
        let now_s = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        for model in models {
            self.first_seen.entry(model).or_insert(now_s);
        }
        self.forget_models(KEPT);
    }

    /// What is remembered of models of which no node tells is forgotten where it is of more than `kept`.
    fn forget_models(&mut self, kept: usize) {
        // Twice as many as there are, so that this is seldom done.
        let most = kept.max(2 * self.catalogue.models.len());
        let is_full = |len: usize| len > most;
        if is_full(self.first_seen.len()) {
            let mut first_seen = std::mem::take(&mut self.first_seen);
            first_seen.retain(|model, _| self.knows(model));
            self.first_seen = first_seen;
        }
        if is_full(self.load_times.len()) {
            let mut load_times = std::mem::take(&mut self.load_times);
            load_times.retain(|model, _| self.knows(model));
            self.load_times = load_times;
        }
        if is_full(self.held.len()) {
            // It matters for what this node lists, and for nothing else.
            let Self { held, own_catalogue, .. } = self;
            held.retain(|model| own_catalogue.entries.iter().any(|entry| entry.profile.id == *model));
        }
    }
}

pub(super) fn note_load_times(known: &mut BTreeMap<ModelId, Duration>, replicas: &[ReplicaReport]) {
    for (replica, time) in replicas.iter().filter_map(|replica| Some((replica, replica.load_time?))) {
        match known.get_mut(&replica.model) {
            Some(known) => *known = time,
            None => drop(known.insert(replica.model.clone(), time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use plexus_types::{Catalogue, CatalogueEntry, FilesState, ModelProfile, ModelSource, ReplicaState};

    use super::super::tests::{facts, replica};
    use super::*;

    #[test]
    fn models_that_came_and_went_are_forgotten_and_those_that_are_there_are_not() {
        let mut view = ClusterView::new("test".into(), facts("a"));
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let listed = |id: &str| {
            let profile = ModelProfile::new(id.parse().unwrap(), ModelSource::Embedded);
            Catalogue { entries: vec![CatalogueEntry { profile, found: false, files: FilesState::Absent }], ..Catalogue::default() }
        };
        view.on_own_catalogue(listed("listed"), at(1));
        for (n, id) in ["listed", "loaded"].into_iter().chain(["gone-1", "gone-2", "gone-3"]).enumerate() {
            view.on_own_replica(
                ReplicaReport { load_time: Some(Duration::from_secs(1)), ..replica(id, ReplicaState::Loaded) },
                at(2 + n as u64),
            );
            if id != "loaded" {
                view.on_own_replica_left(&id.parse().unwrap(), "cpu-0".parse().unwrap());
            }
        }
        let counts = |view: &ClusterView| [view.first_seen.len(), view.load_times.len(), view.held.len()];
        view.forget_models(5);
        assert_eq!(counts(&view), [5, 5, 5], "they are few");
        view.forget_models(3);
        assert_eq!(counts(&view), [2, 2, 1]);
        assert_eq!(view.first_seen[&"listed".parse().unwrap()], 1);
        assert!(view.load_times.contains_key(&"loaded".parse().unwrap()) && view.held.contains(&"listed".parse().unwrap()));
        let always = (0..2 * KEPT as u64).map(|n| format!("model-{n}").parse::<ModelId>().unwrap());
        always.for_each(|model| view.note_models([model], at(9)));
        assert!(view.first_seen.len() <= KEPT + 1, "{}", view.first_seen.len());
    }
}
