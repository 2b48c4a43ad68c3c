//! What the evictor decides: who gets memory of a device, who goes for it, and when. A plain struct that does no I/O.
//!
//! ```text
//! Room ──fits──────────────────────────────> Granted
//!   ├──victims──> Retire ───goes───> Released ┘        (one load at a time makes room on a device; the others queue)
//!   │                └──in use, or silent──> planned anew
//!   └──all in use──> waits ──idle──> planned anew ──too long──> Refused, and placed anew by whoever wants it
//!                      └──for a while──> those that have had their turn give way: they take nothing new, and are idle once they have ended
//! ```

mod event;
mod going;
mod here;
mod turns;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use plexus_types::{Bytes, DeviceId, Footprint, ModelFacts, ModelId, ModelProfile, NodeName, RequestError};
use tokio::time::Instant;

pub use self::event::{Ask, Effect, Event, Standing, Verdict};
use self::going::Asked;
use self::turns::turn;
use super::ledger::{Lease, Ledger, Resident};
use super::pins::Pins;
use super::plan::{EvictionPolicy, Needs, NoRoom, Plan, Room, plan, plan_eviction};

/// A replica that could not be loaded is shown so long, and not loaded again meanwhile unless by hand.
pub const FAILED_KEPT: Duration = Duration::from_secs(60);
/// A model that was just loaded stays so long for the requests that it was loaded for: else two that wait for each other's room could take it
/// from each other for ever.
const FIRST_USE: Duration = Duration::from_secs(1);
/// A load waits so long on its device for others to become idle; then it is given up, and placed anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// How models go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvictionConfig {
    /// Who goes first, and who stays.
    pub policy: EvictionPolicy,
    /// A model that nobody has used for so long goes, whether room is needed or not; absent: it stays.
    pub idle_unload: Option<Duration>,
    /// A device is opened anew after so many models have gone from it, once nothing runs there; 0: never (CX-03).
    pub defrag_after_cycles: u32,
}

/// Which question an answer belongs to; chosen by the shell.
pub type Asker = u64;

/// Where a replica is.
pub type Place = (ModelId, DeviceId);

/// Memory granted to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Its KV pool and context.
    pub plan: Plan,
    /// All that it takes.
    pub bytes: Bytes,
}

/// The evictor's state.
#[derive(Debug, Default)]
pub struct EvictorCore {
    config: EvictionConfig,
    ledger: Ledger,
    hosted: BTreeMap<Place, Hosted>,
    queues: BTreeMap<DeviceId, VecDeque<Waiting>>,
    cycles: BTreeMap<DeviceId, Cycles>,
    /// The last time that a replica was hosted, or asked to go.
    last_ask: Ask,
    /// Replicas of a former life that have not said yet what they hold.
    unheard: BTreeSet<Place>,
    /// They are waited for until then.
    heard_by: Option<Instant>,
    unloads: Vec<(Place, Asker)>,
    /// The node, for those who are told of its devices.
    me: Option<NodeName>,
    /// What was said by hand; it counts before what the catalogue says.
    pins: Pins,
    /// Models that went for others, or for nobody's use.
    pub n_evicted: u64,
    /// Loads that found no room.
    pub n_refused: u64,
}

#[derive(Debug)]
struct Hosted {
    profile: Box<ModelProfile>,
    pinned: bool,
    failed_at: Option<Instant>,
    /// It was told to end.
    leaving: bool,
    /// Tells it from earlier and later ones there: what was asked before this is not about this replica.
    since: Ask,
    /// It was asked to go, and has not answered.
    asked: Option<Asked>,
    /// When it was granted its memory, and until when it has its turn; absent until it is loaded.
    granted_at: Option<Instant>,
    turn_until: Option<Instant>,
    /// It was told to take nothing new, so that another can be loaded.
    gives_way: bool,
}

/// Models that come to a device and go.
#[derive(Debug, Default)]
struct Cycles {
    /// So many have gone since it was opened.
    gone: u32,
    /// Those that have come since. Others lost what they held when it was opened anew: that they return what they were promised is no cycle.
    here: BTreeSet<Lease>,
}

impl Hosted {
    fn new(profile: Box<ModelProfile>, pinned: bool, since: Ask) -> Self {
        Self { profile, pinned, failed_at: None, leaving: false, since, asked: None, granted_at: None, turn_until: None, gives_way: false }
    }
}

#[derive(Debug)]
struct Waiting {
    place: Place,
    lease: Lease,
    needs: Needs,
    asker: Asker,
    since: Instant,
    /// Those that were asked to go and have not gone yet.
    victims: Vec<Place>,
}

