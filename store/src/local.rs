//! A model's files in a folder: which they are, and whether they are all there.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::FetchError;
use crate::names::{GgufName, is_plain, split_number};
use crate::select::{Unclear, select};

/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 10_000;
/// Longest description of a model that is read, in bytes. The index of a model with a million tensors is a tenth of that.
const JSON_MAX: u64 = 256 << 20;

/// A model whose files are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalModel {
    /// What an engine opens: the folder, or the first GGUF file.
    pub(crate) entry: PathBuf,
    /// Its files: relative name, and where it is.
    pub(crate) files: Vec<(String, PathBuf)>,
}

/// The model that is at a path: a `.gguf` file with the other parts that it belongs to, or a folder.
///
/// `quant` picks among the GGUF files of a folder. Errors: [`FetchError::NoWeights`] says what is missing.
pub(crate) fn model_at(path: &Path, quant: Option<&str>) -> Result<LocalModel, FetchError> {
    let incomplete = |missing: String| FetchError::NoWeights { repo: path.display().to_string(), missing };
    if path.is_dir() {
        let names = list(path).map_err(FetchError::io(path))?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let files = select(&names, quant).map_err(|unclear| unclear.of(&path.display().to_string(), quant))?;
        return model_of(path, files).map_err(incomplete);
    }
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| incomplete("its name is not UTF-8".to_owned()))?;
    let gguf = GgufName::parse(name).ok_or_else(|| incomplete(format!("{name} is no .gguf file")))?;
    model_of(path.parent().unwrap_or(Path::new("")), part_names(name, &gguf)).map_err(incomplete)
}

/// The names of all parts of a `.gguf` file, its own among them.
fn part_names(name: &str, gguf: &GgufName) -> Vec<String> {
    match gguf.part {
        None => vec![name.to_owned()],
        Some((_, count)) => {
            let ending = &name[name.len() - ".gguf".len()..];
            (1..=count).map(|index| format!("{}-{index:05}-of-{count:05}{ending}", gguf.stem)).collect()
        }
    }
}

/// The paths of all parts of a `.gguf` file; itself, if it is of another kind.
pub(crate) fn parts_of(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| Some((name, GgufName::parse(name)?))) {
        Some((name, gguf)) => part_names(name, &gguf).into_iter().map(|part| path.with_file_name(part)).collect(),
        None => vec![path.to_owned()],
    }
}

/// A model of these files in `root`. Errors with what is missing.
pub(crate) fn model_of(root: &Path, names: Vec<String>) -> Result<LocalModel, String> {
    let files: Vec<(String, PathBuf)> = names.into_iter().map(|name| (name.clone(), root.join(name))).collect();
    let absent: Vec<&str> = files.iter().filter(|(_, path)| !path.is_file()).map(|(name, _)| name.as_str()).collect();
    if let Some(first) = absent.first() {
        return Err(format!("{first} is missing"));
    }
    match files.first() {
        Some((name, path)) if GgufName::parse(name).is_some() => Ok(LocalModel { entry: path.clone(), files }),
        _ => {
            is_whole(root, &files)?;
            Ok(LocalModel { entry: root.to_owned(), files })
        }
    }
}

/// Is everything there that the descriptions of a model in safetensors name?
fn is_whole(root: &Path, files: &[(String, PathBuf)]) -> Result<(), String> {
    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let need = |name: &str| if names.contains(name) { Ok(()) } else { Err(format!("{name} is missing")) };
    need("config.json")?;
    need("tokenizer.json")?;
    if names.contains("model.safetensors.index.json") && !names.contains("model.safetensors") {
        let index = read_json(&root.join("model.safetensors.index.json"))?;
        let shards = index.get("weight_map").and_then(Value::as_object).ok_or("model.safetensors.index.json has no weight_map")?;
        let shards: BTreeSet<&str> = shards.values().filter_map(Value::as_str).collect();
        shards.into_iter().try_for_each(need)?;
    }
    for name in &names {
        let shard = name.strip_suffix(".safetensors").and_then(split_number);
        if let Some((stem, (_, count))) = shard {
            (1..=count).try_for_each(|index| need(&format!("{stem}-{index:05}-of-{count:05}.safetensors")))?;
        }
    }
    if names.contains("modules.json") {
        let modules = read_json(&root.join("modules.json"))?;
        for module in modules.as_array().into_iter().flatten() {
            let text = |key| module.get(key).and_then(Value::as_str).unwrap_or_default();
            if text("type").ends_with(".Pooling") || text("type").ends_with(".Dense") {
                need(&format!("{}/config.json", text("path")))?;
            }
        }
    }
    Ok(())
}

pub(crate) fn read_json(path: &Path) -> Result<Value, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(JSON_MAX).read_to_end(&mut text));
    read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{name} is not JSON: {error}"))
}

/// The files of a folder and of the folders in it, by relative name, sorted. A link to a file counts as a file; one to a folder is not followed.
/// What is hidden, unusable as a name, or beyond the ten thousandth entry is left out.
pub(crate) fn list(folder: &Path) -> std::io::Result<Vec<String>> {
    entries(folder, Path::is_file)
}

/// The links of a folder and of the folders in it that lead nowhere, listed as by [`list`].
pub(crate) fn list_dangling(folder: &Path) -> std::io::Result<Vec<String>> {
    entries(folder, |path| path.is_symlink() && !path.exists())
}

fn entries(folder: &Path, is_wanted: impl Fn(&Path) -> bool) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut left = ENTRIES_MAX;
    let mut folders = vec![String::new()];
    while let Some(within) = folders.pop() {
        for entry in fs::read_dir(folder.join(&within))? {
            if left == 0 {
                break;
            }
            left -= 1;
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = if within.is_empty() { name } else { format!("{within}/{name}") };
            if name.starts_with('.') || !is_plain(&name) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                if within.is_empty() {
                    folders.push(name);
                }
            } else if is_wanted(&entry.path()) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

impl Unclear {
    /// The error, of this repository or folder.
    pub(crate) fn of(self, repo: &str, quant: Option<&str>) -> FetchError {
        let repo = repo.to_owned();
        match self {
            Self::NoQuant(has) => FetchError::NoQuant { repo, quant: quant.unwrap_or_default().to_owned(), has },
            Self::Which(has) => FetchError::WhichQuant { repo, has },
            Self::Missing(missing) => FetchError::NoWeights { repo, missing },
        }
    }
}
