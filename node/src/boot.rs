//! From a configuration to all that a node is told at its start: its name, its secret, its sockets, its first neighbours.
//!
//! Nodes of one user on one machine boot one after the other (a lock), so that names, ports and cards never race.

mod advertise;
pub(crate) mod home;
mod name;
pub(crate) mod neighbours;
mod places;
mod ports;
mod secret;
mod store;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use plexus_actors::args::{HttpConfig, Listing, NodeArgs, RestartBudget, Sockets, StreamsConfig};
use plexus_actors::evictor::core::EvictionConfig;
use plexus_actors::evictor::pins::PinsFile;
use plexus_actors::evictor::plan::{EvictionPolicy, EvictionStrategy};
use plexus_actors::membership::NetTiming;
use plexus_actors::secret::ClusterSecret;
use plexus_api::{ApiConfig, LookAtHost};
use plexus_store::NamesFile;
use plexus_types::{NodeFacts, NodeId, NodeName};

use crate::config::{Config, ConfigError, ModelSection, StrategyName, ValidConfig};
use crate::{devices, host, telemetry, version};
use home::Home;
use name::{NameClaim, NameError};
use neighbours::{Card, CardInPlace};
use places::Places;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A setting cannot be used on this machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's directory cannot be used.
    #[error("cannot use the directory {path}: {source}; make it writable, or name another with --data-dir")]
    Home {
        /// The directory.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// A node that has its secret and its name and nothing else yet.
#[derive(Debug)]
pub(crate) struct Named {
    places: Places,
    secret: ClusterSecret,
    /// Why it does not share its secret with other nodes of its user, for the log.
    why_apart: Option<String>,
    claim: NameClaim,
    host: String,
}

/// A node that is ready to start.
#[derive(Debug)]
pub(crate) struct Booted {
    /// What the actors are told.
    pub(crate) args: NodeArgs,
    /// Where metrics are to be served.
    pub(crate) metrics: Option<TcpListener>,
    /// Where this machine itself reaches the node's HTTP.
    pub(crate) http: SocketAddr,
    /// The nodes of this machine that it joins.
    pub(crate) neighbours: Vec<NodeName>,
    /// What must live as long as the node.
    pub(crate) presence: Presence,
}

/// The node's place on this machine: its name and its card. Given up when dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    home: Home,
    cluster: String,
    _card: CardInPlace,
    _claim: NameClaim,
}

impl Presence {
    /// Keeps where nodes on other machines gossip, for the next start.
    pub(crate) fn remember_peers(&self, gossip: impl IntoIterator<Item = SocketAddr>) {
        if let Err(error) = neighbours::remember_peers(&self.home, &self.cluster, gossip) {
            tracing::warn!(%error, "the addresses of other nodes cannot be kept for the next start");
        }
    }
}

impl Named {
    /// The node's name.
    pub(crate) fn name(&self) -> &NodeName {
        &self.claim.name
    }

    /// Opens the node's directory, finds its secret and claims its name. `user` is where this user's nodes meet if no secret is configured.
    pub(crate) fn claim(valid: &ValidConfig, user: Option<&Path>) -> Result<Self, BootError> {
        let path = valid.get().node.data_dir.clone().unwrap_or_else(Home::usual);
        let failed = |source| BootError::Home { path: path.display().to_string(), source };
        let data = Home::open(&path).map_err(failed)?;
        let configured = secret::configured(valid)?;
        let (mut places, no_user) = match configured {
            Some(_) => (Places::alone(data), None),
            None => Places::with_user(data, user),
        };
        let _alone = places.boot_lock().map_err(failed)?;
        let (secret, why_apart) = match configured {
            Some(secret) => (secret, None),
            None => secret::local(valid, &mut places)?,
        };
        let no_user =
            no_user.map(|why| format!("{why}, so only nodes with the data_dir {} join without a configured secret", path.display()));
        let nodes = places.nodes();
        let host = sysinfo::System::host_name().unwrap_or_default();
        let claim = match &valid.get().node.name {
            Some(name) => NameClaim::exactly(&nodes, name).map_err(|error| match error {
                NameError::Taken => valid
                    .refuse(
                        "node.name",
                        format!("\"{name}\""),
                        "a running node has this name",
                        "stop that node, or give this one another name",
                    )
                    .into(),
                NameError::Io(source) => failed(source),
            }),
            None => NameClaim::like_host(&nodes, &host).map_err(|error| match error {
                NameError::Taken => valid
                    .refuse("node.name", "\"\"", "this machine runs too many nodes to number them", "name this node with --name")
                    .into(),
                NameError::Io(source) => failed(source),
            }),
        };
        Ok(Self { claim: claim?, places, secret, why_apart: why_apart.or(no_user), host })
    }

