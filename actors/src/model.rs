//! One replica: a model on a device of this node.
//!
//! ```text
//! Loading ──files, room, weights──> Loaded          Generate ─> encoding ─> waiting ─> running ─> Done
//!    └────────── refused ──────────> Failed                     (blocking pool)   (KV blocks)  (one step at a time)
//! ```
//! Supervised by [`crate::node`]; supervises nobody. A restart loses the sequences: each of their [`sink::Sink`]s says so, and their journals go
//! on elsewhere. The weights are freed and loaded again; a load under way is given up, and what it was promised is returned with it.

mod embed;
mod generate;
pub mod guess;
mod hand_over;
mod kind;
mod late;
pub mod load;
mod local;
pub mod prefixes;
pub(crate) mod prepare;
mod rejected;
mod report;
mod running;
pub mod scheduler;
pub mod sequence;
mod share;
pub mod sink;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use plexus_api::service::{Rejected, ReplicaVitals};
use plexus_engine::batch::BatchOutput;
use plexus_types::{DeviceId, EmbedRequest, Embeddings, GenerateRequest, ModelProfile, NodeId, RequestError, RequestId};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{info, warn};

use self::embed::Embeds;
pub(crate) use self::embed::encode_texts;
use self::generate::Arrival;
pub(crate) use self::kind::check_kind;
use self::load::{LoadError, PromiseCell, Resident};
pub(crate) use self::local::has_gone;
pub use self::local::{Devices, LocalModels};
use self::prepare::Prepared;
use self::rejected::Reason;
use self::report::Said;
use self::running::Batcher;
use self::sink::Ingresses;
use crate::address::Address;
use crate::catalogue::CatalogueMsg;
use crate::device::DeviceError;
use crate::evictor::EvictorMsg;
use crate::evictor::core::{Ask, Place};
use crate::inspect::Inspection;
use crate::messages::{Attempt, Generate};
use crate::router::RouterMsg;
use crate::router::view::SharedView;
use crate::shelf::Shelf;

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct ModelArgs {
    /// Its own address.
    pub address: Address<ModelMsg>,
    /// How the model is to be served.
    pub profile: ModelProfile,
    /// Which device holds it.
    pub device: DeviceId,
    /// Tells it from earlier and later replicas of the model on the device.
    pub since: Ask,
    /// The devices of this node.
    pub devices: Devices,
    /// Who promises memory.
    pub evictor: Address<EvictorMsg>,
    /// Told of state and load.
    pub router: Address<RouterMsg>,
    /// Where events go.
    pub ingresses: Ingresses,
    /// Where its files are.
    pub shelf: Shelf,
    /// Why others could not fetch files.
    pub view: SharedView,
    /// Told when files came.
    pub catalogue: Address<CatalogueMsg>,
    /// Longest time that a prompt may take to be read; absent: any.
    pub prompt_time_max: Option<Duration>,
}

