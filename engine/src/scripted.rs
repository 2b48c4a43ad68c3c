//! An executor that computes nothing and answers from a script: for tests and benches of everything above the device.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use plexus_types::{Bytes, DeviceId};

use crate::batch::{Batch, BatchOutput, Draw};
use crate::embed::EmbedWork;
use crate::error::EngineError;
use crate::executor::{DeviceDescription, Executor, Held, KvPlan, Slot};
use crate::model::ModelFiles;
use crate::sample::DrawLogprobs;

/// What a [`ScriptedExecutor`] does. The token at a position depends on the position only, so that a stream continued elsewhere
/// with the same script goes on with the same tokens.
#[derive(Debug, Clone)]
pub struct Script {
    /// Memory that the device claims to have.
    pub memory_total: Bytes,
    /// How long each part of a load takes.
    pub load_time: Duration,
    /// A load hangs until this is opened.
    pub load_gate: Option<Gate>,
    /// Parts that a load has; at least one.
    pub load_parts: u64,
    /// How long a step takes.
    pub step_time: Duration,
    /// Tokens given for each draw; more than one as a speculating executor gives them.
    pub tokens_per_step: usize,
    /// The token at position `p` is `ids[p % ids.len()]`. Not empty.
    pub ids: Vec<u32>,
    /// The token at and after a position is this one instead: the end of the answer.
    pub ends: Option<End>,
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
}

/// Where the answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Position in the sequence, prompt included.
    pub position: u32,
    /// The token that says so.
    pub id: u32,
}

/// Something that goes wrong at a step.
#[derive(Debug, Clone)]
pub struct Fault {
    /// At which step of this executor, counted from 0 over all slots.
    pub at_step: u64,
    /// What happens there.
    pub kind: FaultKind,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum FaultKind {
    /// The batch fails; the device is sound.
    Batch,
    /// The device fails and can no longer be trusted.
    Device,
    /// The device's thread panics.
    Panic,
    /// The device hangs until the gate is opened.
    Hang(Gate),
}

/// What a hanging step or load waits for. Clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets all who wait go on, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_while(guard, |open| !*open).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Default for Script {
    /// One gibibyte, no delays, loads in one part, one token a step, ids 65 to 90, no end, no faults.
    fn default() -> Self {
        Self {
            memory_total: Bytes::mib(1024),
            load_time: Duration::ZERO,
            load_gate: None,
            load_parts: 1,
            step_time: Duration::ZERO,
            tokens_per_step: 1,
            ids: (65..=90).collect(),
            ends: None,
            faults: Vec::new(),
        }
    }
}

impl Script {
    /// The token at a position.
    pub fn token(&self, position: u32) -> u32 {
        match self.ends {
            Some(end) if position >= end.position => end.id,
            _ => self.ids[position as usize % self.ids.len()],
        }
    }
}

/// An executor without a model. It keeps the ledger of its memory and checks slots as a real one does.
#[derive(Debug)]
pub struct ScriptedExecutor {
    id: DeviceId,
    script: Script,
    loaded: HashMap<Slot, Bytes>,
    /// What is being loaded needs so much, in so many further parts.
    loads: HashMap<Slot, (Bytes, u64)>,
    steps: u64,
}

impl ScriptedExecutor {
    /// A device that follows `script`.
    pub fn new(id: DeviceId, script: Script) -> Self {
        Self { id, script, loaded: HashMap::new(), loads: HashMap::new(), steps: 0 }
    }

    /// Steps asked for so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

impl Executor for ScriptedExecutor {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription { id: self.id, name: "scripted".into(), memory_total: self.script.memory_total, gpu: None }
    }

    fn begin_load(&mut self, slot: Slot, files: &ModelFiles, kv: KvPlan) -> Result<(), EngineError> {
        let needed = files.footprint(kv);
        let coming = self.loads.iter().map(|(slot, (bytes, _))| (*slot, *bytes));
        self.describe().admit(slot, needed, self.loaded.iter().map(|(slot, bytes)| (*slot, *bytes)).chain(coming))?;
        self.loads.insert(slot, (needed, self.script.load_parts));
        Ok(())
    }

    fn load_part(&mut self, slot: Slot) -> Result<bool, EngineError> {
        pause(self.script.load_time);
        self.script.load_gate.iter().for_each(Gate::wait);
        let (bytes, left) = self.loads.get_mut(&slot).ok_or_else(|| EngineError::shape("nothing is being loaded into the slot"))?;
        *left = left.saturating_sub(1);
        let (bytes, is_there) = (*bytes, *left == 0);
        if is_there {
            self.loads.remove(&slot);
            self.loaded.insert(slot, bytes);
        }
        Ok(is_there)
    }

    fn unload(&mut self, slot: Slot) {
        self.loads.remove(&slot);
        self.loaded.remove(&slot);
    }

    fn holds(&self) -> Vec<(Slot, Held)> {
        self.loaded.iter().map(|(slot, bytes)| (*slot, Held { weights: *bytes, kv: Bytes(0) })).collect()
    }

    fn rest(&mut self) {}

