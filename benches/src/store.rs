//! Files from node to node: two nodes fetch one model from a third at once, over the cluster's own TLS on loopback, each a process of its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;
use plexus_actors::link::{StoreLinks, serve_store};
use plexus_actors::membership::NetTiming;
use plexus_actors::secret::ClusterSecret;
use plexus_store::{Store, StoreConfig};
use plexus_types::{Generation, ModelSource, NodeFacts, NodeId, NodeName};

use crate::figures::Figure;

const COMMIT: &str = "0000000000000000000000000000000000000001";

/// What is moved.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many times.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// MiB of the model.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Where the files are put; a folder in memory measures the nodes and not the disk.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
}

/// A process of the bench: the node that has the model, or one that fetches it.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeOptions {
    /// Where the store is.
    #[arg(long)]
    folder: PathBuf,
    /// Address of the node to fetch from; without it this is that node.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// The cluster's secret.
    #[arg(long)]
    secret: String,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let place = tempfile::tempdir_in(&options.folder).with_context(|| format!("no folder can be made in {}", options.folder.display()))?;
    let mut noise = vec![0_u8; 1 << 20];
    let (mut one, mut two, mut copies) = (vec![], vec![], vec![]);
    let secret = ClusterSecret::generate();
    let secret = secret.expose();
    let repo = place.path().join("a/hub/models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot)?;
    fs::create_dir_all(repo.join("refs"))?;
    fs::write(repo.join("refs/main"), COMMIT)?;
    let model = snapshot.join("m.gguf");
    let mut file = File::create(&model)?;
    let mut state = 1_u64;
    for _ in 0..options.mib {
        for word in noise.as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = (state ^ (state >> 29)).to_le_bytes();
        }
        file.write_all(&noise)?;
    }
    drop(file);
    let (holder, at) = Node::start(&place.path().join("a"), None, &secret)?;
    let gb = (options.mib << 20) as f64 / 1e9;
    for run in 0..=options.runs {
        for (rates, names) in [(&mut one, &["b"][..]), (&mut two, &["b", "c"])] {
            let mut fetching = Vec::new();
            for name in names {
                fetching.push(Node::start(&place.path().join(name), Some(at.parse()?), &secret)?);
            }
            // All are up and wait for the word.
            for (node, _) in &mut fetching {
                node.go()?;
            }
            let seconds: Vec<f64> = fetching.iter_mut().map(|(node, _)| Ok(node.line()?.parse()?)).collect::<anyhow::Result<_>>()?;
            let slowest = seconds.iter().copied().fold(0.0, f64::max);
            if run > 0 {
                rates.push(gb / slowest); // the first reads the model, to hash it
            }
            drop(fetching);
            for name in names {
                fs::remove_dir_all(place.path().join(name))?;
            }
        }
        let started = Instant::now();
        fs::copy(&model, place.path().join("copy"))?;
        copies.push(gb / started.elapsed().as_secs_f64());
        fs::remove_file(place.path().join("copy"))?;
    }
    drop(holder);
    Ok(vec![
        Figure::gb_per_s(format!("{} MiB to one node", options.mib), "", &one),
        Figure::gb_per_s("&nbsp; to two nodes at once, the slower of them", "≥ 0.5 GB/s", &two).beside("three processes, verified"),
        Figure::gb_per_s("a copy of the file: floor", "", &copies[1..]),
    ])
}

/// A process of the bench; it ends with this.
struct Node {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Node {
    /// Starts one and returns its first line: where it listens, or that it is ready.
    fn start(folder: &Path, from: Option<SocketAddr>, secret: &str) -> anyhow::Result<(Self, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("store-node").arg("--folder").arg(folder).args(["--secret", secret]);
        if let Some(from) = from {
            command.args(["--from", &from.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut node = Self { child, out };
        let line = node.line()?;
        Ok((node, line))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a process of the bench ended");
        Ok(line.trim().to_owned())
    }

    fn go(&mut self) -> anyhow::Result<()> {
        let stdin = self.child.stdin.as_mut().context("its input is a pipe")?;
        Ok(writeln!(stdin, "go")?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Is such a process: says where it listens, or fetches at the word and says how many seconds it took.
pub(crate) fn run(options: NodeOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let secret = ClusterSecret::parse(&options.secret)?;
    let name = |text: &str| text.parse::<NodeName>();
    let me = options.folder.file_name().and_then(|name| name.to_str()).context("the folder has a name")?;
    let me = name(me)?;
    let from = options.from;
    let links = StoreLinks::new(secret.clone(), me.clone(), NetTiming::default(), move |peer| {
        let id = NodeId { name: peer.clone(), generation: Generation(1) };
        from.map(|at| NodeFacts { id, version: String::new(), link: at, http: at, gossip: at })
    });
    let store = Store::new(StoreConfig { offline: true, ..StoreConfig::new(options.folder) }, Arc::new(links));
    if options.from.is_none() {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("{}", listener.local_addr()?);
        let names: BTreeSet<NodeName> = [name("b")?, name("c")?].into();
        runtime.block_on(serve_store(listener, &secret, &me, NetTiming::default(), names, store))?;
        bail!("the listener ended");
    }
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    let source: ModelSource = "hf:org/name".parse()?;
    let started = Instant::now();
    runtime.block_on(async { store.fetch(&source, &[name("a")?]).done().await.context("the model did not come") })?;
    println!("{}", started.elapsed().as_secs_f64());
    Ok(())
}
