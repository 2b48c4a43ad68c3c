//! What each command does. All but `start` only ask a node over HTTP.
#![allow(clippy::print_stdout, reason = "commands answer on the standard output; logs go to the standard error")]

pub(crate) mod chat;
pub(crate) mod models;
pub(crate) mod run;
pub(crate) mod start;
pub(crate) mod status;
mod terminal;

use std::path::PathBuf;

use plexus_actors::secret::ClusterSecret;

use crate::boot::home::Home;
use crate::cli::{NodeOption, VersionArgs};
use crate::client::{Client, ClientError};
use crate::version;

/// `plexus secret`
pub(crate) fn secret() {
    println!("{}", ClusterSecret::generate().expose());
}

/// `plexus version`
pub(crate) fn version(args: &VersionArgs) -> anyhow::Result<()> {
    let version = version::version();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&version)?);
        return Ok(());
    }
    let features = if version.features.is_empty() { "none".to_owned() } else { version.features.join(", ") };
    println!("plexus {}", version.version);
    println!("commit    {}", version.git_sha);
    println!("built     {}", version.build_time);
    println!("compiler  {}", version.rustc);
    println!("profile   {}", version.profile);
    println!("features  {features}");
    Ok(())
}

/// The node that a command asks.
async fn connect(option: &NodeOption) -> Result<Client, ClientError> {
    let home = std::env::var_os("PLEXUS_NODE__DATA_DIR").map_or_else(Home::usual, PathBuf::from);
    Client::connect(option.node.as_deref(), &home.join("nodes")).await
}
