//! A replica for a request that is no stream: to embed texts, or to count tokens. It waits as streams do, and keeps to [`Search`] like them.

use plexus_types::{FilesDigest, ModelId, ReplicaId, RequestError, RequestId};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{ACTOR_DEADLINE, ClusterInference, restarting};
use crate::router::{RouteRequest, Routed, RouterMsg};
use crate::streams::search::{RECOVERY_POLL, Search};

/// A request that looks for a replica.
#[derive(Debug)]
pub(super) struct Seeking {
    /// By which its client knows it, if that does.
    id: Option<RequestId>,
    question: RouteRequest,
    search: Search,
    attempts_max: u32,
}

/// A replica for a request.
#[derive(Debug)]
pub(super) struct Picked {
    /// Which.
    pub(super) replica: ReplicaId,
    /// Why that one, in a line for the client.
    pub(super) route: String,
    /// Had the model to be loaded first?
    pub(super) cold_start: bool,
    /// What it was loaded from, if that is known.
    pub(super) files: Option<FilesDigest>,
}

impl Seeking {
    /// Other parts of it were sent to these replicas, which were loaded from these files.
    pub(super) fn has_begun(&mut self, begun: Vec<ReplicaId>, files: Option<FilesDigest>) {
        (self.question.begun, self.question.files) = (begun, files);
    }

    /// The replica that was picked has failed the request: another is to be picked, or the client hears of it.
    pub(super) fn on_failed(&mut self, replica: ReplicaId, error: RequestError) -> Result<(), RequestError> {
        let had_begun = !matches!(error, RequestError::Unavailable { .. });
        self.search.on_failed(replica, error, had_begun, self.attempts_max)
    }
}

/// Until a model was loaded somewhere, or cannot be, or else until it is time to ask again.
async fn until_changed(model: &ModelId, mut changes: broadcast::Receiver<ModelId>) {
    let told = async { while changes.recv().await.is_ok_and(|changed| changed != *model) {} };
    let _or_time_is_up = tokio::time::timeout(RECOVERY_POLL, told).await;
}

impl ClusterInference {
    /// A request that looks for a replica. Whoever asks by its `id`, if its client knows one, is told why that one.
    pub(super) fn seeking(&self, id: Option<RequestId>, question: RouteRequest) -> Seeking {
        Seeking { id, question, search: Search::default(), attempts_max: self.config.attempts_max }
    }

    /// The next replica for a request. Waits while the model is being loaded, and for a while if one that has it may come back soon.
    pub(super) async fn pick(&self, seeking: &mut Seeking) -> Result<Picked, RequestError> {
        loop {
            let changes = self.view.changes(); // from before it is asked
            let question = RouteRequest { tried: seeking.search.tried.clone(), ..seeking.question.clone() };
            let picked = self.router.call(|reply| RouterMsg::Pick(seeking.id, question, reply), ACTOR_DEADLINE).await;
            let now = Instant::now();
            let waits = match picked {
                Ok((Routed::To(replica), route)) => {
                    let files = self.view.read().digest_of(&replica);
                    return Ok(Picked { replica, route, cold_start: seeking.search.is_cold_start(), files });
                }
                Ok((Routed::Wait(error), _)) => seeking.search.on_wait(error, self.config.load_timeout, now),
                Ok((Routed::Refused(error), _)) => seeking.search.on_refused(error, now),
                // It is between two lives.
                Err(error) => seeking.search.on_no_route(restarting("router", error), now),
            };
            if let Err(error) = waits {
                if let Some(id) = seeking.id {
                    self.router.tell(RouterMsg::Failed(id, seeking.question.model.clone(), error.clone()));
                }
                return Err(error);
            }
            until_changed(&seeking.question.model, changes).await;
            seeking.search.on_waited();
        }
    }
}
