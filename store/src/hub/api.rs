//! What is asked of a hub: which files a revision has, how large they are, and by which hash their content goes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, StatusCode, header};
use plexus_types::HubSource;
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde::Deserialize;
use tokio::time::Instant;

use super::reach::Reach;
use super::tries::{QUIET, Tries};
use crate::cache::is_commit;
use crate::config::{StoreConfig, Token};
use crate::digest::Etag;
use crate::disk::blocking;
use crate::error::FetchError;
use crate::names::{encoded, is_plain};

/// Until a connection stands.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Until more of an answer comes.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A hub that does not answer at all is given up sooner than one that stops in the middle of a file.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// A hub that somebody has waited for in vain is asked once, and waited for so long.
const HURRY: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes. That of a repository with 10,000 files is a tenth of it.
const ANSWER_MAX: usize = 32 << 20;
/// First wait before a request is made again; it doubles up to the greatest.
const WAIT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One repository of a hub.
#[derive(Debug)]
pub(super) struct Api<'a> {
    http: Client,
    /// Goes where it is sent only within the hub, to read what the hub says before it points to a store of its own.
    no_redirect: Client,
    endpoint: String,
    repo: String,
    token: Option<Token>,
    pub(super) patience: Duration,
    reach: &'a Reach,
    pub(super) tries: Tries<'a>,
}

/// What a revision holds.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    /// By name. `None`: the hub did not say with the list.
    pub(super) files: BTreeMap<String, Option<(u64, Etag)>>,
    /// Numbers that the model consists of, if the hub has looked.
    pub(super) parameters: Option<u64>,
}

/// A file of a hub.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) etag: Etag,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// Of the tensors in safetensors.
    safetensors: Option<Counted>,
    /// Of those in GGUF files.
    gguf: Option<Counted>,
}

/// How many numbers a hub has counted in a model.
#[derive(Deserialize)]
struct Counted {
    total: Option<u64>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl Sibling {
    fn described(&self) -> Option<(u64, Etag)> {
        let lfs = self.lfs.as_ref();
        let id = if lfs.is_some() { lfs.and_then(|lfs| lfs.sha256.as_deref()) } else { self.blob_id.as_deref() };
        Some((lfs.and_then(|lfs| lfs.size).or(self.size)?, Etag::new(id?)?))
    }
}

/// Why a request did not succeed, and whether making it again may help.
pub(super) enum Failed {
    Now(FetchError),
    Forever(FetchError),
}

impl Failed {
    pub(super) fn into_error(self) -> FetchError {
        let (Self::Now(error) | Self::Forever(error)) = self;
        error
    }
}

impl<'a> Api<'a> {
    /// Errors: the endpoint is no address, or this machine has no certificates to check it by.
    pub(super) async fn new(config: &StoreConfig, reach: &'a Reach, source: &HubSource) -> Result<Self, FetchError> {
        let repo = &source.repo;
        if config.offline {
            return Err(FetchError::Offline { repo: repo.clone() });
        }
        let endpoint = config.endpoint.clone();
        let no_address = |problem: String| FetchError::Answer { url: endpoint.clone(), problem };
        let url = Url::parse(&endpoint).map_err(|error| no_address(format!("no address: {error}")))?;
        let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let client = |redirects| {
            let builder = Client::builder()
                .connect_timeout(CONNECT_MAX)
                .read_timeout(SILENCE_MAX)
                .user_agent(concat!("plexus/", env!("CARGO_PKG_VERSION")))
                .http1_only() // several connections fill a line better than one
                .redirect(redirects);
            let builder = if loopback { builder.no_proxy() } else { builder };
            builder.build().map_err(|source| FetchError::Unreachable { url: endpoint.clone(), source })
        };
        let within = redirect::Policy::custom(|attempt| {
            let before = attempt.previous().last().map(|url| (url.host_str().map(str::to_owned), url.port_or_known_default()));
            let same = before == Some((attempt.url().host_str().map(str::to_owned), attempt.url().port_or_known_default()));
            if attempt.previous().len() > 10 || !same { attempt.stop() } else { attempt.follow() }
        });
        let token = match (&config.token, &config.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => {
                let path = path.clone();
                blocking(move || match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Token::new(&text)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(FetchError::Io { path, source }),
                })
                .await?
            }
            (None, None) => None,
        };
        Ok(Self {
            http: client(redirect::Policy::limited(10))?,
            no_redirect: client(within)?,
            token,
            repo: repo.clone(),
            patience: config.patience,
            reach,
            tries: reach.tries.of(source),
            endpoint: config.endpoint.clone(),
        })
    }

