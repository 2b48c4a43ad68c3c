//! The replicas of a node of the simulation, which only take time, and the shell of the evictor round its core.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use plexus_actors::evictor::core::{Ask, Effect, Event, Place, Verdict, needs_of};
use plexus_actors::evictor::ledger::Lease;
use plexus_types::{Bytes, DeviceId, ModelId, ModelKind, ModelProfile, ReplicaLoad, ReplicaReport, ReplicaState};
use rand::Rng;

use super::node::SimNode;
use super::{Happening, Message, Placement, Request, RequestState, Within};

/// Requests served at once by a replica.
const RUNNING_MAX: u32 = 8;
/// A replica that does not say within this time whether it can go stays, for now.
const RETIRE_DEADLINE: Duration = Duration::from_secs(2);
/// One replica in so many comes to that question only after [`LATE`].
const LATE_ONE_IN: u32 = 30;
const LATE: Duration = Duration::from_secs(3);
/// Two loads that are begun within this cannot know of each other.
const UNAWARE: Duration = Duration::from_millis(50);
/// Whoever finds a replica gone looks for another after so long.
const ASKS_ANEW: Duration = Duration::from_millis(20);

/// A replica.
#[derive(Debug)]
pub(super) struct Replica {
    profile: ModelProfile,
    lease: u64,
    begun: Duration,
    /// What it takes, once it was granted its memory: by what the trace says of its model, whatever was promised.
    pub(super) taken: Option<Bytes>,
    pub(super) loaded: bool,
    /// When it agreed to go.
    pub(super) agreed_at: Option<Duration>,
    idle_since: Duration,
    /// The evictor was told that it has requests.
    said_busy: bool,
    running: Vec<Seat>,
    waiting: VecDeque<Seat>,
    n_steps: u64,
}

/// A request at a replica.
#[derive(Debug)]
struct Seat {
    request: usize,
    /// The node that ordered it.
    via: usize,
    /// Tells it from the same request at another time.
    step: u64,
}

impl Replica {
    pub(super) fn is_used(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    pub(super) fn is_loading(&self) -> bool {
        !self.loaded && self.agreed_at.is_none()
    }
}

impl Placement {
    /// The order reached a replica that may be gone, or going.
    pub(super) fn on_request(&mut self, node: usize, request: usize, place: &Place) -> Result<(), String> {
        if self.requests[request].state != RequestState::At(node) {
            return Ok(()); // its client has asked elsewhere since
        }
        let via = self.requests[request].via;
        match self.nodes[node].replicas.get_mut(place).filter(|replica| replica.loaded && replica.agreed_at.is_none()) {
            Some(replica) => {
                replica.n_steps += 1;
                replica.waiting.push_back(Seat { request, via, step: replica.n_steps });
                self.serve(node, place)
            }
            None => {
                self.waits_again(request, ASKS_ANEW);
                Ok(())
            }
        }
    }

    fn serve(&mut self, node: usize, place: &Place) -> Result<(), String> {
        while let Some(replica) = self.nodes[node].replicas.get_mut(place)
            && (replica.running.len() as u32) < RUNNING_MAX
            && let Some(seat) = replica.waiting.pop_front()
        {
            let (request, step) = (seat.request, seat.step);
            replica.running.push(seat);
            self.within(node, self.requests[request].service, Within::Served { place: place.clone(), request, step });
        }
        let Some(replica) = self.nodes[node].replicas.get_mut(place) else { return Ok(()) };
        let busy = replica.is_used();
        if std::mem::replace(&mut replica.said_busy, busy) != busy {
            replica.idle_since = self.now;
            self.evicted(node, Event::Used { place: place.clone(), busy })?;
        }
        self.report(node, place);
        Ok(())
    }

    pub(super) fn on_served(&mut self, node: usize, place: &Place, request: usize, step: u64) -> Result<(), String> {
        let Some(replica) = self.nodes[node].replicas.get_mut(place) else { return Ok(()) };
        let Some(i) = replica.running.iter().position(|seat| seat.step == step && seat.request == request) else { return Ok(()) };
        let via = replica.running.remove(i).via;
        let Request { via: waits_at, state, arrived, service, .. } = &self.requests[request];
        if *state == RequestState::At(node) && *waits_at == via && self.is_linked(node, via) {
            let wait = self.now - *arrived - *service;
            self.requests[request].state = RequestState::Answered(wait);
        }
        self.serve(node, place)
    }

    /// What another node ordered is dropped.
    pub(super) fn drop_requests_of(&mut self, node: usize, other: usize) -> Result<(), String> {
        let places: Vec<Place> = self.nodes[node].replicas.keys().cloned().collect();
        places.iter().try_for_each(|place| {
            if let Some(replica) = self.nodes[node].replicas.get_mut(place) {
                replica.running.retain(|seat| seat.via != other);
                replica.waiting.retain(|seat| seat.via != other);
            }
            self.serve(node, place)
        })
    }

