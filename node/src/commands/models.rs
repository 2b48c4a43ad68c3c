//! `plexus models`: what the cluster serves.

use serde_json::Value;

use super::connect;
use super::status::table::{Look, models_table};
use super::terminal::line;
use crate::cli::ModelsArgs;

/// Prints the merged catalogue of the cluster (CX-08).
pub(crate) async fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    let client = connect(&args.node).await?;
    if args.json {
        line(serde_json::to_string_pretty(&client.page::<Value>("/v1/models").await?)?)?;
        return Ok(());
    }
    let models = client.models().await?;
    if models.is_empty() {
        line(format_args!("the cluster serves no model: start a node with --model ID=SOURCE"))?;
    } else {
        line(models_table(&models, Look::of_stdout()))?;
    }
    Ok(())
}
