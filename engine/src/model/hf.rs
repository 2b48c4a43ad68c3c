//! Model folders as Hugging Face libraries write them: `config.json`, `generation_config.json`, `*.safetensors`.

pub(crate) mod config;
mod fields;
mod rope;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use plexus_types::Sampling;
use serde_json::Value;

use super::config::ModelConfig;
use super::safetensors::{read_tensors, unusable};
use super::split::split_fused;
use super::storage::{Storage, read_text};
use super::weights::{TensorEntry, Weights};
use crate::error::EngineError;
use fields::Fields;
use tensors::Named;

const MAX_JSON_LEN: u64 = 64 << 20;

/// Reads a JSON file; `None` if it is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, EngineError> {
    let Some(text) = read_text(path, MAX_JSON_LEN)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| EngineError::malformed(path, error.to_string()))
}

/// Token ids under `eos_token_id`, which is one id or a list.
pub(crate) fn eos_ids(file: &Path, json: &Value) -> Vec<u32> {
    Fields { file, json }.ids("eos_token_id")
}

/// What the makers of a model advise: `generation_config.json` (CX-81).
pub(crate) fn read_sampling(file: &Path, json: &Value) -> Result<Sampling, EngineError> {
    let fields = Fields { file, json };
    let float = |key: &str| Ok::<_, EngineError>(fields.number(key)?.map(|x| x as f32));
    let greedy = fields.flag("do_sample")? == Some(false);
    Ok(Sampling {
        temperature: if greedy { Some(0.0) } else { float("temperature")? },
        top_k: fields.u32("top_k")?,
        top_p: float("top_p")?,
        min_p: float("min_p")?,
        repetition_penalty: float("repetition_penalty")?,
        ..Sampling::default()
    })
}

/// A folder of safetensors, opened: the configuration, and the weights, whose names and shapes are still to be checked; `None` if it has
/// no such files. Unknown tensors keep their names. A model that embeds has no use for an output projection, which is neither asked for nor
/// read.
pub(crate) fn open(folder: &Path, embeds: bool) -> Result<Option<(ModelConfig, Weights)>, EngineError> {
    let config_path = folder.join("config.json");
    let Some(json) = read_json(&config_path)? else { return Ok(None) };
    let paths = shard_paths(folder)?;
    if paths.is_empty() {
        return Ok(None);
    }
    let family = config::family(&config_path, &json)?;
    let mut files = Vec::new();
    let mut entries: BTreeMap<String, TensorEntry> = BTreeMap::new();
    for (file, path) in paths.iter().enumerate() {
        let storage = Storage::open(path)?;
        let read = read_tensors(&storage, file)?;
        for (name, dtype) in read.others {
            if let Named::Ours(_) = tensors::tensor_name(family, &name) {
                return Err(unusable(&name, dtype));
            }
        }
        for (name, entry) in read.known {
            let name = match tensors::tensor_name(family, &name) {
                Named::Ours(ours) => ours,
                Named::Foreign => name,
                Named::LeftOut => continue,
            };
            if entries.insert(name.clone(), entry).is_some() {
                return Err(EngineError::malformed(path, format!("tensor {name:?} is in two files")));
            }
        }
        files.push(storage);
    }
    let mut config = config::read_config(&config_path, &json, &|name| entries.contains_key(name))?;
    config.tied_embeddings |= embeds;
    split_fused(files[0].path(), &config, &mut entries)?;
    Ok(Some((config, Weights::new(files, entries, false))))
}

fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if let Some(index) = read_json(&index_path)? {
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| EngineError::malformed(&index_path, "weight_map is missing"))?;
        let mut names = BTreeSet::new();
        for shard in map.values() {
            let plain = |name: &&str| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
            match shard.as_str().filter(plain) {
                Some(name) => names.insert(name),
                None => return Err(EngineError::malformed(&index_path, format!("{shard} does not name a file of this folder"))),
            };
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    files_ending(folder, "safetensors")
}

/// The files of a folder with this extension, by name.
pub(crate) fn files_ending(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, EngineError> {
    let io = |source| EngineError::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
