//! Where a model comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a model comes from. Written `embedded:pip`, `file:/path` or a bare path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelSource {
    /// The demonstration model inside the binary.
    Embedded,
    /// A `.gguf` file, or a folder with `config.json` and `*.safetensors`, or with exactly one `.gguf` file.
    Path(PathBuf),
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a model source; write embedded:pip, file:/path or a path to a .gguf file or a folder")]
pub struct InvalidModelSource {
    /// The text.
    pub text: String,
}

impl FromStr for ModelSource {
    type Err = InvalidModelSource;

    fn from_str(text: &str) -> Result<Self, InvalidModelSource> {
        let invalid = || InvalidModelSource { text: text.to_owned() };
        let path = match text.split_once(':') {
            Some(("embedded", "pip")) => return Ok(Self::Embedded),
            Some(("file", path)) => path,
            // One letter before the colon is a drive, more are a scheme that we do not know.
            Some((scheme, _)) if scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => return Err(invalid()),
            _ => text,
        };
        if path.is_empty() { Err(invalid()) } else { Ok(Self::Path(PathBuf::from(path))) }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded:pip"),
            Self::Path(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl TryFrom<String> for ModelSource {
    type Error = InvalidModelSource;
    fn try_from(text: String) -> Result<Self, InvalidModelSource> {
        text.parse()
    }
}

impl From<ModelSource> for String {
    fn from(source: ModelSource) -> String {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_written() {
        assert_eq!("embedded:pip".parse(), Ok(ModelSource::Embedded));
        assert_eq!("file:/models/a.gguf".parse(), Ok(ModelSource::Path("/models/a.gguf".into())));
        assert_eq!("models/a b".parse(), Ok(ModelSource::Path("models/a b".into())));
        for source in [ModelSource::Embedded, ModelSource::Path("/x/y".into())] {
            assert_eq!(source.to_string().parse(), Ok(source));
        }
        for bad in ["", "file:", "embedded:other", "https://example.org/x"] {
            assert!(bad.parse::<ModelSource>().is_err(), "{bad:?} was accepted");
        }
    }
}
