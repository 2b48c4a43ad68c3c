//! `POST /v1/completions`, the legacy endpoint: text or tokens in, text out, no template.

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use bytes::Bytes;
use plexus_types::{Delta, GenerateRequest, Prompt, RequestId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::input::{self, Input};
use super::logprobs::{self, LegacyLogprobs};
use super::reply::{Head, Object, finish_reason};
use super::request::{ReplyOptions, StreamOptions};
use crate::Shared;
use crate::answer::{Answer, ChoiceEvent, Order};
use crate::body;
use crate::constraint::ConstraintFields;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::generate::{Render, respond};
use crate::params::{self, SamplingFields};
use crate::sse::Frames;
use crate::wire::{self, TextOr};

/// The same word for the whole and for chunks.
const OBJECT: &str = "text_completion";
/// What the vendor generates when the client sets no limit.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// `POST /v1/completions`
pub(crate) async fn completions(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let parsed = body::read(&api.config, request).await.and_then(|json| translate(&json));
    let (order, reply, echo) = match parsed {
        Ok(parsed) => parsed,
        Err(failure) => return exchange.failure(&failure),
    };
    let (created, fingerprint) = (api.config.now_s(), api.config.version.fingerprint());
    let model = order.prompts.first().map(|request| request.model.to_string()).unwrap_or_default();
    let echoes = echoes(&order, echo);
    let render = move |id: RequestId| CompletionRender {
        head: Head { id: format!("cmpl-{id}"), created, model, fingerprint, include_usage: reply.include_usage },
        chars: echoes.iter().map(|echo| echo.chars().count()).collect(),
        echoes,
    };
    respond(&api, exchange, order, reply.stream, render).await
}

/// What each choice's text begins with: its prompt, or nothing.
fn echoes(order: &Order, echo: bool) -> Vec<String> {
    let prompts = order.prompts.iter().flat_map(|request| (0..order.n).map(move |_| &request.prompt));
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) if echo => text.clone(),
        _ => String::new(),
    };
    prompts.map(text).collect()
}

#[derive(Debug, Deserialize)]
struct CompletionBody {
    model: Option<String>,
    prompt: Option<TextOr<input::Element>>,
    max_tokens: Option<i64>,
    stop: Option<TextOr<String>>,
    stream: Option<bool>,
    stream_options: Option<wire::Object<StreamOptions>>,
    n: Option<i64>,
    best_of: Option<i64>,
    echo: Option<bool>,
    suffix: Option<String>,
    logprobs: Option<Value>,
}

/// The order, how to reply, and whether the text begins with the prompt.
fn translate(json: &[u8]) -> Result<(Order, ReplyOptions, bool), Failure> {
    let sampling: SamplingFields = body::parse(json)?;
    let constraint: ConstraintFields = body::parse(json)?;
    let body: CompletionBody = body::parse(json)?;
    let model = params::model(body.model)?;
    let prompts: Vec<_> = input::read("prompt", body.prompt)?.into_iter().map(prompt).collect();
    let n = params::choices(body.n, prompts.len())?;
    if let Some(best_of) = body.best_of
        && best_of != i64::from(n)
    {
        return Err(params::unsupported("best_of", best_of, "leave it out, ask for n choices with logprobs and take the best").into());
    }
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(params::unsupported(
            "suffix",
            "(a text)",
            "put the text after the gap into the prompt as the model's own format has it",
        )
        .into());
    }
    let sampling = sampling.check()?;
    let max_tokens = match body.max_tokens {
        None => Some(MAX_TOKENS_DEFAULT.max(sampling.min_tokens.unwrap_or(0))),
        some => params::max_tokens("max_tokens", some)?,
    };
    params::min_below_max(&sampling, max_tokens)?;
    let logprobs = logprobs::of_completion(body.logprobs.as_ref())?;
    let echo = body.echo.unwrap_or(false);
    if echo && logprobs.is_some() {
        return Err(
            params::unsupported("echo", "true with logprobs", "leave one of them out: prompts have no log probabilities here").into()
        );
    }
    if echo && prompts.iter().any(|prompt| matches!(prompt, Prompt::Tokens(_))) {
        return Err(params::unsupported("echo", "true with token ids", "send the prompt as text, or leave echo out").into());
    }
    let (constraint_field, constraint) = constraint.check()?.unzip();
    let first = GenerateRequest {
        principal: None,
        model,
        prompt: Prompt::Tokens(Vec::new()),
        sampling,
        max_tokens,
        stop: params::stop("stop", body.stop)?,
        constraint,
        logprobs,
    };
    let prompts = prompts.into_iter().map(|prompt| GenerateRequest { prompt, ..first.clone() }).collect();
    let order = Order { prompts, n, constraint_field: constraint_field.unwrap_or_default() };
    Ok((order, ReplyOptions::new(body.stream, body.stream_options), echo))
}

fn prompt(input: Input) -> Prompt {
    match input {
        Input::Text(text) => Prompt::Text(text),
        Input::Tokens(ids) => Prompt::Tokens(ids),
    }
}

/// Spells one completion.
pub(crate) struct CompletionRender {
    head: Head,
    /// What each choice's text begins with.
    echoes: Vec<String>,
    /// Characters of each choice's text so far.
    chars: Vec<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Choice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<LegacyLogprobs>,
    finish_reason: Option<&'static str>,
}

