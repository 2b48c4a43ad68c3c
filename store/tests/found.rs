//! What lies in model folders.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use plexus_store::{Found, Names};
use plexus_types::ModelSource;
use tempfile::TempDir;

fn lay(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }
}

/// What lies in a folder where nothing is listed and nothing was found before.
fn found(folder: &Path) -> Found {
    plexus_store::found(&[folder.to_owned()], &Names::new(), &Names::new())
}

/// Ids, and sources with the folder cut off.
fn listed(folder: &Path) -> Vec<(String, String)> {
    let prefix = format!("file:{}/", folder.display());
    found(folder).models.into_iter().map(|(id, source)| (id.to_string(), source.to_string().replace(&prefix, ""))).collect()
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
}

#[test]
fn names_that_collide_are_told_apart() {
    let folder = TempDir::new().unwrap();
    lay(folder.path(), &["x/m-Q8_0.gguf", "y/m-Q8_0.gguf", "ä b.gguf", "ö b.gguf"]);
    let wanted = [("b", "ä b.gguf"), ("b-2", "ö b.gguf"), ("m-Q8_0:Q8_0", "x/m-Q8_0.gguf"), ("m-Q8_0:Q8_0-2", "y/m-Q8_0.gguf")];
    assert_eq!(listed(folder.path()), pairs(&wanted));
}

#[test]
fn a_name_is_kept_while_its_folder_cannot_be_read_or_is_not_there_and_is_free_once_its_files_are_gone() {
    let root = TempDir::new().unwrap();
    let [one, two] = ["one", "two"].map(|name| root.path().join(name));
    let folders = [one.clone(), two.clone()];
    let found = |given: &Names| plexus_store::found(&folders, &Names::new(), given);
    let source = |found: &Names| found.get(&"m".parse().unwrap()).map(ToString::to_string);
    lay(root.path(), &["two/m.gguf"]);
    fs::create_dir(&one).unwrap();
    let first = found(&Names::new());
    let its = Some(format!("file:{}", two.join("m.gguf").display()));
    assert_eq!(source(&first.models), its);

    let away = root.path().join("away");
    fs::rename(&two, &away).unwrap();
    lay(root.path(), &["one/m.gguf"]);
    let second = found(&first.given);
    assert_eq!(second.models.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["m-2"], "its disk may not be mounted yet");
    fs::rename(&away, &two).unwrap();
    let third = found(&second.given);
    assert_eq!((third.models.len(), source(&third.models)), (2, its));

    fs::remove_file(two.join("m.gguf")).unwrap();
    let fourth = found(&third.given);
    assert_eq!(fourth.given.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["m-2"]);
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
    let hub = found(cache.path()).models.into_iter().find(|(id, _)| id.as_str() == "org/whole").unwrap().1;
    assert!(matches!(hub, ModelSource::Hub(hub) if hub.revision.is_none()));
}

/// A folder whose path is as long as the system takes: what lies in it can be made and listed, and not what lies in that.
fn deep(folder: &Path) -> std::path::PathBuf {
    let mut deep = folder.to_owned();
    while deep.as_os_str().len() < 3900 {
        let left = 3900 - deep.as_os_str().len();
        deep.push("d".repeat(left.min(200)));
    }
    fs::create_dir_all(&deep).unwrap();
    deep
}

#[test]
fn what_could_not_be_read_is_told_apart_from_what_is_not_there() {
    let folder = TempDir::new().unwrap();
    let missing = found(&folder.path().join("missing"));
    assert!(missing.models.is_empty() && missing.unread[0].is_certain, "{missing:?}");
    let circle = folder.path().join("circle");
    symlink(&circle, &circle).unwrap();
    let unread = found(&circle);
    let within = |name: &str| ModelSource::Path(circle.join(name));
    assert!(unread.models.is_empty() && unread.unread[0].hides(&within("m.gguf")), "{unread:?}");
    assert!(!unread.unread[0].hides(&ModelSource::Path(folder.path().join("m.gguf"))), "that lies elsewhere");
    assert!(!missing.unread[0].hides(&ModelSource::Path(folder.path().join("missing/m.gguf"))), "nothing lies there");
    fs::remove_file(&circle).unwrap();
    lay(&circle, &["m.gguf"]);
    assert!(matches!(found(&circle), Found { models, unread, .. } if models.len() == 1 && unread.is_empty()));
}

#[test]
fn one_folder_that_cannot_be_read_hides_its_own_models_only() {
    let temporary = TempDir::new().unwrap();
    let root = deep(temporary.path());
    let long = "x".repeat(250);
    assert!(std::process::Command::new("mkdir").current_dir(&root).arg(&long).status().unwrap().success());
    lay(&root, &["near.gguf", "sub/far.gguf"]);
    let Found { models, unread, .. } = found(&root);
    let ids: Vec<&str> = models.keys().map(|id| id.as_str()).collect();
    assert_eq!(ids, ["far", "near"]);
    let [unread] = &unread[..] else { panic!("{unread:?}") };
    let source = |path: &str| ModelSource::Path(root.join(path));
    assert!(unread.hides(&source(&format!("{long}/m.gguf"))) && !unread.hides(&source("near.gguf")), "{unread:?}");
}

#[test]
fn a_repository_of_a_cache_that_cannot_be_read_hides_its_own_models_only() {
    let cache = TempDir::new().unwrap();
    let snapshots = cache.path().join("models--org--name/snapshots");
    fs::create_dir_all(snapshots.parent().unwrap()).unwrap();
    symlink(&snapshots, &snapshots).unwrap();
    let [unread] = &found(cache.path()).unread[..] else { panic!("that its snapshots cannot be read") };
    let hides = |source: &str| unread.hides(&source.parse().unwrap());
    assert!(hides("hf:org/name") && !hides("hf:org/other"), "{unread:?}");
}
