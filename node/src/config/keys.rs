//! Every key that a variable or an option can set, with its kind and what it expects.
//!
//! The list is what makes `PLEXUS_SECTION__KEY` exact: an unknown variable is refused by name, and a text becomes a number, a switch or
//! a list only where the key is one. A test holds it against `cluster.toml`.

/// A key of `cluster.toml` outside `[[models]]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Its section.
    pub(crate) section: &'static str,
    /// Its name in the section.
    pub(crate) name: &'static str,
    /// What a text given for it becomes.
    pub(crate) kind: Kind,
    /// What to write instead of what was written; ends the sentence "write ...".
    pub(crate) expects: &'static str,
}

impl Key {
    /// The key as it is spoken of: `http.listen`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The variable that sets it.
    pub(crate) fn variable(&self) -> String {
        format!("PLEXUS_{}__{}", self.section, self.name).to_uppercase()
    }

    /// Must its value never be shown?
    pub(crate) fn secret(&self) -> bool {
        self.section == "cluster" && self.name == "secret"
    }
}

/// What a text given for a key becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TOML string.
    Text,
    /// A TOML integer.
    Integer,
    /// A TOML float.
    Float,
    /// A TOML boolean.
    Switch,
    /// A TOML array of strings, given with commas between.
    List,
}

const fn key(section: &'static str, name: &'static str, kind: Kind, expects: &'static str) -> Key {
    Key { section, name, kind, expects }
}

const ADDRESS: &str = "an IP address and a port, such as \"127.0.0.1:31313\"";
const DURATION: &str = "a time above zero, such as \"10s\" or \"250ms\"";
const COUNT: &str = "a whole number of at least 1";
const SHARE: &str = "a number above 0 and at most 1, such as 0.7";
const SWITCH: &str = "true or false";

/// The key `section.name`, if there is one.
pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// All keys, in the order of `cluster.toml`.
pub(crate) static KEYS: &[Key] = &[
    key("cluster", "name", Kind::Text, "1 to 63 characters of a-z, 0-9 and '-', such as \"plexus\""),
    key("cluster", "secret_file", Kind::Text, "the path of a file made by `plexus secret > cluster.key`"),
    key("cluster", "secret", Kind::Text, "a secret printed by `plexus secret`"),
    key("cluster", "seeds", Kind::List, "a list of host:port, such as [\"10.0.0.2:31315\"]"),
    key("node", "name", Kind::Text, "1 to 63 characters of a-z, 0-9 and '-', such as \"node-1\", or \"\" for the host's name"),
    key("node", "data_dir", Kind::Text, "the path of a directory, or \"\" for the usual place"),
    key("node", "advertise", Kind::Text, "an IP address without a port, such as \"10.0.0.2\", or \"\" to find it"),
    key("http", "listen", Kind::Text, ADDRESS),
    key("http", "allowed_hosts", Kind::List, "a list of host names, such as [\"models.example\"]"),
    key("http", "cors_origins", Kind::List, "a list of origins, such as [\"https://app.example\"]"),
    key("http", "body_limit", Kind::Text, "a size above zero, such as \"16MiB\""),
    key("http", "connections_max", Kind::Integer, COUNT),
    key("http", "header_timeout", Kind::Text, DURATION),
    key("metrics", "enabled", Kind::Switch, SWITCH),
    key("metrics", "listen", Kind::Text, ADDRESS),
    key("gossip", "listen", Kind::Text, ADDRESS),
    key("gossip", "interval", Kind::Text, DURATION),
    key("link", "listen", Kind::Text, ADDRESS),
    key("link", "ping_interval", Kind::Text, DURATION),
    key("link", "ping_timeout", Kind::Text, DURATION),
    key("link", "handshake_timeout", Kind::Text, DURATION),
    key("devices", "cpu", Kind::Switch, SWITCH),
    key("devices", "cpu_memory_share", Kind::Float, SHARE),
    key("devices", "cpu_memory", Kind::Text, "a size, such as \"8GiB\", or \"\" for the share"),
    key("devices", "cpu_threads", Kind::Integer, "a whole number of at least 1, or 0 for all cores"),
    key("devices", "cuda", Kind::Text, "\"auto\", \"off\", or device numbers such as \"0,1\""),
    key("devices", "cuda_memory_share", Kind::Float, SHARE),
    key("eviction", "strategy", Kind::Text, "\"lru\" or \"priority\""),
    key("eviction", "keep_warm", Kind::Text, "a time, such as \"30s\", or \"0s\" for none"),
    key("eviction", "idle_unload", Kind::Text, "a time, such as \"10m\", or \"0s\" for never"),
    key("eviction", "defrag_after_cycles", Kind::Integer, "a whole number, 0 for never"),
    key("store", "folders", Kind::List, "a list of folders, such as [\"/models\"]"),
    key("store", "endpoint", Kind::Text, "the address of a hub, such as \"http://mirror:8080\", or \"\" for Hugging Face"),
    key("store", "auth_env", Kind::Text, "the name of a variable, such as \"MIRROR_TOKEN\", or \"\" for that of Hugging Face"),
    key("store", "hf_cache", Kind::Text, "the path of a folder, or \"\" for the usual place"),
    key("store", "offline", Kind::Switch, SWITCH),
    key("streams", "accept_timeout", Kind::Text, DURATION),
    key("streams", "first_token_timeout", Kind::Text, DURATION),
    key("streams", "token_timeout", Kind::Text, DURATION),
    key("streams", "client_timeout", Kind::Text, DURATION),
    key("streams", "load_timeout", Kind::Text, DURATION),
    key("streams", "attempts_max", Kind::Integer, COUNT),
    key("streams", "window_tokens", Kind::Integer, COUNT),
    key("streams", "prompt_time_max", Kind::Text, "a time, such as \"60s\", or \"0s\" for any"),
    key("supervision", "restarts_max", Kind::Integer, "a whole number"),
    key("supervision", "within", Kind::Text, DURATION),
    key("shutdown", "drain_timeout", Kind::Text, "a time, such as \"10s\""),
    key("telemetry", "log_filter", Kind::Text, "a level or a filter, such as \"info\" or \"info,plexus_actors=debug\""),
    key("telemetry", "log_format", Kind::Text, "\"text\" or \"json\""),
    key(
        "telemetry",
        "otlp_endpoint",
        Kind::Text,
        "the http:// address of a collector, such as \"http://127.0.0.1:4318\", or \"\" for none",
    ),
    key("telemetry", "otlp_sample_ratio", Kind::Float, "a number from 0 to 1"),
    key("telemetry", "service_name", Kind::Text, "a name, such as \"plexus\""),
    key("debug", "test_hooks", Kind::Switch, SWITCH),
];
