//! What a replica tells of itself: to the router, to the evictor, and to whoever inspects it.

use std::sync::Arc;
use std::time::Duration;

use plexus_types::{Bytes, ModelKind, ReplicaLoad, ReplicaReport, ReplicaState};
use tokio::time::Instant;

use super::scheduler::{Counts, SPEED_BELIEVED};
use super::{ModelMsg, ModelState, Phase};
use crate::evictor::EvictorMsg;
use crate::evictor::core::Standing;
use crate::inspect::Inspection;
use crate::router::RouterMsg;

/// A load that has not changed in its counts is reported again after so long, for its speeds. What is in the prefix cache is not looked at sooner.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// What the router was told of the prefix cache.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The digests, and when they were looked at; absent until something was said.
    last: Option<(Arc<[u32]>, Instant)>,
    /// [`super::running::Batcher::prefix_changes`] then.
    changes: u64,
    /// Will it be looked at later?
    is_due: bool,
}

/// When the prefix cache is to be looked at.
#[derive(Debug, PartialEq, Eq)]
enum When {
    /// Not because of what is known now.
    Never,
    /// At once.
    Now,
    /// After so long; nobody waits for that yet.
    After(Duration),
}

impl Said {
    /// When is it to be looked at, having changed so often?
    fn when(&mut self, changes: u64, now: Instant) -> When {
        let Some((_, at)) = &self.last else { return When::Now };
        let left = REPORT_PERIOD.saturating_sub(now.saturating_duration_since(*at));
        if changes == self.changes {
            When::Never
        } else if left.is_zero() {
            When::Now
        } else if std::mem::replace(&mut self.is_due, true) {
            When::Never
        } else {
            When::After(left)
        }
    }

    /// It was looked at. Gives what it holds if that is new.
    fn on_look(&mut self, held: Arc<[u32]>, changes: u64, now: Instant) -> Option<Arc<[u32]>> {
        self.changes = changes;
        let before = self.last.replace((held.clone(), now));
        before.is_none_or(|(before, _)| before != held).then_some(held)
    }
}

impl ModelState {
    pub(super) fn load(&self) -> ReplicaLoad {
        let load = match &self.phase {
            Phase::Loaded { batcher, .. } => batcher.load(),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => ReplicaLoad::default(),
        };
        let profile = &self.args.profile;
        let embedding = self.embeds.n_requests();
        let running = load.running + embedding.min(profile.running_max);
        let waiting = load.waiting + self.encoding.len() as u32 + embedding.saturating_sub(profile.running_max);
        ReplicaLoad { running, waiting, running_max: profile.running_max, waiting_max: profile.waiting_max, ..load }
    }

    /// Tells evictor and router of itself, whatever they know: all that the one decides by, and the other.
    pub(super) fn announce(&mut self) {
        let here = |standing| {
            let profile = Box::new(self.args.profile.clone());
            self.args.evictor.tell(EvictorMsg::Here { place: self.place(), since: self.args.since, profile, standing });
        };
        match &self.phase {
            Phase::Loading { .. } => self.promised.tell(|promised| here(Standing::Loading(promised))),
            Phase::Loaded { resident, .. } => {
                here(Standing::Loaded { lease: resident.lease, bytes: resident.memory, busy: self.idle_since.is_none() });
            }
            Phase::Failed(_) => here(Standing::Failed),
            Phase::Retired => here(Standing::Going),
        }
        self.reported = None;
        self.said.last = None;
        self.report();
    }

    pub(super) fn on_prefixes_due(&mut self) {
        self.said.is_due = false;
        self.report();
    }

    /// Tells the evictor when the first request comes and when the last has ended.
    pub(super) fn note_use(&mut self) {
        let busy = self.n_present() > 0;
        if busy == self.idle_since.is_none() || !matches!(self.phase, Phase::Loaded { .. }) {
            return;
        }
        self.idle_since = (!busy).then(Instant::now);
        self.args.evictor.tell(EvictorMsg::Used(self.place(), busy));
    }

    /// The digests of what the prefix cache holds, if the router is to be told: once at first, and when they have changed, once in a period.
    fn new_prefixes(&mut self, now: Instant) -> Option<Arc<[u32]>> {
        let changes = match &self.phase {
            Phase::Loaded { batcher, .. } => batcher.prefix_changes(),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => 0,
        };
        match self.said.when(changes, now) {
            When::Never => return None,
            When::After(left) => {
                self.args.address.tell_after(left, ModelMsg::PrefixesDue);
                return None;
            }
            When::Now => {}
        }
        let held = match &mut self.phase {
            Phase::Loaded { batcher, .. } => batcher.prefixes(),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => Arc::default(),
        };
        self.said.on_look(held, changes, now)
    }

