//! llama.cpp's server, as a process of its own.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::node_process::{free_tcp, get};

/// A server that has not come up within this time will not.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `llama-server`. Killed when dropped.
#[derive(Debug)]
pub(super) struct LlamaServer {
    process: Child,
    /// Where it answers HTTP.
    pub(super) http: SocketAddr,
}

impl LlamaServer {
    /// Starts it with one pool of `n_tokens` of context for `n_slots` sequences, and waits until it is healthy.
    pub(super) fn start(binary: &Path, model: &Path, threads: NonZeroUsize, n_slots: usize, n_tokens: usize) -> anyhow::Result<Self> {
        let http = free_tcp()?;
        let mut command = Command::new(binary);
        command.arg("--model").arg(model).args(["--host", "127.0.0.1", "--port", &http.port().to_string()]);
        command.args(["--threads", &threads.to_string(), "--threads-batch", &threads.to_string()]);
        command.args(["--parallel", &n_slots.to_string(), "--ctx-size", &n_tokens.to_string(), "--kv-unified", "--jinja"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut server = Self { process, http };
        let begun = Instant::now();
        while get(http, "/health").is_none_or(|(status, _)| status != 200) {
            if let Some(status) = server.process.try_wait()? {
                bail!("{command:?} ended with {status}");
            }
            if begun.elapsed() > PATIENCE {
                bail!("{command:?} is not healthy after {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
