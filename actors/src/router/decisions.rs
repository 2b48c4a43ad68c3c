//! What was decided of late, for those who ask why.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use plexus_types::{ConsideredPlace, Explanation, ModelId, RequestError, RequestId};
use tokio::time::Instant;

use super::place::place_name;
use super::policy::Decision;

/// So many requests are remembered, and so many placements of models.
const REMEMBERED: usize = 1024;
/// What a home said so long before a request began to wait was said for it, too.
const BELIEVED: Duration = super::loads::ENSURED_FOR;
/// So many places are told in a line: headers have their limits.
const PLACES_IN_LINE: usize = 16;

/// The decisions of the last requests, and why models were placed where they are.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    by_request: HashMap<RequestId, Kept>,
    order: VecDeque<RequestId>,
    placements: HashMap<ModelId, (Instant, Explanation)>,
}

/// What is known of a request.
#[derive(Debug)]
struct Kept {
    at: Instant,
    explanation: Explanation,
    /// Its ways so far, without that it waits now.
    ways: String,
    /// Since when it waits, if it does now.
    waits: Option<Instant>,
}

impl Decisions {
    /// A request was sent to a replica. If it has waited, it is told with it why the replica is there: as its home said, if that was `said` for those
    /// who waited, or as it was placed last. Returns why, in a line.
    pub(super) fn on_routed(
        &mut self,
        id: RequestId,
        model: &ModelId,
        decision: Decision,
        said: Option<(Instant, Explanation)>,
        now: Instant,
    ) -> String {
        let waited_since = self.by_request.get(&id).and_then(|kept| kept.waits);
        let place = place_name(&(decision.replica.node.clone(), decision.replica.device));
        let loaded = waited_since.and_then(|since| {
            let said = said.filter(|(at, said)| *at + BELIEVED >= since && chosen(said).is_none_or(|chosen| chosen == place));
            said.map(|(_, said)| said).or_else(|| self.placement(model, now).filter(|placed| chosen(placed) == Some(place.as_str())))
        });
        let mut explanation = explain(model, &decision);
        let mut line = in_a_line(&explanation);
        if let Some(loaded) = &loaded {
            line = format!("{line}; before that {}", in_a_line(loaded));
        }
        if let Some(loaded) = loaded {
            explanation.decision = format!("{}; before that {}", explanation.decision, loaded.decision);
            join(&mut explanation.considered, loaded.considered);
        }
        self.keep(id, explanation, false, now);
        line
    }

    /// Is that news of a request, that it waits for this reason?
    pub(super) fn is_new_wait(&self, id: RequestId, why: &RequestError) -> bool {
        !self.by_request.get(&id).is_some_and(|kept| kept.waits.is_some() && kept.explanation.decision.ends_with(&why.to_string()))
    }

    /// A request waits for its model to be loaded.
    pub(super) fn on_waiting(
        &mut self,
        id: RequestId,
        model: &ModelId,
        why: &RequestError,
        considered: Vec<ConsideredPlace>,
        now: Instant,
    ) {
        let decision = format!("it waits: {why}");
        self.keep(id, Explanation { model: model.clone(), decision, considered, age: Duration::ZERO }, true, now);
    }

    /// A request was refused.
    pub(super) fn on_refused(
        &mut self,
        id: RequestId,
        model: &ModelId,
        error: &RequestError,
        considered: Vec<ConsideredPlace>,
        now: Instant,
    ) {
        let decision = format!("it is refused: {error}");
        self.keep(id, Explanation { model: model.clone(), decision, considered, age: Duration::ZERO }, false, now);
    }

    /// Its client was told that a request has failed: its time is over, or it was refused, here or by a replica.
    pub(super) fn on_failed(&mut self, id: RequestId, model: &ModelId, error: &RequestError, now: Instant) {
        let text = error.to_string();
        let kept = self.by_request.get(&id);
        if kept.is_some_and(|kept| kept.ways.ends_with(&text)) {
            return; // it is known already
        }
        let considered = kept.map(|kept| kept.explanation.considered.clone()).unwrap_or_default();
        let decision = if kept.is_some_and(|kept| kept.waits.is_some()) {
            format!("it has waited in vain: {text}")
        } else {
            format!("it has failed: {text}")
        };
        self.keep(id, Explanation { model: model.clone(), decision, considered, age: Duration::ZERO }, false, now);
    }

