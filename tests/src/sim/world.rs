//! All that is outside of the nodes: time, the network, the clients, the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use plexus_actors::args::StreamsConfig;
use plexus_actors::membership::NetTiming;
use plexus_types::{Generation, NodeFacts, NodeId, NodeName, RequestId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::agenda::Agenda;
use super::client::{Client, Ending};
use super::log::EventLog;
use super::net::{ConnId, DialId, Network, Packet, ProcessId, Side};
use super::process::Mail;
use super::replica::ReplicaProfile;

/// What the nodes are like.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Nodes, started or not.
    pub n_nodes: usize,
    /// Of them, those that hold the model: the first so many.
    pub n_holders: usize,
    /// Deadlines and windows of streams.
    pub streams: StreamsConfig,
    /// Intervals and deadlines of links and gossip.
    pub timing: NetTiming,
    /// How replicas are sized.
    pub replica: ReplicaProfile,
    /// Least and greatest delay of a packet.
    pub delay: (Duration, Duration),
}

impl Default for SimConfig {
    /// Three nodes that all hold the model. The deadlines of streams are shorter than in `cluster.toml`, so that they pass in few events.
    fn default() -> Self {
        Self {
            n_nodes: 3,
            n_holders: 3,
            streams: StreamsConfig {
                accept_timeout: Duration::from_secs(1),
                first_token_timeout: Duration::from_secs(5),
                token_timeout: Duration::from_secs(3),
                client_timeout: Duration::from_secs(300),
                load_timeout: Duration::from_secs(10),
                attempts_max: 4,
                window_tokens: 32,
                prompt_time_max: None,
            },
            timing: NetTiming::default(),
            replica: ReplicaProfile {
                running_max: 4,
                waiting_max: 8,
                n_blocks: 64,
                context: 256,
                tokens_per_step: 1,
                step_time: Duration::from_millis(15),
            },
            delay: (Duration::from_micros(100), Duration::from_millis(2)),
        }
    }
}

/// What happens.
#[derive(Debug)]
pub enum Happening {
    /// Something reaches a process; it is dropped when that process is no more.
    Process(ProcessId, Input),
    /// A datagram of gossip reaches a node.
    Datagram(usize, Vec<u8>),
    /// A TCP handshake reaches a node.
    Knock(DialId),
    /// The kernels give up on a path that has been cut since this epoch.
    PathTimeout {
        /// From this node...
        from: usize,
        /// ...to this one.
        to: usize,
        /// Which cut.
        epoch: u64,
    },
}

/// What reaches a process.
#[derive(Debug)]
pub enum Input {
    /// The clock of links and gossip.
    Tick,
    /// A round of gossip.
    GossipDue,
    /// A datagram of gossip came.
    Datagram(Vec<u8>),
    /// The far end of a dial has answered.
    Connected(DialId),
    /// A dial should have reached its node by now.
    DialLate(DialId),
    /// The far end of a dial has refused, or nobody answered in time.
    DialFailed(DialId),
    /// A packet came on a connection.
    Packet {
        /// Which connection.
        conn: ConnId,
        /// Which end of it.
        side: Side,
        /// What came.
        packet: Packet,
        /// When it reached this machine.
        at: Duration,
    },
    /// A message to one of its actors.
    Mail(Mail),
    /// A client reads.
    ClientReads(RequestId),
}

/// Numbers of a run, to see that it was not about nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Happenings.
    pub happenings: u64,
    /// Streams that went to another replica.
    pub reroutes: u64,
    /// Of them, those that had tokens already.
    pub continuations: u64,
    /// Events of former attempts that were ignored.
    pub former: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Prompt tokens that a replica found in its memory.
    pub cached_tokens: u64,
    /// Times that a replica's memory was full, so that a sequence had to wait again.
    pub preemptions: u64,
    /// Tokens that replicas guessed rightly.
    pub guessed_right: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.happenings += other.happenings;
        self.reroutes += other.reroutes;
        self.continuations += other.continuations;
        self.former += other.former;
        self.crashes += other.crashes;
        self.cached_tokens += other.cached_tokens;
        self.preemptions += other.preemptions;
        self.guessed_right += other.guessed_right;
    }
}

