//! A node's process: the shells of its actors round their real cores. Messages between actors of a process take a moment and keep their order
//! per receiver, as mailboxes do, so that what crosses on its way is tried too.

use std::time::{Duration, SystemTime};

use plexus_actors::evictor::ledger::{Lease, Ledger, Resident};
use plexus_actors::inbound::{ClusterChange, PeerChange};
use plexus_actors::link::core::Event as LinkEvent;
use plexus_actors::messages::{Notice, StreamNotice};
use plexus_actors::prefix::PromptDigests;
use plexus_actors::router::Routed;
use plexus_actors::router::policy::{NoReplica, route};
use plexus_actors::router::view::ClusterView;
use plexus_actors::streams::core::Event as StreamEvent;
use plexus_actors::wire;
use plexus_types::{DeviceReport, ModelId, NodeFacts, NodeId, NodeSummary, ReplicaId, ReplicaReport, RequestError, RequestId};
use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::gossip::Gossip;
use super::links::{Delivery, Hands, Links};
use super::net::{Packet, ProcessId};
use super::replica::{Key, Outgoing, Replica};
use super::streams::{Post, Streams};
use super::world::{Happening, Input, World, facts_of, name_of};
use super::{DEVICE, DEVICE_MEMORY, MODEL, MODEL_MEMORY};

/// Changes of load alone are gathered for so long before the peers are told.
const LOAD_DELAY: Duration = Duration::from_millis(100);
/// Nodes that hear of this one in a round of gossip.
const GOSSIP_TARGETS: usize = 3;

/// A message to an actor of the process.
#[derive(Debug)]
pub enum Mail {
    /// To the link actor: gossip changed its mind.
    LinkCluster(ClusterChange),
    /// To the router: where does this stream go?
    Route(RequestId, ModelId, Vec<ReplicaId>),
    /// To the router: gossip changed its mind.
    Cluster(ClusterChange),
    /// To the router: a link came or went.
    Peer(PeerChange),
    /// To the router: a peer said what it holds.
    Summary(NodeId, NodeSummary),
    /// To the router: the replica of this node changed.
    OwnReplica(ReplicaReport),
    /// To the router: the actor of the replica of this node ended.
    OwnReplicaGone(ModelId),
    /// To the router: the memory of the device changed.
    OwnDevices(Vec<DeviceReport>),
    /// To the router: take nothing new.
    Drain,
    /// To the router: tell the peers of changed loads.
    PublishDue,
    /// To the streams.
    Stream(RequestId, Box<StreamEvent>),
    /// To the streams: replicas said something.
    Events(NodeId, Vec<StreamNotice>),
    /// To the streams: a client left.
    ClientGone(RequestId),
    /// To the streams: a node went away, or the link to it.
    NodeLost(NodeId),
    /// To the streams: look at the deadlines.
    ClockDue,
    /// To the model: an order of an ingress.
    Order(NodeId, Notice),
    /// To the model: an ingress is gone, or the link to it.
    IngressLost(NodeId),
    /// To the model: a prompt was encoded.
    Encoded(Lease, Key),
    /// To the model: a step ended.
    Stepped(Lease),
    /// To the model: the weights are there.
    LoadEnded(Lease),
}

/// Which mailbox.
#[derive(Debug, Clone, Copy)]
enum Mailbox {
    Link,
    Router,
    Streams,
    Model,
}

impl Mail {
    fn mailbox(&self) -> Mailbox {
        match self {
            Self::LinkCluster(_) => Mailbox::Link,
            Self::Route(..) | Self::Cluster(_) | Self::Peer(_) | Self::Summary(..) | Self::OwnReplica(_) | Self::OwnReplicaGone(_) => {
                Mailbox::Router
            }
            Self::OwnDevices(_) | Self::Drain | Self::PublishDue => Mailbox::Router,
            Self::Stream(..) | Self::Events(..) | Self::ClientGone(_) | Self::NodeLost(_) | Self::ClockDue => Mailbox::Streams,
            Self::Order(..) | Self::IngressLost(_) | Self::Encoded(..) | Self::Stepped(_) | Self::LoadEnded(_) => Mailbox::Model,
        }
    }
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Which one.
    pub id: ProcessId,
    /// Who it says it is.
    pub facts: NodeFacts,
    /// Its view of the cluster.
    pub view: ClusterView,
    /// Its links.
    pub links: Links,
    /// The streams whose client is here.
    pub streams: Streams,
    /// Its replica, if it holds the model.
    pub replica: Option<Replica>,
    ledger: Ledger,
    gossip: Gossip,
    rng: SmallRng,
    ticked: Instant,
    publish_waiting: bool,
    n_leases: u64,
    mailboxes: [Duration; 4],
}

