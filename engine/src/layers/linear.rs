//! Linear maps with optional bias, and RMS norms.

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::rms_norm;

use super::Matrix;

/// `x W^T + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Matrix,
    /// `[rows]`
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        Ok(Self { weight, bias: bias.map(|bias| Tensor::new(bias, device)).transpose()? })
    }

    /// `x`: `[n, columns]` gives `[n, rows]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Memory of the matrix.
    #[cfg(test)]
    pub(crate) fn matrix_bytes(&self) -> u64 {
        self.weight.bytes()
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    pub(crate) fn new(weight: Vec<f32>, eps: f64, device: &Device) -> Result<Self> {
        Ok(Self { weight: Tensor::new(weight, device)?, eps: eps as f32 })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}
