//! From requests to token ids, and from token ids back to text.
//!
//! Three parts, each a function of its inputs only: the chat template renders messages to text, the tokenizer turns text into ids,
//! a [`StreamDecoder`] turns sampled ids piece by piece into what is said, what is thought and which tools are called.

mod answer;
mod bpe;
mod continued;
mod gguf_tokenizer;
mod python;
#[cfg(test)]
mod round_trip;
mod sandbox;
mod stream;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;
mod vocabulary;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use plexus_types::{Chat, Constraint, GenerateRequest, Prompt, RequestError, Tool, ToolChoice};
use serde_json::Value;

pub use stream::{Decoded, StreamDecoder};

use crate::error::EngineError;
use crate::grammar::{Grammar, Grammars, TokenTable};
use crate::model::Gguf;
use answer::{AnswerFormat, Answering, TokenKind, Wanted};
use template::ChatTemplate;
use tokenizer::Parts;
pub(crate) use tokenizer::Tokenizer;
use vocabulary::Vocabulary;

/// `tokenizer.json` of the largest vocabularies is about 40 MB.
const MAX_TOKENIZER_LEN: u64 = 256 << 20;
/// Templates are at most some tens of kilobytes.
const MAX_TEMPLATE_LEN: u64 = 4 << 20;

/// Tokens that end a turn in the common chat formats, for files that do not say so. Taken only where they are control tokens.
const END_OF_TURN: [&str; 7] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>"];

/// The same for gpt-oss, where `<|end|>` only ends one message of a turn.
const HARMONY_END_OF_TURN: [&str; 3] = ["<|return|>", "<|call|>", "<|endoftext|>"];

/// The same for GLM 4, which ends a turn with the mark of the next: a tool's behind a call.
const GLM_END_OF_TURN: [&str; 3] = ["<|user|>", "<|observation|>", "<|endoftext|>"];

/// The length of texts of this many bytes is estimated first, from so many samples of so many bytes.
const SAMPLED_FROM: usize = 256 << 10;
const N_SAMPLES: usize = 32;
const SAMPLE_LEN: usize = 2 << 10;

/// A prompt that opens the reasoning does so within its last tokens.
const PROMPT_END_LEN: usize = 16;

/// A model's tokenizer and chat template.
pub struct Codec {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Arc<Vocabulary>,
    /// Made for the first request that needs it; or why there are none.
    grammars: OnceLock<Result<Grammars, String>>,
    template: Result<ChatTemplate, NoTemplate>,
    format: Arc<AnswerFormat>,
    bos: Option<u32>,
    add_bos: AddBos,
    /// Put behind each text, where the model embeds and its tokenizer does not do it.
    end: Option<u32>,
    vocab_size: usize,
}

/// Does plain text start with the beginning-of-sequence token?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddBos {
    Always,
    Never,
    /// As the post-processor in `tokenizer.json` does it.
    PostProcessor,
}

/// Why a model cannot chat.
#[derive(Debug, Clone)]
enum NoTemplate {
    /// It has no template: it continues text.
    Absent,
    /// It embeds texts and continues none.
    Encoder,
    /// Its template is not one that we can render; this is why.
    Broken(String),
}

/// What stands beside the tokenizer itself.
#[derive(Debug, Default)]
struct Surroundings {
    /// The template for all requests.
    template: Option<String>,
    /// The template for requests with tools, where it is a separate one.
    tool_template: Option<String>,
    /// `bos_token`, `eos_token`, `pad_token`, `unk_token` as text, for the template.
    special_tokens: Vec<(String, String)>,
    add_bos: Option<AddBos>,
    bos: Option<u32>,
    /// Put behind each text.
    end: Option<u32>,
}

