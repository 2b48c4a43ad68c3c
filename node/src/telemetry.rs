//! Logs for people, traces for a collector, metrics for Prometheus.

pub(crate) mod metrics;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use plexus_api::OnSpan;
use plexus_types::NodeName;
use tracing::{Level, Metadata};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{LogFormat, TelemetrySection};

/// Longest wait for the collector when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Logging and tracing, switched on.
#[derive(Debug)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Switches logging and tracing on for the whole process. `rust_log` is the variable `RUST_LOG`, which goes over the configuration.
    /// Outside of any runtime: the exporter has a thread of its own.
    pub(crate) fn start(section: &TelemetrySection, node: &NodeName, rust_log: Option<String>) -> anyhow::Result<Self> {
        let log_filter = match rust_log.filter(|filter| !filter.is_empty()) {
            Some(filter) => EnvFilter::try_new(&filter)
                .map_err(|error| anyhow::anyhow!("RUST_LOG = {filter:?}: {error}; write a level or a filter, such as \"info\""))?,
            None => EnvFilter::try_new(&section.log_filter)?,
        };
        let log_filter = log_filter.and(filter_fn(carries_no_payload));
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match section.log_format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => lines.json().boxed(),
        };

        global::set_text_map_propagator(TraceContextPropagator::new());
        let traces = section.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, section, node)).transpose()?;
        let exported = traces.as_ref().map(|traces| {
            let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("plexus")).with_location(false).with_threads(false);
            layer.with_filter(filter_fn(is_ours))
        });
        tracing_subscriber::registry().with(exported).with(lines.with_filter(log_filter)).try_init()?;
        Ok(Self { traces })
    }

    /// Sends what is left to the collector. Outside of any runtime.
    pub(crate) fn finish(self) {
        if let Some(error) = self.traces.and_then(|traces| traces.shutdown_with_timeout(FLUSH_TIMEOUT).err()) {
            tracing::warn!(%error, "some traces were not sent");
        }
    }
}

fn provider(endpoint: &str, section: &TelemetrySection, node: &NodeName) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = traces_url(endpoint);
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(endpoint).build()?;
    let resource = Resource::builder()
        .with_service_name(section.service_name.clone())
        .with_attributes([
            KeyValue::new("service.instance.id", node.to_string()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    // A request that arrives with a trace keeps the decision of whoever began it.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(section.otlp_sample_ratio)));
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).with_sampler(sampler).build())
}

/// The exporter wants the whole path; people give the collector's address.
fn traces_url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with("/v1/traces") { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") }
}

/// The actor framework logs whole frames, prompts among them, below `warn`: no filter may ask for that. What it warns of, such as each session
/// that ended, our own links say with the reason.
fn carries_no_payload(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("ractor") || *metadata.level() <= Level::ERROR
}

/// Only our own spans are exported: each actor of the framework has one that never ends, and the exporter would trace itself.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("plexus") && *metadata.level() <= Level::INFO
}

/// Headers, as the propagator reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

/// Makes the span of a request continue the trace that its headers name, if they name one.
pub(crate) fn on_span() -> OnSpan {
    Arc::new(|span, headers| {
        let remote = global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
        if remote.span().span_context().is_valid() {
            let _ = span.set_parent(remote); // fails only where no trace is kept
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collector_is_named_by_its_address_with_or_without_the_path() {
        for endpoint in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
            assert_eq!(traces_url(endpoint), "http://c:4318/v1/traces");
        }
    }

    #[test]
    fn headers_are_read_whatever_their_case() {
        let mut headers = HeaderMap::new();
        headers.insert("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        assert!(Headers(&headers).get("traceparent").is_some());
        assert_eq!(Headers(&headers).keys(), ["traceparent"]);
    }
}
