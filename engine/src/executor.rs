//! The seam between the actors and a device: what a device can do, whatever it is.

use plexus_types::{Bytes, DeviceId};

use crate::batch::{Batch, BatchOutput, BlockId};
use crate::embed::EmbedWork;
use crate::error::EngineError;
use crate::model::ModelFiles;

/// A device, opened. It lives on one OS thread, which alone touches it (CX-60, CX-61), so it need not be `Send`.
///
/// A [`crate::DraftingExecutor`] round it adds draft models.
///
/// The real ones are [`crate::CpuExecutor`] and, for GPUs, [`crate::CandleExecutor`]; [`crate::scripted::ScriptedExecutor`] answers from a script, for
/// tests and benches.
pub trait Executor {
    /// What the device is.
    fn describe(&self) -> DeviceDescription;

    /// Begins to bring a model's weights and a pool of KV blocks onto the device, under `slot`, which is free. Nothing is read yet, but what the model
    /// needs is nobody else's from now on.
    ///
    /// Errors leave the device as it was.
    fn begin_load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError>;

    /// Goes on with a load by a part, of a decoder no more than a layer, or some rows of a larger matrix: so other models of the device take their
    /// steps between two parts. True once the model is there.
    ///
    /// Errors free the slot.
    fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError>;

    /// Brings a model onto the device in one go, for those who have it to themselves: see [`Executor::begin_load`].
    fn load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        self.begin_load(slot, files, kv)?;
        while !self.load_part(slot)? {}
        Ok(())
    }

    /// Frees what `slot` holds, of a load that is under way too. A slot that holds nothing is left alone. Memory may be kept for the model that is loaded next, until
    /// [`Executor::rest`].
    fn unload(&mut self, slot: Slot);

    /// What the device really holds for its models, by slot: not what was promised to them. What steps work in is not among it, nor is a model
    /// that is not wholly there.
    fn holds(&self) -> Vec<(Slot, Held)>;

    /// Nothing is to be loaded soon: memory that was kept for that goes back to the system.
    fn rest(&mut self);

    /// Runs one step of the model in `slot` over `batch` and samples where the batch asks for it.
    ///
    /// A sequence's result depends on its own tokens and settings only, never on what else is in the batch.
    /// Errors: [`EngineError::Device`] means that the device can no longer be trusted; any other concerns this batch alone.
    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError>;

    /// Goes on with texts to embed with the model in `slot`, by a piece: of a decoder no more tokens than a usual step has, of an encoder one
    /// text, or more that have no more together. A text's vector has length 1 and depends on its own tokens only.
    ///
    /// No sequence of the model may be under way, nor other work be within a text: its KV pool is used. Errors: as [`Executor::step`].
    fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError>;
}

/// Which of a device's resident models. Chosen by the device's actor, never reused while the model is resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u32);

/// Memory that a model has on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Its weights.
    pub weights: Bytes,
    /// The keys and values of its sequences.
    pub kv: Bytes,
}

impl Held {
    /// Both together.
    pub fn total(&self) -> Bytes {
        self.weights + self.kv
    }
}

/// What a device is and how much memory models may use on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDescription {
    /// Which device of its node.
    pub id: DeviceId,
    /// What its maker calls it.
    pub name: String,
    /// Memory that models may use in all.
    pub memory_total: Bytes,
    /// What else a GPU tells of itself; absent for processors.
    pub gpu: Option<GpuDescription>,
}

/// What a GPU tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuDescription {
    /// All of its memory, whoever may use it.
    pub memory: Bytes,
    /// Major and minor number of its compute capability; absent if it does not tell.
    pub compute_capability: Option<(u32, u32)>,
}

impl DeviceDescription {
    /// Checks before a model is brought onto the device that its slot is free and that there is room beside the models that are `resident`.
    pub(crate) fn admit(&self, slot: Slot, needed: Bytes, resident: impl Iterator<Item = (Slot, Bytes)>) -> Result<(), EngineError> {
        let mut free = self.memory_total;
        for (taken, bytes) in resident {
            if taken == slot {
                return Err(EngineError::shape("the slot holds a model already"));
            }
            free = free.saturating_sub(bytes);
        }
        if needed > free { Err(EngineError::Memory { device: self.id, needed, free }) } else { Ok(()) }
    }
}

/// How large a model's KV pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPlan {
    /// Blocks in the pool.
    pub n_blocks: u32,
    /// Tokens in a block.
    pub block_len: u32,
}

impl KvPlan {
    /// Checks that there are blocks, each of a multiple of `group` tokens, and that a `u32` can number all slots.
    pub(crate) fn check(self, group: u32) -> Result<(), EngineError> {
        let has_slots = self.n_blocks.checked_mul(self.block_len).is_some_and(|n_slots| n_slots > 0);
        if has_slots && self.block_len.is_multiple_of(group) {
            return Ok(());
        }
        Err(EngineError::shape(format!("{self:?} is no KV pool; a block holds a multiple of {group} tokens, and all less than 2^32")))
    }

    /// The slot of a position, `block * block_len + place in the block`, in a sequence with these blocks, among which it is.
    pub(crate) fn slot(self, table: &[BlockId], position: u32) -> u32 {
        table[(position / self.block_len) as usize].0 * self.block_len + position % self.block_len
    }
}
