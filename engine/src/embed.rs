//! Texts to vectors: encoders of the BERT and XLM-R families, and decoders that were trained to embed.

mod encoder;
mod executor;
pub(crate) mod files;
mod modules;
mod readout;
mod work;

pub use executor::EmbeddingExecutor;
pub use readout::Pooling;
pub use work::EmbedWork;

pub(crate) use files::EncoderFiles;
pub(crate) use modules::{ReadoutFiles, max_seq_length};
pub(crate) use readout::Readout;
