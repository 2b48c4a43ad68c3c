//! The ids of models that nobody listed, and how they are kept over a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use plexus_types::{ModelId, ModelSource};
use tracing::warn;

use crate::disk;

/// Models by their ids.
pub type Names = BTreeMap<ModelId, ModelSource>;

/// A model that was found, and what it would be called if it were alone.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) tag: Option<String>,
    pub(super) source: ModelSource,
}

/// Gives each its id: that which it was `given` before, else one that is neither `listed` nor given. What is listed under some id already gets none.
/// Of candidates with the same source the first counts; on their order nothing else depends.
pub(super) fn name_all(mut candidates: Vec<Candidate>, listed: &Names, given: &Names) -> Names {
    let mut seen: BTreeSet<ModelSource> = listed.values().cloned().collect();
    candidates.retain(|candidate| seen.insert(candidate.source.clone()));
    candidates.sort_by(|a, b| (&a.id, &a.source).cmp(&(&b.id, &b.source)));
    let mut wishes: BTreeMap<String, usize> = BTreeMap::new();
    for candidate in &mut candidates {
        candidate.id = valid(&candidate.id);
        *wishes.entry(candidate.id.clone()).or_default() += 1;
    }
    let known: BTreeMap<&ModelSource, &ModelId> =
        given.iter().filter(|(id, _)| !listed.contains_key(*id)).map(|(id, source)| (source, id)).collect();
    let (before, new): (Vec<Candidate>, Vec<Candidate>) = candidates.into_iter().partition(|one| known.contains_key(&one.source));
    let mut named: Names = before.into_iter().map(|Candidate { source, .. }| (known[&source].clone(), source)).collect();
    for Candidate { id, tag, source } in new {
        let is_free = |id: &ModelId| ![listed, given, &named].iter().any(|names| names.contains_key(id));
        let is_told_apart = wishes[&id] == 1 && id.parse().is_ok_and(|id| is_free(&id));
        let tagged = match tag {
            Some(tag) if !is_told_apart && !id.contains(':') => valid(&format!("{id}:{tag}")),
            _ => id,
        };
        let numbered = |n: usize| if n == 1 { tagged.clone() } else { format!("{tagged}-{n}") };
        let free = (1..).map(numbered).find_map(|id| id.parse::<ModelId>().ok().filter(is_free));
        if let Some(id) = free {
            named.insert(id, source);
        }
    }
    named
}

/// The nearest text that is a model's id. Parts are cut so that a number has room behind them.
fn valid(text: &str) -> String {
    let (path, tag) = match text.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (text, None),
    };
    let path: Vec<String> = path.splitn(2, '/').map(valid_part).collect();
    let path = path.join("/");
    tag.map_or(path.clone(), |tag| format!("{path}:{}", valid_part(tag)))
}

fn valid_part(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let part: String = text.chars().map(fits).skip_while(|c| !c.is_ascii_alphanumeric()).take(90).collect();
    if part.is_empty() { "model".to_owned() } else { part }
}

/// Where names are kept that were given. Without a place they go with the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamesFile(Option<PathBuf>);

