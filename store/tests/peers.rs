//! Models that go from node to node, over plain TCP on loopback in place of the cluster's own connections.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use mirror::{Faults, Mirror};
use plexus_store::{CHUNK_LEN, Connect, FetchError, Io, KEPT_FOR, Located, Manifest, Origin, Store, StoreConfig};
use plexus_types::{Bytes, ModelSource, NodeName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod mirror;

/// Where nodes listen.
#[derive(Clone, Default)]
struct Net {
    addresses: Arc<Mutex<HashMap<NodeName, SocketAddr>>>,
}

/// What a node of this name knows of it.
struct Ways(Net, NodeName);

impl Connect for Ways {
    fn me(&self) -> &NodeName {
        &self.1
    }

    fn connect<'a>(&'a self, peer: &'a NodeName) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let address = self.0.addresses.lock().unwrap().get(peer).copied().ok_or(io::ErrorKind::NotFound)?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

/// A node: its store, and what it has sent.
struct Node {
    store: Store,
    folder: TempDir,
    name: NodeName,
    sent: Arc<AtomicU64>,
    /// Bytes that it may still send; then it is gone.
    budget: Arc<AtomicU64>,
}

impl Net {
    async fn node(&self, name: &str, configure: impl FnOnce(&mut StoreConfig)) -> Node {
        let folder = TempDir::new().unwrap();
        let mut config = StoreConfig::new(folder.path().join("store"));
        config.endpoint = "http://127.0.0.1:9".to_owned(); // nobody
        config.patience = Duration::from_millis(100);
        configure(&mut config);
        let name: NodeName = name.parse().unwrap();
        let store = Store::new(config, Arc::new(Ways(self.clone(), name.clone())));
        let (sent, budget) = (Arc::<AtomicU64>::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.addresses.lock().unwrap().insert(name.clone(), listener.local_addr().unwrap());
        let (serving, counted, allowed) = (store.clone(), Arc::clone(&sent), Arc::clone(&budget));
        tokio::spawn(async move {
            while let Ok((outside, _)) = listener.accept().await {
                let (near, far) = tokio::io::duplex(64 << 10);
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(far).await });
                tokio::spawn(pass_on(outside, near, Arc::clone(&counted), Arc::clone(&allowed)));
            }
        });
        Node { store, folder, name, sent, budget }
    }
}

/// Carries bytes between a connection and a node, for as long as the node may send.
async fn pass_on(mut outside: TcpStream, near: tokio::io::DuplexStream, sent: Arc<AtomicU64>, budget: Arc<AtomicU64>) {
    let (mut from_node, mut to_node) = tokio::io::split(near);
    let (mut from_outside, mut to_outside) = outside.split();
    let answers = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let n = from_node.read(&mut buffer).await.unwrap_or(0);
            let left = budget.load(Ordering::SeqCst);
            if n == 0 || left < n as u64 {
                return;
            }
            budget.store(left.saturating_sub(if left == u64::MAX { 0 } else { n as u64 }), Ordering::SeqCst);
            sent.fetch_add(n as u64, Ordering::SeqCst);
            if to_outside.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut from_outside, &mut to_node) => {}
    }
}

fn source(text: &str) -> ModelSource {
    text.parse().unwrap()
}

fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state ^ (state >> 29)).to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(next).take(len).collect()
}

