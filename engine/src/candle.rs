//! The executor on candle: tensor operations on CUDA devices, and on the host's processors as a reference for our own kernels.
//!
//! On the CPU the result of a row never depends on the other rows: matrix products, norms and attention work row by row. So a
//! sequence gets the same tokens alone, in a batch, in chunks, and when another replica continues it.

mod attention;
mod cache;
mod decoder;
mod executor;
mod linear;
mod load;
mod matrix;
mod network;
mod rotation;

pub use executor::CandleExecutor;
