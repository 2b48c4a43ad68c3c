//! A decoder's weights in memory.

use std::ops::Range;
use std::path::Path;

use plexus_kernels::norm::{layer_norm, rms_norm};
use plexus_kernels::{Forms, Loading, Matrix, MatrixError, Team};
use plexus_types::Bytes;

use crate::decoder::{self, LoadTensor};
use crate::error::EngineError;
use crate::model::TensorView;

pub(super) type Decoder = decoder::Decoder<Matrix, Vec<f32>>;
pub(super) type Reading = decoder::Reading<Matrix, Loading, Vec<f32>>;
pub(super) type Layer = decoder::Layer<Matrix, Vec<f32>>;
pub(super) type Network = decoder::Network<Matrix, Vec<f32>>;
pub(super) type Experts = decoder::Experts<Matrix, Vec<f32>>;
pub(super) type Linear = decoder::Linear<Matrix, Vec<f32>>;
pub(super) type Norm = decoder::Norm<Vec<f32>>;

/// Reads the tensors of a model's files; the team reads and packs each.
pub(super) struct Loader<'a> {
    pub(super) path: &'a Path,
    pub(super) team: &'a Team,
}

impl Loader<'_> {
    fn begin(&self, name: &str, tensor: &TensorView<'_>) -> Result<Loading, EngineError> {
        let malformed = |reason: String| EngineError::malformed(self.path, reason);
        let [rows, columns] = *tensor.shape else { return Err(malformed(format!("tensor {name:?} is no matrix"))) };
        Loading::new(tensor.format, tensor.held, rows, columns).map_err(|error| match error {
            MatrixError::Memory { bytes } => EngineError::Refused { needed: Bytes(bytes as u64) },
            error => malformed(format!("tensor {name:?}: {error}")),
        })
    }
}

impl LoadTensor for Loader<'_> {
    type Matrix = Matrix;
    type Begun = Loading;
    type Vector = Vec<f32>;

    fn matrix(&self, name: &str, tensor: &TensorView<'_>) -> Result<Matrix, EngineError> {
        let mut loading = self.begin(name, tensor)?;
        loading.read(usize::MAX, self.team, &|rows: Range<usize>, out: &mut [u8]| tensor.read(rows, out))?;
        Ok(loading.so_far())
    }

    fn some_rows(
        &self,
        name: &str,
        tensor: &TensorView<'_>,
        begun: &mut Option<Loading>,
        bytes: usize,
    ) -> Result<Option<Matrix>, EngineError> {
        let mut loading = begun.take().map_or_else(|| self.begin(name, tensor), Ok)?;
        if loading.read(bytes, self.team, &|rows: Range<usize>, out: &mut [u8]| tensor.read(rows, out))? {
            return Ok(Some(loading.so_far()));
        }
        *begun = Some(loading);
        Ok(None)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        Ok(values)
    }

    fn bytes(matrix: &Matrix) -> usize {
        matrix.bytes()
    }
}

impl Linear {
    /// What its input must be converted to.
    pub(super) fn forms(&self) -> Forms {
        Forms::of(self.matrix.format())
    }

    /// Numbers that it gives for each row.
    pub(super) fn rows(&self) -> usize {
        self.matrix.rows()
    }

    /// Adds the bias to rows of the product.
    pub(super) fn finish(&self, rows: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
    }
}

impl Norm {
    /// Norms each row of `x` in place.
    pub(super) fn apply(&self, x: &mut [f32]) {
        for row in x.chunks_exact_mut(self.weight.len()) {
            match &self.bias {
                Some(bias) => layer_norm(row, &self.weight, bias, self.eps),
                None => rms_norm(row, &self.weight, self.eps),
            }
        }
    }
}
