//! The tree: every actor of a node, what it is told, and the order in which they start.

mod children;
mod parts;

use std::sync::Arc;

use ractor::Actor;

use self::children::Children;
use self::parts::Parts;
use super::running::RunningNode;
use super::{End, NodeActor, NodeActorArgs, StartError};
use crate::args::NodeArgs;

/// Starts a node. It serves as soon as its models are loaded, which this does not wait for.
pub async fn start(args: NodeArgs) -> Result<RunningNode, StartError> {
    let parts = Parts::of(&args);
    tokio::spawn(parts.store.clone().keep_tidy());
    let inference = parts.inference(&args);
    let mut children = Children::default();
    children.add_links(&parts, &args);
    children.add_deciders(&parts, &args);
    children.add_devices(&parts, &args);
    children.add_catalogue(&parts, &args);
    children.add_http(&parts, &args, Arc::clone(&inference));
    children.add_membership(&parts, &args); // last: the others hear of this node once it can answer

    let end = End::default();
    let addresses = parts.addresses();
    let root_args = NodeActorArgs {
        address: parts.node.clone(),
        budget: args.restarts,
        children: children.into_slots(),
        addresses: addresses.clone(),
        replica: parts.replica_kit(&args),
        end: Arc::clone(&end),
    };
    let (root, task) = Actor::spawn(None, NodeActor, root_args).await.map_err(|error| StartError::Root(error.to_string()))?;
    let Parts { view, peers, .. } = parts;
    Ok(RunningNode { root, task, addresses, view, peers, inference, end, drain_timeout: args.drain_timeout })
}