impl Process {
    /// A process that starts now.
    pub fn start(id: ProcessId, world: &mut World) -> Self {
        let facts = facts_of(id);
        let now = world.agenda.now();
        let mut ledger = Ledger::default();
        ledger.open(DEVICE.parse().expect("a device id"), "simulated".into(), DEVICE_MEMORY);
        let mut process = Self {
            id,
            view: ClusterView::new("sim".into(), facts.clone()),
            links: Links::new(id, facts.id.clone(), world),
            streams: Streams::new(id, facts.id.clone()),
            replica: None,
            ledger,
            gossip: Gossip::new(facts.clone(), &world.config.timing, now),
            rng: SmallRng::seed_from_u64(world.rng.random()),
            ticked: now,
            publish_waiting: false,
            n_leases: 0,
            mailboxes: [Duration::ZERO; 4],
            facts,
        };
        world.line(format_args!("{} starts", process.facts.id));
        process.tell(Mail::OwnDevices(process.ledger.report()), world);
        if id.node < world.config.n_holders {
            process.load(world);
        }
        let wait = Duration::from_micros(process.rng.random_range(0..50_000));
        world.agenda.after(wait, Happening::Process(id, Input::Tick));
        world.agenda.after(wait * 2, Happening::Process(id, Input::GossipDue));
        process
    }

    /// Puts a message into a mailbox.
    pub fn tell(&mut self, mail: Mail, world: &mut World) {
        let mailbox = &mut self.mailboxes[mail.mailbox() as usize];
        let moment = Duration::from_micros(self.rng.random_range(1..100));
        *mailbox = (*mailbox + Duration::from_micros(1)).max(world.agenda.elapsed() + moment);
        world.agenda.at(*mailbox, Happening::Process(self.id, Input::Mail(mail)));
    }

    fn tell_after(&mut self, wait: Duration, mail: Mail, world: &mut World) {
        world.agenda.after(wait, Happening::Process(self.id, Input::Mail(mail)));
    }

    /// Something reaches the process.
    pub fn on_input(&mut self, input: Input, world: &mut World) {
        match input {
            Input::Tick => self.on_tick(world),
            Input::GossipDue => self.on_gossip_due(world),
            Input::Datagram(bytes) => match wire::decode(&bytes) {
                Ok(digest) => self.gossip.on_digest(digest, &world.config.timing, world.agenda.now()),
                Err(error) => world.violate(format!("a datagram cannot be decoded: {error}")),
            },
            Input::Connected(dial) => {
                let Some(dial) = world.net.dials.remove(&dial) else { return };
                let Some(acceptor) = dial.acceptor else { return };
                let conn = world.net.connect(self.id, acceptor);
                self.with_links(world, |links, hands| links.on_connected(conn, 0, name_of(dial.to), hands));
            }
            Input::DialLate(dial) if world.net.dials.get(&dial).is_some_and(|dial| dial.reached) => {}
            Input::DialLate(dial) | Input::DialFailed(dial) => {
                let Some(dial) = world.net.dials.remove(&dial) else { return };
                self.with_links(world, |links, hands| links.on_event(LinkEvent::DialFailed(name_of(dial.to)), hands));
            }
            Input::Packet { conn, side, packet, at } => {
                let Some(state) = world.net.conns.get(&conn) else { return };
                let end = &state.ends[side];
                let lost = end.deaf && packet != Packet::End;
                if lost || end.process != self.id || (!end.open && packet != Packet::Certificate) {
                    return;
                }
                if packet == Packet::End {
                    world.end(conn, side);
                }
                let late = world.agenda.elapsed() - at;
                self.with_links(world, |links, hands| links.on_packet(conn, side, packet, late, hands));
            }
            Input::Mail(mail) => self.on_mail(mail, world),
            Input::ClientReads(id) => self.on_client_reads(id, world),
        }
    }

