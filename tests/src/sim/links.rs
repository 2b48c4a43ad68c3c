//! The links of a process: the shell of the link actor, the table of peers and the gateway round the real [`LinkCore`] and the real frames.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_actors::inbound::PeerChange;
use plexus_actors::link::core::{Effect, Event, LinkCore, LinkId};
use plexus_actors::messages::{Answer, Notice, Question, StreamNotice};
use plexus_actors::wire::{self, Envelope, Head, Outcome};
use plexus_types::{NodeFacts, NodeId, NodeName};
use rand::Rng;
use rand::rngs::SmallRng;

use super::net::{ConnId, Packet, ProcessId, Side};
use super::world::World;

/// Ticks between two looks at all that gossip knows.
const LOOK_EVERY: u64 = 20;

/// What came over a link, or became of one.
#[derive(Debug)]
pub enum Delivery {
    /// A link came or went.
    Peer(PeerChange),
    /// A peer sent a notice.
    Notice(NodeId, Notice),
    /// A peer sent events.
    Events(NodeId, Vec<StreamNotice>),
}

/// The links of one process.
#[derive(Debug)]
pub struct Links {
    process: ProcessId,
    me: NodeId,
    core: LinkCore,
    links: BTreeMap<LinkId, Standing>,
    up: BTreeMap<NodeId, LinkId>,
    /// Pings that wait for their answer.
    calls: BTreeMap<u64, (LinkId, Duration)>,
    n_links: u64,
    n_calls: u64,
    ticks: u64,
}

#[derive(Debug)]
struct Standing {
    conn: ConnId,
    side: Side,
    /// Whom it is with, once it was greeted.
    peer: Option<Peer>,
    /// The core knows that it is greeted.
    told: bool,
}

#[derive(Debug)]
struct Peer {
    id: NodeId,
    given_pass: u64,
    shown_pass: u64,
}

/// What a process lends its links for the time of a call.
#[derive(Debug)]
pub struct Hands<'a> {
    /// Everything outside of the process.
    pub world: &'a mut World,
    /// The process's own chance.
    pub rng: &'a mut SmallRng,
    /// What is to be handed to the other actors, in order.
    pub out: &'a mut Vec<Delivery>,
}

impl Links {
    /// A process without links.
    pub fn new(process: ProcessId, me: NodeId, world: &World) -> Self {
        let core = LinkCore::new(me.name.clone(), world.config.timing.clone());
        Self { process, me, core, links: BTreeMap::new(), up: BTreeMap::new(), calls: BTreeMap::new(), n_links: 0, n_calls: 0, ticks: 0 }
    }

    /// Peers to whom a link stands.
    pub fn peers(&self) -> Vec<NodeId> {
        self.up.keys().cloned().collect()
    }

    /// The clock of the links.
    pub fn on_tick(&mut self, known: &BTreeMap<NodeName, NodeFacts>, hands: &mut Hands<'_>) {
        if self.ticks.is_multiple_of(LOOK_EVERY) {
            self.on_event(Event::Known(known.values().cloned().collect()), hands);
        }
        self.ticks += 1;
        let greeted = |standing: &Standing| !standing.told && standing.peer.as_ref().is_some_and(|peer| peer.shown_pass != 0);
        let greeted: Vec<LinkId> = self.links.iter().filter(|(_, standing)| greeted(standing)).map(|(link, _)| *link).collect();
        for link in greeted {
            if let Some(standing) = self.links.get_mut(&link) {
                standing.told = true;
            }
            self.on_event(Event::Greeted(link), hands);
        }
        self.on_event(Event::Tick, hands);
        let oldest = hands.world.agenda.elapsed().saturating_sub(hands.world.config.timing.ping_deadline);
        self.calls.retain(|_, (_, asked)| *asked >= oldest);
    }

    /// Something happens that the core decides on.
    pub fn on_event(&mut self, event: Event, hands: &mut Hands<'_>) {
        let now = hands.world.agenda.now();
        for effect in self.core.on_event(event, now, hands.rng) {
            match effect {
                Effect::Dial(facts) => hands.world.dial(self.process, &facts),
                Effect::Greet { link, id } => self.greet(link, id, hands),
                Effect::Ping(link) => self.ping(link, hands),
                Effect::Cut { link, why } => {
                    if let Some(standing) = self.links.get(&link) {
                        hands.world.close(standing.conn, standing.side);
                    }
                    self.drop_link(link, why, hands);
                }
            }
        }
    }