impl Codec {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a folder.
    ///
    /// What an embedding model's post-processor puts around a text belongs to it, whatever the configuration says of single tokens.
    pub(crate) fn from_folder(folder: &Path, vocab_size: usize, eos_ids: &[u32], embeds: bool) -> Result<Self, EngineError> {
        let path = folder.join("tokenizer.json");
        let Some(text) = crate::model::read_text(&path, MAX_TOKENIZER_LEN)? else {
            return Err(EngineError::unsupported("a model folder without tokenizer.json", "a folder with tokenizer.json, or a .gguf file"));
        };
        let parts = Parts::from_json(&path, &text)?;
        drop(text);
        let config_path = folder.join("tokenizer_config.json");
        let config = crate::model::read_json(&config_path)?.unwrap_or_default();
        let mut around = Surroundings {
            add_bos: match config.get("add_bos_token").and_then(Value::as_bool) {
                Some(true) => Some(AddBos::Always),
                Some(false) if !embeds => Some(AddBos::Never),
                Some(false) | None => Some(AddBos::PostProcessor),
            },
            ..Surroundings::default()
        };
        match config.get("chat_template") {
            Some(Value::String(template)) => around.template = Some(template.clone()),
            Some(Value::Array(named)) => {
                for entry in named {
                    let part = |key: &str| entry.get(key).and_then(Value::as_str);
                    match (part("name"), part("template")) {
                        (Some("default"), Some(template)) => around.template = Some(template.to_owned()),
                        (Some("tool_use"), Some(template)) => around.tool_template = Some(template.to_owned()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if let Some(template) = crate::model::read_text(&folder.join("chat_template.jinja"), MAX_TEMPLATE_LEN)? {
            around.template = Some(template);
        }
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            let token = match config.get(key) {
                Some(Value::String(token)) => Some(token.as_str()),
                Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
                _ => None,
            };
            around.special_tokens.extend(token.map(|token| (key.to_owned(), token.to_owned())));
        }
        if embeds && config.get("add_eos_token").and_then(Value::as_bool) == Some(true) {
            let eos = around.special_tokens.iter().find(|(key, _)| key == "eos_token").map(|(_, token)| token);
            let id = eos.and_then(|token| parts.tokenizer.token_to_id(token));
            let id = id.ok_or_else(|| EngineError::malformed(&config_path, "add_eos_token is true and there is no eos_token"))?;
            let alone = parts.tokenizer.encode_fast("", true);
            let alone = alone.map_err(|error| EngineError::malformed(&path, format!("its tokenizer is wrong: {error}")))?;
            around.end = Some(id).filter(|id| alone.get_ids().last() != Some(id));
        }
        Self::build(&path, parts, around, vocab_size, eos_ids)
    }

    /// Reads the `tokenizer.json` of an encoder, which is of any kind: its tokens are never turned back into text.
    pub(crate) fn for_encoder(folder: &Path, vocab_size: usize) -> Result<Self, EngineError> {
        let path = folder.join("tokenizer.json");
        let Some(text) = crate::model::read_text(&path, MAX_TOKENIZER_LEN)? else {
            return Err(EngineError::unsupported("an encoder's folder without tokenizer.json", "a folder with tokenizer.json"));
        };
        // The library panics on some files that contradict themselves.
        let tokenizer = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(|error| error.to_string()));
        let tokenizer = tokenizer.unwrap_or_else(|_| Err("it contradicts itself".into()));
        let mut tokenizer = tokenizer.map_err(|error| EngineError::malformed(&path, format!("its tokenizer is wrong: {error}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| EngineError::malformed(&path, error.to_string()))?;
        let vocabulary = Arc::new(Vocabulary::without_text(vocab_size));
        Ok(Self {
            tokenizer: Arc::new(Tokenizer::Library(Box::new(tokenizer))),
            vocabulary,
            grammars: OnceLock::new(),
            template: Err(NoTemplate::Encoder),
            format: Arc::new(AnswerFormat::detect("", |_| TokenKind::Absent)),
            bos: None,
            add_bos: AddBos::PostProcessor,
            end: None,
            vocab_size,
        })
    }

    /// Builds the tokenizer from the vocabulary in a GGUF file. Texts to embed end as the file says.
    pub(crate) fn from_gguf(path: &Path, mut gguf: Gguf, vocab_size: usize, eos_ids: &[u32], embeds: bool) -> Result<Self, EngineError> {
        let tokens = gguf.take_texts("tokenizer.ggml.tokens").filter(|tokens| tokens.len() > 0);
        let tokens = tokens.ok_or_else(|| EngineError::malformed(path, "tokenizer.ggml.tokens is missing"))?;
        let special = |name: &str| gguf.u32(&format!("tokenizer.ggml.{name}_token_id"));
        let named = [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")];
        let special_tokens =
            named.into_iter().filter_map(|(key, name)| Some((key.to_owned(), tokens.get(special(name)? as usize)?.to_owned()))).collect();
        let adds_bos = gguf.bool("tokenizer.ggml.add_bos_token").unwrap_or_else(|| gguf_tokenizer::adds_bos_by_default(&gguf));
        let ends = embeds && gguf.bool("tokenizer.ggml.add_eos_token") == Some(true);
        if ends && special("eos").is_none_or(|id| tokens.get(id as usize).is_none()) {
            let reason = "tokenizer.ggml.add_eos_token is true and tokenizer.ggml.eos_token_id is no token";
            return Err(EngineError::malformed(path, reason));
        }
        let around = Surroundings {
            template: gguf.text("tokenizer.chat_template").map(str::to_owned),
            tool_template: gguf.text("tokenizer.chat_template.tool_use").map(str::to_owned),
            special_tokens,
            add_bos: Some(if adds_bos { AddBos::Always } else { AddBos::Never }),
            bos: special("bos"),
            end: special("eos").filter(|_| ends),
        };
        let parts = gguf_tokenizer::read(path, &mut gguf, tokens)?;
        Self::build(path, parts, around, vocab_size, eos_ids)
    }

    fn build(path: &Path, parts: Parts, around: Surroundings, vocab_size: usize, eos_ids: &[u32]) -> Result<Self, EngineError> {
        let mut vocabulary = Vocabulary::read(&parts, vocab_size)?;
        let tokenizer = Tokenizer::Bpe(Box::new(parts.tokenizer));
        vocabulary.stop_ids.extend(eos_ids);
        let named = |name: &str| around.special_tokens.iter().find(|(key, _)| key == name).map(|(_, token)| token.as_str());
        vocabulary.stop_ids.extend(named("eos_token").and_then(|token| tokenizer.token_to_id(token)));
        let kind = |token: &str| match tokenizer.token_to_id(token) {
            None => TokenKind::Absent,
            Some(id) if vocabulary.is_control(id) => TokenKind::Control,
            Some(_) => TokenKind::Visible,
        };
        // A model calls tools as the template that serves requests with tools shows it.
        let shown = around.tool_template.as_deref().or(around.template.as_deref()).unwrap_or_default();
        let format = Arc::new(AnswerFormat::detect(shown, kind));
        let ends: &[&str] = match () {
            () if format.is_harmony() => &HARMONY_END_OF_TURN,
            () if format.calls_by_line() => &GLM_END_OF_TURN,
            () => &END_OF_TURN,
        };
        let end_of_turn = ends.iter().filter_map(|token| tokenizer.token_to_id(token));
        let end_of_turn: Vec<u32> = end_of_turn.filter(|id| vocabulary.is_control(*id)).collect();
        vocabulary.stop_ids.extend(end_of_turn);
        let bos = around.bos.or_else(|| tokenizer.token_to_id(named("bos_token")?));
        let template = match around.template.or_else(|| around.tool_template.clone()) {
            None => Err(NoTemplate::Absent),
            Some(template) => ChatTemplate::new(template, around.tool_template, around.special_tokens).map_err(|reason| {
                tracing::warn!(file = %path.display(), reason, "chat template cannot be used; only text completions will work");
                NoTemplate::Broken(reason)
            }),
        };
        let add_bos = around.add_bos.unwrap_or(AddBos::PostProcessor);
        let (tokenizer, vocabulary, grammars) = (Arc::new(tokenizer), Arc::new(vocabulary), OnceLock::new());
        Ok(Self { tokenizer, vocabulary, grammars, template, format, bos, add_bos, end: around.end, vocab_size })
    }

    /// Can the model be told of tools?
    pub(crate) fn knows_tools(&self) -> bool {
        self.template.as_ref().is_ok_and(ChatTemplate::knows_tools)
    }

    /// Does the model think before it answers?
    pub(crate) fn thinks(&self) -> bool {
        self.format.thinks()
    }

    /// The prompt as token ids.
    ///
    /// A chat is rendered by the model's template, in whose output special tokens are recognised wherever they stand, as the
    /// reference implementation does; text gets the beginning-of-sequence token where the model wants one, and a text to embed what its
    /// tokenizer puts around it; ids are used as they are.
    /// Errors: what the template itself objects to, tools for a template without them (CX-78), a chat without a template, unknown ids.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, RequestError> {
        self.encode_within(prompt, u32::MAX)
    }

    /// As [`Codec::encode`], for a model that holds so many tokens.
    ///
    /// A long text that is far beyond that, as samples of it tell, is refused before it is taken apart, which needs memory of several hundred times
    /// its size. One that is a little beyond is the caller's to refuse.
    pub fn encode_within(&self, prompt: &Prompt, max_tokens: u32) -> Result<Vec<u32>, RequestError> {
        let tokenize = |text: &str, add_special_tokens| {
            if text.len() >= SAMPLED_FROM {
                let prompt_tokens = self.estimated_tokens(text)?;
                if prompt_tokens / 2 > max_tokens {
                    return Err(RequestError::ContextLength { prompt_tokens, max_tokens });
                }
            }
            self.tokenize(text, add_special_tokens)
        };
        let ids = match prompt {
            Prompt::Chat(chat) => tokenize(&self.render(chat)?, false)?,
            Prompt::Text(text) => {
                let mut ids = tokenize(text, self.add_bos != AddBos::Never)?;
                if let (AddBos::Always, Some(bos)) = (self.add_bos, self.bos)
                    && ids.first() != Some(&bos)
                {
                    ids.insert(0, bos);
                }
                ids.extend(self.end);
                ids
            }
            Prompt::Tokens(ids) => ids.clone(),
        };
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => Err(RequestError::invalid("prompt", format!("token {id} is not one of this model's {} tokens", self.vocab_size))),
            None => Ok(ids),
        }
    }

    /// Number of tokens of a prompt. Errors: as [`Codec::encode`].
    pub fn token_count(&self, prompt: &Prompt) -> Result<u32, RequestError> {
        Ok(self.encode(prompt)?.len() as u32)
    }

    /// The text that the model's template makes of a chat.
    pub fn render(&self, chat: &Chat) -> Result<String, RequestError> {
        match &self.template {
            Ok(template) => template.render(chat),
            Err(NoTemplate::Absent) => Err(RequestError::invalid(
                "messages",
                "this model has no chat template: it continues text; use /v1/completions with a prompt",
            )),
            Err(NoTemplate::Encoder) => {
                Err(RequestError::invalid("messages", "this model embeds texts and reads no conversations; use /v1/embeddings"))
            }
            Err(NoTemplate::Broken(reason)) => Err(RequestError::invalid(
                "messages",
                format!("this model's chat template cannot be used ({reason}); use /v1/completions with a prompt"),
            )),
        }
    }

    /// A decoder for the answer to `request`, whose prompt became `prompt`; `seed` is that of its draws.
    ///
    /// The answer to a chat is taken apart by the model's format: reasoning always, calls where the request has tools and lets them be
    /// called. The answer to any other prompt is text.
    pub fn answer(&self, request: &GenerateRequest, seed: u64, prompt: &[u32]) -> StreamDecoder {
        let decoder = self.decoder(&request.stop).ignoring_end(request.sampling.ignore_eos);
        let decoder = decoder.of_at_least(request.sampling.min_tokens.unwrap_or(0));
        let Prompt::Chat(chat) = &request.prompt else { return decoder };
        let tools = if chat.tool_choice == ToolChoice::None { Vec::new() } else { chat.tools.clone() };
        let answering = Answering {
            tools,
            single_call: chat.single_tool_call || matches!(chat.tool_choice, ToolChoice::Named(_)),
            forced: matches!(chat.tool_choice, ToolChoice::Required | ToolChoice::Named(_)),
            in_reasoning: self.prompt_opens_reasoning(prompt),
            in_text: chat.continues && chat.messages.last().is_some_and(|last| !last.content.is_empty()),
            key: answer::answer_key(seed, prompt),
        };
        let decoder = if chat.continues { decoder.within_text() } else { decoder };
        decoder.with_format(&self.format, answering)
    }

    /// What the draws of the answer to `request` must follow, its prompt being `prompt`; none if they are free.
    ///
    /// A call that must be made is one in the model's own format, with arguments that follow the tool's schema; where the request may call
    /// tools and constrains its answer too, it does one or the other. A model that thinks may do so first, without a constraint, unless the
    /// request has switched that off.
    /// Errors: a tool that must be called but is not there, a model that cannot call any, a schema that is not JSON.
    pub fn constraint(&self, request: &GenerateRequest, prompt: &[u32]) -> Result<Option<Constraint>, RequestError> {
        let Prompt::Chat(chat) = &request.prompt else { return Ok(request.constraint.clone()) };
        let mut single = chat.single_tool_call;
        let (tools, constraint): (&[Tool], _) = match &chat.tool_choice {
            ToolChoice::None => (&[], request.constraint.as_ref()),
            // A model without a known way to call tools has only the constrained way.
            ToolChoice::Auto if request.constraint.is_none() || !self.format.has_calls() => (&[], request.constraint.as_ref()),
            ToolChoice::Auto => (&chat.tools, request.constraint.as_ref()),
            ToolChoice::Required if chat.tools.is_empty() => {
                return Err(RequestError::invalid("tool_choice", "a tool must be called, but there are none: give tools, or leave it out"));
            }
            ToolChoice::Required => (&chat.tools, None),
            ToolChoice::Named(name) => {
                single = true;
                let place = chat.tools.iter().position(|tool| tool.name == *name).ok_or_else(|| {
                    let known: Vec<&str> = chat.tools.iter().map(|tool| tool.name.as_str()).collect();
                    RequestError::invalid("tool_choice", format!("{name} is not one of the tools: {}", known.join(", ")))
                })?;
                (&chat.tools[place..=place], None)
            }
        };
        let in_reasoning = self.prompt_opens_reasoning(prompt);
        let off = |name: &str| chat.template_kwargs.get(name).is_some_and(|value| value == "false");
        // Who is in the midst of a text does not think first.
        let thinks = self.format.thinks() && !chat.continues && !off("enable_thinking") && !off("thinking");
        let plain = !thinks && !in_reasoning && (chat.continues || !self.format.is_harmony());
        if tools.is_empty() && (constraint.is_none() || plain) {
            return Ok(constraint.cloned());
        }
        let wanted = Wanted { tools, single, constraint, thinks, in_reasoning };
        let field = if tools.is_empty() { Constraint::FIELD } else { "tool_choice" };
        let grammar = answer::grammar(&self.format, wanted, |token| self.tokenizer.token_to_id(token));
        grammar.map(|grammar| Some(Constraint::Lark(grammar))).map_err(|reason| RequestError::invalid(field, reason))
    }

    /// Does the answer to this prompt begin inside its reasoning?
    fn prompt_opens_reasoning(&self, prompt: &[u32]) -> bool {
        let end = self.vocabulary.spell(&prompt[prompt.len().saturating_sub(PROMPT_END_LEN)..]);
        self.format.reasoning_open().is_some_and(|open| end.trim_end().ends_with(open))
    }

    /// A decoder for text that ends at any of the texts in `stop`.
    pub fn decoder(&self, stop: &[String]) -> StreamDecoder {
        StreamDecoder::new(self.vocabulary.clone(), stop)
    }

    /// The text of `ids` at once, control tokens left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.vocabulary.decode(ids)
    }

    /// Token ids are below this; some may have no text.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The first token that both models have and that is not the same text in both.
    pub(crate) fn differs_from(&self, other: &Self) -> Option<u32> {
        let (one, two) = (&self.vocabulary, &other.vocabulary);
        let alike = |id: u32| one.bytes_of(id) == two.bytes_of(id) && one.is_control(id) == two.is_control(id);
        (0..self.vocab_size.min(other.vocab_size) as u32).find(|id| !alike(*id))
    }

    /// The text of `ids` with control tokens written out.
    pub(crate) fn spell(&self, ids: &[u32]) -> String {
        self.vocabulary.spell(ids)
    }

    /// Does this token end an answer?
    pub fn is_stop(&self, id: u32) -> bool {
        self.vocabulary.stop_ids.contains(&id)
    }

    /// The grammar that an answer must follow. `param` names the field of the request that it comes from. The first of a model takes longer:
    /// what all of them need is made with it.
    ///
    /// Errors: [`RequestError::Invalid`] if it is malformed, too large, or uses what is not supported, with the reason.
    pub fn grammar(&self, constraint: &Constraint, param: &str) -> Result<Grammar, RequestError> {
        let made = self.grammars.get_or_init(|| {
            let ids = 0..self.vocab_size as u32;
            Grammars::new(TokenTable {
                texts: ids.clone().map(|id| self.vocabulary.bytes_of(id).to_vec()).collect(),
                control: ids
                    .filter(|id| self.vocabulary.is_control(*id))
                    .filter_map(|id| Some((id, self.tokenizer.id_to_token(id)?)))
                    .collect(),
                stop_ids: self.stop_ids(),
                tokenizer: Arc::clone(&self.tokenizer),
            })
        });
        match made {
            Ok(grammars) => grammars.compile(constraint, param),
            Err(reason) => Err(RequestError::invalid(param, format!("{param}: this model's answers cannot be constrained: {reason}"))),
        }
    }

    /// The tokens that end an answer, in order.
    pub fn stop_ids(&self) -> Arc<[u32]> {
        let mut ids: Vec<u32> = self.vocabulary.stop_ids.iter().copied().collect();
        ids.sort_unstable();
        ids.into()
    }

    /// About how many tokens a text has, by pieces from all over it.
    fn estimated_tokens(&self, text: &str) -> Result<u32, RequestError> {
        let (mut n_tokens, mut n_bytes) = (0, 0);
        for i in 0..N_SAMPLES {
            let from = text.floor_char_boundary(text.len() / N_SAMPLES * i);
            let sample = &text[from..text.floor_char_boundary(from + SAMPLE_LEN)];
            n_tokens += self.tokenize(sample, false)?.len();
            n_bytes += sample.len();
        }
        let estimated = n_tokens as u128 * text.len() as u128 / n_bytes.max(1) as u128;
        Ok(u32::try_from(estimated).unwrap_or(u32::MAX))
    }

    fn tokenize(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, RequestError> {
        let ids = self.tokenizer.encode(text, add_special_tokens);
        ids.map_err(|error| RequestError::Internal { message: format!("the tokenizer failed: {error}") })
    }
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec")
            .field("vocab_size", &self.vocab_size)
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .field("has_template", &self.template.is_ok())
            .finish_non_exhaustive()
    }
}