fn snapshot_of(node: &Node, org_name: &str, files: &[(&str, &[u8])]) {
    let repo = node.folder.path().join("store/hub").join(format!("models--{}", org_name.replace('/', "--")));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    for (name, bytes) in files {
        let path = repo.join("snapshots").join(commit).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

async fn fetch(node: &Node, source: &ModelSource, from: &[&Node]) -> Result<PathBuf, Arc<FetchError>> {
    let peers: Vec<NodeName> = from.iter().map(|node| node.name.clone()).collect();
    node.store.fetch(source, &peers).done().await
}

#[tokio::test]
async fn a_model_goes_from_node_to_node() {
    let net = Net::default();
    let (a, b, c) = (net.node("a", |_| {}).await, net.node("b", |_| {}).await, net.node("c", |_| {}).await);
    let weights = content((CHUNK_LEN * 2 + 1234) as usize, 1);
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
        ("1_Pooling/config.json", b"{}"),
        ("model.safetensors", &weights),
    ];
    snapshot_of(&a, "org/name", &files);
    let wanted = source("hf:org/name");
    for (to, from) in [(&b, &a), (&c, &b)] {
        assert_eq!(to.store.locate(&wanted), Located::Absent);
        let handle = to.store.fetch(&wanted, std::slice::from_ref(&from.name));
        let path = handle.clone().done().await.unwrap();
        let progress = handle.progress();
        assert_eq!((progress.done, progress.from), (progress.total, Origin::Peers(1)));
        for (name, bytes) in files {
            assert!(fs::read(path.join(name)).unwrap() == bytes, "{name}");
        }
        assert_eq!(to.store.locate(&wanted), Located::Here(path));
        assert_eq!(fs::read_dir(to.folder.path().join("store/incoming")).unwrap().count(), 1, "only the lock file stays");
    }
    assert!(a.sent.load(Ordering::SeqCst) < weights.len() as u64 + 100_000);
}

#[tokio::test]
async fn all_parts_of_a_split_file_come_and_no_other() {
    let net = Net::default();
    let (a, b) = (net.node("a", |_| {}).await, net.node("b", |_| {}).await);
    let first = content(10_000_000, 2);
    let files: [(&str, &[u8]); 3] =
        [("Q/m-Q8_0-00001-of-00002.gguf", &first), ("Q/m-Q8_0-00002-of-00002.gguf", b""), ("m-Q4_0.gguf", b"4")];
    snapshot_of(&a, "org/name", &files);
    let path = fetch(&b, &source("hf:org/name:Q8_0"), &[&a]).await.unwrap();
    assert!(path.ends_with(files[0].0) && fs::read(&path).unwrap() == first);
    assert_eq!(fs::read(path.with_file_name("m-Q8_0-00002-of-00002.gguf")).unwrap(), b"");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    let error = fetch(&b, &source("file:/nowhere/m.gguf"), &[&a]).await.unwrap_err();
    let remedy = "put it there, correct the source of the model's entry, or let a node that has it join the cluster";
    let wanted = |others: &str| format!("/nowhere/m.gguf is not on the node 'b', and {others}; {remedy}");
    assert_eq!(error.to_string(), wanted("no other node gave it (a: it is not shared)"));
    let error = fetch(&b, &source("file:/nowhere/m.gguf"), &[]).await.unwrap_err();
    assert_eq!(error.to_string(), wanted("no other node can be asked for it"));
}

/// Three nodes of which two have a model of five chunks in the cache of the hub.
async fn two_have_it() -> (Net, [Node; 3], ModelSource, Vec<u8>) {
    let net = Net::default();
    let nodes = [net.node("a", |_| {}).await, net.node("b", |_| {}).await, net.node("c", |_| {}).await];
    let bytes = content((CHUNK_LEN * 4 + 77) as usize, 4);
    for node in &nodes[..2] {
        snapshot_of(node, "org/name", &[("m-Q8_0.gguf", &bytes)]);
    }
    (net, nodes, source("hf:org/name:Q8_0"), bytes)
}

#[tokio::test]
async fn a_node_that_dies_in_the_middle_is_replaced_by_the_other() {
    let (_net, [a, b, c], wanted, bytes) = two_have_it().await;
    b.budget.store(CHUNK_LEN / 2, Ordering::SeqCst);
    let path = fetch(&c, &wanted, &[&a, &b]).await.unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    let (by_a, by_b) = (a.sent.load(Ordering::SeqCst), b.sent.load(Ordering::SeqCst));
    assert!(by_b > 0 && by_b <= CHUNK_LEN / 2 && by_a >= bytes.len() as u64, "{by_a} and {by_b} bytes");
}

#[tokio::test]
async fn a_node_that_sends_a_wrong_chunk_is_not_asked_again() {
    let (_net, [a, b, c], wanted, bytes) = two_have_it().await;
    // b has read its files, and then its disk changes every byte without a trace.
    let file = fs::canonicalize(match b.store.locate(&wanted) {
        Located::Here(path) => path,
        other => panic!("{other:?}"),
    });
    let file = file.unwrap();
    let alone = Net { addresses: Arc::clone(&_net.addresses) }.node("d", |_| {}).await;
    fetch(&alone, &wanted, &[&b]).await.unwrap();
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, content(bytes.len(), 5)).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();

    let before = b.sent.load(Ordering::SeqCst);
    let path = fetch(&c, &wanted, &[&a, &b]).await.unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    assert!(b.sent.load(Ordering::SeqCst) - before <= 2 * CHUNK_LEN + 10_000, "one chunk over each connection at most");

    // Alone, it gives nothing; and what the hub would give is asked for last.
    let e = Net { addresses: Arc::clone(&_net.addresses) }.node("e", |config| config.offline = true).await;
    let error = fetch(&e, &wanted, &[&b]).await.unwrap_err();
    assert!(matches!(&*error, FetchError::Offline { .. }), "{error}");
    assert_eq!(e.store.locate(&wanted), Located::Absent);
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_and_trusts_only_what_it_checks_again() {
    let (net, [a, _b, c], wanted, bytes) = two_have_it().await;
    let mut handle = c.store.fetch(&wanted, std::slice::from_ref(&a.name));
    while handle.progress().done < Bytes(CHUNK_LEN) {
        assert!(handle.changed().await);
    }
    a.budget.store(0, Ordering::SeqCst); // nothing more comes before the handle is dropped
    drop(handle);
    assert_eq!(c.store.locate(&wanted), Located::Absent);
    a.budget.store(u64::MAX, Ordering::SeqCst);

    // A new process finds what is there; one byte of it has changed.
    let incoming = c.folder.path().join("store/incoming");
    let folder = fs::read_dir(&incoming).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir()).unwrap();
    let n_whole = loop {
        let noted = fs::read(folder.join("whole")).unwrap().len() as u64 / 4;
        let lock = fs::File::open(folder.with_extension("lock")).unwrap();
        if lock.try_lock().is_ok() {
            break noted; // the last write has ended
        }
        tokio::task::yield_now().await;
    };
    assert!((1..5).contains(&n_whole), "{n_whole} chunks");
    let first = u32::from_le_bytes(fs::read(folder.join("whole")).unwrap()[..4].try_into().unwrap());
    let file = folder.join("files/m-Q8_0.gguf");
    let mut there = fs::read(&file).unwrap();
    there[first as usize * CHUNK_LEN as usize] ^= 1;
    fs::write(&file, there).unwrap();

    let again = Store::new(StoreConfig::new(c.folder.path().join("store")), Arc::new(Ways(net.clone(), c.name.clone())));
    let sent = a.sent.load(Ordering::SeqCst);
    let path = again.fetch(&wanted, std::slice::from_ref(&a.name)).done().await.unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    let came = a.sent.load(Ordering::SeqCst) - sent;
    let missing = bytes.len() as u64 - (n_whole - 1) * CHUNK_LEN;
    assert!(came >= missing - CHUNK_LEN && came <= missing + 100_000, "{came} bytes came where {missing} were missing");
}

