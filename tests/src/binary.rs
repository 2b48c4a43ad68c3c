//! Finding the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a folder of the repository")
}

/// The folder of the embedded demo model, which also holds the same weights as safetensors: a second model for tests.
pub fn pip_folder() -> PathBuf {
    repository().join("engine/assets/pip")
}

/// The `plexus` program: `PLEXUS_BIN` if set, else the one that cargo built beside this test.
///
/// `cargo test --workspace` builds it; where it is missing or older than the sources, as after `cargo test -p plexus-tests`, it is built here.
/// Panics if it cannot be built.
pub fn plexus() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = std::env::var_os("PLEXUS_BIN") {
            return PathBuf::from(path);
        }
        let path = profile_folder().join("plexus");
        if built_at(&path).is_none_or(|built| newest_source() > built) {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--package", "plexus", "--bin", "plexus"]).current_dir(repository());
            if !cfg!(debug_assertions) {
                build.arg("--release");
            }
            let status = build.status().expect("cargo can be started");
            assert!(status.success(), "cargo build --package plexus: {status}");
        }
        assert!(path.exists(), "cargo built no {}", path.display());
        path
    })
}

/// The `scripted-node` program of this crate.
pub fn scripted_node() -> PathBuf {
    profile_folder().join("scripted-node")
}

/// `target/debug` or `target/release`: test programs lie in its `deps`, other programs in itself.
fn profile_folder() -> PathBuf {
    let this = std::env::current_exe().expect("a running program has a path");
    let folder = this.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") { folder.parent().expect("deps lies in a folder").to_owned() } else { folder.to_owned() }
}

fn built_at(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// When a source of the program last changed: whatever lies in the `src` and `assets` of a crate, but for those crates that only try or measure it.
fn newest_source() -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    let mut folders = source_folders(repository());
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(changed) = built_at(&path) {
                newest = newest.max(changed);
            }
        }
    }
    newest
}

fn source_folders(repository: &Path) -> Vec<PathBuf> {
    let crates = repository.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        let of_the_program = !path.ends_with("tests") && !path.ends_with("benches");
        of_the_program && path.join("Cargo.toml").is_file()
    });
    crates.flat_map(|member| ["src", "assets"].map(|folder| member.join(folder))).collect()
}

#[cfg(test)]
mod tests {
    use super::{repository, source_folders};

    #[test]
    fn every_crate_that_the_program_is_made_of_is_looked_at() {
        let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).expect("it is there");
        let members = manifest.lines().find(|line| line.starts_with("members = [")).expect("it lists the crates");
        let members = members.split('"').skip(1).step_by(2).filter(|member| !["tests", "benches"].contains(member));
        let folders = source_folders(repository());
        let members: Vec<&str> = members.collect();
        assert!(members.contains(&"store") && members.contains(&"kernels"), "{members:?}");
        for member in members {
            assert!(folders.contains(&repository().join(member).join("src")), "{member} is not among {folders:?}");
        }
    }
}
