//! The streams of a process: the shell of the streams actor round the real [`StreamCore`]s, with the checks on what they do.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_actors::messages::{Attempt, Generate, Notice, StreamNotice};
use plexus_actors::streams::core::{Effect, Event, Stage, StreamCore};
use plexus_types::{GenerateEvent, Journal, NodeId, ReplicaId, RequestId, StreamEvent, TraceContext};

use super::links::Links;
use super::net::ProcessId;
use super::process::Mail;
use super::world::World;

/// How often deadlines are looked at.
const CLOCK_PERIOD: Duration = Duration::from_millis(250);
/// Events beyond the window that a client's channel takes.
const CHANNEL_SLACK: u32 = 64;

/// The way out of the streams.
#[derive(Debug)]
pub struct Post<'a> {
    /// To the other nodes.
    pub links: &'a Links,
    /// Everything outside of the process.
    pub world: &'a mut World,
    /// To the actors of this process; with a wait, as a timer.
    pub mail: &'a mut Vec<(Option<Duration>, Mail)>,
}

/// The streams whose client is at this process.
#[derive(Debug)]
pub struct Streams {
    process: ProcessId,
    me: NodeId,
    streams: BTreeMap<RequestId, Stream>,
    clock_running: bool,
}

#[derive(Debug)]
struct Stream {
    core: StreamCore,
    /// How far the replica of the attempt under way may go.
    granted_until: u32,
    ended: bool,
}

impl Streams {
    /// None yet.
    pub fn new(process: ProcessId, me: NodeId) -> Self {
        Self { process, me, streams: BTreeMap::new(), clock_running: false }
    }

    /// A client asks.
    pub fn on_open(&mut self, id: RequestId, journal: Journal, post: &mut Post<'_>) {
        let core = StreamCore::new(id, journal, post.world.agenda.now());
        self.streams.insert(id, Stream { core, granted_until: 0, ended: false });
        self.carry_out(id, vec![Effect::AskRouter], post);
        self.run_clock(post);
    }

    /// Replicas said something.
    pub fn on_events(&mut self, from: &NodeId, events: Vec<StreamNotice>, post: &mut Post<'_>) {
        for notice in events {
            if self.streams.contains_key(&notice.request) {
                self.apply(notice.request, Event::Replica(notice.attempt, notice.event), post);
            } else if !matches!(notice.event, StreamEvent::Done { .. } | StreamEvent::Failed(_)) {
                let cancel = Notice::Cancel { request: notice.request, attempt: notice.attempt };
                let _ends_by_itself = self.notify(from, cancel, post);
            }
        }
    }