    /// A handshake that this process began is complete.
    pub fn on_connected(&mut self, conn: ConnId, side: Side, name: NodeName, hands: &mut Hands<'_>) {
        self.n_links += 1;
        let link = LinkId(self.n_links);
        self.links.insert(link, Standing { conn, side, peer: None, told: false });
        if side == 0 {
            hands.world.send(conn, side, Packet::Certificate);
        }
        self.on_event(Event::Opened { link, name, dialed: side == 0 }, hands);
        if self.links.contains_key(&link) {
            hands.world.send(conn, side, Packet::Session(self.me.clone()));
        }
    }

    /// A packet came. `late`: so long after it reached this machine.
    pub fn on_packet(&mut self, conn: ConnId, side: Side, packet: Packet, late: Duration, hands: &mut Hands<'_>) {
        let link = self.links.iter().find(|(_, standing)| (standing.conn, standing.side) == (conn, side)).map(|(link, _)| *link);
        match (packet, link) {
            (Packet::Certificate, None) => {
                let Some(dialer) = hands.world.dialer_of(conn) else { return };
                if self.core.names().any(|name| *name == dialer) {
                    hands.world.accept(conn);
                    self.on_connected(conn, side, dialer, hands);
                } else {
                    hands.world.line(format_args!("{} turns away {dialer}", self.me));
                    hands.world.accept(conn);
                    hands.world.close(conn, side);
                }
            }
            (Packet::Session(id), Some(link)) => self.on_event(Event::Ready { link, id }, hands),
            (Packet::Frame(bytes), Some(_)) => self.on_frame(&bytes, late, hands),
            (Packet::End, Some(link)) => {
                self.drop_link(link, "its connection ended", hands);
                self.on_event(Event::Ended(link), hands);
            }
            (Packet::Certificate, Some(_)) | (Packet::Session(_) | Packet::Frame(_) | Packet::End, None) => {}
        }
    }

    /// Sends a notice to a peer.
    pub fn notify(&self, to: &NodeId, notice: &Notice, world: &mut World) -> Result<(), String> {
        let payload = wire::encode(notice).map_err(|error| error.to_string())?;
        let always = matches!(notice, Notice::Cancel { .. } | Notice::Credit { .. });
        self.send_to(to, &Head::Notice, &payload, always, world)
    }

    /// Sends events to an ingress.
    pub fn send_events(&self, to: &NodeId, events: &[StreamNotice], world: &mut World) -> Result<(), String> {
        let payload = wire::encode(&events).map_err(|error| error.to_string())?;
        self.send_to(to, &Head::Events, &payload, false, world)
    }

    fn send_to(&self, to: &NodeId, head: &Head, payload: &[u8], always: bool, world: &mut World) -> Result<(), String> {
        let link = self.up.get(to).ok_or_else(|| format!("the node '{}' cannot be reached", to.name))?;
        if !always && world.is_congested(self.process.node, to) {
            return Err(format!("the node '{}' took no message: too much is under way to the peer", to.name));
        }
        self.post(*link, head, payload, world);
        Ok(())
    }

    fn post(&self, link: LinkId, head: &Head, payload: &[u8], world: &mut World) {
        let Some(standing) = self.links.get(&link) else { return };
        let Some(peer) = &standing.peer else { return };
        let message = wire::message(head, payload).expect("heads can be encoded");
        let clock_ms = world.agenda.elapsed().as_millis() as u64;
        let frame = wire::frame(Envelope { pass: peer.shown_pass, position: 0, clock_ms }, &message);
        world.send(standing.conn, standing.side, Packet::Frame(frame));
    }

    fn greet(&mut self, link: LinkId, id: NodeId, hands: &mut Hands<'_>) {
        let Some(standing) = self.links.get_mut(&link) else { return };
        let given_pass = hands.rng.random::<u64>().max(1);
        let peer = standing.peer.get_or_insert(Peer { id, given_pass, shown_pass: 0 });
        let hello = Head::Hello { from: self.me.clone(), pass: peer.given_pass };
        self.post(link, &hello, &[], hands.world);
    }

    fn ping(&mut self, link: LinkId, hands: &mut Hands<'_>) {
        self.n_calls += 1;
        self.calls.insert(self.n_calls, (link, hands.world.agenda.elapsed()));
        let ttl_ms = hands.world.config.timing.ping_deadline.as_millis() as u32;
        let question = wire::encode(&Question::Ping).expect("a ping can be encoded");
        self.post(link, &Head::Call { call: self.n_calls, ttl_ms }, &question, hands.world);
    }

