//! Where a model is served: `GET /v1/models/{id}/endpoint` (CX-44).

use std::net::SocketAddr;

use plexus_types::{
    ClusterReport, DeviceId, ModelId, ModelReport, ModelState, NodeName, NodeReport, NodeState, ReplicaLoad, ReplicaReport, ReplicaState,
};
use serde::Serialize;

/// The node to ask for a model. Any node would do: it passes the request on; this one has the model, if some node has.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Endpoint<'a> {
    model_id: &'a ModelId,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias_of: Option<&'a ModelId>,
    status: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// How far its load is, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f32>,
    node: &'a NodeName,
    /// The device there that has the model; null if it is not loaded.
    device: Option<DeviceId>,
    /// Where that node answers HTTP.
    url: String,
    locations: Vec<Location<'a>>,
}

/// A replica.
#[derive(Debug, PartialEq, Serialize)]
struct Location<'a> {
    node: &'a NodeName,
    device: DeviceId,
    /// Where its node answers HTTP; null if that is on its own machine only.
    url: Option<String>,
    status: &'static str,
    /// Why it failed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    running: u32,
    running_max: u32,
    waiting: u32,
}

/// The node of the least busy replica that is loaded, the first of those alike, in the order of `cluster`: the node that answers, and then by name.
/// If there is none that clients reach, a node that takes requests: the one that answers, unless it is stopping and another is not.
/// `None`: `cluster` has no node.
pub(crate) fn endpoint<'a>(model: &'a ModelReport, cluster: &'a ClusterReport) -> Option<Endpoint<'a>> {
    let me = cluster.nodes.iter().find(|node| node.this_node).or(cluster.nodes.first())?;
    let name = model.alias_of.as_ref().unwrap_or(&model.id);
    let replicas = || {
        let of = |node: &'a NodeReport| node.summary.replicas.iter().filter(|replica| replica.model == *name).map(move |one| (node, one));
        cluster.nodes.iter().flat_map(of)
    };
    let usable = |node: &NodeReport| node.state == NodeState::Up && reached(me, node).is_some();
    let serving = replicas().filter(|(node, replica)| usable(node) && replica.state == ReplicaState::Loaded);
    let best = serving.min_by(|(_, a), (_, b)| busier(&a.load, &b.load));
    let node = best.map(|(node, _)| node).or_else(|| cluster.nodes.iter().find(|node| usable(node))).unwrap_or(me);
    Some(Endpoint {
        model_id: &model.id,
        alias_of: model.alias_of.as_ref(),
        status: model.state.word(),
        reason: if let ModelState::Failed(why) = &model.state { Some(why) } else { None },
        progress: if let ModelState::Loading(progress) = &model.state { Some(*progress) } else { None },
        node: &node.facts.id.name,
        device: best.map(|(_, replica)| replica.device),
        url: url(node.facts.http),
        locations: replicas().map(|(node, replica)| location(me, node, replica)).collect(),
    })
}

fn location<'a>(me: &NodeReport, node: &'a NodeReport, replica: &'a ReplicaReport) -> Location<'a> {
    Location {
        node: &node.facts.id.name,
        device: replica.device,
        url: reached(me, node).map(url),
        status: replica.state.word(),
        reason: if let ReplicaState::Failed(why) = &replica.state { Some(why) } else { None },
        running: replica.load.running,
        running_max: replica.load.running_max,
        waiting: replica.load.waiting,
    }
}

/// Where a client that reached `me` reaches `node`. An address of a machine's own is another machine's elsewhere: it is of use only to a client that
/// is on the machine itself, as one of a node that answers its own machine only, and two nodes are on one machine if they take links on the same address.
fn reached(me: &NodeReport, node: &NodeReport) -> Option<SocketAddr> {
    let (http, link) = (node.facts.http, node.facts.link.ip());
    let beside = me.facts.http.ip().is_loopback() && link == me.facts.link.ip();
    (node.this_node || !http.ip().is_loopback() || beside).then_some(http)
}

fn url(http: SocketAddr) -> String {
    format!("http://{http}")
}

