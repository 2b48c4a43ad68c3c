//! How much the model is to think, said to its template.
//!
//! Templates that can switch thinking off listen to `enable_thinking` (Qwen, GLM and most others) or `thinking` (DeepSeek, Granite); those
//! that know efforts, to `reasoning_effort`. A template ignores what it does not know. A budget in tokens has no counterpart: `max_tokens`
//! limits thoughts and answer together.

use std::collections::BTreeMap;

/// Variables of a template, each as JSON text.
pub(crate) type TemplateKwargs = BTreeMap<String, String>;

/// OpenAI's `reasoning_effort`: `none` switches thinking off, any other word switches it on and is passed on.
pub(crate) fn of_effort(effort: &str) -> TemplateKwargs {
    if effort == "none" {
        return switched(false);
    }
    let mut kwargs = switched(true);
    set_effort(&mut kwargs, effort);
    kwargs
}

/// Thinking on or off.
pub(crate) fn switched(on: bool) -> TemplateKwargs {
    ["enable_thinking", "thinking"].into_iter().map(|name| (name.to_owned(), on.to_string())).collect()
}

/// The effort alone.
pub(crate) fn set_effort(kwargs: &mut TemplateKwargs, effort: &str) {
    kwargs.insert("reasoning_effort".to_owned(), serde_json::Value::from(effort).to_string());
}
