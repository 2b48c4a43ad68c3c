//! What a replica tells of itself: to the router, to the evictor, and to whoever inspects it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use plexus_types::{Bytes, ModelKind, ReplicaLoad, ReplicaReport, ReplicaState};
use tokio::time::Instant;

use super::scheduler::Counts;
use super::{ModelState, Phase};
use crate::evictor::EvictorMsg;
use crate::inspect::Inspection;
use crate::router::RouterMsg;

/// A load that has not changed in its counts is reported again after so long, for its speeds.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

impl ModelState {
    pub(super) fn load(&self) -> ReplicaLoad {
        let load = match &self.phase {
            Phase::Loaded { batcher, .. } => batcher.load(),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => ReplicaLoad::default(),
        };
        let profile = &self.args.profile;
        let embedding = self.embedding.load(Ordering::Relaxed);
        let running = load.running + embedding.min(profile.running_max);
        let waiting = load.waiting + self.encoding.len() as u32 + embedding.saturating_sub(profile.running_max);
        ReplicaLoad { running, waiting, running_max: profile.running_max, waiting_max: profile.waiting_max, ..load }
    }

    pub(super) fn announce(&mut self) {
        if let Phase::Loaded { resident, .. } = &self.phase {
            let (profile, busy) = (Box::new(self.args.profile.clone()), self.idle_since.is_none());
            let holds = EvictorMsg::Holds { place: self.place(), profile, lease: resident.lease, bytes: resident.memory, busy };
            self.args.evictor.tell(holds);
        }
        self.reported = None;
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

    /// Tells the router of state and load, when somebody came or left, or the last report is old.
    pub(super) fn report(&mut self) {
        self.note_use();
        let load = self.load();
        let counts = (load.running, load.waiting);
        let now = Instant::now();
        if self.reported.is_some_and(|(before, at)| before == counts && now - at < REPORT_PERIOD) {
            return;
        }
        self.reported = Some((counts, now));
        let (state, context_length, memory, load_time, kind) = match &self.phase {
            Phase::Loading { .. } => (ReplicaState::Loading, 0, Bytes(0), None, ModelKind::Generate),
            Phase::Loaded { resident, load_time, .. } => {
                (ReplicaState::Loaded, resident.plan.context_length, resident.memory, Some(*load_time), resident.kind)
            }
            Phase::Failed(reason) => (ReplicaState::Failed(reason.clone()), 0, Bytes(0), None, ModelKind::Generate),
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
            kind,
            residency_priority: profile.residency_priority,
            pinned: profile.pinned,
            idle: self.idle_since.map(|since| now.saturating_duration_since(since)),
            load_time,
            progress: match self.phase {
                Phase::Loading { progress, .. } => progress,
                Phase::Loaded { .. } => 1.0,
                Phase::Failed(_) | Phase::Retired => 0.0,
            },
        }));
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
            ("refused", self.n_refused),
            ("cached_tokens", counts.cached_tokens),
            ("preemptions", counts.preemptions),
            ("guessed", counts.guessed),
            ("guessed_right", counts.guessed_right),
            ("blocks_available", u64::from(available)),
            ("blocks_remembered", u64::from(remembered)),
        ];
        Inspection::new(&state, counters)
    }
}