/// A choice in one piece.
#[derive(Debug, Serialize)]
pub(crate) struct WholeChoice {
    text: String,
    index: u32,
    logprobs: Option<LegacyLogprobs>,
    finish_reason: &'static str,
}

impl CompletionRender {
    fn chunk(&self, choice: Choice<'_>, frames: &mut Frames) {
        frames.data(&self.head.chunk(OBJECT, choice));
    }
}

impl Render for CompletionRender {
    type Whole<'a> = Object<'a, WholeChoice>;

    fn frames(&mut self, event: ChoiceEvent) -> Bytes {
        let mut frames = Frames::new();
        match event {
            // The vendor has no chunk for it; an empty one tells the client that its prompt was read.
            ChoiceEvent::Started { choice: index, .. } => {
                let text = self.echoes[index as usize].as_str();
                self.chunk(Choice { text, index, logprobs: None, finish_reason: None }, &mut frames);
            }
            ChoiceEvent::Tokens { choice: index, deltas, logprobs } => {
                let logprobs = LegacyLogprobs::of(&logprobs, &mut self.chars[index as usize]);
                self.chunk(Choice { text: &Delta::text_of(&deltas), index, logprobs, finish_reason: None }, &mut frames);
            }
            ChoiceEvent::Finished { choice: index, reason, total } => {
                self.chunk(Choice { text: "", index, logprobs: None, finish_reason: Some(finish_reason(&reason)) }, &mut frames);
                if let Some(cost) = total {
                    self.head.end::<Choice<'_>>(OBJECT, &cost, &mut frames);
                }
            }
            ChoiceEvent::Failed(error) => return Head::failed(error),
        }
        frames.into_bytes()
    }

    fn whole<'a>(&'a self, answer: &'a Answer) -> Self::Whole<'a> {
        let choices = answer.choices.iter().zip(0..).zip(self.echoes.iter().zip(&self.chars));
        let choices = choices.map(|((choice, index), (echo, chars))| WholeChoice {
            text: format!("{echo}{}", choice.text()),
            index,
            logprobs: LegacyLogprobs::of(&choice.logprobs, &mut chars.clone()),
            finish_reason: choice.reason.as_ref().map_or("stop", finish_reason),
        });
        self.head.whole(OBJECT, choices.collect(), &answer.cost)
    }
}

#[cfg(test)]
mod tests {
    use plexus_types::RequestError;

    use super::*;

    fn prompts_of(json: &str) -> Result<Vec<Prompt>, String> {
        let body = format!(r#"{{"model":"m","prompt":{json}}}"#);
        let order = translate(body.as_bytes()).map(|(order, ..)| order).map_err(|failure| failure.to_string())?;
        Ok(order.prompts.into_iter().map(|request| request.prompt).collect())
    }

    #[test]
    fn prompts_are_texts_or_arrays_of_tokens() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(prompts_of(r#""a""#), Ok(vec![text("a")]));
        assert_eq!(prompts_of(r#"["a"]"#), Ok(vec![text("a")]));
        assert_eq!(prompts_of(r#"["a","b"]"#), Ok(vec![text("a"), text("b")]));
        assert_eq!(prompts_of("[1]"), Ok(vec![Prompt::Tokens(vec![1])]));
        assert_eq!(prompts_of("[1,2,3]"), Ok(vec![Prompt::Tokens(vec![1, 2, 3])]));
        assert_eq!(prompts_of("[[1,2],[3]]"), Ok(vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]));
        for (bad, message) in [
            (r#"["a",1]"#, "prompt mixes token ids with other elements; send one or the other"),
            ("[1,[1]]", "prompt mixes token ids with other elements; send one or the other"),
            ("[]", "prompt is empty; give at least one token"),
            ("[[1],[]]", "prompt[1] is empty; give at least one token"),
            (r#""""#, "prompt is empty; give at least one character"),
            ("null", "prompt is missing; give a text, an array of token ids, or an array of texts or of such arrays"),
        ] {
            assert_eq!(prompts_of(bad), Err(message.to_owned()), "{bad}");
        }
        assert!(prompts_of("[-1]").is_err());
    }

    #[test]
    fn without_a_limit_as_many_tokens_are_generated_as_the_vendor_would() {
        let (order, reply, echo) = translate(br#"{"model":"m","prompt":"a"}"#).unwrap();
        assert_eq!((order.prompts[0].max_tokens, order.n), (Some(16), 1));
        assert!(!reply.stream && !reply.include_usage && !echo);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for field in
            [r#""n":17"#, r#""best_of":3"#, r#""suffix":"x""#, r#""logprobs":6"#, r#""logit_bias":{"x":1}"#, r#""echo":true,"logprobs":1"#]
        {
            let body = format!(r#"{{"model":"m","prompt":"a",{field}}}"#);
            let name = field.split('"').nth(1).unwrap();
            let failure = translate(body.as_bytes()).unwrap_err();
            assert!(matches!(&failure, Failure::Request(RequestError::Invalid { param: Some(param), .. }) if param == name), "{failure:?}");
        }
        assert!(translate(br#"{"model":"m","prompt":[1],"echo":true}"#).is_err());
        for field in [r#""n":1"#, r#""best_of":1"#, r#""n":2,"best_of":2"#, r#""echo":false"#, r#""suffix":null"#, r#""logprobs":null"#] {
            assert!(translate(format!(r#"{{"model":"m","prompt":"a",{field}}}"#).as_bytes()).is_ok(), "{field}");
        }
    }
}
