//! Models that somebody loads, fetches, unloads or pins by hand.

use std::time::Duration;

use futures::future::join_all;
use plexus_api::service::{LoadModel, LoadedModel, Place};
use plexus_types::{DeviceId, ModelId, NodeId, NodeName, ReplicaId, ReplicaState, RequestError};
use tokio::time::Instant;

use super::{ClusterInference, PULL_DEADLINE, restarting};
use crate::messages::{Ensure, Question};
use crate::router::RouterMsg;
use crate::router::home::home_of;
use crate::router::place::place_name;

/// A failure that was there before a load was asked for shows no longer than this.
const FORMER_FAILURE: Duration = Duration::from_secs(1);
/// How often the view is looked at for a model that is being loaded.
const LOAD_POLL: Duration = Duration::from_millis(20);
/// A replica that is loaded shows, and one that starts anew shows again within this.
const GIVEN_UP: Duration = Duration::from_secs(2);
/// Loads are begun, and replicas asked to go.
const ORDER_DEADLINE: Duration = Duration::from_secs(10);

impl ClusterInference {
    /// Loads a model, and waits for it if the order says so.
    pub(super) async fn load_by_hand(&self, load: LoadModel) -> Result<LoadedModel, RequestError> {
        let LoadModel { model, place, wait } = load;
        let model = self.named(&model)?;
        if !self.view.read().catalogue().models.contains_key(&model) {
            return Err(RequestError::model_not_found(&model));
        }
        let explanation = if place == Place::default() {
            let home = home_of(&self.view.read(), &model);
            let ensure = Ensure { model: model.clone(), replicas: 1, by_hand: true };
            self.nodes.ensure(&home, ensure, ORDER_DEADLINE).await?
        } else {
            let (model, place) = (model.clone(), place.clone());
            let asked = self.router.call(|reply| RouterMsg::LoadAt(model, place, reply), ORDER_DEADLINE).await;
            asked.map_err(|error| restarting("router", error))??
        };
        // What failed elsewhere, before this, says nothing of this load.
        let chosen = explanation.considered.iter().find(|place| place.chosen).map(|place| place.place.clone());
        let asked_at = Instant::now();
        let until = asked_at + if wait { self.config.load_timeout } else { Duration::ZERO };
        let mut begun = false;
        let (mut shown, mut gone_since) = (false, None);
        loop {
            let states = self.states(&model, &place);
            shown |= !states.is_empty();
            if !shown || !states.is_empty() {
                gone_since = None;
            } else if gone_since.get_or_insert_with(Instant::now).elapsed() > GIVEN_UP {
                let message =
                    format!("the load of the model '{model}' was given up: it was unloaded, or its node stopped, before it was there");
                return Err(RequestError::soon(message));
            }
            let is = |wanted: &ReplicaState| states.iter().any(|(_, state)| state == wanted);
            // What is shown at first may be a former failure.
            begun |= is(&ReplicaState::Loading) || asked_at.elapsed() > FORMER_FAILURE;
            if is(&ReplicaState::Loaded) || Instant::now() >= until {
                return Ok(LoadedModel { loaded: is(&ReplicaState::Loaded), explanation });
            }
            let failed = states.iter().find_map(|(at, state)| match state {
                ReplicaState::Failed(why) if chosen.as_ref().is_none_or(|chosen| chosen == at) => Some(why),
                _ => None,
            });
            if let Some(why) = failed.filter(|_| begun && states.iter().all(|(_, state)| matches!(state, ReplicaState::Failed(_)))) {
                let message = format!("the model '{model}' could not be loaded: {why}");
                return Err(RequestError::Unservable { message });
            }
            tokio::time::sleep(LOAD_POLL).await;
        }
    }

    /// Brings a model's files to a node, or to this one.
    pub(super) async fn pull_by_hand(&self, model: &ModelId, node: Option<&NodeName>) -> Result<(), RequestError> {
        let model = self.named(model)?;
        let at = match node {
            Some(name) => self.reached(name)?,
            None => self.nodes.me().clone(),
        };
        self.nodes.order(&at, Question::Pull(model), PULL_DEADLINE).await
    }

    /// The node of this name, if it can be asked.
    fn reached(&self, name: &NodeName) -> Result<NodeId, RequestError> {
        let mut nodes = self.nodes.all().into_iter();
        nodes.find(|node| node.name == *name).ok_or_else(|| match self.view.read().node_named(name) {
            Ok(_) => RequestError::Unavailable {
                message: format!("the node '{name}' cannot be reached; `plexus cluster status` shows when it can"),
                retry_after: Duration::from_secs(10),
            },
            Err(unknown) => unknown,
        })
    }

    /// What the replicas of a model are doing, at a place or everywhere, each with its place's name.
    pub(super) fn states(&self, model: &ModelId, place: &Place) -> Vec<(String, ReplicaState)> {
        let view = self.view.read();
        let there = view.candidates(model).filter(|one| place.holds(&one.id));
        there.map(|one| (name_of(&one.id), one.report.state.clone())).collect()
    }

    /// Lets go a model where it is, and where it was pinned and is not loaded now, as far as the place is named. Says where it was done.
    pub(super) async fn unpin_by_hand(&self, model: &ModelId, place: &Place) -> Result<Vec<String>, RequestError> {
        let unpin = |model, _| Question::Pin(model, false);
        if let Some(name) = &place.node {
            self.reached(name)?;
        }
        let is_meant = |node: &NodeId| place.node.as_ref().is_none_or(|name| node.name == *name);
        let holders: Vec<NodeId> = self.view.read().candidates(model).map(|one| one.id.node).filter(is_meant).collect();
        let others = self.nodes.all().into_iter().filter(|node| is_meant(node) && !holders.contains(node));
        let asked = others.map(|node| async move {
            let unpinned = self.nodes.order(&node, Question::Pin(model.clone(), false), ORDER_DEADLINE).await;
            unpinned.is_ok().then(|| node.name.to_string()) // else it is not pinned there
        });
        let kept: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        if holders.is_empty() && !kept.is_empty() {
            return Ok(kept);
        }
        Ok([self.at_each(model, place, unpin).await?, kept].concat())
    }

    /// Asks every node that holds a model, as far as the place is named. Says where it was done.
    pub(super) async fn at_each(
        &self,
        model: &ModelId,
        place: &Place,
        question: impl Fn(ModelId, DeviceId) -> Question,
    ) -> Result<Vec<String>, RequestError> {
        let here: Vec<ReplicaId> = {
            let view = self.view.read();
            place.node.as_ref().map(|name| view.node_named(name)).transpose()?;
            view.candidates(model).map(|one| one.id).filter(|id| place.holds(id)).collect()
        };
        if here.is_empty() {
            let message = format!("the model '{model}' is not loaded {}; GET /v1/models says what is loaded where", in_words(place));
            return Err(RequestError::invalid("model_id", message));
        }
        let mut done = Vec::new();
        for replica in here {
            self.nodes.order(&replica.node, question(replica.model.clone(), replica.device), ORDER_DEADLINE).await?;
            done.push(name_of(&replica));
        }
        Ok(done)
    }
}

/// `node/device`
fn name_of(replica: &ReplicaId) -> String {
    place_name(&(replica.node.clone(), replica.device))
}

/// Where, for a sentence.
fn in_words(place: &Place) -> String {
    match (&place.node, place.device) {
        (Some(node), Some(device)) => format!("on {node}/{device}"),
        (Some(node), None) => format!("on {node}"),
        (None, Some(device)) => format!("on {device} of any node"),
        (None, None) => "on any node".to_owned(),
    }
}