impl NamesFile {
    /// Kept in this file, as JSON: the id of each model and its source.
    pub fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// What was kept. A file that cannot be read as names is ignored, with a warning: all are named anew.
    pub fn load(&self) -> Names {
        let Some(path) = &self.0 else { return Names::new() };
        let read = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Names::new(),
            Err(error) => Err(error),
        };
        read.unwrap_or_else(|error| {
            warn!(file = %path.display(), %error,
                "by which names models were found before cannot be read: they are named anew, some perhaps otherwise; list those that must keep theirs");
            Names::new()
        })
    }

    /// Keeps them, whole or not at all. One that cannot be written is a warning: the names hold for as long as the process runs.
    pub fn save(&self, names: &Names) {
        let Some(path) = &self.0 else { return };
        let mut text = serde_json::to_vec_pretty(names).expect("plain data is JSON");
        text.push(b'\n');
        if let Err(error) = disk::write_whole(path, &text) {
            warn!(file = %path.display(), %error, "the names of models that were found cannot be kept over a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(path: &str) -> ModelSource {
        ModelSource::Path(path.into())
    }

    fn candidate(id: &str, tag: Option<&str>, path: &str) -> Candidate {
        Candidate { id: id.to_owned(), tag: tag.map(str::to_owned), source: at(path) }
    }

    fn names(names: &[(&str, &str)]) -> Names {
        names.iter().map(|(id, path)| (id.parse().unwrap(), at(path))).collect()
    }

    #[test]
    fn a_name_stays_with_its_files_whatever_comes_beside_them() {
        let (file, folder) = (candidate("dup", Some("Q8_0"), "/dup.gguf"), candidate("dup", None, "/dup"));
        let alone = name_all(vec![file.clone()], &Names::new(), &Names::new());
        assert_eq!(alone, names(&[("dup", "/dup.gguf")]));
        let both = name_all(vec![folder.clone(), file.clone()], &Names::new(), &alone);
        assert_eq!(both, names(&[("dup", "/dup.gguf"), ("dup-2", "/dup")]));
        assert_eq!(name_all(vec![folder.clone(), file.clone()], &Names::new(), &both), both, "nor after that");
        assert_eq!(name_all(vec![folder.clone()], &Names::new(), &both), names(&[("dup-2", "/dup")]), "nor when the other goes");
        let other = candidate("dup", Some("Q4_0"), "/x/dup.gguf");
        let third = name_all(vec![other, folder, file], &Names::new(), &both);
        assert_eq!(third, names(&[("dup", "/dup.gguf"), ("dup-2", "/dup"), ("dup:Q4_0", "/x/dup.gguf")]));
    }

    #[test]
    fn a_name_that_is_listed_or_of_what_cannot_be_seen_is_nobody_elses() {
        let file = || vec![candidate("m", Some("Q8_0"), "/m.gguf")];
        let elsewhere = names(&[("m", "/away/m.gguf")]);
        assert_eq!(name_all(file(), &Names::new(), &elsewhere), names(&[("m:Q8_0", "/m.gguf")]));
        assert_eq!(name_all(file(), &elsewhere, &Names::new()), names(&[("m:Q8_0", "/m.gguf")]));
        assert_eq!(name_all(file(), &elsewhere, &names(&[("m", "/m.gguf")])), names(&[("m:Q8_0", "/m.gguf")]), "what is listed goes first");
        assert_eq!(name_all(file(), &names(&[("listed", "/m.gguf")]), &Names::new()), Names::new(), "it has a name");
    }

    #[test]
    fn names_are_kept_and_a_damaged_file_is_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n1.found");
        let file = NamesFile::at(path.clone());
        assert_eq!(file.load(), Names::new());
        let mut given = names(&[("a/b:q4", "/with a space"), ("c", "/ü")]);
        given.insert("d".parse().unwrap(), "hf:org/name@main:Q8_0".parse().unwrap());
        file.save(&given);
        assert_eq!(NamesFile::at(path.clone()).load(), given);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        for damaged in ["", "{\"a\": \"file:/a\"", "{\"not an id\": \"file:/a\"}", "{\"a\": \"https://a\"}", "\u{0}"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(file.load(), Names::new(), "{damaged}");
        }
        NamesFile::default().save(&given);
        assert_eq!(NamesFile::default().load(), Names::new());
    }

    proptest! {
        #[test]
        fn any_names_become_valid_ids_each_once_and_stay(
            names in prop::collection::vec(("[a-b/:. ü-]{0,6}", prop::option::of("[qQ:/-]{0,3}")), 0..12),
            n_before in 0..12_usize,
        ) {
            let candidate = |(at, (id, tag)): (usize, &(String, Option<String>))| Candidate {
                id: id.clone(),
                tag: tag.clone(),
                source: ModelSource::Path(format!("/{at}").into()),
            };
            let candidates: Vec<Candidate> = names.iter().enumerate().map(candidate).collect();
            let backwards: Vec<Candidate> = candidates.iter().rev().cloned().collect();
            let before = name_all(candidates.iter().take(n_before).cloned().collect(), &Names::new(), &Names::new());
            let named = name_all(candidates, &Names::new(), &before);
            prop_assert_eq!(named.len(), names.len());
            prop_assert!(before.iter().all(|(id, source)| named.get(id) == Some(source)), "{:?} became {:?}", before, named);
            prop_assert_eq!(&named, &name_all(backwards.clone(), &Names::new(), &before));
            prop_assert_eq!(&named, &name_all(backwards, &Names::new(), &named));
        }
    }
}
