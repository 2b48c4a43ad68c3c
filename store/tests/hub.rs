//! Downloads from a mirror on loopback that speaks the hub's API.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use alone::Alone;
use mirror::{COMMIT, Faults, Mirror, git_sha1, sha256};
use plexus_store::{FetchError, KEPT_FOR, Located, Origin, Store, StoreConfig, Token};
use plexus_types::{Bytes, ModelSource};
use tempfile::TempDir;

mod alone;
mod mirror;

fn config(mirror: &Mirror, folder: &Path) -> StoreConfig {
    StoreConfig {
        hub_caches: vec![folder.join("cache")],
        endpoint: mirror.endpoint(),
        patience: Duration::from_secs(1),
        ..StoreConfig::new(folder.join("store"))
    }
}

fn store(mirror: &Mirror, folder: &Path) -> Store {
    Store::new(config(mirror, folder), Arc::<Alone>::default())
}

fn source(text: &str) -> ModelSource {
    text.parse().unwrap()
}

/// Bytes that do not repeat within any part.
fn content(len: usize, seed: u8) -> Vec<u8> {
    let mut hasher = seed as u64 + 1;
    (0..len.div_ceil(8))
        .flat_map(|_| {
            hasher = hasher.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (hasher ^ (hasher >> 29)).to_le_bytes()
        })
        .take(len)
        .collect()
}

fn safetensors() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"read me".to_vec()),
        ("config.json", b"{\"model_type\": \"qwen3\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("1_Pooling/config.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", content(300_000, 1)),
        ("pytorch_model.bin", content(1000, 2)),
    ]
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() { paths.extend(files_in(&entry.path())) } else { paths.push(entry.path()) }
    }
    paths.sort();
    paths
}

fn leftovers(folder: &Path) -> Vec<PathBuf> {
    files_in(folder).into_iter().filter(|path| path.to_string_lossy().contains("incomplete")).collect()
}