    fn step(&mut self, slot: Slot, batch: &Batch) -> Result<BatchOutput, EngineError> {
        let step = self.steps;
        self.steps += 1;
        pause(self.script.step_time);
        for fault in self.script.faults.iter().filter(|fault| fault.at_step == step) {
            match &fault.kind {
                FaultKind::Batch => return Err(EngineError::shape(format!("scripted fault at step {step}"))),
                FaultKind::Device => {
                    return Err(EngineError::Device { device: self.id, reason: format!("scripted fault at step {step}") });
                }
                FaultKind::Panic => panic!("scripted panic at step {step}"),
                FaultKind::Hang(gate) => gate.wait(),
            }
        }
        if !self.loaded.contains_key(&slot) {
            return Err(EngineError::shape("the slot holds no model"));
        }
        let tokens = |position: u32| (position..).take(self.script.tokens_per_step).map(|position| self.script.token(position)).collect();
        let sampled = batch.draws.iter().map(|draw| draw.as_ref().map_or(Vec::new(), |draw| tokens(draw.position)));
        let sampled: Vec<Vec<u32>> = sampled.collect();
        // What the script says is certain, and nothing else could have come.
        let certain = |ids: &Vec<u32>| vec![DrawLogprobs { drawn: 0.0, top: Vec::new() }; ids.len()];
        let logprobs = sampled.iter().zip(&batch.draws).map(|(ids, draw)| match draw {
            Some(Draw { logprobs: Some(_), .. }) => certain(ids),
            Some(_) | None => Vec::new(),
        });
        Ok(BatchOutput { logprobs: logprobs.collect(), sampled, ..BatchOutput::default() })
    }

    fn embed(&mut self, slot: Slot, work: &mut EmbedWork) -> Result<(), EngineError> {
        pause(self.script.step_time);
        if !self.loaded.contains_key(&slot) {
            return Err(EngineError::shape("the slot holds no model"));
        }
        let vector = |ids: &[u32]| {
            let place = ids.first().map_or(0, |id| *id as usize % SCRIPTED_DIMENSIONS);
            (0..SCRIPTED_DIMENSIONS).map(|i| if i == place { 1.0 } else { 0.0 }).collect()
        };
        for stack in work.stacks(PIECE_TOKENS, usize::MAX, |len| len) {
            let vectors = stack.texts.iter().map(|text| vector(work.ids(*text))).collect();
            work.take_vectors(&stack.texts, vectors);
        }
        Ok(())
    }
}

/// What a script embeds a text as: a vector of length 1 that tells its first token.
const SCRIPTED_DIMENSIONS: usize = 8;
/// Tokens of texts that are embedded at once.
const PIECE_TOKENS: usize = 512;

fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use plexus_types::{DeviceKind, Sampling};

    use super::*;
    use crate::batch::BlockId;
    use crate::model::ModelPath;
    use crate::sample::SamplerSettings;

    const SLOT: Slot = Slot(3);
    const KV: KvPlan = KvPlan { n_blocks: 4, block_len: 16 };

    fn loaded(script: Script) -> ScriptedExecutor {
        let mut executor = ScriptedExecutor::new(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, script);
        executor.load(SLOT, &ModelFiles::open(&ModelPath::Embedded).unwrap(), KV).unwrap();
        executor
    }

    fn batch(position: u32) -> Batch {
        let settings = Arc::new(SamplerSettings::resolve(&Sampling::default(), &Sampling::default(), 0));
        let mut batch = Batch::default();
        batch.push(&[1], position - 1, &[BlockId(0)], Some(Draw::new(settings, position)));
        batch.push(&[1], 0, &[BlockId(1)], None);
        batch
    }

    #[test]
    fn tokens_depend_on_the_position_only_and_end_where_the_script_says() {
        let script = Script { tokens_per_step: 2, ends: Some(End { position: 5, id: 7 }), ..Script::default() };
        let mut executor = loaded(script);
        assert_eq!(executor.step(SLOT, &batch(1)).unwrap().sampled, [vec![66, 67], vec![]]);
        assert_eq!(executor.step(SLOT, &batch(4)).unwrap().sampled, [vec![69, 7], vec![]]);
    }

    #[test]
    fn faults_come_at_their_steps() {
        let fault = |at_step, kind| Fault { at_step, kind };
        let gate = Gate::default();
        let faults = vec![fault(0, FaultKind::Batch), fault(1, FaultKind::Device), fault(2, FaultKind::Hang(gate.clone()))];
        let mut executor = loaded(Script { faults, ..Script::default() });
        assert!(matches!(executor.step(SLOT, &batch(1)), Err(EngineError::Shape { .. })));
        assert!(matches!(executor.step(SLOT, &batch(1)), Err(EngineError::Device { .. })));
        gate.open();
        assert!(executor.step(SLOT, &batch(1)).is_ok());
        assert_eq!(executor.steps(), 3);
        executor.unload(SLOT);
        assert!(executor.step(SLOT, &batch(1)).is_err());
    }

    #[test]
    fn the_ledger_refuses_what_does_not_fit() {
        let mut executor = loaded(Script { memory_total: Bytes::mib(16), ..Script::default() });
        let files = ModelFiles::open(&ModelPath::Embedded).unwrap();
        let large = KvPlan { n_blocks: 10_000, block_len: 16 };
        assert!(matches!(executor.load(Slot(4), &files, large), Err(EngineError::Memory { .. })));
    }
}
