//! Constrained answers of the embedded model: what they look like, and that nothing but the grammar changes them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use plexus_engine::grammar::Grammar;
use plexus_engine::{Batch, BlockId, CandleExecutor, Draw, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot};
use plexus_types::{Chat, Constraint, DeviceId, DeviceKind, Message, Prompt, RequestError, Role, Sampling};
use serde_json::Value;

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 64, block_len: 16 };
const TOKENS_MAX: usize = 200;

struct Model {
    files: ModelFiles,
    executor: CandleExecutor,
}

impl Model {
    fn new() -> Self {
        let files = ModelFiles::open(&ModelPath::Embedded).unwrap();
        let mut executor = CandleExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5).unwrap();
        executor.load(SLOT, &files, KV).unwrap();
        Self { files, executor }
    }

    fn prompt(&self, question: &str) -> Vec<u32> {
        let chat = Chat { messages: vec![Message::text(Role::User, question)], ..Chat::default() };
        self.files.codec.encode(&Prompt::Chat(chat)).unwrap()
    }

    fn grammar(&self, constraint: &Constraint) -> Grammar {
        self.files.codec.grammar(constraint, "response_format").unwrap()
    }

    fn text(&self, ids: &[u32]) -> String {
        self.files.codec.decode(ids)
    }

    /// The ids of an answer up to its end, with guesses given by `guess`, which is told the answer so far.
    fn answer(
        &mut self,
        prompt: &[u32],
        begun: &[u32],
        grammar: Option<&Grammar>,
        sampling: &Sampling,
        mut guess: impl FnMut(&[u32]) -> Vec<u32>,
    ) -> Vec<u32> {
        let codec = self.files.codec.clone();
        let settings = SamplerSettings::resolve(sampling, &Sampling::default(), 7).with_stop_ids(codec.stop_ids());
        let settings = Arc::new(settings);
        let blocks: Vec<BlockId> = (0..KV.n_blocks).map(BlockId).collect();
        let mut ids = begun.to_vec();
        let mut n_computed = 0;
        while ids.len() < TOKENS_MAX && !ids.last().is_some_and(|id| codec.is_stop(*id)) {
            let all: Vec<u32> = prompt.iter().chain(&ids).copied().collect();
            let guesses = guess(&ids);
            let draw = Draw {
                n_guesses: guesses.len() as u32,
                index: ids.len() as u32,
                masks: grammar.map(|grammar| grammar.masks(&guesses)),
                ..Draw::new(settings.clone(), all.len() as u32)
            };
            let mut batch = Batch::default();
            batch.push(&[&all[n_computed..], &guesses].concat(), n_computed as u32, &blocks, Some(draw));
            let output = self.executor.step(SLOT, &batch).unwrap();
            assert_eq!(output.refused, []);
            n_computed = all.len() + output.sampled[0].len() - 1;
            let end = output.sampled[0].iter().position(|id| codec.is_stop(*id)).map_or(output.sampled[0].len(), |i| i + 1);
            grammar.into_iter().for_each(|grammar| grammar.push(&output.sampled[0][..end]));
            ids.extend(&output.sampled[0][..end]);
        }
        ids
    }

    fn constrained(&mut self, question: &str, constraint: &Constraint, sampling: &Sampling) -> String {
        let (prompt, grammar) = (self.prompt(question), self.grammar(constraint));
        let ids = self.answer(&prompt, &[], Some(&grammar), sampling, |_| Vec::new());
        assert!(self.files.codec.is_stop(*ids.last().unwrap()), "the end is forced where the grammar ends: {}", self.text(&ids));
        self.text(&ids)
    }
}

fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}

fn hot(seed: u64) -> Sampling {
    Sampling { temperature: Some(1.0), seed: Some(seed), ..Sampling::default() }
}

const CITY: &str = r#"{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "minimum": 1,
    "maximum": 99999}, "kind": {"enum": ["town", "capital"]}}, "required": ["city", "people", "kind"], "additionalProperties": false}"#;

#[test]
fn a_schema_gives_json_that_follows_it() {
    let mut model = Model::new();
    for sampling in [greedy(), hot(1), hot(2)] {
        let text = model.constrained("What is the capital of France?", &Constraint::JsonSchema(CITY.into()), &sampling);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        assert!(value["city"].as_str().unwrap().chars().count() <= 20);
        assert!((1..=99999).contains(&value["people"].as_i64().unwrap()));
        assert!(["town", "capital"].contains(&value["kind"].as_str().unwrap()));
    }
}