#[tokio::test]
async fn a_model_comes_into_the_cache_as_other_clients_lay_it_out() {
    let (mirror, folder) = (Mirror::start("org/name", safetensors()).await, TempDir::new().unwrap());
    let store = store(&mirror, folder.path());
    assert_eq!(store.locate(&source("hf:org/name")), Located::Absent);
    let sizes: usize =
        safetensors().iter().filter(|(name, _)| !matches!(*name, "README.md" | "pytorch_model.bin")).map(|(_, b)| b.len()).sum();
    assert_eq!(store.size(&source("hf:org/name")).await.unwrap().bytes, Bytes(sizes as u64));

    let fetch = store.fetch(&source("hf:org/name"), &[]);
    let watched = fetch.clone();
    let path = fetch.done().await.unwrap();
    let progress = watched.progress();
    assert_eq!((progress.done, progress.total, progress.from), (Bytes(sizes as u64), Bytes(sizes as u64), Origin::Hub));

    let repo = folder.path().join("cache/models--org--name");
    assert_eq!(path, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in safetensors() {
        let file = path.join(name);
        if matches!(name, "README.md" | "pytorch_model.bin") {
            assert!(!file.exists());
            continue;
        }
        let etag = if mirror::is_large(name) { sha256(&bytes) } else { git_sha1(&bytes) };
        let up = if name.contains('/') { "../../.." } else { "../.." };
        assert_eq!(fs::read_link(&file).unwrap(), Path::new(&format!("{up}/blobs/{etag}")));
        assert_eq!(fs::read(&file).unwrap(), bytes, "{name}");
        assert!(folder.path().join(format!("cache/.locks/models--org--name/{etag}.lock")).exists());
    }
    assert_eq!(leftovers(folder.path()), Vec::<PathBuf>::new());

    // Another store finds it without asking, and so does a second fetch.
    let (asked, offline) = (mirror.seen.listings.load(Ordering::SeqCst), config(&mirror, folder.path()));
    let other = Store::new(StoreConfig { offline: true, ..offline }, Arc::<Alone>::default());
    assert_eq!(other.locate(&source("hf:org/name")), Located::Here(path.clone()));
    assert_eq!(other.fetch(&source("hf:org/name"), &[]).done().await.unwrap(), path);
    assert_eq!(mirror.seen.listings.load(Ordering::SeqCst), asked);
    let refused = other.fetch(&source("hf:org/other"), &[]).done().await.unwrap_err();
    assert!(matches!(&*refused, FetchError::Offline { repo } if repo == "org/other"), "{refused}");
}

#[tokio::test]
async fn all_parts_of_a_quantization_come_and_no_other() {
    let large = content((70 << 20) + 12_345, 3); // three parts, of which the last is short
    let files = [
        ("Q8/m-Q8_0-00001-of-00002.gguf", large.clone()),
        ("Q8/m-Q8_0-00002-of-00002.gguf", content(0, 4)),
        ("m-Q4_K_M.gguf", content(1000, 5)),
    ];
    let (mirror, folder) = (Mirror::start("org/name", files).await, TempDir::new().unwrap());
    let store = store(&mirror, folder.path());
    let path = store.fetch(&source("hf:org/name:q8_0"), &[]).done().await.unwrap();
    assert!(path.ends_with("Q8/m-Q8_0-00001-of-00002.gguf"));
    assert!(fs::read(&path).unwrap() == large);
    assert_eq!(fs::read(path.with_file_name("m-Q8_0-00002-of-00002.gguf")).unwrap(), b"");
    assert_eq!(store.locate(&source("hf:org/name:Q4_K_M")), Located::Absent);
    assert_eq!(mirror.bytes_sent(), large.len() as u64);
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_it_was_cut() {
    let large = content(5 << 20, 6);
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", large.clone())]).await, TempDir::new().unwrap());
    mirror.fail(Faults { cut: Some((1 << 20, 4)), busy: 2, ..Faults::default() });
    let path = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]).done().await.unwrap();
    assert!(fs::read(path).unwrap() == large);
    assert_eq!(mirror.seen.file_requests.load(Ordering::SeqCst), 5);
    // What was in flight when a connection was cut may have to come again, and no more.
    assert!(mirror.bytes_sent() < large.len() as u64 + 4 * (1 << 20), "{} bytes", mirror.bytes_sent());
}

