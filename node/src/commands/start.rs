//! `plexus start`: a node, from its first line to its last.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use plexus_actors::node::RunningNode;
use plexus_types::{ClusterReport, NodeName};

use super::terminal::line;
use crate::boot::home::Home;
use crate::boot::{Booted, Named};
use crate::cli::StartArgs;
use crate::client::Client;
use crate::config::{self, Sources};
use crate::telemetry::{self, Telemetry};

/// How long the first lines wait for what the cluster looks like.
const FIRST_LOOK: Duration = Duration::from_millis(800);
/// How often the first look is repeated.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often the addresses of other nodes are kept for the next start.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(20);
/// How long blocking work may go on when everything else has ended.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(1);
/// What shells say of a process that a second Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs a node until it is asked to stop or gives up.
pub(crate) fn run(args: &StartArgs) -> anyhow::Result<ExitCode> {
    let sources = Sources {
        file: config::file_to_read(args.config.clone()),
        variables: config::environment(),
        overrides: args.overrides(),
        models: args.models.clone(),
    };
    let valid = config::load(sources)?;
    let named = Named::claim(&valid, Home::of_user().as_deref())?;
    let telemetry = Telemetry::start(&valid.get().telemetry, named.name(), std::env::var("RUST_LOG").ok())?;
    if let Some(file) = valid.file() {
        tracing::info!(file = %file.display(), "configuration read");
    }
    let booted = named.boot(&valid)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("plexus").build()?;
    let ended = runtime.block_on(serve(booted));
    runtime.shutdown_timeout(RUNTIME_TIMEOUT);
    telemetry.finish();
    ended
}

async fn serve(booted: Booted) -> anyhow::Result<ExitCode> {
    let Booted { args, metrics, http, neighbours, presence } = booted;
    let mut signals = Signals::listen()?;
    let name = args.facts.id.name.clone();
    let joins = !args.seeds.is_empty();
    let models: Vec<String> = args.catalogue.models.iter().map(|model| model.id.to_string()).collect();
    let metrics_at = metrics.as_ref().and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = metrics {
        telemetry::metrics::serve(listener, telemetry::metrics::record()?)?;
    }
    let mut node = plexus_actors::node::start(args).await?;
    let client = Client::at(http)?;

    say(format_args!("plexus {} is node {name}", env!("CARGO_PKG_VERSION")));
    say(format_args!("  http     http://{http}"));
    if let Some(metrics) = metrics_at {
        say(format_args!("  metrics  http://{metrics}/metrics"));
    }
    say(format_args!("  models   {}", if models.is_empty() { "none of its own".to_owned() } else { models.join(", ") }));
    let report = tokio::select! {
        report = first_look(&client, joins) => report,
        reason = node.wait() => return Ok(gave_up(&reason)),
        () = signals.next() => return Ok(stop(node, &mut signals).await),
    };
    say(format_args!("  cluster  {}", joined(&name, &neighbours, report.as_ref())));
    if let Some(model) = models.first() {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}");
        say(format_args!("  try      curl http://{http}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"));
    }
    say(format_args!("  or       plexus chat --ask http://{http}"));

    let remembering = async {
        loop {
            tokio::time::sleep(REMEMBER_INTERVAL).await;
            if let Ok(report) = client.cluster().await {
                presence.remember_peers(report.nodes.iter().filter(|node| !node.this_node).map(|node| node.facts.gossip));
            }
        }
    };
    tokio::select! {
        reason = node.wait() => return Ok(gave_up(&reason)),
        () = remembering => {}
        () = signals.next() => {}
    }
    Ok(stop(node, &mut signals).await)
}

/// The cluster as the node sees it: with another node in it if one is expected, or whatever there is when the time is over.
async fn first_look(client: &Client, joins: bool) -> Option<ClusterReport> {
    let begun = Instant::now();
    loop {
        let report = tokio::time::timeout(FIRST_LOOK.saturating_sub(begun.elapsed()), client.cluster()).await;
        let report = report.ok().and_then(Result::ok);
        let enough = report.as_ref().is_some_and(|report| !joins || report.nodes.len() > 1);
        if enough || begun.elapsed() + LOOK_INTERVAL >= FIRST_LOOK {
            return report;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Who else is there, in words.
fn joined(own: &NodeName, neighbours: &[NodeName], report: Option<&ClusterReport>) -> String {
    let nodes = report.map(|report| report.nodes.as_slice()).unwrap_or_default();
    let others: Vec<&str> = nodes.iter().map(|node| &node.facts.id.name).filter(|name| *name != own).map(NodeName::as_str).collect();
    if !others.is_empty() {
        return format!("joined {}", others.join(", "));
    }
    if !neighbours.is_empty() {
        let names: Vec<&str> = neighbours.iter().map(NodeName::as_str).collect();
        return format!("joining {}", names.join(", "));
    }
    "the first node, as far as it can see; others join by themselves".to_owned()
}

/// Tells whoever started the node, if they still read: a node serves on without.
fn say(text: impl Display) {
    let _nobody_reads = line(text);
}

fn gave_up(reason: &str) -> ExitCode {
    eprintln!("plexus: the node gave up: {reason}");
    ExitCode::FAILURE
}

/// Stops gracefully within the configured time; a second signal stops at once (CX-51).
async fn stop(node: RunningNode, signals: &mut Signals) -> ExitCode {
    say("stopping: running answers may end; once more stops at once");
    tokio::select! {
        _broken_off = node.drain() => ExitCode::SUCCESS,
        () = signals.next() => ExitCode::from(INTERRUPTED),
    }
}

/// What asks a process to stop.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
