//! Models that no node can hold, or could hold again, in words for their owner: pure.

use std::collections::BTreeSet;

use plexus_types::{FilesState, ModelId, ModelProfile, ModelSource, NodeName, NodeState, ReplicaState};

use super::{MergedModel, by_reason, feasible, place_name};
use crate::router::view::{Candidate, ClusterView};

/// Says so if a model's files are to be at a path, and no node that can be reached has them there.
pub fn no_files(view: &ClusterView, model: &MergedModel) -> Option<String> {
    let files = missing(view, model)?;
    Some(format!("no node that can be reached has {files}: check the path"))
}

/// A path, and the draft model beside it, that no node that can be reached has.
fn missing(view: &ClusterView, model: &MergedModel) -> Option<String> {
    let ModelProfile { source: ModelSource::Path(path), draft, .. } = &model.profile else { return None };
    let draft = draft.as_ref().map_or(String::new(), |draft| format!(" with its draft {draft}"));
    let is_there = model.holders().any(|holder| view.is_up(holder));
    (!is_there).then(|| format!("{}{draft}", path.display()))
}

/// Why a model that is listed can be held by no node, in a sentence; nothing if it can, or is, or if that is not known yet.
pub fn nowhere(view: &ClusterView, model: &MergedModel) -> Option<String> {
    if answering(view, &model.profile.id).next().is_some() {
        return None;
    }
    let reasons = infeasible(view, model)?;
    Some(format!("the model '{}' is listed, and no node can hold it ({reasons})", model.profile.id))
}

/// Why no node could load a model again once it is unloaded from where it answers, in a sentence; nothing if one could, if it answers nowhere, or if
/// that is not known yet.
pub fn no_return(view: &ClusterView, id: &ModelId) -> Option<String> {
    let places: Vec<Candidate<'_>> = answering(view, id).collect();
    let told: Vec<String> = places.iter().map(|one| place_name(&(one.id.node.clone(), one.id.device))).collect();
    let (told, then) = (told.join(", "), "once it is unloaded it cannot be loaded again");
    if told.is_empty() {
        return None;
    }
    let Some(model) = view.catalogue().models.get(id) else {
        let text = || format!("the model '{id}' answers on {told}, and no node lists it any more: {then}");
        return view.knows_catalogues().then(text);
    };
    let reasons = infeasible(view, model)?;
    let is_absent = |one: &&Candidate<'_>| model.on.get(&one.id.node).is_some_and(|entry| entry.files == FilesState::Absent);
    let gone_from: BTreeSet<&NodeName> = places.iter().filter(is_absent).map(|one| &one.id.node.name).collect();
    let Some(files) = missing(view, model).filter(|_| !gone_from.is_empty()) else {
        return Some(format!("the model '{id}' answers on {told}, but {then} ({reasons})"));
    };
    let gone_from: Vec<String> = gone_from.into_iter().map(ToString::to_string).collect();
    let gone_from = gone_from.join(", ");
    Some(format!("the model '{id}' answers on {told}, but its files are gone from {gone_from} ({files}): {then}, unless they are put back"))
}

/// The replicas that answer, on nodes that requests may be sent to.
fn answering<'a>(view: &'a ClusterView, id: &ModelId) -> impl Iterator<Item = Candidate<'a>> {
    view.candidates(id).filter(|one| one.node == NodeState::Up && one.report.state == ReplicaState::Loaded)
}

/// Why no device may hold a model; nothing if one may, or if that is not known yet.
fn infeasible(view: &ClusterView, model: &MergedModel) -> Option<String> {
    if model.on.values().any(|entry| entry.files == FilesState::Unknown) || view.own().devices.is_empty() {
        return None;
    }
    let mut reasons = Vec::new();
    for node in view.nodes().filter(|node| node.state == NodeState::Up) {
        for device in &node.summary.devices {
            let why = feasible(view, model, &node, device).err()?;
            reasons.push((place_name(&(node.id.clone(), device.id)), why));
        }
    }
    let reasons = by_reason(reasons.iter().map(|(place, why)| (place.as_str(), why.as_str())));
    (!reasons.is_empty()).then_some(reasons)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use plexus_types::{Bytes, Catalogue, CatalogueEntry, DeviceReport, ModelFacts, ReplicaReport};

    use super::*;
    use crate::evictor::core::tests::facts as known;
    use crate::router::view::tests::{facts, replica};

    fn m() -> ModelId {
        "m".parse().unwrap()
    }

    /// A node with room, whose own files of the model are so.
    fn view(files: FilesState) -> ClusterView {
        let mut view = ClusterView::new("test".into(), facts("a"));
        let memory_total = Bytes::mib(100);
        view.on_own_devices(vec![DeviceReport { id: "cpu-0".parse().unwrap(), name: String::new(), memory_total, memory_used: Bytes(0) }]);
        list(&mut view, files);
        view
    }

    fn list(view: &mut ClusterView, files: FilesState) {
        let profile = ModelProfile::new(m(), ModelSource::Path("/models/m.gguf".into()));
        let entries = vec![CatalogueEntry { profile, found: false, files }];
        view.on_own_catalogue(Catalogue { entries, ..Catalogue::default() }, SystemTime::now());
    }

    fn load(view: &mut ClusterView) {
        let report = ReplicaReport { tools: true, reasoning: true, ..replica("m", ReplicaState::Loaded) };
        view.on_own_replica(report, SystemTime::now());
    }

    #[test]
    fn a_model_whose_files_are_gone_is_what_it_was_while_it_is_loaded_and_then_nothing() {
        // CX-22
        let able = ModelFacts { tools: true, reasoning: true, ..known(40) };
        let mut view = view(FilesState::Present(able));
        load(&mut view);
        let before = view.models().remove(0);
        assert_eq!((before.loaded, before.tools, before.reasoning, before.warning.as_deref()), (true, true, true, None));
        list(&mut view, FilesState::Absent);
        let gone = view.models().remove(0);
        let warning = gone.warning.clone().expect("its owner is told");
        let expected = "the model 'm' answers on a/cpu-0, but its files are gone from a (/models/m.gguf): once it is unloaded it cannot be \
                        loaded again, unless they are put back";
        assert_eq!(warning, expected);
        assert_eq!(view.report(tokio::time::Instant::now()).conflicts, [warning]);
        assert_eq!(plexus_types::ModelReport { warning: None, ..gone }, before, "nothing else has changed");

        view.on_own_replica_left(&m(), "cpu-0".parse().unwrap());
        let unloaded = view.models().remove(0);
        assert!(!unloaded.loaded && unloaded.warning.is_none() && unloaded.feasible_on.is_empty(), "{unloaded:?}");
        let plexus_types::ModelState::Failed(why) = unloaded.state else { panic!("{:?}", unloaded.state) };
        assert!(why.contains("/models/m.gguf"), "{why}");
        let conflicts = view.report(tokio::time::Instant::now()).conflicts;
        assert!(conflicts.len() == 1 && conflicts[0].contains("no node can hold it"), "{conflicts:?}");
    }

    #[test]
    fn a_loaded_model_that_nobody_lists_is_told_with_what_it_can_do() {
        let mut view = view(FilesState::Present(known(40)));
        load(&mut view);
        view.on_own_catalogue(Catalogue::default(), SystemTime::now());
        let model = view.models().remove(0);
        assert_eq!((model.tools, model.reasoning, model.context_length), (true, true, 512));
        assert_eq!(model.feasible_on, ["a"]);
        assert!(model.warning.is_some_and(|warning| warning.contains("no node lists it any more")));
    }
}
