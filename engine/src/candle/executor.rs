//! The executor that computes: candle on the host's processors, or on a CUDA device where built for it.

use std::collections::HashMap;

use candle_core::Device;
use plexus_kernels::Team;
use plexus_types::{Bytes, DeviceId, DeviceKind};

use super::cache::KvCache;
use super::decoder::Decoder;
use super::load::{Loader, Reading, check_formats};
use crate::batch::{Batch, BatchOutput};
use crate::decoder::PART_BYTES;
use crate::embed::{EmbedWork, Readout};
use crate::error::EngineError;
use crate::executor::{DeviceDescription, Executor, GpuDescription, Held, KvPlan, Slot};
use crate::host;
use crate::layout::Layout;
use crate::model::{ModelFiles, step_tokens};
use crate::sample::draw_all;

/// A device and the models on it.
#[derive(Debug)]
pub struct CandleExecutor {
    description: DeviceDescription,
    device: Device,
    models: HashMap<Slot, Resident>,
    loads: HashMap<Slot, Load>,
    /// Where small models are computed: candle's own operations would wake other threads for the least of work.
    single: rayon::ThreadPool,
    /// Draws: this thread alone.
    alone: Team,
}

/// A model that is being read.
#[derive(Debug)]
struct Load {
    reading: Reading,
    plan: KvPlan,
    footprint: Bytes,
    readout: Option<Readout>,
}

/// A model on the device.
#[derive(Debug)]
struct Resident {
    decoder: Decoder,
    cache: KvCache,
    footprint: Bytes,
    small: bool,
    /// Set if the model was made to embed.
    readout: Option<Readout>,
}

impl CandleExecutor {
    /// Opens a device. Models may use `memory_share` of its memory, more than 0 and at most 1.
    ///
    /// Errors: [`EngineError::Device`] if there is no such device, [`EngineError::Unsupported`] if this build has no support for it.
    pub fn open(id: DeviceId, memory_share: f32) -> Result<Self, EngineError> {
        let (device, name, memory, gpu) = match id.kind {
            DeviceKind::Cpu => {
                let (name, memory) = host::describe(id)?;
                (Device::Cpu, name, memory, None)
            }
            DeviceKind::Cuda => open_cuda(id)?,
        };
        let memory_total = Bytes((memory as f64 * f64::from(memory_share.clamp(0.0, 1.0))) as u64);
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{id}-small")).build();
        let single = single.map_err(|error| EngineError::Device { device: id, reason: error.to_string() })?;
        let alone = Team::new(1).map_err(|error| EngineError::Device { device: id, reason: error.to_string() })?;
        let description = DeviceDescription { id, name, memory_total, gpu };
        Ok(Self { description, device, models: HashMap::new(), loads: HashMap::new(), single, alone })
    }

    /// The device, as candle knows it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a step and gives the logits that draws would be made from, in order of the draws. For tests and for measuring.
    pub fn logits(&mut self, slot: Slot, batch: &Batch) -> Result<Vec<Vec<f32>>, EngineError> {
        let model = self.models.get(&slot).ok_or_else(|| EngineError::shape("the slot holds no model"))?;
        let layout = Layout::new(batch, model.decoder.config.vocab_size, model.cache.plan)?;
        model.cache.copy(&batch.copies).map_err(|error| self.failed(error))?;
        if batch.tokens.is_empty() {
            return Ok(Vec::new());
        }
        // Where nothing is drawn the last row stands in: a prompt is only read.
        let last = [batch.tokens.len() as u32 - 1];
        let rows = if layout.rows.is_empty() { &last } else { &layout.rows[..] };
        let compute = || model.decoder.forward(&self.device, batch, &layout, rows, &model.cache)?.to_vec2();
        let logits = if model.small && self.device.is_cpu() { self.single.install(compute) } else { compute() };
        let mut logits: Vec<Vec<f32>> = logits.map_err(|error| self.failed(error))?;
        logits.truncate(layout.rows.len());
        Ok(logits)
    }

