//! The host's processors as a device.

use std::collections::HashMap;

use plexus_kernels::Team;
use plexus_kernels::attention::KvPool;
use plexus_kernels::memory::give_back;
use plexus_types::{Bytes, DeviceId};

use super::buffers::Buffers;
use super::weights::{Decoder, Loader, Reading};
use crate::batch::{Batch, BatchOutput};
use crate::decoder::PART_BYTES;
use crate::embed::{EmbedWork, Readout};
use crate::error::EngineError;
use crate::executor::{DeviceDescription, Executor, Held, KvPlan, Slot};
use crate::host;
use crate::layout::Layout;
use crate::model::{ModelFiles, kv_element, step_tokens};
use crate::sample::draw_all;

/// The host's processors and the models on them.
#[derive(Debug)]
pub struct CpuExecutor {
    description: DeviceDescription,
    /// Computes what is not small.
    team: Team,
    /// Computes small models: the device's own thread alone.
    single: Team,
    models: HashMap<Slot, Resident>,
    loads: HashMap<Slot, Load>,
    /// Bytes of a large matrix that are read in a part of a load.
    part_bytes: usize,
}

/// A model that is being read.
#[derive(Debug)]
struct Load {
    reading: Reading,
    plan: KvPlan,
    readout: Option<Readout>,
}

/// A model in memory.
#[derive(Debug)]
struct Resident {
    decoder: Decoder,
    /// One for each layer.
    pools: Vec<KvPool>,
    buffers: Buffers,
    plan: KvPlan,
    held: Held,
    small: bool,
    /// Set if the model was made to embed.
    readout: Option<Readout>,
}

/// What a step gave, and who computed it.
struct Computed<'a> {
    team: &'a Team,
    vocab_size: usize,
    /// `[n_rows, vocab_size]`, of the wanted rows.
    logits: &'a mut [f32],
}

impl CpuExecutor {
    /// Opens the device. Models may use `memory_share` of the host's memory, more than 0 and at most 1, and `n_threads` threads, the caller's
    /// included; absent: as many as there are cores for this process.
    ///
    /// Errors: [`EngineError::Device`] if the host does not tell its memory or gives no more threads.
    pub fn open(id: DeviceId, memory_share: f32, n_threads: Option<usize>) -> Result<Self, EngineError> {
        let (name, memory) = host::describe(id)?;
        let memory_total = Bytes((memory as f64 * f64::from(memory_share.clamp(0.0, 1.0))) as u64);
        let team = |n_threads| Team::new(n_threads).map_err(|error| EngineError::Device { device: id, reason: error.to_string() });
        Ok(Self {
            description: DeviceDescription { id, name, memory_total, gpu: None },
            team: team(n_threads.unwrap_or_else(host::n_cores))?,
            single: team(1)?,
            models: HashMap::new(),
            loads: HashMap::new(),
            part_bytes: PART_BYTES,
        })
    }

    /// The same, with so much memory for models instead of a share.
    #[must_use]
    pub fn with_memory(mut self, memory: Bytes) -> Self {
        self.description.memory_total = memory;
        self
    }

    /// The same, with so many bytes of a large matrix in a part of a load: fewer than otherwise hold up others less, and take longer together.
    #[must_use]
    pub fn with_load_parts(mut self, bytes: usize) -> Self {
        self.part_bytes = bytes;
        self
    }

    /// Runs a step and gives the logits that draws would be made from, in order of the draws. For tests and for measuring.
    pub fn logits(&mut self, slot: Slot, batch: &Batch) -> Result<Vec<Vec<f32>>, EngineError> {
        let Computed { logits, vocab_size, .. } = self.compute(slot, batch)?;
        Ok(logits.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect())
    }

    fn compute(&mut self, slot: Slot, batch: &Batch) -> Result<Computed<'_>, EngineError> {
        let model = self.models.get_mut(&slot).ok_or_else(|| EngineError::shape("the slot holds no model"))?;
        let vocab_size = model.decoder.config.vocab_size;
        let layout = Layout::new(batch, vocab_size, model.plan)?;
        for copy in &batch.copies {
            model.pools.iter_mut().for_each(|pool| pool.copy(copy.from.0, copy.to.0));
        }
        let team = if model.small { &self.single } else { &self.team };
        if batch.tokens.is_empty() {
            return Ok(Computed { team, vocab_size, logits: &mut [] });
        }
        let logits = model.decoder.forward(team, batch, &layout, &layout.rows, &mut model.pools, &mut model.buffers);
        Ok(Computed { team, vocab_size, logits })
    }
}

