//! A GGUF model in several files, as the larger ones are published: `name-00001-of-00003.gguf` and so on. The first has the metadata of the model;
//! all have tensors, and say which of how many they are.

use std::path::{Path, PathBuf};

use super::Gguf;
use crate::error::EngineError;
use crate::model::storage::Storage;

/// Opens a GGUF file and those that belong with it, and puts their tensors together.
pub(in crate::model) fn open_set(path: &Path) -> Result<(Vec<Storage>, Gguf), EngineError> {
    let storage = Storage::open(path)?;
    let mut gguf = Gguf::read(&storage, 0)?;
    let n_files = gguf.u32("split.count").unwrap_or(1).max(1);
    let mut files = vec![storage];
    if n_files == 1 {
        return Ok((files, gguf));
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&end(1, n_files)).filter(|_| gguf.u32("split.no") == Some(0));
    let stem = stem.ok_or_else(|| {
        let what = format!("{}, which is not the first of a model's {n_files} files", path.display());
        EngineError::unsupported(what, format!("the path of the first, which ends with {}", end(1, n_files)))
    })?;
    for number in 2..=n_files {
        let path = path.with_file_name(format!("{stem}{}", end(number, n_files)));
        let storage = Storage::open(&path)?;
        let part = Gguf::read(&storage, files.len())?;
        if (part.u32("split.no"), part.u32("split.count")) != (Some(number - 1), Some(n_files)) {
            return Err(EngineError::malformed(&path, format!("it does not say that it is number {number} of {n_files}")));
        }
        for (name, tensor) in part.tensors {
            if gguf.tensors.insert(name.clone(), tensor).is_some() {
                return Err(EngineError::malformed(&path, format!("tensor {name:?} is in two files")));
            }
        }
        files.push(storage);
    }
    Ok((files, gguf))
}

/// The first of these files by name, if by their names they are one model.
pub(in crate::model) fn first_of_set(files: &[PathBuf]) -> Option<&Path> {
    let n_files = u32::try_from(files.len()).ok()?;
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str().map(str::to_owned));
    let first = files.first()?;
    let stem = name(first)?.strip_suffix(&end(1, n_files))?.to_owned();
    let belongs = |(number, path): (u32, &PathBuf)| name(path) == Some(format!("{stem}{}", end(number, n_files)));
    (1..).zip(files).all(belongs).then_some(first)
}

/// How the name of a part ends.
fn end(number: u32, n_files: u32) -> String {
    format!("-{number:05}-of-{n_files:05}.gguf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_one_model_only_if_all_of_it_is_there() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let whole = paths(&["x/a-00001-of-00002.gguf", "x/a-00002-of-00002.gguf"]);
        assert_eq!(first_of_set(&whole), Some(Path::new("x/a-00001-of-00002.gguf")));
        for names in [
            &["a-00001-of-00003.gguf", "a-00002-of-00003.gguf"][..],
            &["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"],
            &["a.gguf", "b.gguf"],
        ] {
            assert_eq!(first_of_set(&paths(names)), None);
        }
    }
}
