//! Formats, tokenizer, chat template, models, KV blocks, sampler and executor. Synchronous: no tokio, no actors, no network.
//!
//! A model's way: [`model::ModelPath`] names it, [`model::ModelFiles::open`] reads all of it but the weights, an
//! [`executor::Executor`] brings it onto a device and computes [`batch::Batch`]es, and its [`codec::Codec`] turns requests into
//! token ids and token ids into text.

pub mod batch;
mod candle;
pub mod codec;
mod cpu;
mod decoder;
pub mod draft;
pub mod embed;
pub mod embedded;
pub mod error;
pub mod executor;
pub mod grammar;
mod host;
pub mod kv;
mod layout;
pub mod model;
pub mod sample;
pub mod scripted;
mod served;

pub use batch::{Batch, BatchOutput, BlockCopy, BlockId, Draw};
pub use candle::CandleExecutor;
pub use codec::{Codec, Decoded, StreamDecoder};
pub use cpu::CpuExecutor;
pub use draft::DraftingExecutor;
pub use error::EngineError;
pub use executor::{DeviceDescription, Executor, GpuDescription, KvPlan, Slot};
pub use host::{HostMemory, Processor, host_memory, host_memory_now, processor};
pub use kv::BlockPool;
pub use model::{ModelFiles, ModelPath};
pub use sample::{DrawLogprobs, SamplerSettings};
pub use scripted::{Script, ScriptedExecutor};
pub use served::{families, weight_formats};