#[tokio::test]
async fn a_node_that_is_downloading_is_waited_for() {
    let bytes = content(3 << 20, 6);
    let mirror = Mirror::start("org/name", [("m.gguf", bytes.clone())]).await;
    mirror.fail(Faults { stall_after: Some(1 << 20), ..Faults::default() });
    let net = Net::default();
    let endpoint = mirror.endpoint();
    let a = net.node("a", |config| (config.endpoint, config.patience) = (endpoint, Duration::from_secs(60))).await;
    let b = net.node("b", |_| {}).await;
    let wanted = source("hf:org/name");
    let mut outside = a.store.fetch(&wanted, &[]);
    while outside.progress().done == Bytes(0) {
        assert!(outside.changed().await);
    }
    let mut inside = b.store.fetch(&wanted, std::slice::from_ref(&a.name));
    while !matches!(inside.progress().from, Origin::Awaited(_)) {
        assert!(inside.changed().await);
    }
    assert_eq!(inside.progress().total, Bytes(3 << 20));
    mirror.fail(Faults::default());
    let (there, here) = tokio::join!(outside.done(), inside.done());
    for path in [there, here] {
        assert!(fs::read(path.unwrap()).unwrap() == bytes);
    }
    assert_eq!(mirror.bytes_sent(), bytes.len() as u64);
}