    fn drop_link(&mut self, link: LinkId, why: &str, hands: &mut Hands<'_>) {
        let Some(standing) = self.links.remove(&link) else { return };
        let Some(peer) = standing.peer else { return };
        if self.up.get(&peer.id) == Some(&link) {
            self.up.remove(&peer.id);
            hands.world.line(format_args!("{} loses the link to {}: {why}", self.me, peer.id));
            hands.out.push(Delivery::Peer(PeerChange::Down { id: peer.id, why: why.to_owned() }));
        }
    }

    /// The gateway: who speaks is known by the pass in the frame, not by the link that it came on.
    fn on_frame(&mut self, bytes: &[u8], late: Duration, hands: &mut Hands<'_>) {
        let opened = wire::open_frame(bytes).and_then(|(envelope, message)| Ok((envelope, wire::open_message(message)?)));
        let (envelope, (head, payload)) = match opened {
            Ok(opened) => opened,
            Err(error) => return hands.world.violate(format!("a frame cannot be decoded: {error}")),
        };
        match head {
            Head::Hello { from, pass } => {
                let linked_as = |standing: &Standing| standing.peer.as_ref().is_some_and(|peer| peer.id == from);
                let links: Vec<LinkId> = self.links.iter().filter(|(_, standing)| linked_as(standing)).map(|(link, _)| *link).collect();
                links.into_iter().for_each(|link| self.welcome(link, pass, hands.world));
            }
            Head::Welcome { pass, echo } => self.on_welcome(pass, echo, hands),
            head => {
                let by_pass = |standing: &&Standing| standing.peer.as_ref().is_some_and(|peer| peer.given_pass == envelope.pass);
                let Some((link, standing)) = self.links.iter().find(|(_, standing)| by_pass(standing)) else { return };
                let peer = standing.peer.as_ref().expect("it was found by its pass").id.clone();
                self.on_message(*link, peer, head, payload, late, hands);
            }
        }
    }

    fn welcome(&self, link: LinkId, echo: u64, world: &mut World) {
        if let Some(peer) = self.links.get(&link).and_then(|standing| standing.peer.as_ref()) {
            self.post(link, &Head::Welcome { pass: peer.given_pass, echo }, &[], world);
        }
    }

    fn on_welcome(&mut self, pass: u64, echo: u64, hands: &mut Hands<'_>) {
        let by_pass = |standing: &Standing| standing.peer.as_ref().is_some_and(|peer| peer.given_pass == echo);
        let Some((link, standing)) = self.links.iter_mut().find(|(_, standing)| by_pass(standing)) else { return };
        let link = *link;
        let peer = standing.peer.as_mut().expect("it was found by its pass");
        if peer.shown_pass != 0 {
            return;
        }
        peer.shown_pass = pass;
        let id = peer.id.clone();
        self.welcome(link, pass, hands.world);
        if self.up.insert(id.clone(), link).is_some() {
            hands.out.push(Delivery::Peer(PeerChange::Down { id: id.clone(), why: "a newer link took its place".to_owned() }));
        }
        hands.world.line(format_args!("{} is linked to {id}", self.me));
        hands.out.push(Delivery::Peer(PeerChange::Up(id)));
    }

    fn on_message(&mut self, link: LinkId, peer: NodeId, head: Head, payload: &[u8], late: Duration, hands: &mut Hands<'_>) {
        match head {
            Head::Call { call, ttl_ms } if late < Duration::from_millis(u64::from(ttl_ms)) => {
                let pong = wire::encode(&Answer::Pong).expect("a pong can be encoded");
                self.post(link, &Head::Reply { call, outcome: Outcome::Answered }, &pong, hands.world);
            }
            Head::Reply { call, .. } => {
                let Some((asked_over, asked)) = self.calls.remove(&call) else { return };
                let round_trip = hands.world.agenda.elapsed() - asked;
                if round_trip <= hands.world.config.timing.ping_deadline {
                    hands.out.push(Delivery::Peer(PeerChange::RoundTrip(peer, round_trip)));
                    self.on_event(Event::Pong(asked_over), hands);
                }
            }
            Head::Notice => match wire::decode(payload) {
                Ok(notice) => hands.out.push(Delivery::Notice(peer, notice)),
                Err(error) => hands.world.violate(format!("a notice cannot be decoded: {error}")),
            },
            Head::Events => match wire::decode(payload) {
                Ok(events) => hands.out.push(Delivery::Events(peer, events)),
                Err(error) => hands.world.violate(format!("events cannot be decoded: {error}")),
            },
            Head::Call { .. } | Head::Forgo { .. } | Head::Ack { .. } | Head::Part { .. } | Head::Hello { .. } | Head::Welcome { .. } => {}
        }
    }
}
