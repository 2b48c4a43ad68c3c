//! The cluster simulator: the real cores of several nodes on a virtual clock and a virtual network, both driven by one seed.
//!
//! Real are [`StreamCore`], [`ClusterView`] and [`route`], [`LinkCore`], the gossip [`View`], the [`Scheduler`] with its sequences and block pool,
//! the memory [`Ledger`], the tokenizer and decoder, and every byte of the messages between nodes ([`wire`]). The shells round them, which
//! in the product are actors, are written again here; so are TCP, ractor's sessions, gossip's spreading, and a model whose next token is a pure
//! function of the tokens before it and the seed.
//!
//! After every event it is checked that each client sees the tokens of an undisturbed run, once and in order, with one end, and usage that
//! counts them; that nothing a former attempt says reaches a client; that replicas keep to their credit and blocks. `Simulation::settle`
//! checks what must hold when faults stop: views agree, streams end, nothing is left.
//!
//! [`StreamCore`]: plexus_actors::streams::core::StreamCore
//! [`ClusterView`]: plexus_actors::router::view::ClusterView
//! [`route`]: plexus_actors::router::policy::route
//! [`LinkCore`]: plexus_actors::link::core::LinkCore
//! [`View`]: plexus_actors::membership::view::View
//! [`Scheduler`]: plexus_actors::model::scheduler::Scheduler
//! [`Ledger`]: plexus_actors::evictor::ledger::Ledger
//! [`wire`]: plexus_actors::wire

pub mod agenda;
pub mod client;
pub mod gossip;
pub mod links;
pub mod log;
pub mod model;
pub mod net;
pub mod process;
pub mod replica;
pub mod script;
pub mod streams;
pub mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use plexus_types::{Bytes, FinishReason, GenerateRequest, Journal, NodeReport, NodeState, NodeSummary, Prompt, RequestId, Sampling};
use rand::Rng;

pub use client::{Client, Ending, Pace};
pub use script::{Ask, Op, random_script};
pub use world::{Counts, SimConfig};

use net::ProcessId;
use process::Process;
use world::{Happening, World, name_of};

/// The model that the holders hold.
pub const MODEL: &str = "pip";
/// The device of every node.
pub const DEVICE: &str = "cpu-0";
/// Memory of every device.
pub const DEVICE_MEMORY: Bytes = Bytes::mib(64);
/// Memory that the model takes of it.
pub const MODEL_MEMORY: Bytes = Bytes::mib(40);

/// An expectation of a script is met within this.
const EXPECT_WITHIN: Duration = Duration::from_secs(60);

/// What went wrong, and how to see it again.
#[derive(Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// What must hold and did not.
    pub what: String,
    /// What was done to the cluster.
    pub script: Vec<Op>,
    /// The end of the event log.
    pub tail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}\n{}script:", self.seed, self.what, self.tail)?;
        self.script.iter().try_for_each(|op| writeln!(f, "    {op:?}"))?;
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

/// A node: a machine on which one process after the other may run.
#[derive(Debug, Default)]
struct Node {
    process: Option<Process>,
    /// Number of the last process.
    life: u64,
    /// What reached the process while it was stopped.
    frozen: Option<Vec<Happening>>,
}

/// One run.
#[derive(Debug)]
pub struct Simulation {
    seed: u64,
    world: World,
    nodes: Vec<Node>,
    asked: BTreeMap<u32, RequestId>,
    script: Vec<Op>,
}

impl Simulation {
    /// A cluster of which no node runs yet.
    pub fn new(config: SimConfig, seed: u64) -> Self {
        let nodes = (0..config.n_nodes).map(|_| Node::default()).collect();
        Self { seed, world: World::new(config, seed), nodes, asked: BTreeMap::new(), script: Vec::new() }
    }

    /// Hash over everything that has happened.
    pub fn log_hash(&self) -> u64 {
        self.world.log.hash()
    }

    /// Numbers of the run.
    pub fn counts(&self) -> Counts {
        self.world.counts
    }

