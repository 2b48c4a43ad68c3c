//! What lies in model folders.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use plexus_store::found;
use plexus_types::ModelSource;
use tempfile::TempDir;

fn lay(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }
}

/// Ids, and sources with the folder cut off.
fn listed(folder: &Path) -> Vec<(String, String)> {
    let prefix = format!("file:{}/", folder.display());
    found(folder).into_iter().map(|(id, source)| (id.to_string(), source.to_string().replace(&prefix, ""))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(id, source)| ((*id).to_owned(), (*source).to_owned())).collect()
}

#[test]
fn models_are_found_in_every_usual_arrangement() {
    let folder = TempDir::new().unwrap();
    lay(
        folder.path(),
        &[
            "pip.gguf",
            "big-Q8_0-00001-of-00002.gguf",
            "big-Q8_0-00002-of-00002.gguf",
            "half-00001-of-00002.gguf",
            "mmproj-F16.gguf",
            "notes.txt",
            ".hidden.gguf",
            "plain name/config.json",
            "plain name/tokenizer.json",
            "plain name/model.safetensors",
            "no-weights/config.json",
            "no-tokenizer/config.json",
            "no-tokenizer/model.safetensors",
            "Qwen/Qwen3/config.json",
            "Qwen/Qwen3/tokenizer.json",
            "Qwen/Qwen3/model.safetensors",
            "Qwen/Qwen3-GGUF/Qwen3-Q4_K_M.gguf",
            "Qwen/Qwen3-GGUF/Qwen3-Q8_0.gguf",
            "a/b/c/too-deep.gguf",
        ],
    );
    let wanted = [
        ("Qwen/Qwen3", "Qwen/Qwen3"),
        ("Qwen/Qwen3-GGUF:Q4_K_M", "Qwen/Qwen3-GGUF/Qwen3-Q4_K_M.gguf"),
        ("Qwen/Qwen3-GGUF:Q8_0", "Qwen/Qwen3-GGUF/Qwen3-Q8_0.gguf"),
        ("big-Q8_0", "big-Q8_0-00001-of-00002.gguf"),
        ("pip", "pip.gguf"),
        ("plain-name", "plain name"),
    ];
    assert_eq!(listed(folder.path()), pairs(&wanted));
    assert_eq!(found(&folder.path().join("missing")), vec![]);
}

#[test]
fn names_that_collide_are_told_apart() {
    let folder = TempDir::new().unwrap();
    lay(folder.path(), &["x/m-Q8_0.gguf", "y/m-Q8_0.gguf", "ä b.gguf", "ö b.gguf"]);
    let wanted = [("b", "ä b.gguf"), ("b-2", "ö b.gguf"), ("m-Q8_0:Q8_0", "x/m-Q8_0.gguf"), ("m-Q8_0:Q8_0-2", "y/m-Q8_0.gguf")];
    assert_eq!(listed(folder.path()), pairs(&wanted));
}

#[test]
fn links_to_files_count_and_links_to_folders_do_not() {
    let (folder, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    lay(outside.path(), &["far.gguf", "org/name/config.json", "org/name/tokenizer.json", "org/name/model.safetensors"]);
    symlink(outside.path().join("far.gguf"), folder.path().join("near.gguf")).unwrap();
    symlink(outside.path(), folder.path().join("elsewhere")).unwrap();
    symlink(folder.path(), folder.path().join("circle")).unwrap();
    symlink(outside.path().join("gone"), folder.path().join("dangling.gguf")).unwrap();
    assert_eq!(listed(folder.path()), pairs(&[("near", "near.gguf")]));
}

#[test]
fn a_cache_of_the_hub_is_listed_by_its_repositories() {
    let cache = TempDir::new().unwrap();
    let (one, two) = ("1".repeat(40), "2".repeat(40));
    let at = |repo: &str, commit: &str, name: &str| format!("models--{repo}/snapshots/{commit}/{name}");
    let whole = ["config.json", "tokenizer.json", "model.safetensors"];
    let names: Vec<String> = (whole.iter().map(|name| at("org--whole", &one, name)))
        .chain(whole.iter().map(|name| at("gpt2", &one, name)))
        .chain(whole[..2].iter().map(|name| at("org--half", &one, name)))
        .chain([at("org--gguf", &one, "m-Q8_0.gguf"), at("org--gguf", &two, "m-Q4_0.gguf"), at("org--gguf", &two, "m-Q8_0.gguf")])
        .collect();
    lay(cache.path(), &names.iter().map(String::as_str).collect::<Vec<_>>());
    for repo in ["org--whole", "org--half", "gpt2", "org--gguf"] {
        fs::create_dir_all(cache.path().join(format!("models--{repo}/refs"))).unwrap();
        fs::write(cache.path().join(format!("models--{repo}/refs/main")), &one).unwrap();
    }
    let wanted = [
        ("gpt2", format!("models--gpt2/snapshots/{one}")),
        ("org/gguf:Q4_0", format!("hf:org/gguf@{two}:Q4_0")),
        ("org/gguf:Q8_0", "hf:org/gguf:Q8_0".to_owned()),
        ("org/whole", "hf:org/whole".to_owned()),
    ];
    let wanted: Vec<(String, String)> = wanted.into_iter().map(|(id, source)| (id.to_owned(), source)).collect();
    assert_eq!(listed(cache.path()), wanted);
    let hub = found(cache.path()).into_iter().find(|(id, _)| id.as_str() == "org/whole").unwrap().1;
    assert!(matches!(hub, ModelSource::Hub(hub) if hub.revision.is_none()));
}
