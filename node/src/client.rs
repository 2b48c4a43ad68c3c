//! A client of a node's HTTP API: all that the commands know of a cluster comes through it.

pub(crate) mod by_hand;
pub(crate) mod chat;
mod sse;

use std::path::PathBuf;
use std::time::Duration;

use plexus_types::{ActorReport, ClusterReport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::boot::neighbours;

/// Where a node answers unless somebody says otherwise.
const DEFAULT_NODE: &str = "http://127.0.0.1:31313";
/// A node on this machine answers at once; one far away deserves a little patience.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A page about the cluster may wait for nodes that do not answer.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a node did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody is there.
    #[error("no node answers at {url}: start one with `plexus start`, or name one with --ask URL")]
    NoNode {
        /// Where one was looked for.
        url: String,
    },
    /// The address is none.
    #[error("{url:?} is not the address of a node: write it like {DEFAULT_NODE}")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// Somebody else is there.
    #[error("what answers at {url} is not a Plexus node ({status}): name one with --ask URL")]
    Stranger {
        /// Where.
        url: String,
        /// What it said.
        status: String,
    },
    /// The node refused.
    #[error("{message}")]
    Refused {
        /// Why, in the node's words.
        message: String,
    },
    /// The connection broke, or what came makes no sense.
    #[error("the answer of {url} broke off: {problem}")]
    Broken {
        /// Which node.
        url: String,
        /// How.
        problem: String,
    },
}

/// The actors of one node, or why they could not be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeActors {
    /// The node.
    pub(crate) node: String,
    /// Its actors.
    pub(crate) actors: Vec<ActorReport>,
    /// Why the node could not be asked.
    pub(crate) error: Option<String>,
}

/// A model, as the list of models shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ModelEntry {
    pub(crate) id: String,
    pub(crate) loaded: bool,
    pub(crate) status: String,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// How far its load is, from 0 to 1.
    pub(crate) progress: Option<f32>,
    pub(crate) alias_of: Option<String>,
    pub(crate) max_model_len: Option<u32>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) feasible_on: Vec<String>,
    pub(crate) locations: Vec<ModelPlace>,
    /// Why no node could load it again once it is unloaded.
    pub(crate) warning: Option<String>,
    /// How far its files are, while a node fetches them.
    pub(crate) fetch: Option<ModelFetch>,
}

/// Files on their way to a node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ModelFetch {
    pub(crate) from: String,
    /// What went wrong at the last try, if nothing has come since.
    pub(crate) failure: Option<String>,
}

impl ModelFetch {
    /// What went wrong, to be said behind something else; empty if nothing did.
    pub(crate) fn and_failure(&self) -> String {
        self.failure.as_ref().map_or_else(String::new, |why| format!("; the last try failed: {why}"))
    }
}

impl ModelEntry {
    /// Does it write, rather than embed?
    fn generates(&self) -> bool {
        self.capabilities.iter().any(|word| word == "generate")
    }
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ModelPlace {
    pub(crate) node: String,
    pub(crate) device: String,
    pub(crate) status: String,
    /// Why it failed there.
    pub(crate) reason: Option<String>,
    pub(crate) memory_bytes: u64,
    pub(crate) pinned: bool,
}

/// A node that answers.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    /// The node at `url`; without one, the usual address, else any node that left its card in one of the directories `nodes`.
    pub(crate) async fn connect(url: Option<&str>, nodes: &[PathBuf]) -> Result<Self, ClientError> {
        // A proxy for the web has no business between a command and its node.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).build();
        let http = http.map_err(|error| ClientError::Broken { url: url.unwrap_or(DEFAULT_NODE).to_owned(), problem: chain(&error) })?;
        let asked = Self { base: base(url.unwrap_or(DEFAULT_NODE))?, http };
        let refused = match asked.look().await {
            Ok(()) => return Ok(asked),
            Err(refused) => refused,
        };
        if url.is_none() {
            for card in nodes.iter().flat_map(|nodes| neighbours::cards(nodes)) {
                let found = Self { base: format!("http://{}", card.http), http: asked.http.clone() };
                if found.look().await.is_ok() {
                    return Ok(found);
                }
            }
        }
        Err(refused)
    }

    /// The node at an address that is known to be good.
    pub(crate) fn at(address: std::net::SocketAddr) -> Result<Self, ClientError> {
        Ok(Self {
            base: format!("http://{address}"),
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(|error| ClientError::Broken { url: address.to_string(), problem: chain(&error) })?,
        })
    }

    /// The address of the node.
    pub(crate) fn url(&self) -> &str {
        &self.base
    }

    /// `GET /v1/cluster`
    pub(crate) async fn cluster(&self) -> Result<ClusterReport, ClientError> {
        self.page("/v1/cluster").await
    }

    /// `GET /v1/cluster/actors`
    pub(crate) async fn actors(&self) -> Result<Vec<NodeActors>, ClientError> {
        self.page("/v1/cluster/actors").await
    }

    /// `GET /v1/models`: what can be asked for.
    pub(crate) async fn models(&self) -> Result<Vec<ModelEntry>, ClientError> {
        self.models_of("/v1/models").await
    }