    /// An error of a load that needs so much. A GPU without memory is sound.
    fn failed_to_load(&self, error: candle_core::Error, needed: Bytes) -> EngineError {
        if error.to_string().contains("OUT_OF_MEMORY") { EngineError::Refused { needed } } else { self.failed(error) }
    }

    /// An error of the computation. On a GPU any of them may mean that its context is lost.
    fn failed(&self, error: candle_core::Error) -> EngineError {
        EngineError::Device { device: self.description.id, reason: error.to_string() }
    }
}

impl Executor for CandleExecutor {
    fn describe(&self) -> DeviceDescription {
        self.description.clone()
    }

    fn begin_load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        kv.check(1)?;
        let footprint = files.clone().placed_on(DeviceKind::Cuda).footprint(kv);
        let resident = self.models.iter().map(|(slot, model)| (*slot, model.footprint));
        let coming = self.loads.iter().map(|(slot, load)| (*slot, load.footprint));
        self.description.admit(slot, footprint, resident.chain(coming))?;
        let readout = files.readout()?;
        check_formats(files)?;
        if free_memory(self.description.id).is_some_and(|free| free < footprint) {
            return Err(EngineError::Refused { needed: footprint }); // other programs have it
        }
        self.loads.insert(slot, Load { reading: Reading::new(files.clone(), PART_BYTES), plan: kv, footprint, readout });
        Ok(())
    }

    fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let mut load = self.loads.remove(&slot).ok_or_else(|| EngineError::shape("nothing is being loaded into the slot"))?;
        let footprint = load.footprint;
        let failed = |error| self.failed_to_load(error, footprint);
        let Some(decoder) = load.reading.read(&Loader { device: &self.device, failed: &failed })? else {
            self.loads.insert(slot, load);
            return Ok(false);
        };
        let cache = KvCache::new(&decoder.config, load.plan, &self.device).map_err(failed)?;
        let small = load.reading.files().weights().small();
        self.models.insert(slot, Resident { decoder, cache, footprint, small, readout: load.readout });
        Ok(true)
    }

    fn unload(&mut self, slot: Slot) {
        self.loads.remove(&slot);
        self.models.remove(&slot);
    }

    fn holds(&self) -> Vec<(Slot, Held)> {
        let held = |model: &Resident| Held { weights: Bytes(model.decoder.bytes as u64), kv: Bytes(model.cache.bytes()) };
        self.models.iter().map(|(slot, model)| (*slot, held(model))).collect()
    }

    fn rest(&mut self) {
        plexus_kernels::memory::give_back(); // vocabularies and what else the host held
    }

    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        let mut logits = self.logits(slot, batch)?;
        draw_all(&self.alone, batch, &mut logits.iter_mut().map(Vec::as_mut_slice))
    }

    fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError> {
        let model = self.models.get(&slot).ok_or_else(|| EngineError::shape("the slot holds no model"))?;
        let readout = model.readout.as_ref().ok_or_else(|| EngineError::shape("the model was not made to embed"))?;
        let config = &model.decoder.config;
        let piece = work.piece(step_tokens(model.small), model.cache.plan)?;
        let layout = Layout::new(&piece, config.vocab_size, model.cache.plan)?;
        let rows: Vec<u32> = (0..piece.tokens.len() as u32).collect();
        let hidden = model.decoder.hidden(&self.device, &piece, &layout, &rows, &model.cache);
        let hidden = hidden.and_then(|hidden| hidden.flatten_all()?.to_vec1::<f32>()).map_err(|error| self.failed(error))?;
        work.take(&piece, &hidden, config.hidden, readout);
        Ok(())
    }
}

/// A device, its name, the bytes of its memory, and what else it tells of itself.
type Opened = (Device, String, u64, Option<GpuDescription>);

