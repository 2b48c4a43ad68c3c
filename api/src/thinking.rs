//! How much the model is to think, said to its template.
//!
//! Templates that can switch thinking off listen to `enable_thinking` (Qwen, GLM and most others) or `thinking` (DeepSeek, Granite); those
//! that know efforts, to `reasoning_effort`. A template ignores what it does not know. A budget in tokens has no counterpart: `max_tokens`
//! limits thoughts and answer together.

use std::collections::BTreeMap;

use plexus_types::RequestError;
use serde::Deserialize;

use crate::params::out_of_range;
use crate::wire::Object;

/// Variables of a template, each as JSON text.
pub(crate) type TemplateKwargs = BTreeMap<String, String>;

/// The efforts that the vendors know, beside `none` of OpenAI.
const EFFORTS: [&str; 6] = ["minimal", "low", "medium", "high", "xhigh", "max"];

/// Anthropic's `thinking`, which other vendors' chat endpoints take as well. A budget in tokens is not kept: the limit of tokens holds for
/// thoughts and answer together.
#[derive(Debug, Deserialize)]
pub(crate) struct WireThinking {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// What `thinking` says; nothing, if it is not there.
pub(crate) fn of_switch(thinking: Option<Object<WireThinking>>) -> Result<TemplateKwargs, RequestError> {
    match thinking.and_then(|Object(thinking)| thinking.kind).as_deref() {
        None => Ok(TemplateKwargs::new()),
        Some("enabled" | "adaptive") => Ok(switched(true)),
        Some("disabled") => Ok(switched(false)),
        Some(kind) => Err(out_of_range("thinking.type", quoted(kind), "one of \"enabled\", \"adaptive\", \"disabled\"")),
    }
}

/// OpenAI's `reasoning_effort`: `none` switches thinking off, any other word switches it on and is passed on.
pub(crate) fn of_effort(effort: &str) -> Result<TemplateKwargs, RequestError> {
    if effort == "none" {
        return Ok(switched(false));
    }
    let mut kwargs = switched(true);
    check_effort("reasoning_effort", effort, &["none"])?;
    set_effort(&mut kwargs, effort);
    Ok(kwargs)
}

/// Thinking on or off.
fn switched(on: bool) -> TemplateKwargs {
    ["enable_thinking", "thinking"].into_iter().map(|name| (name.to_owned(), on.to_string())).collect()
}

/// Refuses an effort that is none of the vendors', nor one of `more`.
pub(crate) fn check_effort(param: &str, effort: &str, more: &[&str]) -> Result<(), RequestError> {
    if EFFORTS.contains(&effort) {
        return Ok(());
    }
    let known: Vec<String> = more.iter().chain(&EFFORTS).map(|word| quoted(word)).collect();
    Err(out_of_range(param, quoted(effort), format!("one of {}", known.join(", "))))
}

/// The effort alone.
pub(crate) fn set_effort(kwargs: &mut TemplateKwargs, effort: &str) {
    kwargs.insert("reasoning_effort".to_owned(), serde_json::Value::from(effort).to_string());
}

fn quoted(word: &str) -> String {
    format!("{:?}", word.chars().take(80).collect::<String>())
}
