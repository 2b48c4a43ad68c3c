//! What was pinned and unpinned by hand, kept over a restart of the node in a small file.
//!
//! A line for each model: `pinned` or `unpinned`, a space, its id.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use plexus_store::write_whole;
use plexus_types::ModelId;
use tracing::warn;

/// By model: pinned by hand, or unpinned though its entry pins it.
pub type Pins = BTreeMap<ModelId, bool>;

/// Where pins are kept. Without a place they go with the process.
#[derive(Debug, Clone, Default)]
pub struct PinsFile(Option<PathBuf>);

impl PinsFile {
    /// Kept in this file.
    pub fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// What was kept. A file that cannot be read as pins is ignored, with a warning: what the catalogue says counts then.
    pub fn load(&self) -> Pins {
        let Some(path) = &self.0 else { return Pins::new() };
        let read = match fs::read_to_string(path) {
            Ok(text) => parse(&text).ok_or_else(|| io::Error::other("it has a line that is no pin")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Pins::new(),
            Err(error) => Err(error),
        };
        read.unwrap_or_else(|error| {
            warn!(file = %path.display(), %error, "what was pinned by hand cannot be read and is forgotten; pin it again");
            Pins::new()
        })
    }

    /// Keeps them, whole or not at all. One that cannot be written is a warning: the pins hold for as long as the process runs.
    pub fn save(&self, pins: &Pins) {
        let Some(path) = &self.0 else { return };
        if let Err(error) = write_whole(path, written(pins).as_bytes()) {
            warn!(file = %path.display(), %error, "what is pinned by hand cannot be kept over a restart");
        }
    }
}

fn written(pins: &Pins) -> String {
    pins.iter().map(|(model, pinned)| format!("{} {model}\n", if *pinned { "pinned" } else { "unpinned" })).collect()
}

/// `None` if any line is damaged, or cut off.
fn parse(text: &str) -> Option<Pins> {
    let line = |line: &str| {
        let (word, model) = line.strip_suffix('\n')?.split_once(' ')?;
        let pinned = match word {
            "pinned" => true,
            "unpinned" => false,
            _ => return None,
        };
        Some((model.parse().ok()?, pinned))
    };
    text.split_inclusive('\n').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_kept_and_a_damaged_file_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n1.pins");
        let file = PinsFile::at(path.clone());
        assert_eq!(file.load(), Pins::new());
        let pins = Pins::from([("a/b:q4".parse().unwrap(), true), ("c".parse().unwrap(), false)]);
        file.save(&pins);
        assert_eq!(PinsFile::at(path.clone()).load(), pins);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        for damaged in ["pinned a\nunpinn", "pinned a\nunpinned c", "a\n", "pinned not an id\n", "\u{0}\n"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(file.load(), Pins::new(), "{damaged}");
        }
        file.save(&pins);
        assert_eq!(file.load(), pins);
        PinsFile::default().save(&pins);
        assert_eq!(PinsFile::default().load(), Pins::new());
    }
}
