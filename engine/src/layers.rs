//! The parts that decoders are made of, each over all tokens of a step at once.
//!
//! On the CPU the result of a row never depends on the other rows: matrix products, norms and attention work row by row. So a
//! sequence gets the same tokens alone, in a batch, in chunks, and when another replica continues it.

mod attention;
mod cache;
mod linear;
mod matrix;

pub(crate) use attention::{Attention, Span};
pub(crate) use cache::KvCache;
pub(crate) use linear::{Linear, Norm};
pub(crate) use matrix::Matrix;
