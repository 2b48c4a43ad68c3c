//! Models that come and go, simulated: the real cores that place, evict and route, on many nodes with a virtual clock and one seed.
//!
//! Real are [`ClusterView`], [`route`], [`Home`] with [`place`](plexus_actors::router::place::place), and [`EvictorCore`]. Messages take a few
//! milliseconds, loads take the time that their bytes take, requests arrive by chance and want models by Zipf's law; nodes die and come back.
//! After every event it is checked that no device holds more than it has, that nobody goes who is pinned or has requests, that of each model
//! at most one replica is being loaded, and at the end that every request was answered, or refused with a reason.
//!
//! [`ClusterView`]: plexus_actors::router::view::ClusterView
//! [`route`]: plexus_actors::router::policy::route
//! [`Home`]: plexus_actors::router::home::Home
//! [`EvictorCore`]: plexus_actors::evictor::core::EvictorCore

pub mod baseline;
mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use plexus_actors::evictor::core::Place;
use plexus_actors::messages::{Ensure, LoadOrder};
use plexus_types::{Bytes, Explanation, Footprint, ModelFacts, ModelId, ModelKind, ModelProfile, NodeSummary, RequestError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use node::SimNode;

/// Bytes that are read in a second.
const LOAD_BYTES_PER_S: f64 = 2e9;
/// What a load takes beside its bytes.
const LOAD_OVERHEAD: Duration = Duration::from_millis(50);
/// Whoever waits asks again after so long.
const RETRY: Duration = Duration::from_millis(250);
/// Whoever has waited so long is refused.
const PATIENCE: Duration = Duration::from_secs(300);

/// The cluster and the trace.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Memory of the one device of each node.
    pub nodes: Vec<Bytes>,
    /// The models, the most wanted first.
    pub models: Vec<ModelProfile>,
    /// Weights of each.
    pub weights: Vec<Bytes>,
    /// Requests: when, which model, at which node, and how long it is served.
    pub requests: Vec<(Duration, usize, usize, Duration)>,
    /// Nodes that die, when, and for how long.
    pub failures: Vec<(Duration, usize, Duration)>,
}

impl Workload {
    /// `n_nodes` of unequal memory, `n_models` of unequal size, `n_requests` that want them by Zipf's law, and a node that dies every minute if
    /// `failures`.
    pub fn random(n_nodes: usize, n_models: usize, n_requests: usize, failures: bool, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let gib = |gib: f64| Bytes((gib * (1u64 << 30) as f64) as u64);
        let nodes: Vec<Bytes> = (0..n_nodes).map(|i| gib([8.0, 12.0, 16.0, 24.0, 24.0, 48.0][i % 6])).collect();
        let weights: Vec<Bytes> = (0..n_models).map(|_| gib(0.5 * 2f64.powf(rng.random_range(0.0..5.0)))).collect();
        let models = (0..n_models).map(|i| {
            let id = format!("m{i:02}").parse().expect("a model id");
            let source = format!("/models/m{i:02}.gguf").parse().expect("a source");
            let residency_priority = if i % 10 == 9 { 200 } else { 100 };
            ModelProfile { residency_priority, ..ModelProfile::new(id, source) }
        });
        let models: Vec<ModelProfile> = models.collect();
        let shares: Vec<f64> = (1..=n_models).map(|rank| 1.0 / rank as f64).collect();
        let total: f64 = shares.iter().sum();
        let mut at = Duration::from_secs(1);
        let requests: Vec<(Duration, usize, usize, Duration)> = (0..n_requests)
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
        let minutes = if failures { at.as_secs() / 60 } else { 0 };
        let failures = (1..=minutes)
            .map(|minute| (Duration::from_secs(minute * 60), rng.random_range(0..n_nodes), Duration::from_secs(rng.random_range(5..90))))
            .collect();
        Self { nodes, models, weights, requests, failures }
    }

    fn facts(&self, model: usize) -> ModelFacts {
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
        }
    }

    fn load_time(&self, model: &ModelId) -> Duration {
        let i = self.models.iter().position(|profile| profile.id == *model).expect("a model of the trace");
        LOAD_OVERHEAD + Duration::from_secs_f64(self.weights[i].0 as f64 / LOAD_BYTES_PER_S)
    }
}

/// What came of a trace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that were refused.
    pub refused: usize,
    /// Loads, begun.
    pub loads: usize,
    /// From arrival to the first step, on average over those that were answered.
    pub mean_wait: Duration,
}

impl Outcome {
    /// Loads for a thousand requests.
    pub fn loads_per_thousand(&self) -> f64 {
        1000.0 * self.loads as f64 / (self.answered + self.refused).max(1) as f64
    }
}

/// What reaches a node.
#[derive(Debug)]
enum Message {
    Summary(usize, NodeSummary),
    Ensure { from: usize, ensure: Ensure },
    Ensured(ModelId, Result<Explanation, RequestError>),
    Load { home: usize, order: Box<LoadOrder> },
    Ordered(ModelId, Result<(), RequestError>),
    Request { request: usize, place: Place },
    Linked(usize),
    Lost(usize),
}

/// What happens.
#[derive(Debug)]
enum Happening {
    Arrives(usize),
    Retries(usize),
    Delivered { to: usize, life: u64, message: Message },
    LoadEnds { node: usize, life: u64, place: Place, lease: u64 },
    Served { node: usize, life: u64, place: Place, request: usize },
    Ticks { node: usize, life: u64 },
    Dies(usize),
    Returns(usize),
}

