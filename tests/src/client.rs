//! A client of one node's HTTP API.

use std::time::Duration;

use serde_json::{Value, json};

use crate::sse::EventStream;

/// Longest wait for a whole answer; a request that hangs fails the test instead of hanging it.
const ANSWER: Duration = Duration::from_secs(60);

/// A client of one node. Every request uses a connection of its own, so none inherits the end of another.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body as it came.
    pub text: String,
    /// The body as JSON; `Null` where it is none.
    pub json: Value,
}

impl Reply {
    /// The header `name`, or nothing.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The text of a chat completion; fails if this is none.
    #[track_caller]
    pub fn chat_text(&self) -> &str {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("no content: {}", self.text))
    }
}

impl Client {
    /// A client of the node at `base`, for example `http://127.0.0.1:31313`.
    pub fn new(base: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(Duration::from_secs(5))
            .build()
            .expect("a client without TLS can be built");
        Self { base: base.to_owned(), http }
    }

    /// The node's URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Asks for `path`.
    pub async fn get(&self, path: &str) -> Result<Reply, reqwest::Error> {
        self.get_with(path, &[]).await
    }

    /// Asks for `path` with further headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, reqwest::Error> {
        let mut request = self.http.get(format!("{}{path}", self.base)).timeout(Duration::from_secs(10));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send().await?).await
    }

    /// Posts JSON to `path`.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, reqwest::Error> {
        self.post_with(path, body.to_string(), &[]).await
    }

    /// Posts a body as it is, said to be JSON, with further headers.
    pub async fn post_with(&self, path: &str, body: String, headers: &[(&str, &str)]) -> Result<Reply, reqwest::Error> {
        read(self.begin(path, body, headers).await?).await
    }

    /// Posts JSON to `path` and reads the answer as events; fails if the status is not 200.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<EventStream, Reply> {
        let response = self.begin(path, body.to_string(), &[]).await.unwrap_or_else(|error| panic!("POST {path}: {error:?}"));
        if response.status() == 200 {
            return Ok(EventStream::new(response));
        }
        Err(read(response).await.unwrap_or_else(|error| panic!("POST {path}: {error:?}")))
    }

    /// Asks `model` one question at temperature 0 and returns the whole answer.
    pub async fn ask(&self, model: &str, question: &str) -> Result<Reply, reqwest::Error> {
        self.post("/v1/chat/completions", &question_body(model, question, false)).await
    }

    /// Asks `model` one question at temperature 0 and returns the answer's events.
    pub async fn ask_streaming(&self, model: &str, question: &str) -> EventStream {
        self.stream("/v1/chat/completions", &question_body(model, question, true))
            .await
            .unwrap_or_else(|reply| panic!("no stream but {}: {}", reply.status, reply.text))
    }

    async fn begin(&self, path: &str, body: String, headers: &[(&str, &str)]) -> Result<reqwest::Response, reqwest::Error> {
        let mut request =
            self.http.post(format!("{}{path}", self.base)).timeout(ANSWER).header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await
    }
}

/// The body of a chat completion of one user turn at temperature 0.
pub fn question_body(model: &str, question: &str, stream: bool) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": stream});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

async fn read(response: reqwest::Response) -> Result<Reply, reqwest::Error> {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let text = response.text().await?;
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Reply { status, headers, text, json })
}
