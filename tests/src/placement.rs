//! Models that come and go, simulated: the real cores that place, evict and route, on many nodes with a virtual clock and one seed.
//!
//! Real are [`ClusterView`], [`route`], [`Home`] with [`place`](plexus_actors::router::place::place), and [`EvictorCore`]. Messages take a few
//! milliseconds, loads take the time that their bytes take, requests arrive by chance and want models by Zipf's law; nodes die and come back,
//! the network is cut and heals, and replicas answer late whether they go. After every event it is checked that no device holds more than it
//! has, by what the trace says that models take, that each ledger agrees with that, that nobody goes who is pinned or has requests, and that
//! whoever has agreed to go is gone; with every order of a load and everyone told to make room, that nobody has to go while there is room, nor
//! for a model of a lower class, nor who is in use, by what the node knew that decided it; whenever a load begins, that no other of its model is
//! under way on the same side of the cut; and at the end that every request was answered, or refused with a reason.
//!
//! [`ClusterView`]: plexus_actors::router::view::ClusterView
//! [`route`]: plexus_actors::router::policy::route
//! [`Home`]: plexus_actors::router::home::Home
//! [`EvictorCore`]: plexus_actors::evictor::core::EvictorCore

pub mod baseline;
mod decisions;
mod network;
mod node;
mod replica;
mod workload;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use plexus_actors::evictor::core::{Ask, Place, Verdict};
use plexus_actors::messages::{Ensure, LoadOrder};
use plexus_types::{Explanation, ModelId, NodeSummary, RequestError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use self::node::SimNode;
pub use self::workload::{Cut, Outcome, Workload};

/// Whoever waits asks again after so long.
const RETRY: Duration = Duration::from_millis(250);
/// Whoever has waited so long is refused.
const PATIENCE: Duration = Duration::from_secs(300);

/// What reaches a node.
#[derive(Debug)]
enum Message {
    Summary(usize, NodeSummary),
    Ensure { from: usize, ensure: Ensure },
    Ensured(ModelId, Result<Explanation, RequestError>),
    Load { home: usize, number: u64, order: Box<LoadOrder> },
    Ordered { model: ModelId, number: u64, result: Result<(), RequestError> },
    Request { request: usize, place: Place },
    Linked(usize),
    Lost(usize),
}

/// What happens.
#[derive(Debug)]
enum Happening {
    Arrives(usize),
    Retries(usize),
    Delivered {
        from: usize,
        to: usize,
        life: u64,
        message: Message,
    },
    /// Something of one life of a node.
    Within {
        node: usize,
        life: u64,
        what: Within,
    },
    Dies(usize),
    Returns(usize),
    Cuts(usize),
    Heals,
}

/// What happens on a node, unless it dies before.
#[derive(Debug)]
enum Within {
    LoadEnds {
        place: Place,
        lease: u64,
    },
    Served {
        place: Place,
        request: usize,
        step: u64,
    },
    Ticks,
    /// A link is found to be dead.
    Loses(usize),
    /// Nobody has answered the question for a model.
    EnsureLate {
        model: ModelId,
        number: u64,
    },
    /// Nobody has answered the order of a load.
    OrderLate {
        model: ModelId,
        number: u64,
    },
    /// A replica comes to the question whether it goes.
    Asked {
        place: Place,
        lease: u64,
        ask: Ask,
    },
    /// The evictor hears of it.
    Retired {
        place: Place,
        ask: Ask,
        verdict: Verdict,
    },
    /// A replica hears whether it gives way to another.
    GivesWay {
        place: Place,
        lease: u64,
        gives_way: bool,
    },
}

/// A request of the trace.
#[derive(Debug, Clone)]
struct Request {
    model: ModelId,
    /// The node that its client asks first.
    ingress: usize,
    /// The node that looks for a replica for it.
    via: usize,
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
    /// One side of the cut, while there is one.
    cut: Option<BTreeSet<usize>>,
    /// Until then nodes may not agree who is there.
    unsettled_until: Duration,
    requests: Vec<Request>,
    outcome: Outcome,
}

impl Placement {
    /// A cluster on which the trace is about to begin.
    pub fn new(workload: Workload, seed: u64) -> Self {
        let requests = workload.requests.iter().map(|(at, model, ingress, service)| Request {
            model: workload.models[*model].id.clone(),
            ingress: *ingress,
            via: *ingress,
            service: *service,
            arrived: *at,
            state: RequestState::Waiting,
        });
        let n_models = workload.models.len();
        let mut placement = Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            epoch: Instant::now(),
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            nodes: (0..workload.nodes.len()).map(|i| SimNode::new(i, 0, &workload)).collect(),
            cut: None,
            unsettled_until: Duration::ZERO,
            requests: requests.collect(),
            outcome: Outcome { most_replicas: vec![0; n_models], replicas_left: vec![0; n_models], ..Outcome::default() },
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
        for (i, cut) in placement.workload.cuts.clone().into_iter().enumerate() {
            placement.at(cut.at, Happening::Cuts(i));
            placement.at(cut.at + cut.lasts, Happening::Heals);
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
        let mute = |request: &&Request| matches!(&request.state, RequestState::Refused(why) if why.is_empty());
        if let Some(mute) = self.requests.iter().find(mute) {
            return Err(format!("seed {}: a request was refused without a reason: {mute:?}", self.seed));
        }
        let waits: Vec<Duration> = self
            .requests
            .iter()
            .filter_map(|request| if let RequestState::Answered(wait) = request.state { Some(wait) } else { None })
            .collect();
        let answered = waits.len();
        for place in self.nodes.iter().filter(|node| node.up).flat_map(SimNode::loaded) {
            self.outcome.replicas_left[self.workload.index_of(&place.0)] += 1;
        }
        Ok(Outcome {
            answered,
            refused: self.requests.len() - answered,
            mean_wait: waits.iter().sum::<Duration>() / answered.max(1) as u32,
            ..self.outcome
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

    /// Unless the node dies before.
    fn within(&mut self, node: usize, delay: Duration, what: Within) {
        let life = self.nodes[node].life;
        self.after(delay, Happening::Within { node, life, what });
    }

    fn instant(&self) -> Instant {
        self.epoch + self.now
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Arrives(request) | Happening::Retries(request) => self.route(request),
            Happening::Delivered { from, to, life, message } if self.is_alive(to, life) && self.is_linked(from, to) => {
                return self.on_message(to, message);
            }
            Happening::Within { node, life, what } if self.is_alive(node, life) => return self.on_within(node, what),
            Happening::Dies(node) => self.die(node),
            Happening::Returns(node) => self.come_back(node),
            Happening::Cuts(cut) => self.cut(cut),
            Happening::Heals => self.heal(),
            // A request that was on its way to a node that died is sent again; one that was cut off is when its node learns that.
            Happening::Delivered { to, life, message: Message::Request { request, .. }, .. } => {
                if !self.is_alive(to, life) {
                    self.waits_again(request, RETRY);
                }
            }
            Happening::Delivered { .. } | Happening::Within { .. } => {}
        }
        Ok(())
    }

    fn on_within(&mut self, node: usize, what: Within) -> Result<(), String> {
        match what {
            Within::LoadEnds { place, lease } => self.on_load_ended(node, &place, lease),
            Within::Served { place, request, step } => self.on_served(node, &place, request, step),
            Within::Ticks => self.on_tick(node),
            Within::Loses(other) => self.on_lost(node, other),
            Within::EnsureLate { model, number } => {
                self.nodes[node].on_ensure_late(&model, number);
                Ok(())
            }
            Within::OrderLate { model, number } => {
                self.on_order_late(node, &model, number);
                Ok(())
            }
            Within::GivesWay { place, lease, gives_way } => self.on_give_way(node, &place, lease, gives_way),
            Within::Asked { place, lease, ask } => self.on_asked(node, place, lease, ask),
            Within::Retired { place, ask, verdict } => self.on_verdict(node, place, ask, verdict),
        }
    }

    fn is_alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    /// Looks for a replica anew, after a while.
    fn waits_again(&mut self, request: usize, delay: Duration) {
        self.requests[request].state = RequestState::Waiting;
        self.after(delay, Happening::Retries(request));
    }

    fn check(&self) -> Result<(), String> {
        self.nodes.iter().filter(|node| node.up).try_for_each(|node| node.check(self.now))
    }
}

fn is_over(request: &Request) -> bool {
    matches!(request.state, RequestState::Answered(_) | RequestState::Refused(_))
}
