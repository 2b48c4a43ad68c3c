//! A scheduler, an executor and a model, without the actors between them.

use std::collections::BTreeMap;
use std::time::Duration;

use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::model::scheduler::{Counts, Limits, Scheduler};
use plexus_actors::model::sequence::Sequence;
use plexus_engine::{BatchOutput, CpuExecutor, DraftingExecutor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot};
use plexus_types::{Delta, DeviceId, DeviceKind, FinishReason, GenerateRequest, Prompt, Sampling, TokenLogprobs};
use tokio::time::Instant;

pub(crate) const SLOT: Slot = Slot(0);
const SEED: u64 = 11;

/// What an answer was.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) end: Option<FinishReason>,
}

/// How the requests are served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    pub(crate) guesses_max: u32,
    pub(crate) running_max: u32,
    pub(crate) n_blocks: u32,
    pub(crate) prompt_tokens_max: u32,
}

/// One after the other, nothing guessed.
pub(crate) const PLAIN: Service = Service { guesses_max: 0, running_max: 1, n_blocks: 64, prompt_tokens_max: 512 };
/// Together, in chunks, with guesses, in a pool that is too small for all.
pub(crate) const CROWDED: Service = Service { guesses_max: 16, running_max: 6, n_blocks: 14, prompt_tokens_max: 48 };

pub(crate) struct Model {
    pub(crate) files: ModelFiles,
    /// Speaks for the model where drafts are asked for.
    draft: Option<ModelFiles>,
    pub(crate) executor: DraftingExecutor,
}

impl Model {
    /// The embedded model.
    pub(crate) fn new() -> Self {
        Self::with_draft(None)
    }

    pub(crate) fn with_draft(draft: Option<ModelFiles>) -> Self {
        Self::of(ModelFiles::open(&ModelPath::Embedded).unwrap(), draft, 1)
    }

    pub(crate) fn of(files: ModelFiles, draft: Option<ModelFiles>, n_threads: usize) -> Self {
        let executor = CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5, Some(n_threads)).unwrap();
        Self { files, draft, executor: DraftingExecutor::new(Box::new(executor)) }
    }

    /// The sequence of a request, continued behind `begun`.
    fn sequence(&self, request: &GenerateRequest, begun: &[u32]) -> Sequence {
        let codec = &self.files.codec;
        let prompt = codec.encode(&request.prompt).unwrap();
        let seed = request.sampling.seed.unwrap_or(SEED);
        let settings = SamplerSettings::resolve(&request.sampling, &Sampling::default(), seed).with_stop_ids(codec.stop_ids());
        let constraint = codec.constraint(request, &prompt).unwrap();
        let decoder = codec.answer(request, seed, &prompt);
        let max = request.max_tokens.unwrap_or(100);
        let (mut sequence, end) = Sequence::new(settings, prompt, begun.to_vec(), decoder, max, u32::MAX);
        assert_eq!(end, None);
        sequence.want_logprobs(request.logprobs);
        if let Some(constraint) = constraint {
            sequence.constrain(codec.grammar(&constraint, "response_format").unwrap());
        }
        sequence
    }

    /// Serves requests, each with what it was answered already, to their ends.
    pub(crate) fn serve(&mut self, requests: &[(GenerateRequest, Vec<u32>)], service: Service) -> (Vec<Answer>, Counts) {
        let kv = KvPlan { n_blocks: service.n_blocks, block_len: BLOCK_LEN };
        self.executor.load(SLOT, &self.files, self.draft.as_ref(), kv).unwrap();
        let mut scheduler = Scheduler::new(Limits {
            running_max: service.running_max,
            n_blocks: service.n_blocks,
            block_len: BLOCK_LEN,
            prompt_tokens_max: service.prompt_tokens_max,
            guesses_max: service.guesses_max,
            drafts_max: if self.draft.is_some() { 6 } else { 0 },
        });
        for (label, (request, begun)) in requests.iter().enumerate() {
            scheduler.push(label, self.sequence(request, begun), None);
        }
        let mut answers: BTreeMap<usize, Answer> = BTreeMap::new();
        let mut now = Instant::now();
        while let Some(batch) = scheduler.next_step(now, |_| {}) {
            scheduler.check_invariants().unwrap();
            let output = self.executor.step(SLOT, &batch).unwrap();
            let output = BatchOutput { drafting: Duration::ZERO, ..output }; // time passes as this test says
            now += Duration::from_millis(20); // a row more costs nothing, so that as much is guessed as may be
            scheduler.on_step(&output, now, |label, _, progress| {
                assert_eq!(progress.refused, None);
                let answer = answers.entry(*label).or_default();
                answer.ids.extend(progress.ids);
                answer.text += &Delta::text_of(&progress.deltas);
                answer.logprobs.extend(progress.logprobs);
                answer.end = progress.end;
            });
        }
        self.executor.unload(SLOT);
        assert_eq!(scheduler.pool().available(), scheduler.pool().total());
        (answers.into_values().collect(), scheduler.counts())
    }
}

pub(crate) fn request(text: &str, sampling: Sampling) -> GenerateRequest {
    GenerateRequest {
        principal: None,
        model: "pip".parse().unwrap(),
        prompt: Prompt::Text(text.into()),
        sampling,
        max_tokens: Some(70),
        stop: Vec::new(),
        constraint: None,
        logprobs: None,
    }
}

pub(crate) fn hot(seed: u64) -> Sampling {
    Sampling { temperature: Some(0.7), seed: Some(seed), ..Sampling::default() }
}

pub(crate) fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}
