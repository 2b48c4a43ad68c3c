//! Where a request goes: a pure function of the view.

use std::cmp::Reverse;
use std::time::Duration;

use plexus_types::{ModelId, NodeState, ReplicaId, ReplicaState, RequestError};
use rand::Rng;
use rand::seq::index;

use super::view::{Candidate, ClusterView};
use crate::prefix::PromptDigests;

/// What a request costs that must cross to another node, in seconds. Measured over loopback; it decides only between equals.
const HOP_S: f64 = 0.000_5;
/// Tokens that an answer has when nothing better is known, to estimate how soon a place becomes free.
const TYPICAL_ANSWER_TOKENS: f64 = 128.0;
/// Speeds taken where none has been measured yet, tokens per second.
const ASSUMED_PREFILL: f64 = 1_000.0;
const ASSUMED_DECODE: f64 = 50.0;
/// When to ask again for a model that is being loaded or whose nodes are out of reach.
const RETRY_SOON: Duration = Duration::from_secs(2);
/// When to ask again for a model that no node could load: not before somebody has mended something.
const RETRY_LATE: Duration = Duration::from_secs(60);
const NOT_LOADED: &str = "it could not be loaded";
const LOADING: &str = "it is being loaded";
const RECOVERING: &str = "it is being brought back after a failure";
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
/// [`RequestError::Unavailable`] if some do, or did before their link was lost, but none can serve it now.
pub fn route(
    view: &ClusterView,
    model: &ModelId,
    prompt: &PromptDigests,
    tried: &[ReplicaId],
    rng: &mut impl Rng,
) -> Result<Decision, NoReplica> {
    // One that was not measured yet counts as the fastest, or it would never be asked and measured.
    let fastest = view.candidates(model).map(|one| one.report.load.prefill_tokens_per_s).fold(0.0, f32::max);
    let assumed = f64::from(fastest).max(ASSUMED_PREFILL);
    let considered: Vec<Considered> = view
        .candidates(model)
        .map(|candidate| {
            let n_cached = prompt.n_cached(candidate.prefixes());
            let n_unread = prompt.n_tokens().saturating_sub(n_cached).max(1);
            Considered { verdict: verdict(&candidate, n_unread, assumed, tried), replica: candidate.id, n_cached }
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

/// Would a request wait longer for a place at the best replica than another replica takes to load? The number of replicas that are wanted then.
pub fn replicas_wanted(view: &ClusterView, model: &ModelId) -> Option<u32> {
    let replicas_max = view.catalogue().models.get(model)?.profile.replicas_max;
    let mut n_replicas = 0;
    let (mut least_wait_s, mut load_s) = (f64::INFINITY, None::<f64>);
    for candidate in view.candidates(model).filter(|one| one.node == NodeState::Up) {
        match candidate.report.state {
            ReplicaState::Loaded => {
                n_replicas += 1;
                least_wait_s = least_wait_s.min(place_wait_s(&candidate));
            }
            ReplicaState::Loading | ReplicaState::Recovering => return None, // help is on its way
            ReplicaState::Failed(_) => {}
        }
        load_s = load_s.into_iter().chain(candidate.report.load_time.map(|time| time.as_secs_f64())).reduce(f64::max);
    }
    (n_replicas < replicas_max && least_wait_s.is_finite() && least_wait_s > load_s?).then_some(n_replicas + 1)
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
    if tried.contains(&candidate.id) {
        return Err(TRIED);
    }
    Ok(expected_first_token(candidate, n_unread, assumed))
}

/// Until one of those ahead has ended, and its place is free.
fn place_wait_s(candidate: &Candidate<'_>) -> f64 {
    let load = &candidate.report.load;
    let running = load.running.saturating_add(candidate.sent).saturating_add(1);
    let ahead = load.waiting.saturating_add(running.saturating_sub(load.running_max));
    f64::from(ahead) * TYPICAL_ANSWER_TOKENS / measured(load.decode_tokens_per_s, ASSUMED_DECODE)
}

fn measured(speed: f32, assumed: f64) -> f64 {
    if speed > 0.0 { f64::from(speed) } else { assumed }
}

/// Waiting for a place, then reading what of the prompt is not cached beside what runs, plus the hop. `assumed` is the speed of reading of one that
/// was not measured.
fn expected_first_token(candidate: &Candidate<'_>, n_unread: u32, assumed: f64) -> Duration {
    let load = &candidate.report.load;
    let busy = load.running.saturating_add(candidate.sent);
    let prompt_s = f64::from(n_unread) / measured(load.prefill_tokens_per_s, assumed) * (1.0 + f64::from(busy));
    let hop_s = if candidate.local { 0.0 } else { HOP_S };
    Duration::try_from_secs_f64(place_wait_s(candidate) + prompt_s + hop_s).unwrap_or(Duration::MAX) // others may say what they like
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
        .filter_map(|one| one.verdict.as_ref().err().map(|why| format!("{} on {}: {why}", one.replica.device, one.replica.node.name)))
        .collect();
    let hopeless = considered.iter().all(|one| one.verdict == Err(NOT_LOADED));
    let error = RequestError::Unavailable {
        message: format!("the model '{model}' cannot be served now ({})", reasons.join("; ")),
        retry_after: if hopeless { RETRY_LATE } else { RETRY_SOON },
    };
    let is = |why| considered.iter().any(|one| one.verdict == Err(why));
    if is(LOADING) {
        NoReplica::Loading(error)
    } else if listed && !is(RECOVERING) && !is(TRIED) {
        NoReplica::Cold
    } else {
        NoReplica::Refused(error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use plexus_types::{NodeId, Prompt, ReplicaReport};
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tokio::time::Instant;

    use super::super::view::tests::{facts, replica, summary};
    use super::*;
    use crate::inbound::{ClusterChange, PeerChange};

    fn model() -> ModelId {
        "pip".parse().unwrap()
    }

    fn view(own: Option<ReplicaReport>, others: &[(&str, ReplicaReport)]) -> ClusterView {
        let mut view = ClusterView::new("test".into(), facts("a"));
        if let Some(own) = own {
            view.on_own_replica(own, SystemTime::now());
        }
        for (name, report) in others {
            let id: NodeId = facts(name).id;
            view.on_cluster_change(ClusterChange::Up(facts(name)));
            view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
            view.on_summary(&id, summary(1, vec![report.clone()]), Instant::now(), SystemTime::now());
        }
        view
    }

    fn go(view: &ClusterView, tried: &[ReplicaId]) -> Result<Decision, NoReplica> {
        route(view, &model(), &PromptDigests::of_length(40), tried, &mut StdRng::seed_from_u64(7))
    }

    #[test]
    fn a_model_that_nobody_has_does_not_exist() {
        // CX-40 (4)
        assert!(matches!(go(&view(None, &[]), &[]), Err(NoReplica::Refused(RequestError::ModelNotFound { .. }))));
    }

    #[test]
    fn a_model_whose_only_node_has_lost_its_link_is_refused_for_now_and_unknown_once_the_node_is_gone() {
        // CX-48
        let mut view = view(None, &[("b", replica("pip", ReplicaState::Loaded))]);
        view.on_peer_change(&PeerChange::Down { id: facts("b").id, why: "cut".into() }, Instant::now());
        assert!(matches!(go(&view, &[]), Err(NoReplica::Refused(RequestError::Unavailable { .. }))));
        view.on_cluster_change(ClusterChange::Gone(facts("b").id));
        assert!(matches!(go(&view, &[]), Err(NoReplica::Refused(RequestError::ModelNotFound { .. }))));
    }

    #[test]
    fn of_two_equal_replicas_the_local_one_is_chosen() {
        let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
        assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "a");
    }

    #[test]
    fn a_busy_replica_loses_against_an_idle_one_elsewhere() {
        // CX-40 (1): least busy
        let mut busy = replica("pip", ReplicaState::Loaded);
        busy.load.running = 8;
        busy.load.waiting = 3;
        let view = view(Some(busy), &[("b", replica("pip", ReplicaState::Loaded))]);
        assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "b");
    }

    #[test]
    fn one_that_was_not_measured_is_taken_for_as_fast_as_the_fastest_and_so_gets_measured() {
        let read_at = |tokens_per_s| {
            let mut report = replica("pip", ReplicaState::Loaded);
            report.load.prefill_tokens_per_s = tokens_per_s;
            report
        };
        let view = view(Some(read_at(0.0)), &[("b", read_at(100.0)), ("c", read_at(5_000.0))]);
        let decision = route(&view, &model(), &conversation(400), &[], &mut StdRng::seed_from_u64(1)).unwrap();
        let wait = |name: &str| decision.considered.iter().find(|one| one.replica.node.name.as_str() == name).unwrap().verdict.unwrap();
        assert!(wait("a") < wait("c") && wait("c") < wait("b"), "{decision:?}");
    }

    #[test]
    fn whatever_others_say_of_themselves_is_weighed() {
        let mut absurd = replica("pip", ReplicaState::Loaded);
        absurd.load = plexus_types::ReplicaLoad {
            running: u32::MAX,
            waiting: u32::MAX,
            decode_tokens_per_s: f32::MIN_POSITIVE,
            prefill_tokens_per_s: f32::MIN_POSITIVE,
            ..absurd.load
        };
        let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", absurd)]);
        assert_eq!(go(&view, &[]).unwrap().replica.node.name.as_str(), "a");
    }

    #[test]
    fn requests_just_sent_count_before_the_replica_reports_them() {
        let mut view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
        let first = go(&view, &[]).unwrap().replica;
        view.on_sent(&first);
        assert_ne!(go(&view, &[]).unwrap().replica, first);
    }

    #[test]
    fn a_replica_that_failed_the_request_is_not_asked_again() {
        let view = view(Some(replica("pip", ReplicaState::Loaded)), &[("b", replica("pip", ReplicaState::Loaded))]);
        let first = go(&view, &[]).unwrap().replica;
        let second = go(&view, std::slice::from_ref(&first)).unwrap().replica;
        assert_ne!(first, second);
        assert!(matches!(go(&view, &[first, second]), Err(NoReplica::Refused(RequestError::Unavailable { .. }))));
    }

    /// Some six replicas, of which one holds so many digests of the prompt and has so many requests waiting.
    fn view_with_a_holder(prompt: &PromptDigests, n_held: usize, waiting: u32) -> ClusterView {
        let mut holder = replica("pip", ReplicaState::Loaded);
        let mut held = prompt.digests()[..n_held].to_vec();
        held.extend([1, 2, 3]);
        held.sort_unstable();
        holder.prefixes = Some(held.into());
        holder.load.waiting = waiting;
        let other = || replica("pip", ReplicaState::Loaded);
        view(Some(other()), &[("b", other()), ("c", other()), ("d", holder), ("e", other()), ("f", other())])
    }

    fn conversation(bytes: usize) -> PromptDigests {
        PromptDigests::of(&Prompt::Text("What was said before. ".repeat(bytes / 22)))
    }

    fn chosen(view: &ClusterView, prompt: &PromptDigests, seed: u64) -> Considered {
        let decision = route(view, &model(), prompt, &[], &mut StdRng::seed_from_u64(seed)).unwrap();
        decision.considered.into_iter().find(|one| one.replica == decision.replica).unwrap()
    }

    #[test]
    fn whoever_is_drawn_a_conversation_goes_where_it_is_held() {
        let prompt = conversation(8000);
        let view = view_with_a_holder(&prompt, 8, 0);
        for seed in 0..50 {
            let chosen = chosen(&view, &prompt, seed);
            assert_eq!((chosen.replica.node.name.as_str(), chosen.n_cached), ("d", 1024));
            let nine_hundred_and_some_tokens = Duration::from_millis(900)..Duration::from_millis(1000);
            assert!(nine_hundred_and_some_tokens.contains(&chosen.verdict.unwrap()), "at the assumed speed: {chosen:?}");
        }
    }

    #[test]
    fn where_waiting_takes_longer_than_reading_it_anew_a_conversation_goes_elsewhere() {
        let prompt = conversation(8000);
        let view = view_with_a_holder(&prompt, 8, 1); // a typical answer takes 2.56 s; 1,024 tokens are read in 1.024 s
        let nodes: std::collections::BTreeSet<String> =
            (0..50).map(|seed| chosen(&view, &prompt, seed).replica.node.name.to_string()).collect();
        assert!(!nodes.contains("d") && nodes.len() > 2, "{nodes:?}");
        let long = conversation(32_000);
        let view = view_with_a_holder(&long, 24, 1); // 4,096 tokens take longer than the wait
        assert!((0..50).all(|seed| chosen(&view, &long, seed).replica.node.name.as_str() == "d"));
    }

    #[test]
    fn of_two_holders_the_one_of_the_longer_part_is_considered_and_one_that_failed_is_not() {
        let prompt = conversation(8000);
        let mut view = view_with_a_holder(&prompt, 8, 0);
        let mut shorter = replica("pip", ReplicaState::Loaded);
        shorter.prefixes = Some(prompt.digests()[..1].into());
        view.on_own_replica(shorter, SystemTime::now());
        assert!((0..50).all(|seed| chosen(&view, &prompt, seed).replica.node.name.as_str() == "d"));
        let failed = chosen(&view, &prompt, 0).replica;
        let decision = route(&view, &model(), &prompt, &[failed], &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(decision.replica.node.name.as_str(), "a");
    }

    #[test]
    fn digests_that_a_replica_no_longer_reports_count_no_more() {
        let prompt = conversation(8000);
        let mut view = view_with_a_holder(&prompt, 8, 0);
        let mut evicted = replica("pip", ReplicaState::Loaded);
        evicted.prefixes = Some([1, 2, 3].into());
        view.on_summary(&facts("d").id, summary(2, vec![evicted]), Instant::now(), SystemTime::now());
        let nodes: Vec<Considered> = (0..50).map(|seed| chosen(&view, &prompt, seed)).collect();
        assert!(nodes.iter().all(|one| one.n_cached == 0) && nodes.iter().any(|one| one.replica.node.name.as_str() != "d"));
    }

    #[test]
    fn a_model_that_is_loading_or_recovering_is_refused_with_the_reason_and_a_time() {
        // CX-48
        for (state, word) in [(ReplicaState::Loading, "being loaded"), (ReplicaState::Recovering, "brought back")] {
            let refused = match go(&view(Some(replica("pip", state)), &[]), &[]) {
                Err(NoReplica::Loading(error) | NoReplica::Refused(error)) => error,
                other => panic!("not refused: {other:?}"),
            };
            let RequestError::Unavailable { message, retry_after } = refused else { panic!("{refused}") };
            assert!(message.contains(word) && retry_after > Duration::ZERO, "{message}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_loads_the_chosen_replica_is_able_and_never_the_worse_of_two(
            loads in proptest::collection::vec((0u32..9, 0u32..65, 0.0f32..5000.0), 1..6), seed in any::<u64>(),
        ) {
            let others: Vec<(String, ReplicaReport)> = loads.iter().enumerate().map(|(i, (running, waiting, speed))| {
                let mut report = replica("pip", if i % 3 == 2 { ReplicaState::Loading } else { ReplicaState::Loaded });
                report.load.running = *running;
                report.load.waiting = *waiting;
                report.load.decode_tokens_per_s = *speed;
                (format!("n{i}"), report)
            }).collect();
            let others: Vec<(&str, ReplicaReport)> = others.iter().map(|(name, report)| (name.as_str(), report.clone())).collect();
            let view = view(None, &others);
            let decision = route(&view, &model(), &PromptDigests::of_length(400), &[], &mut StdRng::seed_from_u64(seed)).unwrap();
            let chosen = decision.considered.iter().find(|one| one.replica == decision.replica).unwrap();
            prop_assert!(chosen.verdict.is_ok());
            let able: Vec<Duration> = decision.considered.iter().filter_map(|one| one.verdict.as_ref().ok().copied()).collect();
            if able.len() >= 2 {
                let worst = able.iter().max().unwrap();
                let ties = able.iter().filter(|wait| *wait == worst).count();
                prop_assert!(chosen.verdict.as_ref().unwrap() < worst || ties > 1);
            }
        }
    }
}