/// Whose try at a request.
pub type SequenceKey = (NodeId, RequestId, Attempt);

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum ModelMsg {
    /// Generate for an ingress.
    Generate(NodeId, Box<Generate>),
    /// Stop generating.
    Cancel(SequenceKey),
    /// Go on up to this index.
    Credit(SequenceKey, u32),
    /// How many tokens has this prompt?
    CountTokens(Box<GenerateRequest>, RpcReplyPort<Result<u32, RequestError>>),
    /// The vectors of these texts, which are all of a request or some.
    Embed(RequestId, Box<EmbedRequest>, RpcReplyPort<Result<Embeddings, RequestError>>),
    /// How many pieces of texts have you embedded?
    EmbeddedPieces(RpcReplyPort<u64>),
    /// From a task: preparing a request takes its time.
    IsLong(SequenceKey),
    /// From a task: a prompt was encoded, and the grammar of the answer compiled.
    Encoded(SequenceKey, Result<Prepared, RequestError>),
    /// From the device: a step ended.
    Stepped(Result<BatchOutput, DeviceError>),
    /// From the loader: how far it is, from 0 to 1.
    Progress(f32),
    /// From the loader.
    LoadEnded(Box<Result<Resident, LoadError>>),
    /// The device was restarted: what was on it is gone.
    DeviceLost(DeviceId),
    /// From a task: it has embedded its texts, or failed, or was refused for this reason.
    Embedded(embed::Number, Option<Reason>),
    /// You are pinned, or no longer.
    Pinned(bool),
    /// Take nothing new, as another model waits for your room, and end what you have begun; or take requests again.
    GiveWay(bool),
    /// Go, if you have no requests: take nothing new from now on. Answered with whether you do.
    Retire(RpcReplyPort<bool>),
    /// An ingress is gone, or the link to it: nobody takes what it asked for, and nobody would cancel it or give it credit.
    IngressLost(NodeId),
    /// Somebody may have waited for a place for too long.
    LateDue,
    /// What was told of the context may no longer hold.
    ContextDue,
    /// What is in the prefix cache may have changed since the router was told.
    PrefixesDue,
    /// How many requests of clients of other nodes do you have? Those to embed texts whose clients are here are named.
    AtWork(BTreeSet<RequestId>, RpcReplyPort<usize>),
    /// Tell evictor and router of yourself: one of them was restarted, or knows nothing of you.
    Announce,
    /// What have you refused, and how full is your memory?
    Vitals(RpcReplyPort<ReplicaVitals>),
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct ModelActor;

/// What the actor holds.
#[derive(Debug)]
pub struct ModelState {
    args: ModelArgs,
    /// Requests to embed texts that are under way. Ended before what the device holds for them.
    embeds: Embeds,
    phase: Phase,
    /// Requests whose prompt is being encoded.
    encoding: HashMap<SequenceKey, Arrival>,
    /// Requests that were not taken.
    rejected: Rejected,
    /// Requests running and waiting as last reported to the router, and when.
    reported: Option<((u32, u32), Instant)>,
    /// A [`ModelMsg::ContextDue`] is under way.
    context_is_due: bool,
    /// What it has said of its prefix cache.
    said: Said,
    /// Will it be looked for those that have waited for a place for too long?
    late_is_due: bool,
    /// When it was last looked whether others have places free for those that wait here; absent until then.
    handed_over: Option<Instant>,
    /// It takes nothing new, as another model waits for its room.
    gives_way: bool,
    /// Since when it has had no requests, or none that it has begun while it gives way; absent while it has.
    idle_since: Option<Instant>,
    life: ActorId,
    /// Dropped when the model is to go, and with this life of it: a load that is under way is given up.
    wanted: Option<oneshot::Sender<Infallible>>,
    /// What its load was promised.
    promised: PromiseCell,
}

#[derive(Debug)]
enum Phase {
    Loading {
        /// How far it is, from 0 to 1: the files that had to be fetched, then the weights.
        progress: f32,
    },
    Loaded {
        resident: Box<Resident>,
        batcher: Box<Batcher>,
    },
    Failed(String),
    /// It goes: nothing new is taken.
    Retired,
}

impl Actor for ModelActor {
    type Msg = ModelMsg;
    type State = ModelState;
    type Arguments = ModelArgs;

    async fn pre_start(&self, myself: ActorRef<ModelMsg>, args: ModelArgs) -> Result<ModelState, ActorProcessingErr> {
        args.address.attach(myself.clone());
        let (life, loader) = (myself.get_id(), args.clone());
        let (wanted, no_longer) = oneshot::channel();
        let promised = PromiseCell::default();
        let promise = promised.clone();
        let mut state = ModelState {
            args,
            phase: Phase::Loading { progress: 0.0 },
            encoding: HashMap::new(),
            embeds: Embeds::default(),
            rejected: Rejected::default(),
            reported: None,
            context_is_due: false,
            said: Said::default(),
            late_is_due: false,
            handed_over: None,
            gives_way: false,
            idle_since: None,
            life,
            wanted: Some(wanted),
            promised,
        };
        state.announce(); // whoever has ordered it may have ended since
        load::start(loader, life, no_longer, promise);
        Ok(state)
    }

    async fn handle(&self, _myself: ActorRef<ModelMsg>, message: ModelMsg, state: &mut ModelState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            ModelMsg::Generate(from, generate) => state.on_generate(from, generate),
            ModelMsg::Cancel(key) => state.on_cancel(&key),
            ModelMsg::Credit(key, until) => state.on_credit(&key, until),
            ModelMsg::CountTokens(request, reply) => state.on_count_tokens(*request, reply),
            ModelMsg::Embed(id, request, reply) => state.on_embed(id, *request, reply),
            ModelMsg::EmbeddedPieces(reply) => drop(reply.send(state.embeds.pieces())),
            ModelMsg::IsLong(key) => state.on_is_long(&key),
            ModelMsg::Encoded(key, prompt) => state.on_encoded(&key, prompt),
            ModelMsg::Stepped(output) => state.on_stepped(output)?,
            ModelMsg::Progress(share) => state.on_progress(share),
            ModelMsg::LoadEnded(result) => state.on_load_ended(*result)?,
            ModelMsg::DeviceLost(device) => state.on_device_lost(device)?,
            ModelMsg::Embedded(number, refused) => {
                state.embeds.on_end(number, Instant::now());
                refused.into_iter().for_each(|reason| rejected::count(&mut state.rejected, reason));
                state.report();
            }
            ModelMsg::Pinned(pinned) => {
                state.args.profile.pinned = pinned;
                state.reported = None;
                state.report();
            }
            ModelMsg::GiveWay(gives_way) => state.on_give_way(gives_way),
            ModelMsg::Retire(reply) => drop(reply.send(state.on_retire())),
            ModelMsg::IngressLost(ingress) => state.on_ingress_lost(&ingress),
            ModelMsg::LateDue => state.on_late_due(),
            ModelMsg::ContextDue => state.on_context_due(),
            ModelMsg::PrefixesDue => state.on_prefixes_due(),
            ModelMsg::AtWork(own, reply) => drop(reply.send(state.n_at_work(&own))),
            ModelMsg::Announce => {
                state.on_give_way(false); // whoever wants it says so again
                state.announce();
            }
            ModelMsg::Vitals(reply) => drop(reply.send(state.vitals())),
            ModelMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl ModelState {
    fn on_progress(&mut self, share: f32) {
        if let Phase::Loading { progress } = &mut self.phase {
            *progress = share;
            self.reported = None;
            self.report();
        }
    }

    fn on_load_ended(&mut self, result: Result<Resident, LoadError>) -> Result<(), ActorProcessingErr> {
        match result {
            Ok(resident) => {
                info!(model = %self.args.profile.id, device = %resident.device, memory = %resident.memory,
                    context_length = resident.plan.context_length, "model loaded");
                let batcher = Box::new(Batcher::new(&self.args.profile, &resident, self.args.prompt_time_max));
                if !matches!(self.phase, Phase::Loading { .. }) {
                    return Ok(()); // it was told to go meanwhile
                }
                self.phase = Phase::Loaded { resident: Box::new(resident), batcher };
                self.idle_since = Some(Instant::now());
                self.args.evictor.tell(EvictorMsg::Loaded(self.place()));
            }
            Err(LoadError::NoRoom(reason)) => {
                info!(model = %self.args.profile.id, reason, "no room for the model in time");
                self.phase = Phase::Retired;
                self.args.evictor.tell(EvictorMsg::GaveUp(self.place()));
                return Ok(());
            }
            Err(LoadError::Refused(reason)) => {
                warn!(model = %self.args.profile.id, reason, "model not loaded");
                self.phase = Phase::Failed(reason);
                self.args.evictor.tell(EvictorMsg::Failed(self.place()));
            }
            Err(error @ LoadError::Interrupted(_)) => return Err(error.into()),
        }
        self.reported = None;
        self.report();
        Ok(())
    }

    fn on_device_lost(&self, device: DeviceId) -> Result<(), ActorProcessingErr> {
        match &self.phase {
            Phase::Loaded { resident, .. } if resident.device == device => Err(format!("{device} was restarted").into()),
            Phase::Loaded { .. } | Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => Ok(()),
        }
    }

    /// A load that is under way is given up; what it was promised is returned with it. Those that wait at one that gives way look for it elsewhere, or
    /// wait until it is loaded again.
    fn on_retire(&mut self) -> bool {
        if self.n_at_hand() > 0 {
            return false;
        }
        self.send_away();
        self.phase = Phase::Retired;
        self.wanted = None;
        true
    }

    fn place(&self) -> Place {
        (self.args.profile.id.clone(), self.args.device)
    }

    /// Requests that it has, of any kind.
    fn n_present(&self) -> usize {
        let batched = match &self.phase {
            Phase::Loaded { batcher, .. } => batcher.n_present(),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => 0,
        };
        batched + self.encoding.len() + self.embeds.n_requests() as usize
    }

    /// Requests for which it stays.
    fn n_at_hand(&self) -> usize {
        match &self.phase {
            Phase::Loaded { batcher, .. } if self.gives_way => batcher.n_begun() + self.embeds.n_requests() as usize,
            Phase::Loaded { .. } | Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => self.n_present(),
        }
    }

    /// Those of clients of other nodes, as far as they are not among `own`.
    fn n_at_work(&self, own: &BTreeSet<RequestId>) -> usize {
        let me = &self.args.ingresses.me;
        let batched = match &self.phase {
            Phase::Loaded { batcher, .. } => batcher.n_of_others(me),
            Phase::Loading { .. } | Phase::Failed(_) | Phase::Retired => 0,
        };
        batched + self.encoding.keys().filter(|(ingress, ..)| ingress != me).count() + self.embeds.n_of_others(own) as usize
    }

    fn not_loaded(&self) -> RequestError {
        let message = format!("the model '{}' is not loaded on '{}'", self.args.profile.id, self.args.ingresses.me.name);
        RequestError::soon(message)
    }
}
