//! The embedded model: from a request to text, and its three forms against each other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plexus_engine::{Batch, BlockId, CpuExecutor, Draw, Executor, KvPlan, ModelFiles, ModelPath, SamplerSettings, Slot};
use plexus_types::{
    Chat, Delta, DeviceId, DeviceKind, FinishReason, GenerateRequest, Message, Prompt, RequestError, Role, Sampling, Tool, ToolChoice,
};
use serde::Deserialize;

const SLOT: Slot = Slot(0);
const KV: KvPlan = KvPlan { n_blocks: 16, block_len: 32 };

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<GoldenPrompt>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    prompt: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pip")
}

fn golden() -> Vec<GoldenPrompt> {
    serde_json::from_str::<Golden>(&fs::read_to_string(assets().join("golden.json")).unwrap()).unwrap().prompts
}

/// The folder as one downloads it: without the GGUF file, which is the other form.
fn safetensors() -> ModelFiles {
    ModelFiles::open(&ModelPath::Path(assets())).unwrap()
}

fn embedded() -> ModelFiles {
    ModelFiles::open(&ModelPath::Embedded).unwrap()
}

fn executor(files: &ModelFiles) -> CpuExecutor {
    let mut executor = CpuExecutor::open(DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, 0.5, None).unwrap();
    executor.load(SLOT, files, KV).unwrap();
    executor
}

#[test]
fn whoever_holds_a_clone_sees_how_much_of_the_weights_has_been_read() {
    for files in [embedded(), safetensors()] {
        let watched = files.clone();
        assert_eq!(watched.share_read(), 0.0, "headers are no weights");
        executor(&files);
        assert_eq!(watched.share_read(), 1.0);
    }
}

/// Ids sampled after `prompt`, `n` of them or up to the end that `goes_on` sees.
fn generate(executor: &mut CpuExecutor, prompt: &[u32], sampling: &Sampling, mut goes_on: impl FnMut(u32) -> bool) -> Vec<u32> {
    let settings = Arc::new(SamplerSettings::resolve(sampling, &Sampling::default(), sampling.seed.unwrap_or(0)));
    let blocks: Vec<BlockId> = (0..KV.n_blocks).rev().map(BlockId).collect();
    let (mut given, mut position, mut ids) = (prompt.to_vec(), 0, Vec::new());
    loop {
        let next = position + given.len() as u32;
        let draw = Draw::new(settings.clone(), next);
        let mut batch = Batch::default();
        batch.push(&given, position, &blocks, Some(draw));
        given = executor.step(SLOT, &batch).unwrap().sampled.remove(0);
        position = next;
        ids.extend(&given);
        if !goes_on(given[0]) {
            return ids;
        }
    }
}

fn greedy() -> Sampling {
    Sampling { temperature: Some(0.0), ..Sampling::default() }
}

fn chat(turns: &[(Role, &str)]) -> Chat {
    Chat { messages: turns.iter().map(|(role, text)| Message::text(*role, *text)).collect(), ..Chat::default() }
}

fn answer(files: &ModelFiles, executor: &mut CpuExecutor, chat: Chat, stop: &[&str]) -> (String, FinishReason) {
    let prompt = files.codec.encode(&Prompt::Chat(chat)).unwrap();
    let mut decoder = files.codec.decoder(&stop.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>());
    let (mut text, mut finish) = (String::new(), None);
    generate(executor, &prompt, &greedy(), |id| {
        let decoded = decoder.push(id);
        text.push_str(&decoded.text());
        finish = decoded.finish;
        finish.is_none()
    });
    (text, finish.unwrap())
}

#[test]
fn the_embedded_model_answers_a_question() {
    let files = embedded();
    let mut executor = executor(&files);
    let question = || chat(&[(Role::User, "What is the capital of France?")]);
    let whole = ("The capital of France is Paris.".to_owned(), FinishReason::Stop);
    assert_eq!(answer(&files, &mut executor, question(), &[]), whole);
    let cut = ("The capital of ".to_owned(), FinishReason::StopSequence("France is".into()));
    assert_eq!(answer(&files, &mut executor, question(), &["Paris", "France is"]), cut);
    let memory =
        chat(&[(Role::User, "My name is Alice."), (Role::Assistant, "Nice to meet you, Alice."), (Role::User, "What is my name?")]);
    assert_eq!(answer(&files, &mut executor, memory, &[]).0, "Your name is Alice.");
}

