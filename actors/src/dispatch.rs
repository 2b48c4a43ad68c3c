//! Where what other nodes say is delivered: each message to the actor that it concerns.

use async_trait::async_trait;
use plexus_types::{NodeId, RequestError};

use crate::address::Address;
use crate::inbound::{ClusterChange, Inbound, PeerChange};
use crate::inference::{COUNT_DEADLINE, EMBED_DEADLINE, own_actors};
use crate::link::LinkMsg;
use crate::messages::{Answer, Notice, Question, StreamNotice};
use crate::model::sink::Ingresses;
use crate::model::{LocalModels, ModelMsg};
use crate::node::NodeMsg;
use crate::router::RouterMsg;
use crate::streams::StreamsMsg;

/// Delivers to the actors of this node.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The root.
    pub node: Address<NodeMsg>,
    /// Links to the other nodes.
    pub link: Address<LinkMsg>,
    /// The view.
    pub router: Address<RouterMsg>,
    /// Streams whose client is here.
    pub streams: Address<StreamsMsg>,
    /// The models of this node.
    pub models: LocalModels,
    /// Where their events go.
    pub ingresses: Ingresses,
}

#[async_trait]
impl Inbound for Dispatch {
    async fn answer(&self, _from: &NodeId, question: Question) -> Answer {
        match question {
            Question::Ping => Answer::Pong { received_bytes: 0 },
            Question::Actors => Answer::Actors(own_actors(&self.node).await.unwrap_or_default()),
            Question::CountTokens(request) => {
                let Some(model) = self.models.get(&request.model) else {
                    return Answer::CountTokens(Err(RequestError::model_not_found(&request.model)));
                };
                let lost = |_| RequestError::Lost { message: "the model is being restarted".into() };
                let counted = model.call(|reply| ModelMsg::CountTokens(request, reply), COUNT_DEADLINE).await;
                Answer::CountTokens(counted.map_err(lost).flatten())
            }
            Question::Embed(request) => {
                let Some(model) = self.models.get(&request.model) else {
                    return Answer::Embed(Err(RequestError::model_not_found(&request.model)));
                };
                let lost = |_| RequestError::Lost { message: "the model is being restarted".into() };
                let embedded = model.call(|reply| ModelMsg::Embed(request, reply), EMBED_DEADLINE).await;
                Answer::Embed(embedded.map_err(lost).flatten())
            }
        }
    }

    fn notice(&self, from: &NodeId, notice: Notice) {
        match notice {
            Notice::Summary(summary) => self.router.tell(RouterMsg::Summary(from.clone(), summary)),
            order @ (Notice::Generate(_) | Notice::Cancel { .. } | Notice::Credit { .. } | Notice::Forget) => {
                self.models.order(&self.ingresses, from, order);
            }
        }
    }

    fn events(&self, from: &NodeId, events: Vec<StreamNotice>) {
        self.streams.tell(StreamsMsg::Events { from: from.clone(), events });
    }

    fn cluster_changed(&self, change: ClusterChange) {
        self.link.tell(LinkMsg::ClusterChange(change.clone()));
        self.router.tell(RouterMsg::ClusterChange(change));
    }

    fn peer_changed(&self, change: PeerChange) {
        if let PeerChange::Down { id, .. } = &change {
            self.models.ingress_lost(id);
        }
        self.router.tell(RouterMsg::PeerChange(change));
    }
}