    /// Tells the router of state and load, when somebody came or left, when the last report is old, or for the prefix cache.
    pub(super) fn report(&mut self) {
        self.note_use();
        let load = self.load();
        let counts = (load.running, load.waiting);
        let now = Instant::now();
        let prefixes = self.new_prefixes(now);
        if prefixes.is_none() && self.reported.is_some_and(|(before, at)| before == counts && now - at < REPORT_PERIOD) {
            return;
        }
        self.reported = Some((counts, now));
        let (state, context_length, memory, load_time, facts) = match &self.phase {
            Phase::Loading { .. } => (ReplicaState::Loading, 0, Bytes(0), None, None),
            Phase::Loaded { resident, batcher } => {
                let context_length = batcher.prompt_max(now).unwrap_or(u32::MAX).clamp(1, resident.plan.context_length);
                if context_length < resident.plan.context_length && !std::mem::replace(&mut self.context_is_due, true) {
                    self.args.address.tell_after(SPEED_BELIEVED, ModelMsg::ContextDue); // if nothing else is reported until then
                }
                (ReplicaState::Loaded, context_length, resident.memory, Some(resident.took), Some(&resident.facts))
            }
            Phase::Failed(reason) => (ReplicaState::Failed(reason.clone()), 0, Bytes(0), None, None),
            Phase::Retired => return, // it is as good as gone
        };
        let profile = &self.args.profile;
        self.args.router.tell(RouterMsg::OwnReplica(ReplicaReport {
            model: profile.id.clone(),
            device: self.args.device,
            state,
            context_length,
            memory,
            load,
            kind: facts.map_or(ModelKind::Generate, |facts| facts.kind),
            residency_priority: profile.residency_priority,
            pinned: profile.pinned,
            idle: self.idle_since.map(|since| now.saturating_duration_since(since)),
            load_time,
            progress: match self.phase {
                Phase::Loading { progress } => progress,
                Phase::Loaded { .. } => 1.0,
                Phase::Failed(_) | Phase::Retired => 0.0,
            },
            prefixes,
            digest: facts.and_then(|facts| facts.digest),
            tools: facts.is_some_and(|facts| facts.tools),
            reasoning: facts.is_some_and(|facts| facts.reasoning),
        }));
    }

    /// A speed at which prompts were read is believed for a while only, and so is the context that follows from it.
    pub(super) fn on_context_due(&mut self) {
        self.context_is_due = false;
        self.reported = None;
        self.report();
    }

    pub(super) fn inspect(&self) -> Inspection {
        let load = self.load();
        let (state, counts, n_cancelled, (available, remembered)) = match &self.phase {
            Phase::Loading { .. } => ("loading".to_owned(), Counts::default(), 0, (0, 0)),
            Phase::Retired => ("going".to_owned(), Counts::default(), 0, (0, 0)),
            Phase::Failed(reason) => (format!("failed: {reason}"), Counts::default(), 0, (0, 0)),
            Phase::Loaded { batcher, .. } => ("loaded".to_owned(), batcher.counts(), batcher.n_cancelled, batcher.blocks()),
        };
        let counters = [
            ("running", u64::from(load.running)),
            ("waiting", u64::from(load.waiting)),
            ("done", counts.ended),
            ("cancelled", n_cancelled),
            ("refused", self.rejected.total()),
            ("embedded_pieces", self.embeds.pieces()),
            ("cached_tokens", counts.cached_tokens),
            ("preemptions", counts.preemptions),
            ("guessed", counts.guessed),
            ("guessed_right", counts.guessed_right),
            ("drafted", counts.drafted),
            ("drafted_right", counts.drafted_right),
            ("blocks_available", u64::from(available)),
            ("blocks_remembered", u64::from(remembered)),
            ("prefixes_said", self.said.last.as_ref().map_or(0, |(said, _)| said.len() as u64)),
        ];
        Inspection::new(&state, counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_cache_is_told_of_at_first_and_then_once_in_a_period_when_it_has_changed() {
        let (mut said, begun) = (Said::default(), Instant::now());
        let after = |ms| begun + Duration::from_millis(ms);
        assert_eq!(said.when(0, begun), When::Now);
        assert_eq!(said.on_look(Arc::default(), 0, begun), Some(Arc::default()), "that there is nothing is news, too");
        assert_eq!(said.when(0, after(5000)), When::Never);
        assert_eq!(said.when(1, after(400)), When::After(Duration::from_millis(600)));
        assert_eq!(said.when(2, after(500)), When::Never, "somebody waits already");
        said.is_due = false;
        assert_eq!(said.when(2, after(1000)), When::Now);
        assert_eq!(said.on_look([7].into(), 2, after(1000)), Some([7].into()));
        assert_eq!(
            (said.when(3, after(2000)), said.on_look([7].into(), 3, after(2000))),
            (When::Now, None),
            "a change that changed nothing"
        );
    }
}
