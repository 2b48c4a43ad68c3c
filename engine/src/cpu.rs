//! Models on the host's processors: our own kernels on plain memory.
//!
//! A step works in buffers that are kept from step to step. Small models are held as f32 and computed on the device's own thread; for others
//! weights stay in the format of their file and a team of threads shares each operation. Whatever a row gets is computed in the same
//! order whatever else is in the batch, so that a sequence has the same bits alone, in a batch, in chunks and continued elsewhere.

mod buffers;
mod decoder;
mod executor;
mod experts;
mod network;
mod weights;

pub use executor::CpuExecutor;
