//! Nodes as processes of their own, in release builds, in a temporary folder.

use std::env;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Connection;

/// A node that has not come up within this time will not.
const PATIENCE: Duration = Duration::from_secs(30);

/// Context of the model of scripted nodes: more than any stream measured.
pub(crate) const CONTEXT_LENGTH: usize = 1 << 16;

/// Pause between two looks at a node: short beside all that is measured so, long enough to leave the processor to the node.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What is measured: the release build of the product, and this program, which can be a scripted node.
#[derive(Debug)]
pub(crate) struct Binaries {
    /// The product.
    pub(crate) plexus: PathBuf,
}

impl Binaries {
    /// Brings the product up to date in the target folder that this program was built into, with the cargo that runs this program; or, without
    /// `build`, takes it as it lies beside this program.
    ///
    /// Errors: it does not build, or is not there.
    pub(crate) fn find(build: bool) -> anyhow::Result<Self> {
        let this = env::current_exe()?;
        if !build {
            let plexus = this.with_file_name("plexus");
            ensure!(plexus.is_file(), "there is no {}: leave out --no-build, or put the release build of plexus there", plexus.display());
            return Ok(Self { plexus });
        }
        let target = this.ancestors().nth(2).context("this program lies in a target folder")?;
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "--quiet", "--release", "-p", "plexus", "--target-dir"]).arg(target);
        let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("running cargo")?;
        ensure!(status.success(), "plexus does not build");
        Ok(Self { plexus: target.join("release/plexus") })
    }
}

/// A folder for the nodes of one measurement, and the secret they share. Removed at the end.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// A new one, with a new secret.
    pub(crate) fn new(binaries: &Binaries) -> anyhow::Result<Self> {
        let place = Self { folder: TempDir::with_prefix("plexus-bench-")? };
        let secret = Command::new(&binaries.plexus).arg("secret").output().context("running plexus secret")?;
        ensure!(secret.status.success(), "plexus secret failed: {}", String::from_utf8_lossy(&secret.stderr));
        fs::write(place.secret_file(), secret.stdout)?;
        Ok(place)
    }

    fn secret_file(&self) -> PathBuf {
        self.path().join("cluster.key")
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `plexus start` as the node `name`, which looks for `peers`.
    pub(crate) fn start_plexus(&self, binaries: &Binaries, name: &str, peers: &[&Node]) -> anyhow::Result<Node> {
        let mut command = Command::new(&binaries.plexus);
        command.arg("start").arg("--data-dir").arg(self.path().join(name)).arg("--secret-file").arg(self.secret_file());
        command.arg("--metrics").arg(free_tcp()?.to_string());
        self.start(command, name, peers)
    }

    /// Starts `plexus start` as the node `name`, with the text of a `cluster.toml` and with variables of the environment.
    pub(crate) fn start_configured(&self, binaries: &Binaries, name: &str, config: &str, env: &[(&str, String)]) -> anyhow::Result<Node> {
        let file = self.path().join(format!("{name}.toml"));
        fs::write(&file, config)?;
        let mut command = Command::new(&binaries.plexus);
        command.arg("start").arg("--config").arg(file).arg("--data-dir").arg(self.path().join(name));
        command.arg("--secret-file").arg(self.secret_file()).env("PLEXUS_METRICS__ENABLED", "false").envs(env.iter().cloned());
        self.start(command, name, &[])
    }

    /// Starts this program as a [`crate::scripted_node`] `name`, which looks for `peers`. It holds the model `pip` of the folder `model`, if any.
    pub(crate) fn start_scripted(&self, name: &str, peers: &[&Node], model: Option<&Path>, tokens_per_step: usize) -> anyhow::Result<Node> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("scripted-node").arg("--secret-file").arg(self.secret_file());
        command.args(["--tokens-per-step", &tokens_per_step.to_string()]);
        if let Some(folder) = model {
            command.arg("--model").arg(folder);
        }
        self.start(command, name, peers)
    }

    /// A copy of the embedded model's files whose configuration allows long streams. Scripted devices read no weights.
    pub(crate) fn long_model(&self) -> anyhow::Result<PathBuf> {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/assets/pip");
        let to = self.path().join("model");
        fs::create_dir(&to)?;
        for file in ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"] {
            fs::copy(from.join(file), to.join(file)).with_context(|| format!("copying {file} of the embedded model"))?;
        }
        let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json"))?)?;
        config["max_position_embeddings"] = json!(CONTEXT_LENGTH);
        fs::write(to.join("config.json"), config.to_string())?;
        Ok(to)
    }

    fn start(&self, mut command: Command, name: &str, peers: &[&Node]) -> anyhow::Result<Node> {
        let (http, gossip) = (free_tcp()?, free_udp()?);
        command.args(["--name", name, "--http", &http.to_string(), "--gossip", &gossip.to_string()]);
        command.args(["--link", &free_tcp()?.to_string()]);
        for peer in peers {
            command.args(["--seed", &peer.gossip.to_string()]);
        }
        let log = self.path().join(format!("{name}.log"));
        let output = File::create(&log)?;
        command.env("HOME", self.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let started = Instant::now();
        let process = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Node { process, started, http, gossip, log })
    }
}

/// A running node. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    process: Child,
    /// When its process was started.
    pub(crate) started: Instant,
    /// Where it answers HTTP.
    pub(crate) http: SocketAddr,
    gossip: SocketAddr,
    log: PathBuf,
}

impl Node {
    /// Looks at the node again and again until `look` gives something; returns it with the time since the node's start.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(SocketAddr) -> Option<T>) -> anyhow::Result<(T, Duration)> {
        loop {
            if let Some(found) = look(self.http) {
                return Ok((found, self.started.elapsed()));
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("waiting for {what}, the node ended with {status}:\n{}", self.log_tail());
            }
            if self.started.elapsed() > PATIENCE {
                bail!("no {what} within {PATIENCE:?}:\n{}", self.log_tail());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the node can serve and lists `n_nodes` as up; returns the time since its start.
    pub(crate) fn wait_ready(&mut self, n_nodes: usize) -> anyhow::Result<Duration> {
        let ready = |at| (get(at, "/health")?.0 == 200 && nodes_up(at)? == n_nodes).then_some(());
        Ok(self.wait_for(&format!("readiness among {n_nodes} nodes"), ready)?.1)
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Status and body of a GET on a connection of its own; `None` if there is no answer.
pub(crate) fn get(at: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
    Connection::open(at).ok()?.get(path).ok()
}

/// How many nodes the one at `at` lists as up.
pub(crate) fn nodes_up(at: SocketAddr) -> Option<usize> {
    let (_, body) = get(at, "/v1/cluster")?;
    let report: Value = serde_json::from_slice(&body).ok()?;
    Some(report["nodes"].as_array()?.iter().filter(|node| node["state"] == "up").count())
}

/// A short chat that asks for at most `max_tokens`, streamed or not.
pub(crate) fn chat(max_tokens: usize, stream: bool) -> Value {
    json!({
        "model": "pip",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    })
}

/// Path of the endpoint that takes [`chat`].
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// True if the data of a chunk holds a part of the answer.
pub(crate) fn has_text(data: &[u8]) -> bool {
    serde_json::from_slice(data)
        .is_ok_and(|chunk: Value| chunk["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()))
}

/// A port that is free now.
pub(crate) fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}
