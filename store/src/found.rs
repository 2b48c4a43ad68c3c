//! Models that lie in a folder without being listed anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use plexus_types::{ModelId, ModelSource};

use crate::cache;
use crate::error::FetchError;
use crate::local::{self, model_at};
use crate::select::gguf_sets;

/// Most folders and files that one search looks at.
const ENTRIES_MAX: usize = 10_000;

/// A model that was found.
struct Candidate {
    id: String,
    tag: Option<String>,
    source: ModelSource,
}

/// What a look through a folder has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole models, each once, by id.
    pub models: Vec<(ModelId, ModelSource)>,
    /// What could not be looked at: of what lies there it is not known whether it still does.
    pub unread: Vec<Unread>,
}

/// A folder that could not be read, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Which folder.
    pub folder: PathBuf,
    /// Why, in words.
    pub why: String,
    /// It is not there, or not for this user: nothing that lies in it could be served. Else a later look may see more.
    pub is_certain: bool,
}

impl Unread {
    fn new(folder: &Path, error: &io::Error) -> Self {
        Self { folder: folder.to_owned(), why: error.to_string(), is_certain: is_certain(error) }
    }

    /// May this model lie there all the same?
    pub fn hides(&self, source: &ModelSource) -> bool {
        let is_repo = |name: &str| name.starts_with("models--");
        let mut folders = self.folder.iter().filter_map(|name| name.to_str());
        !self.is_certain
            && match source {
                ModelSource::Embedded => false,
                ModelSource::Path(path) => path.starts_with(&self.folder),
                // Of a whole cache, or of its repository.
                ModelSource::Hub(hub) => folders.find(|name| is_repo(name)).is_none_or(|name| name == cache::folder_name(&hub.repo)),
            }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.folder.display(), self.why)
    }
}

/// What lies in a folder: whole models only, each once, by id.
///
/// Looked at are, in `folder` itself, in the folders in it, and in the folders in those (`org/name`): `.gguf` files (of split ones the first part;
/// not projectors for images), and folders with `config.json` and safetensors; and, if `folder` is a cache in the layout of the Hugging Face hub,
/// its snapshots. Nothing deeper. A link to a file counts as that file, because someone put it there; a link to a folder is not followed, so that
/// a search cannot lead out of the folder nor run in a circle. Hidden names are left out.
///
/// Ids: the stem of a `.gguf` file, the name of a folder, `org/name`, with `-` for what an id cannot hold. Where two would be the same, each gets
/// the tag of its quantization behind a colon, and a number if that does not tell them apart. Of what a cache holds, a GGUF file always has its
/// tag. Reads the disk: not for an async thread.
pub fn found(folder: &Path) -> Found {
    let mut search = Search { left: ENTRIES_MAX, ..Search::default() };
    search.within(folder, &[]);
    in_cache(folder, &mut search.candidates, &mut search.unread);
    if search.left == 0 {
        let why = format!("only a part of it was searched: it holds more than {ENTRIES_MAX} entries");
        search.unread.push(Unread { folder: folder.to_owned(), why, is_certain: false });
    }
    Found { models: name_all(search.candidates), unread: search.unread }
}

/// A search through a folder.
#[derive(Default)]
struct Search {
    /// How many entries may still be looked at.
    left: usize,
    candidates: Vec<Candidate>,
    unread: Vec<Unread>,
}

impl Search {
    fn within(&mut self, folder: &Path, within: &[&str]) {
        let (folders, files) = match self.names(folder) {
            Ok(names) => names,
            // What is no longer there by now lies in the folder no longer. Of the outermost its owner wants to know.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !within.is_empty() => return,
            Err(error) => return self.unread.push(Unread::new(folder, &error)),
        };
        if !within.is_empty() && files.contains("config.json") && files.iter().any(|name| name.ends_with(".safetensors")) {
            match model_at(folder, None) {
                Ok(_) => self.candidates.push(Candidate { id: within.join("/"), tag: None, source: ModelSource::Path(folder.to_owned()) }),
                Err(FetchError::Io { source, .. }) => self.unread.push(Unread::new(folder, &source)),
                Err(_) => {} // it is none, or not whole
            }
            return; // what lies deeper belongs to it
        }
        let sets = gguf_sets(files.iter().map(String::as_str));
        for set in sets.iter().filter(|set| set.whole) {
            let id = if within.len() == 2 { within.join("/") } else { set.stem.clone() };
            self.candidates.push(Candidate { id, tag: set.tag.clone(), source: ModelSource::Path(folder.join(&set.files[0])) });
        }
        if within.len() < 2 {
            for name in &folders {
                let within: Vec<&str> = within.iter().copied().chain([name.as_str()]).collect();
                self.within(&folder.join(name), &within);
            }
        }
    }

