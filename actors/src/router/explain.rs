//! Why a model is where it is, and why a request was not sent anywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_types::{ConsideredPlace, Explanation, FilesState, ModelId, RequestError, RequestId};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::place::{Want, no_files, place};
use super::policy::{NoReplica, route};
use super::{Routed, RouterState, decisions};
use crate::prefix::PromptDigests;

/// After a start, nodes that have the files of a model may take so long to be seen.
const MISSING_AFTER: Duration = Duration::from_secs(3);

impl RouterState {
    /// Warns of models that this node lists and whose files are nowhere, once of each: a path may be mistyped, or a node is not up yet.
    pub(super) fn warn_of_missing(&mut self) {
        if self.started.elapsed() < MISSING_AFTER {
            return;
        }
        let view = self.args.view.read();
        let absent = view.own_catalogue().entries.iter().filter(|entry| entry.files == FilesState::Absent);
        let missing =
            absent.filter_map(|entry| Some((&entry.profile.id, no_files(&view, view.catalogue().models.get(&entry.profile.id)?)?)));
        let missing: BTreeMap<ModelId, String> = missing.map(|(model, why)| (model.clone(), why)).collect();
        for (model, why) in missing.iter().filter(|(model, _)| !self.missing.contains(*model)) {
            warn!(%model, why, "the model cannot be served");
        }
        self.missing = missing.into_keys().collect();
    }

    /// Keeps why a request is not sent anywhere, for those who ask.
    pub(super) fn on_not_routed(&mut self, id: RequestId, model: &ModelId, why: &Routed) {
        match why {
            Routed::To(_) => {}
            Routed::Refused(error) => {
                self.n_refused += 1;
                debug!(%error, "refused");
                let considered = self.considered(model);
                self.decisions.on_refused(id, model, error, considered, Instant::now());
            }
            Routed::Wait(error) if self.decisions.is_new_wait(id, error) => {
                let considered = self.considered(model);
                self.decisions.on_waiting(id, model, error, considered, Instant::now());
            }
            Routed::Wait(_) => {}
        }
    }

    fn considered(&mut self, model: &ModelId) -> Vec<ConsideredPlace> {
        self.explain(model).map(|explanation| explanation.considered).unwrap_or_default()
    }

    /// What would be decided if somebody asked for the model now.
    pub(super) fn explain(&mut self, model: &ModelId) -> Option<Explanation> {
        let view = self.args.view.read();
        let model = view.resolve(model).clone();
        match route(&view, &model, &PromptDigests::default(), &[], &mut self.rng) {
            Ok(decision) => Some(decisions::explain(&model, &decision)),
            Err(NoReplica::Refused(RequestError::ModelNotFound { .. })) => None,
            Err(no_replica) => {
                let mut explanation = match place(&view, &Want::new(&model), &self.args.policy) {
                    Ok(placement) => placement.explanation,
                    Err(unplaced) => unplaced.explanation,
                };
                explanation.decision = match no_replica {
                    NoReplica::Loading(error) | NoReplica::Refused(error) => error.to_string(),
                    NoReplica::Cold => format!("it is not loaded; when it is asked for, {}", explanation.decision),
                };
                Some(explanation)
            }
        }
    }
}
