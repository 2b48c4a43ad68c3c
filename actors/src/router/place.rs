//! Where a model is loaded: a pure function of the view.

mod nowhere;

use std::cmp::Reverse;
use std::time::Duration;

use plexus_types::{
    Bytes, ConsideredPlace, DeviceId, DeviceKind, DeviceReport, Explanation, FilesState, Footprint, ModelFacts, ModelId, ModelProfile,
    ModelSource, NodeId, NodeState, ReplicaState, RequestError,
};

use super::catalogue::MergedModel;
use super::expected;
use super::view::{Candidate, ClusterView, NodeInView};
use crate::evictor::core::{needs_of, needs_with};
use crate::evictor::plan::{EvictionPolicy, Needs, Occupant, plan_eviction};
use crate::messages::LoadOrder;
pub use nowhere::{no_files, no_return, nowhere};

/// A device of a node.
pub type Site = (NodeId, DeviceId);

/// A place that was told to load a model, and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Where.
    pub site: Site,
    /// Why not.
    pub why: String,
    /// May it pass by itself?
    pub may_pass: bool,
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The model.
    pub model: &'a ModelId,
    /// Places that have refused it.
    pub refused: &'a [Refusal],
    /// Memory that was ordered elsewhere and does not show in the view yet.
    pub ordered: &'a [(Site, ModelId)],
    /// May others go for it?
    pub may_displace: bool,
    /// Only on this node, if one is named.
    pub only_on: Option<&'a NodeId>,
    /// Only on this device, if one is named.
    pub device: Option<DeviceId>,
    /// Somebody asks by hand: also where it could not be loaded before.
    pub by_hand: bool,
    /// It has waited for others to become idle: it may queue for its turn where they are used without a pause.
    pub in_turn: bool,
}

impl<'a> Want<'a> {
    /// A model, wherever it does best.
    pub fn new(model: &'a ModelId) -> Self {
        Self { model, refused: &[], ordered: &[], may_displace: true, only_on: None, device: None, by_hand: false, in_turn: false }
    }
}

/// Where a model is to be loaded, and why there.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The node and the device.
    pub site: Site,
    /// What the node is told.
    pub order: LoadOrder,
    /// Who is expected to go for it.
    pub victims: Vec<ModelId>,
    /// Why there.
    pub explanation: Explanation,
}

/// A model that cannot be loaded now.
#[derive(Debug, Clone, PartialEq)]
pub struct Unplaced {
    /// What the client is told.
    pub error: RequestError,
    /// Why nowhere.
    pub explanation: Explanation,
}

/// A place in comparison with others: the least is the best.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// There is no room before it is its turn.
    queues: bool,
    displaces: bool,
    on_processors: bool,
    fetches: bool,
    /// The highest class among those that have to go, where the strategy heeds that.
    class: u32,
    /// [`missed`], of those that have to go together.
    missed: u64,
    free: Reverse<Bytes>,
    site: Site,
}

/// Who has to go, and how long nobody has used it.
type Victim = (ModelId, Duration);

/// Chooses the device for a model (CX-24, CX-25): where it fits before where others would have to go, GPUs before processors, a node that has
/// the files before one that must fetch them, then where those that go are of the least class (if the strategy heeds that) and are missed least, then
/// the one with most room.
pub fn place(view: &ClusterView, want: &Want<'_>, policy: &EvictionPolicy) -> Result<Placement, Box<Unplaced>> {
    let Some(model) = view.catalogue().models.get(want.model) else {
        return Err(Box::new(unplaced(view, want.model, Vec::new(), &[], policy)));
    };
    let mut fits: Vec<(Rank, Vec<Victim>)> = Vec::new();
    let mut refused: Vec<(Site, NotHere)> = Vec::new();
    for node in view.nodes().filter(|node| want.only_on.is_none_or(|only| only == node.id)) {
        for device in node.summary.devices.iter().filter(|device| want.device.is_none_or(|only| only == device.id)) {
            let site = (node.id.clone(), device.id);
            match consider(view, model, want, &node, device, policy) {
                Ok(rank) => fits.push(rank),
                Err(why) => refused.push((site, why)),
            }
        }
    }
    fits.sort();
    let busy: Vec<Site> = refused.iter().filter(|(_, why)| why.may_pass).map(|(site, _)| site.clone()).collect();
    let mut considered: Vec<ConsideredPlace> =
        fits.iter().enumerate().map(|(i, (rank, victims))| describe(model, rank, victims, i == 0)).collect();
    considered.extend(refused.into_iter().map(|(site, why)| ConsideredPlace { place: place_name(&site), verdict: why.why, chosen: false }));
    let Some((Rank { site, queues, .. }, victims)) = fits.into_iter().next() else {
        return Err(Box::new(unplaced(view, want.model, considered, &busy, policy)));
    };
    let victims: Vec<ModelId> = victims.into_iter().map(|(victim, _)| victim).collect();
    let order =
        LoadOrder { profile: profile_on(model, &site.0), device: site.1, facts: facts_on(model, &site.0).cloned(), in_turn: queues };
    let decision = match &victims[..] {
        [] if queues => format!("it waits for its turn on {}", place_name(&site)),
        [] => format!("it is loaded on {}", place_name(&site)),
        victims => format!("it is loaded on {}, for which {} goes", place_name(&site), names(victims)),
    };
    let explanation = Explanation { model: want.model.clone(), decision, considered, age: Duration::ZERO };
    Ok(Placement { site, order, victims, explanation })
}