#[tokio::test]
async fn what_goes_wrong_is_shown_while_it_is_tried_again_until_something_comes() {
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", content(1 << 20, 7))]).await, TempDir::new().unwrap());
    mirror.fail(Faults { busy: usize::MAX, ..Faults::default() });
    let patient =
        Store::new(StoreConfig { patience: Duration::from_secs(3600), ..config(&mirror, folder.path()) }, Arc::<Alone>::default());
    let failure = async |is_wanted: fn(&str) -> bool| {
        while !patient.fetching().iter().any(|one| one.failure.as_deref().is_some_and(is_wanted)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Already while it is asked how large the model is.
    let (sizing, asked_for) = (patient.clone(), source("hf:org/name"));
    let size = tokio::spawn(async move { sizing.size(&asked_for).await });
    failure(|why| why.contains("/api/models/org/name/revision/main") && why.ends_with("status 503 Service Unavailable")).await;
    mirror.fail(Faults::default());
    assert_eq!(size.await.unwrap().unwrap().bytes, Bytes::mib(1));
    assert_eq!(patient.fetching(), []);

    mirror.fail(Faults { cut: Some((1 << 10, usize::MAX)), ..Faults::default() });
    let fetch = patient.fetch(&source("hf:org/name"), &[]);
    failure(|why| why.contains("/resolve/")).await; // it broke off, perhaps before its first byte
    mirror.fail(Faults::default());
    fetch.done().await.unwrap();
    assert_eq!(patient.fetching(), []);
}

#[tokio::test]
async fn a_download_that_was_given_up_goes_on_where_it_stopped() {
    let large = content(40 << 20, 7);
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", large.clone())]).await, TempDir::new().unwrap());
    mirror.fail(Faults { stall_after: Some(20 << 20), ..Faults::default() });
    let first = store(&mirror, folder.path());
    let mut fetch = first.fetch(&source("hf:org/name"), &[]);
    while fetch.progress().done < Bytes::mib(16) {
        assert!(fetch.changed().await);
    }
    assert_eq!(first.fetching().len(), 1);
    drop(fetch);
    assert_eq!(first.fetching().len(), 0);
    assert_eq!(first.locate(&source("hf:org/name")), Located::Absent);

    mirror.fail(Faults::default());
    let sent = mirror.bytes_sent();
    let path = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]).done().await.unwrap();
    assert!(fs::read(path).unwrap() == large);
    // What each connection had not noted yet comes again.
    assert!(mirror.bytes_sent() - sent <= 32 << 20, "{} bytes came again", mirror.bytes_sent() - sent);
    assert_eq!(leftovers(folder.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_is_left_of_a_damaged_download_is_fetched_anew() {
    let large = content(4 << 20, 8);
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", large.clone())]).await, TempDir::new().unwrap());
    mirror.fail(Faults { stall_after: Some(3 << 20), ..Faults::default() });
    let mut fetch = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]);
    while fetch.progress().done < Bytes::mib(2) {
        assert!(fetch.changed().await);
    }
    drop(fetch);
    let left = leftovers(folder.path()).into_iter().find(|path| path.to_string_lossy().contains(".plexus.")).unwrap();
    let mut bytes = fs::read(&left).unwrap();
    bytes[100] ^= 1;
    fs::write(&left, bytes).unwrap();
    mirror.fail(Faults::default());
    let path = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]).done().await.unwrap();
    assert!(fs::read(path).unwrap() == large);
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_never_seen() {
    for (faults, wanted) in [
        (Faults { corrupt: true, ..Faults::default() }, "model.safetensors is damaged: its hash is "),
        (Faults { shorter_by: 1, ..Faults::default() }, "ended after "),
        (Faults { claimed_size: Some(200_000), ..Faults::default() }, "300000 bytes are offered where 200000 were announced"),
    ] {
        let (mirror, folder) = (Mirror::start("org/name", safetensors()).await, TempDir::new().unwrap());
        mirror.fail(faults);
        let store = store(&mirror, folder.path());
        let error = store.fetch(&source("hf:org/name"), &[]).done().await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(store.locate(&source("hf:org/name")), Located::Absent);
        assert!(!folder.path().join("cache/models--org--name/snapshots").exists());
        assert!(!files_in(folder.path()).iter().any(|path| path.ends_with(format!("blobs/{}", sha256(&content(300_000, 1))))));
    }
}

