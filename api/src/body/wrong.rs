//! What is wrong with a value of a body, in words for the client: where it stands, what it is and what it must be.

use plexus_types::RequestError;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::failure::Failure;
use crate::params::short;

/// The refusal of the value at `path` of `json`, which is whole JSON up to there, for `reason`.
pub(super) fn refusal(json: &[u8], path: &Path, reason: &serde_json::Error) -> RequestError {
    let reason = without_place(&reason.to_string()).to_owned();
    let at_top = path.iter().next().is_none();
    let place = if at_top { "the body".to_owned() } else { path.to_string() };
    if let Some(field) = reason.strip_prefix("duplicate field ") {
        let message = format!("{place} has the field {field} twice; send it once");
        return RequestError::Invalid { message, param: (!at_top).then_some(place) };
    }
    if let Some((field, known)) = reason.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", expected ")) {
        let message = format!("there is no field {field}; there are {}", known.strip_prefix("one of ").unwrap_or(known));
        return RequestError::Invalid { message, param: (!at_top).then_some(place) };
    }
    let wanted = reason.rsplit_once(", expected ").map(|(_, wanted)| in_words(wanted));
    let message = match (wanted, found(json, path)) {
        (Some(wanted), Some(value)) => format!("{place} is {value}; it must be {wanted}"),
        (Some(wanted), None) => format!("{place} must be {wanted}"),
        (None, Some(value)) => format!("{place} is {value}; it must be {reason}"),
        (None, None) => format!("{place}: {reason}"),
    };
    RequestError::Invalid { message, param: (!at_top).then_some(place) }
}

/// What cannot be read as JSON, and why.
pub(super) fn unreadable(reason: &serde_json::Error) -> Failure {
    let reason = reason.to_string();
    match reason.strip_prefix("recursion limit exceeded") {
        Some(place) => {
            let message = format!("the body is nested too deep{place}: at most 127 levels are read; send it flatter");
            RequestError::Invalid { message, param: None }.into()
        }
        None => Failure::Json(reason),
    }
}

/// The client's own value at `path`, shortened.
fn found(json: &[u8], path: &Path) -> Option<String> {
    let whole: Value = serde_json::from_slice(json).ok()?;
    let value = path.iter().try_fold(&whole, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    value.map(short)
}

/// Without the line and column that the library adds: the path says where it is.
fn without_place(reason: &str) -> &str {
    reason.rfind(" at line ").map_or(reason, |at| &reason[..at])
}

/// What is wanted, without names of types of this program.
fn in_words(wanted: &str) -> &str {
    match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "an integer, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        wanted if wanted.starts_with("struct ") => "an object",
        wanted => wanted,
    }
}
