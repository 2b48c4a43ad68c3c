//! Rotary embeddings of the tokens of a step.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use crate::model::{Rope, RopePairs};

/// The angles of a rotary embedding at the positions of a step.
#[derive(Debug)]
pub(super) struct Angles<'a> {
    rope: &'a Rope,
    /// `[n_tokens, dim / 2]`
    cos: Tensor,
    sin: Tensor,
}

impl<'a> Angles<'a> {
    pub(super) fn new(rope: &'a Rope, positions: &[u32], device: &Device) -> Result<Self> {
        let (cos, sin) = rope.angles(positions);
        let shape = (positions.len(), rope.dim / 2);
        Ok(Self { rope, cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }

    /// Turns the first `dim` numbers of each head of `x [n_tokens, heads, head_dim]`, and keeps the rest.
    pub(super) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, head_dim) = x.dims3()?;
        let dim = self.rope.dim;
        if dim == head_dim {
            return self.turn_all(&x.contiguous()?);
        }
        let turned = self.turn_all(&x.narrow(D::Minus1, 0, dim)?.contiguous()?)?;
        Tensor::cat(&[&turned, &x.narrow(D::Minus1, dim, head_dim - dim)?], D::Minus1)
    }

    fn turn_all(&self, x: &Tensor) -> Result<Tensor> {
        match self.rope.pairs {
            RopePairs::Halves => rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0),
            RopePairs::Neighbours => {
                let (n_tokens, heads, dim) = x.dims3()?;
                let pairs = x.reshape((n_tokens, heads, dim / 2, 2))?;
                let (first, second) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
                let (cos, sin) = (self.cos.unsqueeze(1)?, self.sin.unsqueeze(1)?); // the same for all heads
                let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
                let turned_second = (first.broadcast_mul(&sin)? + second.broadcast_mul(&cos)?)?;
                Tensor::stack(&[&turned_first, &turned_second], 3)?.reshape((n_tokens, heads, dim))
            }
        }
    }
}