#[tokio::test]
async fn what_has_no_room_is_refused_before_it_is_fetched() {
    let (mirror, folder) = (Mirror::start("org/name", safetensors()).await, TempDir::new().unwrap());
    mirror.fail(Faults { claimed_size: Some(1 << 50), ..Faults::default() });
    let error = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]).done().await.unwrap_err();
    assert!(matches!(&*error, FetchError::NoSpace { needed, .. } if *needed >= Bytes(1 << 50)), "{error}");
    assert!(error.to_string().starts_with("1024 TiB more are needed in "), "{error}");
    assert_eq!(mirror.seen.file_requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_is_told_and_what_came_is_kept() {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("cache");
    fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: a small disk cannot be mounted here, which takes root");
    }
    let large = content(6 << 20, 9);
    let mirror = Mirror::start("org/name", [("m.gguf", large.clone())]).await;
    mirror.fail(Faults { stall_after: Some(1 << 20), ..Faults::default() });
    let store = store(&mirror, folder.path());
    let mut fetch = store.fetch(&source("hf:org/name"), &[]);
    while fetch.progress().done == Bytes(0) {
        assert!(fetch.changed().await);
    }
    fs::write(disk.join("other"), content(5 << 20, 10)).unwrap(); // somebody else takes the room
    drop(fetch);
    mirror.fail(Faults::default());
    let before = store.fetch(&source("hf:org/name"), &[]).done().await.unwrap_err();
    assert!(matches!(&*before, FetchError::NoSpace { .. }), "{before}");
    fs::write(disk.join("other"), b"").unwrap();
    let path = store.fetch(&source("hf:org/name"), &[]).done().await.map(|path| fs::read(path).unwrap());
    let whole = path.is_ok_and(|bytes| bytes == large);
    let unmounted = std::process::Command::new("umount").arg("-l").arg(&disk).status();
    assert!(unmounted.unwrap().success() && whole);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (mirror, folder) =
        (Mirror::start("org/name", [("m-Q8_0.gguf", vec![1]), ("m-Q4_K_M.gguf", vec![2])]).await, TempDir::new().unwrap());
    let endpoint = mirror.endpoint();
    let ask = async |store: &Store, text: &str| store.fetch(&source(text), &[]).done().await.unwrap_err().to_string();
    let plain = store(&mirror, folder.path());
    for (text, wanted) in [
        (
            "hf:org/other",
            format!(
                "{endpoint} has no repository org/other; check its spelling, or give this node a token if it is private (HF_TOKEN, or store.auth_env for a mirror)"
            ),
        ),
        (
            "hf:org/name@dev",
            "org/name has no revision \"dev\"; name a branch, a tag or a whole commit, or leave it out for main".to_owned(),
        ),
        ("hf:org/name:F16", "org/name has no GGUF file \"F16\"; it has Q4_K_M, Q8_0".to_owned()),
        ("hf:org/name", "org/name has several GGUF files; name one of Q4_K_M, Q8_0 behind a colon, as in hf:org/name:Q4_K_M".to_owned()),
    ] {
        assert_eq!(ask(&plain, text).await, wanted);
    }
    mirror.fail(Faults { refuse: Some((401, "GatedRepo")), ..Faults::default() });
    let unauthorized = ask(&plain, "hf:org/name:Q8_0").await;
    assert!(unauthorized.contains("without a token") && unauthorized.contains("(HF_TOKEN, "), "{unauthorized}");
    mirror.fail(Faults { refuse: Some((403, "GatedRepo")), ..Faults::default() });
    let forbidden = ask(&plain, "hf:org/name:Q8_0").await;
    assert!(forbidden.contains(&format!("ask for access at {endpoint}/org/name")), "{forbidden}");
    mirror.fail(Faults { refuse: Some((500, "")), ..Faults::default() });
    assert!(ask(&plain, "hf:org/name:Q8_0").await.contains("status 500"));

    let gone = StoreConfig { endpoint: "http://127.0.0.1:9".to_owned(), ..config(&mirror, folder.path()) };
    assert!(ask(&Store::new(gone, Arc::<Alone>::default()), "hf:org/name:Q8_0").await.contains("cannot be reached"));
}

#[tokio::test]
async fn the_token_is_shown_to_the_hub_and_to_nobody_else() {
    let (mirror, folder) = (Mirror::start("org/name", safetensors()).await, TempDir::new().unwrap());
    let token_file = folder.path().join("token");
    fs::write(&token_file, "hf_secret\n").unwrap();
    for config in [
        StoreConfig { token: Token::new("hf_secret"), ..config(&mirror, &folder.path().join("1")) },
        StoreConfig { token_file: Some(token_file), ..config(&mirror, &folder.path().join("2")) },
    ] {
        assert!(!format!("{config:?}").contains("hf_secret"));
        Store::new(config, Arc::<Alone>::default()).fetch(&source("hf:org/name"), &[]).done().await.unwrap();
    }
    let hub = mirror.seen.hub_tokens.lock().unwrap();
    assert!(hub.len() > 2 && hub.iter().all(|token| token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
    let elsewhere = mirror.seen.store_tokens.lock().unwrap();
    assert!(elsewhere.len() == 2 && elsewhere.iter().all(Option::is_none), "{elsewhere:?}");
}

#[tokio::test]
async fn mirrors_that_say_or_can_less_will_do() {
    for faults in
        [Faults { bare_listing: true, ..Faults::default() }, Faults { no_ranges: true, cut: Some((100_000, 1)), ..Faults::default() }]
    {
        let (mirror, folder) = (Mirror::start("org/name", safetensors()).await, TempDir::new().unwrap());
        mirror.fail(faults);
        let path = store(&mirror, folder.path()).fetch(&source("hf:org/name"), &[]).done().await.unwrap();
        assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), content(300_000, 1));
        let name = fs::canonicalize(path.join("model.safetensors")).unwrap();
        assert!(name.ends_with(sha256(&content(300_000, 1))));
    }
}

