//! Where a model comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::is_name_part;

/// Where a model comes from. Written `embedded:pip`, `file:/path`, a bare path, or `hf:org/name[@revision][:quant]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelSource {
    /// The demonstration model inside the binary.
    Embedded,
    /// A `.gguf` file, or a folder with `config.json` and `*.safetensors`, or with exactly one `.gguf` file.
    Path(PathBuf),
    /// A repository of the Hugging Face hub, or of a mirror that speaks its language.
    Hub(HubSource),
}

/// A repository of a hub, and which of its files. Written `org/name[@revision][:quant]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubSource {
    /// `org/name`.
    pub repo: String,
    /// A branch, tag or commit; absent: `main`.
    pub revision: Option<String>,
    /// Which GGUF file, by the tag in its name such as `Q4_K_M`; absent: the safetensors, or the only GGUF file.
    pub quant: Option<String>,
}

impl HubSource {
    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a model source; write embedded:pip, file:/path, a path to a .gguf file or a folder, or hf:org/name, \
     hf:org/name:Q4_K_M or hf:org/name@revision"
)]
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
            Some(("hf", rest)) => return hub(rest).map(Self::Hub).ok_or_else(invalid),
            Some(("file", path)) => path,
            // One letter before the colon is a drive, more are a scheme that we do not know.
            Some((scheme, _)) if scheme.len() > 1 && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => return Err(invalid()),
            _ => text,
        };
        if path.is_empty() { Err(invalid()) } else { Ok(Self::Path(PathBuf::from(path))) }
    }
}

/// Every part becomes a part of a path and of an address: none can lead out of its place.
fn hub(text: &str) -> Option<HubSource> {
    let (rest, quant) = match text.split_once(':') {
        Some((rest, quant)) => (rest, Some(quant)),
        None => (text, None),
    };
    let (repo, revision) = match rest.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (rest, None),
    };
    let (org, name) = repo.split_once('/')?;
    let revision_ok = |revision: &str| revision.split('/').all(is_name_part);
    let ok = is_name_part(org) && is_name_part(name) && quant.is_none_or(is_name_part) && revision.is_none_or(revision_ok);
    ok.then(|| HubSource { repo: repo.to_owned(), revision: revision.map(str::to_owned), quant: quant.map(str::to_owned) })
}

impl fmt::Display for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.quant.as_ref().map_or(Ok(()), |quant| write!(f, ":{quant}"))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded:pip"),
            Self::Path(path) => write!(f, "file:{}", path.display()),
            Self::Hub(hub) => write!(f, "hf:{hub}"),
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
        for text in
            ["embedded:pip", "file:/x/y", "hf:Qwen/Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B-GGUF@refs/pr/1:Q4_K_M", "hf:a/b@main", "hf:a/b:Q8_0"]
        {
            assert_eq!(text.parse::<ModelSource>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "file:",
            "embedded:other",
            "https://example.org/x",
            "hf:",
            "hf:a",
            "hf:../b",
            "hf:a/..",
            "hf:a/b/c",
            "hf:a/b@../x",
            "hf:a/b:../x",
        ] {
            assert!(bad.parse::<ModelSource>().is_err(), "{bad:?} was accepted");
        }
    }
}
