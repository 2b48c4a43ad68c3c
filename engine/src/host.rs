//! What the host is.

use plexus_types::DeviceId;

use crate::error::EngineError;

/// The processors' name and the memory of the host, bytes; inside a container the limit of the container is the memory.
pub(super) fn describe(id: DeviceId) -> Result<(String, u64), EngineError> {
    let failed = |error: sysinfo::Error| EngineError::Device { device: id, reason: format!("the host's memory cannot be read: {error:?}") };
    let refresh = sysinfo::RefreshKind::nothing()
        .with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram())
        .with_cpu(sysinfo::CpuRefreshKind::nothing());
    let system = sysinfo::System::new_with_specifics(refresh).map_err(failed)?;
    let memory = system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory.min(system.total_memory()));
    let name = system.cpus().first().map_or(String::new(), |cpu| cpu.brand().trim().to_owned());
    Ok((if name.is_empty() { "host CPU".to_owned() } else { name }, memory))
}

/// Threads that can run at once: the cores that this process may use.
pub(super) fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
