//! Links to the other nodes: one TLS session with each, and the judgement on whether the node behind it can be used.
//!
//! The actor is a shell round a pure core: it dials, accepts, hands each verified connection to ractor's node server, finds the peer's actors,
//! greets them, pings them, and cuts links. A peer is in [`Peers`] from the moment that it has shown who it is until its link is cut or ends.
//! Four things end a link: its socket, silence to pings, gossip, and a newer life of the same node. Ractor's own listener is parked on
//! loopback; what comes in there lacks the cookie, and what it sends is never listed as a peer.
//!
//! Supervised by the node; supervises the node server. A restart cuts all links and dials anew.
//! `ractor_cluster` logs whole frames, prompts among them, at debug: its log filter must stay at `warn` (`ractor_cluster=warn`).

pub mod core;
mod health;
mod session;
mod socket;
mod store;
mod tls;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use plexus_store::Store;
use plexus_types::{NodeFacts, NodeId, NodeName};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::{NodeServerMessage, NodeSessionMessage, RactorMessage};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info};

use self::core::{Effect, Event, LinkCore, LinkId};
use self::session::SessionEvent;
use self::socket::{Connection, Knife, Labelled, Refused};
use self::store::StoreDoor;
pub use self::store::{StoreLinks, serve_store};
use self::tls::Tls;
use crate::address::Address;
use crate::inbound::{ClusterChange, Inbound, PeerChange};
use crate::inspect::Inspection;
use crate::membership::{KnownNodes, NetTiming};
use crate::messages::Question;
use crate::peers::{Peer, Peers};
use crate::secret::ClusterSecret;

/// Ticks between two looks at [`KnownNodes`], in case a change of the cluster was missed: one second, by default.
const LOOK_EVERY: u64 = 20;

/// What links need to start.
#[derive(Clone)]
pub struct LinkArgs {
    /// Where it is reached.
    pub address: Address<LinkMsg>,
    /// Who this node is.
    pub me: NodeId,
    /// The secret that all nodes of the cluster share.
    pub secret: ClusterSecret,
    /// The socket to take links on, kept over restarts.
    pub listener: Arc<TcpListener>,
    /// Intervals and deadlines.
    pub timing: NetTiming,
    /// The nodes that gossip counts as living.
    pub known: KnownNodes,
    /// The table of peers, which this actor fills.
    pub peers: Peers,
    /// Where changes are told.
    pub inbound: Arc<dyn Inbound>,
    /// What other nodes may take models' files from, over the same port; `None`: nothing.
    pub store: Option<Store>,
}

impl fmt::Debug for LinkArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkArgs").field("me", &self.me).field("peers", &self.peers).finish_non_exhaustive()
    }
}

/// What links are sent.
#[derive(Debug, RactorMessage)]
pub enum LinkMsg {
    /// Gossip changed its mind.
    ClusterChange(ClusterChange),
    /// How are you?
    Inspect(RpcReplyPort<Inspection>),
    /// Sent by the actor's own tasks, and not through its address.
    Own(Own),
}

/// What the actor's own tasks tell it.
#[derive(Debug)]
pub struct Own(OwnEvent);

enum OwnEvent {
    Tick,
    Connected(Box<Connection>, Side),
    DialFailed(NodeName),
    Session(SessionEvent),
    Pong(LinkId),
    AcceptEnded(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialed,
    Accepted,
}

impl fmt::Debug for OwnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tick => "Tick",
            Self::Connected(..) => "Connected",
            Self::DialFailed(_) => "DialFailed",
            Self::Session(_) => "Session",
            Self::Pong(_) => "Pong",
            Self::AcceptEnded(_) => "AcceptEnded",
        })
    }
}

/// The actor.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkActor;

/// State of [`LinkActor`].
pub struct LinkState {
    // What it decides.
    core: LinkCore,
    ticks: u64,

    // What it owns.
    args: LinkArgs,
    tls: Tls,
    server: ActorRef<NodeServerMessage>,
    links: HashMap<LinkId, Standing>,
    next_link: u64,
    /// Names whose certificates are taken, for the tasks that shake hands.
    names: Arc<RwLock<BTreeSet<NodeName>>>,
    refused: Arc<Refused>,
    /// The clock and the accept loop, dials and pings: they end with this state.
    tasks: JoinSet<()>,
}

impl fmt::Debug for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkState").field("core", &self.core).finish_non_exhaustive()
    }
}

/// A connection that was handed to ractor.
struct Standing {
    knife: Knife,
    session: Option<(u64, ActorRef<NodeSessionMessage>)>,
    peer: Option<Peer>,
    up: bool,
}

impl Actor for LinkActor {
    type Msg = LinkMsg;
    type State = LinkState;
    type Arguments = LinkArgs;