/// All that is outside of the nodes.
#[derive(Debug)]
pub struct World {
    /// What the nodes are like.
    pub config: SimConfig,
    /// Time.
    pub agenda: Agenda<Happening>,
    /// The network.
    pub net: Network,
    /// What happened.
    pub log: EventLog,
    /// The clients, with their histories.
    pub clients: BTreeMap<RequestId, Client>,
    /// Numbers of the run.
    pub counts: Counts,
    /// Nodes that have sent their last packet.
    pub dying: BTreeSet<usize>,
    /// The first thing that went wrong.
    pub violation: Option<String>,
    /// Chance outside of the nodes.
    pub rng: SmallRng,
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(config: SimConfig, seed: u64) -> Self {
        Self {
            agenda: Agenda::default(),
            net: Network::new(config.n_nodes, config.delay),
            log: EventLog::default(),
            clients: BTreeMap::new(),
            counts: Counts::default(),
            dying: BTreeSet::new(),
            violation: None,
            rng: SmallRng::seed_from_u64(seed),
            config,
        }
    }

    /// Notes a line in the log.
    pub fn line(&mut self, line: fmt::Arguments<'_>) {
        self.log.line(self.agenda.elapsed(), line);
    }

    /// Something is not as it must be.
    pub fn violate(&mut self, what: String) {
        self.line(format_args!("VIOLATED: {what}"));
        self.violation.get_or_insert(what);
    }

