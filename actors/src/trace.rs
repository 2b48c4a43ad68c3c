//! One trace per request, over node borders: W3C trace context into and out of messages.

use std::collections::HashMap;

use opentelemetry::global;
use plexus_types::TraceContext;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The context of a span, to be sent along. Empty when no traces are exported.
pub fn inject(span: &Span) -> TraceContext {
    let mut headers: HashMap<String, String> = HashMap::new();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&span.context(), &mut headers));
    TraceContext { traceparent: headers.remove("traceparent"), tracestate: headers.remove("tracestate") }
}

/// Makes the sender's span the parent of `span`, which must not have been entered yet.
pub fn set_parent(span: &Span, trace: &TraceContext) {
    let Some(traceparent) = trace.traceparent.clone() else { return };
    let mut headers = HashMap::from([("traceparent".to_owned(), traceparent)]);
    headers.extend(trace.tracestate.clone().map(|state| ("tracestate".to_owned(), state)));
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&headers));
    let _no_traces_are_exported = span.set_parent(context);
}
