//! What is done to a cluster: as a list that can be read, or drawn from a seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::client::Pace;
use super::world::SimConfig;

/// After the last fault, all views agree within this.
pub const AGREE_WITHIN: Duration = Duration::from_secs(2);
/// After the views agree, whoever is gone is forgotten within this: a node that has just started hears of the dead from those who have not noticed
/// yet, and waits for [`plexus_actors::membership::NetTiming::settle`] and the detector's first, longest patience.
pub const FORGET_WITHIN: Duration = Duration::from_secs(8);
/// After the last fault, every stream has ended within this: each of its attempts may wait for a deadline, and all wait in queues.
pub const END_WITHIN: Duration = Duration::from_secs(60);
/// After the last stream ended, every replica is idle within this.
pub const IDLE_WITHIN: Duration = Duration::from_millis(500);

/// What is done to a cluster. Nodes are counted from 0.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A process starts on the node; with a new generation, if one ran before.
    Start(usize),
    /// The node's process is killed.
    Kill(usize),
    /// The node's process is killed instead of sending its packet of this number from now.
    KillAfter(usize, u32),
    /// The node's process is stopped; its connections stand.
    Freeze(usize),
    /// It goes on.
    Thaw(usize),
    /// Nothing passes from the first node to the second.
    CutOneWay(usize, usize),
    /// Nothing passes between the two.
    Cut(usize, usize),
    /// Nothing passes between these nodes and the others.
    Partition(Vec<usize>),
    /// The connections between the two break; new ones can be made.
    Drop(usize, usize),
    /// The first node's budget for the second is spent: it refuses to send notices and events.
    Congest(usize, usize),
    /// What the first node sends to the second takes up to so long.
    Delay(usize, usize, Duration),
    /// The model's actor on the node fails and is restarted.
    FailReplica(usize),
    /// The node takes no new requests.
    Drain(usize),
    /// All faults of the network are healed, and nobody is frozen any more. Who was killed stays dead.
    Heal,
    /// A client asks.
    Ask(Ask),
    /// A client that had stopped reading, or read slowly, reads on.
    Resume(u32),
    /// A client leaves.
    Leave(u32),
    /// Time passes.
    Wait(Duration),
    /// The client has seen so many tokens within 60 s.
    ExpectTokens(u32, u32),
    /// The client's answer is complete within 60 s.
    ExpectDone(u32),
    /// The client's request fails within 60 s, and the error has these words.
    ExpectFailed(u32, &'static str),
    /// All views agree within this.
    ExpectAgreement(Duration),
    /// Heals, lets all clients read, and checks that views agree, streams end, and nothing is left.
    Settle,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// By which the client is named later.
    pub label: u32,
    /// The node that it is connected to.
    pub at: usize,
    /// The prompt.
    pub prompt: String,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// How it reads.
    pub pace: Pace,
    /// The answer is one that ends with `max_tokens` or the context, not before.
    pub to_the_end: bool,
}

impl Ask {
    /// A client that asks a node for an answer of exactly `max_tokens`, and reads at once.
    pub fn new(label: u32, at: usize, max_tokens: u32) -> Self {
        let prompt = format!("The capital of France is, {label}:");
        Self { label, at, prompt, max_tokens: Some(max_tokens), stop: Vec::new(), pace: Pace::Fast, to_the_end: true }
    }

    /// The same, with another pace.
    pub fn pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }
}

/// A cluster and what is done to it, drawn from a seed.
pub fn random_script(seed: u64) -> (SimConfig, Vec<Op>) {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5ee_d0f5);
    let mut config = SimConfig { n_nodes: rng.random_range(2..=7), ..SimConfig::default() };
    config.n_holders = rng.random_range(1..=config.n_nodes);
    config.streams.window_tokens = [8, 32, 1024][rng.random_range(0..3)];
    // Impatient or patient: with the first, replicas are given up that are only slow, and go on talking.
    let impatient = rng.random_bool(0.5);
    if impatient {
        config.streams.accept_timeout = Duration::from_millis(200);
        config.streams.first_token_timeout = Duration::from_millis(600);
        config.streams.token_timeout = Duration::from_millis(300);
    }
    config.replica.tokens_per_step = rng.random_range(1..=3);
    config.replica.step_time = Duration::from_millis(rng.random_range(2..25));
    config.replica.running_max = rng.random_range(1..=8);
    config.replica.waiting_max = rng.random_range(1..=6);
    config.replica.n_blocks = rng.random_range(16..=17); // little more than one context
    config.delay.1 = Duration::from_micros([300, 2_000, 20_000][rng.random_range(0..3)]);

    let mut script: Vec<Op> = (0..config.n_nodes).map(Op::Start).collect();
    script.push(Op::Wait(Duration::from_millis(rng.random_range(300..2_500))));
    let mut label = 0;
    for _ in 0..rng.random_range(6..16) {
        for _ in 0..rng.random_range(0..3) {
            script.push(Op::Ask(random_ask(label, config.n_nodes, &mut rng)));
            label += 1;
        }
        script.push(Op::Wait(Duration::from_millis(rng.random_range(0..500))));
        script.push(random_fault(config.n_nodes, label, &mut rng));
        script.push(Op::Wait(Duration::from_micros(rng.random_range(0..700_000))));
        if rng.random_bool(0.2) {
            script.push(Op::Heal);
        }
    }
    script.extend((0..config.n_nodes).filter(|_| rng.random_bool(0.5)).map(Op::Start));
    script.push(Op::Settle);
    (config, script)
}

fn random_ask(label: u32, n_nodes: usize, rng: &mut SmallRng) -> Ask {
    let words = ["one", "two", "three", "caf\u{e9}", "The capital", "\u{6f22}\u{5b57}"];
    let prompt: Vec<&str> = (0..rng.random_range(1..12)).map(|_| words[rng.random_range(0..words.len())]).collect();
    let stop = if rng.random_bool(0.3) { vec!["capital of".to_owned(), "two th".to_owned()] } else { Vec::new() };
    let longest = if rng.random_bool(0.3) { 200 } else { 90 }; // some grow until two no longer fit beside each other
    let max_tokens = rng.random_bool(0.9).then(|| rng.random_range(0..longest));
    let pace = match rng.random_range(0..10) {
        0 => Pace::Slow(Duration::from_millis(rng.random_range(10..100))),
        1 => Pace::Leaves(rng.random_range(0..20)),
        2 => Pace::Stops(rng.random_range(0..20)),
        _ => Pace::Fast,
    };
    Ask { label, at: rng.random_range(0..n_nodes), prompt: prompt.join(" "), max_tokens, stop, pace, to_the_end: false }
}

fn random_fault(n_nodes: usize, n_clients: u32, rng: &mut SmallRng) -> Op {
    let a = rng.random_range(0..n_nodes);
    let b = (a + rng.random_range(1..n_nodes)) % n_nodes;
    match rng.random_range(0..19) {
        0..2 => Op::Kill(a),
        2..5 => Op::KillAfter(a, rng.random_range(1..60)),
        5..8 => Op::Start(a),
        8 => Op::Freeze(a),
        9 => Op::Thaw(a),
        10 => Op::CutOneWay(a, b),
        11 => Op::Cut(a, b),
        12 => Op::Partition((0..n_nodes).filter(|_| rng.random_bool(0.5)).collect()),
        13 => Op::Drop(a, b),
        14 => Op::Congest(a, b),
        15 => Op::Delay(a, b, Duration::from_millis(rng.random_range(1..900))),
        16 => Op::FailReplica(a),
        17 => Op::Leave(rng.random_range(0..=n_clients)),
        _ => Op::Heal,
    }
}
