//! The directory where the nodes of one user on one machine keep what outlives them and find each other.
//!
//! ```text
//! local.key               the cluster secret where none is configured: in the user's usual directory, see [`super::places`]
//! peers-<cluster>.json    gossip addresses met on other machines
//! store/<name>            files of models that came from other nodes, and hashes of files
//! nodes/.boot.lock        held while a node claims its name, its ports and its place
//! nodes/<name>.lock       held by the node of this name for as long as it lives
//! nodes/<name>.generation its last generation
//! nodes/<name>.pins       models that were pinned and unpinned by hand
//! nodes/<name>.found      names of models that were found in folders
//! nodes/<name>.json       where it answers, see [`super::neighbours`]
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The directory, which exists and belongs to this user alone.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

impl Home {
    /// Where it is when nobody says otherwise: that of the user, else one for what is temporary.
    pub(crate) fn usual() -> PathBuf {
        Self::of_user().unwrap_or_else(|| std::env::temp_dir().join("plexus"))
    }

    /// That of the user: `$XDG_DATA_HOME/plexus`, else `~/.local/share/plexus`. None for a user without a home.
    pub(crate) fn of_user() -> Option<PathBuf> {
        let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let base = base.or_else(|| Some(std::env::home_dir().filter(|home| home.is_absolute())?.join(".local").join("share")));
        Some(base?.join("plexus"))
    }

    /// Makes the directory if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let nodes = path.join("nodes");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&nodes)?;
        Ok(Self(path.to_owned()))
    }

    /// A file of the directory itself.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory of the nodes.
    pub(crate) fn nodes(&self) -> PathBuf {
        self.0.join("nodes")
    }

    /// What it is the same directory by, however its path is written.
    #[cfg(unix)]
    pub(crate) fn identity(&self) -> io::Result<impl Ord + use<>> {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.nodes()).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// What it is the same directory by, however its path is written.
    #[cfg(not(unix))]
    pub(crate) fn identity(&self) -> io::Result<impl Ord + use<>> {
        fs::canonicalize(self.nodes())
    }

    /// Waits until no other node of this user boots here, and keeps others waiting until the result is dropped.
    pub(crate) fn boot_lock(&self) -> io::Result<File> {
        let lock = private_file(&self.nodes().join(".boot.lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}

/// Opens a file that only this user may read, made if it is not there. Its content is left alone.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes a private file beside `path` and syncs it: complete, but not yet in place.
pub(crate) fn write_beside(path: &Path, content: &str) -> io::Result<PathBuf> {
    let beside = path.with_extension(format!("{:08x}.tmp", rand::random::<u32>()));
    let mut file = private_file(&beside)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    Ok(beside)
}

/// Replaces the content of `path` in one step: a reader sees the old content or the new one, never half.
pub(crate) fn replace(path: &Path, content: &str) -> io::Result<()> {
    let beside = write_beside(path, content)?;
    fs::rename(&beside, path).inspect_err(|_| drop(fs::remove_file(&beside)))
}