    async fn pre_start(&self, myself: ActorRef<LinkMsg>, args: LinkArgs) -> Result<LinkState, ActorProcessingErr> {
        args.peers.clear("links were restarted", &*args.inbound);
        let tls = Tls::new(&args.secret, &args.me.name)?;
        let server = session::start(&args.me, &args.secret, myself.clone()).await?;
        let mut state = LinkState {
            core: LinkCore::new(args.me.name.clone(), args.timing.clone()),
            ticks: 0,
            tls,
            server,
            links: HashMap::new(),
            next_link: 0,
            names: Arc::default(),
            refused: Arc::default(),
            tasks: JoinSet::new(),
            args,
        };
        state.start_clock(myself.clone());
        state.start_accepting(myself)?;
        Ok(state)
    }

    async fn handle(&self, myself: ActorRef<LinkMsg>, message: LinkMsg, state: &mut LinkState) -> Result<(), ActorProcessingErr> {
        if !matches!(message, LinkMsg::Own(_)) {
            state.args.address.taken();
        }
        match message {
            LinkMsg::ClusterChange(change) => state.on_event(Event::Cluster(change), &myself),
            LinkMsg::Inspect(reply) => _ = reply.send(state.inspection()),
            LinkMsg::Own(Own(event)) => state.on_own_event(event, &myself)?,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<LinkMsg>,
        event: SupervisionEvent,
        state: &mut LinkState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(child, error) if child.get_id() == state.server.get_id() => {
                Err(format!("ractor's node server failed: {error}").into())
            }
            SupervisionEvent::ActorTerminated(child, ..) if child.get_id() == state.server.get_id() => {
                Err("ractor's node server ended".into())
            }
            _ => Ok(()),
        }
    }

    async fn post_stop(&self, _: ActorRef<LinkMsg>, state: &mut LinkState) -> Result<(), ActorProcessingErr> {
        state.args.peers.clear("links are closed", &*state.args.inbound);
        state.tasks.abort_all();
        state.links.clear(); // the knives cut them
        Ok(())
    }
}