#[cfg(feature = "cuda")]
fn open_cuda(id: DeviceId) -> Result<Opened, EngineError> {
    let failed = |reason: String| EngineError::Device { device: id, reason };
    let device = Device::new_cuda(id.ordinal as usize).map_err(|error| failed(error.to_string()))?;
    let context = cudarc::driver::CudaContext::new(id.ordinal as usize).map_err(|error| failed(error.to_string()))?;
    let name = context.name().map_err(|error| failed(error.to_string()))?;
    let (_free, total) = context.mem_get_info().map_err(|error| failed(error.to_string()))?;
    let capability = context.compute_capability().ok();
    let compute_capability = capability.and_then(|(major, minor)| Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?)));
    let gpu = GpuDescription { memory: Bytes(total as u64), compute_capability };
    Ok((device, name, total as u64, Some(gpu)))
}

/// Memory that nobody has, other programs included; absent where the device does not tell.
#[cfg(feature = "cuda")]
fn free_memory(id: DeviceId) -> Option<Bytes> {
    if id.kind == DeviceKind::Cpu {
        return None;
    }
    let context = cudarc::driver::CudaContext::new(id.ordinal as usize).ok()?;
    context.mem_get_info().ok().map(|(free, _total)| Bytes(free as u64))
}

#[cfg(not(feature = "cuda"))]
fn free_memory(_id: DeviceId) -> Option<Bytes> {
    None
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(id: DeviceId) -> Result<Opened, EngineError> {
    Err(EngineError::unsupported(format!("device {id}"), "cpu-0; build with the feature cuda for NVIDIA GPUs"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::batch::BlockId;
    use crate::model::ModelPath;

    const POOL: KvPlan = KvPlan { n_blocks: 4, block_len: 4 };

    fn cpu() -> CandleExecutor {
        CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5).unwrap()
    }

    #[test]
    fn the_ledger_is_what_is_held() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let gguf = |name: &str| ModelPath::Path(golden.join(name));
        for source in [ModelPath::Embedded, gguf("llama/llama-bf16.gguf"), gguf("qwen2/qwen2-q8_0.gguf")] {
            let files = ModelFiles::open(&source).unwrap().placed_on(DeviceKind::Cuda);
            let mut executor = cpu();
            executor.load(Slot(0), &files, POOL).unwrap();
            let model = &executor.models[&Slot(0)];
            assert_eq!(files.weights_bytes.0, model.decoder.bytes as u64, "{source}");
            assert_eq!(files.kv_bytes_per_token.0 * 16, model.cache.bytes(), "{source}");
            assert_eq!(files.footprint(POOL).0, files.weights_bytes.0 + model.cache.bytes());
            assert_eq!(executor.holds()[0].1.total(), files.footprint(POOL));
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused_before_anything_is_computed() {
        let good = || {
            let mut batch = Batch::default();
            batch.push(&[1, 2, 3], 2, &[BlockId(0), BlockId(3)], None);
            batch.push(&[4], 0, &[BlockId(1)], None);
            batch
        };
        let batch = good();
        let layout = Layout::new(&batch, 10, POOL).unwrap();
        assert_eq!(layout.slots, [2, 3, 12, 4]);
        assert_eq!(layout.spans[0].slots(POOL), [0, 1, 2, 3, 12]);
        let breaks: [fn(&mut Batch); 10] = [
            |batch| batch.tokens[0] = 10,
            |batch| batch.blocks[1] = BlockId(4),
            |batch| batch.positions[1] = 7,
            |batch| batch.positions[2] = u32::MAX,
            |batch| batch.seq_starts[1] = 9,
            |batch| batch.seq_starts[1] = 4,
            |batch| batch.block_starts = vec![0, 3],
            |batch| batch.block_starts[1] = 0,
            |batch| batch.positions.truncate(3),
            |batch| batch.draws.push(None),
        ];
        for (i, break_it) in breaks.into_iter().enumerate() {
            let mut batch = good();
            break_it(&mut batch);
            assert!(matches!(Layout::new(&batch, 10, POOL), Err(EngineError::Shape { .. })), "break {i} was accepted");
        }
        assert!(cpu().step(Slot(9), &good()).is_err());
    }
}
