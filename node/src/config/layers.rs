//! Defaults, file, variables, options: one laid over the other, each value remembering where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{BadValue, ConfigError};
use super::keys::{KEYS, Key, Kind, find};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The built-in default.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An option on the command line.
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            // A name alone does not say in which folder.
            Self::File(path) => write!(f, "{}", std::path::absolute(path).as_ref().unwrap_or(path).display()),
            Self::Variable(name) => f.write_str(name),
            Self::Option(name) => f.write_str(name),
        }
    }
}

/// A value given on the command line for a key of `cluster.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Override {
    /// The option, for example `--http`.
    pub(crate) option: &'static str,
    /// The key's section.
    pub(crate) section: &'static str,
    /// The key's name.
    pub(crate) name: &'static str,
    /// The value, as it was typed.
    pub(crate) value: String,
}

/// What was said, before it is understood.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Lays a file over what is there.
    pub(crate) fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.file_text(path, &text)
    }

    /// The same, with the file's text at hand.
    pub(crate) fn file_text(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        for (section, value) in parse(path, text)? {
            match value {
                Value::Table(keys) => {
                    for (name, value) in keys {
                        self.set(&section, &name, value, Origin::File(path.to_owned()));
                    }
                }
                other => {
                    self.origins.insert(section.clone(), Origin::File(path.to_owned()));
                    self.table.insert(section, other);
                }
            }
        }
        Ok(())
    }

    /// Adds the models and aliases of a file that has nothing else, beside those that are there.
    pub(crate) fn models_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let origin = Origin::File(path.to_owned());
        for (section, value) in parse(path, &text)? {
            match (section.as_str(), value) {
                ("models", Value::Array(models)) => {
                    models.into_iter().for_each(|model| self.add_model(model, &origin));
                }
                ("aliases", Value::Table(aliases)) => {
                    for (alias, target) in aliases {
                        self.set("aliases", &alias, target, origin.clone());
                    }
                }
                (_, value) => {
                    return Err(BadValue {
                        key: section,
                        value: value.to_string(),
                        origin,
                        problem: "this file lists models and aliases only".to_owned(),
                        remedy: "move it to cluster.toml".to_owned(),
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Lays variables over what is there. Those without `__` are not settings and are left to others.
    pub(crate) fn variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        for (variable, value) in variables {
            let Some((section, name)) = variable.strip_prefix("PLEXUS_").and_then(|rest| rest.split_once("__")) else { continue };
            let Some(key) = find(&section.to_ascii_lowercase(), &name.to_ascii_lowercase()) else {
                return Err(ConfigError::UnknownVariable { nearest: nearest(&variable), variable });
            };
            self.text(key, &value, Origin::Variable(variable))?;
        }
        Ok(())
    }

    /// Lays options over what is there.
    pub(crate) fn options(&mut self, overrides: &[Override]) -> Result<(), ConfigError> {
        for given in overrides {
            let key = find(given.section, given.name).expect("options name keys that exist");
            self.text(key, &given.value, Origin::Option(given.option))?;
        }
        Ok(())
    }

    /// Adds models given on the command line as `ID=SOURCE`, beside those of the file.
    pub(crate) fn models(&mut self, models: &[String]) -> Result<(), ConfigError> {
        for model in models {
            let Some((id, source)) = model.split_once('=') else {
                return Err(BadValue {
                    key: "models".to_owned(),
                    value: format!("{model:?}"),
                    origin: Origin::Option("--model"),
                    problem: "it has no '='".to_owned(),
                    remedy: "write --model ID=SOURCE, such as --model pip=embedded:pip".to_owned(),
                }
                .into());
            };
            let entry = Table::from_iter([
                ("id".to_owned(), Value::from(id)),
                ("source".to_owned(), Value::from(source)),
                ("preload".to_owned(), Value::from(true)),
            ]);
            self.add_model(Value::Table(entry), &Origin::Option("--model"));
        }
        Ok(())
    }

    /// Adds an entry behind those that are there, which came from elsewhere.
    fn add_model(&mut self, model: Value, origin: &Origin) {
        let known = self.table.entry("models").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(known) = known {
            self.origins.insert(format!("models[{}]", known.len()), origin.clone());
            known.push(model); // anything but a list is refused when the table is read
        }
    }

    /// A key as it is spoken of. That of an entry of `[[models]]` is named by the model or, where it names none, by its place in its own file.
    pub(crate) fn named(&self, path: &str) -> String {
        let entry = path.strip_prefix("models[").and_then(|rest| rest.split_once(']'));
        let Some((index, key)) = entry.and_then(|(index, key)| Some((index.parse::<usize>().ok()?, key))) else { return path.to_owned() };
        let id = self.table.get("models").and_then(|models| models.get(index)?.get("id")?.as_str());
        let of = |i: usize| self.origin(&format!("models[{i}]"));
        let model = match id {
            Some(id) => format!("the model '{id}'"),
            None => format!("entry {} of [[models]]", (0..=index).filter(|i| of(*i) == of(index)).count()),
        };
        match key.strip_prefix('.') {
            Some(key) => format!("{model}: {key}"),
            None => model,
        }
    }

    /// Where the value at `path` (`section.key`, or deeper) came from.
    pub(crate) fn origin(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            let Some(end) = path.rfind(['.', '[']) else { return Origin::Default };
            path = &path[..end];
        }
    }

    fn set(&mut self, section: &str, name: &str, value: Value, origin: Origin) {
        self.origins.insert(format!("{section}.{name}"), origin);
        let section = self.table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        match section {
            Value::Table(keys) => drop(keys.insert(name.to_owned(), value)),
            other => *other = Value::Table(Table::from_iter([(name.to_owned(), value)])),
        }
    }

    fn text(&mut self, key: &'static Key, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let value = match key.kind {
            Kind::Text => Some(Value::from(text)),
            Kind::Integer => text.trim().parse::<i64>().ok().map(Value::from),
            Kind::Float => text.trim().parse::<f64>().ok().map(Value::from),
            Kind::Switch => text.trim().parse::<bool>().ok().map(Value::from),
            Kind::List => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(Value::Array(parts.map(Value::from).collect()))
            }
        };
        let Some(value) = value else {
            let kind = match key.kind {
                Kind::Integer => "it is not a whole number",
                Kind::Float => "it is not a number",
                _ => "it is neither true nor false",
            };
            return Err(ConfigError::of_key(key, format!("{text:?}"), origin, kind));
        };
        self.set(key.section, key.name, value, origin);
        Ok(())
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        // Only the message: the whole error quotes the line, and the line may hold the secret.
        ConfigError::Syntax { path: path.to_owned(), line, problem: error.message().to_owned() }
    })
}

/// The variable that was probably meant: the one with the fewest letters changed.
fn nearest(variable: &str) -> String {
    KEYS.iter().map(Key::variable).min_by_key(|known| distance(known.as_bytes(), variable.as_bytes())).unwrap_or_default()
}

/// Letters to insert, delete or replace to turn one text into the other (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