    fn on_mail(&mut self, mail: Mail, world: &mut World) {
        match mail {
            Mail::LinkCluster(change) => self.with_links(world, |links, hands| links.on_event(LinkEvent::Cluster(change), hands)),
            Mail::Route(id, model, tried) => self.on_route(id, &model, &tried, world),
            Mail::Cluster(change) => {
                if let ClusterChange::Gone(id) = &change {
                    self.tell(Mail::NodeLost(id.clone()), world);
                }
                self.view.on_cluster_change(change);
            }
            Mail::Peer(change) => self.on_peer_change(&change, world),
            Mail::Summary(from, summary) => self.view.on_summary(&from, summary, world.agenda.now(), SystemTime::UNIX_EPOCH),
            Mail::OwnReplica(report) => {
                if self.view.on_own_replica(report, SystemTime::UNIX_EPOCH) {
                    self.publish(world);
                } else {
                    self.publish_later(world);
                }
            }
            Mail::OwnReplicaGone(model) => {
                self.view.on_own_replica_gone(&model, DEVICE.parse().expect("a device id"));
                self.publish(world);
            }
            Mail::OwnDevices(devices) => {
                self.view.on_own_devices(devices);
                self.publish(world);
            }
            Mail::Drain => {
                self.view.on_draining();
                self.publish(world);
            }
            Mail::PublishDue => {
                self.publish_waiting = false;
                self.publish(world);
            }
            Mail::Stream(id, event) => self.with_streams(world, |streams, post| streams.apply(id, *event, post)),
            Mail::Events(from, events) => self.with_streams(world, |streams, post| streams.on_events(&from, events, post)),
            Mail::ClientGone(id) => self.with_streams(world, |streams, post| streams.on_client_gone(id, post)),
            Mail::NodeLost(node) => self.with_streams(world, |streams, post| streams.on_node_lost(&node, post)),
            Mail::ClockDue => self.with_streams(world, Streams::on_clock),
            Mail::Order(from, order) => self.on_order(&from, order, world),
            Mail::IngressLost(node) => self.with_replica(None, world, |replica, _| replica.on_ingress_lost(&node)),
            Mail::Encoded(lease, key) => self.with_replica(Some(lease), world, |replica, out| replica.on_encoded(&key, out)),
            Mail::Stepped(lease) => {
                let now = world.agenda.now();
                self.with_replica(Some(lease), world, |replica, out| replica.on_stepped(now, out));
            }
            Mail::LoadEnded(lease) => self.with_replica(Some(lease), world, |replica, _| replica.loaded = true),
        }
    }

    fn on_tick(&mut self, world: &mut World) {
        let (now, timing) = (world.agenda.now(), world.config.timing.clone());
        let late = now - self.ticked > timing.tick + timing.lag_max;
        self.ticked = now;
        for change in self.gossip.on_tick(late, &timing, now) {
            world.line(format_args!("{} hears by gossip: {}", self.facts.id, in_words(&change)));
            self.tell(Mail::LinkCluster(change.clone()), world);
            self.tell(Mail::Cluster(change), world);
        }
        let known = self.gossip.view.nodes().clone();
        self.with_links(world, |links, hands| links.on_tick(&known, hands));
        world.agenda.after(timing.tick, Happening::Process(self.id, Input::Tick));
    }

    fn on_gossip_due(&mut self, world: &mut World) {
        let digest = wire::encode(&self.gossip.on_round()).expect("facts can be encoded");
        let others: Vec<usize> = (0..world.config.n_nodes).filter(|node| *node != self.id.node).collect();
        for i in index::sample(&mut self.rng, others.len(), others.len().min(GOSSIP_TARGETS)) {
            world.datagram(self.id.node, others[i], digest.clone());
        }
        world.agenda.after(world.config.timing.gossip_interval, Happening::Process(self.id, Input::GossipDue));
    }

