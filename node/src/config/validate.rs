//! The rules that no single value can keep alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use plexus_types::{DeviceKind, NodeName};
use tracing_subscriber::EnvFilter;

use super::sections::Config;
use super::units::CudaDevices;
use super::{ConfigError, ValidConfig};

/// Longer times are not told from "for ever", and moments so far off have no name on every system.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// More of anything that is counted means "no limit", which these are there to set.
const COUNT_MAX: u64 = 1 << 20;

/// Refuses what cannot work, before anything is opened.
pub(crate) fn validate(valid: &ValidConfig) -> Result<(), ConfigError> {
    names(valid)?;
    quantities(valid)?;
    addresses(valid)?;
    secret(valid)?;
    seeds(valid)?;
    models(valid)?;
    store(valid)?;
    telemetry(valid)
}

fn names(valid: &ValidConfig) -> Result<(), ConfigError> {
    let cluster = &valid.get().cluster.name;
    match cluster.parse::<NodeName>() {
        Ok(_) => Ok(()),
        Err(_) => Err(valid.refuse(
            "cluster.name",
            format!("{cluster:?}"),
            "it does not name a cluster",
            "write 1 to 63 characters of a-z, 0-9 and '-'",
        )),
    }
}

fn quantities(valid: &ValidConfig) -> Result<(), ConfigError> {
    let config = valid.get();
    let Config { http, gossip, link, eviction, streams, supervision, shutdown, .. } = config;
    let durations = [
        ("http.header_timeout", http.header_timeout),
        ("gossip.interval", gossip.interval),
        ("link.ping_interval", link.ping_interval),
        ("link.ping_timeout", link.ping_timeout),
        ("link.handshake_timeout", link.handshake_timeout),
        ("streams.accept_timeout", streams.accept_timeout),
        ("streams.first_token_timeout", streams.first_token_timeout),
        ("streams.token_timeout", streams.token_timeout),
        ("streams.client_timeout", streams.client_timeout),
        ("streams.load_timeout", streams.load_timeout),
        ("supervision.within", supervision.within),
    ];
    for (key, duration) in durations {
        if duration.is_zero() {
            return Err(valid.refuse(key, "\"0s\"", "it would always be over", "write a time above zero, such as \"10s\""));
        }
    }
    let may_be_zero = [
        ("eviction.keep_warm", eviction.keep_warm),
        ("eviction.idle_unload", eviction.idle_unload),
        ("streams.prompt_time_max", streams.prompt_time_max),
        ("shutdown.drain_timeout", shutdown.drain_timeout),
    ];
    for (key, duration) in durations.into_iter().chain(may_be_zero) {
        at_most_a_year(valid, key, duration)?;
    }
    let fast = Duration::from_millis(10);
    if gossip.interval < fast {
        let interval = format!("{:?}", humantime::format_duration(gossip.interval).to_string());
        return Err(valid.refuse("gossip.interval", interval, "gossip would fill the network", "write at least \"10ms\""));
    }
    let counts = [
        ("http.body_limit", http.body_limit.0.0),
        ("http.connections_max", http.connections_max as u64),
        ("streams.attempts_max", u64::from(streams.attempts_max)),
        ("streams.window_tokens", u64::from(streams.window_tokens)),
    ];
    for (key, count) in counts {
        if count == 0 {
            return Err(valid.refuse(key, 0, "nothing could ever be answered", "write at least 1"));
        }
    }
    counted(valid, "http.connections_max", http.connections_max as u64)?;
    counted(valid, "streams.window_tokens", u64::from(streams.window_tokens))
}

fn at_most_a_year(valid: &ValidConfig, key: &str, duration: Duration) -> Result<(), ConfigError> {
    if duration <= TIME_MAX {
        return Ok(());
    }
    let value = format!("{:?}", humantime::format_duration(duration).to_string());
    Err(valid.refuse(key, value, "it is longer than a year", "write at most \"365days\""))
}

fn counted(valid: &ValidConfig, key: &str, count: u64) -> Result<(), ConfigError> {
    if count <= COUNT_MAX {
        return Ok(());
    }
    Err(valid.refuse(key, count, "nothing would be limited by it", format!("write at most {COUNT_MAX}")))
}