#[tokio::test]
async fn two_who_want_the_same_model_fetch_it_once() {
    let large = content(40 << 20, 11);
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", large.clone())]).await, TempDir::new().unwrap());
    // Two callers of one store, and a store of another process with the same cache.
    let (here, other) = (store(&mirror, folder.path()), store(&mirror, folder.path()));
    let fetches = [&here, &here, &other].map(|store| store.fetch(&source("hf:org/name"), &[]).done());
    for path in futures::future::join_all(fetches).await {
        assert!(fs::read(path.unwrap()).unwrap() == large);
    }
    assert_eq!(mirror.seen.listings.load(Ordering::SeqCst), 2);
    assert_eq!(mirror.bytes_sent(), large.len() as u64);
}

/// Lays files into the cache as another client does that was asked for these only.
fn laid_by_others(folder: &Path, files: &[(&str, Vec<u8>)], only: &[&str]) -> PathBuf {
    let repo = folder.join("cache/models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for made in [repo.join("blobs"), repo.join("refs"), snapshot.clone()] {
        fs::create_dir_all(made).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| only.contains(name)) {
        let etag = if mirror::is_large(name) { sha256(bytes) } else { git_sha1(bytes) };
        fs::write(repo.join("blobs").join(&etag), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{etag}"), snapshot.join(name)).unwrap();
    }
    repo
}

fn decoder() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{\"model_type\": \"qwen3\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"chat_template\": \"\"}".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("model.safetensors", content(300_000, 1)),
    ]
}

fn encoder() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{\"model_type\": \"bert\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{}".to_vec()),
        ("modules.json", b"[{\"path\": \"1_Pooling\", \"type\": \"sentence_transformers.models.Pooling\"}]".to_vec()),
        ("1_Pooling/config.json", b"{\"pooling_mode_cls_token\": true}".to_vec()),
        ("model.safetensors", content(300_000, 1)),
    ]
}

/// A repository's files, which of them another client fetched, what else it left, and whether an engine could open that.
type Case<'a> = (Vec<(&'static str, Vec<u8>)>, &'a [&'a str], &'a dyn Fn(&Path), bool);

