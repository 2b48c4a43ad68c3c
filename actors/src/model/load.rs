//! How a model gets onto a device: files, room, weights.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use plexus_engine::codec::Codec;
use plexus_engine::model::ModelFiles;
use plexus_store::{FetchError, Progress, Size};
use plexus_types::{Bytes, DeviceId, FilesDigest, ModelFacts, ModelSource, Quantization, Sampling, chain};
use ractor::ActorId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use crate::address::{Address, CallError};
use crate::catalogue::CatalogueMsg;
use crate::device::{DeviceMsg, OnDevice, Reply, StepQueue};
use crate::evictor::EvictorMsg;
use crate::evictor::core::{Grant, Place, needs_of, no_room_error};
use crate::evictor::ledger::Lease;
use crate::evictor::plan::Plan;
use crate::model::{ModelArgs, ModelMsg};
use crate::shelf::{OpenError, Opened};

/// A device that is being opened is waited for so long.
const DEVICE_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(20);
/// The evictor answers from memory.
const FIT_DEADLINE: Duration = Duration::from_secs(5);
/// How much further a load must be before it is told again.
const PROGRESS_STEP: f32 = 0.01;
/// How often it is looked how much of the weights has been read.
const READ_POLL: Duration = Duration::from_millis(100);
/// The share of a load that is done once its files are here, where they had to be fetched: each byte is then read once more.
const FETCH_SHARE: f32 = 0.5;
/// Others may have to go first, one load after the other.
const ROOM_DEADLINE: Duration = Duration::from_secs(120);

/// A model on a device. Dropping it frees the device's memory and the promise.
#[derive(Debug)]
pub struct Resident {
    /// From requests to token ids and back.
    pub codec: Arc<Codec>,
    /// How the model's makers advise to sample.
    pub defaults: Sampling,
    /// Where it is.
    pub device: DeviceId,
    /// Its context and KV pool.
    pub plan: Plan,
    /// Memory of a block of the pool.
    pub kv_per_block: Bytes,
    /// Memory promised to it.
    pub memory: Bytes,
    /// The promise.
    pub lease: Lease,
    /// From its files to its place on the device.
    pub took: Duration,
    /// What those files say.
    pub facts: ModelFacts,
    weights: OnDevice,
    _promise: Arc<Promised>,
}

impl Resident {
    /// Takes its steps.
    pub fn steps(&self) -> &StepQueue {
        self.weights.steps()
    }
}

/// What a load was promised, for the replica to tell an evictor that was restarted; empty until then.
#[derive(Debug, Clone, Default)]
pub(super) struct PromiseCell(Arc<OnceLock<(Weak<Promised>, Bytes)>>);

impl PromiseCell {
    fn set(&self, promise: &Arc<Promised>, bytes: Bytes) {
        let _one_load_is_promised_once = self.0.set((Arc::downgrade(promise), bytes));
    }

    /// Says what was promised and not returned yet. It is not returned before `tell` has ended: whoever is told hears that after it.
    pub(super) fn tell(&self, tell: impl FnOnce(Option<(Lease, Bytes)>)) {
        let promised = self.0.get().and_then(|(promise, bytes)| Some((promise.upgrade()?, *bytes)));
        tell(promised.as_ref().map(|(promise, bytes)| (promise.lease, *bytes)));
    }
}

/// Returns the promise when dropped, or no longer waits for it.
#[derive(Debug)]
struct Promised {
    evictor: Address<EvictorMsg>,
    place: Place,
    lease: Lease,
}

impl Drop for Promised {
    fn drop(&mut self) {
        self.evictor.tell(EvictorMsg::Release(self.place.clone(), self.lease));
    }
}

/// Tells a replica how far its load is, from 0 to 1.
#[derive(Debug)]
struct Gauge<'a> {
    address: &'a Address<ModelMsg>,
    life: ActorId,
    /// What of the whole the work at hand is.
    from: f32,
    to: f32,
    told: f32,
}

impl<'a> Gauge<'a> {
    fn new(address: &'a Address<ModelMsg>, life: ActorId) -> Self {
        Self { address, life, from: 0.0, to: 0.0, told: 0.0 }
    }

    /// The next work begins, which ends at `to`.
    fn begin(&mut self, to: f32) {
        (self.from, self.to) = (self.to, to);
    }

    /// So much of the work at hand is done.
    fn on_share(&mut self, share: f32) {
        let done = self.from + (self.to - self.from) * share;
        if done - self.told >= PROGRESS_STEP {
            self.told = done;
            self.address.tell_life(self.life, ModelMsg::Progress(done));
        }
    }
}

/// Why a model is not resident.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An actor that is needed went away; a new try may succeed.
    #[error("{0}")]
    Interrupted(String),
    /// There was no room in time: others were in use. There may be some elsewhere, or later.
    #[error("{0}")]
    NoRoom(String),
    /// The model cannot be loaded, now or later.
    #[error("{0}")]
    Refused(String),
}