impl EvictorCore {
    /// Knows of no device yet, and of what was pinned by hand in a former life.
    pub fn new(config: EvictionConfig, pins: Pins) -> Self {
        Self { config, pins, ..Self::default() }
    }

    /// The same, as the successor of one that asked replicas to go before this: their answers may come to this one.
    #[must_use]
    pub fn after(mut self, last_ask: Ask) -> Self {
        self.last_ask = last_ask;
        self
    }

    /// The same, of a node that is called so.
    #[must_use]
    pub fn of(mut self, me: NodeName) -> Self {
        self.me = Some(me);
        self
    }

    /// A device, for those who may ask several nodes.
    fn named(&self, device: DeviceId) -> String {
        self.me.as_ref().map_or_else(|| device.to_string(), |me| format!("{me}/{device}"))
    }

    /// Who was promised what.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Decides.
    pub fn on_event(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::DeviceUp { id, name, total } => {
                self.ledger.open(id, name, total);
                self.cycles.insert(id, Cycles::default());
                self.publish(&mut out);
                self.advance(id, now, &mut out);
            }
            Event::Load { profile, device, facts, in_turn, asker } => {
                let result = self.on_load(profile, device, facts.as_ref(), in_turn, now, &mut out);
                out.push(Effect::Answer { asker, result });
            }
            Event::Room { place, lease, needs, asker } => {
                let device = place.1;
                self.queues.entry(device).or_default().push_back(Waiting { place, lease, needs, asker, since: now, victims: Vec::new() });
                self.advance(device, now, &mut out);
            }
            Event::Loaded(place) => {
                self.note(&place, |resident| resident.idle_since = Some(now + FIRST_USE));
                if let Some(hosted) = self.hosted.get_mut(&place) {
                    let took = hosted.granted_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
                    hosted.turn_until = Some(now + turn(took, self.config.policy.keep_warm));
                    hosted.gives_way = false; // it is another life of it
                }
            }
            Event::GaveUp(place) => self.dismiss(place, &mut out),
            Event::FilesCame(model) => self.dismiss_failed(|place, _| place.0 == model, &mut out),
            Event::Failed(place) => {
                if let Some(hosted) = self.hosted.get_mut(&place) {
                    hosted.failed_at = Some(now);
                }
            }
            Event::Used { place, busy } => self.on_use(&place, busy, now, &mut out),
            Event::Here { place, since, profile, standing } => self.on_here(place, since, profile, standing, now, &mut out),
            Event::Holds { place, lease, bytes } => self.on_holds(&place, lease, bytes, &mut out),
            Event::Retired { place, ask, verdict } => self.on_retired(place, ask, verdict, now, &mut out),
            Event::Released { place, lease } => self.on_released(&place, lease, now, &mut out),
            Event::Dismissed(place, ask) => self.on_dismissed(&place, ask, now, &mut out),
            Event::Outdated(place) if self.hosted.contains_key(&place) => self.ask_to_go(place, false, &mut out),
            Event::Outdated(_) => {} // it is gone already
            Event::Unload { model, device, asker } => self.on_unload(&model, device, asker, &mut out),
            Event::Pin { model, pinned, asker } => {
                let result = self.on_pin(&model, pinned, &mut out);
                out.push(Effect::Answer { asker, result });
            }
            Event::Tick => self.on_tick(now, &mut out),
        }
        out
    }

    fn on_load(
        &mut self,
        mut profile: Box<ModelProfile>,
        device: DeviceId,
        facts: Option<&ModelFacts>,
        in_turn: bool,
        now: Instant,
        out: &mut Vec<Effect>,
    ) -> Result<(), RequestError> {
        let place = (profile.id.clone(), device);
        if self.is_settling(now)
            && let Some(error) = self.not_heard(|_| true)
        {
            return Err(error);
        }
        match self.hosted.get(&place) {
            Some(hosted) if hosted.leaving => {
                let message = format!("the model '{}' is just going from {}", place.0, self.named(device));
                return Err(RequestError::soon(message));
            }
            Some(hosted) if hosted.failed_at.is_none() => return Ok(()),
            Some(_) | None => {}
        }
        let Some(total) = self.ledger.total(device) else {
            let message = format!("{device} of this node is not open; `plexus cluster status` lists the devices");
            return Err(RequestError::Unavailable { message, retry_after: Duration::from_secs(2) });
        };
        if let Some(facts) = facts {
            let needs = needs_of(&profile, facts, device);
            let occupants = self.ledger.occupants(device, &profile.id, now);
            let room = plan_eviction(total, &occupants, &needs, profile.residency_priority, &self.config.policy);
            if let Err(no_room) = room
                && !(in_turn && no_room.may_pass())
            {
                self.n_refused += 1;
                return Err(no_room_error(&profile.id, device, &no_room));
            }
        }
        if self.hosted.remove(&place).is_some() {
            out.push(Effect::Dismiss(place.clone(), self.last_ask)); // the one that failed, and not the one that follows
        }
        profile.pinned = self.pins.get(&profile.id).copied().unwrap_or(profile.pinned);
        let pinned = profile.pinned;
        self.last_ask.0 += 1;
        self.note(&place, |resident| resident.idle_since = None); // of an earlier life, which is on its way out
        self.hosted.insert(place, Hosted::new(profile.clone(), pinned, self.last_ask));
        out.push(Effect::Host { profile, device, since: self.last_ask });
        Ok(())
    }

    /// Serves those that wait for room on a device, in order, as far as it goes. Whoever waits for others to become idle lets pass who needs
    /// no more than there is.
    fn advance(&mut self, device: DeviceId, now: Instant, out: &mut Vec<Effect>) {
        if self.is_settling(now) {
            return; // what is free is not known yet
        }
        let Some(total) = self.ledger.total(device) else { return };
        let Some(mut queue) = self.queues.remove(&device) else { return };
        let mut i = 0;
        let mut give_way = BTreeSet::new();
        while i < queue.len() && queue.iter().all(|waiting| waiting.victims.is_empty()) {
            let waiting = &mut queue[i];
            let grant = match self.grant(waiting, device, total, now) {
                Ok(Ok(grant)) => Ok(grant),
                Ok(Err(victims)) => {
                    waiting.victims.clone_from(&victims);
                    victims.into_iter().for_each(|victim| self.ask_to_go(victim, true, out));
                    break;
                }
                Err(no_room) => match self.waits(waiting, &no_room, total, now) {
                    Some(over) => {
                        give_way.extend(over);
                        i += 1;
                        continue;
                    }
                    None => Err(no_room),
                },
            };
            self.n_refused += u64::from(grant.is_err());
            let asker = queue.remove(i).expect("it was looked at").asker;
            out.push(Effect::Granted { asker, grant });
            self.publish(out);
        }
        if queue.iter().all(|waiting| waiting.victims.is_empty()) {
            self.give_way(device, &give_way, out); // else it is seen when those have gone
        }
        self.queues.insert(device, queue);
    }

    /// Could a model with weights of so many bytes ever get room in a place, where those that are in use will be idle before long? Nobody goes for
    /// the question. A device that is not open yet may have room.
    pub fn could_fit(&self, place: &Place, weights: Bytes, now: Instant) -> Result<(), NoRoom> {
        let (model, device) = place;
        let Some(total) = self.ledger.total(*device) else { return Ok(()) };
        let footprint = Footprint { weights, kv_per_token: Bytes(0), working: Bytes(0) };
        let needs = Needs { footprint, context_length: 0, context_wanted: false, running_max: 1 };
        let occupants = self.ledger.occupants(*device, model, now);
        match plan_eviction(total, &occupants, &needs, self.class_of(place), &self.config.policy) {
            Err(no_room) if !no_room.may_pass() => Err(no_room),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn class_of(&self, place: &Place) -> u32 {
        self.hosted.get(place).map_or(ModelProfile::DEFAULT_PRIORITY, |hosted| hosted.profile.residency_priority)
    }

    /// Memory for whoever waits, or those that have to go for it first, or no room.
    fn grant(&mut self, waiting: &Waiting, device: DeviceId, total: Bytes, now: Instant) -> Result<Result<Grant, Vec<Place>>, NoRoom> {
        let Waiting { place: (model, _), lease, needs, .. } = waiting;
        let class = self.class_of(&waiting.place);
        let pinned = self.hosted.get(&waiting.place).is_some_and(|hosted| hosted.pinned);
        let occupants = self.occupants_for(waiting, now);
        let Room { victims, free } = plan_eviction(total, &occupants, needs, class, &self.config.policy)?;
        if !victims.is_empty() {
            return Ok(Err(victims.into_iter().map(|model| (model, device)).collect()));
        }
        let no_room = |needed, available| NoRoom { needed, available, total, stays: Vec::new() };
        let plan = plan(needs, free).map_err(|needed| no_room(needed, free))?;
        let bytes = needs.bytes(&plan);
        let resident = Resident { lease: *lease, bytes, class, pinned, idle_since: None };
        self.ledger.promise(device, model, resident).map_err(|exceeds| no_room(exceeds.needed, exceeds.available))?;
        self.cycles.entry(device).or_default().here.insert(*lease);
        if let Some(hosted) = self.hosted.get_mut(&waiting.place) {
            (hosted.granted_at, hosted.turn_until) = (Some(now), None);
        }
        Ok(Ok(Grant { plan, bytes }))
    }

    fn on_released(&mut self, place: &Place, lease: Lease, now: Instant, out: &mut Vec<Effect>) {
        if self.ledger.release(place.1, &place.0, lease) {
            self.publish(out);
        }
        let cycles = self.cycles.entry(place.1).or_default();
        cycles.gone += u32::from(cycles.here.remove(&lease));
        // A replica that ended before it got its memory waits no more.
        let queue = self.queues.entry(place.1).or_default();
        out.extend(queue.iter().filter(|waiting| waiting.lease == lease).map(|waiting| Effect::Forget(waiting.asker)));
        queue.retain(|waiting| waiting.lease != lease);
        self.forget_victim(place, now, out);
    }

    fn on_pin(&mut self, model: &ModelId, pinned: bool, out: &mut Vec<Effect>) -> Result<(), RequestError> {
        let places: Vec<Place> = self.hosted.keys().filter(|place| place.0 == *model).cloned().collect();
        let unpins_for_later = !pinned && self.pins.get(model) == Some(&true);
        if places.is_empty() && !unpins_for_later {
            let not_here = || RequestError::invalid("model_id", format!("the model '{model}' is not on this node; load it first"));
            return Err(self.not_heard(|place| place.0 == *model).unwrap_or_else(not_here));
        }
        for place in places {
            if let Some(hosted) = self.hosted.get_mut(&place) {
                hosted.pinned = pinned;
            }
            self.note(&place, |resident| resident.pinned = pinned);
            out.push(Effect::Pinned(place, pinned));
        }
        self.pins.insert(model.clone(), pinned);
        out.push(Effect::KeepPins(self.pins.clone())); // even if it is known: it may not have been kept
        Ok(())
    }

    fn on_tick(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.dismiss_failed(|_, at| now.saturating_duration_since(at) >= FAILED_KEPT, out);
        for device in self.ledger.devices().collect::<Vec<_>>() {
            self.advance(device, now, out);
        }
        if let Some(time_to_live) = self.config.idle_unload {
            let tired = |resident: &Resident| !resident.pinned && resident.idle(now).is_some_and(|idle| idle >= time_to_live);
            let places = self.ledger.residents().filter(|(.., resident)| tired(resident));
            let places: Vec<Place> = places.map(|(device, model, _)| (model.clone(), device)).collect();
            places.into_iter().for_each(|place| self.ask_to_go(place, false, out));
        }
        for (device, cycles) in &mut self.cycles {
            let due = self.config.defrag_after_cycles > 0 && cycles.gone >= self.config.defrag_after_cycles;
            let at_rest = self.ledger.residents().filter(|(at, ..)| at == device).all(|(.., resident)| resident.idle_since.is_some());
            if due && at_rest && self.queues.get(device).is_none_or(VecDeque::is_empty) {
                *cycles = Cycles::default(); // those that are there come anew
                out.push(Effect::RestartDevice(*device));
            }
        }
    }

    fn note(&mut self, place: &Place, change: impl FnOnce(&mut Resident)) {
        if let Some(resident) = self.ledger.resident_mut(place.1, &place.0) {
            change(resident);
        }
    }

    fn publish(&self, out: &mut Vec<Effect>) {
        out.push(Effect::Publish(self.ledger.report()));
    }
}

/// What a model takes on a device, by what its files say.
pub fn needs_of(profile: &ModelProfile, facts: &ModelFacts, device: DeviceId) -> Needs {
    needs_with(profile, facts.footprint(device.kind), facts.context_length)
}

/// What a model takes that has this footprint and was made for contexts of so many tokens.
pub fn needs_with(profile: &ModelProfile, footprint: Footprint, made_for: u32) -> Needs {
    Needs {
        footprint,
        context_length: profile.context_length.map_or(made_for, |wanted| wanted.min(made_for)),
        context_wanted: profile.context_length.is_some(),
        running_max: profile.running_max,
    }
}

/// No room, in words for whoever asked (CX-53).
pub fn no_room_error(model: &ModelId, device: DeviceId, no_room: &NoRoom) -> RequestError {
    let message = |remedy| format!("the model '{model}' does not fit {device}: {no_room}; {remedy}");
    if no_room.may_pass() {
        RequestError::soon(message("it is loaded once they are idle"))
    } else {
        let remedy = "free memory, give the device a larger share, or choose a smaller model or context_length";
        RequestError::Unservable { message: message(remedy) }
    }
}

#[cfg(test)]
pub(crate) mod tests;
