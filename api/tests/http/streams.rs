//! Streams in time: what is sent when, what happens when either side leaves, and the span round it all.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use futures::FutureExt;
use http_body_util::BodyExt;
use insta::assert_snapshot;
use plexus_api::{ApiConfig, router};
use plexus_types::{FinishReason, GenerateEvent, RequestError, Usage};
use tokio::time::Instant;
use tower::ServiceExt;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::scripted::{Answered, Scripted, Step, ask, config, post, send, started, text};

const CHAT: &str = r#"{"model":"pip","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
const MESSAGE: &str = r#"{"model":"pip","max_tokens":8,"messages":[{"role":"user","content":"hi"}],"stream":true}"#;

async fn frame(body: &mut Body) -> String {
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    String::from_utf8(data.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn chunks_are_sent_as_they_come() {
    // CX-71
    let beat = Duration::from_millis(50);
    let mut script = vec![Step::Say(started())];
    for word in ["a", "b", "c", "d", "e"] {
        script.extend([Step::Wait(beat), Step::Say(text(word))]);
    }
    let cluster = Scripted::new(script);
    let begin = Instant::now();
    let mut body = send(&cluster, post("/v1/chat/completions", CHAT)).await.into_body();
    assert!(frame(&mut body).await.contains(r#""role":"assistant""#));
    for (n, word) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        assert!(frame(&mut body).await.contains(&format!(r#""content":"{word}""#)));
        // Timers of a paused clock go off at the next millisecond.
        let late = begin.elapsed() - beat * (n as u32 + 1);
        assert!(late < Duration::from_millis(10), "chunk {n} came {late:?} late");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_kept_alive_by_comments() {
    // CX-72
    let cluster = Scripted::new(vec![Step::Say(started()), Step::Wait(Duration::from_secs(12)), Step::Say(text("late")), Step::Hang]);
    let mut body = send(&cluster, post("/v1/chat/completions", CHAT)).await.into_body();
    frame(&mut body).await;
    assert_eq!([frame(&mut body).await, frame(&mut body).await], [": keep-alive\n\n"; 2]);
    assert!(frame(&mut body).await.contains("late"));
    assert_eq!(frame(&mut body).await, ": keep-alive\n\n");
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_first_event_is_late_begins_with_comments() {
    // CX-72
    for (path, json, first) in [("/v1/chat/completions", CHAT, r#""role":"assistant""#), ("/v1/messages", MESSAGE, "event: message_start")]
    {
        let cluster = Scripted::new(vec![Step::Wait(Duration::from_secs(14)), Step::Say(started()), Step::Hang]);
        let begin = Instant::now();
        let response = send(&cluster, post(path, json)).await;
        assert_eq!((response.status().as_u16(), begin.elapsed().as_secs()), (200, 5));
        let mut body = response.into_body();
        assert_eq!([frame(&mut body).await, frame(&mut body).await], [": keep-alive\n\n"; 2]);
        assert!(frame(&mut body).await.contains(first));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_model_is_loaded_first_is_kept_alive_and_answers_then() {
    // CX-41, CX-72
    for (path, json, end) in [("/v1/chat/completions", CHAT, "data: [DONE]"), ("/v1/messages", MESSAGE, "event: message_stop")] {
        let usage = Usage { prompt_tokens: 12, completion_tokens: 1, ..Usage::default() };
        let done = GenerateEvent::Done { reason: FinishReason::Stop, usage };
        let load = Step::Wait(Duration::from_secs(92));
        let cluster = Scripted::new(vec![load, Step::Say(started()), Step::Say(text("late, but right")), Step::Say(done)]);
        let answered = ask(&cluster, post(path, json)).await;
        // One at the start, at 5 s, and one every 5 s from then on.
        assert_eq!(answered.body.matches(": keep-alive\n\n").count(), 18);
        let after = answered.body.trim_start_matches(": keep-alive\n\n");
        assert!(after.contains("late, but right") && after.contains(end) && !after.contains("keep-alive"), "{after}");
        // Who serves it was not known when the headers were sent.
        assert!(!answered.headers.contains_key("x-plexus-node"));
    }
}

#[tokio::test]
async fn an_answer_says_which_node_serves_it_and_why() {
    // CX-40
    for (path, stream, whole) in [
        ("/v1/chat/completions", CHAT, CHAT.replace("true", "false")),
        ("/v1/messages", MESSAGE, MESSAGE.replace("true", "false")),
        ("/v1/completions", r#"{"model":"pip","prompt":"a","stream":true}"#, r#"{"model":"pip","prompt":"a"}"#.to_owned()),
    ] {
        for json in [stream, whole.as_str()] {
            let headers = ask(&Scripted::saying(&["a"], FinishReason::Stop), post(path, json)).await.headers;
            let said = ["x-plexus-node", "x-plexus-route"].map(|name| headers[name].to_str().unwrap());
            assert_eq!(said, ["n1", "it goes to n1/cpu-0 (n1/cpu-0: first token expected in 5 ms)"], "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_failure_is_an_event_of_the_stream() {
    let error = RequestError::soon("words");
    let mut shown = String::new();
    for (path, json) in [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)] {
        let cluster = Scripted::new(vec![Step::Wait(Duration::from_secs(14)), Step::Say(GenerateEvent::Failed(error.clone()))]);
        shown += &format!("=== {path}\n{}\n", ask(&cluster, post(path, json)).await.shown());
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error_and_without_the_mark_of_a_good_end() {
    // CX-76
    let mut shown = String::new();
    for (path, json) in
        [("/v1/chat/completions", CHAT), ("/v1/completions", r#"{"model":"pip","prompt":"a","stream":true}"#), ("/v1/messages", MESSAGE)]
    {
        let error = RequestError::Internal { message: "words".to_owned() };
        let script = vec![Step::Say(started()), Step::Say(text("half")), Step::Say(GenerateEvent::Failed(error))];
        let answered = ask(&Scripted::new(script), post(path, json)).await;
        assert!(!answered.body.contains("[DONE]") && !answered.body.contains("message_stop"));
        shown += &format!("=== {path}\n{}\n", answered.shown());
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn events_that_stop_without_an_end_are_a_failure() {
    for (json, status) in [(CHAT, 200), (r#"{"model":"pip","messages":[{"role":"user","content":"hi"}]}"#, 503)] {
        let answered = ask(&Scripted::new(vec![Step::Say(started()), Step::Say(text("half"))]), post("/v1/chat/completions", json)).await;
        assert_eq!(answered.status.as_u16(), status);
        assert!(answered.body.contains("service_unavailable") && !answered.body.contains("[DONE]"), "{}", answered.body);
    }
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_cancels_the_generation() {
    // CX-92
    for (path, json) in [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)] {
        let cluster = Scripted::new(vec![Step::Say(started()), Step::Say(text("a")), Step::Hang]);
        let mut body = send(&cluster, post(path, json)).await.into_body();
        frame(&mut body).await;
        frame(&mut body).await;
        assert_eq!(cluster.dropped(), 0);
        drop(body);
        assert_eq!(cluster.dropped(), 1);
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_event_cancels_the_generation() {
    // CX-92
    for json in [CHAT, r#"{"model":"pip","messages":[{"role":"user","content":"hi"}]}"#] {
        let cluster = Scripted::new(vec![Step::Hang]);
        let mut response = Box::pin(send(&cluster, post("/v1/chat/completions", json)));
        assert!(response.as_mut().now_or_never().is_none());
        assert_eq!((cluster.asked.lock().unwrap().len(), cluster.dropped()), (1, 0));
        drop(response);
        assert_eq!(cluster.dropped(), 1);
    }
}

#[tokio::test]
async fn a_generation_is_let_go_with_its_last_event() {
    let cluster = Scripted::saying(&["a"], FinishReason::Stop);
    let mut body = send(&cluster, post("/v1/chat/completions", CHAT)).await.into_body();
    while !frame(&mut body).await.contains("[DONE]") {}
    assert_eq!(cluster.dropped(), 1, "the body is still held, but nothing is left to come");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn one_span_covers_a_request_to_the_end_of_its_body_and_no_prompt_or_answer_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // For the whole process: with a subscriber for one thread, whether a span exists would depend on which test reaches it first. The other
    // tests are logged too; this one is known by its model.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let parents = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&parents);
    let on_span = move |span: &tracing::Span, headers: &http::HeaderMap| {
        seen.lock().unwrap().push((span.metadata().unwrap().name(), headers["traceparent"].to_str().unwrap().to_owned()));
    };
    let config = ApiConfig { on_span: Some(Arc::new(on_span)), ..config() };
    let cluster = Scripted::saying(&["canary-of-the-answer"], FinishReason::Stop);
    let json =
        r#"{"model":"spanned","messages":[{"role":"user","content":"canary-of-the-prompt"}],"stream":true,"user":"canary-of-the-user"}"#;
    let mut request = post("/v1/chat/completions", json);
    request.headers_mut().insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
    request.headers_mut().insert("authorization", "Bearer canary-of-the-key".parse().unwrap());

    let response = router(cluster, config).oneshot(request).await.unwrap();
    let close = |text: &str| text.lines().find(|line| line.contains("model=\"spanned\"") && line.contains("close")).map(ToOwned::to_owned);
    assert_eq!(close(&log.text()), None, "the body is not read yet");
    let answered = Answered::of(response).await;
    assert!(answered.body.contains("canary-of-the-answer"));

    let text = log.text();
    let close = close(&text).unwrap();
    for field in [
        "http.request{",
        "method=POST",
        "route=\"/v1/chat/completions\"",
        "status=200",
        "request_id=0123456789abcdef0123456789abcdef",
        "model=\"spanned\"",
        "otel.kind=\"server\"",
        "otel.name=\"POST /v1/chat/completions\"",
    ] {
        assert!(close.contains(field), "{field} is not in {close}");
    }
    assert!(!text.contains("canary"), "{text}");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
    assert_eq!(*parents.lock().unwrap(), [("http.request", parent)]);
}
