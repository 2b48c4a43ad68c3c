//! The scheduler and the embedded model together: guessed or not, shared, preempted, continued and in whatever company, an answer is the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_actors::model::scheduler::{Counts, Limits, Scheduler};
use plexus_actors::model::sequence::Sequence;
use plexus_engine::{CpuExecutor, DraftingExecutor, EngineError, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot};
use plexus_types::{
    Chat, Constraint, Delta, DeviceId, DeviceKind, FinishReason, GenerateRequest, Message, Prompt, Role, Sampling, TokenLogprobs,
};
use tokio::time::Instant;

const SLOT: Slot = Slot(0);
const SEED: u64 = 11;

/// A text that a model of few words says again and again.
const STORY: &str = "Ruby is a fox. Ruby lives in the wood. Ruby is a fox. Ruby lives in the wood. Ruby is a fox. Ruby";
const LIST: &str = r#"{"type": "array", "items": {"type": "object", "properties": {"name": {"enum": ["Ruby", "Paris"]}, "age": {"type": "integer",
    "minimum": 1, "maximum": 9}}, "required": ["name", "age"], "additionalProperties": false}, "minItems": 4, "maxItems": 6}"#;

/// What an answer was.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    end: Option<FinishReason>,
}

/// How the requests are served.
#[derive(Debug, Clone, Copy)]
struct Service {
    guesses_max: u32,
    running_max: u32,
    n_blocks: u32,
    prompt_tokens_max: u32,
}

/// One after the other, nothing guessed.
const PLAIN: Service = Service { guesses_max: 0, running_max: 1, n_blocks: 64, prompt_tokens_max: 512 };
/// Together, in chunks, with guesses, in a pool that is too small for all.
const CROWDED: Service = Service { guesses_max: 16, running_max: 6, n_blocks: 14, prompt_tokens_max: 48 };

struct Model {
    files: ModelFiles,
    /// Speaks for the model where drafts are asked for.
    draft: Option<ModelFiles>,
    executor: DraftingExecutor,
}

/// The embedded model's file with some of its weights changed a little: it says the same often, and not always.
fn disturbed() -> ModelFiles {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip/pip-q8_0.gguf");
    let mut bytes = fs::read(path).unwrap();
    let weights = bytes.len() / 2;
    bytes[weights..].iter_mut().step_by(5).for_each(|byte| *byte ^= 2);
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    ModelFiles::open(&ModelPath::Path(file.path().to_owned())).unwrap() // mapped: the file may go
}

impl Model {
    fn new() -> Self {
        Self::with_draft(None)
    }

