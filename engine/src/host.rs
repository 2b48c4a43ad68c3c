//! What the host is.

use plexus_kernels::Isa;
use plexus_types::{Bytes, DeviceId, DeviceKind};

use crate::error::EngineError;

/// The processors' name and the memory of the host, bytes; inside a container the limit of the container is the memory.
///
/// Errors: [`EngineError::Device`] if `id` is not that of the host's processors, or the host does not tell its memory.
pub(crate) fn describe(id: DeviceId) -> Result<(String, u64), EngineError> {
    if id.kind != DeviceKind::Cpu || id.ordinal != 0 {
        return Err(EngineError::Device { device: id, reason: "the host's processors are one device, cpu-0".into() });
    }
    let system = look(with_processors())?;
    Ok((name_of(&system).unwrap_or_else(|| "host CPU".to_owned()), memory_of(&system)))
}

/// The processors of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processor {
    /// What their maker calls them; absent if the host does not tell.
    pub name: Option<String>,
    /// Threads that can run at once: the cores that this process may use.
    pub threads: usize,
    /// The sets of instructions that kernels are written for and these have, the best last.
    pub instruction_sets: Vec<&'static str>,
}

/// The processors of the host.
pub fn processor() -> Processor {
    let system = look(with_processors()).ok();
    let instruction_sets = Isa::available().into_iter().map(Isa::name).collect();
    Processor { name: system.as_ref().and_then(name_of), threads: n_cores(), instruction_sets }
}

/// Memory of the host; inside a container what the container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: Bytes,
    /// What could be had now without swapping.
    pub available: Bytes,
}

/// The memory of the host, as it is now; inside a container that of the container.
///
/// Errors: [`EngineError::Device`] if the host does not tell.
pub fn host_memory_now() -> Result<HostMemory, EngineError> {
    let system = look(sysinfo::RefreshKind::nothing())?;
    let available = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory).min(system.available_memory());
    Ok(HostMemory { total: Bytes(memory_of(&system)), available: Bytes(available) })
}

/// The memory of the host; inside a container the limit of the container.
///
/// Errors: [`EngineError::Device`] if the host does not tell.
pub fn host_memory() -> Result<Bytes, EngineError> {
    look(sysinfo::RefreshKind::nothing()).map(|system| Bytes(memory_of(&system)))
}

fn with_processors() -> sysinfo::RefreshKind {
    sysinfo::RefreshKind::nothing().with_cpu(sysinfo::CpuRefreshKind::nothing())
}

fn name_of(system: &sysinfo::System) -> Option<String> {
    system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_had_of_the_memory_is_a_part_of_it() {
        let memory = host_memory_now().unwrap();
        assert!(memory.available.0 > 0 && memory.available <= memory.total, "{memory:?}");
        assert_eq!(memory.total, host_memory().unwrap());
    }

    #[test]
    fn the_processors_have_threads_and_instructions_that_kernels_use() {
        let processor = processor();
        assert!(processor.threads >= 1 && processor.instruction_sets.contains(&Isa::best().name()), "{processor:?}");
    }
}