#[test]
fn a_regex_and_a_lark_grammar_are_followed_to_their_ends() {
    let mut model = Model::new();
    let date = Constraint::Regex(r"\d{4}-\d{2}-\d{2}".into());
    let text = model.constrained("Tell me a story about a fox named Ruby.", &date, &greedy());
    assert_eq!((text.len(), text.chars().filter(char::is_ascii_digit).count()), (10, 8), "{text}");
    let sum = Constraint::Lark("start: NUMBER (\" + \" NUMBER){2} \" = \" NUMBER\nNUMBER: /[1-9][0-9]?/\n".into());
    let text = model.constrained("What is 12 + 30?", &sum, &hot(3));
    let (left, right) = text.split_once(" = ").unwrap();
    assert!(left.split(" + ").chain([right]).map(|n| n.parse::<u32>().unwrap()).all(|n| (1..100).contains(&n)), "{text}");
    assert_eq!(left.split(" + ").count(), 3);
}

#[test]
fn any_object_begins_as_one_and_no_white_space_goes_on_for_ever() {
    let mut model = Model::new();
    let (prompt, grammar) = (model.prompt("Hello!"), model.grammar(&Constraint::JsonObject));
    let sampling = Sampling { logit_bias: vec![(model.files.codec.encode(&Prompt::Text(" ".into())).unwrap()[0], 50.0)], ..greedy() };
    let ids = model.answer(&prompt, &[], Some(&grammar), &sampling, |_| Vec::new());
    let text = model.text(&ids);
    // Within a string it may go on; between the parts of the text it may not.
    let before_the_first_key = text.split('"').next().unwrap();
    assert!(before_the_first_key.starts_with('{') && before_the_first_key.len() < 24 && text.contains('"'), "{text:?}");
}

#[test]
fn guesses_right_wrong_and_forbidden_change_no_token() {
    let mut model = Model::new();
    let constraint = Constraint::JsonSchema(CITY.into());
    let prompt = model.prompt("What is the capital of France?");
    for sampling in [greedy(), hot(4)] {
        let grammar = model.grammar(&constraint);
        let plain = model.answer(&prompt, &[], Some(&grammar), &sampling, |_| Vec::new());
        let mut n_guessed = 0;
        let known = plain.clone();
        let guess = move |ids: &[u32]| {
            n_guessed += 1;
            let mut next: Vec<u32> = known[ids.len()..].iter().take(3).copied().collect();
            match n_guessed % 3 {
                0 => {}
                1 => next.iter_mut().skip(1).for_each(|id| *id = 300),
                _ => next = vec![301, 302],
            }
            next
        };
        let grammar = model.grammar(&constraint);
        assert_eq!(model.answer(&prompt, &[], Some(&grammar), &sampling, guess), plain);
    }
}

#[test]
fn an_answer_continued_from_its_tokens_goes_on_as_if_unbroken() {
    let mut model = Model::new();
    let constraint = Constraint::JsonSchema(CITY.into());
    let prompt = model.prompt("What is the capital of Spain?");
    let grammar = model.grammar(&constraint);
    let whole = model.answer(&prompt, &[], Some(&grammar), &hot(5), |_| Vec::new());
    for n in [1, whole.len() / 2, whole.len() - 1] {
        let grammar = model.grammar(&constraint);
        grammar.push(&whole[..n]);
        assert_eq!(model.answer(&prompt, &whole[..n], Some(&grammar), &hot(5), |_| Vec::new()), whole, "from {n}");
    }
}

#[test]
fn a_grammar_that_allows_everything_changes_no_token() {
    let mut model = Model::new();
    let prompt = model.prompt("What is the capital of France?");
    let free = model.answer(&prompt, &[], None, &hot(6), |_| Vec::new());
    let grammar = model.grammar(&Constraint::Regex(r"(?s:.*)".into()));
    assert_eq!(model.answer(&prompt, &[], Some(&grammar), &hot(6), |_| Vec::new()), free);
}

#[test]
fn the_end_of_the_grammar_comes_before_the_least_number_of_tokens() {
    let mut model = Model::new();
    let sampling = Sampling { min_tokens: Some(50), ..greedy() };
    assert_eq!(model.constrained("Hello!", &Constraint::Regex("yes|no".into()), &sampling).len() / 2, 1);
}

#[test]
fn what_cannot_be_compiled_is_refused_with_its_name_and_the_reason() {
    let model = Model::new();
    let deep = format!("start: {}", "(".repeat(10_000));
    let cases = [
        (Constraint::JsonSchema("{".into()), "not JSON"),
        (Constraint::JsonSchema(r#"{"type": "thing"}"#.into()), "thing"),
        (Constraint::Regex("(".into()), ""),
        (Constraint::Lark("begin: \"a\"".into()), "start"),
        (Constraint::Lark(deep), ""),
        (Constraint::Lark("x".repeat(300 << 10)), "at most"),
    ];
    for (constraint, reason) in cases {
        let begun = Instant::now();
        match model.files.codec.grammar(&constraint, "guided").err() {
            Some(RequestError::Invalid { message, param }) => {
                assert!(param.as_deref() == Some("guided") && message.contains(reason) && message.len() < 600, "{message}");
                assert!(!message.contains("1 | "), "no listing of a grammar that the client did not write: {message}");
            }
            other => panic!("{other:?} for {}", format!("{constraint:?}").chars().take(80).collect::<String>()),
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
