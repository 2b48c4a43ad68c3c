//! Why a model's files are not here.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use plexus_types::{Bytes, NodeName};

use crate::serve::{NOT_HERE, NOT_SHARED, WAITS};

/// By these words other nodes know that a hub could not be reached.
const CANNOT_BE_REACHED: &str = "cannot be reached";

/// Why a model's files could not be brought here. Each says what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The model inside the binary.
    #[error("the built-in model has no files to fetch")]
    Embedded,
    /// A path that is not on this node, and no other node has it or gives it.
    #[error(
        "{path} is not on the node '{node}', and {}; put it there, correct the source of the model's entry, or let a node that has it join the cluster",
        elsewhere(.tried)
    )]
    NoSuchPath {
        /// The path.
        path: PathBuf,
        /// The node that looked for it.
        node: NodeName,
        /// The other nodes that were asked for it, and why they did not give it.
        tried: Vec<(NodeName, String)>,
    },
    /// The operator switched the hub off.
    #[error("{repo} is not on this node, and the hub must not be asked (offline); fetch it elsewhere, or switch offline off")]
    Offline {
        /// The repository.
        repo: String,
    },
    /// Some of it is in a cache, and the hub did not say what else there is.
    #[error(
        "{repo} is on this node, but perhaps not all of it ({why}), and the hub did not tell; let it be reached, or switch offline on to take \
         what is there"
    )]
    Doubtful {
        /// The repository.
        repo: String,
        /// What speaks against it.
        why: String,
        /// What the hub answered.
        #[source]
        source: Box<FetchError>,
    },
    /// Status 401: no token, or one that the hub does not know.
    #[error(
        "{endpoint} does not let this node read {repo}{}: it is gated, private, or does not exist; accept its terms at {endpoint}/{repo} \
         and give this node a token of that account (HF_TOKEN, or store.auth_env for a mirror)",
        if *.had_token { " with its token" } else { " without a token" }
    )]
    Unauthorized {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
        /// Was a token sent?
        had_token: bool,
    },
    /// Status 403: the token's account may not.
    #[error(
        "the account of this node's token may not read {repo}; ask for access at {endpoint}/{repo}, or give this node a token of another account \
         (HF_TOKEN, or store.auth_env for a mirror)"
    )]
    Forbidden {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// Status 404 for the repository.
    #[error(
        "{endpoint} has no repository {repo}; check its spelling, or give this node a token if it is private (HF_TOKEN, or store.auth_env for a mirror)"
    )]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// The repository.
        repo: String,
    },
    /// Status 404 for the revision.
    #[error("{repo} has no revision {revision:?}; name a branch, a tag or a whole commit, or leave it out for main")]
    NoRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },
    /// No GGUF file has the tag.
    #[error("{repo} has no GGUF file {quant:?}; it has {}", list(.has))]
    NoQuant {
        /// The repository or folder.
        repo: String,
        /// What was asked for.
        quant: String,
        /// What there is.
        has: Vec<String>,
    },
    /// Several GGUF files, and nothing says which.
    #[error("{repo} has several GGUF files; name one of {} behind a colon, as in hf:{repo}:{}", list(.has), .has.first().map_or("", |first| first))]
    WhichQuant {
        /// The repository or folder.
        repo: String,
        /// What there is.
        has: Vec<String>,
    },
    /// Nothing that can be served.
    #[error("{repo} has no weights that can be served: a .gguf file, or *.safetensors with config.json and tokenizer.json; {missing}")]
    NoWeights {
        /// The repository or folder.
        repo: String,
        /// What is missing.
        missing: String,
    },
    /// Too little room.
    #[error(
        "{needed} more are needed in {folder}, where {available} are free; free some, or set store.hf_cache (of what comes from a hub) or node.data_dir (of what comes from nodes) to a folder of a larger disk"
    )]
    NoSpace {
        /// Bytes still to be written.
        needed: Bytes,
        /// Bytes free.
        available: Bytes,
        /// Where.
        folder: PathBuf,
    },
    /// The other side ended early, again and again.
    #[error("{file} ended after {got} of {size} bytes; what came is kept, so try again")]
    Truncated {
        /// The file.
        file: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        size: u64,
    },
    /// The bytes are not those that were announced.
    #[error("{file} is damaged: {problem}; it was thrown away, so try again, and doubt the mirror if that does not help")]
    Corrupted {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection.
    #[error("{url} {CANNOT_BE_REACHED}; check the network, the proxy, or the endpoint of the hub")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// No answer, where others have waited for one in vain shortly before.
    #[error(
        "{url} has not answered within {waited:?}, and could not be reached shortly before; check the network, the proxy, or the endpoint of the hub"
    )]
    Silent {
        /// The address.
        url: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It is overloaded, or broken.
    #[error("{url} does not serve now: {problem}; try again later")]
    HubFails {
        /// The address.
        url: String,
        /// What it said.
        problem: String,
    },
    /// An answer that a hub does not give.
    #[error("{url} gave an answer that is not a hub's: {problem}; check the endpoint of the hub")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A disk said no.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No node that was named gave the model.
    #[error("no other node gave the model: {}", reasons(.tried))]
    Peers {
        /// Each, and why not.
        tried: Vec<(NodeName, String)>,
    },
    /// The task that fetched was lost.
    #[error("the download stopped: {0}; try again")]
    Lost(String),
}

