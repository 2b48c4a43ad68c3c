//! Where a model's files are.

use std::fmt;
use std::path::PathBuf;

/// Where a model's files are on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelPath {
    /// The demonstration model inside the binary.
    Embedded,
    /// A `.gguf` file, or a folder with `config.json` and `*.safetensors`, or with exactly one `.gguf` file.
    Path(PathBuf),
}

impl fmt::Display for ModelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded:pip"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}
