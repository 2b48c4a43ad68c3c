//! Why a model, or a request, is where it is: asks this node, and the others for what it does not know.

use futures::future::join_all;
use plexus_types::{Explanation, ModelId, NodeId, ReplicaState, RequestId};

use super::{ACTOR_DEADLINE, ClusterInference, PEER_DEADLINE};
use crate::messages::Question;
use crate::router::RouterMsg;
use crate::router::decisions::with_placement;
use crate::router::place::place_name;

impl ClusterInference {
    /// Why a model, or a request, is where it is: what this node knows, or else the others.
    pub(super) async fn explained(&self, subject: &str) -> Option<Explanation> {
        let id = subject.rsplit(['-', '_']).next().filter(|id| id.len() == 32).and_then(|id| u128::from_str_radix(id, 16).ok());
        if let Some(id) = id.map(RequestId) {
            let here = self.nodes.ask(self.nodes.me(), Question::Explain(id), ACTOR_DEADLINE).await;
            if let Ok(Some(explanation)) = here {
                return Some(explanation);
            }
            return self.explained_by(self.nodes.others(), &Question::Explain(id)).await.into_iter().next();
        }
        let model: ModelId = subject.parse().ok()?;
        let asked = model.clone();
        let explanation = self.router.call(|reply| RouterMsg::ExplainModel(asked, reply), ACTOR_DEADLINE).await.ok().flatten()?;
        let model = self.resolve(&model);
        let is_there = |state: &ReplicaState| !matches!(state, ReplicaState::Failed(_));
        let places: Vec<String> = {
            let view = self.view.read();
            let there = view.candidates(&model).filter(|one| is_there(&one.report.state));
            there.map(|one| place_name(&(one.id.node, one.id.device))).collect()
        };
        if places.is_empty() {
            return Some(explanation);
        }
        let placement = self.placement(&model).await;
        Some(with_placement(explanation, placement, |place| places.iter().any(|known| known == place)))
    }

    /// Why a model was placed where it was placed last, by whoever knows of the latest time.
    async fn placement(&self, model: &ModelId) -> Option<Explanation> {
        self.explained_by(self.nodes.all(), &Question::Placement(model.clone())).await.into_iter().min_by_key(|placement| placement.age)
    }

    /// What those of the nodes say who know.
    async fn explained_by(&self, nodes: Vec<NodeId>, question: &Question) -> Vec<Explanation> {
        let answers = join_all(nodes.iter().map(|node| self.nodes.ask(node, question.clone(), PEER_DEADLINE))).await;
        answers.into_iter().filter_map(|answer: Result<Option<Explanation>, _>| answer.ok().flatten()).collect()
    }
}
