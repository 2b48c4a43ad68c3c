//! Tells the binary which build it is (CX-12). Works without git, as a source archive has none.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let dirty = said_by("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    let sha = said_by("git", &["rev-parse", "HEAD"]).filter(|sha| !sha.is_empty()).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=PLEXUS_BUILD_GIT_SHA={sha}{}", if dirty { "-dirty" } else { "" });

    // Builds that must come out the same set the time (https://reproducible-builds.org/specs/source-date-epoch/).
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("cargo::rustc-env=PLEXUS_BUILD_TIME={}", fixed.unwrap_or(now));

    // Only builds for GPUs have a toolkit to tell of: "Cuda compilation tools, release 12.8, V12.8.93".
    let said = std::env::var("CARGO_FEATURE_CUDA").ok().and_then(|_| said_by("nvcc", &["--version"])).unwrap_or_default();
    let cuda = said.split_once("release ").and_then(|(_, rest)| rest.split(',').next()).unwrap_or_default();
    println!("cargo::rustc-env=PLEXUS_BUILD_CUDA={cuda}");

    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    println!("cargo::rustc-env=PLEXUS_BUILD_RUSTC={}", said_by(&rustc, &["--version"]).unwrap_or_else(|| "unknown".to_owned()));
    println!("cargo::rustc-env=PLEXUS_BUILD_PROFILE={}", std::env::var("PROFILE").unwrap_or_else(|_| "unknown".to_owned()));

    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    // HEAD changes with the branch, its log with each commit.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = said_by("git", &["rev-parse", "--git-path", file]).filter(|path| std::path::Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// What a program prints, if it is there and succeeds.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
