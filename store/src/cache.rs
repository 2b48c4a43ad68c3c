//! The cache of the Hugging Face hub on a disk, in the layout that all of its clients share.
//!
//! ```text
//! models--org--name/blobs/<etag>            the bytes, named by SHA-256, or by git's SHA-1 for small files
//!                   snapshots/<commit>/...  links to blobs, by the names of the repository
//!                   refs/<revision>         the commit that a branch or tag stood for when it was last fetched
//! .locks/models--org--name/<etag>.lock      held by whoever fetches that blob
//! ```
//!
//! A snapshot holds what somebody asked for, which need not be all that a model needs, and what other clients were stopped at leaves no trace
//! in it. So [`CachedRepo::doubt`] says where a model in a snapshot may lack something that only the hub's list can tell; a snapshot that this
//! store has laid by that list is noted as whole in its own folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plexus_types::HubSource;
use serde_json::Value;

use crate::disk;
use crate::error::FetchError;
use crate::local::{LocalModel, list_dangling, model_at, read_json};
use crate::names::is_plain;
use crate::select::select;

/// One repository in one cache.
#[derive(Debug, Clone)]
pub(crate) struct CachedRepo {
    cache: PathBuf,
    folder: String,
}

impl CachedRepo {
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        Self { cache: cache.to_owned(), folder: folder_name(repo) }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root().join("blobs").join(etag)
    }

    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.cache.join(".locks").join(&self.folder).join(format!("{etag}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last fetched; a commit stands for itself.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if let Ok(commit) = fs::read_to_string(self.root().join("refs").join(revision)) {
            let commit = commit.trim();
            return is_commit(commit).then(|| commit.to_owned());
        }
        (is_commit(revision) && self.snapshot(revision).is_dir()).then(|| revision.to_owned())
    }

    /// The model and its commit, if all files without which it cannot be opened are in this cache.
    pub(crate) fn model(&self, source: &HubSource) -> Option<(LocalModel, String)> {
        let commit = self.commit(source.revision())?;
        Some((model_at(&self.snapshot(&commit), source.quant.as_deref()).ok()?, commit))
    }

    /// Why a model that can be opened may still lack files that change what it says; `None` if nothing speaks for that.
    ///
    /// A GGUF file holds all of a model. Of a folder may be missing: what links speak of that lead nowhere; what a download was stopped at, in
    /// this snapshot or another; the tokenizer's configuration, which has the chat template; and how an encoder's vectors are pooled.
    pub(crate) fn doubt(&self, model: &LocalModel) -> Option<String> {
        let snapshot = &model.entry;
        if !snapshot.is_dir() {
            return None;
        }
        let has = |name: &str| model.files.iter().any(|(known, _)| known == name);
        let dangling = list_dangling(snapshot).unwrap_or_default();
        let all: Vec<&str> = model.files.iter().map(|(name, _)| name).chain(&dangling).map(String::as_str).collect();
        let needed = select(&all, None).unwrap_or_default();
        if let Some(name) = dangling.iter().find(|name| needed.contains(name)) {
            return Some(format!("{name} is a link that leads nowhere"));
        }
        let blobs = fs::read_dir(self.root().join("blobs")).into_iter().flatten().flatten();
        if blobs.map(|entry| entry.file_name()).any(|name| name.as_encoded_bytes().ends_with(b".incomplete")) {
            return Some("a download of its repository was not ended".to_owned());
        }
        if !has("tokenizer_config.json") {
            return Some("tokenizer_config.json is missing".to_owned());
        }
        let config = read_json(&snapshot.join("config.json")).unwrap_or_default();
        let is_encoder = matches!(config.get("model_type").and_then(Value::as_str), Some("bert" | "roberta" | "xlm-roberta"));
        let is_pooled = has("modules.json") || has("1_Pooling/config.json");
        (is_encoder && !is_pooled).then(|| "modules.json is missing, which tells how an encoder's vectors are pooled".to_owned())
    }

    /// Gives a blob its name in a snapshot.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), FetchError> {
        let path = self.snapshot(commit).join(name);
        let up = "../".repeat(name.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        let made = (|| {
            if fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
                return Ok(());
            }
            let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
            fs::create_dir_all(folder)?;
            let beside = disk::beside(&path);
            std::os::unix::fs::symlink(&target, &beside)?;
            fs::rename(&beside, &path)?;
            disk::sync_folder(folder)
        })();
        made.map_err(FetchError::io(path))
    }

    /// Notes what a revision stands for.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), FetchError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root().join("refs").join(revision);
        disk::write_whole(&path, commit.as_bytes()).map_err(FetchError::io(path))
    }
}

/// Is this how git names a commit?
pub(crate) fn is_commit(text: &str) -> bool {
    is_plain(text) && text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a cache calls the folder of a repository.
pub(crate) fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// A repository that lies in a cache, and what its revisions stand for.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// As the folder says: `org/name`, or `name` alone for a few old ones.
    pub(crate) repo: String,
    /// Revision and snapshot, `main` first. A snapshot without a revision goes by its commit.
    pub(crate) snapshots: Vec<(String, PathBuf)>,
}

/// The repositories that lie in a cache, of which at most `entries_max` folders are looked at.
pub(crate) fn repos(cache: &Path, entries_max: usize) -> Vec<CachedRepo> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten().take(entries_max);
    let folders = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("models--"));
    folders.map(|folder| CachedRepo { cache: cache.to_owned(), folder }).collect()
}

/// What lies in a cache, by name; empty if it is none. At most `entries_max` folders are looked at. `failed` is told of what could not be read.
pub(crate) fn list(cache: &Path, entries_max: usize, failed: &mut dyn FnMut(&Path, &io::Error)) -> Vec<Listed> {
    let mut folders = |path: &Path| {
        let entries = fs::read_dir(path).and_then(|entries| entries.take(entries_max).collect::<io::Result<Vec<_>>>());
        let entries = entries.inspect_err(|error| failed(path, error)).unwrap_or_default().into_iter();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    };
    let mut listed = Vec::new();
    for folder in folders(cache) {
        let Some(repo) = folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else { continue };
        let cached = CachedRepo { cache: cache.to_owned(), folder };
        let mut snapshots = Vec::new();
        let mut revisions = folders(&cached.root().join("refs"));
        revisions.sort_by_key(|revision| revision != "main");
        let commits = folders(&cached.root().join("snapshots"));
        for revision in revisions {
            if let Some(commit) = cached.commit(&revision).filter(|commit| commits.contains(commit)) {
                snapshots.push((revision, cached.snapshot(&commit)));
            }
        }
        for commit in commits.into_iter().filter(|commit| is_commit(commit)) {
            let path = cached.snapshot(&commit);
            if !snapshots.iter().any(|(_, known)| *known == path) {
                snapshots.push((commit, path));
            }
        }
        listed.push(Listed { repo, snapshots });
    }
    listed
}