    pub(super) fn on_load_ended(&mut self, node: usize, place: &Place, lease: u64) -> Result<(), String> {
        let Some(replica) = self.nodes[node].replicas.get_mut(place).filter(|replica| replica.lease == lease) else { return Ok(()) };
        replica.loaded = true;
        replica.idle_since = self.now;
        if replica.profile.pinned {
            self.nodes[node].pinned.insert(place.clone());
        }
        let n_loaded = self.nodes.iter().filter(|node| node.up).flat_map(SimNode::loaded).filter(|one| one.0 == place.0).count();
        let most = &mut self.outcome.most_replicas[self.workload.index_of(&place.0)];
        *most = n_loaded.max(*most);
        self.evicted(node, Event::Loaded(place.clone()))?;
        self.report(node, place);
        // Whoever waits for the model, anywhere, is told when the news arrives.
        for i in 0..self.requests.len() {
            if self.requests[i].model == place.0 && self.requests[i].state == RequestState::Waiting && self.requests[i].arrived <= self.now
            {
                let delay = Duration::from_micros(self.rng.random_range(5000..6000));
                self.after(delay, Happening::Retries(i));
            }
        }
        Ok(())
    }

    /// A replica comes to the question whether it goes. If it does, it gives up what it holds at once, and is only to be dismissed.
    pub(super) fn on_asked(&mut self, node: usize, place: Place, lease: u64, ask: Ask) -> Result<(), String> {
        let replica = self.nodes[node].replicas.get_mut(&place).filter(|replica| replica.lease == lease);
        let verdict = match replica {
            None => Verdict::Silent,
            Some(replica) if replica.is_used() => Verdict::Stays,
            Some(replica) => {
                replica.agreed_at.get_or_insert(self.now);
                if replica.taken.take().is_some() {
                    self.evicted(node, Event::Released { place: place.clone(), lease: Lease(lease) })?;
                }
                Verdict::Goes
            }
        };
        let delay = Duration::from_micros(self.rng.random_range(0..1000)); // from task to task
        self.within(node, delay, Within::Retired { place, ask, verdict });
        Ok(())
    }

    pub(super) fn on_verdict(&mut self, node: usize, place: Place, ask: Ask, verdict: Verdict) -> Result<(), String> {
        self.evicted(node, Event::Retired { place, ask, verdict })
    }

    /// Tells the evictor, and does what it wants done.
    pub(super) fn evicted(&mut self, node: usize, event: Event) -> Result<(), String> {
        let now = self.instant();
        let effects = self.nodes[node].evictor.on_event(event, now);
        effects.into_iter().try_for_each(|effect| self.on_effect(node, effect))
    }

    fn on_effect(&mut self, node: usize, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Host { profile, device, .. } => self.on_host(node, *profile, device),
            Effect::Retire(place, ask) => self.on_retire(node, place, ask),
            Effect::Dismiss(place, ask) => self.on_dismiss(node, place, ask),
            Effect::Granted { asker, grant } => {
                let Some((place, lease)) = self.nodes[node].rooms.remove(&asker) else { return Ok(()) };
                let Ok(grant) = grant else {
                    self.outcome.loads -= 1; // it never began
                    return self.evicted(node, Event::GaveUp(place));
                };
                if let Some(replica) = self.nodes[node].replicas.get_mut(&place) {
                    replica.taken = Some(self.workload.taken(&place.0, &grant));
                }
                let time = self.workload.load_time(&place.0);
                self.within(node, time, Within::LoadEnds { place, lease });
                Ok(())
            }
            Effect::Answer { asker, result } => {
                if let Some((home, model, number)) = self.nodes[node].orders.remove(&asker) {
                    self.send(node, home, Message::Ordered { model, number, result });
                }
                Ok(())
            }
            Effect::Publish(devices) => {
                self.nodes[node].view.on_own_devices(devices);
                self.publish(node);
                Ok(())
            }
            Effect::Forget(_) | Effect::RestartDevice(_) | Effect::Pinned(..) | Effect::KeepPins(_) => Ok(()),
        }
    }

    fn on_host(&mut self, node: usize, profile: ModelProfile, device: DeviceId) -> Result<(), String> {
        let place = (profile.id.clone(), device);
        self.check_alone(node, &place.0)?;
        let lease = self.nodes[node].number();
        let asker = self.nodes[node].number();
        self.outcome.loads += 1;
        let needs = needs_of(&profile, &self.workload.facts(self.workload.index_of(&place.0)), device);
        let replica = Replica {
            profile,
            lease,
            begun: self.now,
            taken: None,
            loaded: false,
            agreed_at: None,
            idle_since: self.now,
            said_busy: false,
            running: Vec::new(),
            waiting: VecDeque::new(),
            n_steps: 0,
        };
        self.nodes[node].replicas.insert(place.clone(), replica);
        self.nodes[node].rooms.insert(asker, (place.clone(), lease));
        self.report(node, &place);
        self.evicted(node, Event::Room { place, lease: Lease(lease), needs, asker })
    }

