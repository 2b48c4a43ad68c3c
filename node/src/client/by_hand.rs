//! Models loaded, unloaded and pinned by hand, and why they are where they are.

use std::time::Duration;

use plexus_types::{ConsideredPlace, DeviceId, Explanation, NodeName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Client, ClientError, PAGE_TIMEOUT, refused};

/// What is done to which model, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Order<'a> {
    pub(crate) model_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<NodeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<DeviceId>,
    pub(crate) wait: bool,
}

/// What became of a load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Loaded {
    /// `loaded` or `loading`.
    pub(crate) status: String,
    pub(crate) model_id: String,
    pub(crate) decision: String,
    pub(crate) considered: Vec<ConsideredPlace>,
}

/// Whence a model was unloaded.
#[derive(Debug, Deserialize)]
pub(crate) struct Unloaded {
    pub(crate) from: Vec<String>,
}

/// Where a model is pinned, or no longer.
#[derive(Debug, Deserialize)]
pub(crate) struct Pinned {
    pub(crate) on: Vec<String>,
}

/// Each answers in a shape of the caller's choice, which may be any JSON.
impl Client {
    /// `POST /v1/models/load`: a [`Loaded`]. There is no deadline but the node's own: weights may take minutes.
    pub(crate) async fn load<T: DeserializeOwned>(&self, order: &Order<'_>) -> Result<T, ClientError> {
        self.post("/v1/models/load", order, None).await
    }

    /// `POST /v1/models/pull`. There is no deadline: files may take hours.
    pub(crate) async fn pull(&self, order: &Order<'_>) -> Result<Value, ClientError> {
        self.post("/v1/models/pull", order, None).await
    }

    /// `POST /v1/models/unload`: an [`Unloaded`].
    pub(crate) async fn unload<T: DeserializeOwned>(&self, order: &Order<'_>) -> Result<T, ClientError> {
        self.post("/v1/models/unload", order, Some(PAGE_TIMEOUT)).await
    }

    /// `POST /v1/models/pin` or `unpin`: a [`Pinned`].
    pub(crate) async fn pin<T: DeserializeOwned>(&self, order: &Order<'_>, pinned: bool) -> Result<T, ClientError> {
        let path = if pinned { "/v1/models/pin" } else { "/v1/models/unpin" };
        self.post(path, order, Some(PAGE_TIMEOUT)).await
    }

    /// `GET /v1/cluster/explain/{subject}`
    pub(crate) async fn explain(&self, subject: &str) -> Result<Explanation, ClientError> {
        self.page(&explain_path(subject)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, order: &Order<'_>, deadline: Option<Duration>) -> Result<T, ClientError> {
        let request = self.http.post(format!("{}{path}", self.base)).json(order);
        let request = match deadline {
            Some(deadline) => request.timeout(deadline),
            None => request,
        };
        let answer = refused(request.send().await.map_err(|error| self.lost(&error))?).await?;
        answer.json().await.map_err(|error| self.broken(&error))
    }
}

/// The path of a subject, whatever a person typed: `/`, `?`, `#` and spaces are part of it.
pub(crate) fn explain_path(subject: &str) -> String {
    let mut url: reqwest::Url = "http://node/v1/cluster/explain".parse().expect("a URL");
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.push(subject);
    }
    url.path().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_part_of_the_path_whatever_it_holds() {
        assert_eq!(explain_path("org/name:Q8_0"), "/v1/cluster/explain/org%2Fname:Q8_0");
        assert_eq!(explain_path("a b?c#d"), "/v1/cluster/explain/a%20b%3Fc%23d");
    }

    #[test]
    fn a_place_that_is_not_named_is_not_sent() {
        assert_eq!(
            serde_json::to_string(&Order { model_id: "m", node: None, device: None, wait: true }).unwrap(),
            r#"{"model_id":"m","wait":true}"#
        );
    }
}