#[tokio::test]
async fn what_other_clients_left_half_is_not_taken_for_a_model_and_only_the_rest_is_fetched() {
    let all = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"];
    let dangling = |repo: &Path| std::os::unix::fs::symlink("../../blobs/gone", repo.join("snapshots").join(COMMIT).join(all[3])).unwrap();
    let unended = |repo: &Path| fs::write(repo.join("blobs").join(format!("{}.incomplete", "a".repeat(40))), b"{{ mess").unwrap();
    let nothing = |_: &Path| {};
    let cases: [Case<'_>; 5] = [
        (decoder(), &["config.json", "tokenizer.json", "model.safetensors"], &nothing, true), // the tokenizer was not asked for
        (decoder(), &["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"], &dangling, true),
        (decoder(), &["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"], &unended, true),
        (encoder(), &["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"], &nothing, true),
        (decoder(), &["config.json", "tokenizer.json", "tokenizer_config.json"], &unended, false), // no weights: nothing to take as it is
    ];
    let wanted = source("hf:org/name");
    for (files, only, spoil, opens) in cases {
        let (mirror, folder) = (Mirror::start("org/name", files.clone()).await, TempDir::new().unwrap());
        spoil(&laid_by_others(folder.path(), &files, only));
        let store = store(&mirror, folder.path());
        assert_eq!(store.locate(&wanted), Located::Absent);

        let gone = StoreConfig { endpoint: "http://127.0.0.1:9".to_owned(), ..config(&mirror, folder.path()) };
        let error = Store::new(gone, Arc::<Alone>::default()).fetch(&wanted, &[]).done().await.unwrap_err();
        assert_eq!(matches!(&*error, FetchError::Doubtful { .. }), opens, "{error}");
        let offline = Store::new(StoreConfig { offline: true, ..config(&mirror, folder.path()) }, Arc::<Alone>::default());
        assert_eq!(matches!(offline.locate(&wanted), Located::Here(_)), opens);

        let path = store.fetch(&wanted, &[]).done().await.unwrap();
        for (name, bytes) in &files {
            assert!(fs::read(path.join(name)).unwrap() == *bytes, "{name}");
        }
        let missing: usize = files.iter().filter(|(name, _)| !only.contains(name)).map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(mirror.bytes_sent(), missing as u64);
        // From now on it is known to be whole, whatever else was not ended in the repository.
        assert_eq!(self::store(&mirror, folder.path()).locate(&wanted), Located::Here(path));
    }
}

#[tokio::test]
async fn what_other_clients_left_whole_is_taken_without_asking() {
    let folder = TempDir::new().unwrap();
    let mirror = Mirror::start("org/name", decoder()).await;
    let all: Vec<&str> = decoder().iter().map(|(name, _)| *name).collect();
    laid_by_others(folder.path(), &decoder(), &all);
    let store = store(&mirror, folder.path());
    assert!(matches!(store.locate(&source("hf:org/name")), Located::Here(_)));
    store.fetch(&source("hf:org/name"), &[]).done().await.unwrap();
    assert_eq!(mirror.seen.listings.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn parts_that_nobody_goes_on_with_are_deleted_in_the_end_and_no_file_of_other_clients() {
    let large = content(40 << 20, 12);
    let (mirror, folder) = (Mirror::start("org/name", [("m.gguf", large.clone())]).await, TempDir::new().unwrap());
    mirror.fail(Faults { stall_after: Some(3 << 20), ..Faults::default() });
    let (first, second) = (store(&mirror, folder.path()), store(&mirror, folder.path()));
    let mut fetch = first.fetch(&source("hf:org/name"), &[]);
    while fetch.progress().done < Bytes::mib(2) {
        assert!(fetch.changed().await);
    }
    let much_later = SystemTime::now() + KEPT_FOR * 2;
    assert_eq!(second.tidy(much_later), Bytes(0), "it is under way in another process");
    drop(fetch);
    let blobs = folder.path().join("cache/models--org--name/blobs");
    let of_others = blobs.join(format!("{}.incomplete", sha256(&large)));
    fs::write(&of_others, b"theirs").unwrap();
    let lock = folder.path().join(format!("cache/.locks/models--org--name/{}.lock", sha256(&large)));
    while fs::File::open(&lock).unwrap().try_lock().is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(second.tidy(SystemTime::now() + KEPT_FOR / 2), Bytes(0), "somebody may go on with it");
    assert!(second.tidy(much_later) >= Bytes::mib(40));
    assert_eq!(leftovers(folder.path()), [of_others]);

    // What is here by now is deleted at once.
    fs::write(blobs.join(sha256(&large)), &large).unwrap();
    fs::write(blobs.join(format!("{}.plexus-parts.incomplete", sha256(&large))), b"12345").unwrap();
    assert_eq!(second.tidy(SystemTime::now()), Bytes(5));
}
