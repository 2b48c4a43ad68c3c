//! What replicas say of themselves: how an evictor that was restarted learns what its former life knew.
//!
//! Until each of them has spoken, it does not know what memory is free: loads wait, and orders are refused for a moment.

use std::time::Duration;

use plexus_types::{Bytes, DeviceId, ModelProfile, RequestError};
use tokio::time::Instant;

use super::{Ask, Effect, EvictorCore, Hosted, Lease, Place, Resident, Standing};

/// Replicas say at once what they hold; whoever does not within this hangs, and is not waited for.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

impl EvictorCore {
    /// The same, as the successor of one that knew these replicas: nothing is promised before they have said what they hold.
    #[must_use]
    pub fn awaiting(mut self, replicas: impl IntoIterator<Item = Place>, now: Instant) -> Self {
        self.unheard = replicas.into_iter().collect();
        self.heard_by = Some(now + HEARD_WITHIN);
        self
    }

    /// Are there replicas that have yet to say what they hold?
    pub(super) fn is_settling(&self, now: Instant) -> bool {
        !self.unheard.is_empty() && self.heard_by.is_some_and(|by| now < by)
    }

    /// Why nothing can be said of a replica, if it is one of those that have yet to speak.
    pub(super) fn not_heard(&self, concerns: impl Fn(&Place) -> bool) -> Option<RequestError> {
        let (model, device) = self.unheard.iter().find(|place| concerns(place))?;
        let message =
            format!("this node is restarting the part of itself that keeps memory: '{model}' on {device} has yet to say what it holds");
        Some(RequestError::soon(message))
    }

    /// A replica has spoken, or is gone. The last of them lets all loads go on that wait.
    pub(super) fn on_heard(&mut self, place: &Place, now: Instant, out: &mut Vec<Effect>) {
        if self.unheard.remove(place) && self.unheard.is_empty() {
            for device in self.ledger.devices().collect::<Vec<DeviceId>>() {
                self.advance(device, now, out);
            }
        }
    }

    /// A replica says that it is there, and how far it is.
    pub(super) fn on_here(
        &mut self,
        place: Place,
        since: Ask,
        profile: Box<ModelProfile>,
        standing: Standing,
        now: Instant,
        out: &mut Vec<Effect>,
    ) {
        if self.hosted.get(&place).is_some_and(|hosted| hosted.since > since) {
            return self.on_heard(&place, now, out); // an earlier one, which goes
        }
        // One that was restarted knows only how it was started first.
        let pinned = self.pins.get(&place.0).copied().unwrap_or(profile.pinned);
        if pinned != profile.pinned {
            out.push(Effect::Pinned(place.clone(), pinned));
        }
        let hosted = self.hosted.entry(place.clone()).or_insert_with(|| Hosted::new(profile, pinned, since));
        match standing {
            Standing::Failed => _ = hosted.failed_at.get_or_insert(now),
            Standing::Loading(_) | Standing::Loaded { .. } => hosted.failed_at = None, // that was a life before this
            Standing::Going => {}
        }
        match standing {
            Standing::Loading(Some((lease, bytes))) => self.hold(&place, lease, bytes, None, out),
            Standing::Loaded { lease, bytes, busy } => {
                hosted.turn_until.get_or_insert(now);
                hosted.gives_way = false; // it takes requests again when it says this
                self.hold(&place, lease, bytes, (!busy).then_some(now), out);
            }
            Standing::Going => self.dismiss(place.clone(), out),
            Standing::Loading(None) | Standing::Failed => {}
        }
        self.on_heard(&place, now, out);
    }

    /// A load says what it was promised. Its replica has said before that it is there, or says so after this, and says this, too.
    pub(super) fn on_holds(&mut self, place: &Place, lease: Lease, bytes: Bytes, out: &mut Vec<Effect>) {
        let is_known = self.ledger.resident(place.1, &place.0).is_some_and(|resident| resident.lease == lease);
        if !is_known && self.hosted.contains_key(place) {
            self.hold(place, lease, bytes, None, out);
        }
    }

    /// What is so cannot be refused, however much there is; the device may not have said yet how large it is.
    fn hold(&mut self, place: &Place, lease: Lease, bytes: Bytes, idle_since: Option<Instant>, out: &mut Vec<Effect>) {
        let pinned = self.hosted.get(place).is_some_and(|hosted| hosted.pinned);
        let resident = Resident { lease, bytes, class: self.class_of(place), pinned, idle_since };
        self.cycles.entry(place.1).or_default().here.insert(lease);
        self.ledger.hold(place.1, &place.0, resident);
        self.publish(out);
    }
}