impl From<CallError> for LoadError {
    fn from(error: CallError) -> Self {
        Self::Interrupted(format!("the evictor did not answer: {error}"))
    }
}

/// Loads a model in a task of its own, and tells its actor how that goes, unless the actor ends or no longer wants it.
pub(super) fn start(args: ModelArgs, life: ActorId, no_longer: oneshot::Receiver<Infallible>, promised: PromiseCell) {
    tokio::spawn(async move {
        let mut gauge = Gauge::new(&args.address, life);
        let load = async {
            fetch(&args, &mut gauge).await?;
            load(&args, &mut gauge, &promised).await
        };
        let result = tokio::select! {
            result = load => result,
            _dropped = no_longer => return,
        };
        args.address.tell_life(life, ModelMsg::LoadEnded(Box::new(result)));
    });
}

/// Opens the model's files, asks for room on the device, and loads. Nothing is read beyond headers before the room is promised.
///
/// Dropped midway it is given up: what was promised is returned at once or, where the device reads the weights already, once it has freed them, which
/// is after the part at hand.
async fn load(args: &ModelArgs, gauge: &mut Gauge<'_>, promised: &PromiseCell) -> Result<Resident, LoadError> {
    static NEXT_LEASE: AtomicU64 = AtomicU64::new(1);
    let ModelArgs { profile, device, devices, evictor, shelf, .. } = args;
    let device = *device;
    let began = Instant::now();
    let (wanted, from) = (profile.clone(), shelf.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let print = from.fingerprint(&wanted).map_err(|error| OpenError::Unreadable(error.to_string()))?;
        from.take_opened(&wanted).and_then(|opened| from.told_of(&wanted, opened, print))
    });
    let opened = opened.await.map_err(|_| LoadError::Refused("reading its files panicked".into()))?;
    let (facts, Opened { files, draft }) = opened.map_err(|error| LoadError::Refused(error.to_string()))?;
    if facts.is_copy && what_counts(args).is_some_and(|counts| facts.digest.is_some_and(|digest| digest != counts)) {
        return Err(LoadError::Refused(
            "what other nodes gave of its files is not what counts; it is fetched again at the next load".into(),
        ));
    }
    let opened = began.elapsed();
    let place = (profile.id.clone(), device);
    let lease = Lease(NEXT_LEASE.fetch_add(1, Ordering::Relaxed));
    let promise = Arc::new(Promised { evictor: evictor.clone(), place: place.clone(), lease });
    let needs = needs_of(profile, &facts, device);
    let kv_per_block = Bytes(needs.per_block());
    let room = |reply| EvictorMsg::Room { place: place.clone(), lease, needs, reply };
    let grant = evictor.call(room, ROOM_DEADLINE).await?;
    let Grant { plan, bytes } = grant.map_err(|no_room| {
        let error = no_room_error(&profile.id, device, &no_room).to_string();
        if no_room.may_pass() { LoadError::NoRoom(error) } else { LoadError::Refused(error) }
    })?;
    // The evictor that promised it may have ended since; its successor learns of it from here or, where it asks later, from the replica.
    promised.set(&promise, bytes);
    evictor.tell(EvictorMsg::Holds { place, lease, bytes });
    let had_room = began.elapsed();
    let device_address = devices.get(device).ok_or_else(|| LoadError::Refused(format!("this node has no {device}")))?;
    let (codec, defaults) = (files.codec.clone(), files.defaults.clone());
    let files = files.placed_on(device.kind);
    let draft = draft.map(|draft| draft.placed_on(device.kind));
    gauge.begin(1.0);
    let weights = load_on(&device_address, files, draft, plan, &promise, gauge).await?;
    let took = began.elapsed();
    let (room, packed) = (had_room - opened, took - had_room);
    debug!(model = %profile.id, ?opened, ?room, ?packed, "what the load took");
    Ok(Resident { codec, defaults, device, plan, kv_per_block, memory: bytes, lease, took, facts, weights, _promise: promise })
}