impl LinkState {
    fn start_clock(&mut self, myself: ActorRef<LinkMsg>) {
        let tick = self.args.timing.tick;
        self.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(tick);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if myself.cast(LinkMsg::Own(Own(OwnEvent::Tick))).is_err() {
                    return;
                }
            }
        });
    }

    fn start_accepting(&mut self, myself: ActorRef<LinkMsg>) -> std::io::Result<()> {
        let listener = self.args.listener.try_clone()?;
        let (tls, timing) = (self.tls.clone(), self.args.timing.clone());
        let (names, refused) = (Arc::clone(&self.names), Arc::clone(&self.refused));
        let store = self.args.store.clone().map(StoreDoor::new);
        self.tasks.spawn(async move {
            let taker = myself.clone();
            let take = move |connection| _ = taker.cast(LinkMsg::Own(Own(OwnEvent::Connected(Box::new(connection), Side::Accepted))));
            if let Err(error) = socket::accept(listener, tls, timing, names, refused, store, take).await {
                let _gone = myself.cast(LinkMsg::Own(Own(OwnEvent::AcceptEnded(error.to_string()))));
            }
        });
        Ok(())
    }

    fn on_own_event(&mut self, event: OwnEvent, myself: &ActorRef<LinkMsg>) -> Result<(), ActorProcessingErr> {
        match event {
            OwnEvent::Tick => self.on_tick(myself),
            OwnEvent::Connected(connection, side) => self.on_connected(*connection, side, myself),
            OwnEvent::DialFailed(name) => self.on_event(Event::DialFailed(name), myself),
            OwnEvent::Pong(link) => self.on_event(Event::Pong(link), myself),
            OwnEvent::Session(SessionEvent::Opened { link, number, session }) => match self.links.get_mut(&link) {
                Some(standing) => standing.session = Some((number, session)),
                None => session.stop(Some("cut".to_owned())), // it was cut while ractor took it in
            },
            OwnEvent::Session(SessionEvent::Ready { link, id }) => self.on_event(Event::Ready { link, id }, myself),
            OwnEvent::Session(SessionEvent::Ended { link }) => {
                self.drop_link(link, "its connection ended");
                self.on_event(Event::Ended(link), myself);
            }
            OwnEvent::AcceptEnded(error) => return Err(format!("links are no longer accepted: {error}").into()),
        }
        Ok(())
    }

    fn on_tick(&mut self, myself: &ActorRef<LinkMsg>) {
        while self.tasks.try_join_next().is_some() {}
        if self.ticks.is_multiple_of(LOOK_EVERY) {
            let known: Vec<NodeFacts> = self.args.known.list();
            self.on_event(Event::Known(known), myself);
        }
        self.ticks += 1;
        // The gateway lists a peer when it shows its pass; the core hears of it here.
        let greeted: Vec<LinkId> = (self.links.iter())
            .filter(|(_, standing)| !standing.up && standing.peer.as_ref().is_some_and(Peer::is_greeted))
            .map(|(link, _)| *link)
            .collect();
        for link in greeted {
            if let Some(standing) = self.links.get_mut(&link) {
                standing.up = true;
            }
            self.on_event(Event::Greeted(link), myself);
        }
        self.on_event(Event::Tick, myself);
    }

    fn on_connected(&mut self, connection: Connection, side: Side, myself: &ActorRef<LinkMsg>) {
        let Connection { name, tls, knife } = connection;
        self.next_link += 1;
        let link = LinkId(self.next_link);
        self.links.insert(link, Standing { knife, session: None, peer: None, up: false });
        let dialed = side == Side::Dialed;
        self.on_event(Event::Opened { link, name, dialed }, myself);
        if self.links.contains_key(&link) {
            let stream = Box::new(Labelled { link, tls });
            let _ended = self.server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server: !dialed });
        }
    }

    fn on_event(&mut self, event: Event, myself: &ActorRef<LinkMsg>) {
        let effects = self.core.on_event(event, Instant::now(), &mut rand::rng());
        for effect in effects {
            match effect {
                Effect::Dial(facts) => self.dial(facts, myself),
                Effect::Greet { link, id } => self.greet(link, &id),
                Effect::Ping(link) => self.ping(link, myself),
                Effect::Cut { link, why } => self.drop_link(link, why),
            }
        }
        let changed = {
            let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
            !names.iter().eq(self.core.names())
        };
        if changed {
            *self.names.write().unwrap_or_else(PoisonError::into_inner) = self.core.names().cloned().collect();
        }
    }

    fn dial(&mut self, facts: NodeFacts, myself: &ActorRef<LinkMsg>) {
        let (tls, timing, myself) = (self.tls.clone(), self.args.timing.clone(), myself.clone());
        self.tasks.spawn(async move {
            let event = match socket::dial(&facts, &tls, &timing).await {
                Ok(connection) => OwnEvent::Connected(Box::new(connection), Side::Dialed),
                Err(error) => {
                    debug!(node = %facts.id, address = %facts.link, %error, "a node could not be dialed");
                    OwnEvent::DialFailed(facts.id.name)
                }
            };
            let _gone = myself.cast(LinkMsg::Own(Own(event)));
        });
    }

    fn greet(&mut self, link: LinkId, id: &NodeId) {
        let Some(standing) = self.links.get_mut(&link) else { return };
        let Some((number, _)) = standing.session else { return };
        let peers = &self.args.peers;
        let peer = standing.peer.get_or_insert_with(|| peers.candidate(id.clone(), number));
        if peer.resolve() {
            peer.greet(peers.me());
        }
    }

    fn ping(&mut self, link: LinkId, myself: &ActorRef<LinkMsg>) {
        let Some(peer) = self.links.get(&link).and_then(|standing| standing.peer.clone()) else { return };
        let (myself, deadline, inbound) = (myself.clone(), self.args.timing.ping_deadline, Arc::clone(&self.args.inbound));
        self.tasks.spawn(async move {
            let asked = Instant::now();
            if peer.ask(Question::Ping, deadline).await.is_ok() {
                let round_trip = asked.elapsed();
                inbound.peer_changed(PeerChange::RoundTrip(peer.id().clone(), round_trip));
                let _gone = myself.cast(LinkMsg::Own(Own(OwnEvent::Pong(link))));
            }
        });
    }

    /// Ends a link, whatever state it is in.
    fn drop_link(&mut self, link: LinkId, why: &str) {
        let Some(standing) = self.links.remove(&link) else { return };
        if let Some(peer) = &standing.peer {
            info!(peer = %peer.id(), why, "a link is over");
            self.args.peers.remove(peer, why, &*self.args.inbound);
        } else {
            debug!(link = link.0, why, "a connection is over");
        }
        drop(standing.knife);
        if let Some((_, session)) = standing.session {
            session.stop(Some(why.to_owned()));
        }
    }

    fn inspection(&self) -> Inspection {
        let [known, linked, greeting, ejected] = self.core.numbers().map(|number| number as u64);
        let state = if linked == known { "linked" } else { "linking" };
        Inspection::new(
            state,
            [
                ("known", known),
                ("linked", linked),
                ("greeting", greeting),
                ("ejected", ejected),
                ("doubts", self.core.doubts),
                ("handshakes_failed", self.refused.handshakes.load(Ordering::Relaxed)),
                ("unknown_turned_away", self.refused.unknown.load(Ordering::Relaxed)),
            ],
        )
    }
}
