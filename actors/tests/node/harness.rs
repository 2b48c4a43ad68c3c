//! Whole nodes in this process, on scripted devices, and what is asked of them.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use plexus_actors::args::{DeviceSpec, HttpConfig, Listing, NodeArgs, RestartBudget, Sockets, StreamsConfig};
use plexus_actors::evictor::core::EvictionConfig;
use plexus_actors::evictor::pins::PinsFile;
use plexus_actors::membership::NetTiming;
use plexus_actors::node::{self, RunningNode};
use plexus_actors::secret::ClusterSecret;
use plexus_api::service::{Generation, Inference};
use plexus_api::{ApiConfig, VersionInfo};
use plexus_engine::executor::Executor;
use plexus_engine::scripted::{Script, ScriptedExecutor};
use plexus_store::StoreConfig;
use plexus_types::{
    Delta, DeviceId, GenerateEvent, GenerateRequest, Generation as NodeGeneration, ModelProfile, ModelSource, NodeFacts, NodeId, Prompt,
    ReplicaState, Sampling,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

fn version() -> VersionInfo {
    let word = || "test".to_owned();
    VersionInfo { version: word(), git_sha: word(), build_time: word(), rustc: word(), profile: word(), features: vec![] }
}

pub(crate) fn cpu() -> DeviceId {
    "cpu-0".parse().unwrap()
}

/// A node alone in its cluster. The script counts for every life of the device but its faults only for the first.
pub(crate) async fn node(script: Script, adjust: impl FnOnce(&mut NodeArgs)) -> RunningNode {
    let opened = AtomicU64::new(0);
    let open = move || {
        let mut script = script.clone();
        if opened.fetch_add(1, Ordering::Relaxed) > 0 {
            script.faults.clear();
            script.load_gate = None;
        }
        Ok(Box::new(ScriptedExecutor::new(cpu(), script)) as Box<dyn Executor>)
    };
    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let link = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gossip = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let id = NodeId { name: "alone".parse().unwrap(), generation: NodeGeneration(rand::random::<u32>().into()) };
    let mut args = NodeArgs {
        cluster: format!("test-{}", id.generation.0),
        facts: NodeFacts {
            id,
            version: "test".into(),
            link: link.local_addr().unwrap(),
            http: http.local_addr().unwrap(),
            gossip: gossip.local_addr().unwrap(),
        },
        secret: ClusterSecret::generate(),
        sockets: Sockets { http: Arc::new(http), link: Arc::new(link), gossip: Arc::new(gossip) },
        seeds: vec![],
        timing: NetTiming::default(),
        devices: vec![DeviceSpec::new(cpu(), Arc::new(open))],
        catalogue: Listing {
            models: vec![ModelProfile {
                waiting_max: 8,
                preload: true,
                ..ModelProfile::new("pip".parse().unwrap(), ModelSource::Embedded)
            }],
            ..Listing::default()
        },
        eviction: EvictionConfig::default(),
        pins: PinsFile::default(),
        store: StoreConfig::new(std::env::temp_dir().join(format!("plexus-store-{}", std::process::id()))),
        streams: StreamsConfig {
            accept_timeout: DEADLINE,
            first_token_timeout: DEADLINE,
            token_timeout: DEADLINE,
            client_timeout: DEADLINE,
            load_timeout: Duration::from_secs(300),
            attempts_max: 3,
            window_tokens: 64,
            prompt_time_max: None,
        },
        http: HttpConfig { api: ApiConfig::new(version()), connections_max: 64, header_timeout: DEADLINE },
        restarts: RestartBudget { restarts_max: 3, within: DEADLINE },
        drain_timeout: Duration::from_secs(1),
        test_hooks: true,
    };
    adjust(&mut args);
    node::start(args).await.unwrap()
}

pub(crate) async fn loaded(script: Script) -> RunningNode {
    let node = node(script, |_| {}).await;
    until(&node, "the model is loaded", |node| replica_state(node) == Some(ReplicaState::Loaded)).await;
    node
}

pub(crate) fn replica_state(node: &RunningNode) -> Option<ReplicaState> {
    node.view().read().own().replicas.first().map(|replica| replica.state.clone())
}

pub(crate) async fn until(node: &RunningNode, what: &str, holds: impl Fn(&RunningNode) -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds(node) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {DEADLINE:?}: {what}");
}

pub(crate) async fn counter(node: &RunningNode, path: &str, name: &str) -> u64 {
    let nodes = node.inference().actors().await;
    let actor = nodes[0].actors.iter().find(|actor| actor.path == path).unwrap();
    if name == "restarts" { u64::from(actor.restarts) } else { actor.counters.get(name).copied().unwrap_or(0) }
}

pub(crate) async fn until_counter(node: &RunningNode, path: &str, name: &str, value: u64) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while counter(node, path, name).await != value {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "{name} of {path} did not become {value}");
}

pub(crate) async fn ask(node: &RunningNode, max_tokens: u32) -> Generation {
    ask_as(node, None, max_tokens).await
}

pub(crate) async fn ask_as(node: &RunningNode, principal: Option<u64>, max_tokens: u32) -> Generation {
    generate(node, principal, "pip", max_tokens).await
}

pub(crate) async fn ask_for(node: &RunningNode, model: &str, max_tokens: u32) -> Generation {
    generate(node, None, model, max_tokens).await
}

async fn generate(node: &RunningNode, principal: Option<u64>, model: &str, max_tokens: u32) -> Generation {
    let request = GenerateRequest {
        principal,
        model: model.parse().unwrap(),
        prompt: Prompt::Tokens(vec![65, 66, 67]),
        sampling: Sampling::default(),
        max_tokens: Some(max_tokens),
        stop: vec![],
        constraint: None,
        logprobs: None,
    };
    node.inference().generate(request).await
}

/// The text and the last event.
pub(crate) async fn answer(generation: Generation) -> (String, GenerateEvent) {
    let events: Vec<GenerateEvent> = tokio::time::timeout(DEADLINE, generation.collect()).await.expect("the stream ends");
    let mut text = String::new();
    for event in &events {
        if let GenerateEvent::Tokens { deltas, .. } = event {
            text += &Delta::text_of(deltas);
        }
    }
    (text, events.into_iter().next_back().unwrap())
}
