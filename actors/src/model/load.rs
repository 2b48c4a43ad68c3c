//! How a model gets onto a device: files, room, promise, weights.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plexus_engine::codec::Codec;
use plexus_engine::draft::check_pair;
use plexus_engine::executor::Slot;
use plexus_engine::model::{ModelFiles, ModelPath};
use plexus_types::{Bytes, DeviceId, DeviceKind, ModelId, ModelKind, ModelProfile, ModelSource, Sampling};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::plan::{Needs, Plan, plan};
use crate::address::{Address, CallError};
use crate::device::{DeviceMsg, Placed, Reply, StepQueue, chain};
use crate::evictor::EvictorMsg;
use crate::evictor::ledger::{Lease, NoRoom};
use crate::model::Devices;

/// A device that is being opened is waited for so long.
const DEVICE_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(20);
/// The evictor answers from memory.
const EVICTOR_DEADLINE: Duration = Duration::from_secs(5);

/// A model on a device. Dropping it frees the device's memory and the promise.
#[derive(Debug)]
pub struct Resident {
    /// From requests to token ids and back.
    pub codec: Arc<Codec>,
    /// What the model is for.
    pub kind: ModelKind,
    /// How the model's makers advise to sample.
    pub defaults: Sampling,
    /// Where it is.
    pub device: DeviceId,
    /// Takes its steps there.
    pub steps: StepQueue,
    /// Its context and KV pool.
    pub plan: Plan,
    /// Memory promised to it.
    pub memory: Bytes,
    /// The promise.
    pub lease: Lease,
    _weights: OnDevice,
    _promise: Promised,
}

/// Frees the slot when dropped.
#[derive(Debug)]
struct OnDevice {
    device: Address<DeviceMsg>,
    slot: Slot,
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        self.device.tell(DeviceMsg::Unload(self.slot));
    }
}

/// Returns the promise when dropped.
#[derive(Debug)]
struct Promised {
    evictor: Address<EvictorMsg>,
    device: DeviceId,
    model: ModelId,
    lease: Lease,
}

impl Drop for Promised {
    fn drop(&mut self) {
        self.evictor.tell(EvictorMsg::Release { device: self.device, model: self.model.clone(), lease: self.lease });
    }
}

/// Why a model is not resident.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An actor that is needed went away; a new try may succeed.
    #[error("{0}")]
    Interrupted(String),
    /// The model cannot be loaded, now or later.
    #[error("{0}")]
    Refused(String),
}

impl From<CallError> for LoadError {
    fn from(error: CallError) -> Self {
        Self::Interrupted(format!("the evictor did not answer: {error}"))
    }
}

/// Opens the model's files, finds a device with room, has it promised, and loads. Nothing is read beyond headers before the room is promised.
pub async fn load(profile: &ModelProfile, devices: &Devices, evictor: &Address<EvictorMsg>) -> Result<Resident, LoadError> {
    let files = open(&profile.source).await?;
    let files = match profile.quant {
        Some(quant) => files.quantized(quant).map_err(|error| LoadError::Refused(chain(&error)))?,
        None => files,
    };
    let draft = match &profile.draft {
        Some(source) => Some(open_draft(source, &files).await?),
        None => None,
    };
    let made_for = files.context_length();
    let needs = |device: DeviceKind| {
        let files = files.clone().placed_on(device);
        let draft = draft.clone().map(|draft| draft.placed_on(device));
        let of_draft = |of: fn(&ModelFiles) -> Bytes| draft.as_ref().map_or(Bytes(0), of);
        Needs {
            weights: files.weights_bytes + of_draft(|draft| draft.weights_bytes),
            kv_per_token: files.kv_bytes_per_token + of_draft(|draft| draft.kv_bytes_per_token),
            context_length: profile.context_length.map_or(made_for, |wanted| wanted.min(made_for)),
            running_max: profile.running_max,
        }
    };
    let (device, plan, promise) = find_room(profile, &needs, devices, evictor).await?;
    let files = files.placed_on(device.kind);
    let draft = draft.map(|draft| draft.placed_on(device.kind));
    let memory = files.footprint(plan.kv) + draft.as_ref().map_or(Bytes(0), |draft| draft.footprint(plan.kv));
    let device_address = devices.get(device).ok_or_else(|| LoadError::Interrupted(format!("{device} is gone")))?;
    let (codec, defaults, kind) = (files.codec.clone(), files.defaults.clone(), files.kind());
    let Placed { slot, steps } = load_on(&device_address, files, draft, plan).await?;
    let weights = OnDevice { device: device_address, slot };
    let lease = promise.lease;
    Ok(Resident { codec, kind, defaults, device, steps, plan, memory, lease, _weights: weights, _promise: promise })
}

