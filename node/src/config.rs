//! What a node is told: `cluster.toml`, `PLEXUS_SECTION__KEY` variables and options, in this order over built-in defaults.
//!
//! Read and checked once, before anything is opened: a mistake names the key, its value, where it came from and what to do.

mod error;
mod keys;
mod layers;
mod model;
mod sections;
mod units;
mod validate;

use std::path::{Path, PathBuf};

use toml::Value;

use error::in_words;
pub(crate) use error::{BadValue, ConfigError};
pub(crate) use layers::{Origin, Override};
pub(crate) use model::ModelSection;
pub(crate) use sections::{Config, LogFormat, StoreSection, StrategyName, TelemetrySection};
pub(crate) use units::{CudaDevices, Fraction};
pub(crate) use validate::{BadHub, clash, hub_address};

use layers::Layers;

/// Lies beside `cluster.toml`, and lists models and aliases beside those of it.
const MODELS_FILE: &str = "models.toml";

/// Where a node's settings come from.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The file, if one is named or lies in the usual place.
    pub(crate) file: Option<PathBuf>,
    /// The process's environment.
    pub(crate) variables: Vec<(String, String)>,
    /// Options for keys of `cluster.toml`.
    pub(crate) overrides: Vec<Override>,
    /// Options `--model ID=SOURCE`.
    pub(crate) models: Vec<String>,
}

/// A configuration that passed every check. Only [`load`] makes one.
#[derive(Debug)]
pub(crate) struct ValidConfig {
    config: Config,
    layers: Layers,
    file: Option<PathBuf>,
    /// The file beside it that lists models, if there is one.
    models_file: Option<PathBuf>,
}

impl ValidConfig {
    /// The settings.
    pub(crate) fn get(&self) -> &Config {
        &self.config
    }

    /// The file that was read, if any.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Every file that was read.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.file.iter().chain(&self.models_file).map(PathBuf::as_path)
    }

    /// Where the value of `key` (`section.name`) came from.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.layers.origin(key)
    }

    /// Did somebody set `key`, or is it the default?
    pub(crate) fn is_explicit(&self, key: &str) -> bool {
        self.origin(key) != Origin::Default
    }

    /// An error about a value that only the machine could refuse: a port in use, a file that is missing.
    pub(crate) fn refuse(&self, key: &str, value: impl ToString, problem: impl Into<String>, remedy: impl Into<String>) -> ConfigError {
        BadValue {
            key: self.layers.named(key),
            value: value.to_string(),
            origin: self.origin(key),
            problem: problem.into(),
            remedy: remedy.into(),
        }
        .into()
    }
}

/// Reads all sources, one over the other, and checks the result.
pub(crate) fn load(sources: Sources) -> Result<ValidConfig, ConfigError> {
    let mut layers = Layers::default();
    if let Some(path) = &sources.file {
        layers.file(path)?;
    }
    let models_file = sources.file.as_ref().map(|file| file.with_file_name(MODELS_FILE)).filter(|path| path.exists());
    if let Some(path) = &models_file {
        layers.models_file(path)?;
    }
    layers.variables(sources.variables)?;
    layers.options(&sources.overrides)?;
    layers.models(&sources.models)?;
    let config = understand(&layers)?;
    let valid = ValidConfig { config, layers, file: sources.file, models_file };
    validate::validate(&valid)?;
    Ok(valid)
}

fn understand(layers: &Layers) -> Result<Config, ConfigError> {
    serde_path_to_error::deserialize(Value::Table(layers.table.clone())).map_err(|error| {
        let path = error.path().to_string();
        let problem = in_words(error.inner().message().trim());
        let value = value_at(&layers.table, &path);
        let (section, name) = path.split_once('.').unwrap_or((&path, ""));
        let name = name.split(['.', '[']).next().unwrap_or_default();
        match keys::find(section, name) {
            Some(key) => ConfigError::of_key(key, value, layers.origin(&path), problem),
            None => BadValue {
                origin: layers.origin(&path),
                key: layers.named(&path),
                value,
                problem,
                remedy: "correct or remove it; the cluster.toml that comes with Plexus lists every key".to_owned(),
            }
            .into(),
        }
    })
}

/// The value at a path such as `models[0].id`, as TOML; `nothing` where there is none, and empty where it is a whole table.
fn value_at(table: &toml::Table, path: &str) -> String {
    let mut value = None;
    let mut table = Some(table);
    for part in path.split(['.', '[']) {
        value = match part.strip_suffix(']') {
            Some(index) => index.parse::<usize>().ok().and_then(|index| value.and_then(|list: &Value| list.get(index))),
            None => table.and_then(|table| table.get(part)),
        };
        table = value.and_then(Value::as_table);
    }
    match value {
        Some(Value::Table(_)) => String::new(),
        Some(value) => value.to_string(),
        None => "nothing".to_owned(),
    }
}

/// The file to read: the one named, or `plexus/cluster.toml` in the user's configuration directory if it is there.
pub(crate) fn file_to_read(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| {
        let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let base = base.or_else(|| Some(std::env::home_dir()?.join(".config")))?;
        Some(base.join("plexus").join("cluster.toml")).filter(|path| path.exists())
    })
}

/// The environment as text. What is not UTF-8 cannot be a setting.
pub(crate) fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

#[cfg(test)]
mod tests;
