//! What a store is told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use plexus_types::{HubSource, ModelSource};

use crate::disk;
use crate::error::FetchError;
use crate::store::key;

/// The hub that is asked unless the operator names another.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What a store is told. Whoever makes it has read the environment and the configuration: the store reads neither.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The node's own folder, for what comes from other nodes and for hashes of files. Made if it is missing.
    pub folder: PathBuf,
    /// Caches in the layout of the Hugging Face hub, looked through in this order; downloads go to the first. Empty: `hub` in `folder`.
    pub hub_caches: Vec<PathBuf>,
    /// Address of the hub or of a mirror, [`DEFAULT_ENDPOINT`] for most.
    pub endpoint: String,
    /// What opens gated and private repositories. Sent to `endpoint` only.
    pub token: Option<Token>,
    /// A file with the token, read anew at each download, so that a login is noticed; for where `token` is absent.
    pub token_file: Option<PathBuf>,
    /// Never ask the hub.
    pub offline: bool,
    /// How long a download goes on trying while nothing comes.
    pub patience: Duration,
}

impl StoreConfig {
    /// The hub of most people, without a token, with its files in `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            hub_caches: Vec::new(),
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            token_file: None,
            offline: false,
            patience: Duration::from_secs(60),
        }
    }

    /// Notes that a snapshot holds all that the hub has of a model.
    pub(crate) fn note_whole(&self, hub: &HubSource, commit: &str) -> Result<(), FetchError> {
        let note = self.note(hub);
        disk::write_whole(&note, commit.as_bytes()).map_err(FetchError::io(note))
    }

    pub(crate) fn is_noted_whole(&self, hub: &HubSource, commit: &str) -> bool {
        std::fs::read_to_string(self.note(hub)).is_ok_and(|noted| noted == commit)
    }

    fn note(&self, hub: &HubSource) -> PathBuf {
        self.folder.join("whole").join(key(&ModelSource::Hub(hub.clone())))
    }
}

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it is written, without the space and line ends round it. `None` if nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
