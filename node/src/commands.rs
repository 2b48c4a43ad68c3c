//! What each command does. All but `start` only ask a node over HTTP.

pub(crate) mod chat;
pub(crate) mod explain;
pub(crate) mod models;
pub(crate) mod run;
pub(crate) mod start;
pub(crate) mod status;
mod terminal;

use std::io;
use std::path::PathBuf;

use plexus_actors::secret::ClusterSecret;

use crate::boot::home::Home;
use crate::cli::{NodeOption, VersionArgs};
use crate::client::{Client, ClientError};
use crate::version;
use terminal::line;

/// `plexus secret`
pub(crate) fn secret() -> io::Result<()> {
    line(ClusterSecret::generate().expose())
}

/// `plexus version`
pub(crate) fn version(args: &VersionArgs) -> anyhow::Result<()> {
    let version = version::version();
    if args.json {
        return Ok(line(serde_json::to_string_pretty(&version)?)?);
    }
    let features = if version.features.is_empty() { "none".to_owned() } else { version.features.join(", ") };
    line(format_args!("plexus {}", version.version))?;
    line(format_args!("commit    {}", version.git_sha))?;
    line(format_args!("built     {}", version.build_time))?;
    line(format_args!("compiler  {}", version.rustc))?;
    line(format_args!("profile   {}", version.profile))?;
    line(format_args!("features  {features}"))?;
    Ok(())
}

/// The node that a command asks.
async fn connect(option: &NodeOption) -> Result<Client, ClientError> {
    let data = std::env::var_os("PLEXUS_NODE__DATA_DIR").map(PathBuf::from);
    let nodes: Vec<PathBuf> = data.into_iter().chain([Home::usual()]).map(|home| home.join("nodes")).collect();
    Client::connect(option.url.as_deref(), &nodes).await
}