/// A request of the trace.
#[derive(Debug, Clone)]
struct Request {
    model: ModelId,
    ingress: usize,
    service: Duration,
    arrived: Duration,
    state: RequestState,
}

#[derive(Debug, Clone, PartialEq)]
enum RequestState {
    Waiting,
    At(usize),
    Answered(Duration),
    Refused(String),
}

/// One run.
#[derive(Debug)]
pub struct Placement {
    workload: Workload,
    seed: u64,
    rng: StdRng,
    epoch: Instant,
    now: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    nodes: Vec<SimNode>,
    requests: Vec<Request>,
    loads: usize,
}

impl Placement {
    /// A cluster on which the trace is about to begin.
    pub fn new(workload: Workload, seed: u64) -> Self {
        let requests = workload.requests.iter().map(|(at, model, ingress, service)| Request {
            model: workload.models[*model].id.clone(),
            ingress: *ingress,
            service: *service,
            arrived: *at,
            state: RequestState::Waiting,
        });
        let requests = requests.collect();
        let mut placement = Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            epoch: Instant::now(),
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            nodes: (0..workload.nodes.len()).map(|i| SimNode::new(i, 0, &workload)).collect(),
            requests,
            loads: 0,
            workload,
        };
        for node in 0..placement.nodes.len() {
            placement.start(node);
        }
        for (i, (at, ..)) in placement.workload.requests.clone().into_iter().enumerate() {
            placement.at(at, Happening::Arrives(i));
        }
        for (at, node, down) in placement.workload.failures.clone() {
            placement.at(at, Happening::Dies(node));
            placement.at(at + down, Happening::Returns(node));
        }
        placement
    }

    /// Runs the whole trace.
    ///
    /// Errors: something did not hold that must; with the seed.
    pub fn run(mut self) -> Result<Outcome, String> {
        let last = self.workload.requests.last().map_or(Duration::ZERO, |(at, ..)| *at);
        while let Some(Reverse((at, id))) = self.agenda.pop() {
            if at > last + PATIENCE * 2 || (at > last && self.requests.iter().all(is_over)) {
                break;
            }
            self.now = at;
            let happening = self.happenings.remove(&id).expect("what is on the agenda happens once");
            let told = format!("{happening:?}");
            self.happen(happening)
                .and_then(|()| self.check())
                .map_err(|what| format!("seed {}, at {at:?}, after {told:.200}: {what}", self.seed))?;
        }
        if let Some(left) = self.requests.iter().find(|request| !is_over(request)) {
            return Err(format!("seed {}: a request was neither answered nor refused: {left:?}", self.seed));
        }
        let waits: Vec<Duration> = self
            .requests
            .iter()
            .filter_map(|request| if let RequestState::Answered(wait) = request.state { Some(wait) } else { None })
            .collect();
        let answered = waits.len();
        Ok(Outcome {
            answered,
            refused: self.requests.len() - answered,
            loads: self.loads,
            mean_wait: waits.iter().sum::<Duration>() / answered.max(1) as u32,
        })
    }

    fn at(&mut self, at: Duration, happening: Happening) {
        self.next += 1;
        self.happenings.insert(self.next, happening);
        self.agenda.push(Reverse((at, self.next)));
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    /// Over the network, or to itself.
    fn send(&mut self, from: usize, to: usize, message: Message) {
        let delay = if from == to { Duration::ZERO } else { Duration::from_micros(self.rng.random_range(300..5000)) };
        let life = self.nodes[to].life;
        self.after(delay, Happening::Delivered { to, life, message });
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrives(request) | Happening::Retries(request) => self.route(request),
            Happening::Delivered { to, life, message } if self.is_alive(to, life) => self.on_message(to, message),
            Happening::LoadEnds { node, life, place, lease } if self.is_alive(node, life) => self.on_load_ended(node, &place, lease),
            Happening::Served { node, life, place, request } if self.is_alive(node, life) => self.on_served(node, &place, request),
            Happening::Ticks { node, life } if self.is_alive(node, life) => self.on_tick(node),
            Happening::Dies(node) => {
                self.die(node);
                Ok(())
            }
            Happening::Returns(node) => {
                if !self.nodes[node].up {
                    self.nodes[node] = SimNode::new(node, self.nodes[node].life + 1, &self.workload);
                    self.start(node);
                }
                Ok(())
            }
            // A request that was on its way to a node that died is sent again.
            Happening::Delivered { message: Message::Request { request, .. }, .. } => {
                self.requests[request].state = RequestState::Waiting;
                self.after(RETRY, Happening::Retries(request));
                Ok(())
            }
            Happening::Delivered { .. } | Happening::LoadEnds { .. } | Happening::Served { .. } | Happening::Ticks { .. } => Ok(()),
        }
    }

    fn is_alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    fn die(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.nodes[node].up = false;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.nodes[other].up {
                self.send(node, other, Message::Lost(node));
            }
        }
        for i in 0..self.requests.len() {
            if self.requests[i].state == RequestState::At(node) {
                self.requests[i].state = RequestState::Waiting; // the journal goes elsewhere
                self.after(RETRY, Happening::Retries(i));
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        let mut loading: BTreeMap<&ModelId, usize> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.up) {
            node.check()?;
            for model in node.loading() {
                *loading.entry(model).or_default() += 1;
            }
        }
        match loading.iter().find(|(_, n)| **n > 1) {
            Some((model, n)) => Err(format!("{n} replicas of {model} are being loaded at once")),
            None => Ok(()),
        }
    }
}

fn is_over(request: &Request) -> bool {
    matches!(request.state, RequestState::Answered(_) | RequestState::Refused(_))
}