/// Two addresses that cannot both be bound.
pub(crate) fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn addresses(valid: &ValidConfig) -> Result<(), ConfigError> {
    let config = valid.get();
    // Gossip is UDP: it never gets in the way of these.
    let mut tcp = vec![("http.listen", config.http.listen), ("link.listen", config.link.listen)];
    if config.metrics.enabled {
        tcp.push(("metrics.listen", config.metrics.listen));
    }
    for (i, (key, address)) in tcp.iter().enumerate() {
        for (other_key, other) in &tcp[..i] {
            // A default gives way by itself when it is bound.
            if clash(*address, *other) && valid.is_explicit(key) && valid.is_explicit(other_key) {
                let problem = format!("{other_key} = \"{other}\" has this port already");
                return Err(valid.refuse(key, format!("\"{address}\""), problem, "give each its own port"));
            }
        }
    }
    let (gossip, link) = (config.gossip.listen.ip(), config.link.listen.ip());
    if !gossip.is_loopback() && link.is_loopback() {
        let value = format!("\"{}\"", config.link.listen);
        let problem =
            format!("other machines would hear of this node through gossip.listen = \"{}\" and never reach it", config.gossip.listen);
        let remedy = format!("write link.listen = \"{}\"", SocketAddr::new(gossip, config.link.listen.port()));
        return Err(valid.refuse("link.listen", value, problem, remedy));
    }
    Ok(())
}

fn secret(valid: &ValidConfig) -> Result<(), ConfigError> {
    let config = valid.get();
    let cluster = &config.cluster;
    if let (Some(file), Some(_)) = (&cluster.secret_file, &cluster.secret) {
        let remedy = "remove one of them";
        return Err(valid.refuse("cluster.secret_file", format!("{file:?}"), "cluster.secret is set as well", remedy));
    }
    if cluster.secret.is_some() || cluster.secret_file.is_some() {
        return Ok(());
    }
    for (key, address) in
        [("http.listen", config.http.listen), ("gossip.listen", config.gossip.listen), ("link.listen", config.link.listen)]
    {
        if !address.ip().is_loopback() {
            return Err(valid.refuse(
                key,
                format!("\"{address}\""),
                "it reaches beyond this machine, but the cluster has no secret that would keep strangers out",
                format!(
                    "run `plexus secret > cluster.key` and set cluster.secret_file = \"cluster.key\" on every node, or listen on 127.0.0.1:{}",
                    address.port()
                ),
            ));
        }
    }
    Ok(())
}

fn seeds(valid: &ValidConfig) -> Result<(), ConfigError> {
    let config = valid.get();
    for seed in &config.cluster.seeds {
        let port = seed.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(valid.refuse(
                "cluster.seeds",
                format!("{seed:?}"),
                "it is not the address of a node's gossip",
                "write host:port, such as \"10.0.0.2:31315\"",
            ));
        }
        let elsewhere = seed.parse::<SocketAddr>().is_ok_and(|seed| !seed.ip().is_loopback());
        if elsewhere && config.gossip.listen.ip().is_loopback() {
            return Err(valid.refuse(
                "cluster.seeds",
                format!("{seed:?}"),
                format!("it lies on another machine, which gossip.listen = \"{}\" cannot reach", config.gossip.listen),
                "write gossip.listen = \"0.0.0.0:31315\", link.listen = \"0.0.0.0:31316\" and a cluster.secret_file",
            ));
        }
    }
    if let Some(ip) = config.node.advertise.filter(IpAddr::is_unspecified) {
        return Err(valid.refuse("node.advertise", format!("\"{ip}\""), "nobody can dial it", "write this machine's own address, or \"\""));
    }
    Ok(())
}

