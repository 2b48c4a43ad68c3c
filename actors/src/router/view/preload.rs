//! What this node is to hold from its start.

use plexus_types::{CatalogueEntry, FilesState, ModelId, ReplicaReport};

use super::{ClusterView, failure, of_model};
use crate::router::place::feasible_on;

impl ClusterView {
    /// What this node is to hold from its start and has not held yet. What it held and has let go since is loaded again when it is asked for.
    pub fn to_preload(&self) -> impl Iterator<Item = &CatalogueEntry> {
        self.own_catalogue.entries.iter().filter(|entry| entry.profile.preload && !self.held.contains(&entry.profile.id))
    }

    /// Those of [`Self::to_preload`] that are not on their way: nobody has begun to load them here, or it has failed.
    pub fn to_load(&self) -> impl Iterator<Item = &CatalogueEntry> {
        let comes = |known: &ReplicaReport| failure(&known.state).is_none();
        self.to_preload().filter(move |entry| !of_model(&self.own.replicas, &entry.profile.id).iter().any(comes))
    }

    /// Why a model could not be loaded on this node, as long as that is known.
    pub(super) fn own_failure(&self, model: &ModelId) -> Option<&str> {
        let here = of_model(&self.own.replicas, model).iter();
        let failures: Option<Vec<&str>> = here.map(|known| failure(&known.state)).collect();
        failures?.first().copied()
    }

    /// Is there a model that this node is to hold from its start, whose files are here or not looked at yet, and that has neither been here nor failed?
    pub fn is_preloading(&self) -> bool {
        self.to_preload().filter(|entry| self.own_failure(&entry.profile.id).is_none()).any(|entry| {
            let fits = self.catalogue.models.get(&entry.profile.id).is_some_and(|model| !feasible_on(self, model).is_empty());
            entry.files == FilesState::Unknown || self.own.devices.is_empty() || (fits && matches!(entry.files, FilesState::Present(_)))
        })
    }

    /// A model is unloaded from this node by hand: it is not loaded again before somebody asks for it.
    pub fn on_let_go(&mut self, model: ModelId) {
        self.held.insert(model);
    }
}
