//! What was decided of late, for those who ask why.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use plexus_types::{ConsideredPlace, Explanation, ModelId, RequestError, RequestId};
use tokio::time::Instant;

use super::place::place_name;
use super::policy::Decision;

/// So many requests are remembered.
const REMEMBERED: usize = 1024;

/// The decisions of the last requests.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    by_request: HashMap<RequestId, (Instant, Explanation)>,
    order: VecDeque<RequestId>,
}

impl Decisions {
    /// A request was sent to a replica, which was loaded for it if `loaded` says so. Returns why, in a line.
    pub(super) fn on_routed(
        &mut self,
        id: RequestId,
        model: &ModelId,
        decision: Decision,
        loaded: Option<Explanation>,
        now: Instant,
    ) -> String {
        let mut explanation = explain(model, &decision);
        let mut line = format!("{} of {}", explanation.decision, decision.considered.len());
        if let Some(first) = explanation.considered.first() {
            line += &format!(", {}", first.verdict);
        }
        if let Some(loaded) = &loaded {
            line += &format!("; {}", loaded.decision);
        }
        if let Some(loaded) = loaded {
            explanation.decision = format!("{}; before that {}", explanation.decision, loaded.decision);
            explanation.considered.extend(loaded.considered);
        }
        self.keep(id, explanation, now);
        line
    }

    /// A request was refused.
    pub(super) fn on_refused(&mut self, id: RequestId, model: &ModelId, error: &RequestError, now: Instant) {
        let decision = format!("it is refused: {error}");
        self.keep(id, Explanation { model: model.clone(), decision, considered: Vec::new(), age: Duration::ZERO }, now);
    }

    /// What became of a request.
    pub(super) fn get(&self, id: RequestId, now: Instant) -> Option<Explanation> {
        let (at, explanation) = self.by_request.get(&id)?;
        Some(Explanation { age: now.saturating_duration_since(*at), ..explanation.clone() })
    }

    /// A request that is sent a second time is explained by its last way, with those before it in front.
    fn keep(&mut self, id: RequestId, mut explanation: Explanation, now: Instant) {
        match self.by_request.get(&id) {
            Some((_, before)) => explanation.decision = format!("{}; then {}", before.decision, explanation.decision),
            None => self.order.push_back(id),
        }
        self.by_request.insert(id, (now, explanation));
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }
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
