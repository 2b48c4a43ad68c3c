//! `plexus models`: what the cluster serves, and what is loaded and unloaded by hand.

mod bar;

use serde_json::Value;

use super::connect;
use super::status::table::{Look, models_page};
use super::terminal::{harmless, line};
use crate::cli::{LoadArgs, ModelsArgs, ModelsCommand, ModelsListArgs, PinArgs, PullArgs, UnloadArgs};
use crate::client::by_hand::{Loaded, Order, Pinned, Unloaded};

/// Does what was asked for; without a command, lists.
pub(crate) async fn run(args: &ModelsArgs) -> anyhow::Result<()> {
    match &args.command {
        None => list(&args.list).await,
        Some(ModelsCommand::List(args)) => list(args).await,
        Some(ModelsCommand::Load(args)) => load(args).await,
        Some(ModelsCommand::Pull(args)) => pull(args).await,
        Some(ModelsCommand::Unload(args)) => unload(args).await,
        Some(ModelsCommand::Pin(args)) => pin(args, true).await,
        Some(ModelsCommand::Unpin(args)) => pin(args, false).await,
    }
}

/// Prints the merged catalogue of the cluster (CX-08), with what no node can hold and why.
async fn list(args: &ModelsListArgs) -> anyhow::Result<()> {
    const ALL: &str = "/v1/models?all=true";
    let client = connect(&args.node).await?;
    if args.json {
        return json(&client.page(ALL).await?);
    }
    let models = client.models_of(ALL).await?;
    if models.is_empty() {
        line(format_args!("the cluster serves no model: start a node with --model ID=SOURCE"))?;
    } else {
        line(models_page(&models, Look::of_stdout()))?;
    }
    Ok(())
}

/// Prints what a node answered, as it is.
fn json(answer: &Value) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(answer)?)?)
}

/// Loads a model; whoever watches sees how far it is.
async fn load(args: &LoadArgs) -> anyhow::Result<()> {
    let order = Order { model_id: &args.model, node: args.on.name()?, device: args.device, wait: !args.no_wait };
    let client = connect(&args.on.asked()).await?;
    let loaded: Value =
        if order.wait { bar::watched(&client, &args.model, client.load(&order)).await? } else { client.load(&order).await? };
    if args.on.json {
        return json(&loaded);
    }
    Ok(line(harmless(&said(&serde_json::from_value(loaded)?)))?)
}

/// Brings a model's files to a node; whoever watches sees how far they are.
async fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let order = Order { model_id: &args.model, node: args.on.name()?, device: None, wait: true };
    let client = connect(&args.on.asked()).await?;
    let pulled = bar::watched(&client, &args.model, client.pull(&order)).await?;
    if args.on.json {
        return json(&pulled);
    }
    let node = order.node.as_ref().map_or_else(|| "the node".to_owned(), ToString::to_string);
    Ok(line(harmless(&format!("the files of {} are on {node}", args.model)))?)
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
    let order = Order { model_id: &args.model, node: args.on.name()?, device: args.device, wait: true };
    let client = connect(&args.on.asked()).await?;
    if args.on.json {
        return json(&client.unload(&order).await?);
    }
    let Unloaded { from } = client.unload(&order).await?;
    Ok(line(harmless(&format!("{} is unloaded from {}", args.model, from.join(", "))))?)
}

async fn pin(args: &PinArgs, pinned: bool) -> anyhow::Result<()> {
    let order = Order { model_id: &args.model, node: args.on.name()?, device: None, wait: true };
    let client = connect(&args.on.asked()).await?;
    if args.on.json {
        return json(&client.pin(&order, pinned).await?);
    }
    let Pinned { on } = client.pin(&order, pinned).await?;
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
