//! The scheduler and models together: guessed or not, shared, preempted, continued and in whatever company, an answer is the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod families;
mod serving;

use std::fs;
use std::io::Write;
use std::path::Path;

use plexus_actors::evictor::plan::BLOCK_LEN;
use plexus_engine::{EngineError, KvPlan, ModelFiles, ModelPath};
use plexus_types::{Chat, Constraint, GenerateRequest, Message, Prompt, Role, Sampling};
use serving::{CROWDED, Model, PLAIN, SLOT, Service, greedy, hot, request};

/// A text that a model of few words says again and again.
const STORY: &str = "Ruby is a fox. Ruby lives in the wood. Ruby is a fox. Ruby lives in the wood. Ruby is a fox. Ruby";
const LIST: &str = r#"{"type": "array", "items": {"type": "object", "properties": {"name": {"enum": ["Ruby", "Paris"]}, "age": {"type": "integer",
    "minimum": 1, "maximum": 9}}, "required": ["name", "age"], "additionalProperties": false}, "minItems": 4, "maxItems": 6}"#;

/// The embedded model's file with some of its weights changed a little: it says the same often, and not always.
fn disturbed() -> ModelFiles {
    changed(|weights| weights.iter_mut().step_by(5).for_each(|byte| *byte ^= 2))
}

/// The embedded model's file with weights that are no numbers: it says nothing.
fn broken() -> ModelFiles {
    changed(|weights| weights.fill(0xff))
}

/// The embedded model's file with the second half of its bytes changed, all of which belong to weights.
fn changed(change: impl FnOnce(&mut [u8])) -> ModelFiles {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip/pip-q8_0.gguf");
    let mut bytes = fs::read(path).unwrap();
    let weights = bytes.len() / 2;
    change(&mut bytes[weights..]);
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    ModelFiles::open(&ModelPath::Path(file.path().to_owned())).unwrap() // mapped: the file may go
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
fn a_draft_model_that_fails_is_not_asked_again_and_the_answers_go_on() {
    let requests: Vec<_> = requests().into_iter().map(|request| (request, Vec::new())).collect();
    let (plain, _) = Model::new().serve(&requests, PLAIN);
    let (answers, counts) = Model::with_draft(Some(broken())).serve(&requests, PLAIN);
    assert_eq!((answers, counts.drafted), (plain, 0));
}

#[test]
fn a_model_and_its_draft_model_are_held_as_one() {
    let mut model = Model::with_draft(Some(disturbed()));
    let kv = KvPlan { n_blocks: 4, block_len: BLOCK_LEN };
    model.executor.load(SLOT, &model.files, None, kv).unwrap();
    let alone = model.executor.holds();
    model.executor.unload(SLOT);
    model.executor.load(SLOT, &model.files, Some(&disturbed()), kv).unwrap();
    let both = model.executor.holds();
    assert_eq!((both.len(), both[0].0), (1, SLOT));
    assert_eq!(both[0].1.total().0, 2 * alone[0].1.total().0, "with a draft model of its size");
    model.executor.unload(SLOT);
    assert_eq!(model.executor.holds(), []);
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
