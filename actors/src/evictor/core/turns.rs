//! Models take turns on a device that has no room for all that are asked for: one that waits gets the room of one that is used without a pause,
//! once that has had its turn. It takes nothing new then, ends what it has begun, and goes; those that waited there wait for it to come back.

use std::collections::BTreeSet;
use std::time::Duration;

use plexus_types::{Bytes, DeviceId};
use tokio::time::Instant;

use super::{Effect, EvictorCore, PATIENCE, Place, Waiting};
use crate::evictor::plan::{NoRoom, Occupant, Room, plan_eviction};

/// Nobody gives way to a load that has waited here for less, after it has waited for a place before that.
pub(super) const WAIT: Duration = Duration::from_secs(1);
/// The shortest turn.
const TURN_MIN: Duration = Duration::from_secs(3);
/// A turn takes at least so many times as long as the load that it began with, so that the device does not spend its time loading.
const LOADS: u32 = 4;
/// And no longer than this, or than models are kept warm.
const TURN_MAX: Duration = Duration::from_secs(60);
/// Answers that were begun are waited for so long; then the load is given up, and those that gave way take requests again.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// How long a turn takes, of a model whose load took so long.
pub(super) fn turn(load: Duration, keep_warm: Duration) -> Duration {
    (load * LOADS).clamp(TURN_MIN, TURN_MAX).max(keep_warm)
}

impl EvictorCore {
    /// The occupants of its device in the eyes of a load that waits: those that have given way are no longer used, and nothing keeps them warm.
    pub(super) fn occupants_for(&self, waiting: &Waiting, now: Instant) -> Vec<Occupant> {
        let (model, device) = &waiting.place;
        let mut occupants = self.ledger.occupants_beside(*device, model, waiting.lease, now);
        for occupant in &mut occupants {
            let gives_way = self.hosted.get(&(occupant.model.clone(), *device)).is_some_and(|hosted| hosted.gives_way);
            occupant.idle = occupant.idle.map(|idle| if gives_way { idle.max(self.config.policy.keep_warm) } else { idle });
        }
        occupants
    }

    /// Does a load that has found no room wait on? Then for those that give way to it, if any do.
    pub(super) fn waits(&self, waiting: &Waiting, no_room: &NoRoom, total: Bytes, now: Instant) -> Option<BTreeSet<Place>> {
        if !no_room.may_pass() {
            return None;
        }
        let over = self.turns_over(waiting, total, now);
        let patience = if over.is_empty() { PATIENCE } else { ENDS_WITHIN };
        (now.saturating_duration_since(waiting.since) < patience).then_some(over)
    }

    /// Whose turn is over for a load that has found no room: of those that are used, as many as it needs to go, or that went already.
    fn turns_over(&self, waiting: &Waiting, total: Bytes, now: Instant) -> BTreeSet<Place> {
        if now.saturating_duration_since(waiting.since) < WAIT {
            return BTreeSet::new();
        }
        let device = waiting.place.1;
        let mut over = BTreeSet::new();
        let mut occupants = self.occupants_for(waiting, now);
        for occupant in occupants.iter_mut().filter(|occupant| occupant.idle.is_none()) {
            let place = (occupant.model.clone(), device);
            if place != waiting.place
                && self.hosted.get(&place).is_some_and(|hosted| !hosted.leaving && hosted.turn_until.is_some_and(|until| now >= until))
            {
                occupant.idle = Some(self.config.policy.keep_warm); // the last to go
                over.insert(place);
            }
        }
        let class = self.class_of(&waiting.place);
        match plan_eviction(total, &occupants, &waiting.needs, class, &self.config.policy) {
            Ok(Room { victims, .. }) => {
                let victims = victims.into_iter().map(|model| (model, device));
                victims.filter(|place| over.contains(place) || self.hosted.get(place).is_some_and(|hosted| hosted.gives_way)).collect()
            }
            Err(_) => BTreeSet::new(),
        }
    }

    /// These give way on a device, and no others.
    pub(super) fn give_way(&mut self, device: DeviceId, places: &BTreeSet<Place>, out: &mut Vec<Effect>) {
        for (place, hosted) in self.hosted.iter_mut().filter(|(place, hosted)| place.1 == device && !hosted.leaving) {
            let gives_way = places.contains(place);
            if std::mem::replace(&mut hosted.gives_way, gives_way) != gives_way {
                out.push(Effect::GiveWay(place.clone(), gives_way));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_long_beside_the_load_that_it_began_with() {
        let s = Duration::from_secs;
        assert_eq!([turn(s(0), s(0)), turn(s(5), s(0)), turn(s(50), s(0)), turn(s(1), s(90))], [s(3), s(20), s(60), s(90)]);
    }
}
