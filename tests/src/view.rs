//! What a node says of its cluster.

use std::collections::BTreeMap;

use plexus_types::{ActorReport, ClusterReport, NodeReport, NodeState};
use serde_json::Value;

use crate::process::Node;
use crate::wait::eventually;

/// An actor and the node that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct ActorView {
    /// The node.
    pub node: String,
    /// What it said.
    pub report: ActorReport,
}

impl Node {
    /// What this node believes of the cluster.
    pub async fn view(&self) -> Result<ClusterReport, String> {
        let reply = self.client().get("/v1/cluster").await.map_err(|error| error.to_string())?;
        serde_json::from_str(&reply.text).map_err(|error| format!("{error} in {}", reply.text))
    }

    /// What this node says of the actors of every node.
    pub async fn actors(&self) -> Result<Vec<ActorView>, String> {
        let reply = self.client().get("/v1/cluster/actors").await.map_err(|error| error.to_string())?;
        let nodes = reply.json["nodes"].as_array().or_else(|| reply.json.as_array()).ok_or_else(|| reply.text.clone())?;
        let mut actors = Vec::new();
        for node in nodes {
            let reports: Vec<ActorReport> =
                serde_json::from_value(node["actors"].clone()).map_err(|error| format!("{error} in {}", reply.text))?;
            let name = node["node"].as_str().unwrap_or_default();
            actors.extend(reports.into_iter().map(|report| ActorView { node: name.to_owned(), report }));
        }
        Ok(actors)
    }

    /// The actors of this node alone.
    pub async fn own_actors(&self) -> Result<Vec<ActorReport>, String> {
        let actors = self.actors().await?;
        Ok(actors.into_iter().filter(|actor| actor.node == self.name()).map(|actor| actor.report).collect())
    }

    /// The sum of this node's counters whose name contains `part`, by name.
    pub async fn counters(&self, part: &str) -> Result<BTreeMap<String, u64>, String> {
        let mut sums = BTreeMap::new();
        for actor in self.own_actors().await? {
            for (name, count) in actor.counters {
                if name.contains(part) {
                    *sums.entry(name).or_default() += count;
                }
            }
        }
        Ok(sums)
    }

    /// Waits until this node sees exactly the nodes `names` as up, and no others in any state.
    pub async fn sees_up(&self, names: &[&str]) {
        let mut wanted: Vec<&str> = names.to_vec();
        wanted.sort_unstable();
        eventually(&format!("{} sees {names:?} up", self.name()), async || {
            let view = self.view().await?;
            let mut up: Vec<&str> = view.nodes.iter().filter(|node| node.state == NodeState::Up).map(name).collect();
            up.sort_unstable();
            if up == wanted && view.nodes.len() == wanted.len() { Ok(()) } else { Err(summary(&view)) }
        })
        .await;
    }

    /// Waits until this node sees `other` in `state`; `None`: not at all.
    pub async fn sees(&self, other: &str, state: Option<NodeState>) {
        eventually(&format!("{} sees {other} as {state:?}", self.name()), async || {
            let view = self.view().await?;
            let seen = view.nodes.iter().find(|node| name(node) == other).map(|node| node.state);
            if seen == state { Ok(()) } else { Err(summary(&view)) }
        })
        .await;
    }

    /// Waits until a model can be served through this node.
    pub async fn offers(&self, model: &str) {
        eventually(&format!("{} offers {model}", self.name()), async || {
            let reply = self.client().get("/v1/models").await.map_err(|error| error.to_string())?;
            let models = reply.json["data"].as_array().cloned().unwrap_or_default();
            let ready = models.iter().any(|entry| entry["id"] == model && entry["loaded"] == Value::Bool(true));
            if ready { Ok(()) } else { Err(reply.text) }
        })
        .await;
    }

    /// Waits until a model is listed here that some node can load.
    pub async fn offers_on_demand(&self, model: &str) {
        eventually(&format!("{} lists {model}", self.name()), async || {
            let reply = self.client().get("/v1/models").await.map_err(|error| error.to_string())?;
            let models = reply.json["data"].as_array().cloned().unwrap_or_default();
            let can = |entry: &Value| entry["id"] == model && entry["feasible_on"].as_array().is_some_and(|nodes| !nodes.is_empty());
            if models.iter().any(can) { Ok(()) } else { Err(reply.text) }
        })
        .await;
    }
}

/// Waits until each of `nodes` sees all of them up, and no others.
pub async fn whole(nodes: &[&Node]) {
    let names: Vec<&str> = nodes.iter().map(|node| node.name()).collect();
    for node in nodes {
        node.sees_up(&names).await;
    }
}

fn name(node: &NodeReport) -> &str {
    node.facts.id.name.as_str()
}

fn summary(view: &ClusterReport) -> String {
    let nodes: Vec<String> = view.nodes.iter().map(|node| format!("{} {:?}", node.facts.id, node.state)).collect();
    nodes.join(", ")
}
