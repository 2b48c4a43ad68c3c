//! Nodes by the names that people write.

use plexus_types::{NodeId, NodeName, RequestError};

use super::view::ClusterView;

/// Most names that a refusal lists.
const NAMES_MAX: usize = 16;

impl ClusterView {
    /// The node of this name, whether it can be reached or not.
    ///
    /// Errors: there is none; those that there are, are named.
    pub fn node_named(&self, name: &NodeName) -> Result<&NodeId, RequestError> {
        self.nodes().map(|node| node.id).find(|id| id.name == *name).ok_or_else(|| {
            let mut known: Vec<&str> = self.nodes().map(|node| node.id.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            RequestError::invalid("node", format!("there is no node '{name}'; GET /v1/cluster lists them: {}", listed(&known)))
        })
    }
}

fn listed(names: &[&str]) -> String {
    let (shown, left_out) = names.split_at(names.len().min(NAMES_MAX));
    let more = if left_out.is_empty() { String::new() } else { format!(" and {} more", left_out.len()) };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_nodes_the_first_are_named() {
        assert_eq!(listed(&["a"]), "a");
        assert_eq!(listed(&["a", "b"]), "a, b");
        let many: Vec<String> = (10..40).map(|n| format!("n{n}")).collect();
        let told = listed(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(told.starts_with("n10, n11, ") && told.ends_with(", n25 and 14 more"), "{told}");
    }
}
