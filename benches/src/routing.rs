//! What it costs to say where a request goes, in a large cluster.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use plexus_actors::evictor::plan::EvictionPolicy;
use plexus_actors::inbound::{ClusterChange, PeerChange};
use plexus_actors::prefix::PromptDigests;
use plexus_actors::router::home::home_of;
use plexus_actors::router::place::{Want, place};
use plexus_actors::router::policy::{NoReplica, route};
use plexus_actors::router::view::ClusterView;
use plexus_types::{
    Bytes, Catalogue, CatalogueEntry, DeviceId, DeviceKind, DeviceReport, FilesState, Footprint, Generation, ModelFacts, ModelId,
    ModelKind, ModelProfile, ModelSource, NodeFacts, NodeId, NodeSummary, Prompt, ReplicaLoad, ReplicaReport, ReplicaState,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::figures::{Figure, quantile};

const N_NODES: usize = 100;
const N_MODELS: usize = 200;
/// Replicas of each node: each loaded model has eight or so.
const PER_NODE: usize = 15;
/// Every so many-th model is loaded nowhere.
const COLD_EVERY: usize = 10;
/// Digests of prompts that each replica holds.
const N_PREFIXES: u32 = 1024;
/// Bytes of a long prompt.
const PROMPT_LEN: usize = 512 << 10;
/// So many requests are not counted.
const N_WARM: usize = 1000;

/// Times of single decisions over one view, the clock's own time among them.
pub(crate) fn measure(requests: usize) -> Vec<Figure> {
    let view = view();
    let ids: Vec<ModelId> = (0..N_MODELS).map(model).collect();
    let (cold, loaded): (Vec<_>, Vec<_>) = (0..N_MODELS).partition(|i| i % COLD_EVERY == 0);
    let mut rng = SmallRng::seed_from_u64(1);
    let policy = EvictionPolicy::default();
    let few = (requests / 20).max(1);
    let short = PromptDigests::of_length(400);
    let text = Prompt::Text("The quick brown fox jumps over the lazy dog. ".repeat(PROMPT_LEN / 45));
    let long = PromptDigests::of(&text);
    let holder = holder(&view, &ids[loaded[0]], &long);
    let warm = time(requests, |i| {
        let went = route(&view, &ids[loaded[i % loaded.len()]], &short, &[], &mut rng);
        assert!(went.is_ok(), "it is loaded");
    });
    let held = time(requests, |_| {
        let went = route(&holder, &ids[loaded[0]], &long, &[], &mut rng);
        assert!(went.is_ok_and(|went| went.considered.iter().any(|one| one.n_cached > 0)), "it is held");
    });
    let digests = time(few, |_| drop(black_box(PromptDigests::of(&text))));
    let without = time(requests, |i| {
        let went = route(&view, &ids[cold[i % cold.len()]], &short, &[], &mut rng);
        assert_eq!(went, Err(NoReplica::Cold));
    });
    let home = time(requests, |i| drop(black_box(home_of(&view, &ids[cold[i % cold.len()]]))));
    let placed = time(few, |i| {
        let placed = place(&view, &Want::new(&ids[cold[i % cold.len()]]), &policy);
        assert!(placed.is_ok(), "others may go for it");
    });
    let clock = time(requests, |_| {});
    let figure = |name: &str, target, times: &[f64]| {
        Figure::us(format!("{name} (p99)"), target, &[quantile(times, 0.99)]).beside(format!("p50 {:.1} µs", quantile(times, 0.5)))
    };
    vec![
        figure("a request for a model with replicas is routed", "≤ 50 µs", &warm),
        figure("one with half a megabyte of prompt, half of it cached on a node", "≤ 50 µs", &held),
        figure("the digests of half a megabyte of prompt are computed", "", &digests),
        figure("a request for one that is loaded nowhere is found so", "≤ 50 µs", &without),
        figure("the home of a model is found", "", &home),
        figure("a place for it is found, where others must go", "", &placed),
        figure("nothing: the clock", "", &clock),
    ]
}

/// Microseconds of each call.
fn time(n: usize, mut call: impl FnMut(usize)) -> Vec<f64> {
    (0..N_WARM.min(n)).for_each(&mut call);
    let timed = |i| {
        let begun = Instant::now();
        call(i);
        begun.elapsed().as_secs_f64() * 1e6
    };
    (0..n).map(timed).collect()
}

fn model(i: usize) -> ModelId {
    format!("org/model-{i}").parse().expect("an id of letters and numbers")
}

fn node(i: usize) -> NodeFacts {
    let name = format!("node-{i}").parse().expect("a name of letters and numbers");
    let address = "127.0.0.1:1".parse().expect("an address");
    NodeFacts { id: NodeId { name, generation: Generation(1) }, version: "0".into(), link: address, http: address, gossip: address }
}

fn device() -> DeviceId {
    DeviceId { kind: DeviceKind::Cuda, ordinal: 0 }
}

/// A cluster whose nodes are full of idle models.
fn view() -> ClusterView {
    let (now, wall) = (tokio::time::Instant::now(), SystemTime::now());
    let mut view = ClusterView::new("bench".into(), node(0));
    let loaded: Vec<usize> = (0..N_MODELS).filter(|i| i % COLD_EVERY != 0).collect();
    for n in 0..N_NODES {
        let facts = node(n);
        let replicas: Vec<ReplicaReport> = (0..PER_NODE).map(|k| replica(loaded[(n * PER_NODE + k) % loaded.len()], k)).collect();
        let memory_used = replicas.iter().map(|replica| replica.memory).sum();
        let devices = vec![DeviceReport { id: device(), name: "bench".into(), memory_total: Bytes::mib(80 << 10), memory_used }];
        if n == 0 {
            view.on_own_catalogue(catalogue(), wall);
            view.on_own_devices(devices);
            for replica in replicas {
                view.on_own_replica(replica, wall);
            }
            continue;
        }
        view.on_cluster_change(ClusterChange::Up(facts.clone()));
        view.on_peer_change(&PeerChange::Up(facts.id.clone()), now);
        view.on_catalogue(&facts.id, catalogue(), wall);
        view.on_summary(&facts.id, NodeSummary { revision: 1, draining: false, devices, replicas }, now, wall);
    }
    view
}

/// The same, in which a node holds the first half of a prompt, and all others of the model the first eighth.
fn holder(view: &ClusterView, model: &ModelId, prompt: &PromptDigests) -> ClusterView {
    let mut held = self::view();
    let nodes: Vec<NodeId> = view.candidates(model).map(|candidate| candidate.id.node).collect();
    for (i, id) in nodes.iter().enumerate() {
        let Some(known) = view.nodes().find(|node| node.id == id) else { continue };
        let mut summary = NodeSummary { revision: 2, ..known.summary.clone() };
        let share = if i == 1 { 2 } else { 8 };
        for replica in summary.replicas.iter_mut().filter(|replica| replica.model == *model) {
            let mut prefixes = prompt.digests()[..prompt.digests().len() / share].to_vec();
            prefixes.extend((0..N_PREFIXES - prefixes.len() as u32).map(|i| i * 4_000_037));
            prefixes.sort_unstable();
            replica.prefixes = Some(prefixes.into());
        }
        held.on_summary(id, summary, tokio::time::Instant::now(), SystemTime::now());
    }
    held
}

fn catalogue() -> Catalogue {
    let footprint = Footprint { weights: Bytes::mib(5 << 10), kv_per_token: Bytes(1 << 16), working: Bytes::mib(100) };
    let facts = ModelFacts {
        kind: ModelKind::Generate,
        context_length: 8192,
        cpu: footprint,
        cuda: footprint,
        file_bytes: Bytes::mib(5 << 10),
        tools: false,
        reasoning: false,
        digest: None,
        is_copy: false,
    };
    let entry = |i| CatalogueEntry {
        profile: ModelProfile::new(model(i), ModelSource::Path(format!("/models/{i}.gguf").into())),
        found: false,
        files: FilesState::Present(facts.clone()),
    };
    Catalogue { revision: 1, entries: (0..N_MODELS).map(entry).collect(), ..Catalogue::default() }
}

fn replica(i: usize, k: usize) -> ReplicaReport {
    ReplicaReport {
        model: model(i),
        device: device(),
        state: ReplicaState::Loaded,
        context_length: 8192,
        memory: Bytes::mib(5300),
        load: ReplicaLoad {
            running_max: 8,
            waiting_max: 64,
            decode_tokens_per_s: 50.0,
            prefill_tokens_per_s: 1e3,
            ..ReplicaLoad::default()
        },
        kind: ModelKind::Generate,
        residency_priority: 100,
        pinned: false,
        idle: Some(Duration::from_secs(60 + k as u64)),
        load_time: Some(Duration::from_secs(2)),
        progress: 1.0,
        prefixes: Some((0..N_PREFIXES).map(|i| i * 4_000_037).collect()),
        digest: None,
        tools: false,
        reasoning: false,
    }
}
