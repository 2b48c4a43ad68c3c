//! Nodes as processes of their own.

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use plexus_actors::secret::ClusterSecret;
use tempfile::TempDir;

use crate::client::Client;
use crate::wait::eventually;
use crate::{binary, ports};

/// Lines of a node's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 60;

/// A home folder of a user: nodes started in it share their secret and find each other. Removed with the last node in it.
#[derive(Debug, Clone)]
pub struct Home(Arc<TempDir>);

impl Home {
    /// An empty home folder.
    pub fn new() -> Self {
        Self(Arc::new(tempfile::Builder::new().prefix("plexus-test-").tempdir().expect("a temporary folder can be made")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A `plexus start` with a name and ports of its own.
    pub fn node(&self, name: &str) -> NodeBuilder {
        NodeBuilder::new(self, name, Program::Plexus)
    }

    /// A `plexus start` without a single option.
    pub fn plain_node(&self, label: &str) -> NodeBuilder {
        NodeBuilder::new(self, label, Program::PlexusUnconfigured)
    }

    /// A node whose device answers from a script: `scripted-node`, which has the same actors. It joins nodes of its home, once given a seed.
    pub fn scripted(&self, name: &str) -> NodeBuilder {
        let secret = self.path().join("cluster.key");
        if !secret.exists() {
            std::fs::write(&secret, new_secret()).expect("a file in a temporary folder can be written");
        }
        NodeBuilder::new(self, name, Program::Scripted).arg("--secret-file", secret.to_str().expect("temporary folders have names of text"))
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Plexus,
    PlexusUnconfigured,
    Scripted,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The API.
    pub http: SocketAddr,
    /// Its metrics.
    pub metrics: SocketAddr,
    /// Gossip.
    pub gossip: SocketAddr,
    /// Links.
    pub link: SocketAddr,
}

/// A node to be started.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    home: Home,
    name: String,
    program: Program,
    prefix: Vec<String>,
    ip: IpAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl NodeBuilder {
    fn new(home: &Home, name: &str, program: Program) -> Self {
        Self {
            home: home.clone(),
            name: name.to_owned(),
            program,
            prefix: Vec::new(),
            ip: Ipv4Addr::LOCALHOST.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// A further argument with its value.
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// A further argument without a value.
    pub fn flag(mut self, name: &str) -> Self {
        self.arguments.push(name.to_owned());
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Serves the demo model's safetensors as `id`, instead of the embedded model.
    pub fn model_from_folder(self, id: &str) -> Self {
        let source = format!("{id}=file:{}", binary::pip_folder().display());
        self.arg("--model", &source)
    }

    /// Looks for other nodes at `seed` first.
    pub fn seed(self, seed: SocketAddr) -> Self {
        self.arg("--seed", &seed.to_string())
    }

    /// Allows the test to kill actors.
    pub fn test_hooks(self) -> Self {
        self.env("PLEXUS_DEBUG__TEST_HOOKS", "true")
    }

    /// Runs it by another command, for example `ip netns exec h1`, and binds it to `ip`.
    pub fn inside(mut self, prefix: &[&str], ip: IpAddr) -> Self {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
        self.ip = ip;
        self
    }

    /// Starts the process and waits until it answers HTTP. Its models may still be loading.
    pub async fn start(self) -> Node {
        let log = self.home.path().join(format!("{}.log", self.name));
        let mut launch = Launch { command: self.prefix, log, environment: self.environment, home: self.home };
        let program = match self.program {
            Program::Scripted => binary::scripted_node(),
            Program::Plexus | Program::PlexusUnconfigured => binary::plexus().to_owned(),
        };
        launch.command.push(program.to_str().expect("paths of this repository are text").to_owned());
        if self.program != Program::Scripted {
            launch.command.push("start".into());
        }
        let mut addresses = None;
        if self.program != Program::PlexusUnconfigured {
            let [http, metrics, gossip, link] = std::array::from_fn(|_| SocketAddr::new(self.ip, ports::free_port()));
            launch.command.extend(["--name".into(), self.name.clone()]);
            for (option, address) in [("--http", http), ("--metrics", metrics), ("--gossip", gossip), ("--link", link)] {
                launch.command.extend([option.into(), address.to_string()]);
            }
            addresses = Some(Addresses { http, metrics, gossip, link });
        }
        launch.command.extend(self.arguments);
        let child = launch.spawn();
        let client = Client::new(&addresses.map(|addresses| format!("http://{}", addresses.http)).unwrap_or_default());
        let mut node = Node { name: self.name, addresses, client, launch, child };
        node.answers().await;
        node
    }
}

/// A new secret for a cluster.
pub fn new_secret() -> String {
    ClusterSecret::generate().expose()
}

/// How a node was started, so that it can be started again.
#[derive(Debug, Clone)]
struct Launch {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    home: Home,
}

impl Launch {
    fn spawn(&self) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log in a temporary folder can be opened");
        let error_log = log.try_clone().expect("a file can be cloned");
        let mut command = Command::new(&self.command[0]);
        clean_environment(&mut command, self.home.path());
        command.args(&self.command[1..]).envs(self.environment.iter().cloned()).stdin(Stdio::null()).stdout(log).stderr(error_log);
        command.spawn().unwrap_or_else(|error| panic!("{:?} cannot be started: {error}", self.command))
    }
}

/// Gives a command a home folder and takes away whatever of this environment could configure a node.
pub fn clean_environment(command: &mut Command, home: &Path) {
    for (name, _) in std::env::vars_os() {
        let configures = ["PLEXUS_", "OTEL_", "XDG_", "RUST_LOG"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
        let proxies = name.to_string_lossy().to_ascii_lowercase().ends_with("_proxy");
        if configures || proxies {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).current_dir(home);
}

/// A signal for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks it to stop.
    Term,
    /// Ends it at once.
    Kill,
    /// Freezes it.
    Stop,
    /// Thaws it.
    Cont,
}

/// A running node. Dropping it kills the process; a failing test shows the end of its log.
#[derive(Debug)]
pub struct Node {
    name: String,
    addresses: Option<Addresses>,
    client: Client,
    launch: Launch,
    child: Child,
}

impl Node {
    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens. Panics for a node that chose its ports itself.
    pub fn addresses(&self) -> Addresses {
        self.addresses.expect("this node was given its addresses")
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it has printed and logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.launch.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let flag = match signal {
            Signal::Term => "-TERM",
            Signal::Kill => "-KILL",
            Signal::Stop => "-STOP",
            Signal::Cont => "-CONT",
        };
        let status = Command::new("kill").args([flag, &self.child.id().to_string()]).status().expect("kill can be started");
        assert!(status.success(), "kill {flag} of {}: {status}", self.name);
    }

    /// Ends the process at once and waits for its end.
    pub async fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.exit().await;
    }

    /// Waits until the process has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), async || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("still running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Starts it again as it was started, after its end, and waits until it answers HTTP.
    pub async fn start_again(&mut self) {
        self.child = self.launch.spawn();
        self.answers().await;
    }

    /// Waits until a model can be served through this node.
    pub async fn is_healthy(&self) {
        eventually(&format!("{} is healthy", self.name), async || {
            let reply = self.client.get("/health").await.map_err(|error| error.to_string())?;
            if reply.status == 200 { Ok(()) } else { Err(reply.text) }
        })
        .await;
    }

    async fn answers(&mut self) {
        let name = self.name.clone();
        let client = eventually(&format!("{name} answers HTTP"), async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{name} ended at its start with {status}:\n{}", self.log());
            }
            let client = match self.addresses {
                Some(_) => self.client.clone(),
                None => Client::new(&self.printed_url().ok_or("no URL printed yet")?),
            };
            client.get("/version").await.map_err(|error| error.to_string())?;
            Ok(client)
        })
        .await;
        self.client = client;
    }

    /// The first loopback URL in what the node has printed: that of its API.
    fn printed_url(&self) -> Option<String> {
        let log = self.log();
        let url = &log[log.find("http://127.0.0.1:")?..];
        // The line may be half written: only a URL that something follows is whole.
        let end = "http://127.0.0.1:".len() + url["http://127.0.0.1:".len()..].find(|c: char| !c.is_ascii_digit())?;
        Some(url[..end].to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("---- end of the log of {} ----", self.name);
            for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// What a command of the program printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it ended well.
    pub success: bool,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs `plexus` with `arguments` and `input` as its standard input, in `home`, to its end.
///
/// Panics if it has not ended within [`crate::DEADLINE`].
pub async fn run_plexus(home: &Home, arguments: &[&str], input: &str) -> Output {
    let folder = home.path().to_owned();
    let input_path = folder.join("input.txt");
    std::fs::write(&input_path, input).expect("a file in a temporary folder can be written");
    let mut command = Command::new(binary::plexus());
    clean_environment(&mut command, &folder);
    command.args(arguments).stdin(File::open(&input_path).expect("the input was just written"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let ended = tokio::time::timeout(crate::DEADLINE, command.output()).await;
    let output = ended.unwrap_or_else(|_| panic!("plexus {arguments:?} did not end")).expect("plexus can be started");
    Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// How long nothing may change before a test believes that it will not: used where the absence of an event is the point.
pub const QUIET: Duration = Duration::from_secs(2);
