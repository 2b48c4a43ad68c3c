//! `plexus cluster explain`: why a model, or a request, is where it is.

use serde_json::Value;

use super::connect;
use super::status::table::{Look, explanation_page};
use super::terminal::line;
use crate::cli::ExplainArgs;
use crate::client::by_hand::explain_path;

/// Prints what was decided, and every place that was considered.
pub(crate) async fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let client = connect(&args.node).await?;
    if args.json {
        let page = client.page::<Value>(&explain_path(&args.subject)).await?;
        return Ok(line(serde_json::to_string_pretty(&page)?)?);
    }
    let explanation = client.explain(&args.subject).await?;
    Ok(line(explanation_page(&explanation, Look::of_stdout()))?)
}