struct NotHere {
    why: String,
    may_pass: bool,
}

impl NotHere {
    fn never(why: impl Into<String>) -> Self {
        Self { why: why.into(), may_pass: false }
    }
}

fn consider(
    view: &ClusterView,
    model: &MergedModel,
    want: &Want<'_>,
    node: &NodeInView<'_>,
    device: &DeviceReport,
    policy: &EvictionPolicy,
) -> Result<(Rank, Vec<Victim>), NotHere> {
    let site = (node.id.clone(), device.id);
    match node.state {
        NodeState::Up => {}
        NodeState::Draining => return Err(NotHere::never("its node is stopping")),
        NodeState::Unreachable => return Err(NotHere::never("its node cannot be reached")),
    }
    feasible(view, model, node, device).map_err(NotHere::never)?;
    if let Some(Refusal { why, may_pass, .. }) = want.refused.iter().find(|refusal| refusal.site == site) {
        return Err(NotHere { why: why.clone(), may_pass: *may_pass });
    }
    let mut here = node.summary.replicas.iter().filter(|replica| replica.model == *want.model);
    if let Some(replica) = here.find(|replica| replica.device == device.id)
        && !(want.by_hand && matches!(replica.state, ReplicaState::Failed(_)))
    {
        if view.is_outdated(replica) {
            return Err(NotHere { why: "it is there, loaded from other files than count, and goes".into(), may_pass: true });
        }
        return Err(match &replica.state {
            ReplicaState::Failed(why) => NotHere::never(format!("it could not be loaded: {why}")),
            ReplicaState::Loading => NotHere::never(being_loaded(model, node.id)),
            ReplicaState::Loaded | ReplicaState::Recovering => NotHere::never("it is there already"),
        });
    }
    let total = device.memory_total;
    let rank = |free| Rank {
        queues: false,
        displaces: false,
        on_processors: device.id.kind != DeviceKind::Cuda,
        fetches: !has_files(model, node.id),
        class: 0,
        missed: 0,
        free,
        site: site.clone(),
    };
    let Some(needs) = needs(model, node.id, device.id) else {
        // Nobody knows how large it is before it was fetched: the node itself finds out.
        return Ok((rank(Reverse(total.saturating_sub(device.memory_used))), Vec::new()));
    };
    let mut occupants: Vec<Occupant> = view.replicas_on(*node, device.id).map(|candidate| occupant(view, &candidate, device)).collect();
    let ordered = want.ordered.iter().filter(|(at, id)| *at == site && occupants.iter().all(|known| known.model != *id));
    occupants.extend(ordered.map(|(_, id)| loading(view, id, node.id, device)).collect::<Vec<_>>());
    let class = model.profile.residency_priority;
    let room = match plan_eviction(total, &occupants, &needs, class, policy) {
        Ok(room) => room,
        Err(no_room) if want.in_turn && want.may_displace && may_queue(total, &occupants, &needs, class, policy) => {
            return Ok((Rank { queues: true, displaces: true, ..rank(Reverse(no_room.available)) }, Vec::new()));
        }
        Err(no_room) => return Err(NotHere { why: no_room.to_string(), may_pass: no_room.may_pass() }),
    };
    if !room.victims.is_empty() && !want.may_displace {
        return Err(NotHere::never(format!("{} would have to go", names(&room.victims))));
    }
    let victims = room.victims.iter().filter_map(|victim| occupants.iter().find(|occupant| occupant.model == *victim));
    let victims: Vec<(&Occupant, Duration)> = victims.filter_map(|victim| Some((victim, victim.idle?))).collect();
    let rank = Rank {
        displaces: !victims.is_empty(),
        class: victims.iter().map(|(victim, _)| policy.heeded(victim.class)).max().unwrap_or(0),
        missed: victims.iter().map(|(victim, idle)| missed(victim.bytes, *idle)).fold(0, u64::saturating_add),
        ..rank(Reverse(room.free))
    };
    Ok((rank, victims.into_iter().map(|(victim, idle)| (victim.model.clone(), idle)).collect()))
}