    /// The clients, in the order of their requests' ids.
    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.world.clients.values()
    }

    /// The client that asked under this label.
    ///
    /// # Panics
    /// If nobody did.
    pub fn client(&self, label: u32) -> &Client {
        &self.world.clients[&self.asked[&label]]
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.world.agenda.elapsed()
    }

    /// Does one thing after the other.
    ///
    /// Errors: something did not hold that must, or an expectation was not met.
    pub fn run(&mut self, script: &[Op]) -> Result<(), Box<Failure>> {
        self.script.extend_from_slice(script);
        script
            .iter()
            .try_for_each(|op| self.do_op(op))
            .map_err(|what| Box::new(Failure { seed: self.seed, what, script: self.script.clone(), tail: self.world.log.tail() }))
    }

    fn do_op(&mut self, op: &Op) -> Result<(), String> {
        if !matches!(op, Op::Wait(_)) {
            self.world.line(format_args!("-- {op:?}"));
        }
        let all = 0..self.nodes.len();
        match op {
            Op::Start(node) => self.start(*node),
            Op::Kill(node) => self.kill(*node),
            Op::KillAfter(node, packets) => drop(self.world.net.fuses.insert(*node, (*packets).max(1))),
            Op::Freeze(node) if self.nodes[*node].process.is_none() => {}
            Op::Freeze(node) => drop(self.nodes[*node].frozen.get_or_insert_default()),
            Op::Thaw(node) => self.thaw(*node),
            Op::CutOneWay(from, to) => self.world.cut(*from, *to),
            Op::Cut(a, b) => {
                self.world.cut(*a, *b);
                self.world.cut(*b, *a);
            }
            Op::Partition(side) => {
                for (a, b) in all.clone().flat_map(|a| all.clone().map(move |b| (a, b))) {
                    if side.contains(&a) != side.contains(&b) {
                        self.world.cut(a, b);
                    }
                }
            }
            Op::Drop(a, b) => self.world.break_links(*a, *b),
            Op::Congest(from, to) => self.world.net.path_mut(*from, *to).congested = true,
            Op::Delay(from, to, delay) => self.world.net.path_mut(*from, *to).delay = (*delay / 2, *delay),
            Op::FailReplica(node) => {
                if let Some(process) = &mut self.nodes[*node].process {
                    process.fail_replica(&mut self.world);
                }
            }
            Op::Drain(node) => {
                if let Some(process) = &mut self.nodes[*node].process {
                    process.tell(process::Mail::Drain, &mut self.world);
                }
            }
            Op::Heal => self.heal(),
            Op::Leave(label) => self.leave(*label),
            Op::Resume(label) => self.resume(*label),
            Op::Ask(ask) => self.ask(ask),
            Op::Wait(time) => self.advance(*time)?,
            Op::ExpectTokens(label, n) => {
                let id = self.asked[label];
                let came = |sim: &Self| sim.world.clients[&id].n_tokens() >= *n;
                self.until(EXPECT_WITHIN, came, |sim| format!("client {label} has {n} tokens; it has {}", sim.progress(id)))?;
            }
            Op::ExpectDone(label) => {
                let id = self.asked[label];
                self.until(EXPECT_WITHIN, |sim| sim.has_ended(id), |sim| format!("client {label} ends; it has {}", sim.progress(id)))?;
                if !self.world.clients[&id].is_done() {
                    return Err(format!("client {label} is not done: it has {}", self.progress(id)));
                }
            }
            Op::ExpectFailed(label, words) => {
                let id = self.asked[label];
                self.until(EXPECT_WITHIN, |sim| sim.has_ended(id), |sim| format!("client {label} ends; it has {}", sim.progress(id)))?;
                if !self.world.clients[&id].error().is_some_and(|error| error.contains(words)) {
                    return Err(format!("client {label} has not failed with {words:?}: it has {}", self.progress(id)));
                }
            }
            Op::ExpectAgreement(within) => self.until(*within, Self::views_agree, |sim| format!("the views agree: {}", sim.views()))?,
            Op::Settle => self.settle()?,
        }
        self.world.violation.take().map_or(Ok(()), Err)
    }

    /// What must hold when no more faults come: all views agree, every stream ends, and then nothing is left.
    fn settle(&mut self) -> Result<(), String> {
        self.heal();
        let paused: Vec<u32> = self.asked.keys().copied().collect();
        paused.into_iter().for_each(|label| self.resume(label));
        self.until(script::AGREE_WITHIN, Self::views_agree, |sim| format!("the views agree after the heal: {}", sim.views()))?;
        self.until(script::FORGET_WITHIN, Self::nobody_lingers, |sim| format!("who is gone is forgotten: {}", sim.views()))?;
        let open = |sim: &Self| -> Vec<RequestId> { sim.world.clients.keys().copied().filter(|id| !sim.has_ended(*id)).collect() };
        self.until(script::END_WITHIN, |sim| open(sim).is_empty(), |sim| format!("all streams end after the heal: {:?}", open(sim)))?;
        // What was cancelled last is on its way, and a replica may be waiting for the end of a step.
        let idle = |sim: &Self| sim.processes().all(|process| process.replica.as_ref().is_none_or(replica::Replica::is_idle));
        let busy = |sim: &Self| format!("all replicas are idle: {:?}", sim.processes().map(|process| &process.replica).collect::<Vec<_>>());
        self.until(script::IDLE_WITHIN, idle, busy)?;
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                process.check_idle(&mut self.world)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if state.process.is_none() {
            state.life += 1;
            state.process = Some(Process::start(ProcessId { node, life: state.life }, &mut self.world));
        }
    }

    fn kill(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.frozen = None;
        if let Some(process) = state.process.take() {
            self.world.line(format_args!("{} dies", process.facts.id));
            self.world.counts.crashes += 1;
            self.world.close_all_of(process.id);
        }
    }

    fn thaw(&mut self, node: usize) {
        for happening in self.nodes[node].frozen.take().unwrap_or_default() {
            self.world.agenda.after(Duration::ZERO, happening);
        }
    }

    fn heal(&mut self) {
        self.world.net.fuses.clear();
        for from in 0..self.nodes.len() {
            self.thaw(from);
            (0..self.nodes.len()).for_each(|to| self.world.heal(from, to));
        }
    }

    fn resume(&mut self, label: u32) {
        let Some(id) = self.asked.get(&label) else { return };
        let Some(client) = self.world.clients.get_mut(id) else { return };
        if matches!(client.pace, Pace::Stops(_) | Pace::Slow(_)) {
            client.pace = Pace::Fast;
        }
        let node = client.ingress;
        if let Some(process) = &self.nodes[node].process {
            self.world.let_read(*id, process.id);
        }
    }

    fn leave(&mut self, label: u32) {
        let Some(id) = self.asked.get(&label) else { return };
        let Some(client) = self.world.clients.get_mut(id).filter(|client| client.ending.is_none()) else { return };
        client.ending = Some(Ending::Left);
        client.inbox.clear();
        if let Some(process) = &mut self.nodes[client.ingress].process {
            process.tell(process::Mail::ClientGone(*id), &mut self.world);
        }
    }

    fn ask(&mut self, ask: &Ask) {
        let Some(process) = &mut self.nodes[ask.at].process else { return };
        let id = RequestId(self.world.rng.random());
        let request = GenerateRequest {
            principal: None,
            model: MODEL.parse().expect("a model id"),
            prompt: Prompt::Text(ask.prompt.clone()),
            sampling: Sampling::default(),
            max_tokens: ask.max_tokens,
            stop: ask.stop.clone(),
            constraint: None,
            logprobs: None,
        };
        let (seed, reference) = loop {
            let seed = self.world.rng.random();
            let reference = model::reference(&request, seed, self.world.config.replica.context);
            if !ask.to_the_end || reference.reason == FinishReason::Length {
                break (seed, reference);
            }
        };
        self.world.line(format_args!("{:04x} asks n{} for {} tokens", id.0 as u16, ask.at, reference.ids.len()));
        self.world.clients.insert(id, Client::new(ask.at, ask.pace, reference));
        self.asked.insert(ask.label, id);
        let journal = Journal { request: Arc::new(request), seed, prompt_ids: Vec::new(), sampled_ids: Vec::new() };
        process.open(id, journal, &mut self.world);
    }

    fn has_ended(&self, id: RequestId) -> bool {
        self.world.clients[&id].ending.is_some()
    }

    fn progress(&self, id: RequestId) -> String {
        let client = &self.world.clients[&id];
        format!("{} tokens, ending: {:?}", client.n_tokens(), client.ending)
    }

    /// Lets time pass.
    fn advance(&mut self, time: Duration) -> Result<(), String> {
        let until = self.elapsed() + time;
        while self.step(until)? {}
        Ok(())
    }

    /// Lets time pass until something holds; looks every few milliseconds.
    ///
    /// Errors: it did not hold within this time; `should` says what should have.
    fn until(&mut self, within: Duration, holds: impl Fn(&Self) -> bool, should: impl Fn(&Self) -> String) -> Result<(), String> {
        let deadline = self.elapsed() + within;
        while !holds(self) {
            if self.elapsed() >= deadline {
                return Err(format!("not within {within:?}: {}", should(self)));
            }
            self.advance(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// The next happening. False if there is none up to then.
    fn step(&mut self, until: Duration) -> Result<bool, String> {
        let Some(happening) = self.world.agenda.next(until) else { return Ok(false) };
        self.world.counts.happenings += 1;
        match happening {
            Happening::PathTimeout { from, to, epoch } => self.world.on_path_timeout(from, to, epoch),
            Happening::Process(id, input) => self.on_process(id, input),
            Happening::Knock(dial) => {
                if let Some(to) = self.world.on_knock(dial) {
                    let node = &mut self.nodes[to];
                    match (&mut node.frozen, &node.process) {
                        (Some(frozen), Some(_)) => frozen.push(Happening::Knock(dial)),
                        (_, process) => self.world.answer_dial(dial, process.as_ref().map(|process| process.id)),
                    }
                }
            }
            Happening::Datagram(to, bytes) => {
                if let Some(process) = &self.nodes[to].process {
                    self.on_process(process.id, world::Input::Datagram(bytes));
                }
            }
        }
        while let Some(node) = self.world.dying.first().copied() {
            self.kill(node);
            self.world.dying.remove(&node);
        }
        self.world.violation.take().map_or(Ok(true), Err)
    }

    fn on_process(&mut self, id: ProcessId, input: world::Input) {
        let node = &mut self.nodes[id.node];
        let Some(process) = node.process.as_mut().filter(|process| process.id == id) else { return };
        match &mut node.frozen {
            Some(frozen) => frozen.push(Happening::Process(id, input)),
            None => process.on_input(input, &mut self.world),
        }
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.nodes.iter().filter_map(|node| node.process.as_ref())
    }

    /// Does every node know what every other holds, and take nobody else for usable?
    fn views_agree(&self) -> bool {
        let now = self.world.agenda.now();
        self.processes().all(|process| {
            let report = process.view.report(now);
            let usable = report.nodes.iter().filter(|node| node.state != NodeState::Unreachable).count();
            usable == self.processes().count() && self.processes().all(|other| report.nodes.iter().any(|node| is_true_of(node, other)))
        })
    }

    /// Has every node forgotten those that are gone?
    fn nobody_lingers(&self) -> bool {
        let now = self.world.agenda.now();
        self.processes().all(|process| process.view.report(now).nodes.len() == self.processes().count())
    }

    /// What every node believes, in short.
    fn views(&self) -> String {
        let now = self.world.agenda.now();
        let mut text = String::new();
        for (node, _) in self.nodes.iter().enumerate() {
            let Some(process) = &self.nodes[node].process else { continue };
            let believed: Vec<String> = (process.view.report(now).nodes.iter())
                .filter(|other| !other.this_node)
                .map(|other| {
                    format!(
                        "{} {:?} {}",
                        other.facts.id,
                        other.state,
                        other.summary.replicas.iter().map(|r| r.state.word()).collect::<String>()
                    )
                })
                .collect();
            text += &format!("{}: [{}] ", name_of(node), believed.join(", "));
        }
        text
    }
}

/// Is what a node is believed to be what it says of itself?
fn is_true_of(believed: &NodeReport, process: &Process) -> bool {
    let own = process.view.own();
    let state = if own.draining { NodeState::Draining } else { NodeState::Up };
    let replicas = |summary: &NodeSummary| -> Vec<_> {
        summary.replicas.iter().map(|replica| (replica.model.clone(), replica.state.clone())).collect()
    };
    believed.facts.id == process.facts.id && believed.state == state && replicas(&believed.summary) == replicas(own)
}
