//! Calls written as a name, a mark, and the arguments as JSON: DeepSeek's, Kimi's and Mistral's newer ones.

use super::json::Stop;
use super::marks::{Found, find};
use super::object::Head;

/// How a format writes such calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Stands before all calls, where there is such a mark.
    pub(super) section: Option<String>,
    /// Closes `section`.
    pub(super) section_end: Option<String>,
    /// Opens a call.
    pub(super) open: String,
    /// Between name and arguments.
    pub(super) middle: String,
    /// Between the name and an id of the call, where the model writes one.
    pub(super) id: Option<String>,
    /// Closes a call, where there is such a mark.
    pub(super) close: Option<String>,
    /// `function` stands for the name, which follows `middle`, and the arguments stand between fences.
    pub(super) fenced: bool,
    /// Names are written `functions.name:0`.
    pub(super) numbered: bool,
}

/// Fences around arguments, in the older form of DeepSeek.
pub(super) const FENCE: &str = "```";

/// Reads the name of the tool. `text` begins behind the opening mark.
///
/// The older form of DeepSeek has a kind before the mark and the name behind it: `function<sep>name`, then the arguments between fences.
/// Kimi writes `functions.name:0`.
pub(super) fn head(text: &str, named: &Named) -> Result<Head, Stop> {
    let marks: Vec<&str> = [Some(&named.middle), named.id.as_ref()].into_iter().flatten().map(String::as_str).collect();
    let Found::At { start, which } = find(text, &marks) else { return Err(Stop::More) };
    let before = &text[..start];
    let mut at = start + marks[which].len();
    if which == 1 {
        at += text[at..].find(named.middle.as_str()).ok_or(Stop::More)? + named.middle.len();
    }
    let rest = &text[at..];
    if let Some(close) = &named.close
        && let Some(end) = rest.find(close.as_str())
        && rest.find('{').is_none_or(|start| start > end)
    {
        return Err(Stop::Broken);
    }
    let start = rest.find('{').ok_or(Stop::More)?;
    let between = rest[..start].trim();
    let name = if between.is_empty() { before } else { between.split(FENCE).next().unwrap_or_default() };
    let name = name.trim();
    let name = name.strip_prefix("functions.").unwrap_or(name);
    let name = match name.rsplit_once(':') {
        Some((name, index)) if !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    };
    if name.is_empty() || name.contains(['{', '"', '<']) || name.contains(char::is_whitespace) {
        return Err(Stop::Broken);
    }
    Ok(Head { name: name.into(), len: at + start, arguments: None, depth: 0 })
}