    /// The files of a revision.
    pub(super) async fn listing(&self, revision: &str) -> Result<Listing, FetchError> {
        let url = format!("{}/api/models/{}/revision/{}?blobs=true", self.endpoint, self.repo, encoded(revision, false));
        let response = match self.persist(&url, || self.with_token(self.http.get(&url)), Some(revision)).await {
            // Not every mirror says which of the two it does not have.
            Err(FetchError::NoRepository { .. }) if self.has_repository().await => {
                return Err(FetchError::NoRevision { repo: self.repo.clone(), revision: revision.to_owned() });
            }
            other => other?,
        };
        let wrong = |problem: String| FetchError::Answer { url: url.clone(), problem };
        let body = limited(response).await.map_err(wrong)?;
        let info: Info = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        let commit = info.sha.filter(|sha| is_commit(sha)).ok_or_else(|| wrong("it names no commit".to_owned()))?;
        // Names that could lead out of a folder are those of no model.
        let files = info.siblings.into_iter().filter(|file| is_plain(&file.rfilename));
        let parameters = info.safetensors.or(info.gguf).and_then(|counted| counted.total);
        Ok(Listing { commit, files: files.map(|file| (file.rfilename.clone(), file.described())).collect(), parameters })
    }

    async fn has_repository(&self) -> bool {
        let url = format!("{}/api/models/{}", self.endpoint, self.repo);
        self.persist(&url, || self.with_token(self.http.get(&url)), None).await.is_ok()
    }

    /// Sizes and hashes of these files, asked for one by one where the listing did not say.
    pub(super) async fn describe(&self, listing: &Listing, names: Vec<String>) -> Result<Vec<RemoteFile>, FetchError> {
        let describe = |name: String| async move {
            let (size, etag) = match listing.files.get(&name) {
                Some(Some(described)) => described.clone(),
                _ => self.head(&listing.commit, &name).await?,
            };
            Ok(RemoteFile { name, size, etag })
        };
        let described: Vec<_> = names.into_iter().map(describe).collect();
        stream::iter(described).buffered(super::REQUESTS_AT_ONCE).try_collect().await
    }