    /// Binds every socket, finds neighbours and devices, and leaves the node's card.
    pub(crate) fn boot(self, valid: &ValidConfig) -> Result<Booted, BootError> {
        let Self { places, secret, why_apart, claim, host } = self;
        let (home, nodes) = (places.data().clone(), places.nodes());
        secret::warn_if_exposed(valid);
        if let Some(why) = why_apart {
            tracing::warn!("{why}");
        }
        let failed = |source| BootError::Home { path: home.nodes().display().to_string(), source };
        let config = valid.get();
        let gpus = devices::cuda_count();
        let devices = devices::find(valid, &gpus)?;

        let alone = places.boot_lock().map_err(failed)?;
        let ports = ports::bind(valid)?;
        let local = |bound: io::Result<SocketAddr>| bound.map_err(failed);
        let (http, link, gossip) = (local(ports.http.local_addr())?, local(ports.link.local_addr())?, local(ports.gossip.local_addr())?);
        let generation = name::next_generation(&home.nodes(), &claim, now_ms()).map_err(failed)?;
        let card = Card {
            name: claim.name.clone(),
            cluster: config.cluster.name.clone(),
            http: neighbours::from_here(http),
            gossip: neighbours::from_here(gossip),
        };
        let card = card.leave(&nodes).map_err(failed)?;
        let others = neighbours::living(&nodes, &claim.name, &config.cluster.name);
        drop(alone);

        let mut seeds = config.cluster.seeds.clone();
        seeds.extend(others.iter().map(|other| other.gossip.to_string()));
        if !gossip.ip().is_loopback() {
            seeds.extend(neighbours::remembered_peers(&home, &config.cluster.name).iter().map(SocketAddr::to_string));
        }
        let told = |bound| advertise::advertised(bound, config.node.advertise, || advertise::towards(&seeds));
        let facts = NodeFacts {
            id: NodeId { name: claim.name.clone(), generation },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            link: told(link),
            http: told(http),
            gossip: told(gossip),
        };
        let args = NodeArgs {
            cluster: config.cluster.name.clone(),
            secret,
            sockets: Sockets { http: Arc::new(ports.http), link: Arc::new(ports.link), gossip: Arc::new(ports.gossip) },
            timing: timing(config),
            catalogue: listing(valid, home.nodes().join(format!("{}.found", claim.name))),
            eviction: eviction(config),
            pins: PinsFile::at(home.nodes().join(format!("{}.pins", claim.name))),
            store: store::config(&config.store, home.file("store").join(claim.name.as_str()), |name| std::env::var(name).ok())?,
            devices,
            streams: streams(config),
            http: http_config(config, [host.as_str(), claim.name.as_str()], host::look(&host, &config.devices.cuda, &gpus)),
            restarts: RestartBudget { restarts_max: config.supervision.restarts_max, within: config.supervision.within },
            drain_timeout: config.shutdown.drain_timeout,
            test_hooks: config.debug.test_hooks,
            facts,
            seeds,
        };
        Ok(Booted {
            args,
            metrics: ports.metrics,
            http: neighbours::from_here(http),
            neighbours: others.into_iter().map(|other| other.name).collect(),
            presence: Presence { home, cluster: config.cluster.name.clone(), _card: card, _claim: claim },
        })
    }
}

fn now_ms() -> u64 {
    ms_since_1970(SystemTime::now())
}

fn ms_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn timing(config: &Config) -> NetTiming {
    NetTiming {
        gossip_interval: config.gossip.interval,
        initial_interval: config.gossip.interval * 2,
        ping_interval: config.link.ping_interval,
        ping_deadline: config.link.ping_timeout,
        silence_max: config.link.ping_timeout + config.link.ping_interval,
        handshake_max: config.link.handshake_timeout,
        ..NetTiming::default()
    }
}

/// What the files list, with the time of the newer one: of two nodes that contradict each other, the one with the newer file counts.
fn listing(valid: &ValidConfig, names: PathBuf) -> Listing {
    let config = valid.get();
    let modified = |path: &std::path::Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let newest = valid.files().filter_map(modified).max();
    Listing {
        modified_ms: newest.map_or(0, ms_since_1970),
        models: config.models.iter().map(ModelSection::profile).collect(),
        aliases: config.aliases.clone(),
        folders: config.store.folders.clone(),
        names: NamesFile::at(names),
    }
}

fn eviction(config: &Config) -> EvictionConfig {
    let section = &config.eviction;
    let strategy = match section.strategy {
        StrategyName::Lru => EvictionStrategy::Lru,
        StrategyName::Priority => EvictionStrategy::Priority,
    };
    EvictionConfig {
        policy: EvictionPolicy { strategy, keep_warm: section.keep_warm },
        idle_unload: Some(section.idle_unload).filter(|time| !time.is_zero()),
        defrag_after_cycles: section.defrag_after_cycles,
    }
}

fn streams(config: &Config) -> StreamsConfig {
    let streams = &config.streams;
    StreamsConfig {
        accept_timeout: streams.accept_timeout,
        first_token_timeout: streams.first_token_timeout,
        token_timeout: streams.token_timeout,
        client_timeout: streams.client_timeout,
        load_timeout: streams.load_timeout,
        attempts_max: streams.attempts_max,
        window_tokens: streams.window_tokens,
        prompt_time_max: Some(streams.prompt_time_max).filter(|time| !time.is_zero()),
    }
}

/// `own_names`: what this machine and this node call themselves; nobody else's page can point there unnoticed.
fn http_config(config: &Config, own_names: [&str; 2], host: LookAtHost) -> HttpConfig {
    let http = &config.http;
    let any_host = http.allowed_hosts.iter().any(|host| host == "*");
    let hosts = own_names.into_iter().filter(|name| !name.is_empty()).map(str::to_lowercase).chain(http.allowed_hosts.iter().cloned());
    HttpConfig {
        api: ApiConfig {
            body_max: http.body_limit.0,
            host_names: (!any_host).then(|| hosts.collect()),
            cors_origins: http.cors_origins.clone(),
            host,
            on_span: Some(telemetry::on_span()),
            ..ApiConfig::new(version::version())
        },
        connections_max: http.connections_max,
        header_timeout: http.header_timeout,
    }
}

#[cfg(test)]
mod tests;