    /// No other load of the model may be under way on this side of the cut, but one that began a moment ago while nodes do not agree who is
    /// there: they may name different homes then.
    fn check_alone(&mut self, node: usize, model: &ModelId) -> Result<(), String> {
        for other in (0..self.nodes.len()).filter(|other| self.nodes[*other].up) {
            let of_model = self.nodes[other].replicas.iter().filter(|(place, _)| place.0 == *model);
            if !self.is_linked(node, other) {
                self.outcome.loaded_on_both_sides += usize::from(of_model.count() > 0);
            } else if let Some((_, loading)) = of_model.into_iter().find(|(_, replica)| replica.is_loading()) {
                if self.now > self.unsettled_until || self.now > loading.begun + UNAWARE {
                    return Err(format!("{model} is being loaded on {} and on {}", self.nodes[other].id, self.nodes[node].id));
                }
                self.outcome.twins += 1;
            }
        }
        Ok(())
    }

    fn on_retire(&mut self, node: usize, place: Place, ask: Ask) -> Result<(), String> {
        let Some(replica) = self.nodes[node].replicas.get(&place) else {
            self.within(node, Duration::ZERO, Within::Retired { place, ask, verdict: Verdict::Silent });
            return Ok(());
        };
        if replica.profile.pinned {
            return Err(format!("{place:?} is pinned and was told to go"));
        }
        if self.nodes[node].evictor.makes_room(&place) {
            self.check_victim(node, &place)?;
        }
        let lease = replica.lease;
        let mut delay = Duration::from_micros(self.rng.random_range(0..1000));
        if self.rng.random_ratio(1, LATE_ONE_IN) {
            self.outcome.late_answers += 1;
            delay = LATE;
            self.within(node, RETIRE_DEADLINE, Within::Retired { place: place.clone(), ask, verdict: Verdict::Silent });
        }
        self.within(node, delay, Within::Asked { place, lease, ask });
        Ok(())
    }

    fn on_dismiss(&mut self, node: usize, place: Place, ask: Ask) -> Result<(), String> {
        let Some(replica) = self.nodes[node].replicas.remove(&place) else { return Ok(()) };
        if replica.is_used() {
            return Err(format!("{place:?} goes while it has requests"));
        }
        let stays = |(other, _): (&Place, &Replica)| other.1 == place.1 && self.nodes[node].pinned.contains(other);
        self.outcome.gone_beside_pinned += usize::from(self.nodes[node].replicas.iter().any(stays));
        self.nodes[node].view.on_own_replica_left(&place.0, place.1);
        self.publish(node);
        self.evicted(node, Event::Released { place: place.clone(), lease: Lease(replica.lease) })?;
        self.evicted(node, Event::Dismissed(place, ask))
    }

    /// What a replica says of itself.
    pub(super) fn report(&mut self, node: usize, place: &Place) {
        let Some(replica) = self.nodes[node].replicas.get(place).filter(|replica| replica.agreed_at.is_none()) else { return };
        let (running, waiting) = (replica.running.len() as u32, replica.waiting.len() as u32);
        let load = ReplicaLoad {
            running,
            running_max: RUNNING_MAX,
            waiting,
            waiting_max: 1 << 20,
            prefill_tokens_per_s: 5000.0,
            decode_tokens_per_s: 600.0,
            answer_tokens: 0.0,
        };
        let report = ReplicaReport {
            model: place.0.clone(),
            device: place.1,
            state: if replica.loaded { ReplicaState::Loaded } else { ReplicaState::Loading },
            context_length: 8192,
            memory: replica.taken.unwrap_or_default(),
            load,
            kind: ModelKind::Generate,
            residency_priority: replica.profile.residency_priority,
            pinned: replica.profile.pinned,
            idle: (replica.loaded && running + waiting == 0).then(|| self.now - replica.idle_since),
            load_time: replica.loaded.then(|| self.workload.load_time(&place.0)),
            progress: 0.0,
            prefixes: None,
            digest: None,
            tools: false,
            reasoning: false,
        };
        if self.nodes[node].view.on_own_replica(report, SystemTime::UNIX_EPOCH) {
            self.publish(node);
        }
    }

    pub(super) fn publish(&mut self, node: usize) {
        let summary = self.nodes[node].view.own().clone();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.nodes[other].up {
                self.send(node, other, Message::Summary(node, summary.clone()));
            }
        }
    }
}
