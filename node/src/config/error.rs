//! What is wrong with a configuration: always the key, its value, where it came from, and what to do.

use std::io;
use std::path::PathBuf;

use super::keys::Key;
use super::layers::Origin;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}; name an existing one with --config or PLEXUS_CONFIG", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}, line {line}: {problem}; correct this line", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which line, counted from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A value cannot be used.
    #[error(transparent)]
    Value(Box<BadValue>),
    /// A variable that looks like a setting and is none.
    #[error("the environment variable {variable} sets nothing that exists; unset it, or did you mean {nearest}?")]
    UnknownVariable {
        /// The variable.
        variable: String,
        /// The one that was probably meant.
        nearest: String,
    },
}

/// A value that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}{} (from {origin}): {problem}; {remedy}", of_value(.value))]
pub(crate) struct BadValue {
    /// The key, as `section.name`.
    pub(crate) key: String,
    /// Its value, as TOML; empty if that is a whole table.
    pub(crate) value: String,
    /// Where the value came from.
    pub(crate) origin: Origin,
    /// What is wrong with it.
    pub(crate) problem: String,
    /// What to do.
    pub(crate) remedy: String,
}

fn of_value(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" = {value}") }
}

/// What a parser says that expects types of Rust, in words for people.
pub(crate) fn in_words(problem: &str) -> String {
    const U32_MAX: &str = "expected a whole number from 0 to 4294967295";
    const U64_MAX: &str = "expected a whole number from 0 to 9223372036854775807"; // TOML knows none beyond
    let Some((before, expected)) = problem.rsplit_once("expected ") else { return problem.to_owned() };
    let told = match expected {
        "u32" => U32_MAX,
        "u64" | "usize" => U64_MAX,
        "f32" | "f64" => "expected a number",
        "a boolean" => "expected true or false",
        "a string" => "expected a text",
        "a sequence" => "expected a list",
        "a map" => "expected a table",
        other if other.starts_with("struct ") => "expected a table",
        _ => return problem.to_owned(),
    };
    format!("{before}{told}")
}

impl From<BadValue> for ConfigError {
    fn from(bad: BadValue) -> Self {
        Self::Value(Box::new(bad))
    }
}

impl ConfigError {
    /// A value that its key does not take.
    pub(crate) fn of_key(key: &Key, value: String, origin: Origin, problem: impl Into<String>) -> Self {
        let (value, problem) = if key.secret() { ("(hidden)".to_owned(), "it is not a text".to_owned()) } else { (value, problem.into()) };
        BadValue { key: key.path(), value, origin, problem, remedy: format!("write {}", key.expects) }.into()
    }
}
