//! What a model takes on a device: weights as the device's executor holds them, and keys and values.

use plexus_kernels::attention::{KvElement, KvPool};
use plexus_kernels::{Format, Matrix};
use plexus_types::{Bytes, DeviceKind};

use super::config::ModelConfig;
use super::weights::Weights;

/// As what the CPU executor keeps keys and values: exactly for small models, else in half the memory.
pub(crate) fn kv_element(small: bool) -> KvElement {
    if small { KvElement::F32 } else { KvElement::Bf16 }
}

/// Memory of all weights once loaded.
pub(super) fn weights_bytes(weights: &Weights, config: &ModelConfig, device: DeviceKind) -> Bytes {
    let expected = config.tensors();
    let held = expected.iter().filter_map(|tensor| weights.held(&tensor.name).map(|held| (held, tensor)));
    held.map(|(held, tensor)| Bytes(tensor_bytes(held, &tensor.shape, device))).sum()
}

fn tensor_bytes(held: Format, shape: &[usize], device: DeviceKind) -> u64 {
    let [rows, columns] = shape[..] else { return shape.iter().map(|dim| *dim as u64).product::<u64>() * 4 };
    match device {
        DeviceKind::Cpu => Matrix::packed_bytes(held, rows, columns).unwrap_or(usize::MAX) as u64,
        // candle computes with plain numbers in f32.
        DeviceKind::Cuda if held.is_dense() => rows as u64 * columns as u64 * 4,
        DeviceKind::Cuda => rows as u64 * held.row_bytes(columns).unwrap_or(usize::MAX) as u64,
    }
}

/// Keys and values of one token in all layers.
pub(super) fn kv_bytes_per_token(config: &ModelConfig, small: bool, device: DeviceKind) -> Bytes {
    let per_layer = match device {
        DeviceKind::Cpu => KvPool::bytes_per_position(kv_element(small), config.kv_heads, config.head_dim),
        DeviceKind::Cuda => 2 * 4 * config.kv_heads * config.head_dim,
    };
    Bytes(config.layers.len() as u64 * per_layer as u64)
}
