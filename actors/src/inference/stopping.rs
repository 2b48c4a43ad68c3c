//! What a node that stops says to those who still come.

use std::time::Duration;

use plexus_types::{ModelId, NodeName, NodeState, ReplicaState, RequestError};

use super::is_known;
use crate::router::place::feasible_on;
use crate::router::view::ClusterView;

/// When the node, or another that has its work, is there again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a request for a model is not taken: this node stops, and no other can serve the model. Nothing is said of models that nobody lists, and
/// while another node has it or could load it, which answers then.
pub(super) fn refusal(view: &ClusterView, model: &ModelId) -> Option<RequestError> {
    let listed = view.catalogue().models.get(model);
    if !view.own().draining || !is_known(view, model) {
        return None;
    }
    let serves = |state: &ReplicaState| !matches!(state, ReplicaState::Failed(_));
    let held = view.candidates(model).any(|one| one.node == NodeState::Up && serves(&one.report.state));
    if held || listed.is_some_and(|listed| !feasible_on(view, listed).is_empty()) {
        return None;
    }
    let message = format!("the node '{}' is stopping, and no other node can serve the model '{model}'", view.me().name);
    Some(RequestError::Unavailable { message, retry_after: RETRY_AFTER })
}

/// Why nothing more is taken: this node is about to end.
pub(super) fn closed(me: &NodeName) -> RequestError {
    let message = format!("the node '{me}' is stopping and takes nothing more; ask another node");
    RequestError::Unavailable { message, retry_after: RETRY_AFTER }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use plexus_types::{Bytes, Catalogue, CatalogueEntry, DeviceReport, FilesState, ModelProfile, ModelSource, NodeSummary, ReplicaReport};
    use tokio::time::Instant;

    use super::*;
    use crate::evictor::core::tests::facts as known;
    use crate::inbound::{ClusterChange, PeerChange};
    use crate::router::view::tests::{facts, replica};

    fn devices() -> Vec<DeviceReport> {
        vec![DeviceReport { id: "cpu-0".parse().unwrap(), name: String::new(), memory_total: Bytes::mib(1 << 20), memory_used: Bytes(0) }]
    }

    /// The view of `a`, which holds and lists the model, and is stopping. The model may be held by these nodes only, or by any.
    fn stopping(pinned_on: &[&str]) -> ClusterView {
        let pinned_on = pinned_on.iter().map(|name| name.parse().unwrap()).collect();
        let profile = ModelProfile { pinned_on, ..ModelProfile::new("m".parse().unwrap(), ModelSource::Path("/m.gguf".into())) };
        let entry = CatalogueEntry { profile, found: false, files: FilesState::Present(known(40)) };
        let mut view = ClusterView::new("test".into(), facts("a"));
        view.on_own_catalogue(Catalogue { revision: 1, entries: vec![entry], ..Catalogue::default() }, SystemTime::now());
        view.on_own_devices(devices());
        view.on_own_replica(replica("m", ReplicaState::Loaded), SystemTime::now());
        view.on_draining();
        view
    }

    /// Another node, with these replicas.
    fn with_another(mut view: ClusterView, replicas: Vec<ReplicaReport>) -> ClusterView {
        let id = facts("b").id;
        view.on_cluster_change(ClusterChange::Up(facts("b")));
        view.on_peer_change(&PeerChange::Up(id.clone()), Instant::now());
        let summary = NodeSummary { revision: 1, devices: devices(), replicas, draining: false };
        view.on_summary(&id, summary, Instant::now(), SystemTime::now());
        view
    }

    fn is_refused(view: &ClusterView) -> bool {
        refusal(view, &"m".parse().unwrap()).is_some()
    }

    #[test]
    fn a_node_that_stops_alone_refuses_what_it_serves_and_says_when_to_come_back() {
        let Some(RequestError::Unavailable { message, retry_after }) = refusal(&stopping(&[]), &"m".parse().unwrap()) else {
            panic!("it is taken")
        };
        assert_eq!(message, "the node 'a' is stopping, and no other node can serve the model 'm'");
        assert_eq!(retry_after, RETRY_AFTER);
    }

    #[test]
    fn what_another_node_has_or_could_load_is_taken_and_what_it_cannot_is_refused() {
        let with_replica = |state| with_another(stopping(&["a"]), vec![replica("m", state)]);
        assert!(!is_refused(&with_replica(ReplicaState::Loaded)));
        assert!(!is_refused(&with_replica(ReplicaState::Loading)));
        assert!(is_refused(&with_replica(ReplicaState::Failed("broken".into()))));
        assert!(is_refused(&with_another(stopping(&["a"]), vec![])), "the other must not hold it");
        assert!(!is_refused(&with_another(stopping(&[]), vec![])), "the other gets its files and loads it");
    }

    #[test]
    fn a_node_that_does_not_stop_refuses_nothing_and_one_that_does_leaves_unknown_names_to_the_router() {
        assert_eq!(refusal(&stopping(&[]), &"unheard-of".parse().unwrap()), None);
        let mut view = ClusterView::new("test".into(), facts("a"));
        view.on_own_replica(replica("m", ReplicaState::Loaded), SystemTime::now());
        assert!(!is_refused(&view));
    }
}
