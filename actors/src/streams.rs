//! The streams whose client is connected to this node.
//!
//! Holds the journal of each and follows it from replica to replica; [`core`] decides, this actor carries out. Supervised by [`crate::node`];
//! supervises nobody. A restart loses the journals: the channels to the clients close, each of which is told that its stream broke off, and all
//! replicas are told to forget what the former life ordered.

pub mod core;
mod patience;
pub mod search;

use std::collections::HashMap;

use plexus_types::{FilesDigest, GenerateEvent, Journal, ModelId, NodeId, ReplicaId, RequestError, RequestId};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tracing::{Span, info_span, warn};

use self::core::{Effect, Event, StreamCore};
use self::patience::Patience;
use crate::address::Address;
use crate::args::StreamsConfig;
use crate::inspect::Inspection;
use crate::messages::{Attempt, Generate, Notice, StreamNotice};
use crate::model::LocalModels;
use crate::model::sink::Ingresses;
use crate::peers::Peers;
use crate::prefix::PromptDigests;
use crate::router::{RouteRequest, Routed, RouterMsg};
use crate::trace;

/// How often deadlines are looked at. They are seconds long.
const CLOCK_PERIOD: std::time::Duration = std::time::Duration::from_millis(250);

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct StreamsArgs {
    /// Its own address.
    pub address: Address<StreamsMsg>,
    /// The node it is on.
    pub me: NodeId,
    /// Deadlines and windows.
    pub config: StreamsConfig,
    /// Who picks the replica.
    pub router: Address<RouterMsg>,
    /// The models of this node.
    pub models: LocalModels,
    /// The other nodes.
    pub peers: Peers,
    /// How the models of this node answer.
    pub ingresses: Ingresses,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum StreamsMsg {
    /// A client asks: find a replica, and send what it says to `events`.
    Open {
        /// The request's id.
        id: RequestId,
        /// The request.
        journal: Box<Journal>,
        /// What its prompt begins with.
        prompt: PromptDigests,
        /// Towards the client. Large enough for the window, so that sending never waits.
        events: mpsc::Sender<GenerateEvent>,
        /// The span of the request.
        span: Span,
    },
    /// The router answered.
    Routed {
        /// Which stream.
        id: RequestId,
        /// The replica, or why there is none.
        result: Routed,
        /// Why there, in a line for the client.
        route: String,
        /// What the replica was loaded from.
        files: Option<FilesDigest>,
    },
    /// Replicas said something.
    Events {
        /// The node they are on.
        from: NodeId,
        /// What they said, in order.
        events: Vec<StreamNotice>,
    },
    /// The client took tokens.
    Consumed {
        /// Which stream.
        id: RequestId,
        /// How many.
        tokens: u32,
    },
    /// The client left, or has all it wanted.
    ClientGone(RequestId),
    /// A node went away, or the link to it.
    NodeLost(NodeId),
    /// A model was loaded, or cannot be: whoever waits for it asks again.
    ModelChanged(ModelId),
    /// Time to look at the deadlines.
    ClockDue,
    /// How many streams are there?
    Count(RpcReplyPort<usize>),
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct StreamsActor;

/// What the actor holds.
#[derive(Debug)]
pub struct StreamsState {
    args: StreamsArgs,
    streams: HashMap<RequestId, Stream>,
    clock_running: bool,
    n_opened: u64,
    n_rerouted: u64,
    n_unknown: u64,
}

#[derive(Debug)]
struct Stream {
    core: StreamCore,
    /// What its prompt begins with.
    prompt: PromptDigests,
    events: mpsc::Sender<GenerateEvent>,
    patience: Patience,
    span: Span,
    /// Open while the router is asked.
    route_span: Span,
    /// What the replica was loaded from that the first token came from, or will come.
    files: Option<FilesDigest>,
}

impl Actor for StreamsActor {
    type Msg = StreamsMsg;
    type State = StreamsState;
    type Arguments = StreamsArgs;

    async fn pre_start(&self, myself: ActorRef<StreamsMsg>, args: StreamsArgs) -> Result<StreamsState, ActorProcessingErr> {
        args.address.attach(myself);
        args.models.ingress_lost(&args.me);
        for peer in args.peers.list() {
            let _forgets_with_the_link = peer.notify(Notice::Forget);
        }
        Ok(StreamsState { args, streams: HashMap::new(), clock_running: false, n_opened: 0, n_rerouted: 0, n_unknown: 0 })
    }

    async fn handle(&self, _myself: ActorRef<StreamsMsg>, message: StreamsMsg, state: &mut StreamsState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            StreamsMsg::Open { id, journal, prompt, events, span } => {
                let now = Instant::now();
                let (core, patience) = (StreamCore::new(id, *journal, now), Patience::new(now));
                state.on_open(Stream { core, prompt, events, patience, span, route_span: Span::none(), files: None })
            }
            StreamsMsg::Routed { id, result, route, files } => {
                if let Some(stream) = state.streams.get_mut(&id) {
                    stream.core.route = route;
                    if stream.core.journal.sampled_ids.is_empty() {
                        stream.files = files;
                    }
                }
                state.apply(id, Event::Routed(result));
            }
            StreamsMsg::Events { from, events } => state.on_events(&from, events),
            StreamsMsg::Consumed { id, tokens } => state.apply(id, Event::Consumed(tokens)),
            StreamsMsg::ClientGone(id) => state.on_client_gone(id),
            StreamsMsg::NodeLost(node) => state.on_node_lost(&node),
            StreamsMsg::ModelChanged(model) => state.on_model_changed(&model),
            StreamsMsg::ClockDue => state.on_clock(),
            StreamsMsg::Count(reply) => drop(reply.send(state.streams.len())),
            StreamsMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl StreamsState {
    fn on_open(&mut self, stream: Stream) {
        self.n_opened += 1;
        let id = stream.core.id;
        self.streams.insert(id, stream);
        self.carry_out(id, vec![Effect::AskRouter]);
        self.run_clock();
    }

    fn on_events(&mut self, from: &NodeId, events: Vec<StreamNotice>) {
        for notice in events {
            if self.streams.contains_key(&notice.request) {
                self.apply(notice.request, Event::Replica(notice.attempt, notice.event));
            } else if !matches!(notice.event, plexus_types::StreamEvent::Done { .. } | plexus_types::StreamEvent::Failed(_)) {
                self.n_unknown += 1;
                let cancel = Notice::Cancel { request: notice.request, attempt: notice.attempt };
                let _ends_by_itself = self.notify(from, cancel);
            }
        }
    }

    fn on_client_gone(&mut self, id: RequestId) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if stream.core.replica().is_none() {
            self.args.router.tell(RouterMsg::Left(id));
        }
        if let Some(Effect::Cancel { replica, attempt }) = stream.core.abandon() {
            self.cancel(id, &replica, attempt);
        }
    }

    fn on_node_lost(&mut self, node: &NodeId) {
        let ids: Vec<RequestId> = self.streams.keys().copied().collect();
        for id in ids {
            self.apply(id, Event::NodeLost(node.clone()));
        }
    }

    fn on_model_changed(&mut self, model: &ModelId) {
        let waits = |stream: &&Stream| stream.core.is_parked() && stream.core.journal.request.model == *model;
        let ids: Vec<RequestId> = self.streams.values().filter(waits).map(|stream| stream.core.id).collect();
        for id in ids {
            self.apply(id, Event::Retry);
        }
    }

    fn on_clock(&mut self) {
        self.clock_running = false;
        let now = Instant::now();
        let due: Vec<RequestId> = self
            .streams
            .values()
            .filter(|stream| stream.core.deadline().is_some_and(|at| at <= now))
            .map(|stream| stream.core.id)
            .collect();
        for id in due {
            self.apply(id, Event::Clock);
        }
        self.give_up_silent_clients(now);
        self.run_clock();
    }

    /// Breaks off what is answered to nobody, so that it keeps no place from others.
    fn give_up_silent_clients(&mut self, now: Instant) {
        let timeout = self.args.config.client_timeout;
        let queued = |events: &mpsc::Sender<GenerateEvent>| events.max_capacity() - events.capacity();
        let is_over = |stream: &mut Stream| stream.patience.is_over(queued(&stream.events), timeout, now);
        let ids: Vec<RequestId> = self.streams.values_mut().filter_map(|stream| is_over(stream).then_some(stream.core.id)).collect();
        for id in ids {
            warn!(request = %id, ?timeout, "the client takes nothing of its answer, which is broken off");
            let message = format!("the answer was broken off: nothing of it was read for {timeout:?}");
            self.deliver(id, GenerateEvent::Failed(RequestError::Lost { message }));
            self.on_client_gone(id);
        }
    }

    fn run_clock(&mut self) {
        if !self.clock_running && !self.streams.is_empty() {
            self.clock_running = true;
            self.args.address.tell_after(CLOCK_PERIOD, StreamsMsg::ClockDue);
        }
    }

    fn apply(&mut self, id: RequestId, event: Event) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let effects = stream.core.on_event(event, &self.args.config, Instant::now());
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: RequestId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::AskRouter => self.ask_router(id),
                Effect::Send { replica, attempt, credit_until } => self.send(id, &replica, attempt, credit_until),
                Effect::Cancel { replica, attempt } => self.cancel(id, &replica, attempt),
                Effect::Credit { replica, attempt, until } => {
                    let _watchdog_sees_it = self.notify(&replica.node, Notice::Credit { request: id, attempt, until });
                }
                Effect::Deliver(event) => self.deliver(id, event),
                Effect::End => drop(self.streams.remove(&id)),
            }
        }
    }

    fn ask_router(&mut self, id: RequestId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.route_span = info_span!(parent: &stream.span, "route", attempt = stream.core.attempt().0 + 1, otel.kind = "internal");
        if !stream.core.search.tried.is_empty() {
            self.n_rerouted += 1;
        }
        let model = stream.core.journal.request.model.clone();
        let files = stream.files.filter(|_| !stream.core.journal.sampled_ids.is_empty());
        let tried = stream.core.search.tried.clone();
        let request = RouteRequest { model, prompt: stream.prompt.clone(), tried, begun: Vec::new(), files };
        let (router, reply_to) = (self.args.router.clone(), self.args.address.clone());
        let asked = router.cast(RouterMsg::Route { id, request: request.clone(), reply_to: reply_to.clone() });
        if asked.is_err() {
            // The router is between two lives: ask again when it has had time to come back.
            tokio::spawn(async move {
                tokio::time::sleep(CLOCK_PERIOD).await;
                if router.cast(RouterMsg::Route { id, request, reply_to: reply_to.clone() }).is_err() {
                    let message = "the router of this node is not running".to_owned();
                    let error = RequestError::soon(message);
                    reply_to.tell(StreamsMsg::Routed { id, result: Routed::Refused(error), route: String::new(), files: None });
                }
            });
        }
    }

    fn send(&mut self, id: RequestId, replica: &ReplicaId, attempt: Attempt, credit_until: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.route_span = Span::none();
        let generate = Generate {
            request: id,
            attempt,
            model: replica.model.clone(),
            journal: stream.core.journal.clone(),
            credit_until,
            trace: trace::inject(&stream.span),
            device: replica.device,
        };
        if let Err(why) = self.notify(&replica.node, Notice::Generate(Box::new(generate))) {
            self.apply(id, Event::NotSent(attempt, why));
        }
    }

    fn cancel(&mut self, id: RequestId, replica: &ReplicaId, attempt: Attempt) {
        let _gone_anyway = self.notify(&replica.node, Notice::Cancel { request: id, attempt });
    }

    /// Hands a notice to a replica: by mailbox on this node, over the link elsewhere.
    fn notify(&self, node: &NodeId, notice: Notice) -> Result<(), String> {
        if *node != self.args.me {
            let peer = self.args.peers.get(node).ok_or_else(|| format!("the node '{}' cannot be reached", node.name))?;
            return peer.notify(notice).map_err(|error| format!("the node '{}' took no message: {error}", node.name));
        }
        self.args.models.order(&self.args.ingresses, node, notice);
        Ok(())
    }

    fn deliver(&mut self, id: RequestId, event: GenerateEvent) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.patience.on_delivered();
        if matches!(event, GenerateEvent::Started { cold_start: true, .. }) {
            stream.span.record("cold_start", true);
        }
        if let GenerateEvent::Failed(error) = &event {
            let model = stream.core.journal.request.model.clone();
            self.args.router.tell(RouterMsg::Failed(id, model, error.clone()));
        }
        match stream.events.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => self.on_client_gone(id),
            Err(TrySendError::Full(_)) => {
                warn!(request = %id, "a replica sent more than its credit: the stream is cut off");
                self.on_client_gone(id);
            }
        }
    }

    fn inspect(&self) -> Inspection {
        Inspection::new(
            if self.streams.is_empty() { "idle" } else { "streaming" },
            [
                ("streams", self.streams.len() as u64),
                ("opened", self.n_opened),
                ("rerouted", self.n_rerouted),
                ("unknown_events", self.n_unknown),
            ],
        )
    }
}
