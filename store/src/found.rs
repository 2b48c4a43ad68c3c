//! Models that lie in a folder without being listed anywhere.

mod naming;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use plexus_types::ModelSource;

use self::naming::{Candidate, name_all};
pub use self::naming::{Names, NamesFile};
use crate::cache;
use crate::error::FetchError;
use crate::local::{self, model_at};
use crate::select::gguf_sets;

/// Most folders and files that one search looks at.
const ENTRIES_MAX: usize = 10_000;

/// What a look through folders has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole models, each once.
    pub models: Names,
    /// The names that are to be kept: those of `models`, and of what lies where it could not be looked at.
    pub given: Names,
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
        !self.is_certain && self.is_place_of(source)
    }

    /// Is it here that this model would lie?
    fn is_place_of(&self, source: &ModelSource) -> bool {
        let is_repo = |name: &str| name.starts_with("models--");
        let mut folders = self.folder.iter().filter_map(|name| name.to_str());
        match source {
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

/// What lies in folders: whole models only, each once, by id.
///
/// Looked at are, in each of `folders` itself, in the folders in it, and in the folders in those (`org/name`): `.gguf` files (of split ones the first
/// part; not projectors for images), and folders with `config.json` and safetensors; and, if it is a cache in the layout of the Hugging Face hub,
/// its snapshots. Nothing deeper. A link to a file counts as that file, because someone put it there; a link to a folder is not followed, so that
/// a search cannot lead out of the folder nor run in a circle. Hidden names are left out, and so are the sources that are `listed`.
///
/// Ids: that under which a model was `given` before. Else the stem of a `.gguf` file, the name of a folder, `org/name`, with `-` for what an id cannot
/// hold. Where others have that id, or would have it too, the tag of its quantization comes behind a colon, and a number if that does not tell them
/// apart. Of what a cache holds, a GGUF file always has its tag. So a name means the same for as long as its files are there, or where they lie
/// cannot be looked at, whatever else comes. Reads the disk: not for an async thread.
pub fn found(folders: &[PathBuf], listed: &Names, given: &Names) -> Found {
    let (mut candidates, mut unread) = (Vec::new(), Vec::new());
    for folder in folders {
        let search = search(folder);
        candidates.extend(search.candidates);
        unread.extend(search.unread);
    }
    let lying: BTreeSet<&ModelSource> = candidates.iter().map(|candidate| &candidate.source).collect();
    let stays = |source: &ModelSource| lying.contains(source) || unread.iter().any(|unread| unread.is_place_of(source));
    let mut given: Names = given.iter().filter(|(_, source)| stays(source)).map(|(id, source)| (id.clone(), source.clone())).collect();
    let models = name_all(candidates, listed, &given);
    given.extend(models.clone());
    Found { models, given, unread }
}

fn search(folder: &Path) -> Search {
    let mut search = Search { left: ENTRIES_MAX, ..Search::default() };
    search.within(folder, &[]);
    in_cache(folder, &mut search.candidates, &mut search.unread);
    if search.left == 0 {
        let why = format!("only a part of it was searched: it holds more than {ENTRIES_MAX} entries");
        search.unread.push(Unread { folder: folder.to_owned(), why, is_certain: false });
    }
    search
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