    /// The client of a request has left. One that was served is known by its way.
    pub(super) fn on_left(&mut self, id: RequestId, now: Instant) {
        let Some(kept) = self.by_request.get(&id).filter(|kept| kept.waits.is_some()) else { return };
        let explanation = Explanation { decision: "its client has left while it waited".to_owned(), ..kept.explanation.clone() };
        self.keep(id, explanation, false, now);
    }

    /// What became of a request.
    pub(super) fn get(&self, id: RequestId, now: Instant) -> Option<Explanation> {
        let Kept { at, explanation, .. } = self.by_request.get(&id)?;
        Some(Explanation { age: now.saturating_duration_since(*at), ..explanation.clone() })
    }

    /// It was decided where a model is loaded. That it is there already says nothing new.
    pub(super) fn on_placed(&mut self, explanation: &Explanation, now: Instant) {
        if explanation.considered.iter().any(|place| place.chosen) {
            self.placements.insert(explanation.model.clone(), (now, explanation.clone()));
        }
        if self.placements.len() > REMEMBERED
            && let Some(oldest) = self.placements.iter().min_by_key(|(_, (at, _))| *at).map(|(model, _)| model.clone())
        {
            self.placements.remove(&oldest);
        }
    }

    /// Why a model was placed where it was placed last.
    pub(super) fn placement(&self, model: &ModelId, now: Instant) -> Option<Explanation> {
        let (at, explanation) = self.placements.get(model)?;
        Some(Explanation { age: now.saturating_duration_since(*at), ..explanation.clone() })
    }

    /// A request that is sent a second time is explained by its last way, with those before it in front.
    fn keep(&mut self, id: RequestId, mut explanation: Explanation, waits: bool, now: Instant) {
        let (ways, since) = match self.by_request.get(&id) {
            Some(before) => (before.ways.clone(), before.waits),
            None => {
                self.order.push_back(id);
                (String::new(), None)
            }
        };
        if !ways.is_empty() {
            explanation.decision = format!("{ways}; then {}", explanation.decision);
        }
        let ways = if waits { ways } else { explanation.decision.clone() };
        let waits = waits.then(|| since.unwrap_or(now));
        self.by_request.insert(id, Kept { at: now, explanation, ways, waits });
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }
}

/// The place that was chosen.
fn chosen(explanation: &Explanation) -> Option<&str> {
    explanation.considered.iter().find(|place| place.chosen).map(|place| place.place.as_str())
}

/// What is said of a model that is loaded, and why it was placed there, if it is still at the place that was chosen then.
pub(crate) fn with_placement(mut explanation: Explanation, placement: Option<Explanation>, holds_it: impl Fn(&str) -> bool) -> Explanation {
    let still = |placement: &Explanation| chosen(placement).is_some_and(&holds_it);
    if let Some(placement) = placement.filter(still) {
        let ago = placement.age.as_secs();
        explanation.decision = format!("{}; it was placed {ago} s ago: {}", explanation.decision, placement.decision);
        join(&mut explanation.considered, placement.considered);
    }
    explanation
}

/// Adds what was said of places when the model was placed: each place is told once, and chosen is where the request goes.
fn join(considered: &mut Vec<ConsideredPlace>, when_placed: Vec<ConsideredPlace>) {
    for ConsideredPlace { place, verdict, .. } in when_placed {
        match considered.iter_mut().find(|known| known.place == place) {
            Some(known) => known.verdict = format!("{}; when it was placed: {verdict}", known.verdict),
            None => considered.push(ConsideredPlace { place, verdict: format!("when it was placed: {verdict}"), chosen: false }),
        }
    }
}

