//! A device that computes encoders beside whatever it computes otherwise.

use std::collections::HashMap;
use std::fmt;

use candle_core::Device;
use plexus_types::Bytes;

use super::encoder::Encoder;
use super::work::EmbedWork;
use crate::batch::{Batch, BatchOutput};
use crate::error::EngineError;
use crate::executor::{DeviceDescription, Executor, Held, KvPlan, Slot};
use crate::model::{ModelFiles, step_tokens};

/// An executor for decoders, with encoders added: these are computed by candle-transformers on the same device.
pub struct EmbeddingExecutor<E> {
    decoders: E,
    device: Device,
    encoders: HashMap<Slot, Encoder>,
    /// Encoders that are yet to be read, in one go.
    loads: HashMap<Slot, ModelFiles>,
}

impl<E: Executor> EmbeddingExecutor<E> {
    /// Adds encoders to the device that `decoders` has open; candle knows it as `device`.
    pub fn new(decoders: E, device: Device) -> Self {
        Self { decoders, device, encoders: HashMap::new(), loads: HashMap::new() }
    }

    /// Adds encoders to the host's processors, which `decoders` has open.
    pub fn on_host(decoders: E) -> Self {
        Self::new(decoders, Device::Cpu)
    }

    fn failed(&self, error: candle_core::Error) -> EngineError {
        EngineError::Device { device: self.decoders.describe().id, reason: error.to_string() }
    }
}

impl<E: Executor> Executor for EmbeddingExecutor<E> {
    fn describe(&self) -> DeviceDescription {
        self.decoders.describe()
    }

    fn begin_load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        let Some(encoder) = files.encoder() else { return self.decoders.begin_load(slot, files, kv) };
        let resident = self.holds().into_iter().map(|(slot, held)| (slot, held.total()));
        let coming = self.loads.iter().map(|(slot, files)| (*slot, files.weights_bytes));
        self.describe().admit(slot, encoder.weights_bytes, resident.chain(coming))?;
        self.loads.insert(slot, files.clone());
        Ok(())
    }

    fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        let Some(files) = self.loads.remove(&slot) else { return self.decoders.load_part(slot) };
        let encoder = files.encoder().ok_or_else(|| EngineError::shape("only encoders are loaded here"))?;
        self.decoders.rest(); // what a decoder left is of no use to it
        let readout = files.readout()?.ok_or_else(|| EngineError::shape("an encoder that does not embed"))?;
        let encoder = Encoder::load(encoder, readout, &self.device, &|error| self.failed(error))?;
        files.weights().check_unchanged()?;
        self.encoders.insert(slot, encoder);
        Ok(true)
    }

    fn unload(&mut self, slot: Slot) {
        let is_encoder = self.encoders.remove(&slot).is_some() | self.loads.remove(&slot).is_some();
        if !is_encoder {
            self.decoders.unload(slot);
        }
    }

    fn holds(&self) -> Vec<(Slot, Held)> {
        let held = |encoder: &Encoder| Held { weights: encoder.files().weights_bytes, kv: Bytes(0) };
        let encoders = self.encoders.iter().map(|(slot, encoder)| (*slot, held(encoder)));
        encoders.chain(self.decoders.holds()).collect()
    }

    fn rest(&mut self) {
        self.decoders.rest();
    }

    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        match self.encoders.contains_key(&slot) {
            true => Err(EngineError::shape("an encoder does not generate")),
            false => self.decoders.step(slot, batch),
        }
    }

    fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError> {
        let Some(encoder) = self.encoders.get(&slot) else { return self.decoders.embed(slot, work) };
        let files = encoder.files();
        let stacks = work.stacks(step_tokens(false), encoder.stack_max(), |len| encoder.padded(len));
        for ids in stacks.iter().flat_map(|stack| &stack.texts).map(|text| work.ids(*text)) {
            if ids.is_empty() || ids.len() > files.max_context as usize {
                return Err(EngineError::shape(format!("a text of {} tokens; 1 to {} are possible", ids.len(), files.max_context)));
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= files.vocab_size) {
                return Err(EngineError::shape(format!("token {id} is beyond the vocabulary of {}", files.vocab_size)));
            }
        }
        for stack in stacks {
            let texts: Vec<&[u32]> = stack.texts.iter().map(|text| work.ids(*text)).collect();
            let vectors = encoder.embed(&stack, &texts).map_err(|error| self.failed(error))?;
            work.take_vectors(&stack.texts, vectors);
        }
        Ok(())
    }
}

impl<E: fmt::Debug> fmt::Debug for EmbeddingExecutor<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddingExecutor")
            .field("decoders", &self.decoders)
            .field("encoders", &self.encoders.len())
            .finish_non_exhaustive()
    }
}