/// A request with a tool for the weather.
fn weather_request(question: &str, tool_choice: ToolChoice) -> GenerateRequest {
    let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}"#;
    let tool =
        Tool { name: "get_weather".into(), description: Some("Get the weather of a city".into()), parameters: Some(parameters.into()) };
    let chat = Chat { tools: vec![tool], tool_choice, ..chat(&[(Role::User, question)]) };
    GenerateRequest {
        principal: None,
        model: "pip".parse().unwrap(),
        prompt: Prompt::Chat(chat),
        sampling: greedy(),
        max_tokens: None,
        stop: Vec::new(),
        constraint: None,
        logprobs: None,
    }
}

/// What the model answers, taken apart.
fn deltas(files: &ModelFiles, request: &GenerateRequest) -> (Vec<Delta>, FinishReason) {
    let prompt = files.codec.encode(&request.prompt).unwrap();
    let mut decoder = files.codec.answer(request, 7, &prompt);
    let (mut deltas, mut finish) = (Vec::new(), None);
    generate(&mut executor(files), &prompt, &request.sampling, |id| {
        let decoded = decoder.push(id);
        decoded.deltas.into_iter().for_each(|delta| delta.join(&mut deltas));
        finish = decoded.finish;
        finish.is_none()
    });
    (deltas, finish.unwrap())
}

