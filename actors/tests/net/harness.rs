//! Starts nodes as processes, speaks to them over their standard input and output, and stops them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::node;

/// The secret of every honest node.
pub(crate) const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Only a broken program misses it, on however slow a machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Prints a measured time.
pub(crate) fn report(what: &str, time: Duration) {
    eprintln!("{what}: {:.0} ms", time.as_secs_f64() * 1e3);
}

/// One process.
pub(crate) struct Node {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// Lines that were read, up to those that `wait_for` has passed.
    log: Vec<String>,
    passed: usize,
    gossip: SocketAddr,
    link: SocketAddr,
}

impl Node {
    /// Where it takes links.
    pub(crate) fn link(&self) -> SocketAddr {
        self.link
    }

    /// Sends a command.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("the node reads its commands");
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.wait_for("= ")[2..].to_owned()
    }

    /// Repeats a command until it is answered so, or the time is up.
    pub(crate) fn ask_until(&mut self, command: &str, wanted: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let answer = self.ask(command);
            if answer == wanted || Instant::now() > until {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a line that begins so, and passes it.
    pub(crate) fn wait_for(&mut self, beginning: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            while self.passed < self.log.len() {
                self.passed += 1;
                let line = &self.log[self.passed - 1];
                if line.starts_with(beginning) {
                    return line.clone();
                }
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.log.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("no {beginning:?} within {DEADLINE:?}; said: {:#?}", self.log),
                Err(RecvTimeoutError::Disconnected) => panic!("the node ended before {beginning:?}; said: {:#?}", self.log),
            }
        }
    }

    /// Passes all that was said so far.
    pub(crate) fn forget(&mut self) {
        self.log.extend(self.lines.try_iter());
        self.passed = self.log.len();
    }

    /// How often a line began so, up to now.
    pub(crate) fn count(&mut self, beginning: &str) -> usize {
        self.log.extend(self.lines.try_iter());
        self.log.iter().filter(|line| line.starts_with(beginning)).count()
    }

    fn peers(&mut self) -> Vec<String> {
        self.ask("peers").split_whitespace().map(str::to_owned).collect()
    }
}

/// Some processes, killed when the test is over.
pub(crate) struct Cluster {
    nodes: BTreeMap<String, Node>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            let _gone = node.child.kill();
            let _reaped = node.child.wait();
        }
    }
}

impl Cluster {
    /// No nodes yet.
    pub(crate) fn new() -> Self {
        Self { nodes: BTreeMap::new() }
    }

    /// A full mesh of these nodes.
    pub(crate) fn mesh(names: &[&str]) -> Self {
        let mut cluster = Self::new();
        names.iter().for_each(|name| cluster.start(name));
        cluster.wait_for_mesh(names);
        cluster
    }

    /// Starts a node that looks for the others.
    pub(crate) fn start(&mut self, name: &str) {
        self.start_with(name, SECRET, "the-cluster");
    }

    /// Starts a node with this secret in a cluster of this name.
    pub(crate) fn start_with(&mut self, name: &str, secret: &str, cluster: &str) {
        let seeds: Vec<String> = self.nodes.values().map(|node| node.gossip.to_string()).collect();
        let spec = format!("{name} {secret} {cluster} {}", seeds.join(","));
        let mut child = Command::new(std::env::current_exe().expect("this test has a binary"))
            .args(["--exact", "a_node_as_a_process", "--nocapture", "--test-threads=1"])
            .env(node::SPEC, spec)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdin = child.stdin.take().expect("it was piped");
        let stdout = BufReader::new(child.stdout.take().expect("it was piped"));
        let (said, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once('@')
                    && said.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut node = Node { child, stdin, lines, log: Vec::new(), passed: 0, gossip: nowhere, link: nowhere };
        let bound = node.wait_for("bound ");
        let mut addresses = bound.split(' ').skip(1).map(|address| address.parse().expect("an address"));
        node.gossip = addresses.next().expect("where it gossips");
        node.link = addresses.next().expect("where it takes links");
        self.nodes.insert(name.to_owned(), node);
    }

    /// The node of this name.
    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("the node was started")
    }

    /// Calls a node otherwise in this test, so that another one can be started under its name.
    pub(crate) fn rename(&mut self, name: &str, to: &str) -> String {
        let node = self.nodes.remove(name).expect("the node was started");
        self.nodes.insert(to.to_owned(), node);
        to.to_owned()
    }

    /// Ends a node the hard way.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut node = self.nodes.remove(name).expect("the node was started");
        node.child.kill().expect("it runs");
        node.child.wait().expect("it ends");
    }

    /// Sends a node a signal.
    pub(crate) fn signal(&mut self, name: &str, signal: &str) {
        let process = self.node(name).child.id().to_string();
        let status = Command::new("kill").args([&format!("-{signal}"), &process]).status().expect("there is a kill");
        assert!(status.success());
    }

    /// Waits until each of these nodes has the others as peers, and nobody else.
    pub(crate) fn wait_for_mesh(&mut self, names: &[&str]) {
        let until = Instant::now() + DEADLINE;
        for name in names {
            loop {
                let peers = self.node(name).peers();
                let mut wanted: Vec<&str> = names.iter().filter(|other| *other != name).copied().collect();
                wanted.sort_unstable();
                if peers == wanted {
                    break;
                }
                if Instant::now() > until {
                    let log = self.node(name).log.clone();
                    panic!("{name} has {peers:?}, not {wanted:?}; said: {log:#?}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
