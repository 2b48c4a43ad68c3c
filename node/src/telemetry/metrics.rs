//! Metrics for Prometheus, at an address of their own (CX-01): whoever may ask for answers need not see them.

use std::net::TcpListener;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinHandle;

/// How often what histograms gathered is folded, so that memory stays bounded when nobody reads.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// From a network round trip to a long answer on a slow device.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// From a large model on a processor to a small one on a GPU.
const TOKENS_PER_SECOND: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];
/// From a word to a library.
const TOKENS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0];
/// Anything else that is counted per request.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

fn builder() -> anyhow::Result<PrometheusBuilder> {
    // Histograms, not summaries: those of several nodes can be added (CX-90).
    Ok(PrometheusBuilder::new()
        .set_buckets(COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_tokens".to_owned()), TOKENS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_per_second".to_owned()), TOKENS_PER_SECOND)?)
}

/// Gathers the metrics of the whole process from now on.
pub(crate) fn record() -> anyhow::Result<PrometheusHandle> {
    let metrics = builder()?.install_recorder()?;
    plexus_actors::metrics::describe();
    Ok(metrics)
}

/// Serves `/metrics` at `listener`, until the runtime ends.
pub(crate) fn serve(listener: TcpListener, metrics: PrometheusHandle) -> std::io::Result<JoinHandle<()>> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let rendered = metrics.clone();
    let page = move || {
        let text = rendered.render();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    let router = Router::new().route("/metrics", get(page));
    Ok(tokio::spawn(async move {
        let upkeep = async {
            let mut due = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                due.tick().await;
                metrics.run_upkeep();
            }
        };
        tokio::select! {
            ended = axum::serve(listener, router).into_future() => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "metrics are not served any more");
                }
            }
            () = upkeep => {}
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    // CX-90
    #[test]
    fn durations_and_speeds_become_histograms_with_buckets_that_fit() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("plexus_time_to_first_token_seconds", "model" => "pip").record(0.03);
            metrics::histogram!("plexus_tokens_per_second", "model" => "pip").record(700.0);
        });
        let page = handle.render();
        for line in [
            "plexus_time_to_first_token_seconds_bucket{model=\"pip\",le=\"0.025\"} 0",
            "plexus_time_to_first_token_seconds_bucket{model=\"pip\",le=\"0.05\"} 1",
            "plexus_tokens_per_second_bucket{model=\"pip\",le=\"1000\"} 1",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }
}