impl Load {
    /// All weights are there: the pool follows.
    fn settle(self, decoder: Decoder) -> Result<Resident, EngineError> {
        let Self { reading, plan, readout } = self;
        give_back(); // before the pool takes memory, which was promised without what others left
        let (files, config) = (reading.files(), &decoder.config);
        let small = files.weights().small();
        let element = kv_element(small);
        let pool = |_| KvPool::new(element, config.kv_heads, config.head_dim, plan.n_blocks as usize, plan.block_len as usize);
        let pools: Option<Vec<KvPool>> = (0..config.layers.len()).map(pool).collect();
        let of_pools = || files.footprint(plan) - files.footprint(KvPlan { n_blocks: 0, ..plan });
        let pools = pools.ok_or_else(|| EngineError::Refused { needed: of_pools() })?;
        let held = Held { weights: Bytes(decoder.bytes as u64), kv: Bytes(pools.iter().map(KvPool::bytes).sum::<usize>() as u64) };
        Ok(Resident { decoder, pools, buffers: Buffers::default(), plan, held, small, readout })
    }
}

impl Executor for CpuExecutor {
    fn describe(&self) -> DeviceDescription {
        self.description.clone()
    }

    fn begin_load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        kv.check(KvPool::GROUP as u32)?;
        let resident = self.models.iter().map(|(slot, model)| (*slot, model.held.total()));
        let coming = self.loads.iter().map(|(slot, load)| (*slot, load.reading.files().footprint(load.plan)));
        self.description.admit(slot, files.footprint(kv), resident.chain(coming))?;
        let readout = files.readout()?;
        self.loads.insert(slot, Load { reading: Reading::new(files.clone(), self.part_bytes), plan: kv, readout });
        Ok(())
    }

    fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let mut load = self.loads.remove(&slot).ok_or_else(|| EngineError::shape("nothing is being loaded into the slot"))?;
        let weights = load.reading.files().weights();
        let team = if weights.small() { &self.single } else { &self.team };
        let path = weights.path().to_owned();
        let Some(decoder) = load.reading.read(&Loader { path: &path, team })? else {
            self.loads.insert(slot, load);
            return Ok(false);
        };
        self.models.insert(slot, load.settle(decoder)?);
        Ok(true)
    }

    fn unload(&mut self, slot: Slot) {
        self.loads.remove(&slot);
        self.models.remove(&slot);
    }

    fn holds(&self) -> Vec<(Slot, Held)> {
        self.models.iter().map(|(slot, model)| (*slot, model.held)).collect()
    }

    fn rest(&mut self) {
        give_back();
    }

    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        let Computed { team, vocab_size, logits } = self.compute(slot, batch)?;
        draw_all(team, batch, &mut logits.chunks_exact_mut(vocab_size))
    }

    fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError> {
        let model = self.models.get_mut(&slot).ok_or_else(|| EngineError::shape("the slot holds no model"))?;
        let readout = model.readout.as_ref().ok_or_else(|| EngineError::shape("the model was not made to embed"))?;
        let team = if model.small { &self.single } else { &self.team };
        let config = &model.decoder.config;
        let piece = work.piece(step_tokens(model.small), model.plan)?;
        let layout = Layout::new(&piece, config.vocab_size, model.plan)?;
        let hidden = model.decoder.hidden(team, &piece, &layout, &mut model.pools, &mut model.buffers);
        work.take(&piece, hidden, config.hidden, readout);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use plexus_types::DeviceKind;

    use super::*;
    use crate::model::{ModelPath, Quantization};

    #[test]
    fn the_ledger_is_what_is_held() {
        let plan = KvPlan { n_blocks: 3, block_len: 16 };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut sources = vec![ModelPath::Embedded];
        sources.extend(
            ["llama/llama-bf16.gguf", "gemma3/gemma3-q8_0.gguf", "qwen2_moe/qwen2_moe-bf16.gguf"]
                .map(|file| ModelPath::Path(golden.join(file))),
        );
        for source in sources {
            let files = ModelFiles::open(&source).unwrap();
            let small = files.clone();
            for files in [small, files.clone().held_as_large(), files.quantized(Quantization::Q8_0).unwrap()] {
                let mut executor = CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5, Some(1)).unwrap();
                executor.load(Slot(0), &files, plan).unwrap();
                let [(Slot(0), held)] = executor.holds()[..] else { panic!("{:?}", executor.holds()) };
                assert_eq!(held.total(), files.footprint(plan), "{source}");
                assert_eq!(held.weights, files.footprint(KvPlan { n_blocks: 0, ..plan }), "{source}");
                executor.unload(Slot(0));
                assert_eq!(executor.holds(), []);
            }
        }
    }
}
