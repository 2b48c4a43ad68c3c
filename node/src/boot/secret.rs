//! The cluster's secret: the configured one, or one that all nodes of this user on this machine share.

use std::fs;
use std::io;
use std::path::Path;

use plexus_actors::secret::ClusterSecret;

use super::home::{Home, write_beside};
use crate::config::{ConfigError, ValidConfig};

const REMEDY: &str = "make one with `plexus secret > cluster.key` and give every node the same";

/// The cluster's secret.
pub(crate) fn find(valid: &ValidConfig, home: &Home) -> Result<ClusterSecret, ConfigError> {
    let cluster = &valid.get().cluster;
    if let Some(secret) = &cluster.secret {
        return ClusterSecret::parse(secret.reveal())
            .map_err(|error| valid.refuse("cluster.secret", "(hidden)", error.to_string(), REMEDY));
    }
    if let Some(path) = &cluster.secret_file {
        let refuse = |problem: String| valid.refuse("cluster.secret_file", format!("{path:?}"), problem, REMEDY);
        let text = fs::read_to_string(path).map_err(|error| refuse(format!("it cannot be read: {error}")))?;
        if others_may_read(path) {
            tracing::warn!(path = %path.display(), "other users of this machine may read the cluster's secret; chmod 600 it");
        }
        return ClusterSecret::parse(&text).map_err(|error| refuse(error.to_string()));
    }
    let path = home.file("local.key");
    let refuse = |problem: String| {
        let remedy = "remove the file while no node runs, or set cluster.secret_file";
        valid.refuse("node.data_dir", format!("{:?}", path.parent().unwrap_or(&path)), format!("local.key: {problem}"), remedy)
    };
    let text = local(&path).map_err(|error| refuse(error.to_string()))?;
    ClusterSecret::parse(&text).map_err(|error| refuse(error.to_string()))
}

/// The content of `path`, made by whoever comes first. Complete as soon as it is there.
fn local(path: &Path) -> io::Result<String> {
    loop {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read_or_failed => return read_or_failed,
        }
        let beside = write_beside(path, &format!("{}\n", ClusterSecret::generate().expose()))?;
        let linked = fs::hard_link(&beside, path); // unlike a rename, never replaces what another node has made meanwhile
        fs::remove_file(&beside)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {} // ours or another's: it is there now
        }
    }
}

#[cfg(unix)]
fn others_may_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn others_may_read(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_start_at_once_agree_on_the_local_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local.key");
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..16).map(|_| scope.spawn(|| local(&path).unwrap())).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        assert!(ClusterSecret::parse(&secrets[0]).is_ok());
        assert!(!others_may_read(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }
}
