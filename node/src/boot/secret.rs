//! The cluster's secret: the configured one, or one that all nodes of this user on this machine share.

use std::fs;
use std::io;
use std::path::Path;

use plexus_actors::secret::ClusterSecret;

use super::home::write_beside;
use super::places::Places;
use crate::config::{ConfigError, ValidConfig};

const REMEDY: &str = "make one with `plexus secret > cluster.key` and give every node the same";
/// Where the secret lies that nodes make themselves.
const LOCAL: &str = "local.key";

/// The secret that the configuration names, if it names one.
pub(crate) fn configured(valid: &ValidConfig) -> Result<Option<ClusterSecret>, ConfigError> {
    let cluster = &valid.get().cluster;
    if let Some(secret) = &cluster.secret {
        let secret = ClusterSecret::parse(secret.reveal());
        return secret.map(Some).map_err(|error| valid.refuse("cluster.secret", "(hidden)", error.to_string(), REMEDY));
    }
    let Some(path) = &cluster.secret_file else { return Ok(None) };
    let refuse = |problem: String| valid.refuse("cluster.secret_file", format!("{path:?}"), problem, REMEDY);
    let text = fs::read_to_string(path).map_err(|error| refuse(format!("it cannot be read: {error}")))?;
    ClusterSecret::parse(&text).map(Some).map_err(|error| refuse(error.to_string()))
}

/// Warns if others may read the secret file of the configuration.
pub(crate) fn warn_if_exposed(valid: &ValidConfig) {
    if let Some(path) = valid.get().cluster.secret_file.as_deref().filter(|path| others_may_read(path)) {
        tracing::warn!(path = %path.display(), "other users of this machine may read the cluster's secret; chmod 600 it");
    }
}

/// The secret of this user on this machine, made by whoever comes first; only under the boot lock. A directory of data may have one of its own, of
/// when each had: it becomes the user's, if the user has none. If the user has another one it counts for this directory as it did before, so that
/// the node keeps to it, and why is returned in words.
pub(crate) fn local(valid: &ValidConfig, places: &mut Places) -> Result<(ClusterSecret, Option<String>), ConfigError> {
    let own = places.data().file(LOCAL);
    let of_user = places.of_secret().file(LOCAL);
    let kept = if of_user == own { None } else { kept(valid, &own)? };
    let text = made(&of_user, kept.as_ref()).map_err(|error| refused(valid, &of_user, &error.to_string()))?;
    let secret = ClusterSecret::parse(&text).map_err(|error| refused(valid, &of_user, &error.to_string()))?;
    match kept.filter(|kept| *kept != secret) {
        None => Ok((secret, None)),
        Some(kept) => {
            places.leave_user();
            let why = format!(
                "the secret in {} is another one than that in {}, so this node joins only nodes that have the former; to have it join the \
                 others, remove the former while no node uses it",
                own.display(),
                of_user.display()
            );
            Ok((kept, Some(why)))
        }
    }
}

/// The secret at `path`, if there is one.
fn kept(valid: &ValidConfig, path: &Path) -> Result<Option<ClusterSecret>, ConfigError> {
    let secret = match fs::read_to_string(path) {
        Ok(text) => ClusterSecret::parse(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error.to_string()),
    };
    secret.map(Some).map_err(|problem| refused(valid, path, &problem))
}

fn refused(valid: &ValidConfig, path: &Path, problem: &str) -> ConfigError {
    let remedy = "remove the file while no node runs, or name a secret of your own";
    valid.refuse("cluster.secret_file", "\"\"", format!("{}, which counts then, cannot be used: {problem}", path.display()), remedy)
}

/// The content of `path`; if there is none, that of `kept`, or a new secret. Made by whoever comes first, and complete as soon as it is there.
fn made(path: &Path, kept: Option<&ClusterSecret>) -> io::Result<String> {
    loop {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read_or_failed => return read_or_failed,
        }
        let secret = kept.map_or_else(|| ClusterSecret::generate().expose(), ClusterSecret::expose);
        let beside = write_beside(path, &format!("{secret}\n"))?;
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
        let path = dir.path().join(LOCAL);
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let nodes: Vec<_> = (0..16).map(|_| scope.spawn(|| made(&path, None).unwrap())).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        assert!(ClusterSecret::parse(&secrets[0]).is_ok());
        assert!(!others_may_read(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }
}
