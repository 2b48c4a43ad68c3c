//! Where a request goes: a pure function of the view.

use std::cmp::Reverse;
use std::time::Duration;

use plexus_types::{FilesDigest, ModelId, NodeState, ReplicaId, ReplicaState, RequestError};
use rand::Rng;
use rand::seq::index;

use super::expected;
use super::view::{Candidate, ClusterView};
use crate::prefix::PromptDigests;

/// When to ask again for a model whose nodes are out of reach, or whose replicas have just failed.
const RETRY_SOON: Duration = Duration::from_secs(2);
const NOT_LOADED: &str = "it could not be loaded";
const LOADING: &str = "it is being loaded";
const FETCHING: &str = "its files are being fetched";
const RECOVERING: &str = "it is being brought back after a failure";
const OUTDATED: &str = "it was loaded from other files than count";
const TRIED: &str = "it has failed this request";

/// Where a request goes, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The replica chosen.
    pub replica: ReplicaId,
    /// Every replica considered, with its estimate or the reason why it was left out.
    pub considered: Vec<Considered>,
}

/// A replica in the eyes of the router.
#[derive(Debug, Clone, PartialEq)]
pub struct Considered {
    /// Which replica.
    pub replica: ReplicaId,
    /// The expected time to the first token, or why it was left out.
    pub verdict: Result<Duration, &'static str>,
    /// About how many tokens of the prompt are in its prefix cache.
    pub n_cached: u32,
}

/// No replica can be sent to.
#[derive(Debug, Clone, PartialEq)]
pub enum NoReplica {
    /// None is loaded, but the catalogue has the model: it is to be loaded.
    Cold,
    /// One is being loaded; this is said to those who will not wait.
    Loading(RequestError),
    /// The request is refused.
    Refused(RequestError),
}

/// Chooses a replica for a request: of two drawn at random among those that can serve it, and of the one that has most of the prompt in its
/// prefix cache, the one with the shortest expected time to the first token (Mitzenmacher 2001, "the power of two choices"). So a conversation
/// goes on where it is held, unless waiting there takes longer than reading it anew. Replicas in `tried` have failed this request and are left
/// out.
///
/// Refused are: [`RequestError::ModelNotFound`] if no node tells of the model;
/// [`RequestError::Unavailable`] if some do, or did before their link was lost, but none can serve it now;
/// [`RequestError::Unservable`] if none could load it.
pub fn route(
    view: &ClusterView,
    model: &ModelId,
    prompt: &PromptDigests,
    tried: &[ReplicaId],
    rng: &mut impl Rng,
) -> Result<Decision, NoReplica> {
    let candidates: Vec<Candidate<'_>> = view.candidates(model).collect();
    let assumed = expected::prefill_of_unmeasured(&candidates);
    let considered: Vec<Considered> = candidates
        .into_iter()
        .map(|candidate| {
            let n_cached = prompt.n_cached(candidate.prefixes());
            let n_unread = prompt.n_tokens().saturating_sub(n_cached).max(1);
            let verdict = match verdict(&candidate, n_unread, assumed, tried) {
                Err(LOADING) if view.fetch_of(&candidate).is_some() => Err(FETCHING),
                verdict => verdict,
            };
            Considered { verdict, replica: candidate.id, n_cached }
        })
        .collect();
    let able: Vec<(&Considered, Duration)> = considered.iter().filter_map(|one| Some((one, one.verdict.ok()?))).collect();
    if able.is_empty() {
        return Err(without_replica(view, model, &considered));
    }
    let drawn = index::sample(rng, able.len(), able.len().min(2));
    let holders = able.iter().filter(|(one, _)| one.n_cached > 0).copied();
    let holder = holders.min_by_key(|(one, wait)| (Reverse(one.n_cached), *wait));
    let (best, _) = drawn.iter().map(|i| able[i]).chain(holder).min_by_key(|(_, wait)| *wait).expect("at least one was drawn");
    Ok(Decision { replica: best.replica.clone(), considered })
}

