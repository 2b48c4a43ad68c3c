//! Who is who.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text that does not name what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: {rule}")]
pub struct InvalidId {
    /// What was expected, for example "node name".
    pub what: &'static str,
    /// The text that was given.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Implements parsing, display and serde (as a string) for a newtype round a checked text. Cheap to clone.
macro_rules! checked_string {
    ($name:ident, $what:literal, $rule:literal, $check:expr) => {
        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(InvalidId { what: $what, value: text.to_owned(), rule: $rule }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

/// Name of a node: unique in its cluster, stable over restarts. A DNS label, because it is also the name in the node's certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);
checked_string!(NodeName, "node name", "1 to 63 characters of a-z, 0-9 and '-', neither first nor last '-'", |text| {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
});

/// Which start of a node: grows at each start, so that an older life of the same name is told from the newer one. Milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// One life of one node. Written `name#generation`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The node's name.
    pub name: NodeName,
    /// Which start of it.
    pub generation: Generation,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.generation.0)
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId { what: "node id", value: text.to_owned(), rule: "a node name, '#', a decimal generation" };
        let (name, generation) = text.split_once('#').ok_or_else(invalid)?;
        Ok(Self { name: name.parse()?, generation: Generation(generation.parse().map_err(|_| invalid())?) })
    }
}

/// A part of a model's name: nothing that could lead out of a folder.
pub(crate) fn is_name_part(part: &str) -> bool {
    (1..=96).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && part.as_bytes()[0].is_ascii_alphanumeric()
}

/// What clients call a model: `name`, `org/name` or `org/name:tag`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId(Arc<str>);
checked_string!(
    ModelId,
    "model id",
    "letters, digits, '.', '_' and '-', with at most one '/' and one ':' between such parts, each part starting with a letter or digit",
    |text| {
        let (path, tag) = match text.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (text, None),
        };
        let path_ok = match path.split_once('/') {
            Some((org, name)) => is_name_part(org) && is_name_part(name),
            None => is_name_part(path),
        };
        path_ok && tag.is_none_or(is_name_part)
    }
);

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The host's processors and memory.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// A device of a node. Written `cpu-0`, `cuda-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId {
    /// What it is.
    pub kind: DeviceKind,
    /// Which one of its kind, counted from 0 on this node.
    pub ordinal: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
        };
        f.pad(&format!("{kind}-{}", self.ordinal))
    }
}

impl FromStr for DeviceId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId { what: "device id", value: text.to_owned(), rule: "cpu-N or cuda-N" };
        let (kind, ordinal) = text.split_once('-').ok_or_else(invalid)?;
        let kind = match kind {
            "cpu" => DeviceKind::Cpu,
            "cuda" => DeviceKind::Cuda,
            _ => return Err(invalid()),
        };
        Ok(Self { kind, ordinal: ordinal.parse().map_err(|_| invalid())? })
    }
}

impl TryFrom<String> for DeviceId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> String {
        id.to_string()
    }
}

/// A model resident, or becoming resident, on a device of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The node that serves it.
    pub node: NodeId,
    /// The device that holds it.
    pub device: DeviceId,
    /// The model.
    pub model: ModelId,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.node.name, self.device, self.model)
    }
}

/// One generation asked for by a client. Drawn at random by the ingress, unique in practice. Written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_ids_cannot_name_a_path_outside_a_folder() {
        for good in ["pip", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B:Q4_K_M", "a"] {
            assert_eq!(good.parse::<ModelId>().map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", "..", "../x", "a/../b", "a/b/c", "/etc/passwd", "a:", "a b", "a\\b", ".hidden", "a/.b", "a::b", "ü"] {
            assert!(bad.parse::<ModelId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn node_ids_and_device_ids_read_what_they_write() {
        for text in ["n1#17", "gpu-box#0"] {
            assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        }
        for text in ["cpu-0", "cuda-12"] {
            assert_eq!(text.parse::<DeviceId>().unwrap().to_string(), text);
        }
        for bad in ["N1", "-a", "a-", "a_b", "a.b", ""] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was accepted");
        }
    }
}
