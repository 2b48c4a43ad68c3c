//! Linear maps with optional bias, and norms.

use candle_core::{Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};

use super::decoder::{Linear, Norm};

impl Linear {
    /// `x`: `[n, columns]` gives `[n, rows]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.matrix.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Norm {
    /// Over the last dimension of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => layer_norm(x, &self.weight, bias, self.eps),
            None => rms_norm(x, &self.weight, self.eps),
        }
    }
}
