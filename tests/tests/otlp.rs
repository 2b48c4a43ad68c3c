//! A request that crosses nodes is one trace, as a real OTLP receiver sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use plexus_tests::view::whole;
use plexus_tests::{Home, eventually};
use prost::Message;
use tokio::sync::Mutex;

/// Name of the span of the whole request: method and route, by OpenTelemetry's conventions for HTTP.
const REQUEST: &str = "POST /v1/chat/completions";

/// A span as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    instance: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
}

type Received = Arc<Mutex<Vec<Span>>>;

/// An OTLP/HTTP receiver on a port of its own; returns its endpoint and what it has received.
async fn receiver() -> (String, Received) {
    let received = Received::default();
    let app = axum::Router::new().route("/v1/traces", post(receive)).with_state(received.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let endpoint = format!("http://{}", listener.local_addr().expect("it was just bound"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (endpoint, received)
}

async fn receive(State(received): State<Received>, body: Bytes) -> Vec<u8> {
    let request = ExportTraceServiceRequest::decode(body).expect("exporters send valid protobuf");
    for resource_spans in request.resource_spans {
        let instance = instance(resource_spans.resource.as_ref());
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let [trace, id, parent] = [&span.trace_id, &span.span_id, &span.parent_span_id].map(|id| hex(id));
            received.lock().await.push(Span { instance: instance.clone(), name: span.name, trace, id, parent });
        }
    }
    Vec::new()
}

fn instance(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| resource.attributes.as_slice()).unwrap_or_default();
    let value = attributes.iter().find(|attribute| attribute.key == "service.instance.id").and_then(|attribute| attribute.value.clone());
    match value.and_then(|value| value.value) {
        Some(AnyValue::StringValue(text)) => text,
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_request_served_by_another_node_is_one_trace() {
    let (endpoint, received) = receiver().await;
    let home = Home::new();
    let serving = home.node("serving").env("PLEXUS_TELEMETRY__OTLP_ENDPOINT", &endpoint).start().await;
    let ingress = home.node("ingress").model_from_folder("unused").env("PLEXUS_TELEMETRY__OTLP_ENDPOINT", &endpoint).start().await;
    whole(&[&serving, &ingress]).await;
    ingress.offers("pip").await;

    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let body = plexus_tests::client::question_body("pip", "What is the capital of France?", false).to_string();
    let traceparent = format!("00-{trace}-{caller}-01");
    let reply = ingress.client().post_with("/v1/chat/completions", body, &[("traceparent", &traceparent)]).await.unwrap();
    assert!(reply.chat_text().contains("Paris"));

    let wanted = [REQUEST, "route", "serve", "queue", "prefill", "decode"];
    let spans = eventually("all spans have arrived", async || {
        let spans: Vec<Span> = received.lock().await.iter().filter(|span| span.trace == trace).cloned().collect();
        let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        if wanted.iter().all(|name| names.contains(name)) { Ok(spans) } else { Err(format!("{names:?}")) }
    })
    .await;

    let only = |name: &str| {
        let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} among {spans:#?}");
        found[0]
    };
    let is_below = |span: &Span, ancestor: &Span| {
        let mut current = span;
        while current.parent != ancestor.id {
            current = spans.iter().find(|other| other.id == current.parent).unwrap_or_else(|| {
                panic!("{} ({}) is not below {}: {spans:#?}", span.name, current.name, ancestor.name);
            });
        }
    };
    let request = only(REQUEST);
    let serve = only("serve");
    assert_eq!((request.instance.as_str(), request.parent.as_str()), ("ingress", caller));
    assert_eq!(only("route").instance, "ingress");
    is_below(only("route"), request);
    assert_eq!(serve.instance, "serving");
    is_below(serve, request);
    for phase in ["queue", "prefill", "decode"] {
        assert_eq!((only(phase).instance.as_str(), &only(phase).parent), ("serving", &serve.id), "{phase}");
    }
}
