//! Whether a model's files have changed, or are those of another node, is told without reading all of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use alone::Alone;
use plexus_store::{Stamp, Store, StoreConfig};
use plexus_types::{FilesDigest, ModelSource};
use tempfile::TempDir;

mod alone;

/// A store that speaks to nobody.
fn alone(folder: &Path) -> Store {
    Store::new(StoreConfig::new(folder.to_owned()), Arc::<Alone>::default())
}

fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    let store = TempDir::new().unwrap();
    alone(store.path()).stamp(&ModelSource::Path(path.to_owned()))
}

fn digest(path: &Path) -> Option<FilesDigest> {
    let store = TempDir::new().unwrap();
    alone(store.path()).digest(&ModelSource::Path(path.to_owned())).unwrap()
}

/// Gives a file other bytes of the same number, and the time of change that it had.
fn replace(path: &Path, bytes: &str) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let new = path.with_file_name("new");
    fs::write(&new, bytes).unwrap();
    fs::File::options().write(true).open(&new).unwrap().set_modified(modified).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn every_part_of_a_split_file_counts() {
    let folder = TempDir::new().unwrap();
    let part = |n: u32| folder.path().join(format!("m-{n:05}-of-00003.gguf"));
    assert_eq!(stamp(&part(1)).unwrap(), None, "it is not here");
    fs::write(part(1), "1").unwrap();
    let first_alone = stamp(&part(1)).unwrap();
    for n in [2, 3] {
        fs::write(part(n), "n").unwrap();
    }
    let whole = stamp(&part(1)).unwrap();
    assert_ne!(first_alone, whole, "the others came");
    fs::write(folder.path().join("other.gguf"), "x").unwrap();
    assert_eq!(stamp(&part(1)).unwrap(), whole, "what is not its own does not matter");
    replace(&part(2), "m");
    let replaced = stamp(&part(1)).unwrap();
    assert_ne!(replaced, whole, "its second part was replaced");
    fs::remove_file(part(3)).unwrap();
    assert_ne!(stamp(&part(1)).unwrap(), replaced);
}

#[test]
fn every_file_of_a_folder_counts_and_so_does_what_a_link_leads_to() {
    let (folder, blobs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::write(folder.path().join("1_Pooling/config.json"), "{}").unwrap();
    fs::write(blobs.path().join("blob"), "1").unwrap();
    symlink(blobs.path().join("blob"), folder.path().join("model.safetensors")).unwrap();
    let mut stamps = vec![stamp(folder.path()).unwrap()];
    assert_eq!(stamp(folder.path()).unwrap(), stamps[0], "nothing has changed");
    fs::write(folder.path().join("config.json"), "{ }").unwrap();
    stamps.push(stamp(folder.path()).unwrap());
    replace(&folder.path().join("1_Pooling/config.json"), "[]");
    stamps.push(stamp(folder.path()).unwrap());
    replace(&blobs.path().join("blob"), "2");
    stamps.push(stamp(folder.path()).unwrap());
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    stamps.push(stamp(folder.path()).unwrap());
    assert!(stamps.windows(2).all(|pair| pair[0].is_some() && pair[0] != pair[1]), "{stamps:?}");
}

#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    symlink(&path, &path).unwrap();
    let error = stamp(&path).unwrap_err();
    assert!(error.to_string().contains("m.gguf cannot be looked at"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(stamp(&path).unwrap(), None);
}

#[test]
fn files_that_hold_the_same_have_one_digest_wherever_they_lie_and_others_another() {
    let [one, two] = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (here, there) = (one.path().join("x.gguf"), two.path().join("y.gguf"));
    assert_eq!(digest(&here), None, "it is not here");
    let bytes: Vec<u8> = (0..3u32 << 20).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    fs::write(&here, &bytes).unwrap();
    fs::write(&there, &bytes).unwrap();
    assert!(digest(&here).is_some() && digest(&here) == digest(&there));
    let other: Vec<u8> = bytes.iter().enumerate().map(|(i, byte)| if i > 2 << 20 { byte ^ 1 } else { *byte }).collect();
    fs::write(&there, other).unwrap();
    assert_ne!(digest(&here), digest(&there), "a third of it is another");
    fs::write(&there, &bytes[..bytes.len() - 1]).unwrap();
    assert_ne!(digest(&here), digest(&there), "it is shorter");

    for (folder, names) in [(&one, ["config.json", "tokenizer.json"]), (&two, ["tokenizer.json", "config.json"])] {
        fs::create_dir(folder.path().join("m")).unwrap();
        for name in names {
            fs::write(folder.path().join("m").join(name), name).unwrap();
        }
        fs::write(folder.path().join("m/model.safetensors"), &bytes).unwrap();
    }
    let [here, there] = [one.path().join("m"), two.path().join("m")];
    assert!(digest(&here).is_some() && digest(&here) == digest(&there));
    fs::write(here.join("config.json"), "{}").unwrap();
    assert_ne!(digest(&here), digest(&there), "its configuration is another");
}
