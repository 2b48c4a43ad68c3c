//! How replicas go: asked whether they can, dismissed when they do, and not asked again at once when they do not.

use std::time::Duration;

use plexus_types::{DeviceId, ModelId, RequestError};
use tokio::time::Instant;

use super::{Ask, Asker, Effect, EvictorCore, Place, Verdict};

/// A replica that did not say in time whether it goes is not asked again for so long: others go first.
const SILENCE: Duration = Duration::from_secs(10);

/// That a replica was asked to go.
#[derive(Debug)]
pub(super) struct Asked {
    ask: Ask,
    /// It has said since then whether it is used, which is newer than that it was in use when it was asked.
    heard: bool,
    /// It is to make room for another.
    makes_room: bool,
}

impl EvictorCore {
    /// Was a replica asked to go so that another has its room?
    pub fn makes_room(&self, place: &Place) -> bool {
        self.hosted.get(place).and_then(|hosted| hosted.asked.as_ref()).is_some_and(|asked| asked.makes_room)
    }

    /// Asks a replica to go, to make room for another or because somebody wants it gone, unless it was asked already and has not answered, or goes.
    pub(super) fn ask_to_go(&mut self, place: Place, makes_room: bool, out: &mut Vec<Effect>) {
        self.last_ask.0 += 1;
        if let Some(hosted) = self.hosted.get_mut(&place) {
            if hosted.leaving || hosted.asked.is_some() {
                return;
            }
            hosted.asked = Some(Asked { ask: self.last_ask, heard: false, makes_room });
        }
        out.push(Effect::Retire(place, self.last_ask));
    }

    /// A replica said whether it is used.
    pub(super) fn on_use(&mut self, place: &Place, busy: bool, now: Instant, out: &mut Vec<Effect>) {
        self.note(place, |resident| resident.idle_since = (!busy).then_some(now));
        if let Some(asked) = self.hosted.get_mut(place).and_then(|hosted| hosted.asked.as_mut()) {
            asked.heard = true;
        }
        if !busy {
            self.advance(place.1, now, out);
        }
    }

    /// A replica that was asked to go said whether it does, or has not said so in time.
    pub(super) fn on_retired(&mut self, place: Place, ask: Ask, verdict: Verdict, now: Instant, out: &mut Vec<Effect>) {
        let hosted = self.hosted.get_mut(&place);
        if hosted.as_ref().is_some_and(|hosted| hosted.leaving || ask < hosted.since) {
            return; // it is settled already, or was another replica
        }
        let asked = hosted.and_then(|hosted| hosted.asked.take_if(|asked| asked.ask <= ask));
        match verdict {
            // However late: it has given up all that it held, and would refuse every request until it is gone.
            Verdict::Goes => {
                self.n_evicted += 1;
                self.dismiss(place, out);
            }
            // Its requests may have ended since, and that may be known already: this comes by another way.
            Verdict::Stays => {
                if asked.is_some_and(|asked| !asked.heard) {
                    self.note(&place, |resident| resident.idle_since = None);
                }
                self.on_stays(&place, "has requests", "unload it when they have ended", now, out);
            }
            Verdict::Silent => {
                self.note(&place, |resident| resident.idle_since = resident.idle_since.map(|_| now + SILENCE));
                self.on_stays(&place, "does not answer", "try again in a moment", now, out);
            }
        }
    }

    /// A victim does not go, for now: the plan is made anew without it.
    fn on_stays(&mut self, place: &Place, why: &str, remedy: &str, now: Instant, out: &mut Vec<Effect>) {
        for (unloading, asker) in self.take_unloads(place) {
            self.unloads.retain(|(_, other)| *other != asker);
            let result = Err(RequestError::soon(format!("the model '{}' {why} on {}; {remedy}", unloading.0, self.named(unloading.1))));
            out.push(Effect::Answer { asker, result });
        }
        self.forget_victim(place, now, out);
    }

    /// Nobody waits for it any more.
    pub(super) fn forget_victim(&mut self, place: &Place, now: Instant, out: &mut Vec<Effect>) {
        for waiting in self.queues.get_mut(&place.1).into_iter().flatten() {
            waiting.victims.retain(|victim| victim != place);
        }
        self.advance(place.1, now, out);
    }

    /// What it was promised it returns by itself, before or after this. Of an earlier replica this says nothing new.
    pub(super) fn on_dismissed(&mut self, place: &Place, ask: Ask, now: Instant, out: &mut Vec<Effect>) {
        self.on_heard(place, now, out);
        if self.hosted.get(place).is_some_and(|hosted| hosted.since > ask) {
            return;
        }
        self.hosted.remove(place);
        for (_, asker) in self.take_unloads(place) {
            if self.unloads.iter().all(|(_, other)| *other != asker) {
                out.push(Effect::Answer { asker, result: Ok(()) });
            }
        }
        if self.ledger.resident(place.1, &place.0).is_none() {
            self.forget_victim(place, now, out);
        }
    }

    /// Somebody wants it gone: from one device, or from all that hold it; answered when the last of them is gone.
    pub(super) fn on_unload(&mut self, model: &ModelId, device: Option<DeviceId>, asker: Asker, out: &mut Vec<Effect>) {
        let here: Vec<Place> =
            self.hosted.keys().filter(|place| place.0 == *model && device.is_none_or(|device| device == place.1)).cloned().collect();
        if here.is_empty() {
            let not_here = || RequestError::invalid("model_id", format!("the model '{model}' is not on this node"));
            let error = self.not_heard(|place| place.0 == *model).unwrap_or_else(not_here);
            return out.push(Effect::Answer { asker, result: Err(error) });
        }
        if let Some(place) = here.iter().find(|place| self.hosted[*place].pinned) {
            let message = format!("the model '{model}' is pinned on {}; unpin it first", self.named(place.1));
            return out.push(Effect::Answer { asker, result: Err(RequestError::invalid("model_id", message)) });
        }
        self.unloads.extend(here.iter().map(|place| (place.clone(), asker)));
        for place in here {
            match self.hosted[&place].failed_at {
                Some(_) => self.dismiss(place, out),
                None => self.ask_to_go(place, false, out),
            }
        }
    }

    /// Ends a replica, and none that comes after this.
    pub(super) fn dismiss(&mut self, place: Place, out: &mut Vec<Effect>) {
        if let Some(hosted) = self.hosted.get_mut(&place) {
            hosted.leaving = true;
        }
        out.push(Effect::Dismiss(place, self.last_ask));
    }

    /// Ends replicas that could not be loaded, so that they may be loaded again: those of which `may_go` says so, by the time of their failure.
    pub(super) fn dismiss_failed(&mut self, may_go: impl Fn(&Place, Instant) -> bool, out: &mut Vec<Effect>) {
        let failed = self.hosted.iter().filter(|(place, hosted)| !hosted.leaving && hosted.failed_at.is_some_and(|at| may_go(place, at)));
        let failed: Vec<Place> = failed.map(|(place, _)| place.clone()).collect();
        failed.into_iter().for_each(|place| self.dismiss(place, out));
    }

    fn take_unloads(&mut self, place: &Place) -> Vec<(Place, Asker)> {
        let (taken, left) = std::mem::take(&mut self.unloads).into_iter().partition(|(unloading, _)| unloading == place);
        self.unloads = left;
        taken
    }
}