    /// A client left.
    pub fn on_client_gone(&mut self, id: RequestId, post: &mut Post<'_>) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if let Some(Effect::Cancel { replica, attempt }) = stream.core.abandon() {
            self.cancel(id, &replica, attempt, post);
        }
    }

    /// A node went away, or the link to it.
    pub fn on_node_lost(&mut self, node: &NodeId, post: &mut Post<'_>) {
        let ids: Vec<RequestId> = self.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| self.apply(id, Event::NodeLost(node.clone()), post));
    }

    /// Time to look at the deadlines.
    pub fn on_clock(&mut self, post: &mut Post<'_>) {
        self.clock_running = false;
        let now = post.world.agenda.now();
        let due = |stream: &Stream| stream.core.deadline().is_some_and(|at| at <= now);
        let due: Vec<RequestId> = self.streams.iter().filter(|(_, stream)| due(stream)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.apply(id, Event::Clock, post));
        self.run_clock(post);
    }

    fn run_clock(&mut self, post: &mut Post<'_>) {
        if !self.clock_running && !self.streams.is_empty() {
            self.clock_running = true;
            post.mail.push((Some(CLOCK_PERIOD), Mail::ClockDue));
        }
    }

    /// Something happens to a stream.
    pub fn apply(&mut self, id: RequestId, event: Event, post: &mut Post<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.core.attempt();
        let former = matches!(&event, Event::Replica(attempt, _) if *attempt != before);
        let loss = !matches!(event, Event::Routed(_) | Event::Consumed(_));
        let at = if loss { stream.core.replica().map(|(replica, stage)| (replica.clone(), stage)) } else { None };
        let n_before = stream.core.journal.sampled_ids.len();
        let effects = stream.core.on_event(event, &post.world.config.streams, post.world.agenda.now());

        // Only what the replica of the attempt under way says may reach the client.
        if former {
            post.world.counts.former += 1;
            if !effects.is_empty() || stream.core.journal.sampled_ids.len() != n_before {
                post.world.violate(format!("{:04x}: a former attempt was listened to", id.0 as u16));
            }
        }
        self.check_tokens(id, n_before, post);
        if let Some((replica, stage)) = at
            && effects.contains(&Effect::AskRouter)
        {
            post.world.counts.reroutes += 1;
            post.world.counts.continuations += u64::from(stage == Stage::Streaming);
            post.world.line(format_args!("{:04x} leaves {replica} after {n_before} tokens", id.0 as u16));
        }
        self.carry_out(id, effects, post);
    }

    /// The journal is a beginning of the reference, and no replica exceeds its credit by more than it samples in a step.
    fn check_tokens(&self, id: RequestId, n_before: usize, post: &mut Post<'_>) {
        let Some(stream) = self.streams.get(&id) else { return };
        let Some(client) = post.world.clients.get(&id) else { return };
        let sampled = &stream.core.journal.sampled_ids;
        if sampled.get(n_before..) != client.reference.ids.get(n_before..sampled.len()) {
            let what = format!("{:04x}: tokens {:?} from {n_before} on are not the reference's", id.0 as u16, &sampled[n_before..]);
            return post.world.violate(what);
        }
        let slack = post.world.config.replica.tokens_per_step - 1;
        if sampled.len() > n_before && sampled.len() > stream.granted_until as usize + slack {
            post.world.violate(format!("{:04x}: {} tokens came, {} may", id.0 as u16, sampled.len(), stream.granted_until));
        }
    }

    fn carry_out(&mut self, id: RequestId, effects: Vec<Effect>, post: &mut Post<'_>) {
        for effect in effects {
            match effect {
                Effect::AskRouter => {
                    let Some(stream) = self.streams.get(&id) else { return };
                    let (model, tried) = (stream.core.journal.request.model.clone(), stream.core.search.tried.clone());
                    post.mail.push((None, Mail::Route(id, model, tried)));
                }
                Effect::Send { replica, attempt, credit_until } => self.send(id, &replica, attempt, credit_until, post),
                Effect::Cancel { replica, attempt } => self.cancel(id, &replica, attempt, post),
                Effect::Credit { replica, attempt, until } => {
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.granted_until = until;
                    }
                    let _watchdog_sees_it = self.notify(&replica.node, Notice::Credit { request: id, attempt, until }, post);
                }
                Effect::Deliver(event) => self.deliver(id, event, post),
                Effect::End => drop(self.streams.remove(&id)),
            }
        }
    }

    fn send(&mut self, id: RequestId, replica: &ReplicaId, attempt: Attempt, credit_until: u32, post: &mut Post<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.granted_until = credit_until;
        let generate = Generate {
            request: id,
            attempt,
            model: replica.model.clone(),
            journal: stream.core.journal.clone(),
            credit_until,
            trace: TraceContext::default(),
            device: replica.device,
        };
        if let Err(why) = self.notify(&replica.node, Notice::Generate(Box::new(generate)), post) {
            self.apply(id, Event::NotSent(attempt, why), post);
        }
    }

    fn cancel(&mut self, id: RequestId, replica: &ReplicaId, attempt: Attempt, post: &mut Post<'_>) {
        let _gone_anyway = self.notify(&replica.node, Notice::Cancel { request: id, attempt }, post);
    }

    fn notify(&self, node: &NodeId, notice: Notice, post: &mut Post<'_>) -> Result<(), String> {
        if *node == self.me {
            post.mail.push((None, Mail::Order(node.clone(), notice)));
            return Ok(());
        }
        post.links.notify(node, &notice, post.world)
    }

    fn deliver(&mut self, id: RequestId, event: GenerateEvent, post: &mut Post<'_>) {
        let room = (post.world.config.streams.window_tokens + CHANNEL_SLACK) as usize;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(client) = post.world.clients.get_mut(&id) else { return };
        let is_end = matches!(event, GenerateEvent::Done { .. } | GenerateEvent::Failed(_));
        let after_the_end = stream.ended;
        stream.ended |= is_end;
        client.inbox.push_back(event);
        let n_waiting = client.inbox.len();
        if after_the_end || n_waiting > room {
            post.world.violate(format!("{:04x}: {n_waiting} events wait, after the end: {after_the_end}", id.0 as u16));
        }
        post.world.let_read(id, self.process);
    }

    /// Errors: a stream is left.
    pub fn check_idle(&self) -> Result<(), String> {
        if self.streams.is_empty() {
            return Ok(());
        }
        Err(format!("'{}' still follows {:?}", self.me, self.streams.values().map(|stream| &stream.core).collect::<Vec<_>>()))
    }
}
