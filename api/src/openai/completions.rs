//! `POST /v1/completions`, the legacy endpoint: text or tokens in, text out, no template.

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;
use plexus_types::{Delta, GenerateEvent, GenerateRequest, Prompt, RequestError, RequestId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reply::{Head, Object, finish_reason};
use super::request::{self, ReplyOptions, StreamOptions};
use crate::Shared;
use crate::body;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::generate::{Answer, Render, respond};
use crate::params::{self, SamplingFields};
use crate::sse::Frames;
use crate::wire::TextOr;

/// The same word for the whole and for chunks.
const OBJECT: &str = "text_completion";
/// What the vendor generates when the client sets no limit.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// `POST /v1/completions`
pub(crate) async fn completions(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let parsed = body::read(&api.config, request).await.and_then(|json| translate(&json));
    let (request, reply) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return exchange.failure(&failure),
    };
    let (created, fingerprint, model) = (api.config.now_s(), api.config.version.fingerprint(), request.model.to_string());
    let render = move |id: RequestId| CompletionRender {
        head: Head { id: format!("cmpl-{id}"), created, model, fingerprint, include_usage: reply.include_usage },
    };
    respond(&api, exchange, request, reply.stream, render).await
}

#[derive(Debug, Deserialize)]
struct CompletionBody {
    model: Option<String>,
    prompt: Option<TextOr<PromptItem>>,
    max_tokens: Option<i64>,
    stop: Option<TextOr<String>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<i64>,
    best_of: Option<i64>,
    echo: Option<bool>,
    suffix: Option<String>,
    logprobs: Option<Value>,
    logit_bias: Option<Value>,
}

/// An element of a prompt that is an array: one of several texts, a token, or one of several arrays of tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string, a token id or an array of token ids")]
enum PromptItem {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

fn translate(json: &[u8]) -> Result<(GenerateRequest, ReplyOptions), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let body: CompletionBody = body::parse(json)?;
    let model = params::model(body.model)?;
    request::only_one("n", body.n)?;
    request::only_one("best_of", body.best_of)?;
    if body.echo == Some(true) {
        return Err(params::unsupported("echo", true, "leave it out and put the prompt before the answer yourself").into());
    }
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(params::unsupported(
            "suffix",
            "(a text)",
            "put the text after the gap into the prompt as the model's own format has it",
        )
        .into());
    }
    request::no_logprobs(body.logprobs.as_ref())?;
    request::no_logit_bias(body.logit_bias.as_ref())?;
    let request = GenerateRequest {
        model,
        prompt: prompt(body.prompt)?,
        sampling: sampling.check()?,
        max_tokens: match body.max_tokens {
            None => Some(MAX_TOKENS_DEFAULT),
            some => params::max_tokens("max_tokens", some)?,
        },
        stop: params::stop("stop", body.stop)?,
        constraint: None,
        logprobs: None,
    };
    Ok((request, ReplyOptions::new(body.stream, body.stream_options)))
}

fn prompt(prompt: Option<TextOr<PromptItem>>) -> Result<Prompt, RequestError> {
    let wrong = |message: &str| Err(RequestError::invalid("prompt", message));
    let prompt = match prompt {
        None => return wrong("prompt is missing; give a text, an array of one text, or an array of token ids"),
        Some(TextOr::Text(text)) => Prompt::Text(text),
        Some(TextOr::Many(mut items)) => match (items.len(), items.pop()) {
            (1, Some(PromptItem::Text(text))) => Prompt::Text(text),
            (1, Some(PromptItem::Tokens(ids))) => Prompt::Tokens(ids),
            (_, Some(PromptItem::Token(last))) => {
                let mut ids = Vec::with_capacity(items.len() + 1);
                for item in items {
                    let PromptItem::Token(id) = item else {
                        return wrong("prompt mixes token ids with other elements; send one or the other");
                    };
                    ids.push(id);
                }
                ids.push(last);
                Prompt::Tokens(ids)
            }
            (0, _) | (_, None) => Prompt::Tokens(Vec::new()),
            (n, Some(_)) => return wrong(&format!("prompt has {n} prompts; this server takes one prompt a request: send {n} requests")),
        },
    };
    match &prompt {
        Prompt::Text(text) if text.is_empty() => wrong("prompt is empty; give at least one character"),
        Prompt::Tokens(ids) if ids.is_empty() => wrong("prompt is empty; give at least one token"),
        _ => Ok(prompt),
    }
}