    fn with_draft(draft: Option<ModelFiles>) -> Self {
        let files = ModelFiles::open(&ModelPath::Embedded).unwrap();
        let executor = CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5, Some(1)).unwrap();
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
    fn serve(&mut self, requests: &[(GenerateRequest, Vec<u32>)], service: Service) -> (Vec<Answer>, Counts) {
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

fn request(text: &str, sampling: Sampling) -> GenerateRequest {
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

fn hot(seed: u64) -> Sampling {
    Sampling { temperature: Some(0.7), seed: Some(seed), ..Sampling::default() }
}

fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}

/// Requests of every kind that guesses could disturb.
fn requests() -> Vec<GenerateRequest> {
    let constrained = |sampling| GenerateRequest { constraint: Some(Constraint::JsonSchema(LIST.into())), ..request(STORY, sampling) };
    let chat = Chat { messages: vec![Message::text(Role::User, "Tell me a story about a fox named Ruby.")], ..Chat::default() };
    let penalised = Sampling { repetition_penalty: Some(1.1), frequency_penalty: Some(0.2), ..hot(5) };
    vec![
        request(STORY, greedy()),
        request(STORY, hot(1)),
        GenerateRequest { logprobs: Some(3), ..request(STORY, hot(2)) },
        GenerateRequest { stop: vec!["lives in".into(), "the wood. R".into()], ..request(STORY, greedy()) },
        request(STORY, Sampling { min_tokens: Some(50), ..hot(3) }),
        request(STORY, penalised),
        constrained(greedy()),
        GenerateRequest { logprobs: Some(0), ..constrained(hot(4)) },
        GenerateRequest { prompt: Prompt::Chat(chat), ..request("", hot(6)) },
        // Three choices of one prompt share its blocks.
        request(&STORY.repeat(3), Sampling { ignore_eos: true, ..hot(7) }),
        request(&STORY.repeat(3), Sampling { ignore_eos: true, ..hot(8) }),
        request(&STORY.repeat(3), Sampling { ignore_eos: true, ..hot(9) }),
    ]
}

#[test]
fn guesses_change_nothing_whatever_an_answer_is_asked_to_be() {
    let mut model = Model::new();
    let requests: Vec<_> = requests().into_iter().map(|request| (request, Vec::new())).collect();
    let (plain, counts) = model.serve(&requests, PLAIN);
    assert_eq!((counts.guessed, counts.preemptions), (0, 0));
    let (alone, guessed) = model.serve(&requests, Service { guesses_max: 16, ..PLAIN });
    let (crowded, counts) = model.serve(&requests, CROWDED);
    for (i, plain) in plain.iter().enumerate() {
        assert_eq!(&alone[i], plain, "guessed for, request {i}");
        assert_eq!(&crowded[i], plain, "in company, request {i}");
    }
    assert!(plain.iter().all(|answer| answer.end.is_some()));
    assert!(guessed.guessed_right > 70 && guessed.guessed > guessed.guessed_right, "{guessed:?}: the test is about too little");
    assert!(counts.preemptions > 0 && counts.cached_tokens > 100 && counts.guessed_right > 20, "{counts:?}: the test is about too little");
}

#[test]
fn an_answer_continued_from_its_journal_goes_on_as_it_would_have() {
    let mut model = Model::new();
    let requests = requests();
    let whole: Vec<_> = requests.iter().map(|request| (request.clone(), Vec::new())).collect();
    let (whole, _) = model.serve(&whole, PLAIN);
    for cut in [1, 23] {
        let begun: Vec<_> = (requests.iter().zip(&whole))
            .filter(|(_, answer)| answer.ids.len() > cut)
            .map(|(request, answer)| (request.clone(), answer.ids[..cut].to_vec()))
            .collect();
        let (rest, _) = model.serve(&begun, CROWDED);
        let longer = whole.iter().filter(|answer| answer.ids.len() > cut);
        for (i, (rest, whole)) in rest.iter().zip(longer).enumerate() {
            assert_eq!((&rest.ids[..], &rest.end), (&whole.ids[cut..], &whole.end), "request {i}, cut behind {cut}");
            assert!(whole.text.ends_with(&rest.text), "{:?} of {:?}", rest.text, whole.text);
        }
    }
}

#[test]
fn a_draft_model_changes_nothing_whatever_it_says() {
    let requests: Vec<_> = requests().into_iter().map(|request| (request, Vec::new())).collect();
    let (plain, _) = Model::new().serve(&requests, PLAIN);
    let itself = ModelFiles::open(&ModelPath::Embedded).unwrap();
    for (draft, right) in [(itself, 0.9..=1.0), (disturbed(), 0.2..=0.95)] {
        let mut model = Model::with_draft(Some(draft));
        let unconstrained: Vec<_> = requests.iter().filter(|(request, _)| request.constraint.is_none()).cloned().collect();
        let (_, counts) = model.serve(&unconstrained, PLAIN);
        let share = counts.drafted_right as f64 / counts.drafted as f64;
        assert!(counts.drafted > 150 && right.contains(&share), "{share} were right: {counts:?}");
        let (alone, _) = model.serve(&requests, PLAIN);
        let (crowded, counts) = model.serve(&requests, CROWDED);
        for (i, plain) in plain.iter().enumerate() {
            assert_eq!(&alone[i], plain, "drafted for, request {i}");
            assert_eq!(&crowded[i], plain, "in company, request {i}");
        }
        assert!(
            counts.preemptions > 0 && counts.cached_tokens > 100 && counts.drafted_right > 20,
            "{counts:?}: the test is about too little"
        );
    }
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused_and_leaves_nothing_behind() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden/llama/llama-bf16.gguf");
    let other = ModelFiles::open(&ModelPath::Path(golden)).unwrap();
    let mut model = Model::new();
    let kv = KvPlan { n_blocks: 4, block_len: BLOCK_LEN };
    let error = model.executor.load(SLOT, &model.files, Some(&other), kv).unwrap_err();
    assert!(matches!(error, EngineError::Unsupported { .. }) && error.to_string().contains("another vocabulary"), "{error}");
    model.executor.load(SLOT, &model.files, None, kv).unwrap();
}