#[test]
fn the_embedded_model_calls_a_tool() {
    // CX-78
    let files = embedded();
    let (found, finish) = deltas(&files, &weather_request("What is the weather in Paris?", ToolChoice::Auto));
    let [Delta::ToolCall { index: 0, id, name }, Delta::ToolArguments { index: 0, json }] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((name.as_str(), json.as_str(), finish), ("get_weather", r#"{"city": "Paris"}"#, FinishReason::ToolCalls));
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
}

#[test]
fn a_call_stays_text_where_none_may_be_made() {
    let files = embedded();
    let (found, finish) = deltas(&files, &weather_request("What is the weather in Paris?", ToolChoice::None));
    let text = Delta::text_of(&found);
    assert!(text.starts_with("<tool_call>\n{\"name\": \"get_weather\"") && text.ends_with("</tool_call>"), "{text}");
    assert_eq!(finish, FinishReason::Stop);
}

#[test]
fn an_answer_goes_on_where_the_last_turn_ends() {
    let files = embedded();
    let mut request = weather_request("", ToolChoice::Auto);
    for (begun, rest) in
        [("The capital of", " France is Paris."), ("The capital of France is", " Paris."), ("", "The capital of France is Paris.")]
    {
        let turns = [(Role::User, "What is the capital of France?"), (Role::Assistant, begun)];
        request.prompt = Prompt::Chat(Chat { continues: true, ..chat(&turns) });
        assert_eq!(deltas(&files, &request), (Delta::of_text(rest.to_owned()), FinishReason::Stop), "{begun}");
    }
}

#[test]
fn a_forced_call_that_is_cut_off_before_its_name_says_nothing() {
    let files = embedded();
    let request = weather_request("What is the weather in Paris?", ToolChoice::Required);
    let prompt = files.codec.encode(&request.prompt).unwrap();
    let call = files.codec.encode(&Prompt::Text("<tool_call>\n{\"name\":".into())).unwrap();
    let mut decoder = files.codec.answer(&request, 7, &prompt);
    let mut said: Vec<Delta> = call.iter().flat_map(|id| decoder.push(*id).deltas).collect();
    said.extend(decoder.finish());
    assert!(call.len() > 1 && said.is_empty(), "{said:?}");
}

#[test]
fn the_embedded_model_thinks_before_it_answers() {
    // CX-79
    let files = embedded();
    let mut request = weather_request("", ToolChoice::Auto);
    request.prompt = Prompt::Chat(chat(&[(Role::User, "What is 23 + 45? Think step by step.")]));
    let (found, finish) = deltas(&files, &request);
    let [Delta::Reasoning(thought), Delta::Text(text)] = found.as_slice() else { panic!("{found:?}") };
    assert!(!thought.contains("think>") && text.contains("68") && finish == FinishReason::Stop, "{found:?}");
}

#[test]
fn the_safetensors_form_agrees_with_the_reference_token_by_token() {
    let files = safetensors();
    let mut executor = executor(&files);
    for golden in golden() {
        assert_eq!(files.codec.encode(&Prompt::Text(golden.prompt.clone())).unwrap(), golden.ids);
        let mut left = golden.greedy.len();
        let ids = generate(&mut executor, &golden.ids, &greedy(), |_| {
            left -= 1;
            left > 0
        });
        assert_eq!(ids, golden.greedy, "{}", golden.prompt);
    }
}

#[test]
fn both_forms_have_the_same_tokenizer_template_and_defaults() {
    let (gguf, folder) = (embedded(), safetensors());
    for golden in golden() {
        let text = Prompt::Text(golden.prompt + &golden.greedy_text);
        assert_eq!(gguf.codec.encode(&text).unwrap(), folder.codec.encode(&text).unwrap());
    }
    let text = Prompt::Text("Grüße aus 東京, 12345 🙂\r\n\r\n\tfn main() {}   <think>x</think>".into());
    assert_eq!(gguf.codec.encode(&text).unwrap(), folder.codec.encode(&text).unwrap());
    let chat = chat(&[(Role::System, "You are Nova."), (Role::User, "Hi"), (Role::Assistant, "Hello!"), (Role::User, "Bye")]);
    assert_eq!(gguf.codec.render(&chat).unwrap(), folder.codec.render(&chat).unwrap());
    assert_eq!(
        folder.codec.render(&chat).unwrap(),
        "<|im_start|>system\nYou are Nova.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n\
         <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(gguf.defaults, folder.defaults);
    assert_eq!((gguf.defaults.temperature, gguf.defaults.top_p), (Some(0.7), Some(0.9)));
    assert_eq!(gguf.config.eos_ids, folder.config.eos_ids);
    assert_eq!((gguf.context_length(), folder.context_length()), (512, 512));
}

#[test]
fn a_seed_repeats_its_answer_and_another_seed_gives_another() {
    let files = embedded();
    let mut executor = executor(&files);
    let prompt = files.codec.encode(&Prompt::Chat(chat(&[(Role::User, "Tell me a story about a fox named Ruby.")]))).unwrap();
    let mut story = |seed| {
        let mut left = 40;
        generate(&mut executor, &prompt, &Sampling { temperature: Some(1.0), seed: Some(seed), ..Sampling::default() }, |_| {
            left -= 1;
            left > 0
        })
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
}

#[test]
fn prompts_that_no_model_could_take_are_refused() {
    let files = embedded();
    let beyond = Prompt::Tokens(vec![0, 1536]);
    assert!(matches!(files.codec.encode(&beyond), Err(RequestError::Invalid { .. })));
    assert_eq!(files.codec.encode(&Prompt::Tokens(vec![0, 1535])), Ok(vec![0, 1535]));
}

#[test]
fn a_model_that_does_not_fit_is_refused_and_leaves_the_device_as_it_was() {
    let files = embedded();
    let mut executor = executor(&files);
    let total = executor.describe().memory_total;
    let block_bytes = files.kv_bytes_per_token.0 * u64::from(KV.block_len);
    let too_many = KvPlan { n_blocks: (total.0 / block_bytes) as u32, ..KV };
    assert!(executor.load(Slot(1), &files, too_many).is_err());
    assert!(executor.load(SLOT, &files, KV).is_err(), "the slot is taken");
    executor.load(Slot(1), &files, KV).unwrap();
    executor.unload(Slot(1));
    executor.unload(Slot(1));
}