    async fn head(&self, commit: &str, name: &str) -> Result<(u64, Etag), FetchError> {
        let url = self.address(commit, name);
        let request = || self.with_token(self.no_redirect.head(&url)).header(header::ACCEPT_ENCODING, "identity");
        let response = self.persist(&url, request, None).await?;
        let headers = response.headers();
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length")).and_then(|size| size.parse().ok());
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).and_then(Etag::new);
        size.zip(etag).ok_or_else(|| FetchError::Answer { url: url.clone(), problem: "it tells neither size nor ETag".to_owned() })
    }

    /// Asks for a stretch of a file, once. `from` and `to` are the first and the last byte.
    pub(super) async fn range(&self, commit: &str, name: &str, from: u64, to: u64) -> Result<Response, Failed> {
        let url = self.address(commit, name);
        let request = self.with_token(self.http.get(&url)).header(header::ACCEPT_ENCODING, "identity");
        let sent = self.send(&url, request.header(header::RANGE, format!("bytes={from}-{to}")), None);
        self.patiently(&url, sent).await
    }

    pub(super) fn address(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.repo, encoded(name, true))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.secret()),
            None => request,
        }
    }

    /// Makes a request until it is answered for good.
    async fn persist(&self, url: &str, request: impl Fn() -> RequestBuilder, revision: Option<&str>) -> Result<Response, FetchError> {
        if self.reach.is_hurried(Instant::now()) {
            let sent = tokio::time::timeout(HURRY, self.patiently(url, self.send(url, request(), revision))).await;
            let silent = || Failed::Now(FetchError::Silent { url: url.to_owned(), waited: HURRY });
            match sent.unwrap_or_else(|_elapsed| Err(silent())) {
                // It can be reached after all, and is only busy.
                Err(Failed::Now(error)) if !is_unreached(&error) => {
                    self.reach.on_reached(Instant::now());
                    self.tries.on_failure(url, &error, Duration::ZERO, Instant::now());
                }
                sent => return self.noted(sent),
            }
        }
        let end = Instant::now() + self.patience.min(ANSWER_PATIENCE);
        let mut wait = Wait::new();
        loop {
            match self.patiently(url, self.send(url, request(), revision)).await {
                Err(Failed::Now(error)) if Instant::now() < end => {
                    self.tries.on_failure(url, &error, wait.next(), Instant::now());
                    wait.wait().await;
                }
                sent => return self.noted(sent),
            }
        }
    }

    /// The outcome of a request, once it is not made again.
    fn noted(&self, sent: Result<Response, Failed>) -> Result<Response, FetchError> {
        let sent = sent.map_err(Failed::into_error);
        match &sent {
            Err(error) if is_unreached(error) => self.reach.on_unreached(Instant::now()),
            Ok(_) | Err(_) => self.reach.on_reached(Instant::now()),
        }
        if sent.is_ok() {
            self.tries.on_answer();
        }
        sent
    }

    /// Waits for something of the hub, and tells of it if that takes long.
    pub(super) async fn patiently<T>(&self, url: &str, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = tokio::time::sleep(QUIET) => self.tries.on_silence(url, Instant::now()),
        }
        answer.await
    }

    async fn send(&self, url: &str, request: RequestBuilder, revision: Option<&str>) -> Result<Response, Failed> {
        let sent = request.send().await;
        let response = sent.map_err(|source| Failed::Now(FetchError::Unreachable { url: url.to_owned(), source: source.without_url() }))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let (endpoint, repo) = (self.endpoint.clone(), self.repo.clone());
        let code = text(response.headers(), "x-error-code");
        let problem = format!("status {status}");
        Err(match status {
            StatusCode::UNAUTHORIZED => Failed::Forever(FetchError::Unauthorized { endpoint, repo, had_token: self.token.is_some() }),
            StatusCode::FORBIDDEN => Failed::Forever(FetchError::Forbidden { endpoint, repo }),
            StatusCode::NOT_FOUND => Failed::Forever(match (code, revision) {
                (Some("RevisionNotFound"), Some(revision)) => FetchError::NoRevision { repo, revision: revision.to_owned() },
                (Some("EntryNotFound"), _) => FetchError::Answer { url: url.to_owned(), problem },
                _ => FetchError::NoRepository { endpoint, repo },
            }),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Failed::Now(FetchError::HubFails { url: url.to_owned(), problem })
            }
            status if status.is_server_error() => Failed::Now(FetchError::HubFails { url: url.to_owned(), problem }),
            _ => Failed::Forever(FetchError::Answer { url: url.to_owned(), problem }),
        })
    }
}

/// Waits that grow.
pub(super) struct Wait(Duration);

impl Wait {
    pub(super) fn new() -> Self {
        Self(WAIT.0)
    }

    /// How long the next one is.
    pub(super) fn next(&self) -> Duration {
        self.0
    }

    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(WAIT.1);
    }
}

async fn limited(response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(part) = stream.next().await {
        body.extend_from_slice(&part.map_err(|error| error.without_url().to_string())?);
        if body.len() > ANSWER_MAX {
            return Err(format!("it is longer than {ANSWER_MAX} bytes"));
        }
    }
    Ok(body)
}

/// Does it say that the hub cannot be reached, rather than what it answers?
fn is_unreached(error: &FetchError) -> bool {
    matches!(error, FetchError::Unreachable { .. } | FetchError::Silent { .. })
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
