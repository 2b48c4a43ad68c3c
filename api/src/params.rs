//! Fields that all dialects share, with their ranges. What is out of range is refused by name before any work is done (CX-81).

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::ops::RangeInclusive;

use plexus_types::{Constraint, ModelId, RequestError, Sampling, Tool, ToolChoice};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::Value;

use crate::wire::TextOr;

/// Most stop texts; each is searched for in every step.
const STOPS_MAX: usize = 16;
/// Longest stop text, in bytes: as much text as this is held back from the client.
const STOP_BYTES_MAX: usize = 256;
/// Most turns of a conversation.
pub(crate) const MESSAGES_MAX: usize = 2048;
/// Most tools; agents with many plugins send some hundred.
pub(crate) const TOOLS_MAX: usize = 512;
/// Most choices of an answer, prompts times `n`: each takes a place in a batch.
pub(crate) const CHOICES_MAX: u32 = 16;
/// Most tokens whose logits are biased.
const BIASES_MAX: usize = 1024;
/// Longest name of a model repeated in an error, in characters.
const ECHO_CHARS_MAX: usize = 200;

/// How tokens are drawn, as both vendors and the common servers spell it. Read from the same bytes as the rest of the body.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SamplingFields {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    seed: Option<Seed>,
    /// By token id, which is a key of a JSON object and so a text.
    logit_bias: Option<BTreeMap<String, f64>>,
    min_tokens: Option<i64>,
    ignore_eos: Option<bool>,
}

/// A seed is any integer of 64 bits; a negative one is taken by its bits.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bits;
        impl Visitor<'_> for Bits {
            type Value = Seed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer of 64 bits")
            }
            fn visit_u64<E: de::Error>(self, seed: u64) -> Result<Seed, E> {
                Ok(Seed(seed))
            }
            fn visit_i64<E: de::Error>(self, seed: i64) -> Result<Seed, E> {
                Ok(Seed(seed.cast_unsigned()))
            }
        }
        deserializer.deserialize_u64(Bits)
    }
}

impl SamplingFields {
    /// Checks every field against its range.
    pub(crate) fn check(self) -> Result<Sampling, RequestError> {
        Ok(Sampling {
            temperature: number("temperature", self.temperature, 0.0..=2.0)?,
            top_k: count_or_off("top_k", self.top_k)?.map(|top_k| top_k.unwrap_or(0)),
            top_p: number("top_p", self.top_p, 0.0..=1.0)?,
            min_p: number("min_p", self.min_p, 0.0..=1.0)?,
            // Zero would divide by zero; beyond 10 nothing but unseen tokens is left.
            repetition_penalty: number("repetition_penalty", self.repetition_penalty, 0.01..=10.0)?,
            repeat_last_n: count_or_off("repeat_last_n", self.repeat_last_n)?.flatten(),
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?,
            seed: self.seed.map(|Seed(seed)| seed),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default())?,
            min_tokens: match self.min_tokens {
                None | Some(0) => None,
                Some(min) => Some(u32::try_from(min).map_err(|_| out_of_range("min_tokens", min, "0 or more, and at most max_tokens"))?),
            },
            ignore_eos: self.ignore_eos.unwrap_or(false),
        })
    }
}

fn logit_bias(biases: BTreeMap<String, f64>) -> Result<Vec<(u32, f32)>, RequestError> {
    at_most("logit_bias", biases.len(), BIASES_MAX)?;
    let bias = |(id, bias): (String, f64)| {
        let id = id.parse::<u32>().map_err(|_| {
            let id: String = id.chars().take(ECHO_CHARS_MAX).collect();
            RequestError::invalid("logit_bias", format!("logit_bias has the key {id:?}; the keys are token ids, such as \"42\""))
        })?;
        Ok((id, number(&format!("logit_bias[{id}]"), Some(bias), -100.0..=100.0)?.unwrap_or_default()))
    };
    biases.into_iter().map(bias).collect()
}

fn number(param: &str, value: Option<f64>, range: RangeInclusive<f64>) -> Result<Option<f32>, RequestError> {
    match value {
        Some(value) if !range.contains(&value) => Err(out_of_range(param, value, format!("between {} and {}", range.start(), range.end()))),
        value => Ok(value.map(|value| value as f32)),
    }
}

