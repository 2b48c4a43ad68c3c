//! What a cluster is asked for, what it has, and what befalls it.

use std::collections::BTreeSet;
use std::time::Duration;

use plexus_types::{Bytes, DeviceId, DeviceKind, Footprint, ModelFacts, ModelId, ModelKind, ModelProfile};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes that are read in a second.
const LOAD_BYTES_PER_S: f64 = 2e9;
/// What a load takes beside its bytes.
const LOAD_OVERHEAD: Duration = Duration::from_millis(50);

/// The cluster and the trace.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Memory of each device of each node.
    pub nodes: Vec<Vec<Bytes>>,
    /// The models, the most wanted first.
    pub models: Vec<ModelProfile>,
    /// Weights of each.
    pub weights: Vec<Bytes>,
    /// Requests: when, which model, at which node, and how long it is served.
    pub requests: Vec<(Duration, usize, usize, Duration)>,
    /// Nodes that die, when, and for how long.
    pub failures: Vec<(Duration, usize, Duration)>,
    /// Times at which the network is cut in two, one after the other.
    pub cuts: Vec<Cut>,
}

/// The network is cut between some nodes and all others.
#[derive(Debug, Clone)]
pub struct Cut {
    /// When.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// The nodes of one side.
    pub side: BTreeSet<usize>,
}

impl Workload {
    /// `n_nodes` of unequal memory with a device each, `n_models` of unequal size, `n_requests` that want them by Zipf's law.
    pub fn random(n_nodes: usize, n_models: usize, n_requests: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = (0..n_nodes).map(|i| vec![gib([8.0, 12.0, 16.0, 24.0, 24.0, 48.0][i % 6])]).collect();
        let weights: Vec<Bytes> = (0..n_models).map(|_| gib(0.5 * 2f64.powf(rng.random_range(0.0..5.0)))).collect();
        let models =
            (0..n_models).map(|i| ModelProfile { residency_priority: if i % 10 == 9 { 200 } else { 100 }, ..profile(i) }).collect();
        let shares: Vec<f64> = (1..=n_models).map(|rank| 1.0 / rank as f64).collect();
        let total: f64 = shares.iter().sum();
        let mut at = Duration::from_secs(1);
        let requests = (0..n_requests)
            .map(|_| {
                at += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() * 0.25);
                let mut left = rng.random::<f64>() * total;
                let model = shares
                    .iter()
                    .position(|share| {
                        left -= share;
                        left <= 0.0
                    })
                    .unwrap_or(0);
                (at, model, rng.random_range(0..n_nodes), Duration::from_millis(rng.random_range(200..3000)))
            })
            .collect();
        Self { nodes, models, weights, requests, failures: Vec::new(), cuts: Vec::new() }
    }

    /// One model that is wanted far more than one replica can serve, for twenty seconds; then another, at times, for long enough that the
    /// first one's replicas are spare.
    pub fn hot(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut requests = Vec::new();
        for i in 0..300 {
            let at = Duration::from_secs(1) + Duration::from_millis(66 * i);
            requests.push((at, 0, rng.random_range(0..4), Duration::from_millis(rng.random_range(500..2500))));
        }
        for i in 0..50 {
            requests.push((Duration::from_secs(30 + 6 * i), 1, rng.random_range(0..4), Duration::from_millis(500)));
        }
        let weights = vec![gib(2.0), gib(1.0)];
        let models = (0..2).map(profile).collect();
        Self { nodes: vec![vec![gib(16.0)]; 4], models, weights, requests, failures: Vec::new(), cuts: Vec::new() }
    }

    /// The same, with a node that dies every minute and comes back.
    #[must_use]
    pub fn with_failures(mut self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xdead);
        self.failures = (1..=self.ends().as_secs() / 60)
            .map(|minute| {
                let node = rng.random_range(0..self.nodes.len());
                (Duration::from_secs(minute * 60), node, Duration::from_secs(rng.random_range(5..90)))
            })
            .collect();
        self
    }

    /// The same, with a network that is cut in two every 50 seconds, and heals.
    #[must_use]
    pub fn with_cuts(mut self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xc0de);
        let n_nodes = self.nodes.len();
        self.cuts = (0..self.ends().as_secs() / 50)
            .map(|i| {
                let n_side = rng.random_range(1..=n_nodes / 2);
                let side = rand::seq::index::sample(&mut rng, n_nodes, n_side).into_iter().collect();
                Cut { at: Duration::from_secs(20 + 50 * i), lasts: Duration::from_secs(rng.random_range(5..30)), side }
            })
            .collect();
        self
    }

    /// The same, with one model in fifteen that is pinned where it is loaded.
    #[must_use]
    pub fn with_pins(mut self) -> Self {
        self.models.iter_mut().skip(3).step_by(15).for_each(|model| model.pinned = true);
        self
    }

    /// The same, with every fourth node's memory on two unequal devices.
    #[must_use]
    pub fn with_two_devices(mut self) -> Self {
        for devices in self.nodes.iter_mut().skip(3).step_by(4) {
            let total = devices[0];
            *devices = vec![Bytes(total.0 / 3 * 2), Bytes(total.0 / 3)];
        }
        self
    }

    fn ends(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |(at, ..)| *at)
    }

    pub(super) fn facts(&self, model: usize) -> ModelFacts {
        let weights = self.weights[model];
        let footprint = Footprint { weights, kv_per_token: Bytes(weights.0 / 50_000), working: Bytes(weights.0 / 50) };
        ModelFacts {
            kind: ModelKind::Generate,
            context_length: 8192,
            cpu: footprint,
            cuda: footprint,
            file_bytes: weights,
            tools: false,
            reasoning: false,
            digest: None,
            is_copy: false,
        }
    }

    pub(super) fn index_of(&self, model: &ModelId) -> usize {
        self.models.iter().position(|profile| profile.id == *model).expect("a model of the trace")
    }

    pub(super) fn load_time(&self, model: &ModelId) -> Duration {
        LOAD_OVERHEAD + Duration::from_secs_f64(self.weights[self.index_of(model)].0 as f64 / LOAD_BYTES_PER_S)
    }

    pub(super) fn devices(&self, node: usize) -> Vec<(DeviceId, Bytes)> {
        let id = |ordinal| DeviceId { kind: DeviceKind::Cuda, ordinal };
        self.nodes[node].iter().enumerate().map(|(i, total)| (id(i as u32), *total)).collect()
    }
}

