//! Which devices this node serves on.

use std::sync::Arc;

use plexus_actors::args::{DeviceSpec, OpenDevice};
use plexus_engine::embed::EmbeddingExecutor;
use plexus_engine::executor::Executor;
use plexus_engine::{CandleExecutor, CpuExecutor, host_memory};
use plexus_types::{Bytes, DeviceId, DeviceKind};

use crate::config::{ConfigError, CudaDevices, Fraction, ValidConfig};

/// The devices that the configuration allows and this machine has, where the driver shows so many GPUs. None of them is opened yet.
pub(crate) fn find(valid: &ValidConfig, found: &Result<u32, String>) -> Result<Vec<DeviceSpec>, ConfigError> {
    let section = &valid.get().devices;
    let mut devices = Vec::new();
    let n_found = found.as_ref().map_or(0, |n_gpus| *n_gpus);
    let ordinals = match &section.cuda {
        CudaDevices::Off => Vec::new(),
        CudaDevices::Auto => (0..n_found).collect(),
        CudaDevices::These(ordinals) => {
            if let Some(missing) = ordinals.iter().find(|ordinal| **ordinal >= n_found) {
                let problem = match found {
                    Ok(n_gpus) => format!("there is no GPU {missing}: this machine has {n_gpus}"),
                    Err(why) => why.clone(),
                };
                let list = ordinals.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
                return Err(valid.refuse(
                    "devices.cuda",
                    format!("{list:?}"),
                    problem,
                    "write \"auto\" for those that are there, or \"off\"",
                ));
            }
            ordinals.clone()
        }
    };
    // GPUs first: a model without a device goes to the first with room.
    for ordinal in ordinals {
        let (id, share) = (DeviceId { kind: DeviceKind::Cuda, ordinal }, section.cuda_memory_share);
        devices.push(DeviceSpec::new(id, gpu(id, share)));
    }
    if section.cpu {
        let (id, share) = (DeviceId { kind: DeviceKind::Cpu, ordinal: 0 }, section.cpu_memory_share);
        devices.push(DeviceSpec::new(id, host(id, share, cpu_memory(valid)?, n_threads(valid)?)));
    }
    Ok(devices)
}

/// What serving takes beside the models themselves: connections, stacks of threads, prompts, and what the allocator keeps for later.
const SERVING: Bytes = Bytes(24 << 20);

/// The threads that were asked for, if this process has a core for each: threads of one operation wait for each other, so that one too
/// many would hold up all.
fn n_threads(valid: &ValidConfig) -> Result<Option<usize>, ConfigError> {
    let Some(asked) = valid.get().devices.cpu_threads else { return Ok(None) };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match usize::try_from(asked) {
        Ok(n_threads) if n_threads <= cores => Ok(Some(n_threads)),
        _ => {
            let problem = format!("there are {cores} cores for this process");
            Err(valid.refuse("devices.cpu_threads", asked, problem, format!("write at most {cores}, or 0 for all of them")))
        }
    }
}

/// What models have of the memory that was asked for by number, if the host has it; in a container, if the container may have it.
fn cpu_memory(valid: &ValidConfig) -> Result<Option<Bytes>, ConfigError> {
    let Some(asked) = valid.get().devices.cpu_memory else { return Ok(None) };
    let refused = |problem: String| {
        let remedy = format!("write a size above {SERVING} that it has, or \"\" for the share");
        Err(valid.refuse("devices.cpu_memory", format!("\"{}\"", asked.0), problem, remedy))
    };
    if asked.0 <= SERVING {
        return refused(format!("serving takes {SERVING} of it"));
    }
    match host_memory() {
        Ok(total) if asked.0 > total => refused(format!("this machine has {total}")),
        Ok(_) | Err(_) => Ok(Some(asked.0.saturating_sub(SERVING))), // why it cannot be told, the device itself says
    }
}

fn host(id: DeviceId, share: Fraction, memory: Option<Bytes>, n_threads: Option<usize>) -> OpenDevice {
    Arc::new(move || {
        let decoders = CpuExecutor::open(id, share.get() as f32, n_threads)?;
        let decoders = match memory {
            Some(memory) => decoders.with_memory(memory),
            None => decoders,
        };
        Ok(Box::new(EmbeddingExecutor::on_host(decoders)) as Box<dyn Executor>)
    })
}