/// A count, where -1 says "no limit" as some clients spell it: `Some(None)`.
fn count_or_off(param: &str, value: Option<i64>) -> Result<Option<Option<u32>>, RequestError> {
    match value {
        None => Ok(None),
        Some(-1) => Ok(Some(None)),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(Some(value))),
            Err(_) => Err(out_of_range(param, value, "0 or more, or -1 for no limit")),
        },
    }
}

/// The refusal of a value: field, value, remedy.
pub(crate) fn out_of_range(param: &str, value: impl Display, remedy: impl Display) -> RequestError {
    RequestError::invalid(param, format!("{param} is {value}; it must be {remedy}"))
}

/// The refusal of what is not possible yet, by name.
pub(crate) fn unsupported(param: &str, value: impl Display, remedy: impl Display) -> RequestError {
    RequestError::invalid(param, format!("{param} = {value} is not supported by this server; {remedy}"))
}

/// The name of the model, which must be there. A name that no model can have is that of a model that does not exist: clients that fall
/// back to another model look for that status.
pub(crate) fn model(model: Option<String>) -> Result<ModelId, RequestError> {
    match model.as_deref() {
        None => Err(RequestError::invalid("model", "model is missing; name one of those that GET /v1/models lists")),
        Some("") => Err(RequestError::invalid("model", "model is empty; name one of those that GET /v1/models lists")),
        Some(model) => model.parse().map_err(|_| model_not_found(model)),
    }
}

/// The refusal of a name as the client wrote it.
pub(crate) fn model_not_found(model: &str) -> RequestError {
    RequestError::ModelNotFound { model: model.chars().take(ECHO_CHARS_MAX).collect(), alias: None }
}

/// A limit of tokens. -1 says "none", as some clients spell it; what is more than any context holds is clamped, never refused.
pub(crate) fn max_tokens(param: &str, value: Option<i64>) -> Result<Option<u32>, RequestError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value @ ..1) => Err(out_of_range(param, value, "at least 1; leave it out for as many as fit")),
        Some(value) => Ok(Some(u32::try_from(value).unwrap_or(u32::MAX))),
    }
}

/// Refuses a least number of tokens above the limit.
pub(crate) fn min_below_max(sampling: &Sampling, max_tokens: Option<u32>) -> Result<(), RequestError> {
    match (sampling.min_tokens, max_tokens) {
        (Some(min), Some(max)) if min > max => Err(out_of_range("min_tokens", min, format!("at most the {max} tokens of max_tokens"))),
        _ => Ok(()),
    }
}

/// Refuses to force what cannot be: a tool that is not there, or a call where the answer must have another form.
pub(crate) fn choice_is_possible(
    param: &str,
    choice: &ToolChoice,
    tools: &[Tool],
    constraint: Option<&Constraint>,
) -> Result<(), RequestError> {
    let forced = match choice {
        ToolChoice::Auto | ToolChoice::None => return Ok(()),
        ToolChoice::Required if tools.is_empty() => Some("a tool, but tools has none that this server can call; list one".to_owned()),
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            let name: String = name.chars().take(ECHO_CHARS_MAX).collect();
            Some(format!("the tool {name:?}, which is not in tools; list it, or name one that is"))
        }
        ToolChoice::Required | ToolChoice::Named(_) => {
            constraint.map(|_| "a call, but the format of the answer is given as well; send one of them".to_owned())
        }
    };
    forced.map_or(Ok(()), |why| Err(RequestError::invalid(param, format!("{param} asks for {why}"))))
}

/// How many choices of each prompt, where there are `prompts`.
pub(crate) fn choices(n: Option<i64>, prompts: usize) -> Result<u32, RequestError> {
    let most = u32::try_from(prompts).map_or(0, |prompts| CHOICES_MAX / prompts.max(1));
    let n = n.unwrap_or(1);
    match u32::try_from(n) {
        _ if most == 0 => {
            let message = format!("prompt has {prompts} prompts; this server takes at most {CHOICES_MAX} a request: send several requests");
            Err(RequestError::invalid("prompt", message))
        }
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ if prompts > 1 => Err(out_of_range("n", n, format!("between 1 and {most} for {prompts} prompts"))),
        _ => Err(out_of_range("n", n, format!("between 1 and {most}"))),
    }
}

