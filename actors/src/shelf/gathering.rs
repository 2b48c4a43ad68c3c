//! The first moments of a node, in which it does not know yet who could give it files.
//!
//! Nodes that start together, each to load the same model at once, would otherwise each fetch it from outside.

use std::collections::BTreeSet;
use std::time::Duration;

use plexus_types::NodeName;
use tokio::time::Instant;

use crate::membership::KnownNodes;
use crate::peers::Peers;

/// After its start a node waits at most so long for links: perhaps those that it was told of do not run.
const GATHERING_MAX: Duration = Duration::from_secs(10);
/// Once all that are known are linked and no further one was heard of for so long, there are no more: some rounds of gossip.
const QUIET: Duration = Duration::from_secs(2);
/// How often it is looked who is linked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whom a node waits for before it first asks for files.
#[derive(Debug, Clone)]
pub struct Gathering {
    known: KnownNodes,
    started: Instant,
}

impl Gathering {
    /// Begins with the node.
    pub fn new(known: KnownNodes) -> Self {
        Self { known, started: Instant::now() }
    }

    /// Waits until links stand to all nodes that there seem to be, or it is no longer the start.
    pub(super) async fn gathered(&self, peers: &Peers) {
        let (mut known, mut since) = (BTreeSet::new(), Instant::now());
        loop {
            let now = Instant::now();
            let heard_of = self.known.names();
            if heard_of != known {
                (known, since) = (heard_of, now);
            }
            if is_over(&known, &peers.names(), now.saturating_duration_since(since), now.saturating_duration_since(self.started)) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Is nobody waited for any more? `quiet`: since when `known` is what it is; `age`: since the start.
fn is_over(known: &BTreeSet<NodeName>, linked: &BTreeSet<NodeName>, quiet: Duration, age: Duration) -> bool {
    let all_here = !known.is_empty() && known.is_subset(linked);
    age >= GATHERING_MAX || all_here && quiet >= QUIET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_waits_for_all_that_it_hears_of_for_a_while_and_for_nobody_later() {
        let names = |names: &[&str]| -> BTreeSet<NodeName> { names.iter().map(|name| name.parse().unwrap()).collect() };
        let (short, long) = (QUIET / 2, GATHERING_MAX / 2);
        assert!(!is_over(&names(&[]), &names(&[]), long, long), "it was told of some");
        assert!(!is_over(&names(&["a"]), &names(&["a"]), short, long), "a may know more");
        assert!(!is_over(&names(&["a", "b"]), &names(&["a"]), long, long));
        assert!(is_over(&names(&["a", "b"]), &names(&["a", "b"]), QUIET, long));
        assert!(is_over(&names(&["a", "b"]), &names(&[]), short, GATHERING_MAX), "they do not run, or cannot be reached");
    }
}