fn gib(gib: f64) -> Bytes {
    Bytes((gib * (1u64 << 30) as f64) as u64)
}

fn profile(i: usize) -> ModelProfile {
    let id = format!("m{i:02}").parse().expect("a model id");
    ModelProfile::new(id, format!("/models/m{i:02}.gguf").parse().expect("a source"))
}

/// What came of a trace.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that were refused.
    pub refused: usize,
    /// Loads, begun.
    pub loads: usize,
    /// From arrival to the first step, on average over those that were answered.
    pub mean_wait: Duration,
    /// Orders of loads for which others had to go, by what the node knew that gave them.
    pub displacing_orders: usize,
    /// Models that went from a device on which a pinned one stayed.
    pub gone_beside_pinned: usize,
    /// Loads that were begun by both sides of a cut, for one model.
    pub loaded_on_both_sides: usize,
    /// Loads of one model that were begun within a moment of each other, by nodes that did not agree who is there.
    pub twins: usize,
    /// Replicas that answered late whether they go.
    pub late_answers: usize,
    /// How often a replica that was used without a pause gave way to another model.
    pub gave_way: usize,
    /// The most replicas that each model had at a time.
    pub most_replicas: Vec<usize>,
    /// The replicas that each model had in the end.
    pub replicas_left: Vec<usize>,
}

impl Outcome {
    /// Loads for a thousand requests.
    pub fn loads_per_thousand(&self) -> f64 {
        1000.0 * self.loads as f64 / (self.answered + self.refused).max(1) as f64
    }
}