/// The client's own value, cut to what fits into a message.
pub(crate) fn short(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A JSON Schema, as JSON or as JSON text, to JSON text.
pub(crate) fn schema(param: &str, schema: Value) -> Result<String, RequestError> {
    let wrong = |given: &Value| out_of_range(param, short(given), "a JSON Schema: an object, or its JSON text");
    let parsed = match &schema {
        Value::String(text) => serde_json::from_str(text).map_err(|_| wrong(&schema))?,
        _ => schema,
    };
    if parsed.is_object() { Ok(parsed.to_string()) } else { Err(wrong(&parsed)) }
}

/// The texts that end a generation.
pub(crate) fn stop(param: &str, stop: Option<TextOr<String>>) -> Result<Vec<String>, RequestError> {
    let stop = match stop {
        None => Vec::new(),
        Some(TextOr::Text(text)) => vec![text],
        Some(TextOr::Many(texts)) => texts,
    };
    if stop.len() > STOPS_MAX {
        return Err(RequestError::invalid(param, format!("{param} has {} texts; at most {STOPS_MAX} are searched for", stop.len())));
    }
    for (index, text) in stop.iter().enumerate() {
        if text.is_empty() {
            return Err(RequestError::invalid(
                param,
                format!("{param}[{index}] is empty and would end every answer at once; leave it out"),
            ));
        }
        if text.len() > STOP_BYTES_MAX {
            let message = format!("{param}[{index}] has {} bytes; a stop text has at most {STOP_BYTES_MAX}", text.len());
            return Err(RequestError::invalid(param, message));
        }
    }
    Ok(stop)
}

/// Refuses lists that are longer than any honest client's.
pub(crate) fn at_most(param: &str, len: usize, max: usize) -> Result<(), RequestError> {
    if len > max { Err(RequestError::invalid(param, format!("{param} has {len} entries; at most {max} are taken"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(json: &str) -> Result<Sampling, RequestError> {
        serde_json::from_str::<SamplingFields>(json).unwrap().check()
    }

    fn message(error: RequestError) -> String {
        error.to_string()
    }

    #[test]
    fn what_is_absent_or_null_stays_the_models_own() {
        assert_eq!(sampling("{}"), Ok(Sampling::default()));
        assert_eq!(sampling(r#"{"temperature":null,"top_k":null,"seed":null,"repeat_last_n":-1}"#), Ok(Sampling::default()));
    }

    #[test]
    fn every_sampling_field_is_read() {
        // CX-81
        let json = r#"{"temperature":0.5,"top_k":40,"top_p":0.9,"min_p":0.05,"repetition_penalty":1.1,"repeat_last_n":64,
            "presence_penalty":0.25,"frequency_penalty":-0.5,"seed":7,"logit_bias":{"7":-100,"12":1.5},"min_tokens":3,"ignore_eos":true}"#;
        let expected = Sampling {
            temperature: Some(0.5),
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            repeat_last_n: Some(64),
            presence_penalty: Some(0.25),
            frequency_penalty: Some(-0.5),
            seed: Some(7),
            logit_bias: vec![(12, 1.5), (7, -100.0)],
            min_tokens: Some(3),
            ignore_eos: true,
        };
        assert_eq!(sampling(json), Ok(expected));
        assert_eq!(sampling(r#"{"seed":-1,"top_k":-1}"#).map(|sampling| (sampling.seed, sampling.top_k)), Ok((Some(u64::MAX), Some(0))));
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_field_value_and_remedy() {
        for (json, expected) in [
            (r#"{"temperature":-0.1}"#, "temperature is -0.1; it must be between 0 and 2"),
            (r#"{"temperature":2.5}"#, "temperature is 2.5; it must be between 0 and 2"),
            (r#"{"top_p":1.5}"#, "top_p is 1.5; it must be between 0 and 1"),
            (r#"{"min_p":-1}"#, "min_p is -1; it must be between 0 and 1"),
            (r#"{"top_k":-2}"#, "top_k is -2; it must be 0 or more, or -1 for no limit"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty is 0; it must be between 0.01 and 10"),
            (r#"{"presence_penalty":3}"#, "presence_penalty is 3; it must be between -2 and 2"),
            (r#"{"frequency_penalty":-3}"#, "frequency_penalty is -3; it must be between -2 and 2"),
            (r#"{"logit_bias":{"7":101}}"#, "logit_bias[7] is 101; it must be between -100 and 100"),
            (r#"{"logit_bias":{"the":1}}"#, "logit_bias has the key \"the\"; the keys are token ids, such as \"42\""),
            (r#"{"min_tokens":-1}"#, "min_tokens is -1; it must be 0 or more, and at most max_tokens"),
        ] {
            assert_eq!(message(sampling(json).unwrap_err()), expected);
        }
    }

    #[test]
    fn a_limit_of_tokens_is_clamped_and_never_refused_for_its_size() {
        assert_eq!(max_tokens("max_tokens", None), Ok(None));
        assert_eq!(max_tokens("max_tokens", Some(-1)), Ok(None));
        assert_eq!(max_tokens("max_tokens", Some(32_000)), Ok(Some(32_000)));
        assert_eq!(max_tokens("max_tokens", Some(i64::MAX)), Ok(Some(u32::MAX)));
        assert!(max_tokens("max_tokens", Some(0)).is_err());
        assert!(max_tokens("max_tokens", Some(-2)).is_err());
    }

    #[test]
    fn a_seed_that_is_no_integer_is_refused_in_plain_words() {
        for (seed, shown) in [("1.5", "1.5"), ("\"7\"", "\"7\""), ("36893488147419103232", "3.6893488147419103e+19")] {
            let refusal = crate::body::parse::<SamplingFields>(format!(r#"{{"seed":{seed}}}"#).as_bytes()).unwrap_err().to_string();
            assert_eq!(refusal, format!("seed is {shown}; it must be an integer of 64 bits"));
        }
    }

    #[test]
    fn the_least_number_of_tokens_is_not_above_the_limit() {
        let sampling = Sampling { min_tokens: Some(5), ..Sampling::default() };
        assert_eq!(min_below_max(&sampling, Some(5)), Ok(()));
        assert_eq!(min_below_max(&sampling, None), Ok(()));
        let refusal = message(min_below_max(&sampling, Some(4)).unwrap_err());
        assert_eq!(refusal, "min_tokens is 5; it must be at most the 4 tokens of max_tokens");
    }

    #[test]
    fn there_are_at_most_sixteen_choices_over_all_prompts() {
        assert_eq!((choices(None, 1), choices(Some(16), 1), choices(Some(4), 4), choices(None, 16)), (Ok(1), Ok(16), Ok(4), Ok(1)));
        for (n, prompts, expected) in [
            (0, 1, "n is 0; it must be between 1 and 16"),
            (17, 1, "n is 17; it must be between 1 and 16"),
            (5, 4, "n is 5; it must be between 1 and 4 for 4 prompts"),
            (1, 17, "prompt has 17 prompts; this server takes at most 16 a request: send several requests"),
        ] {
            assert_eq!(message(choices(Some(n), prompts).unwrap_err()), expected);
        }
    }

    #[test]
    fn stop_texts_are_few_short_and_not_empty() {
        let many = |texts: &[&str]| stop("stop", Some(TextOr::Many(texts.iter().map(ToString::to_string).collect())));
        assert_eq!(stop("stop", None), Ok(vec![]));
        assert_eq!(stop("stop", Some(TextOr::Text("END".to_owned()))), Ok(vec!["END".to_owned()]));
        assert_eq!(many(&["a"; 16]).map(|stop| stop.len()), Ok(16));
        assert!(many(&["a"; 17]).is_err());
        assert!(many(&["a", ""]).is_err());
        assert!(many(&[&"a".repeat(257)]).is_err());
    }

    #[test]
    fn a_name_that_no_model_can_have_is_a_model_that_does_not_exist() {
        assert!(matches!(model(Some("../etc".to_owned())), Err(RequestError::ModelNotFound { .. })));
        assert!(matches!(model(Some(String::new())), Err(RequestError::Invalid { .. })));
        assert!(matches!(model(None), Err(RequestError::Invalid { .. })));
        assert!(model(Some("Qwen/Qwen3-0.6B:Q8_0".to_owned())).is_ok());
    }
}