fn models(valid: &ValidConfig) -> Result<(), ConfigError> {
    let config = valid.get();
    let mut seen = BTreeSet::new();
    for (i, model) in config.models.iter().enumerate() {
        let key = |name: &str| format!("models[{i}].{name}");
        if !seen.insert(&model.id) {
            let id = format!("\"{}\"", model.id);
            return Err(valid.refuse(&key("id"), id, "another entry has this id", "give each model its own id"));
        }
        for (name, count) in [("min_devices", model.min_devices), ("replicas_max", model.replicas_max)] {
            if count == 0 {
                return Err(valid.refuse(&key(name), 0, "no node could ever hold it", "write at least 1"));
            }
        }
        for (name, price) in [
            ("input", model.cost.input),
            ("output", model.cost.output),
            ("cache_read", model.cost.cache_read),
            ("cache_write", model.cost.cache_write),
        ] {
            if let Some(price) = price.filter(|price| !(price.is_finite() && *price >= 0.0)) {
                let remedy = "write dollars per million tokens: 0 if it is free, and nothing if it is unknown";
                return Err(valid.refuse(&key(&format!("cost.{name}")), price, "it is no price", remedy));
            }
        }
        if model.running_max == 0 {
            return Err(valid.refuse(&key("running_max"), 0, "nothing could ever be answered", "write at least 1"));
        }
        for (name, count) in [("running_max", model.running_max), ("waiting_max", model.waiting_max)] {
            counted(valid, &key(name), u64::from(count))?;
        }
        at_most_a_year(valid, &key("waiting_time"), model.waiting_time)?;
        let missing = match model.device {
            Some(device) if device.kind == DeviceKind::Cpu => !config.devices.cpu || device.ordinal > 0,
            Some(device) => match &config.devices.cuda {
                CudaDevices::Auto => false, // known only when the devices are opened
                CudaDevices::Off => true,
                CudaDevices::These(ordinals) => !ordinals.contains(&device.ordinal),
            },
            None => false,
        };
        if missing {
            let device = model.device.map(|device| format!("\"{device}\"")).unwrap_or_default();
            let remedy = "name a device that [devices] allows, or leave it out";
            return Err(valid.refuse(&key("device"), device, "[devices] has no such device", remedy));
        }
    }
    for (alias, target) in &config.aliases {
        let key = format!("aliases.{alias}"); // as the origins of settings are called
        if seen.contains(alias) {
            return Err(valid.refuse(&key, format!("\"{target}\""), "a model has this very id", "choose another alias"));
        }
        if config.aliases.contains_key(target) {
            let remedy = "name the model itself";
            return Err(valid.refuse(&key, format!("\"{target}\""), "it is an alias as well", remedy));
        }
    }
    Ok(())
}

fn store(valid: &ValidConfig) -> Result<(), ConfigError> {
    let store = &valid.get().store;
    if let Some(endpoint) = &store.endpoint {
        let refuse = |BadHub { value, problem, remedy }| valid.refuse("store.endpoint", value, problem, remedy);
        hub_address(endpoint).map_err(refuse)?;
    }
    if let Some(folder) = store.folders.iter().find(|folder| !folder.is_dir()) {
        let remedy = "make it, or write a folder that is there";
        return Err(valid.refuse("store.folders", format!("{:?}", folder.display().to_string()), "there is no such folder", remedy));
    }
    Ok(())
}

/// Why something is not the address of a hub.
#[derive(Debug)]
pub(crate) struct BadHub {
    /// The address, if it holds nothing secret.
    pub(crate) value: String,
    pub(crate) problem: &'static str,
    pub(crate) remedy: &'static str,
}

/// An address is shown to clients and other nodes where a download fails, so it may hold no secret.
pub(crate) fn hub_address(address: &str) -> Result<(), BadHub> {
    if address.contains(['@', '?', '#']) {
        return Err(BadHub {
            value: "(hidden)".to_owned(),
            problem: "it holds more than an address, such as a user and a password, and addresses are shown in errors and logs",
            remedy: "write the address alone, and name the variable that holds the hub's token in store.auth_env",
        });
    }
    if address.starts_with("http://") || address.starts_with("https://") {
        return Ok(());
    }
    Err(BadHub {
        value: format!("{address:?}"),
        problem: "it is not the address of a hub",
        remedy: "write an address such as \"https://huggingface.co\" or \"http://mirror:8080\"",
    })
}

fn telemetry(valid: &ValidConfig) -> Result<(), ConfigError> {
    let telemetry = &valid.get().telemetry;
    if let Err(error) = EnvFilter::try_new(&telemetry.log_filter) {
        let remedy = "write a level or a filter, such as \"info\" or \"info,plexus_actors=debug\"";
        return Err(valid.refuse("telemetry.log_filter", format!("{:?}", telemetry.log_filter), error.to_string(), remedy));
    }
    if !(0.0..=1.0).contains(&telemetry.otlp_sample_ratio) {
        let problem = "it is not a share of the requests";
        return Err(valid.refuse("telemetry.otlp_sample_ratio", telemetry.otlp_sample_ratio, problem, "write a number from 0 to 1"));
    }
    match &telemetry.otlp_endpoint {
        Some(endpoint) if !endpoint.starts_with("http://") => Err(valid.refuse(
            "telemetry.otlp_endpoint",
            format!("{endpoint:?}"),
            "traces are sent over plain HTTP only",
            "write an address such as \"http://127.0.0.1:4318\"",
        )),
        _ => Ok(()),
    }
}