/// A decision with the verdict on each place, the chosen one's first: `it goes to a/cpu-0 (a/cpu-0: first token expected in 9 ms; b/cpu-0: …)`.
fn in_a_line(explanation: &Explanation) -> String {
    let mut places: Vec<String> =
        explanation.considered.iter().take(PLACES_IN_LINE).map(|place| format!("{}: {}", place.place, place.verdict)).collect();
    let more = explanation.considered.len().saturating_sub(PLACES_IN_LINE);
    if more > 0 {
        places.push(format!("and {more} more"));
    }
    if places.is_empty() { explanation.decision.clone() } else { format!("{} ({})", explanation.decision, places.join("; ")) }
}

/// A choice among replicas, in words.
pub(super) fn explain(model: &ModelId, decision: &Decision) -> Explanation {
    let considered = decision.considered.iter().map(|one| ConsideredPlace {
        place: place_name(&(one.replica.node.clone(), one.replica.device)),
        verdict: match one.verdict {
            Ok(wait) => {
                let cached = if one.n_cached > 0 { format!(", about {} tokens of the prompt cached", one.n_cached) } else { String::new() };
                format!("first token expected in {:.0} ms{cached}", wait.as_secs_f64() * 1e3)
            }
            Err(why) => why.to_owned(),
        },
        chosen: one.replica == decision.replica,
    });
    let mut considered: Vec<ConsideredPlace> = considered.collect();
    considered.sort_by_key(|place| !place.chosen);
    let place = place_name(&(decision.replica.node.clone(), decision.replica.device));
    Explanation { model: model.clone(), decision: format!("it goes to {place}"), considered, age: Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId(7);

    fn model() -> ModelId {
        "m".parse().unwrap()
    }

    fn error(message: &str) -> RequestError {
        RequestError::soon(message)
    }

    fn place(chosen: bool) -> ConsideredPlace {
        ConsideredPlace { place: "a/cpu-0".into(), verdict: "fits".into(), chosen }
    }

    fn decision() -> Decision {
        let replica = plexus_types::ReplicaId { model: model(), node: "a#1".parse().unwrap(), device: "cpu-0".parse().unwrap() };
        let considered = vec![super::super::policy::Considered { replica: replica.clone(), verdict: Ok(Duration::ZERO), n_cached: 0 }];
        Decision { replica, considered }
    }

    fn placement() -> Explanation {
        let decision = "it is loaded on a/cpu-0, for which 'x' goes".to_owned();
        Explanation { model: model(), decision, considered: vec![place(true)], age: Duration::ZERO }
    }

    #[test]
    fn a_request_that_waits_is_known_once_and_then_by_what_became_of_it() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        for why in ["looking", "loading", "looking"] {
            assert!(decisions.is_new_wait(ID, &error(why)));
            decisions.on_waiting(ID, &model(), &error(why), vec![place(false)], now);
            assert!(!decisions.is_new_wait(ID, &error(why)));
        }
        let waits = decisions.get(ID, now).unwrap();
        assert!(waits.decision.starts_with("it waits: ") && !waits.decision.contains("then"), "{}", waits.decision);
        decisions.on_placed(&placement(), now);
        let line = decisions.on_routed(ID, &model(), decision(), None, now);
        let expected = "it goes to a/cpu-0 (a/cpu-0: first token expected in 0 ms); \
                        before that it is loaded on a/cpu-0, for which 'x' goes (a/cpu-0: fits)";
        assert_eq!(line, expected, "whoever waited for the load is told of it");
        let sent = decisions.get(ID, now).unwrap();
        assert!(!sent.decision.contains("waits") && sent.decision.contains("before that it is loaded on a/cpu-0"), "{}", sent.decision);
        let [place] = &sent.considered[..] else { panic!("one place is told once: {:?}", sent.considered) };
        assert_eq!((place.chosen, place.verdict.as_str()), (true, "first token expected in 0 ms; when it was placed: fits"));
    }

    #[test]
    fn a_request_is_told_of_the_load_that_it_has_waited_for_and_of_no_other() {
        let begun = Instant::now();
        let line = |placed: Option<Explanation>, said: Option<(Instant, Explanation)>, waits: bool| {
            let mut decisions = Decisions::default();
            placed.iter().for_each(|placed| decisions.on_placed(placed, begun));
            let now = begun + Duration::from_secs(3600);
            if waits {
                decisions.on_waiting(ID, &model(), &error("loading"), Vec::new(), now);
                decisions.on_waiting(ID, &model(), &error("still loading"), Vec::new(), now + Duration::from_secs(60));
            }
            decisions.on_routed(ID, &model(), decision(), said, now + Duration::from_secs(90))
        };
        let elsewhere = || Explanation { considered: vec![ConsideredPlace { place: "c/cpu-0".into(), ..place(true) }], ..placement() };
        let in_time = begun + Duration::from_secs(3601);
        let is_told = |line: String| line.contains("before that");
        assert!(is_told(line(Some(placement()), None, true)));
        assert!(!is_told(line(Some(elsewhere()), None, true)), "that was another load");
        assert!(!is_told(line(Some(placement()), None, false)), "it has not waited");
        assert!(is_told(line(None, Some((in_time, placement())), true)));
        assert!(!is_told(line(None, Some((in_time, elsewhere())), true)));
        assert!(!is_told(line(None, Some((begun, placement())), true)), "that was said long before");
        assert!(!is_told(line(None, Some((in_time, placement())), false)));
    }

    #[test]
    fn a_request_that_waited_in_vain_is_known_with_the_places_that_were_considered() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        decisions.on_waiting(ID, &model(), &error("no room"), vec![place(false)], now);
        decisions.on_failed(ID, &model(), &error("no room"), now);
        let known = decisions.get(ID, now).unwrap();
        assert!(known.decision.starts_with("it has waited in vain: ") && known.decision.ends_with("no room"), "{}", known.decision);
        assert_eq!(known.considered, [place(false)]);
        decisions.on_failed(ID, &model(), &error("no room"), now);
        assert_eq!(decisions.get(ID, now).unwrap(), known, "the same is told once");
    }

    #[test]
    fn a_request_whose_client_has_left_waits_no_more() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        decisions.on_left(ID, now);
        assert_eq!(decisions.get(ID, now), None);
        decisions.on_waiting(ID, &model(), &error("no room"), vec![place(false)], now);
        decisions.on_left(ID, now);
        let known = decisions.get(ID, now).unwrap();
        assert_eq!((known.decision.as_str(), known.considered), ("its client has left while it waited", vec![place(false)]));
    }

    #[test]
    fn a_line_tells_the_cost_of_each_place_as_far_as_a_header_has_room() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        let mut choice = decision();
        let chosen = choice.considered[0].clone();
        let other = |i: usize| super::super::policy::Considered {
            replica: plexus_types::ReplicaId { node: format!("n{i}#1").parse().unwrap(), ..chosen.replica.clone() },
            verdict: if i == 0 { Err("it is being loaded") } else { Ok(Duration::from_millis(i as u64)) },
            n_cached: 0,
        };
        choice.considered = vec![other(0), other(1), chosen.clone()];
        let line = decisions.on_routed(ID, &model(), choice.clone(), None, now);
        let expected = "it goes to a/cpu-0 (a/cpu-0: first token expected in 0 ms; n0/cpu-0: it is being loaded; \
                        n1/cpu-0: first token expected in 1 ms)";
        assert_eq!(line, expected);
        choice.considered.extend((2..40).map(other));
        let line = decisions.on_routed(ID, &model(), choice, None, now);
        assert!(line.ends_with("; and 25 more)") && line.len() < 2_000, "{line}");
    }

    #[test]
    fn a_placement_is_told_as_long_as_the_model_is_where_it_was_placed() {
        let (mut decisions, now) = (Decisions::default(), Instant::now());
        decisions.on_placed(&placement(), now);
        let there = Explanation { decision: "it is there already".into(), considered: Vec::new(), ..placement() };
        decisions.on_placed(&there, now);
        let later = now + Duration::from_secs(9);
        let told = |holds: bool| with_placement(explain(&model(), &decision()), decisions.placement(&model(), later), |_| holds);
        assert_eq!(told(true).decision, "it goes to a/cpu-0; it was placed 9 s ago: it is loaded on a/cpu-0, for which 'x' goes");
        assert_eq!(told(false).decision, "it goes to a/cpu-0");
    }
}
