//! How long things are expected to take, by what replicas tell of themselves and what was seen of loads.

use std::time::Duration;

use plexus_types::{Bytes, DeviceKind, FilesFetch, ModelId, ModelProfile, NodeState, ReplicaState};

use super::place::Site;
use super::view::{Candidate, ClusterView};
use crate::evictor::plan::EvictionPolicy;

/// What a request costs that must cross to another node, in seconds. Measured over loopback; it decides only between equals.
const HOP_S: f64 = 0.000_5;
/// Tokens of an answer while none has been measured.
const ASSUMED_ANSWER: f64 = 128.0;
/// Speeds taken where none has been measured yet, tokens per second.
const ASSUMED_PREFILL: f64 = 1_000.0;
const ASSUMED_DECODE: f64 = 50.0;
/// Speed of loading while none has been measured, bytes per second: that of a slow disk.
const ASSUMED_LOAD: f64 = 200e6;
/// Nobody is told to ask again sooner, nor later.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);
/// Files may take longer to come: it is known how many bytes are left, and how fast they come.
const FETCHED_MAX: Duration = Duration::from_secs(3600);
/// Until files are here of which nothing comes, or nobody knows how many bytes they have: when it is worth to ask whether that has changed.
const ASSUMED_FETCH_S: f64 = 60.0;

/// The speed of reading prompts that a replica is taken to have which was not measured yet: the fastest's, or it would never be asked and measured.
pub(super) fn prefill_of_unmeasured(candidates: &[Candidate<'_>]) -> f64 {
    let fastest = candidates.iter().map(|one| one.report.load.prefill_tokens_per_s).fold(0.0, f32::max);
    f64::from(fastest).max(ASSUMED_PREFILL)
}

/// Until one of those ahead has ended, and its place is free.
pub(super) fn place_wait_s(candidate: &Candidate<'_>) -> f64 {
    let load = &candidate.report.load;
    let running = load.running.saturating_add(candidate.sent).saturating_add(1);
    answers_s(candidate, load.waiting.saturating_add(running.saturating_sub(load.running_max)))
}

/// Waiting for a place, then reading what of the prompt is not cached beside what runs, plus the hop. `assumed` is the speed of reading of one that
/// was not measured.
pub(super) fn first_token(candidate: &Candidate<'_>, n_unread: u32, assumed: f64) -> Duration {
    let load = &candidate.report.load;
    let busy = load.running.saturating_add(candidate.sent);
    let prompt_s = f64::from(n_unread) / measured(load.prefill_tokens_per_s, assumed) * (1.0 + f64::from(busy));
    let hop_s = if candidate.local { 0.0 } else { HOP_S };
    seconds(place_wait_s(candidate) + prompt_s + hop_s)
}

/// Until a model is loaded that is being loaded, or would be now: the time that it took last; if it was never seen, its weights at the speed of others.
/// Where its files are still being fetched, that comes first.
pub(super) fn load(view: &ClusterView, model: &ModelId) -> Duration {
    let loading = view.candidates(model).filter(|one| one.node == NodeState::Up && one.report.state == ReplicaState::Loading);
    let (fetching, reading): (Vec<_>, Vec<_>) = loading.partition(|one| view.fetch_of(one).is_some());
    let done = reading.iter().map(|one| f64::from(one.report.progress)).fold(0.0, f64::max);
    let merged = view.catalogue().models.get(model);
    let awaited: Vec<&FilesFetch> = match merged {
        Some(_) if !reading.is_empty() => Vec::new(),
        Some(_) if !fetching.is_empty() => fetching.iter().filter_map(|one| view.fetch_of(one)).collect(),
        Some(merged) if !merged.holders().any(|node| view.is_up(node)) => merged.fetches().map(|(_, fetch)| fetch).collect(),
        Some(_) | None => Vec::new(),
    };
    let first = awaited.into_iter().min_by(|a, b| fetch_s(a).total_cmp(&fetch_s(b)));
    let bytes = |model: &ModelId| {
        let facts = view.catalogue().models.get(model)?.facts.as_ref()?;
        Some(facts.footprint(DeviceKind::Cpu).weights.0 as f64)
    };
    let whole = view.load_times().get(model).map(Duration::as_secs_f64).or_else(|| {
        let known = view.load_times().iter().filter_map(|(other, time)| Some((bytes(other)?, time.as_secs_f64())));
        let (all_bytes, all_s) = known.fold((0.0, 0.0), |(bytes, s), (more_bytes, more_s)| (bytes + more_bytes, s + more_s));
        let its = bytes(model).or_else(|| first.map(|fetch| fetch.total.0 as f64))?;
        Some(its / if all_s > 0.0 { all_bytes / all_s } else { ASSUMED_LOAD })
    });
    let load_s = whole.unwrap_or_default() * (1.0 - done.clamp(0.0, 1.0));
    match first {
        Some(fetch) => seconds(fetch_s(fetch) + load_s).clamp(ASK_AGAIN_MIN, FETCHED_MAX),
        None => ask_again(load_s),
    }
}

/// Until files are here that are being fetched, at the speed at which they come.
fn fetch_s(fetch: &FilesFetch) -> f64 {
    match fetch.per_second {
        Some(Bytes(speed @ 1..)) if fetch.total > Bytes(0) => fetch.total.saturating_sub(fetch.done).0 as f64 / speed as f64,
        _ => ASSUMED_FETCH_S,
    }
}

/// Until one of the replicas in these places has answered all that it has, and is no longer kept warm, and the model is loaded in its stead. Only
/// those count that may go at all.
pub(super) fn room<'a>(
    view: &ClusterView,
    model: &ModelId,
    sites: impl IntoIterator<Item = &'a Site>,
    policy: &EvictionPolicy,
) -> Duration {
    let class = view.catalogue().models.get(model).map_or(ModelProfile::DEFAULT_PRIORITY, |model| model.profile.residency_priority);
    let mut goes_s = f64::INFINITY;
    for (node, device) in sites {
        let Some(node) = view.nodes().find(|known| known.id == node) else { continue };
        let may_go = view.replicas_on(node, *device).filter(|one| !one.report.pinned && one.report.residency_priority <= class);
        // Who could go now and has not does not make room enough.
        goes_s = may_go.map(|one| goes_in_s(&one, policy.keep_warm)).filter(|s| *s > 0.0).fold(goes_s, f64::min);
    }
    let goes_s = if goes_s.is_finite() { goes_s } else { 0.0 };
    ask_again(goes_s + load(view, model).as_secs_f64())
}

/// Until a replica has answered all that it has, and nobody has used it for as long as it is kept warm.
fn goes_in_s(candidate: &Candidate<'_>, keep_warm: Duration) -> f64 {
    let load = &candidate.report.load;
    match load.running.saturating_add(load.waiting).saturating_add(candidate.sent) {
        0 => keep_warm.saturating_sub(candidate.report.idle.unwrap_or_default()).as_secs_f64(),
        present => answers_s(candidate, present) + keep_warm.as_secs_f64(),
    }
}

/// In what time a replica generates so many answers.
fn answers_s(candidate: &Candidate<'_>, n_answers: u32) -> f64 {
    let load = &candidate.report.load;
    f64::from(n_answers) * measured(load.answer_tokens, ASSUMED_ANSWER) / measured(load.decode_tokens_per_s, ASSUMED_DECODE)
}

fn measured(known: f32, assumed: f64) -> f64 {
    if known > 0.0 { f64::from(known) } else { assumed }
}

/// Others may say what they like.
fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

fn ask_again(s: f64) -> Duration {
    seconds(s).clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX)
}

#[cfg(test)]
mod tests;
