//! What the host is.

use plexus_types::{Bytes, DeviceId, DeviceKind};

use crate::error::EngineError;

/// The processors' name and the memory of the host, bytes; inside a container the limit of the container is the memory.
///
/// Errors: [`EngineError::Device`] if `id` is not that of the host's processors, or the host does not tell its memory.
pub(crate) fn describe(id: DeviceId) -> Result<(String, u64), EngineError> {
    if id.kind != DeviceKind::Cpu || id.ordinal != 0 {
        return Err(EngineError::Device { device: id, reason: "the host's processors are one device, cpu-0".into() });
    }
    let system = look(sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing()))?;
    let name = system.cpus().first().map_or(String::new(), |cpu| cpu.brand().trim().to_owned());
    Ok((if name.is_empty() { "host CPU".to_owned() } else { name }, memory_of(&system)))
}

/// The memory of the host; inside a container the limit of the container.
///
/// Errors: [`EngineError::Device`] if the host does not tell.
pub fn host_memory() -> Result<Bytes, EngineError> {
    look(sysinfo::RefreshKind::nothing()).map(|system| Bytes(memory_of(&system)))
}

/// The host's memory, and what else is asked for.
fn look(also: sysinfo::RefreshKind) -> Result<sysinfo::System, EngineError> {
    let device = DeviceId { kind: DeviceKind::Cpu, ordinal: 0 };
    let refresh = also.with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram());
    sysinfo::System::new_with_specifics(refresh)
        .map_err(|error| EngineError::Device { device, reason: format!("the host's memory cannot be read: {error:?}") })
}

fn memory_of(system: &sysinfo::System) -> u64 {
    system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory.min(system.total_memory()))
}

/// Threads that can run at once: the cores that this process may use.
pub(crate) fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