/// Nodes of these names that ask the hub at this address, each known to the others.
async fn nodes_of<const N: usize>(net: &Net, names: [&str; N], mirror: &Mirror) -> Vec<Node> {
    let mut nodes = Vec::new();
    for name in names {
        let endpoint = mirror.endpoint();
        nodes.push(net.node(name, |config| (config.endpoint, config.patience) = (endpoint, Duration::from_secs(60))).await);
    }
    nodes
}

/// All of these ask for a model, now.
fn all_fetch(nodes: &[Node], wanted: &ModelSource) -> Vec<plexus_store::Fetch> {
    let names: Vec<NodeName> = nodes.iter().map(|node| node.name.clone()).collect();
    let others = |me: &NodeName| -> Vec<NodeName> { names.iter().filter(|name| *name != me).cloned().collect() };
    nodes.iter().map(|node| node.store.fetch(wanted, &others(&node.name))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_want_a_model_at_the_same_time_fetch_it_once_from_outside() {
    let bytes = content((CHUNK_LEN + 77) as usize, 11);
    let mirror = Mirror::start("org/name", [("m.gguf", bytes.clone())]).await;
    let net = Net::default();
    let nodes = nodes_of(&net, ["d", "b", "a", "c"], &mirror).await;
    for fetch in all_fetch(&nodes, &source("hf:org/name")) {
        assert!(fs::read(fetch.done().await.unwrap()).unwrap() == bytes);
    }
    assert_eq!(mirror.bytes_sent(), bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn if_the_node_that_fetches_for_all_fails_or_dies_the_next_does() {
    let bytes = content(3 << 20, 12);
    let mirror = Mirror::start("org/name", [("m.gguf", bytes.clone())]).await;
    mirror.fail(Faults { stall_after: Some(1 << 20), ..Faults::default() });
    let net = Net::default();
    let mut nodes = nodes_of(&net, ["b", "c", "d"], &mirror).await;
    // Whose hub does not answer, and who must not ask any: neither is waited for in vain.
    nodes.push(net.node("a", |_| {}).await);
    nodes.push(net.node("offline", |config| config.offline = true).await);
    let mut fetches = all_fetch(&nodes, &source("hf:org/name"));
    let offline = fetches.pop().unwrap();
    let failed = fetches.pop().unwrap().done().await.unwrap_err();
    assert!(matches!(&*failed, FetchError::Unreachable { .. }), "{failed}");
    let mut first = fetches.remove(0);
    while first.progress().done == Bytes(0) {
        assert!(first.changed().await, "b is next");
    }
    net.addresses.lock().unwrap().remove(&nodes[0].name);
    drop(first);
    let mut second = fetches.remove(0);
    while second.progress().from != Origin::Hub {
        assert!(second.changed().await, "then c");
    }
    mirror.fail(Faults::default());
    for fetch in [second, fetches.remove(0), offline] {
        assert!(fs::read(fetch.done().await.unwrap()).unwrap() == bytes);
    }
    assert!(mirror.bytes_sent() <= bytes.len() as u64 * 2, "once by the one that died, and once: {} bytes", mirror.bytes_sent());
}

#[tokio::test]
async fn what_came_does_not_come_again_where_it_could_not_be_put_into_its_place() {
    let (_net, [a, _b, c], wanted, bytes) = two_have_it().await;
    let models = c.folder.path().join("store/models");
    fs::create_dir_all(models.parent().unwrap()).unwrap();
    fs::write(&models, b"in the way").unwrap();
    let error = fetch(&c, &wanted, &[&a]).await.unwrap_err();
    assert!(matches!(&*error, FetchError::Io { .. }), "{error}");
    assert_eq!(c.store.locate(&wanted), Located::Absent);

    fs::remove_file(&models).unwrap();
    let sent = a.sent.load(Ordering::SeqCst);
    assert!(fs::read(fetch(&c, &wanted, &[&a]).await.unwrap()).unwrap() == bytes);
    let again = a.sent.load(Ordering::SeqCst) - sent;
    assert!(again < 100_000, "{again} bytes came again");
    let kept = fs::read_dir(&models).unwrap().next().unwrap().unwrap().path();
    let mut names: Vec<_> = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["files", "manifest.json"]);
}

#[tokio::test]
async fn a_chunk_is_found_again_where_another_file_of_the_same_content_was_deleted() {
    let net = Net::default();
    let a = net.node("a", |_| {}).await;
    for repo in ["org/one", "org/two"] {
        snapshot_of(&a, repo, &[("m.gguf", b"abc")]);
    }
    let ask = async |path: &str| status_and_text(&net, &a, path).await;
    let (one, two) = ("/store/manifest?source=hf%3Aorg%2Fone", "/store/manifest?source=hf%3Aorg%2Ftwo");
    let chunk = format!("/store/chunk/{}", plexus_store::ChunkHash::of(b"abc"));
    assert_eq!((ask(one).await.0, ask(two).await.0), (200, 200));
    let Located::Here(deleted) = a.store.locate(&source("hf:org/two")) else { panic!("it is here") };
    fs::remove_file(deleted).unwrap();
    assert_eq!(ask(&chunk).await.0, 404, "as if it had been started anew: whoever asks asks for the manifest again");
    assert_eq!(ask(one).await.0, 200);
    assert_eq!(ask(&chunk).await, (200, "abc".to_owned()));
}

/// What a node answers to a request.
async fn status_and_text(net: &Net, node: &Node, path: &str) -> (u16, String) {
    let at = net.addresses.lock().unwrap()[&node.name];
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{at}{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn nothing_but_models_that_are_shared_can_be_asked_for() {
    let net = Net::default();
    let a = net.node("a", |_| {}).await;
    let path = a.folder.path().join("m.gguf");
    fs::write(&path, b"abc").unwrap();
    a.store.share([ModelSource::Path(path.clone())]);
    fs::write(a.folder.path().join("secret.gguf"), b"s").unwrap();
    let ask = async |path: &str| status_and_text(&net, &a, path).await;
    let encoded = |path: &Path| format!("/store/manifest?source=file%3A{}", path.display().to_string().replace('/', "%2F"));
    let chunk = format!("/store/chunk/{}", plexus_store::ChunkHash::of(b"abc"));
    assert_eq!(ask(&chunk).await.0, 404, "before its manifest was asked for");
    let (status, text) = ask(&encoded(&path)).await;
    let manifest: Manifest = serde_json::from_str(&text).unwrap();
    assert_eq!((status, manifest.total(), manifest.check()), (200, Bytes(3), Ok(())));
    assert_eq!(ask(&chunk).await, (200, "abc".to_owned()));
    for (path, status) in [
        (encoded(&a.folder.path().join("secret.gguf")), 404),
        (encoded(Path::new("/etc/passwd")), 404),
        ("/store/manifest?source=hf%3Aorg%2Fname".to_owned(), 404),
        ("/store/manifest?source=hf%3A..%2F..".to_owned(), 400),
        ("/store/manifest?source=%zz".to_owned(), 404),
        ("/store/manifest".to_owned(), 404),
        ("/store/chunk/..%2F..%2Fetc%2Fpasswd".to_owned(), 400),
        (format!("/store/chunk/{}", "0".repeat(64)), 404),
        ("/etc/passwd".to_owned(), 404),
    ] {
        assert_eq!(ask(&path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn a_hostile_manifest_is_refused() {
    let net = Net::default();
    let b = net.node("b", |config| config.offline = true).await;
    let chunk = "00".repeat(32);
    for (files, wanted) in [
        (format!(r#"[{{"name": "../x.gguf", "size": 1, "chunks": ["{chunk}"]}}]"#), r#""../x.gguf" is no name of a model's file"#),
        (format!(r#"[{{"name": "x.gguf", "size": 99999999999, "chunks": ["{chunk}"]}}]"#), "has 1 chunks"),
        (r#"[{"name": "x.gguf", "size": 1, "chunks": ["00"]}]"#.to_owned(), "is not 64 hexadecimal digits"),
        ("[]".to_owned(), "0 files"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        net.addresses.lock().unwrap().insert("a".parse().unwrap(), listener.local_addr().unwrap());
        let body = format!(r#"{{"source": "file:/nowhere/m.gguf", "chunk_len": {CHUNK_LEN}, "files": {files}}}"#);
        let app = axum::Router::new().route("/store/manifest", axum::routing::get(|| async { body }));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let error = b.store.fetch(&source("file:/nowhere/m.gguf"), &["a".parse().unwrap()]).done().await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(!b.folder.path().join("store/incoming").exists());
        server.abort();
    }
}

#[tokio::test]
async fn what_nodes_gave_before_they_failed_is_kept_and_the_hub_gives_the_rest() {
    let (net, bytes) = (Net::default(), content((CHUNK_LEN * 9 + 77) as usize, 7));
    for (name, of_hub, wanted_most) in [
        // Two of the nine whole chunks may be half here, and with each the rest of its 32 MiB.
        ("same", bytes.clone(), CHUNK_LEN * 7),
        // What came is of another commit: the hub's hash finds out, and all comes anew.
        ("other", content(bytes.len(), 8), bytes.len() as u64 * 2),
    ] {
        let mirror = Mirror::start("org/name", [("m-Q8_0.gguf", of_hub.clone())]).await;
        let (a, endpoint) = (net.node(&format!("a-{name}"), |_| {}).await, mirror.endpoint());
        let b = net.node(&format!("b-{name}"), |config| config.endpoint = endpoint).await;
        snapshot_of(&a, "org/name", &[("m-Q8_0.gguf", &bytes)]);
        a.budget.store(CHUNK_LEN * 15 / 2, Ordering::SeqCst);
        let path = fetch(&b, &source("hf:org/name:Q8_0"), &[&a]).await.unwrap();
        assert!(fs::read(path).unwrap() == of_hub);
        let sent = mirror.bytes_sent();
        assert!(sent > 0 && sent <= wanted_most, "{name}: {sent} bytes of {}", bytes.len());
        assert_eq!(fs::read_dir(b.folder.path().join("store/incoming")).unwrap().filter(is_folder).count(), 0);
    }
}

fn is_folder(entry: &io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().path().is_dir()
}

#[tokio::test]
async fn a_mirror_that_names_no_hash_gives_the_whole_file() {
    let (net, bytes) = (Net::default(), content((CHUNK_LEN * 5) as usize, 9));
    let mirror = Mirror::start("org/name", [("m-Q8_0.gguf", bytes.clone())]).await;
    mirror.fail(Faults { no_hash: true, ..Faults::default() });
    let (a, endpoint) = (net.node("a", |_| {}).await, mirror.endpoint());
    let b = net.node("b", |config| config.endpoint = endpoint).await;
    snapshot_of(&a, "org/name", &[("m-Q8_0.gguf", &bytes)]);
    a.budget.store(CHUNK_LEN * 7 / 2, Ordering::SeqCst);
    let path = fetch(&b, &source("hf:org/name:Q8_0"), &[&a]).await.unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!(mirror.bytes_sent(), bytes.len() as u64);
}

/// Puts a file into a node's cache as the hub's clients do: a link to a blob of this name.
fn blob_of(node: &Node, name: &str, etag: &str, bytes: &[u8]) {
    snapshot_of(node, "org/name", &[]);
    let repo = node.folder.path().join("store/hub/models--org--name");
    fs::create_dir_all(repo.join("blobs")).unwrap();
    fs::write(repo.join("blobs").join(etag), bytes).unwrap();
    let commit = fs::read_to_string(repo.join("refs/main")).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{etag}"), repo.join("snapshots").join(commit).join(name)).unwrap();
}

#[tokio::test]
async fn a_file_that_a_disk_has_damaged_does_not_go_through_the_cluster() {
    let net = Net::default();
    let (a, b, c) = (net.node("a", |_| {}).await, net.node("b", |_| {}).await, net.node("c", |config| config.offline = true).await);
    let bytes = content((CHUNK_LEN + 77) as usize, 10);
    let wanted = source("hf:org/name:Q8_0");
    blob_of(&a, "m-Q8_0.gguf", &mirror::sha256(&bytes), &bytes);
    // The hub's hash goes along, though b never asked the hub.
    fetch(&b, &wanted, &[&a]).await.unwrap();
    let at = net.addresses.lock().unwrap()[&b.name];
    let asked = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = asked.get(format!("http://{at}/store/manifest?source=hf%3Aorg%2Fname%3AQ8_0")).send().await.unwrap();
    let manifest: Manifest = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(manifest.files[0].etag, Some(mirror::sha256(&bytes)));

    // d's disk changed a byte before d ever read the file: its chunks have the hashes of what it sends.
    let d = net.node("d", |_| {}).await;
    let mut damaged = bytes.clone();
    damaged[12_345] ^= 1;
    blob_of(&d, "m-Q8_0.gguf", &mirror::sha256(&bytes), &damaged);
    let error = fetch(&c, &wanted, &[&d]).await.unwrap_err();
    assert!(matches!(&*error, FetchError::Offline { .. }), "{error}");
    assert_eq!(c.store.locate(&wanted), Located::Absent);
    assert_eq!(fs::read_dir(c.folder.path().join("store/incoming")).unwrap().filter(is_folder).count(), 0);
    assert!(fs::read(fetch(&c, &wanted, &[&b]).await.unwrap()).unwrap() == bytes);
}

#[tokio::test]
async fn chunks_of_a_fetch_that_nobody_goes_on_with_are_deleted_in_the_end() {
    let (net, [a, _b, c], wanted, bytes) = two_have_it().await;
    let handle = c.store.fetch(&wanted, std::slice::from_ref(&a.name));
    let mut watched = handle.clone();
    while watched.progress().done < Bytes(CHUNK_LEN) {
        assert!(watched.changed().await);
    }
    a.budget.store(0, Ordering::SeqCst);
    let other = Store::new(StoreConfig::new(c.folder.path().join("store")), Arc::new(Ways(net.clone(), c.name.clone())));
    let much_later = SystemTime::now() + KEPT_FOR * 2;
    assert_eq!(other.tidy(much_later), Bytes(0), "it is under way in another process");
    drop((handle, watched));
    let incoming = c.folder.path().join("store/incoming");
    let folder = fs::read_dir(&incoming).unwrap().flatten().map(|entry| entry.path()).find(|path| path.is_dir()).unwrap();
    while fs::File::open(folder.with_extension("lock")).unwrap().try_lock().is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(other.tidy(SystemTime::now() + KEPT_FOR / 2), Bytes(0), "somebody may go on with it");
    assert!(other.tidy(much_later) > Bytes(CHUNK_LEN));
    assert!(!folder.exists());

    // What is here by now is deleted at once.
    fs::create_dir_all(folder.join("files")).unwrap();
    fs::write(folder.join("files/m-Q8_0.gguf"), b"12345").unwrap();
    let manifest = format!(r#"{{"source": "{wanted}", "chunk_len": {CHUNK_LEN}, "files": []}}"#);
    fs::write(folder.join("manifest.json"), manifest).unwrap();
    assert_eq!(other.tidy(SystemTime::now()), Bytes(0));
    snapshot_of(&c, "org/name", &[("m-Q8_0.gguf", &bytes)]);
    assert!(other.tidy(SystemTime::now()) > Bytes(5) && !folder.exists());
    assert_eq!(fs::read_dir(&incoming).unwrap().count(), 0, "nor does its lock stay");
}
