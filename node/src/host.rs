//! What this machine is, for those who ask what it can serve (CX-45).

use plexus_api::{Cpu, Host, LookAtHost};
use plexus_engine::{families, host_memory_now, processor, weight_formats};

use crate::config::CudaDevices;
use crate::devices::why_no_gpu;

/// Looks at this machine, which calls itself `name` and whose driver shows so many GPUs: at what does not change once, now, and at its memory each
/// time anew.
pub(crate) fn look(name: &str, cuda: &CudaDevices, found: &Result<u32, String>) -> LookAtHost {
    let has_gpu = found.as_ref().is_ok_and(|n_gpus| *n_gpus > 0);
    let words = |list: Vec<&'static str>| list.into_iter().map(str::to_owned).collect();
    let processor = processor();
    let lasting = Host {
        hostname: known(name),
        os: sysinfo::System::long_os_version().ok().and_then(|os| known(&os)),
        kernel: sysinfo::System::kernel_version().ok().and_then(|kernel| known(&kernel)),
        architecture: known(&sysinfo::System::cpu_arch()),
        cpu: Cpu { name: processor.name, threads: Some(processor.threads), instruction_sets: words(processor.instruction_sets) },
        cuda_version: known(env!("PLEXUS_BUILD_CUDA")).filter(|_| has_gpu),
        driver_version: driver_version().filter(|_| has_gpu),
        cuda_unavailable_reason: why_no_gpu(cuda, found),
        families: words(families()),
        weight_formats: words(weight_formats()),
        ..Host::default()
    };
    LookAtHost::new(move || {
        let memory = host_memory_now().ok();
        Host {
            memory_total_mb: memory.map(|memory| memory.total.0 >> 20),
            memory_available_mb: memory.map(|memory| memory.available.0 >> 20),
            ..lasting.clone()
        }
    })
}

/// Nothing is known of what is empty.
fn known(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The version of NVIDIA's driver, as the kernel's module tells it.
fn driver_version() -> Option<String> {
    std::fs::read_to_string("/sys/module/nvidia/version").ok().and_then(|version| known(&version))
}
