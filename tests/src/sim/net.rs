//! The virtual network: paths between nodes that delay, cut and congest; connections that keep order; datagrams that may be lost.
//!
//! A connection behaves like TCP as an application sees it. While a path is cut, what is sent on it is held, and comes in order after the path
//! heals, unless the kernels give up before ([`plexus_actors::membership::NetTiming::user_timeout`]). A process that dies closes its
//! connections; the far end hears of it after the path's delay.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use plexus_types::NodeId;
use rand::Rng;
use rand::rngs::SmallRng;

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// One end of a connection: 0 dialed, 1 accepted.
pub type Side = usize;

/// An attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DialId(pub u64);

/// What travels on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    /// The end of the TLS handshake: the dialer's certificate.
    Certificate,
    /// The session says which life of the node is speaking.
    Session(NodeId),
    /// A frame, in the bytes of [`plexus_actors::wire`].
    Frame(Vec<u8>),
    /// The far end is closed.
    End,
}

/// A process on a node: which node, and which of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// Index of the node.
    pub node: usize,
    /// Which process on it.
    pub life: u64,
}

/// One direction between two nodes.
#[derive(Debug, Clone)]
pub struct Path {
    /// Nothing passes.
    pub cut: bool,
    /// Grows with each cut and heal.
    pub epoch: u64,
    /// Least and greatest delay.
    pub delay: (Duration, Duration),
    /// The sender's budget for this peer is spent: notices and events are refused.
    pub congested: bool,
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    /// Whose it is.
    pub process: ProcessId,
    /// It has not been closed, and has not seen the far end's end.
    pub open: bool,
    /// Frames on the way to it are lost; only the end arrives.
    pub deaf: bool,
    /// No packet to it arrives before this.
    arrival: Duration,
    /// On the way to it, held by a cut.
    held: VecDeque<Packet>,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// The dialer's end and the acceptor's.
    pub ends: [End; 2],
}

/// An attempt to connect that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    /// Who dials.
    pub from: ProcessId,
    /// Index of the node that is dialed.
    pub to: usize,
    /// The node's kernel has taken the connection.
    pub reached: bool,
    /// The process that answered.
    pub acceptor: Option<ProcessId>,
}

/// The network between the nodes.
#[derive(Debug)]
pub struct Network {
    n_nodes: usize,
    paths: Vec<Path>,
    /// Connections with an end that is open.
    pub conns: BTreeMap<ConnId, Conn>,
    /// Attempts under way.
    pub dials: BTreeMap<DialId, Dial>,
    /// Packets that a node may still send before it crashes.
    pub fuses: BTreeMap<usize, u32>,
    n_conns: u64,
    n_dials: u64,
}

impl Network {
    /// A network in which everybody reaches everybody within `delay`.
    pub fn new(n_nodes: usize, delay: (Duration, Duration)) -> Self {
        let path = Path { cut: false, epoch: 0, delay, congested: false };
        Self {
            n_nodes,
            paths: vec![path; n_nodes * n_nodes],
            conns: BTreeMap::new(),
            dials: BTreeMap::new(),
            fuses: BTreeMap::new(),
            n_conns: 0,
            n_dials: 0,
        }
    }

    /// One direction between two nodes.
    pub fn path(&self, from: usize, to: usize) -> &Path {
        &self.paths[from * self.n_nodes + to]
    }

    /// The same, to be changed.
    pub fn path_mut(&mut self, from: usize, to: usize) -> &mut Path {
        &mut self.paths[from * self.n_nodes + to]
    }

    /// How long the next packet from one node to another takes.
    pub fn delay(&self, from: usize, to: usize, rng: &mut SmallRng) -> Duration {
        let (least, most) = self.path(from, to).delay;
        least + (most.saturating_sub(least)).mul_f64(rng.random::<f64>())
    }

    /// Notes an attempt to connect.
    pub fn dial(&mut self, from: ProcessId, to: usize) -> DialId {
        self.n_dials += 1;
        self.dials.insert(DialId(self.n_dials), Dial { from, to, reached: false, acceptor: None });
        DialId(self.n_dials)
    }

    /// A connection whose dialer has finished its handshake.
    pub fn connect(&mut self, dialer: ProcessId, acceptor: ProcessId) -> ConnId {
        self.n_conns += 1;
        let end = |process, open| End { process, open, deaf: false, arrival: Duration::ZERO, held: VecDeque::new() };
        self.conns.insert(ConnId(self.n_conns), Conn { ends: [end(dialer, true), end(acceptor, false)] });
        ConnId(self.n_conns)
    }

    /// A packet is sent from one side. Says when it arrives at the other; `None` if it is held by a cut, or nobody is there.
    pub fn send(&mut self, conn: ConnId, from: Side, packet: &Packet, now: Duration, rng: &mut SmallRng) -> Option<(ProcessId, Duration)> {
        let (sender, receiver) = {
            let ends = &self.conns.get(&conn)?.ends;
            (ends[from].process.node, ends[1 - from].process)
        };
        let delay = self.delay(sender, receiver.node, rng);
        let cut = self.path(sender, receiver.node).cut;
        let end = &mut self.conns.get_mut(&conn)?.ends[1 - from];
        if cut || !end.held.is_empty() {
            end.held.push_back(packet.clone());
            return None;
        }
        end.arrival = (end.arrival + Duration::from_micros(1)).max(now + delay);
        Some((receiver, end.arrival))
    }

    /// A path was healed: what was held on it comes now, in order. Gives each packet with where and when it arrives.
    pub fn release(
        &mut self,
        from: usize,
        to: usize,
        now: Duration,
        rng: &mut SmallRng,
    ) -> Vec<(ConnId, Side, Packet, ProcessId, Duration)> {
        let mut released = Vec::new();
        for (conn, state) in &mut self.conns {
            for side in 0..2 {
                if state.ends[1 - side].process.node != from || state.ends[side].process.node != to {
                    continue;
                }
                let end = &mut state.ends[side];
                // The sender's kernel has backed off: it tries again some time after the path is back.
                let mut arrival = now + Duration::from_millis(rng.random_range(1..400));
                for packet in std::mem::take(&mut end.held) {
                    arrival = (end.arrival + Duration::from_micros(1)).max(arrival);
                    end.arrival = arrival;
                    released.push((*conn, side, packet, end.process, arrival));
                }
            }
        }
        released
    }

    /// Connections between two nodes.
    pub fn between(&self, a: usize, b: usize) -> Vec<ConnId> {
        let joins = |conn: &Conn| {
            let [one, other] = [conn.ends[0].process.node, conn.ends[1].process.node];
            (one, other) == (a, b) || (one, other) == (b, a)
        };
        self.conns.iter().filter(|(_, conn)| joins(conn)).map(|(id, _)| *id).collect()
    }

    /// Forgets a connection of which nobody holds an end.
    pub fn forget_closed(&mut self, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|state| state.ends.iter().all(|end| !end.open)) {
            self.conns.remove(&conn);
        }
    }
}
