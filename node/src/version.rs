//! Which build this is (CX-12).

use std::time::{Duration, UNIX_EPOCH};

use plexus_api::VersionInfo;

/// What the build script found out.
pub(crate) fn version() -> VersionInfo {
    let build_time: u64 = env!("PLEXUS_BUILD_TIME").parse().unwrap_or(0);
    let mut features = Vec::new();
    if cfg!(feature = "cuda") {
        features.push("cuda".to_owned());
    }
    VersionInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_sha: env!("PLEXUS_BUILD_GIT_SHA").to_owned(),
        build_time: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(build_time)).to_string(),
        rustc: env!("PLEXUS_BUILD_RUSTC").to_owned(),
        profile: env!("PLEXUS_BUILD_PROFILE").to_owned(),
        features,
    }
}
