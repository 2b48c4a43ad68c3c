//! What every actor says of itself when asked.

use std::collections::BTreeMap;

/// The answer of an actor to `Inspect`. Restarts, waiting messages and the last error are known to its supervisor and its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Name of the state it is in.
    pub state: String,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
}

impl Inspection {
    /// A state and its counters.
    pub fn new<const N: usize>(state: &str, counters: [(&str, u64); N]) -> Self {
        Self { state: state.to_owned(), counters: counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect() }
    }
}