async fn open(source: &ModelSource) -> Result<ModelFiles, LoadError> {
    let path = match source {
        ModelSource::Embedded => ModelPath::Embedded,
        ModelSource::Path(path) => ModelPath::Path(path.clone()),
        ModelSource::Hub(hub) => return Err(LoadError::Refused(format!("hf:{hub} has not been fetched"))),
    };
    tokio::task::spawn_blocking(move || ModelFiles::open(&path))
        .await
        .map_err(|_| LoadError::Refused("reading its files panicked".into()))?
        .map_err(|error| LoadError::Refused(chain(&error)))
}

/// Errors: the draft model cannot be opened, or not speak for the model.
async fn open_draft(source: &ModelSource, files: &ModelFiles) -> Result<ModelFiles, LoadError> {
    let named = |why: String| LoadError::Refused(format!("draft = \"{source}\": {why}; choose another, or leave draft out"));
    let draft = open(source).await.map_err(|error| match error {
        LoadError::Refused(why) => named(why),
        LoadError::Interrupted(_) => error,
    })?;
    check_pair(files, &draft).map_err(|error| named(chain(&error)))?;
    Ok(draft)
}

async fn find_room(
    profile: &ModelProfile,
    needs: &(dyn Fn(DeviceKind) -> Needs + Sync),
    devices: &Devices,
    evictor: &Address<EvictorMsg>,
) -> Result<(DeviceId, Plan, Promised), LoadError> {
    static NEXT_LEASE: AtomicU64 = AtomicU64::new(1);
    let mut least = Bytes(0);
    let choices = choices(profile.device, devices, evictor).await?;
    for (device, free) in &choices {
        let needs = needs(device.kind);
        let plan = match plan(&needs, *free) {
            Ok(plan) => plan,
            Err(needed) => {
                least = needed;
                continue;
            }
        };
        let tokens = u64::from(plan.kv.n_blocks) * u64::from(plan.kv.block_len);
        let needed = Bytes(needs.weights.0 + tokens * needs.kv_per_token.0);
        let (model, lease) = (profile.id.clone(), Lease(NEXT_LEASE.fetch_add(1, Ordering::Relaxed)));
        let question = |reply| EvictorMsg::Promise { device: *device, model: model.clone(), lease, needed, reply };
        if evictor.call(question, EVICTOR_DEADLINE).await?.is_ok() {
            return Ok((*device, plan, Promised { evictor: evictor.clone(), device: *device, model, lease }));
        }
    }
    let refusal = NoRoom { needed: least, available: choices };
    Err(LoadError::Refused(format!("{refusal}; free memory, give it a larger share, or choose a smaller model or context_length")))
}

/// The devices that the model may go to, once all are open: a GPU takes longer than the CPU, and is the better place. One that does not open
/// in time is left out.
async fn choices(wanted: Option<DeviceId>, devices: &Devices, evictor: &Address<EvictorMsg>) -> Result<Vec<(DeviceId, Bytes)>, LoadError> {
    let n_expected = if wanted.is_some() { 1 } else { devices.len() };
    let deadline = Instant::now() + DEVICE_WAIT;
    loop {
        let choices = evictor.call(|reply| EvictorMsg::Choices(wanted, reply), EVICTOR_DEADLINE).await?;
        let late = Instant::now() > deadline;
        if choices.len() >= n_expected || (late && !choices.is_empty()) {
            return Ok(choices);
        }
        if late {
            let device = wanted.map_or_else(|| "no device".to_owned(), |device| format!("the device {device}"));
            return Err(LoadError::Refused(format!("{device} opened within {DEVICE_WAIT:?}")));
        }
        tokio::time::sleep(DEVICE_POLL).await;
    }
}

async fn load_on(device: &Address<DeviceMsg>, files: ModelFiles, draft: Option<ModelFiles>, plan: Plan) -> Result<Placed, LoadError> {
    let lost = |_| LoadError::Interrupted("the device was lost while it loaded the model".into());
    let deadline = Instant::now() + DEVICE_WAIT;
    while device.actor().is_none() && Instant::now() < deadline {
        tokio::time::sleep(DEVICE_POLL).await; // it is between two lives
    }
    let (reply, loaded) = oneshot::channel();
    let reply = Reply::new(move |result| drop(reply.send(result)));
    device.cast(DeviceMsg::Load { files: Arc::new(files), draft: draft.map(Arc::new), kv: plan.kv, reply }).map_err(lost)?;
    match loaded.await {
        Ok(Ok(placed)) => Ok(placed),
        Ok(Err(crate::device::DeviceError::Engine(why))) => Err(LoadError::Refused(why)),
        Ok(Err(error)) => Err(LoadError::Interrupted(error.to_string())),
        Err(_) => Err(lost(CallError::Gone)),
    }
}