/// Would there be room if those went too that are used?
fn may_queue(total: Bytes, occupants: &[Occupant], needs: &Needs, class: u32, policy: &EvictionPolicy) -> bool {
    let unused = |one: &Occupant| Occupant { idle: one.idle.or(Some(policy.keep_warm)), ..one.clone() };
    plan_eviction(total, &occupants.iter().map(unused).collect::<Vec<_>>(), needs, class, policy).is_ok()
}

/// What it is expected to cost that a model goes: its bytes, which have to be read again, times the chance that it is wanted in the next second. As
/// Laplace's rule of succession has it, that is one in as many seconds as have passed without (and what other nodes say of that is some seconds
/// old). So a large model goes that nobody has used for days, before a small one of a second ago.
fn missed(bytes: Bytes, idle: Duration) -> u64 {
    bytes.0 / idle.as_secs().saturating_add(1)
}

/// May a device hold a model at all, whatever else it holds?
fn feasible(view: &ClusterView, model: &MergedModel, node: &NodeInView<'_>, device: &DeviceReport) -> Result<(), String> {
    let ModelProfile { pinned_on, device: wanted, min_devices, min_device_memory, .. } = &model.profile;
    if !pinned_on.is_empty() && !pinned_on.contains(&node.id.name) {
        return Err("pinned_on names other nodes".into());
    }
    if let Some(wanted) = wanted.filter(|wanted| *wanted != device.id) {
        return Err(format!("its device is {wanted}"));
    }
    let least = min_device_memory.unwrap_or(Bytes(0));
    let n_large = node.summary.devices.iter().filter(|device| device.memory_total >= least).count();
    if device.memory_total < least {
        let total = device.memory_total;
        return Err(format!(
            "it wants devices with {least} for models, and this one has {total}, which is what the configured share leaves"
        ));
    }
    if n_large < *min_devices as usize {
        return Err(format!("it wants {min_devices} devices with {least} for models, and its node has {n_large}"));
    }
    match model.files(node.id) {
        FilesState::Refused(why) => return Err(why.clone()),
        FilesState::Present(facts) if !model.fits(facts.digest) && !facts.is_copy => {
            return Err("its files are not those that count: replace them, or list them under another id".into());
        }
        FilesState::Absent => no_files(view, model).map_or(Ok(()), Err)?,
        FilesState::Unknown | FilesState::Fetching(_) | FilesState::Present(_) => {}
    }
    if let Some(needs) = needs(model, node.id, device.id).filter(|needs| needs.least() > device.memory_total) {
        return Err(format!("{} needed, and it has {} in all", needs.least(), device.memory_total));
    }
    Ok(())
}

/// What a replica is doing that is being loaded on a node.
pub(super) fn being_loaded(model: &MergedModel, node: &NodeId) -> String {
    model.fetch(node).map_or_else(|| "it is being loaded there".to_owned(), ToString::to_string)
}

/// The places that can hold a model.
pub fn feasible_sites<'a>(view: &'a ClusterView, model: &'a MergedModel) -> impl Iterator<Item = Site> + 'a {
    view.nodes().filter(|node| node.state == NodeState::Up).flat_map(move |node| {
        let able = node.summary.devices.iter().filter(move |device| feasible(view, model, &node, device).is_ok());
        able.map(move |device| (node.id.clone(), device.id))
    })
}

/// The nodes that can hold a model (CX-20, CX-21).
pub fn feasible_on(view: &ClusterView, model: &MergedModel) -> Vec<String> {
    let mut names: Vec<String> = feasible_sites(view, model).map(|(node, _)| node.name.to_string()).collect();
    names.dedup(); // the devices of a node follow each other
    names
}

/// Places with what is said of each, those together of which the same is said: `a/cpu-0, b/cpu-0: in use; c/cpu-0: fits`.
fn by_reason<'a>(places: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (place, why) in places {
        match groups.iter_mut().find(|(known, _)| *known == why) {
            Some((_, places)) => places.push(place),
            None => groups.push((why, vec![place])),
        }
    }
    let told: Vec<String> = groups.iter().map(|(why, places)| format!("{}: {why}", places.join(", "))).collect();
    told.join("; ")
}