/// Brings the model's files here if they are not, unless their weights alone could never get room on the device.
async fn fetch(args: &ModelArgs, gauge: &mut Gauge<'_>) -> Result<(), LoadError> {
    let ModelArgs { profile, shelf, evictor, .. } = args;
    if let Some(counts) = what_counts(args) {
        let (source, at) = (profile.source.clone(), shelf.clone());
        let discarded = tokio::task::spawn_blocking(move || at.discard_outdated(&source, counts)).await;
        let discarded = discarded.map_err(|_| LoadError::Refused("looking at its files panicked".into()))?;
        discarded.map_err(|error| LoadError::Refused(format!("an old copy of its files cannot be taken away: {error}")))?;
    }
    let missing = shelf.find_missing(profile).await.map_err(|panicked| LoadError::Refused(panicked.to_string()))?;
    let n_missing = missing.len() as f32;
    for (i, source) in missing.into_iter().enumerate() {
        let refused = |error: &FetchError| LoadError::Refused(format!("{source} cannot be fetched: {}", chain(error)));
        if matches!(source, ModelSource::Hub(_)) {
            args.view.read().failures_elsewhere().for_each(|why| shelf.on_told(why));
            // A hub that cannot be asked says nothing of other nodes, which may have the files.
            let size = shelf.size(&source).await.unwrap_or_default();
            let size = least_held(size, profile.quant.filter(|_| source == profile.source));
            let place = (profile.id.clone(), args.device);
            let could_fit = evictor.call(|reply| EvictorMsg::CouldFit(place, size, reply), FIT_DEADLINE).await?;
            could_fit.map_err(|no_room| LoadError::Refused(no_room_error(&profile.id, args.device, &no_room).to_string()))?;
        }
        gauge.begin(FETCH_SHARE * (i + 1) as f32 / n_missing);
        let watch = |progress: Progress| gauge.on_share(progress.done.0 as f32 / progress.total.0.max(1) as f32);
        let fetched = shelf.fetch(&source, |node| args.view.read().may_give(&profile.id, &source, node), watch).await;
        args.catalogue.tell(CatalogueMsg::RescanNow); // also of files that do not come after all
        fetched.map_err(|error| refused(&error))?;
    }
    Ok(())
}

/// What the files of the model hold that count in the cluster, as far as this node knows.
fn what_counts(args: &ModelArgs) -> Option<FilesDigest> {
    args.view.read().catalogue().models.get(&args.profile.id)?.digest
}

/// Least bytes that a model's weights take once they are held in fewer bits. Those of a file of unknown content have 32 bits at most.
fn least_held(size: Size, quant: Option<Quantization>) -> Bytes {
    let Some(quant) = quant else { return size.bytes };
    let parameters = size.parameters.map_or(size.bytes.0 as f64 / 4.0, |parameters| parameters as f64);
    size.bytes.min(Bytes((parameters * quant.bits() / 8.0) as u64))
}

async fn load_on(
    device: &Address<DeviceMsg>,
    files: ModelFiles,
    draft: Option<ModelFiles>,
    plan: Plan,
    promise: &Arc<Promised>,
    gauge: &mut Gauge<'_>,
) -> Result<OnDevice, LoadError> {
    let lost = |_| LoadError::Interrupted("the device was lost while it loaded the model".into());
    let deadline = Instant::now() + DEVICE_WAIT;
    while device.actor().is_none() && Instant::now() < deadline {
        tokio::time::sleep(DEVICE_POLL).await; // it is between two lives
    }
    let life = || device.actor().map(|actor| actor.get_id());
    let asked = life();
    let (reply, mut loaded) = oneshot::channel();
    let promise = Arc::clone(promise);
    let reply = Reply::new(move |result| {
        drop(reply.send(result)); // if nobody waits for it any more, the model goes from the device again
        drop(promise); // and only then is its memory somebody else's
    });
    let (files, draft, waits) = (Arc::new(files), draft.map(Arc::new), Arc::new(()));
    let wanted = Arc::downgrade(&waits);
    device.cast(DeviceMsg::Load { files: files.clone(), draft: draft.clone(), kv: plan.kv, wanted, reply }).map_err(lost)?;
    let ended = loop {
        tokio::select! {
            ended = &mut loaded => break ended,
            () = tokio::time::sleep(READ_POLL) => {}
        }
        if life() != asked {
            return Err(lost(CallError::Gone)); // a thread that hangs does not let go of the reply, nor of the memory that goes with it
        }
        let shares = std::iter::once(&files).chain(&draft).map(|files| files.share_read());
        gauge.on_share(shares.sum::<f32>() / (1 + usize::from(draft.is_some())) as f32);
    };
    match ended {
        Ok(Ok(weights)) => Ok(weights),
        Ok(Err(crate::device::DeviceError::Engine(why))) => Err(LoadError::Refused(why)),
        Ok(Err(error)) => Err(LoadError::Interrupted(error.to_string())),
        Err(_) => Err(lost(CallError::Gone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_takes_in_fewer_bits_is_never_put_too_high() {
        let size = |bytes, parameters| Size { bytes: Bytes(bytes), parameters };
        assert_eq!(least_held(size(3200, None), None), Bytes(3200));
        assert_eq!(least_held(size(3200, None), Some(Quantization::Q4K)), Bytes(450), "800 numbers, if each has 32 bits");
        assert_eq!(least_held(size(3200, Some(1600)), Some(Quantization::Q4K)), Bytes(900));
        assert_eq!(least_held(size(3200, Some(6400)), Some(Quantization::Q8_0)), Bytes(3200), "what has fewer bits already stays as it is");
    }
}
