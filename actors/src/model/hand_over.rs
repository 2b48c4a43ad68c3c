//! Requests that are sent on, as from a replica that went; of what they are nothing was computed yet. Those that wait at a replica that gives way to
//! another model go when it goes. Those that wait for a place here while another replica of the model has some free, which was loaded for them or has
//! become idle, go there, each once at most.

use std::time::Duration;

use plexus_types::{NodeState, ReplicaId, ReplicaState, RequestError};
use tokio::time::Instant;
use tracing::debug;

use super::{ModelState, Phase};
use crate::router::view::{Candidate, ClusterView};

/// How often it is looked for places: those that went before are told of by the other replica by then.
const HAND_OVER_EVERY: Duration = Duration::from_millis(500);

impl ModelState {
    /// Another model waits for the room of this one, or does no longer.
    pub(super) fn on_give_way(&mut self, gives_way: bool) {
        self.gives_way = gives_way;
        if let Phase::Loaded { batcher, .. } = &mut self.phase {
            batcher.set_closed(gives_way);
            self.go_on();
        }
    }

    /// Gives up all that it has not begun.
    pub(super) fn send_away(&mut self) {
        let error = self.gives_way_error();
        std::mem::take(&mut self.encoding).into_values().for_each(|arrival| arrival.sink.fail(error.clone()));
        if let Phase::Loaded { batcher, .. } = &mut self.phase {
            batcher.give_up_all(|| error.clone());
        }
    }

    /// What those hear that come while it gives way.
    pub(super) fn gives_way_error(&self) -> RequestError {
        RequestError::soon(format!("the model '{}' makes room for another on '{}'", self.args.profile.id, self.args.ingresses.me.name))
    }

    /// Gives up as many of those that wait as others have places for.
    pub(super) fn hand_over(&mut self) {
        let now = Instant::now();
        let is_early = self.handed_over.is_some_and(|before| now.saturating_duration_since(before) < HAND_OVER_EVERY);
        let Phase::Loaded { resident, batcher } = &mut self.phase else { return };
        let n_without_place = batcher.n_without_place(self.args.profile.running_max);
        if is_early || n_without_place == 0 {
            return;
        }
        self.handed_over = Some(now);
        let me = ReplicaId { node: self.args.ingresses.me.clone(), device: self.args.device, model: self.args.profile.id.clone() };
        let n_free = places_elsewhere(&self.args.view.read(), &me, resident.plan.context_length) as usize;
        if n_free > 0 {
            debug!(replica = %me, n_free, n_without_place, "another replica has places free: those that wait here go there");
            let message = format!("the model '{}' has places free elsewhere", me.model);
            batcher.give_up(n_free.min(n_without_place), || RequestError::soon(message.clone()));
        }
    }
}

/// Places in the batches of other replicas that nobody has or waits for, where the context is no shorter than here.
fn places_elsewhere(view: &ClusterView, me: &ReplicaId, context_length: u32) -> u32 {
    let is_able = |one: &Candidate<'_>| {
        one.id != *me
            && one.node == NodeState::Up
            && !one.outdated
            && one.report.state == ReplicaState::Loaded
            && one.report.context_length >= context_length
    };
    let free = |one: Candidate<'_>| {
        let load = &one.report.load;
        load.running_max.saturating_sub(load.running.saturating_add(load.waiting).saturating_add(one.sent))
    };
    view.candidates(&me.model).filter(is_able).map(free).fold(0, u32::saturating_add)
}