    fn with_links(&mut self, world: &mut World, work: impl FnOnce(&mut Links, &mut Hands<'_>)) {
        let mut out = Vec::new();
        work(&mut self.links, &mut Hands { world, rng: &mut self.rng, out: &mut out });
        for delivery in out {
            match delivery {
                Delivery::Peer(change) => {
                    if let PeerChange::Down { id, .. } = &change {
                        self.tell(Mail::IngressLost(id.clone()), world);
                    }
                    self.tell(Mail::Peer(change), world);
                }
                Delivery::Notice(from, Notice::Summary(summary)) => self.tell(Mail::Summary(from, summary), world),
                Delivery::Notice(from, order) => self.tell(Mail::Order(from, order), world),
                Delivery::Events(from, events) => self.tell(Mail::Events(from, events), world),
            }
        }
    }

    fn on_route(&mut self, id: RequestId, model: &ModelId, tried: &[ReplicaId], world: &mut World) {
        let result = match route(&self.view, model, &PromptDigests::of_length(32), tried, &mut self.rng) {
            Ok(decision) => Routed::To(decision.replica),
            Err(NoReplica::Loading(error)) => Routed::Wait(error),
            Err(NoReplica::Refused(error)) => Routed::Refused(error),
            Err(NoReplica::Cold) => return world.violate(format!("{} lists no model, and takes {model} for one", self.facts.id)),
        };
        match &result {
            Routed::To(replica) => {
                self.view.on_sent(replica);
                world.line(format_args!("{} sends {:04x} to {replica}", self.facts.id, id.0 as u16));
            }
            Routed::Wait(error) => world.line(format_args!("{} lets {:04x} wait: {error}", self.facts.id, id.0 as u16)),
            Routed::Refused(error) => world.line(format_args!("{} refuses {:04x}: {error}", self.facts.id, id.0 as u16)),
        }
        self.tell(Mail::Stream(id, Box::new(StreamEvent::Routed(result))), world);
    }

    fn on_peer_change(&mut self, change: &PeerChange, world: &mut World) {
        self.view.on_peer_change(change, world.agenda.now());
        match change {
            PeerChange::Up(id) => {
                if self.links.notify(id, &Notice::Summary(self.view.own().clone()), world).is_err() {
                    self.publish_later(world);
                }
            }
            PeerChange::Down { id, .. } => self.tell(Mail::NodeLost(id.clone()), world),
            PeerChange::RoundTrip(..) => {}
        }
    }

    fn publish(&mut self, world: &mut World) {
        let summary = Notice::Summary(self.view.own().clone());
        let refused = self.links.peers().iter().filter(|peer| self.links.notify(peer, &summary, world).is_err()).count();
        if refused > 0 {
            self.publish_later(world);
        }
    }

    fn publish_later(&mut self, world: &mut World) {
        if !self.publish_waiting {
            self.publish_waiting = true;
            self.tell_after(LOAD_DELAY, Mail::PublishDue, world);
        }
    }

    /// Runs a handler of the streams, and posts what it wants said.
    fn with_streams(&mut self, world: &mut World, work: impl FnOnce(&mut Streams, &mut Post<'_>)) {
        let mut mail = Vec::new();
        work(&mut self.streams, &mut Post { links: &self.links, world, mail: &mut mail });
        for (wait, mail) in mail {
            match wait {
                Some(wait) => self.tell_after(wait, mail, world),
                None => self.tell(mail, world),
            }
        }
    }

    /// A client asks this node.
    pub fn open(&mut self, id: RequestId, journal: plexus_types::Journal, world: &mut World) {
        self.with_streams(world, |streams, post| streams.on_open(id, journal, post));
    }

    fn on_client_reads(&mut self, id: RequestId, world: &mut World) {
        let report_every = (world.config.streams.window_tokens / 4).max(1);
        let Some(client) = world.clients.get_mut(&id) else { return };
        client.reading = false;
        if !client.wants() {
            return;
        }
        let Some(event) = client.inbox.pop_front() else { return };
        let verdict = client.read(&event);
        let leaves = client.leaves();
        let consumed = (client.unreported >= report_every).then(|| std::mem::take(&mut client.unreported));
        if let Some(ending) = client.ending.clone() {
            world.line(format_args!("{:04x} ended: {ending:?}", id.0 as u16));
        }
        if let Err(what) = verdict {
            world.violate(format!("the client of {:04x}: {what}", id.0 as u16));
        }
        if let Some(tokens) = consumed {
            self.tell(Mail::Stream(id, Box::new(StreamEvent::Consumed(tokens))), world);
        }
        if leaves {
            self.tell(Mail::ClientGone(id), world);
        }
        world.let_read(id, self.id);
    }

    fn on_order(&mut self, from: &NodeId, order: Notice, world: &mut World) {
        match order {
            Notice::Generate(generate) => {
                let key = (from.clone(), generate.request, generate.attempt);
                if self.replica.is_none() {
                    let error = RequestError::model_not_found(&generate.model);
                    let event = plexus_types::StreamEvent::Failed(error);
                    let notice = StreamNotice { request: generate.request, attempt: generate.attempt, event };
                    return self.send_out(vec![(from.clone(), vec![notice])], world);
                }
                let mut encoding = None;
                self.with_replica(None, world, |replica, out| {
                    encoding = replica.on_generate(from, generate, out).then_some(replica.lease);
                });
                if let Some(lease) = encoding {
                    let wait = Duration::from_micros(self.rng.random_range(100..3000));
                    self.tell_after(wait, Mail::Encoded(lease, key), world);
                }
            }
            Notice::Cancel { request, attempt } => {
                self.with_replica(None, world, |replica, _| replica.on_cancel(&(from.clone(), request, attempt)));
            }
            Notice::Credit { request, attempt, until } => {
                self.with_replica(None, world, |replica, _| replica.on_credit(&(from.clone(), request, attempt), until));
            }
            Notice::Catalogue(_) => {} // the model is not listed: its holders have it from the start
            Notice::Summary(_) | Notice::Forget | Notice::Announce => {} // the streams of the simulator die with their node only
        }
    }

    /// Runs a handler of the replica, if it still holds this promise; then sends what it says and starts its next step.
    fn with_replica(&mut self, lease: Option<Lease>, world: &mut World, work: impl FnOnce(&mut Replica, &mut Outgoing)) {
        let Some(replica) = self.replica.as_mut().filter(|replica| lease.is_none_or(|lease| lease == replica.lease)) else { return };
        let mut out = Outgoing::new();
        let now = world.agenda.now();
        work(replica, &mut out);
        let lease = replica.lease;
        let step = replica.next_step(now);
        let did = replica.take_counts();
        world.counts.cached_tokens += did.cached_tokens;
        world.counts.preemptions += did.preemptions;
        world.counts.guessed_right += did.guessed_right;
        let report = replica.report();
        if let Some(what) = step.as_ref().err().cloned().or(replica.check().err()) {
            world.violate(format!("the replica on {}: {what}", self.facts.id));
        }
        self.send_out(out, world);
        if let Ok(Some(step_time)) = step {
            self.tell_after(step_time, Mail::Stepped(lease), world);
        }
        if let Some(report) = report {
            self.tell(Mail::OwnReplica(report), world);
        }
    }

    fn send_out(&mut self, out: Outgoing, world: &mut World) {
        for (ingress, events) in out {
            if ingress == self.facts.id {
                self.tell(Mail::Events(ingress, events), world);
            } else if let Err(why) = self.links.send_events(&ingress, &events, world) {
                world.line(format_args!("{} sends no events: {why}", self.facts.id));
            }
        }
    }

    /// The model is loaded, for the first time or anew.
    fn load(&mut self, world: &mut World) {
        self.n_leases += 1;
        let lease = Lease(self.n_leases);
        let (device, model) = (DEVICE.parse().expect("a device id"), MODEL.parse().expect("a model id"));
        let resident = Resident { lease, bytes: MODEL_MEMORY, class: 100, pinned: false, idle_since: None };
        if let Err(error) = self.ledger.promise(device, &model, resident) {
            return world.violate(format!("the model does not fit {}: {error}", self.facts.id));
        }
        self.tell(Mail::OwnDevices(self.ledger.report()), world);
        self.replica = Some(Replica::new(self.facts.id.clone(), world.config.replica, lease));
        self.with_replica(None, world, |_, _| {});
        let wait = Duration::from_millis(self.rng.random_range(50..400));
        self.tell_after(wait, Mail::LoadEnded(lease), world);
    }

    /// The replica is gone: its memory is free again.
    fn unload(&mut self, world: &mut World) {
        let Some(replica) = self.replica.take() else { return };
        let (device, model) = (DEVICE.parse().expect("a device id"), MODEL.parse().expect("a model id"));
        self.ledger.release(device, &model, replica.lease);
        let mut out = Outgoing::new();
        replica.fail(&mut out);
        self.send_out(out, world);
        self.tell(Mail::OwnReplicaGone(model), world);
    }

    /// The model's actor fails and is started again.
    pub fn fail_replica(&mut self, world: &mut World) {
        if self.replica.is_some() {
            self.unload(world);
            self.load(world);
        }
    }

    /// Errors: something is left although all streams have ended.
    pub fn check_idle(&mut self, world: &mut World) -> Result<(), String> {
        self.streams.check_idle()?;
        if let Some(replica) = &self.replica {
            replica.check_idle()?;
        }
        self.unload(world);
        let free = self.ledger.free(DEVICE.parse().expect("a device id"));
        if free == Some(DEVICE_MEMORY) { Ok(()) } else { Err(format!("{} has {free:?} free of {DEVICE_MEMORY}", self.facts.id)) }
    }
}

fn in_words(change: &ClusterChange) -> String {
    match change {
        ClusterChange::Up(facts) => format!("{} is alive", facts.id),
        ClusterChange::Changed(facts) => format!("{} has changed", facts.id),
        ClusterChange::Gone(id) => format!("{id} is gone"),
    }
}
