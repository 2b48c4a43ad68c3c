//! What the figures were measured on.

use std::fs;
use std::time::SystemTime;

/// Date, processor, cores, memory and load of this machine, in one line.
pub(crate) fn describe() -> String {
    let date = humantime::format_rfc3339_seconds(SystemTime::now());
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let load = fs::read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next().map(str::to_owned));
    format!("{date}; {cpu}, {cores} cores; memory {memory}; load average at the start {}", load.as_deref().unwrap_or("unknown"))
}

/// The first value of `key` in a file of `key: value` lines.
fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key)?;
    Some(value.trim().to_owned())
}
