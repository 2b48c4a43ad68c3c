//! The weights of a decoder, brought onto a device.

use std::convert::Infallible;

use candle_core::{Device, Tensor};

use super::matrix::{Matrix, has_format};
use crate::decoder::{self, LoadTensor};
use crate::error::EngineError;
use crate::model::{ModelFiles, TensorView};

pub(super) type Reading = decoder::Reading<Matrix, Infallible, Tensor>;

/// Errors: [`EngineError::Unsupported`] names a format that candle lacks.
pub(super) fn check_formats(files: &ModelFiles) -> Result<(), EngineError> {
    for tensor in files.config.tensors() {
        if let Some(held) = files.weights().held(&tensor.name).filter(|held| !has_format(*held)) {
            let what = format!("the format {held} of tensor {:?} on this device", tensor.name);
            return Err(EngineError::unsupported(what, "the host's processors, or the same model in another format"));
        }
    }
    Ok(())
}

/// Brings tensors onto the device. `failed` names it in errors of the computation.
pub(super) struct Loader<'a> {
    pub(super) device: &'a Device,
    pub(super) failed: &'a dyn Fn(candle_core::Error) -> EngineError,
}

impl LoadTensor for Loader<'_> {
    type Matrix = Matrix;
    type Begun = Infallible;
    type Vector = Tensor;

    fn matrix(&self, _name: &str, tensor: &TensorView<'_>) -> Result<Matrix, EngineError> {
        Matrix::new(tensor, self.device, self.failed)
    }

    fn some_rows(
        &self,
        name: &str,
        tensor: &TensorView<'_>,
        _begun: &mut Option<Infallible>,
        _bytes: usize,
    ) -> Result<Option<Matrix>, EngineError> {
        self.matrix(name, tensor).map(Some) // candle makes a tensor of all its bytes
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor, EngineError> {
        Tensor::new(values, self.device).map_err(self.failed)
    }

    fn bytes(matrix: &Matrix) -> usize {
        matrix.bytes()
    }
}