    /// The folders and files in a folder. Where some entry cannot be looked at, the others count, and it is noted that there may be more.
    fn names(&mut self, folder: &Path) -> io::Result<(BTreeSet<String>, BTreeSet<String>)> {
        let (mut folders, mut files) = (BTreeSet::new(), BTreeSet::new());
        let mut failed = None;
        for entry in fs::read_dir(folder)? {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') || name.starts_with("models--") {
                continue;
            }
            match entry.file_type().and_then(|kind| if kind.is_dir() { Ok((true, false)) } else { Ok((false, is_file(&entry.path())?)) }) {
                Ok((true, _)) => drop(folders.insert(name)),
                Ok((false, is_file)) => drop(is_file.then(|| files.insert(name))),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        self.unread.extend(failed.map(|error| Unread::new(folder, &error)));
        Ok((folders, files))
    }
}

/// Is it a file, or a link to one? A link that leads nowhere is none.
fn is_file(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if is_certain(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does this say what lies at a path, or that it is not for this user, rather than that it could not be looked at just now?
pub(crate) fn is_certain(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
}

fn in_cache(cache: &Path, candidates: &mut Vec<Candidate>, unread: &mut Vec<Unread>) {
    let mut failed = |folder: &Path, error: &io::Error| {
        if !is_certain(error) && !unread.iter().any(|known| known.folder == folder) {
            unread.push(Unread::new(folder, error));
        }
    };
    for listed in cache::list(cache, ENTRIES_MAX, &mut failed) {
        // The first snapshot that holds a model is the one that its plain name means.
        let mut seen = BTreeSet::new();
        for (revision, snapshot) in &listed.snapshots {
            let at = if revision == "main" { String::new() } else { format!("@{revision}") };
            let mut add = |tag: Option<&str>, entry: PathBuf| {
                let behind = tag.map_or(String::new(), |tag| format!(":{tag}"));
                let id = format!("{}{behind}", listed.repo);
                if seen.insert(id.clone()) {
                    // Old repositories without an organisation cannot be written as a source of a hub.
                    let source = format!("hf:{}{at}{behind}", listed.repo).parse().unwrap_or(ModelSource::Path(entry));
                    candidates.push(Candidate { id, tag: None, source });
                }
            };
            let names = match local::list(snapshot) {
                Ok(names) => names,
                Err(error) => {
                    failed(snapshot, &error);
                    continue;
                }
            };
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let has_safetensors = names.iter().any(|name| name.ends_with(".safetensors"));
            if has_safetensors && let Ok(model) = model_at(snapshot, None) {
                add(None, model.entry);
            }
            for set in gguf_sets(names.iter().copied()).into_iter().filter(|set| set.whole) {
                match &set.tag {
                    Some(tag) if model_at(snapshot, Some(tag)).is_ok() => add(Some(tag), snapshot.join(&set.files[0])),
                    None if model_at(snapshot, None).is_ok() => add(None, snapshot.join(&set.files[0])),
                    _ => {} // nothing that it is called by would mean this file alone
                }
            }
        }
    }
}

/// Gives each its id. Depends on the candidates only, not on their order.
fn name_all(mut candidates: Vec<Candidate>) -> Vec<(ModelId, ModelSource)> {
    candidates.sort_by(|a, b| (&a.id, &a.source).cmp(&(&b.id, &b.source)));
    candidates.dedup_by(|a, b| a.source == b.source);
    let mut wishes: BTreeMap<String, usize> = BTreeMap::new();
    for candidate in &mut candidates {
        candidate.id = valid(&candidate.id);
        *wishes.entry(candidate.id.clone()).or_default() += 1;
    }
    let mut named = BTreeMap::new();
    for Candidate { id, tag, source } in candidates {
        let tagged = match tag {
            Some(tag) if wishes[&id] > 1 && !id.contains(':') => valid(&format!("{id}:{tag}")),
            _ => id,
        };
        let numbered = |n: usize| if n == 1 { tagged.clone() } else { format!("{tagged}-{n}") };
        let free = (1..).map(numbered).find_map(|id| id.parse::<ModelId>().ok().filter(|id| !named.contains_key(id)));
        if let Some(id) = free {
            named.insert(id, source);
        }
    }
    named.into_iter().collect()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_names_become_valid_ids_each_once(
            names in prop::collection::vec(("[a-b/:. ü-]{0,6}", prop::option::of("[qQ:/-]{0,3}")), 0..12),
        ) {
            let candidate = |(at, (id, tag)): (usize, &(String, Option<String>))| Candidate {
                id: id.clone(),
                tag: tag.clone(),
                source: ModelSource::Path(format!("/{at}").into()),
            };
            let candidates: Vec<Candidate> = names.iter().enumerate().map(candidate).collect();
            let backwards: Vec<Candidate> = names.iter().enumerate().rev().map(candidate).collect();
            let named = name_all(candidates);
            prop_assert_eq!(named.len(), names.len());
            prop_assert_eq!(named, name_all(backwards));
        }
    }
}