    /// The models of one of the lists.
    pub(crate) async fn models_of(&self, path: &str) -> Result<Vec<ModelEntry>, ClientError> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<ModelEntry>,
        }
        self.page(path).await.map(|list: List| list.data)
    }

    /// Any page, as it is.
    pub(crate) async fn page<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.http.get(format!("{}{path}", self.base)).timeout(PAGE_TIMEOUT).send().await;
        let answer = refused(answer.map_err(|error| self.lost(&error))?).await?;
        answer.json().await.map_err(|error| self.broken(&error))
    }

    /// The model to use when none is named.
    pub(crate) async fn some_model(&self) -> Result<String, ClientError> {
        let models = self.models().await?;
        match usual_model(&models) {
            Some(model) => Ok(model.id.clone()),
            None => Err(ClientError::Refused {
                message: match models.first() {
                    Some(model) => format!(
                        "no model here can write an answer ({} is {}): `plexus models` says why; add one to [[models]]",
                        model.id, model.status
                    ),
                    None => "the cluster serves no model: start a node with --model ID=SOURCE".to_owned(),
                },
            }),
        }
    }

    /// Is a node there?
    async fn look(&self) -> Result<(), ClientError> {
        let answer = self.http.get(format!("{}/version", self.base)).timeout(CONNECT_TIMEOUT).send().await;
        let answer = answer.map_err(|error| self.lost(&error))?;
        let status = answer.status();
        match answer.json::<Value>().await {
            Ok(version) if version.get("git_sha").is_some() => Ok(()),
            _ => Err(ClientError::Stranger { url: self.base.clone(), status: status.to_string() }),
        }
    }

    /// What a request that got no answer means.
    fn lost(&self, error: &reqwest::Error) -> ClientError {
        if error.is_builder() {
            ClientError::BadUrl { url: self.base.clone() }
        } else if error.is_connect() || error.is_timeout() {
            ClientError::NoNode { url: self.base.clone() }
        } else {
            self.broken(error)
        }
    }

    fn broken(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Broken { url: self.base.clone(), problem: chain(error) }
    }
}

/// Of the models that write: the first that is loaded, else the first that can be, which is loaded when it is asked for.
fn usual_model(models: &[ModelEntry]) -> Option<&ModelEntry> {
    let writes = || models.iter().filter(|model| model.generates() && model.alias_of.is_none());
    writes().find(|model| model.loaded).or_else(|| writes().find(|model| model.status != "failed"))
}

/// The address without what would double when a path is added.
fn base(url: &str) -> Result<String, ClientError> {
    let bad = || ClientError::BadUrl { url: url.to_owned() };
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let parsed: reqwest::Url = with_scheme.parse().map_err(|_| bad())?;
    if parsed.scheme() != "http" || parsed.host().is_none() {
        return Err(bad());
    }
    Ok(parsed.as_str().trim_end_matches('/').trim_end_matches("/v1").to_owned())
}

/// The answer, or the node's own words if it refused.
async fn refused(answer: reqwest::Response) -> Result<reqwest::Response, ClientError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let again = answer.headers().get(reqwest::header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse::<u64>().ok());
    let body: Value = answer.json().await.unwrap_or_default();
    let message = body.pointer("/error/message").and_then(Value::as_str);
    let mut message = message.map_or_else(|| format!("the node answers {status}"), str::to_owned);
    if let Some(seconds) = again {
        message += &format!("; ask again in {seconds} s");
    }
    Err(ClientError::Refused { message })
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ModelEntry, base, usual_model};

    #[test]
    fn without_a_name_the_first_loaded_model_that_writes_is_taken_else_one_that_can_be_loaded() {
        let entry = |id: &str, kind: &str, status: &str, alias: Option<&str>| -> ModelEntry {
            serde_json::from_value(json!({ "id": id, "loaded": status == "loaded", "status": status, "alias_of": alias,
                "capabilities": [kind], "feasible_on": [], "locations": [] }))
            .unwrap()
        };
        let mut models = vec![
            entry("broken", "generate", "failed", None),
            entry("embedder", "embed", "loaded", None),
            entry("fast", "generate", "unloaded", Some("second")),
            entry("first", "generate", "unloaded", None),
            entry("second", "generate", "unloaded", None),
        ];
        let usual = |models: &[ModelEntry]| usual_model(models).map(|model| model.id.clone());
        assert_eq!(usual(&models).as_deref(), Some("first"));
        models[4] = entry("second", "generate", "loaded", None);
        assert_eq!(usual(&models).as_deref(), Some("second"));
        assert_eq!(usual(&models[..2]), None);
    }

    #[test]
    fn a_node_is_named_by_its_address_with_or_without_scheme_and_path() {
        for url in
            ["http://127.0.0.1:4000", "127.0.0.1:4000", "http://127.0.0.1:4000/", "http://127.0.0.1:4000/v1", "http://127.0.0.1:4000/v1/"]
        {
            assert_eq!(base(url).unwrap(), "http://127.0.0.1:4000", "{url}");
        }
        for url in ["https://127.0.0.1:4000", "ftp://x", "http://", "a b"] {
            assert!(base(url).unwrap_err().to_string().contains("write it like http://127.0.0.1:31313"), "{url}");
        }
    }
}