fn gpu(id: DeviceId, share: Fraction) -> OpenDevice {
    Arc::new(move || {
        let decoders = CandleExecutor::open(id, share.get() as f32)?;
        let device = decoders.device().clone();
        Ok(Box::new(EmbeddingExecutor::new(decoders, device)) as Box<dyn Executor>)
    })
}

/// GPUs that the driver shows, or why it cannot be asked. The library panics where there is no driver.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_count() -> Result<u32, String> {
    match std::panic::catch_unwind(cudarc::driver::CudaContext::device_count) {
        Ok(Ok(count)) => Ok(u32::try_from(count).unwrap_or(0)),
        Ok(Err(error)) => Err(format!("the NVIDIA driver refused: {error}")),
        Err(_) => Err("no NVIDIA driver was found".to_owned()),
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn cuda_count() -> Result<u32, String> {
    Err("this binary was built without CUDA".to_owned())
}

/// Why the node serves on no GPU, having found so many; absent if it does.
pub(crate) fn why_no_gpu(wanted: &CudaDevices, found: &Result<u32, String>) -> Option<String> {
    match (found, wanted) {
        (Err(why), _) => Some(why.clone()),
        (Ok(0), _) => Some("the NVIDIA driver shows no GPU".to_owned()),
        (Ok(_), CudaDevices::Off) => Some("[devices] cuda is \"off\"".to_owned()),
        (Ok(_), CudaDevices::Auto | CudaDevices::These(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn found(name: &str, value: &str) -> Result<Vec<String>, String> {
        let valid = load(Sources { variables: vec![(name.to_owned(), value.to_owned())], ..Sources::default() }).unwrap();
        find(&valid, &cuda_count())
            .map(|devices| devices.iter().map(|device| device.id.to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_processor_is_the_last_device_and_can_be_switched_off() {
        assert_eq!(found("PLEXUS_DEVICES__CUDA", "off").unwrap(), ["cpu-0"]);
        assert!(!found("PLEXUS_DEVICES__CPU", "false").unwrap().contains(&"cpu-0".to_owned()));
    }

    #[test]
    fn a_gpu_that_was_asked_for_and_is_not_there_is_refused() {
        let error = found("PLEXUS_DEVICES__CUDA", "0,4096").unwrap_err();
        assert!(error.contains("devices.cuda = \"0,4096\"") && error.contains("write \"auto\""), "{error}");
    }

    #[test]
    fn a_node_without_gpus_says_why() {
        // CX-45
        for (wanted, found, expected) in [
            (CudaDevices::Auto, Err("no driver".to_owned()), Some("no driver")),
            (CudaDevices::Off, Err("no driver".to_owned()), Some("no driver")),
            (CudaDevices::Auto, Ok(0), Some("the NVIDIA driver shows no GPU")),
            (CudaDevices::Off, Ok(2), Some("[devices] cuda is \"off\"")),
            (CudaDevices::Auto, Ok(2), None),
            (CudaDevices::These(vec![1]), Ok(2), None),
        ] {
            assert_eq!(why_no_gpu(&wanted, &found).as_deref(), expected, "{wanted:?} {found:?}");
        }
    }

    #[test]
    fn more_memory_than_the_engine_sees_is_refused() {
        let total = host_memory().unwrap();
        assert_eq!(found("PLEXUS_DEVICES__CPU_MEMORY", &total.0.to_string()).unwrap().last().unwrap(), "cpu-0");
        let error = found("PLEXUS_DEVICES__CPU_MEMORY", &(total.0 + 1).to_string()).unwrap_err();
        assert!(error.contains("devices.cpu_memory") && error.contains(&format!("this machine has {total}")), "{error}");
        let error = found("PLEXUS_DEVICES__CPU_MEMORY", "24 MiB").unwrap_err();
        assert!(error.contains("devices.cpu_memory") && error.contains("serving takes 24.0 MiB"), "{error}");
    }

    // CX-06
    #[test]
    fn more_threads_than_cores_are_refused() {
        assert!(found("PLEXUS_DEVICES__CPU_THREADS", "1").unwrap().contains(&"cpu-0".to_owned()));
        let error = found("PLEXUS_DEVICES__CPU_THREADS", "70000").unwrap_err();
        assert!(error.contains("devices.cpu_threads = 70000") && error.contains("write at most"), "{error}");
    }
}
