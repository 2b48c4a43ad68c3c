//! One answer of a model, as it comes.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::Value;

use super::sse::EventDecoder;
use super::{Client, ClientError, refused};

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Turn {
    role: &'static str,
    content: String,
}

impl Turn {
    /// Instructions.
    pub(crate) fn system(content: &str) -> Self {
        Self { role: "system", content: content.to_owned() }
    }

    /// What the person says.
    pub(crate) fn user(content: &str) -> Self {
        Self { role: "user", content: content.to_owned() }
    }

    /// What the model said.
    pub(crate) fn assistant(content: String) -> Self {
        Self { role: "assistant", content }
    }
}

/// What is asked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Question<'a> {
    pub(crate) model: &'a str,
    pub(crate) messages: &'a [Turn],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// More text.
    Text(String),
    /// Why it ended.
    Finish(String),
    /// What it cost, in the words of the API.
    Usage(Value),
}

/// An answer under way. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Answer {
    url: String,
    response: reqwest::Response,
    decoder: EventDecoder,
    ready: VecDeque<Piece>,
    complete: bool,
}

impl Client {
    /// Asks, and returns as soon as the node has begun to answer.
    pub(crate) async fn ask(&self, question: &Question<'_>) -> Result<Answer, ClientError> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            question: &'a Question<'a>,
            stream: bool,
            stream_options: Value,
        }
        let body = Body { question, stream: true, stream_options: serde_json::json!({ "include_usage": true }) };
        let response = self.http.post(format!("{}/v1/chat/completions", self.base)).json(&body).send().await;
        let response = refused(response.map_err(|error| self.lost(&error))?).await?;
        Ok(Answer { url: self.base.clone(), response, decoder: EventDecoder::default(), ready: VecDeque::new(), complete: false })
    }
}

impl Answer {
    /// The next piece; `None` when the answer is complete. May be dropped while it waits: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, ClientError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.complete {
                return Ok(None);
            }
            let broken = |problem: String| ClientError::Broken { url: self.url.clone(), problem };
            let bytes = self.response.chunk().await.map_err(|error| broken(super::chain(&error)))?;
            let bytes = bytes.ok_or_else(|| broken("it ended before the model did".to_owned()))?;
            for event in self.decoder.push(&bytes) {
                if event == "[DONE]" {
                    self.complete = true;
                    break;
                }
                let chunk: Value = serde_json::from_str(&event).map_err(|error| broken(error.to_string()))?;
                self.ready.extend(pieces(&chunk)?);
            }
        }
    }
}

/// What one chunk says.
fn pieces(chunk: &Value) -> Result<Vec<Piece>, ClientError> {
    if let Some(message) = chunk.pointer("/error/message").and_then(Value::as_str) {
        return Err(ClientError::Refused { message: message.to_owned() });
    }
    let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str).filter(|text| !text.is_empty());
    let finish = chunk.pointer("/choices/0/finish_reason").and_then(Value::as_str);
    let usage = chunk.get("usage").filter(|usage| usage.is_object());
    let pieces = [
        text.map(|text| Piece::Text(text.to_owned())),
        finish.map(|reason| Piece::Finish(reason.to_owned())),
        usage.cloned().map(Piece::Usage),
    ];
    Ok(pieces.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chunks_become_text_reason_and_usage() {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}], "usage": null});
        assert_eq!(pieces(&chunk).unwrap(), [Piece::Text("Hi".to_owned())]);
        let chunk = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        assert_eq!(pieces(&chunk).unwrap(), [Piece::Finish("stop".to_owned())]);
        let chunk = json!({"choices": [], "usage": {"total_tokens": 3}});
        assert_eq!(pieces(&chunk).unwrap(), [Piece::Usage(json!({"total_tokens": 3}))]);
    }

    #[test]
    fn an_error_in_the_stream_is_an_error() {
        let error = pieces(&json!({"error": {"message": "lost"}})).unwrap_err();
        assert_eq!(error.to_string(), "lost");
    }
}