impl FetchError {
    /// Do these words, which another node may have said, tell that a hub at `endpoint` could not be reached?
    pub(crate) fn tells_unreachable(words: &str, endpoint: &str) -> bool {
        let url = format!("{endpoint}/");
        words.match_indices(CANNOT_BE_REACHED).any(|(at, _)| words[..at].contains(&url))
    }

    /// Did all nodes that were asked say that they do not have the model, and none that it gets it?
    pub(crate) fn is_held_by_nobody(&self) -> bool {
        matches!(self, Self::Peers { tried } if held_by_nobody(tried))
    }

    /// The same in few words, without what to do about it. `url`: what was asked for.
    pub(crate) fn in_short(&self, url: &str) -> String {
        match self {
            Self::HubFails { url, problem } => format!("{url}: {problem}"),
            Self::Unreachable { url, source } => {
                let causes = std::iter::successors(Some(source as &dyn std::error::Error), |cause| cause.source());
                format!("{url} {CANNOT_BE_REACHED}: {}", causes.last().map(ToString::to_string).unwrap_or_default())
            }
            Self::Silent { url, waited } => format!("{url} has not answered within {waited:?}"),
            Self::Truncated { .. } => format!("{url} broke off"),
            other => other.to_string(),
        }
    }

    /// For `map_err`: adds the path to an I/O error.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Did all of these say that they do not have the model?
pub(crate) fn held_by_nobody(tried: &[(NodeName, String)]) -> bool {
    tried.iter().all(|(_, why)| [NOT_HERE, NOT_SHARED, WAITS].contains(&why.as_str()))
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn elsewhere(tried: &[(NodeName, String)]) -> String {
    if tried.is_empty() { "no other node can be asked for it".to_owned() } else { format!("no other node gave it ({})", reasons(tried)) }
}

fn reasons(tried: &[(NodeName, String)]) -> String {
    if tried.is_empty() {
        return "none was named".to_owned();
    }
    tried.iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hub_that_another_node_could_not_reach_is_told_from_other_hubs_and_other_failures() {
        let endpoint = "http://127.0.0.1:1";
        let source = reqwest::Client::new().get(endpoint).send().await.unwrap_err();
        let why = FetchError::Unreachable { url: format!("{endpoint}/api/models/org/pip"), source };
        let said = format!("hf:org/pip cannot be fetched: {why}: connection refused");
        assert!(FetchError::tells_unreachable(&said, endpoint), "{said}");
        assert!(!FetchError::tells_unreachable(&said, "http://127.0.0.1:11"));
        assert!(!FetchError::tells_unreachable(&said, "http://127.0.0.1"));
        let why = FetchError::HubFails { url: format!("{endpoint}/api"), problem: "status 503".to_owned() };
        assert!(!FetchError::tells_unreachable(&why.to_string(), endpoint));
    }
}
