//! How many tokens clients may send and ask for.

use plexus_types::{ModelKind, ModelReport};

/// Tokens of one request to a model; absent while nobody knows: its files have not been looked at, and its owner says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenLimits {
    /// Prompt and answer together.
    pub(crate) context: Option<u32>,
    /// The prompt.
    pub(crate) input: Option<u32>,
    /// The answer; absent as well for a model that writes none.
    pub(crate) output: Option<u32>,
}

impl TokenLimits {
    /// What the model holds, or less where its owner says so (CX-28, CX-29).
    pub(crate) fn of(model: &ModelReport) -> Self {
        let context = least(Some(model.context_length).filter(|tokens| *tokens > 0), model.limit.context);
        let output = match model.kind {
            ModelKind::Generate => least(context, model.limit.output),
            ModelKind::Embed => None,
        };
        Self { context, input: least(context, model.limit.input), output }
    }
}

/// The smaller of those that are known.
fn least(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (known, None) | (None, known) => known,
    }
}

#[cfg(test)]
mod tests {
    use super::least;

    #[test]
    fn what_is_unknown_limits_nothing() {
        // CX-29
        for (a, b, expected) in [(Some(8), Some(4), Some(4)), (Some(4), None, Some(4)), (None, Some(8), Some(8)), (None, None, None)] {
            assert_eq!(least(a, b), expected, "{a:?} {b:?}");
        }
    }
}