    /// Sends a packet from one side of a connection.
    pub fn send(&mut self, conn: ConnId, from: Side, packet: Packet) {
        let Some(end) = self.net.conns.get(&conn).map(|state| &state.ends[from]) else { return };
        let node = end.process.node;
        if !end.open || self.dying.contains(&node) {
            return;
        }
        if let Some(fuse) = self.net.fuses.get_mut(&node) {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                self.net.fuses.remove(&node);
                self.dying.insert(node);
                return;
            }
        }
        if let Packet::Frame(bytes) = &packet {
            self.log.bytes(self.agenda.elapsed(), bytes);
        }
        let arrival = self.net.send(conn, from, &packet, self.agenda.elapsed(), &mut self.rng);
        if let Some((process, at)) = arrival {
            self.arrive(conn, 1 - from, packet, process, at);
        }
    }

    fn arrive(&mut self, conn: ConnId, side: Side, packet: Packet, process: ProcessId, at: Duration) {
        self.agenda.at(at, Happening::Process(process, Input::Packet { conn, side, packet, at }));
    }

    /// Closes one end of a connection; the other hears of it.
    pub fn close(&mut self, conn: ConnId, side: Side) {
        let node = self.net.conns.get(&conn).map(|state| state.ends[side].process.node);
        if node.is_some_and(|node| self.dying.contains(&node)) {
            return; // it did not come to that
        }
        self.send(conn, side, Packet::End);
        self.end(conn, side);
    }

    /// One end of a connection is over.
    pub fn end(&mut self, conn: ConnId, side: Side) {
        if let Some(state) = self.net.conns.get_mut(&conn) {
            state.ends[side].open = false;
        }
        self.net.forget_closed(conn);
    }

    /// The acceptor of a connection takes it.
    pub fn accept(&mut self, conn: ConnId) {
        if let Some(state) = self.net.conns.get_mut(&conn) {
            state.ends[1].open = true;
        }
    }

    /// Whose certificate is shown on a connection.
    pub fn dialer_of(&self, conn: ConnId) -> Option<NodeName> {
        Some(name_of(self.net.conns.get(&conn)?.ends[0].process.node))
    }

    /// Breaks the connections between two nodes: both ends hear of it, each after a while, and what is under way is lost.
    pub fn break_links(&mut self, a: usize, b: usize) {
        for conn in self.net.between(a, b) {
            for side in 0..2 {
                let wait = Duration::from_millis(self.rng.random_range(0..50));
                let at = self.agenda.elapsed() + wait;
                let Some(state) = self.net.conns.get_mut(&conn) else { continue };
                state.ends[side].deaf = true;
                let process = state.ends[side].process;
                self.arrive(conn, side, Packet::End, process, at);
            }
        }
    }

    /// A process begins to dial a node.
    pub fn dial(&mut self, from: ProcessId, facts: &NodeFacts) {
        let Some(to) = (0..self.config.n_nodes).find(|node| name_of(*node) == facts.id.name) else { return };
        let dial = self.net.dial(from, to);
        self.agenda.after(self.config.timing.connect_max, Happening::Process(from, Input::DialLate(dial)));
        self.agenda.after(self.config.timing.handshake_max, Happening::Process(from, Input::DialFailed(dial)));
        self.knock(dial);
    }

    /// Sends the first packet of a dial.
    fn knock(&mut self, dial: DialId) {
        let Some(state) = self.net.dials.get(&dial) else { return };
        let delay = self.net.delay(state.from.node, state.to, &mut self.rng);
        self.agenda.after(delay, Happening::Knock(dial));
    }

    /// A dial's packet reaches its node, which is told who dials, unless the path is cut.
    pub fn on_knock(&mut self, dial: DialId) -> Option<usize> {
        let state = self.net.dials.get(&dial)?;
        let (from, to) = (state.from.node, state.to);
        let reached = !self.net.path(from, to).cut && !self.net.path(to, from).cut;
        self.net.dials.get_mut(&dial)?.reached = reached;
        reached.then_some(to)
    }

    /// A process answers a dial, or nobody is there to answer it.
    pub fn answer_dial(&mut self, dial: DialId, acceptor: Option<ProcessId>) {
        let Some(state) = self.net.dials.get_mut(&dial) else { return };
        state.acceptor = acceptor;
        let (from, to) = (state.from, state.to);
        let delay = self.net.delay(to, from.node, &mut self.rng);
        let input = if acceptor.is_some() { Input::Connected(dial) } else { Input::DialFailed(dial) };
        self.agenda.after(delay, Happening::Process(from, input));
    }

    /// Sends a datagram of gossip; across a cut it is lost.
    pub fn datagram(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if !self.net.path(from, to).cut && !self.dying.contains(&from) {
            self.log.bytes(self.agenda.elapsed(), &bytes);
            let delay = self.net.delay(from, to, &mut self.rng);
            self.agenda.after(delay, Happening::Datagram(to, bytes));
        }
    }

    /// Cuts one direction between two nodes.
    pub fn cut(&mut self, from: usize, to: usize) {
        let path = self.net.path_mut(from, to);
        if path.cut {
            return;
        }
        path.cut = true;
        path.epoch += 1;
        let epoch = path.epoch;
        // Keep-alives and pings see to it that something is always unacknowledged.
        let wait = self.config.timing.user_timeout + Duration::from_millis(self.rng.random_range(0..250));
        self.agenda.after(wait, Happening::PathTimeout { from, to, epoch });
    }

    /// Heals one direction between two nodes.
    pub fn heal(&mut self, from: usize, to: usize) {
        let delay = self.config.delay;
        let path = self.net.path_mut(from, to);
        (path.congested, path.delay) = (false, delay);
        if !std::mem::take(&mut path.cut) {
            return;
        }
        path.epoch += 1;
        for (conn, side, packet, process, at) in self.net.release(from, to, self.agenda.elapsed(), &mut self.rng) {
            self.arrive(conn, side, packet, process, at);
        }
    }

    /// The kernels give up on what they could not deliver.
    pub fn on_path_timeout(&mut self, from: usize, to: usize, epoch: u64) {
        if self.net.path(from, to).cut && self.net.path(from, to).epoch == epoch {
            self.break_links(from, to);
        }
    }

    /// Is the sender's budget for this peer spent?
    pub fn is_congested(&self, from: usize, to: &NodeId) -> bool {
        (0..self.config.n_nodes).any(|node| name_of(node) == to.name && self.net.path(from, node).congested)
    }

    /// The connections of a process that died are closed by its kernel; what was under way may be lost.
    pub fn close_all_of(&mut self, process: ProcessId) {
        self.dying.remove(&process.node);
        self.net.fuses.remove(&process.node);
        let conns: Vec<ConnId> = self.net.conns.keys().copied().collect();
        for conn in conns {
            for side in 0..2 {
                let Some(state) = self.net.conns.get_mut(&conn) else { continue };
                if state.ends[side].process == process {
                    state.ends[1 - side].deaf |= self.rng.random_bool(0.5);
                    self.close(conn, side);
                }
            }
        }
        self.net.dials.retain(|_, dial| dial.from != process);
        for client in self.clients.values_mut().filter(|client| client.ingress == process.node && client.ending.is_none()) {
            client.ending = Some(Ending::Broken);
            client.inbox.clear();
        }
    }

    /// Lets a client read on, if there is something to read and it wants to.
    pub fn let_read(&mut self, id: RequestId, process: ProcessId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if client.reading || !client.wants() {
            return;
        }
        client.reading = true;
        let wait = match client.pace {
            super::Pace::Slow(pause) => pause,
            _ => Duration::from_micros(50),
        };
        self.agenda.after(wait, Happening::Process(process, Input::ClientReads(id)));
    }
}

/// The name of a node.
pub fn name_of(node: usize) -> NodeName {
    format!("n{node}").parse().expect("a letter and a number are a node name")
}

/// What a node says of itself in one of its lives.
pub fn facts_of(process: ProcessId) -> NodeFacts {
    let at = |port| ([10, 0, 0, process.node as u8], port).into();
    let id = NodeId { name: name_of(process.node), generation: Generation(process.life) };
    NodeFacts { id, version: "1".to_owned(), link: at(1), http: at(2), gossip: at(3) }
}
