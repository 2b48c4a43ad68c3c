//! How much memory a process has, and how much it reads.

use std::fs;

use crate::process::Node;

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is resident, with the pages of mapped files.
    pub resident: u64,
    /// Of that, what belongs to no file.
    pub anonymous: u64,
}

impl Node {
    /// What the system says of this node's memory; nothing once the process has ended.
    pub fn memory(&self) -> Option<Memory> {
        memory_of(self.pid())
    }

    /// Bytes that this node has read from files by now, wherever they came from; nothing once the process has ended.
    pub fn bytes_read(&self) -> Option<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid())).ok()?;
        io.lines().find_map(|line| line.strip_prefix("rchar:"))?.trim().parse().ok()
    }
}

/// What the system says of a process's memory; nothing once it has ended.
pub fn memory_of(pid: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    };
    Some(Memory { resident: line("VmRSS:")?, anonymous: line("RssAnon:")? })
}
