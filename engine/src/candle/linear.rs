//! Linear maps with optional bias, and norms.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};

use super::matrix::Matrix;

/// `x W^T + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    weight: Matrix,
    /// `[rows]`
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(weight: Matrix, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        Ok(Self { weight, bias: bias.map(|bias| Tensor::new(bias, device)).transpose()? })
    }

    /// `x`: `[n, columns]` gives `[n, rows]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Memory of the matrix.
    #[cfg(test)]
    pub(super) fn matrix_bytes(&self) -> u64 {
        self.weight.bytes()
    }
}

/// A norm over the last dimension: of the root of the mean square without a bias, of mean and variance with one
/// ([`crate::model::NormKind`]).
#[derive(Debug, Clone)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

impl Norm {
    pub(super) fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, eps: f64, device: &Device) -> Result<Self> {
        Ok(Self { weight: Tensor::new(weight, device)?, bias: bias.map(|bias| Tensor::new(bias, device)).transpose()?, eps: eps as f32 })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => layer_norm(x, &self.weight, bias, self.eps),
            None => rms_norm(x, &self.weight, self.eps),
        }
    }
}
