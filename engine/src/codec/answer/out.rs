//! What a parser has found, as deltas.

use plexus_types::Delta;

/// Surrounds the name of a control token in the text that parsers read: noncharacters of Unicode, which no text holds. So a control token is
/// never mistaken for the same letters written by the model, nor do its letters reach the client.
pub(super) const CONTROL_OPEN: char = '\u{FDD0}';
/// The other side of [`CONTROL_OPEN`].
pub(super) const CONTROL_CLOSE: char = '\u{FDD1}';

/// A control token in the text that parsers read.
pub(super) fn control(name: &str) -> String {
    format!("{CONTROL_OPEN}{name}{CONTROL_CLOSE}")
}

/// Text without control tokens.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(CONTROL_OPEN) {
        out.push_str(&rest[..start]);
        rest = rest[start..].find(CONTROL_CLOSE).map_or("", |len| &rest[start + len + CONTROL_CLOSE.len_utf8()..]);
    }
    out.push_str(rest);
    out
}

/// Collects deltas; neighbours of one kind become one.
#[derive(Debug, Clone, Default)]
pub(super) struct Out {
    deltas: Vec<Delta>,
    n_calls: u32,
    /// Has the call begun last got arguments?
    has_arguments: bool,
}

impl Out {
    /// More of the answer.
    pub(super) fn text(&mut self, text: &str) {
        self.extend(Delta::Text(visible(text)));
    }

    /// More of the reasoning.
    pub(super) fn reasoning(&mut self, text: &str) {
        self.extend(Delta::Reasoning(visible(text)));
    }

    /// A call begins; `id` names it.
    pub(super) fn call(&mut self, id: String, name: String) {
        self.deltas.push(Delta::ToolCall { index: self.n_calls, id, name });
        self.n_calls += 1;
        self.has_arguments = false;
    }

    /// More of the arguments of the call begun last.
    pub(super) fn arguments(&mut self, json: &str) {
        let json = visible(json);
        self.has_arguments |= !json.is_empty();
        self.extend(Delta::ToolArguments { index: self.n_calls.saturating_sub(1), json });
    }

    /// The call begun last is complete: one without arguments has got an object without members.
    pub(super) fn end_call(&mut self) {
        if !self.has_arguments {
            self.arguments("{}");
        }
    }

    /// Calls begun so far.
    pub(super) fn n_calls(&self) -> u32 {
        self.n_calls
    }

    /// What was collected since this was last asked.
    pub(super) fn take(&mut self) -> Vec<Delta> {
        std::mem::take(&mut self.deltas)
    }

    fn extend(&mut self, delta: Delta) {
        delta.join(&mut self.deltas);
    }
}
