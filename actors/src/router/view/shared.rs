//! A view for all actors of a node.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use plexus_types::ModelId;
use tokio::sync::broadcast;

use super::ClusterView;

/// Whoever waits for a model and comes so many changes behind asks without having heard of its own.
const CHANGES_KEPT: usize = 64;

/// The view, shared: the router writes, everybody reads.
#[derive(Debug, Clone)]
pub struct SharedView {
    view: Arc<RwLock<ClusterView>>,
    changes: broadcast::Sender<ModelId>,
}

impl SharedView {
    /// Shares a view.
    pub fn new(view: ClusterView) -> Self {
        Self { view: Arc::new(RwLock::new(view)), changes: broadcast::Sender::new(CHANGES_KEPT) }
    }

    /// To look something up. Never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, ClusterView> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of every model that is loaded somewhere from now on, or cannot be.
    pub fn changes(&self) -> broadcast::Receiver<ModelId> {
        self.changes.subscribe()
    }

    /// For the router alone.
    pub(in crate::router) fn write(&self) -> RwLockWriteGuard<'_, ClusterView> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the router alone: a model was loaded somewhere, or cannot be.
    pub(in crate::router) fn tell_of(&self, model: ModelId) {
        let _nobody_waits = self.changes.send(model);
    }
}