/// What a node says of a model's files, or else any other node.
fn facts_on<'a>(model: &'a MergedModel, node: &NodeId) -> Option<&'a ModelFacts> {
    model.usable(node).or(model.facts.as_ref())
}

fn has_files(model: &MergedModel, node: &NodeId) -> bool {
    model.profile.source == ModelSource::Embedded || model.usable(node).is_some()
}

/// The profile by which a node is to serve: what was found on it lies where it lies.
fn profile_on(model: &MergedModel, node: &NodeId) -> ModelProfile {
    let source = match model.on.get(node) {
        Some(entry) if model.usable(node).is_some() => entry.profile.source.clone(),
        Some(_) | None => model.profile.source.clone(),
    };
    ModelProfile { source, ..model.profile.clone() }
}

/// What a model takes on a device, as far as anybody knows.
fn needs(model: &MergedModel, node: &NodeId, device: DeviceId) -> Option<Needs> {
    if let Some(facts) = facts_on(model, node) {
        return Some(needs_of(&model.profile, facts, device));
    }
    let footprint = Footprint { weights: model.profile.memory?, ..Footprint::default() };
    Some(needs_with(&model.profile, footprint, u32::MAX))
}

fn occupant(view: &ClusterView, candidate: &Candidate<'_>, device: &DeviceReport) -> Occupant {
    let report = candidate.report;
    if report.memory == Bytes(0) {
        return loading(view, &report.model, &candidate.id.node, device);
    }
    let resting = report.load.running + report.load.waiting + candidate.sent == 0;
    Occupant {
        model: report.model.clone(),
        bytes: report.memory,
        class: report.residency_priority,
        pinned: report.pinned,
        idle: report.idle.filter(|_| resting),
    }
}

/// A model that is being loaded and has not been promised its memory yet.
fn loading(view: &ClusterView, id: &ModelId, node: &NodeId, device: &DeviceReport) -> Occupant {
    let model = view.catalogue().models.get(id);
    let bytes = model.and_then(|model| needs(model, node, device.id)).map_or(Bytes(0), |needs| needs.goal(device.memory_total));
    let class = model.map_or(ModelProfile::DEFAULT_PRIORITY, |model| model.profile.residency_priority);
    Occupant { model: id.clone(), bytes, class, pinned: model.is_some_and(|model| model.profile.pinned), idle: None }
}

fn describe(model: &MergedModel, rank: &Rank, victims: &[Victim], chosen: bool) -> ConsideredPlace {
    let named: Vec<String> = victims.iter().map(|(model, idle)| format!("'{model}', unused for {} s,", idle.as_secs())).collect();
    let mut verdict = match &named[..] {
        [] if rank.queues => "fits once it is its turn".to_owned(),
        [] => format!("fits, {} free", rank.free.0),
        named => format!("fits once {} goes", named.join(" and ")),
    };
    if rank.fetches {
        verdict += &model.fetch(&rank.site.0).map_or_else(|| ", fetches the files first".to_owned(), |fetch| format!(", {fetch}"));
    }
    ConsideredPlace { place: place_name(&rank.site), verdict, chosen }
}

/// There is no room, or not before what is in use at the `busy` places no longer is.
fn unplaced(view: &ClusterView, model: &ModelId, considered: Vec<ConsideredPlace>, busy: &[Site], policy: &EvictionPolicy) -> Unplaced {
    let reasons = by_reason(considered.iter().map(|place| (place.place.as_str(), place.verdict.as_str())));
    let reasons = if reasons.is_empty() { "no device is open".to_owned() } else { reasons };
    let message = format!("the model '{model}' cannot be loaded now ({reasons})");
    let (decision, error) = match busy {
        [] => ("it cannot be loaded", RequestError::Unservable { message }),
        busy => ("it waits for room", RequestError::Unavailable { message, retry_after: expected::room(view, model, busy, policy) }),
    };
    Unplaced { error, explanation: Explanation { model: model.clone(), decision: decision.to_owned(), considered, age: Duration::ZERO } }
}

fn names(models: &[ModelId]) -> String {
    models.iter().map(|model| format!("'{model}'")).collect::<Vec<_>>().join(", ")
}

/// Will it do to wait?
pub fn may_pass(error: &RequestError) -> bool {
    matches!(error, RequestError::Unavailable { .. })
}

/// `node/device`
pub fn place_name((node, device): &Site) -> String {
    format!("{}/{device}", node.name)
}

#[cfg(test)]
mod tests;
