//! How far a fetch is, and its end.

use std::path::PathBuf;
use std::sync::Arc;

use plexus_types::{Bytes, ModelSource, NodeName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::FetchError;

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here, those of earlier attempts among them.
    pub done: Bytes,
    /// Bytes in all; 0 while unknown.
    pub total: Bytes,
    /// Where they come from.
    pub from: Origin,
    /// Bytes that came from there, without those that were here before.
    pub came: Bytes,
}

/// A fetch, or what goes before one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// Which model.
    pub source: ModelSource,
    /// How far it is.
    pub progress: Progress,
    /// What went wrong at the hub, if that is tried again and nothing has come since.
    pub failure: Option<String>,
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Not decided yet.
    Unknown,
    /// The hub, or its mirror.
    Hub,
    /// So many other nodes.
    Peers(usize),
    /// This node is still getting or reading them itself; `done` and `total` are its own.
    Awaited(NodeName),
}

impl Progress {
    pub(crate) const START: Self = Self { done: Bytes(0), total: Bytes(0), from: Origin::Unknown, came: Bytes(0) };
}

/// How certain it is that a fetch will end with the files, for those who would wait for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// They come, from the hub or from nodes that have them.
    #[default]
    Coming,
    /// It waits for a node to which they come.
    Behind,
    /// It waits for another node, and will ask all again before it goes outside.
    Waiting,
    /// It asks the others, and may be about to go outside.
    Asking,
}

/// What all handles of one fetch watch.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) progress: Progress,
    pub(crate) stage: Stage,
    pub(crate) outcome: Option<Result<PathBuf, Arc<FetchError>>>,
}

/// What a fetch writes its progress to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter<'a>(pub(crate) &'a watch::Sender<Flight>);

impl Flight {
    pub(crate) const START: Self = Self { progress: Progress::START, stage: Stage::Asking, outcome: None };
}

impl Meter<'_> {
    /// So much is to come, from there; nothing is here yet.
    pub(crate) fn begin(&self, total: Bytes, from: Origin) {
        let progress = Progress { total, from, ..Progress::START };
        self.0.send_modify(|flight| (flight.progress, flight.stage) = (progress, Stage::Coming));
    }

    pub(crate) fn stage(&self, stage: Stage) {
        self.0.send_modify(|flight| flight.stage = stage);
    }

    pub(crate) fn set(&self, progress: Progress) {
        self.0.send_modify(|flight| flight.progress = progress);
    }

    /// So much was here before.
    pub(crate) fn is_here(&self, n_bytes: u64) {
        if n_bytes > 0 {
            self.0.send_modify(|flight| flight.progress.done = flight.progress.done + Bytes(n_bytes));
        }
    }

    /// So much came.
    pub(crate) fn add(&self, n_bytes: u64) {
        self.0.send_modify(|Flight { progress, .. }| {
            (progress.done, progress.came) = (progress.done + Bytes(n_bytes), progress.came + Bytes(n_bytes));
        });
    }

    /// Bytes that were counted turned out not to be here.
    pub(crate) fn take_back(&self, n_bytes: u64) {
        self.0.send_modify(|flight| flight.progress.done = flight.progress.done.saturating_sub(Bytes(n_bytes)));
    }
}

/// Ends the task when the last handle goes.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A fetch under way. Several handles may watch one; it stops when the last is dropped, and what came is kept for the next.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub(crate) watch: watch::Receiver<Flight>,
    pub(crate) _task: Arc<AbortOnDrop>,
}

impl Fetch {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.watch.borrow().progress.clone()
    }

    /// Waits for progress that this handle has not seen, or for the end. False at the end.
    pub async fn changed(&mut self) -> bool {
        if self.watch.borrow_and_update().outcome.is_some() {
            return false;
        }
        self.watch.changed().await.is_ok()
    }

    /// Waits for the end: where the model is, for the engine to open.
    pub async fn done(mut self) -> Result<PathBuf, Arc<FetchError>> {
        let ended = self.watch.wait_for(|flight| flight.outcome.is_some()).await;
        ended.ok().and_then(|flight| flight.outcome.clone()).unwrap_or_else(|| Err(Arc::new(FetchError::Lost("its task ended".to_owned()))))
    }
}