/// Spells one completion.
pub(crate) struct CompletionRender {
    head: Head,
}

#[derive(Debug, Serialize)]
pub(crate) struct Choice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

impl CompletionRender {
    fn chunk(&self, text: &str, finish_reason: Option<&'static str>, frames: &mut Frames) {
        frames.data(&self.head.chunk(OBJECT, Choice { text, index: 0, logprobs: None, finish_reason }));
    }
}

impl Render for CompletionRender {
    type Whole<'a> = Object<'a, Choice<'a>>;

    fn frames(&mut self, event: GenerateEvent) -> Bytes {
        let mut frames = Frames::new();
        match event {
            // The vendor has no chunk for it; an empty one tells the client that its prompt was read.
            GenerateEvent::Started { .. } => self.chunk("", None, &mut frames),
            GenerateEvent::Tokens { deltas, .. } => self.chunk(&Delta::text_of(&deltas), None, &mut frames),
            GenerateEvent::Done { reason, usage } => {
                self.chunk("", Some(finish_reason(&reason)), &mut frames);
                self.head.end::<Choice<'_>>(OBJECT, &usage, &mut frames);
            }
            GenerateEvent::Failed(error) => return Head::failed(error),
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a> {
        let choice = Choice { text: &answer.text, index: 0, logprobs: None, finish_reason: Some(finish_reason(&answer.reason)) };
        self.head.whole(OBJECT, choice, &answer.usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt_of(json: &str) -> Result<Prompt, String> {
        let body = format!(r#"{{"model":"m","prompt":{json}}}"#);
        translate(body.as_bytes()).map(|(request, _)| request.prompt).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_prompt_is_one_text_or_one_array_of_tokens() {
        assert_eq!(prompt_of(r#""a""#), Ok(Prompt::Text("a".to_owned())));
        assert_eq!(prompt_of(r#"["a"]"#), Ok(Prompt::Text("a".to_owned())));
        assert_eq!(prompt_of("[1]"), Ok(Prompt::Tokens(vec![1])));
        assert_eq!(prompt_of("[1,2,3]"), Ok(Prompt::Tokens(vec![1, 2, 3])));
        assert_eq!(prompt_of("[[1,2,3]]"), Ok(Prompt::Tokens(vec![1, 2, 3])));
        for (bad, message) in [
            (r#"["a","b"]"#, "prompt has 2 prompts; this server takes one prompt a request: send 2 requests"),
            ("[[1],[2]]", "prompt has 2 prompts; this server takes one prompt a request: send 2 requests"),
            (r#"["a",1]"#, "prompt mixes token ids with other elements; send one or the other"),
            ("[]", "prompt is empty; give at least one token"),
            (r#""""#, "prompt is empty; give at least one character"),
            ("null", "prompt is missing; give a text, an array of one text, or an array of token ids"),
        ] {
            assert_eq!(prompt_of(bad), Err(message.to_owned()), "{bad}");
        }
        assert!(prompt_of("[-1]").is_err());
    }

    #[test]
    fn without_a_limit_as_many_tokens_are_generated_as_the_vendor_would() {
        let (request, reply) = translate(br#"{"model":"m","prompt":"a"}"#).unwrap();
        assert_eq!(request.max_tokens, Some(16));
        assert!(!reply.stream && !reply.include_usage);
    }

    #[test]
    fn what_would_change_the_result_is_refused_by_name() {
        for field in [r#""n":2"#, r#""best_of":3"#, r#""echo":true"#, r#""suffix":"x""#, r#""logprobs":1"#, r#""logit_bias":{"1":1}"#] {
            let body = format!(r#"{{"model":"m","prompt":"a",{field}}}"#);
            let name = field.split('"').nth(1).unwrap();
            let failure = translate(body.as_bytes()).unwrap_err();
            assert!(matches!(&failure, Failure::Request(RequestError::Invalid { param: Some(param), .. }) if param == name), "{failure:?}");
        }
        for field in [r#""n":1"#, r#""best_of":1"#, r#""echo":false"#, r#""suffix":null"#, r#""logprobs":null"#, r#""logit_bias":{}"#] {
            assert!(translate(format!(r#"{{"model":"m","prompt":"a",{field}}}"#).as_bytes()).is_ok(), "{field}");
        }
    }
}