/// Where the rest of a request goes that no replica can be sent to otherwise: to one that has `begun` it, which ends what it has although its node
/// stops, or although other files count than those, `files`, by which it was loaded and the request begun. So it goes on there until another is
/// loaded, or that one is gone.
pub fn goes_on(
    view: &ClusterView,
    model: &ModelId,
    tried: &[ReplicaId],
    begun: &[ReplicaId],
    files: Option<FilesDigest>,
) -> Option<Decision> {
    let able = |one: &Candidate<'_>| {
        let has_begun = begun.contains(&one.id) && !tried.contains(&one.id) && one.report.state == ReplicaState::Loaded;
        let is_by_its_files = one.report.digest.is_some() && one.report.digest == files;
        has_begun && one.node != NodeState::Unreachable && if one.outdated { is_by_its_files } else { one.node == NodeState::Draining }
    };
    let Candidate { id: replica, outdated, .. } = view.candidates(model).find(able)?;
    let verdict = Err(match outdated {
        true => "its files were replaced: it goes on by those by which it has begun",
        false => "its node is stopping, and no other replica is loaded: it goes on where it has begun",
    });
    Some(Decision { considered: vec![Considered { replica: replica.clone(), verdict, n_cached: 0 }], replica })
}

/// Would a request wait longer for a place at the best replica than another replica takes to load? The number of replicas that are wanted then.
pub fn replicas_wanted(view: &ClusterView, model: &ModelId) -> Option<u32> {
    let replicas_max = view.catalogue().models.get(model)?.profile.replicas_max;
    let mut n_replicas = 0;
    let (load_s, mut least_wait_s) = (view.load_times().get(model)?.as_secs_f64(), f64::INFINITY);
    for candidate in view.candidates(model).filter(|one| one.node == NodeState::Up && !one.outdated) {
        match candidate.report.state {
            ReplicaState::Loaded => {
                n_replicas += 1;
                least_wait_s = least_wait_s.min(expected::place_wait_s(&candidate));
            }
            ReplicaState::Loading | ReplicaState::Recovering => return None, // help is on its way
            ReplicaState::Failed(_) => {}
        }
    }
    (n_replicas < replicas_max && least_wait_s.is_finite() && least_wait_s > load_s).then_some(n_replicas + 1)
}

fn verdict(candidate: &Candidate<'_>, n_unread: u32, assumed: f64, tried: &[ReplicaId]) -> Result<Duration, &'static str> {
    match candidate.node {
        NodeState::Up => {}
        NodeState::Draining => return Err("its node is stopping"),
        NodeState::Unreachable => return Err("its node cannot be reached"),
    }
    match &candidate.report.state {
        ReplicaState::Loaded => {}
        ReplicaState::Loading => return Err(LOADING),
        ReplicaState::Recovering => return Err(RECOVERING),
        ReplicaState::Failed(_) => return Err(NOT_LOADED),
    }
    if candidate.outdated {
        return Err(OUTDATED);
    }
    if tried.contains(&candidate.id) {
        return Err(TRIED);
    }
    Ok(expected::first_token(candidate, n_unread, assumed))
}

fn without_replica(view: &ClusterView, model: &ModelId, considered: &[Considered]) -> NoReplica {
    let listed = view.catalogue().models.contains_key(model);
    if considered.is_empty() && !listed {
        if view.is_out_of_reach(model) {
            let message = format!("the model '{model}' cannot be served now (its node cannot be reached)");
            return NoReplica::Refused(RequestError::Unavailable { message, retry_after: RETRY_SOON });
        }
        return NoReplica::Refused(RequestError::model_not_found(model));
    }
    let reasons: Vec<String> = considered
        .iter()
        .filter_map(|one| {
            let why = *one.verdict.as_ref().err()?;
            let fetch = view.catalogue().models.get(model).and_then(|merged| merged.fetch(&one.replica.node)).filter(|_| why == FETCHING);
            let why = fetch.map_or_else(|| why.to_owned(), ToString::to_string);
            Some(format!("{} on {}: {why}", one.replica.device, one.replica.node.name))
        })
        .collect();
    let is = |why| considered.iter().any(|one| one.verdict == Err(why));
    let is_loading = is(LOADING) || is(FETCHING);
    let message = format!("the model '{model}' cannot be served now ({})", reasons.join("; "));
    let error = if considered.iter().all(|one| one.verdict == Err(NOT_LOADED)) {
        RequestError::Unservable { message }
    } else {
        let loads = is_loading || is(RECOVERING);
        RequestError::Unavailable { message, retry_after: if loads { expected::load(view, model) } else { RETRY_SOON } }
    };
    if is_loading {
        NoReplica::Loading(error)
    } else if listed && !is(RECOVERING) && !is(TRIED) {
        NoReplica::Cold
    } else {
        NoReplica::Refused(error)
    }
}

#[cfg(test)]
mod tests;
