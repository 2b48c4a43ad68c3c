//! `plexus models`: what the cluster serves, and what is loaded and unloaded by hand.

mod bar;

use serde_json::Value;

use super::connect;
use super::status::table::{Look, models_page};
use super::terminal::{harmless, line};
use crate::cli::{LoadArgs, ModelsArgs, ModelsCommand, ModelsListArgs, PinArgs, UnloadArgs};
use crate::client::by_hand::{Loaded, Order};

/// Does what was asked for; without a command, lists.
pub(crate) async fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    match &args.command {
        None => list(&args.list).await,
        Some(ModelsCommand::List(args)) => list(args).await,
        Some(ModelsCommand::Load(args)) => load(args).await,
        Some(ModelsCommand::Unload(args)) => unload(args).await,
        Some(ModelsCommand::Pin(args)) => pin(args, true).await,
        Some(ModelsCommand::Unpin(args)) => pin(args, false).await,
    }
}

/// Prints the merged catalogue of the cluster (CX-08).
async fn list(args: &ModelsListArgs) -> anyhow::Result<()> {
    let client = connect(&args.node).await?;
    if args.json {
        line(serde_json::to_string_pretty(&client.page::<Value>("/v1/models").await?)?)?;
        return Ok(());
    }
    let models = client.models().await?;
    if models.is_empty() {
        line(format_args!("the cluster serves no model: start a node with --model ID=SOURCE"))?;
    } else {
        line(models_page(&models, Look::of_stdout()))?;
    }
    Ok(())
}

/// Loads a model; whoever watches sees how far it is.
async fn load(args: &LoadArgs) -> anyhow::Result<()> {
    let order = Order { model_id: &args.model, node: args.place.node()?, device: args.place.device, wait: !args.no_wait };
    let client = connect(&args.place.asked()).await?;
    let loaded = if order.wait { bar::watched(&client, &args.model, client.load(&order)).await? } else { client.load(&order).await? };
    Ok(line(harmless(&said(&loaded)))?)
}

/// What became of a load, in a sentence.
fn said(loaded: &Loaded) -> String {
    let (model, decision) = (&loaded.model_id, &loaded.decision);
    let verdict = loaded.considered.iter().find(|place| place.chosen).map_or_else(String::new, |place| format!(" ({})", place.verdict));
    match loaded.status.as_str() {
        "loaded" => format!("{model} answers: {decision}{verdict}"),
        _ => format!("{model} is being loaded: {decision}{verdict}; `plexus models` shows how far it is"),
    }
}

async fn unload(args: &UnloadArgs) -> anyhow::Result<()> {
    let order = Order { model_id: &args.model, node: args.place.node()?, device: args.place.device, wait: true };
    let from = connect(&args.place.asked()).await?.unload(&order).await?;
    Ok(line(harmless(&format!("{} is unloaded from {}", args.model, from.join(", "))))?)
}

async fn pin(args: &PinArgs, pinned: bool) -> anyhow::Result<()> {
    let on = connect(&args.node).await?.pin(&Order::anywhere(&args.model), pinned).await?;
    let means = if pinned { "pinned" } else { "no longer pinned" };
    let then = if pinned { "it stays until it is unpinned" } else { "it goes when others need the room" };
    Ok(line(harmless(&format!("{} is {means} on {}: {then}", args.model, on.join(", "))))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_told_in_a_sentence_with_its_reason() {
        let loaded = |status: &str| -> Loaded {
            let places = serde_json::json!([
                { "place": "n2/cpu-0", "verdict": "fits, 2.00 GiB free", "chosen": true },
                { "place": "n1/cpu-0", "verdict": "3.00 GiB needed, 1.00 GiB in all", "chosen": false },
            ]);
            let decision = "it is loaded on n2/cpu-0";
            serde_json::from_value(serde_json::json!({ "status": status, "model_id": "big", "decision": decision, "considered": places }))
                .unwrap()
        };
        assert_eq!(said(&loaded("loaded")), "big answers: it is loaded on n2/cpu-0 (fits, 2.00 GiB free)");
        assert!(said(&loaded("loading")).starts_with("big is being loaded: it is loaded on n2/cpu-0 (fits, 2.00 GiB free); "));
    }
}
