//! What was pinned and unpinned by hand, kept over a restart of the node in a small file.
//!
//! A line for each model: `pinned` or `unpinned`, a space, its id.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use plexus_store::write_whole;
use plexus_types::ModelId;
use tracing::warn;

/// By model: pinned by hand, or unpinned though its entry pins it.
pub type Pins = BTreeMap<ModelId, bool>;

/// Where pins are kept. Without a place they go with the process. Cheap to clone, and all clones are one.
#[derive(Debug, Clone, Default)]
pub struct PinsFile(Option<Arc<Kept>>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    newest: Mutex<Option<Saving>>,
    /// The number of what was written last. Held while something is.
    written: Mutex<u64>,
}

/// Pins that are to be written, numbered in the order in which they were given.
#[derive(Debug, Clone)]
struct Saving {
    number: u64,
    pins: Pins,
}

impl PinsFile {
    /// Kept in this file.
    pub fn at(path: PathBuf) -> Self {
        Self(Some(Arc::new(Kept { path, newest: Mutex::default(), written: Mutex::default() })))
    }

    /// What was kept, whether it is written already or not. A file that cannot be read as pins is ignored, with a warning: what the catalogue says
    /// counts then.
    pub fn load(&self) -> Pins {
        let Some(kept) = &self.0 else { return Pins::new() };
        if let Some(saving) = kept.newest() {
            return saving.pins;
        }
        let path = &kept.path;
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

    /// Keeps them, whole or not at all: at once for [`Self::load`], and over a restart once the result is there, which waits for the disk on a thread
    /// for that. Of several under way the last one counts, in whatever order they get their turn. What cannot be written is a warning: the pins hold
    /// for as long as the process runs.
    pub fn save(&self, pins: Pins) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let kept = self.0.clone();
        if let Some(kept) = &kept {
            kept.note(pins);
        }
        async move {
            let Some(kept) = kept else { return Ok(()) };
            let written = tokio::task::spawn_blocking(move || kept.write()).await;
            written.unwrap_or_else(|panicked| Err(panicked.to_string()))
        }
    }
}

impl Kept {
    fn newest(&self) -> Option<Saving> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, pins: Pins) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let number = newest.as_ref().map_or(0, |saving| saving.number) + 1;
        *newest = Some(Saving { number, pins });
    }

    /// Writes the newest pins, unless another has.
    fn write(&self) -> Result<(), String> {
        let mut last = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Saving { number, pins }) = self.newest().filter(|saving| saving.number > *last) else { return Ok(()) };
        write_whole(&self.path, written(&pins).as_bytes()).map_err(|error| {
            warn!(file = %self.path.display(), %error, "what is pinned by hand cannot be kept over a restart");
            format!("{}: {error}", self.path.display())
        })?;
        *last = number;
        Ok(())
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

    #[tokio::test]
    async fn pins_are_kept_and_a_damaged_file_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n1.pins");
        let file = PinsFile::at(path.clone());
        assert_eq!(file.load(), Pins::new());
        let pins = Pins::from([("a/b:q4".parse().unwrap(), true), ("c".parse().unwrap(), false)]);
        file.save(pins.clone()).await.unwrap();
        assert_eq!(PinsFile::at(path.clone()).load(), pins);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        for damaged in ["pinned a\nunpinn", "pinned a\nunpinned c", "a\n", "pinned not an id\n", "\u{0}\n"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(PinsFile::at(path.clone()).load(), Pins::new(), "{damaged}");
            assert_eq!(file.load(), pins, "another life of the actor knows what was kept before");
        }
        file.save(pins.clone()).await.unwrap();
        assert_eq!(PinsFile::at(path).load(), pins);
        PinsFile::default().save(pins).await.unwrap();
        assert_eq!(PinsFile::default().load(), Pins::new());
    }

    #[tokio::test]
    async fn of_several_that_are_saved_at_once_the_last_counts_whoever_gets_the_disk_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n1.pins");
        let file = PinsFile::at(path.clone());
        let pins = |n: usize| Pins::from([(format!("m{n}").parse().unwrap(), true)]);
        let mut saving: Vec<_> = (0..16).map(|n| file.save(pins(n))).collect();
        assert_eq!(file.load(), pins(15), "before any is written");
        saving.reverse();
        for saved in saving {
            saved.await.unwrap();
            assert_eq!(PinsFile::at(path.clone()).load(), pins(15));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let why = file.save(pins(16)).await.unwrap_err();
        assert!(why.contains("n1.pins"), "{why}");
        assert_eq!(file.load(), pins(16), "they hold though they cannot be written");
    }
}