/// By requests for each place in the batch.
fn busier(a: &ReplicaLoad, b: &ReplicaLoad) -> std::cmp::Ordering {
    let present = |load: &ReplicaLoad| u64::from(load.running) + u64::from(load.waiting);
    let places = |load: &ReplicaLoad| u64::from(load.running_max.max(1));
    (present(a) * places(b)).cmp(&(present(b) * places(a)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plexus_types::{Bytes, Cost, Limits, ModelKind, NodeFacts, NodeSummary};

    use super::*;

    /// A replica of `m` that has so many requests running and waiting, and two places.
    fn replica(state: ReplicaState, running: u32, waiting: u32) -> ReplicaReport {
        ReplicaReport {
            model: "m".parse().unwrap(),
            device: "cpu-0".parse().unwrap(),
            state,
            context_length: 512,
            memory: Bytes::mib(1),
            load: ReplicaLoad { running, running_max: 2, waiting, ..ReplicaLoad::default() },
            kind: ModelKind::Generate,
            residency_priority: 100,
            pinned: false,
            idle: None,
            load_time: None,
            progress: 1.0,
            prefixes: None,
            digest: None,
            tools: false,
            reasoning: false,
        }
    }

    fn node(name: &str, http: &str, link: &str, state: NodeState, replicas: Vec<ReplicaReport>) -> NodeReport {
        let facts = NodeFacts {
            id: format!("{name}#1").parse().unwrap(),
            version: String::new(),
            link: link.parse().unwrap(),
            http: http.parse().unwrap(),
            gossip: link.parse().unwrap(),
        };
        let summary = NodeSummary { replicas, ..NodeSummary::default() };
        NodeReport { facts, state, this_node: name == "me", age: Duration::ZERO, round_trip: None, summary }
    }

    fn model() -> ModelReport {
        ModelReport {
            id: "m".parse().unwrap(),
            loaded: true,
            state: ModelState::Loaded,
            context_length: 512,
            created: 0,
            kind: ModelKind::Generate,
            tools: false,
            reasoning: false,
            capabilities: Vec::new(),
            limit: Limits::default(),
            cost: Cost::default(),
            alias_of: None,
            quant: None,
            feasible_on: Vec::new(),
            locations: Vec::new(),
            fetch: None,
            warning: None,
        }
    }

    /// Node, device and URL that are told of a cluster of these nodes.
    fn told(nodes: Vec<NodeReport>) -> (String, Option<String>, String) {
        let cluster = ClusterReport { cluster: "c".into(), nodes, conflicts: Vec::new(), fetches: Vec::new() };
        let model = model();
        let endpoint = endpoint(&model, &cluster).unwrap();
        (endpoint.node.to_string(), endpoint.device.map(|device| device.to_string()), endpoint.url)
    }

    fn at(node: &str, device: Option<&str>, url: &str) -> (String, Option<String>, String) {
        (node.to_owned(), device.map(str::to_owned), url.to_owned())
    }

    const ME: (&str, &str) = ("10.0.0.1:1", "10.0.0.1:2");
    const B: (&str, &str) = ("10.0.0.2:1", "10.0.0.2:2");

    fn me(state: NodeState, replicas: Vec<ReplicaReport>) -> NodeReport {
        node("me", ME.0, ME.1, state, replicas)
    }

    fn b(state: NodeState, replicas: Vec<ReplicaReport>) -> NodeReport {
        node("b", B.0, B.1, state, replicas)
    }

    #[test]
    fn the_least_busy_replica_that_answers_is_told_and_of_those_alike_this_nodes() {
        // CX-44
        use NodeState::{Draining, Unreachable, Up};
        let loaded = |running, waiting| vec![replica(ReplicaState::Loaded, running, waiting)];
        let mine = at("me", Some("cpu-0"), "http://10.0.0.1:1");
        let others = at("b", Some("cpu-0"), "http://10.0.0.2:1");
        assert_eq!(told(vec![me(Up, loaded(1, 0)), b(Up, loaded(1, 0))]), mine);
        assert_eq!(told(vec![me(Up, loaded(2, 1)), b(Up, loaded(2, 0))]), others);
        assert_eq!(told(vec![me(Up, vec![replica(ReplicaState::Loading, 0, 0)]), b(Up, loaded(2, 9))]), others);
        for state in [Draining, Unreachable] {
            assert_eq!(told(vec![me(Up, loaded(2, 1)), b(state, loaded(0, 0))]), mine);
        }
        let mut wide = replica(ReplicaState::Loaded, 3, 0);
        wide.load.running_max = 8;
        assert_eq!(told(vec![me(Up, loaded(1, 0)), b(Up, vec![wide])]), others, "three of eight are less than one of two");
    }

    #[test]
    fn of_a_model_that_nobody_has_a_node_is_told_that_takes_requests() {
        use NodeState::{Draining, Up};
        let failed = || vec![replica(ReplicaState::Failed("why".into()), 0, 0)];
        assert_eq!(told(vec![me(Up, vec![]), b(Up, failed())]), at("me", None, "http://10.0.0.1:1"));
        assert_eq!(told(vec![me(Draining, vec![]), b(Up, vec![])]), at("b", None, "http://10.0.0.2:1"));
        assert_eq!(told(vec![me(Draining, vec![])]), at("me", None, "http://10.0.0.1:1"));
    }

    #[test]
    fn a_node_that_answers_its_own_machine_only_is_told_on_that_machine_only() {
        let loaded = || vec![replica(ReplicaState::Loaded, 0, 0)];
        let inward = |link| node("b", "127.0.0.1:9", link, NodeState::Up, loaded());
        let away = vec![me(NodeState::Up, vec![]), inward("10.0.0.2:2")];
        assert_eq!(told(away.clone()), at("me", None, "http://10.0.0.1:1"), "which passes requests on to it");
        let cluster = ClusterReport { cluster: "c".into(), nodes: away, conflicts: Vec::new(), fetches: Vec::new() };
        assert_eq!(endpoint(&model(), &cluster).unwrap().locations[0].url, None);
        let beside = vec![me(NodeState::Up, vec![]), inward("10.0.0.1:3")];
        assert_eq!(told(beside), at("me", None, "http://10.0.0.1:1"), "whoever asks may be on another machine");
        let both = vec![node("me", "127.0.0.1:8", ME.1, NodeState::Up, vec![]), inward("10.0.0.1:3")];
        assert_eq!(told(both), at("b", Some("cpu-0"), "http://127.0.0.1:9"));
    }
}
