//! What is hot on a CPU: products with quantized and dense matrices, attention over paged keys and values, norms, rotary embedding,
//! activations, and the team of threads that computes them. Plain memory in, plain memory out; no tensors, no models.

pub mod activation;
pub mod attention;
pub mod format;
pub mod isa;
pub mod logits;
pub mod matrix;
pub mod memory;
pub mod norm;
pub mod rope;
pub mod rows;
mod simd;
pub mod team;

pub use format::Format;
pub use isa::Isa;
pub use matrix::{LoadError, Loading, Matrix, MatrixError, Product, multiply};
pub use rows::{Activations, Forms};
pub use team::Team;
