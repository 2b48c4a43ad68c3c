//! The weights of a decoder, brought onto a device.

use candle_core::{Device, Tensor};

use super::decoder::Decoder;
use super::matrix::{Matrix, has_format};
use crate::decoder::LoadTensor;
use crate::error::EngineError;
use crate::model::{ModelFiles, TensorView};

/// Reads all weights onto the device, one tensor at a time. `failed` names the device in errors of the computation.
///
/// Errors: [`EngineError::Unsupported`], before anything is read, names a format that candle lacks.
pub(super) fn load(
    files: &ModelFiles,
    device: &Device,
    failed: &dyn Fn(candle_core::Error) -> EngineError,
) -> Result<Decoder, EngineError> {
    for tensor in files.config.tensors() {
        if let Some(held) = files.weights().held(&tensor.name).filter(|held| !has_format(*held)) {
            let what = format!("the format {held} of tensor {:?} on this device", tensor.name);
            return Err(EngineError::unsupported(what, "the host's processors, or the same model in another format"));
        }
    }
    let decoder = Decoder::read(files, &Loader { device, failed })?;
    files.weights().check_unchanged()?;
    Ok(decoder)
}

struct Loader<'a> {
    device: &'a Device,
    failed: &'a dyn Fn(candle_core::Error) -> EngineError,
}

impl LoadTensor for Loader<'_> {
    type Matrix = Matrix;
    type Vector = Tensor;

    fn matrix(&self, _name: &str, tensor: &TensorView<'_>) -> Result<Matrix, EngineError> {
        Matrix::new(tensor, self.device, self.failed)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor, EngineError> {
        Tensor::new(values, self.device).map_err(self.failed)
    }

    fn bytes(matrix: &Matrix) -> usize {
        matrix.bytes()
    }
}
