//! The node's name, held by a lock on a file for as long as the process lives, however it ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use plexus_types::{Generation, NodeName};

use super::home::{private_file, replace};

/// Most nodes of one host that may share its name before somebody has to name them.
const NAMESAKES_MAX: u32 = 1000;

/// A name that no other node of this user has while this lives.
#[derive(Debug)]
pub(crate) struct NameClaim {
    /// The name.
    pub(crate) name: NodeName,
    _locks: Vec<File>,
}

/// Why a name cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    /// A living node has it.
    #[error("a running node has this name already")]
    Taken,
    /// The lock cannot be made.
    #[error("cannot lock the name: {0}")]
    Io(#[from] io::Error),
}

impl NameClaim {
    /// Claims exactly `name`, in all of these directories.
    pub(crate) fn exactly(nodes: &[PathBuf], name: &NodeName) -> Result<Self, NameError> {
        let lock = |nodes: &PathBuf| {
            let lock = private_file(&lock_path(nodes, name))?;
            match lock.try_lock() {
                Ok(()) => Ok(lock),
                Err(TryLockError::WouldBlock) => Err(NameError::Taken),
                Err(TryLockError::Error(error)) => Err(error.into()),
            }
        };
        Ok(Self { name: name.clone(), _locks: nodes.iter().map(lock).collect::<Result<_, NameError>>()? })
    }

    /// Claims the host's name, or with `-2`, `-3`, ... behind it: the first that is free, of those which nodes of the first directory had
    /// before, else of all.
    pub(crate) fn like_host(nodes: &[PathBuf], host: &str) -> Result<Self, NameError> {
        let base = from_host(host);
        let names = (1..=NAMESAKES_MAX).map(|n| if n == 1 { base.clone() } else { format!("{base}-{n}") });
        let names = names.map(|name| name.parse().expect("a host's name was made a node's"));
        let had_before = |name: &NodeName| nodes.first().is_some_and(|nodes| generation_path(nodes, name).exists());
        let (known, new): (Vec<NodeName>, Vec<NodeName>) = names.partition(had_before);
        for name in known.iter().chain(&new) {
            match Self::exactly(nodes, name) {
                Err(NameError::Taken) => {}
                claimed_or_failed => return claimed_or_failed,
            }
        }
        Err(NameError::Taken)
    }
}

/// Is a node of this name alive? Only under the boot lock: asking holds the lock for a moment.
pub(crate) fn is_alive(nodes: &Path, name: &NodeName) -> bool {
    File::open(lock_path(nodes, name)).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn lock_path(nodes: &Path, name: &NodeName) -> PathBuf {
    nodes.join(format!("{name}.lock"))
}

fn generation_path(nodes: &Path, name: &NodeName) -> PathBuf {
    nodes.join(format!("{name}.generation"))
}

/// The host's name as a node's: its first label, lower case, with '-' for what a name may not have.
fn from_host(host: &str) -> String {
    let label = host.split('.').next().unwrap_or_default().to_lowercase();
    let label: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(56).collect();
    match label.trim_matches('-') {
        "" => "node".to_owned(),
        label => label.to_owned(),
    }
}

/// The generation of this start: later than every one before, even when the clock went back.
pub(crate) fn next_generation(nodes: &Path, claim: &NameClaim, now_ms: u64) -> io::Result<Generation> {
    let path = generation_path(nodes, &claim.name);
    let last: u64 = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let generation = now_ms.max(last.saturating_add(1));
    replace(&path, &format!("{generation}\n"))?;
    Ok(Generation(generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_node_names() {
        for (host, name) in
            [("gpu-1.example", "gpu-1"), ("My_Host", "my-host"), ("", "node"), ("-._", "node"), ("ünïcode", "n-code"), ("x", "x")]
        {
            assert_eq!(from_host(host), name, "{host}");
            assert!(from_host(&host.repeat(20)).parse::<NodeName>().is_ok());
        }
    }

    #[test]
    fn further_nodes_of_a_host_are_numbered_and_a_freed_name_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().to_owned()];
        let names = |claims: &[&NameClaim]| claims.iter().map(|claim| claim.name.to_string()).collect::<Vec<_>>();
        let one = NameClaim::like_host(&nodes, "host").unwrap();
        let two = NameClaim::like_host(&nodes, "host").unwrap();
        let three = NameClaim::like_host(&nodes, "host").unwrap();
        assert_eq!(names(&[&one, &two, &three]), ["host", "host-2", "host-3"]);
        assert!(is_alive(dir.path(), &two.name));
        let freed = two.name.clone();
        drop(two);
        assert!(!is_alive(dir.path(), &freed));
        assert_eq!(NameClaim::like_host(&nodes, "host").unwrap().name, freed);
    }

    #[test]
    fn a_name_that_was_asked_for_is_not_replaced_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().to_owned()];
        let name = "n1".parse().unwrap();
        let _held = NameClaim::exactly(&nodes, &name).unwrap();
        assert!(matches!(NameClaim::exactly(&nodes, &name), Err(NameError::Taken)));
    }

    #[test]
    fn a_name_is_claimed_in_every_directory_and_one_that_was_had_before_is_taken_again() {
        let (shared, one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let host = |own: &tempfile::TempDir| {
            let nodes = [own.path().to_owned(), shared.path().to_owned()];
            let claim = NameClaim::like_host(&nodes, "host").unwrap();
            next_generation(own.path(), &claim, 1).unwrap();
            claim
        };
        let (first, second) = (host(&one), host(&other));
        assert_eq!((first.name.as_str(), second.name.as_str()), ("host", "host-2"));
        assert!(is_alive(shared.path(), &second.name) && is_alive(other.path(), &second.name) && !is_alive(one.path(), &second.name));
        drop((first, second));
        assert_eq!(host(&other).name.as_str(), "host-2", "whoever comes first: its files are kept under this name");
    }

    #[test]
    fn generations_grow_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [dir.path().to_owned()];
        let claim = NameClaim::like_host(&nodes, "host").unwrap();
        let generations: Vec<u64> = [1000, 2000, 500, 500].map(|now| next_generation(dir.path(), &claim, now).unwrap().0).into();
        assert_eq!(generations, [1000, 2000, 2001, 2002]);
    }
}
