//! `plexus cluster status`: nodes, devices, replicas and actors, as one node sees them.

pub(crate) mod table;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::connect;
use super::terminal::line;
use crate::cli::StatusArgs;
use crate::client::Client;
use table::{Look, status_page};

/// How often `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Prints the status once, or again and again.
pub(crate) async fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let client = connect(&args.node).await?;
    if !args.watch {
        line(page(&client, args.json).await?)?;
        return Ok(());
    }
    loop {
        let page = match page(&client, args.json).await {
            Ok(page) => page,
            Err(error) => error.to_string(), // it may come back while somebody watches
        };
        let clear = if Look::of_stdout().colour { "\u{1b}[2J\u{1b}[H" } else { "" };
        line(format_args!("{clear}{page}"))?;
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn page(client: &Client, json: bool) -> anyhow::Result<String> {
    if json {
        let (cluster, actors) = tokio::try_join!(client.page::<Value>("/v1/cluster"), client.page::<Value>("/v1/cluster/actors"))?;
        return Ok(serde_json::to_string_pretty(&json!({ "cluster": cluster, "actors": actors }))?);
    }
    let (cluster, actors) = tokio::try_join!(client.cluster(), client.actors())?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Ok(status_page(&cluster, &actors, now_ms, Look::of_stdout()))
}
