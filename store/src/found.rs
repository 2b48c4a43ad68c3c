//! Models that lie in a folder without being listed anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use plexus_types::{ModelId, ModelSource};
use tracing::warn;

use crate::cache;
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
pub fn found(folder: &Path) -> Vec<(ModelId, ModelSource)> {
    let mut candidates = Vec::new();
    let mut left = ENTRIES_MAX;
    search(folder, &[], &mut left, &mut candidates);
    in_cache(folder, &mut candidates);
    if left == 0 {
        warn!(folder = %folder.display(), entries_max = ENTRIES_MAX, "only a part of a model folder was searched: it holds too much");
    }
    name_all(candidates)
}

fn search(folder: &Path, within: &[&str], left: &mut usize, candidates: &mut Vec<Candidate>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return warn!(folder = %folder.display(), %error, "a model folder could not be read"),
    };
    let (mut folders, mut files) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries.flatten() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if name.starts_with('.') || name.starts_with("models--") {
            continue;
        }
        if is_folder {
            folders.insert(name);
        } else if entry.path().is_file() {
            files.insert(name);
        }
    }
    if !within.is_empty() && files.contains("config.json") && files.iter().any(|name| name.ends_with(".safetensors")) {
        if model_at(folder, None).is_ok() {
            candidates.push(Candidate { id: within.join("/"), tag: None, source: ModelSource::Path(folder.to_owned()) });
        }
        return; // what lies deeper belongs to it
    }
    let sets = gguf_sets(files.iter().map(String::as_str));
    for set in sets.iter().filter(|set| set.whole) {
        let id = if within.len() == 2 { within.join("/") } else { set.stem.clone() };
        candidates.push(Candidate { id, tag: set.tag.clone(), source: ModelSource::Path(folder.join(&set.files[0])) });
    }
    if within.len() < 2 {
        for name in &folders {
            let within: Vec<&str> = within.iter().copied().chain([name.as_str()]).collect();
            search(&folder.join(name), &within, left, candidates);
        }
    }
}

fn in_cache(cache: &Path, candidates: &mut Vec<Candidate>) {
    for listed in cache::list(cache, ENTRIES_MAX) {
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
            let Ok(names) = local::list(snapshot) else { continue };
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
