//! The cache of the Hugging Face hub on a disk, in the layout that all of its clients share.
//!
//! ```text
//! models--org--name/blobs/<etag>            the bytes, named by SHA-256, or by git's SHA-1 for small files
//!                   snapshots/<commit>/...  links to blobs, by the names of the repository
//!                   refs/<revision>         the commit that a branch or tag stood for when it was last fetched
//! .locks/models--org--name/<etag>.lock      held by whoever fetches that blob
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plexus_types::HubSource;

use crate::disk;
use crate::error::FetchError;
use crate::local::{LocalModel, model_at};
use crate::names::is_plain;

/// One repository in one cache.
#[derive(Debug, Clone)]
pub(crate) struct CachedRepo {
    cache: PathBuf,
    folder: String,
}

impl CachedRepo {
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        Self { cache: cache.to_owned(), folder: format!("models--{}", repo.replace('/', "--")) }
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

    /// The model, if all of its files are in this cache.
    pub(crate) fn model(&self, source: &HubSource) -> Option<LocalModel> {
        let commit = self.commit(source.revision())?;
        model_at(&self.snapshot(&commit), source.quant.as_deref()).ok()
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

/// A repository that lies in a cache, and what its revisions stand for.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// As the folder says: `org/name`, or `name` alone for a few old ones.
    pub(crate) repo: String,
    /// Revision and snapshot, `main` first. A snapshot without a revision goes by its commit.
    pub(crate) snapshots: Vec<(String, PathBuf)>,
}

/// What lies in a cache, by name; empty if it is none. At most `entries_max` folders are looked at.
pub(crate) fn list(cache: &Path, entries_max: usize) -> Vec<Listed> {
    let folders = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten().take(entries_max);
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
