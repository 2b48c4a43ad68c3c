//! A weight matrix, dense or quantized, on the CPU or a GPU.

use std::fmt;

use candle_core::quantized::{GgmlDType, GgmlType, QMatMul, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Module, Result, Shape, Tensor};
use rayon::prelude::*;

use plexus_kernels::Format;

use crate::error::EngineError;
use crate::model::TensorView;

/// Below so many multiplications a product takes less time than waking other threads.
const PARALLEL_WORK: usize = 1 << 20;

/// A weight matrix `[rows, columns]`; a product takes `columns` in and gives `rows` out.
#[derive(Debug)]
pub(super) enum Matrix {
    Cpu(CpuMatrix),
    /// As candle holds it on a GPU.
    Gpu(QMatMul),
}

/// Rows of numbers or of quantized blocks. There is no second, repacked copy, so that memory is what the ledger says.
pub(super) struct CpuMatrix {
    weights: CpuWeights,
    rows: usize,
    columns: usize,
}

enum CpuWeights {
    Dense(Vec<f32>),
    Quantized(Box<dyn QuantizedType>),
}

impl fmt::Debug for CpuMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.weights {
            CpuWeights::Dense(_) => write!(f, "CpuMatrix[{}, {}; F32]", self.rows, self.columns),
            CpuWeights::Quantized(blocks) => write!(f, "CpuMatrix[{}, {}; {:?}]", self.rows, self.columns, blocks.dtype()),
        }
    }
}

impl Matrix {
    /// Brings a tensor of two dimensions onto the device. `failed` names the device in errors of its own.
    pub(super) fn new(
        tensor: &TensorView<'_>,
        device: &Device,
        failed: &dyn Fn(candle_core::Error) -> EngineError,
    ) -> std::result::Result<Self, EngineError> {
        if tensor.held.is_dense() {
            let values = tensor.to_f32()?;
            return Self::dense(values, tensor.shape, device).map_err(failed);
        }
        let blocks = tensor.to_held()?;
        Self::quantized(tensor.held, &blocks, tensor.shape, device).map_err(failed)
    }

    fn dense(values: Vec<f32>, shape: &[usize], device: &Device) -> Result<Self> {
        let (rows, columns) = two(shape)?;
        if device.is_cpu() {
            return Ok(Self::Cpu(CpuMatrix { weights: CpuWeights::Dense(values), rows, columns }));
        }
        Ok(Self::Gpu(QMatMul::Tensor(Tensor::from_vec(values, (rows, columns), device)?)))
    }

    fn quantized(format: Format, blocks: &[u8], shape: &[usize], device: &Device) -> Result<Self> {
        let (rows, columns) = two(shape)?;
        let dtype = ggml(format).ok_or_else(|| candle_core::Error::msg(format!("candle has no {format}")))?;
        let mut room = Vec::new();
        let blocks = aligned(blocks, &mut room);
        if device.is_cpu() {
            return Ok(Self::Cpu(CpuMatrix { weights: CpuWeights::Quantized(dtype.from_data(blocks.into())), rows, columns }));
        }
        let storage = QStorage::from_data(blocks.into(), device, dtype)?;
        Ok(Self::Gpu(QMatMul::from_qtensor(QTensor::new(storage, (rows, columns))?)?))
    }

    /// `x [n, columns]` times the transpose of this: `[n, rows]`, f32.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu(matrix) => x.apply_op1_no_bwd(matrix),
            Self::Gpu(matrix) => matrix.forward(x),
        }
    }

    /// Rows `ids [n]` of this: `[n, columns]`, f32.
    pub(super) fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        match self {
            Self::Cpu(matrix) => Tensor::from_vec(matrix.rows_of(ids)?, (ids.len(), matrix.columns), device),
            Self::Gpu(matrix) => matrix.embedding(&Tensor::new(ids, device)?),
        }
    }

    /// Memory held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Cpu(CpuMatrix { weights: CpuWeights::Dense(weights), .. }) => size_of_val(&weights[..]),
            Self::Cpu(CpuMatrix { weights: CpuWeights::Quantized(blocks), .. }) => blocks.storage_size_in_bytes(),
            Self::Gpu(QMatMul::QTensor(tensor)) => tensor.storage_size_in_bytes(),
            Self::Gpu(QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor)) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }
}

/// Rows and columns.
fn two(shape: &[usize]) -> Result<(usize, usize)> {
    match *shape {
        [rows, columns] => Ok((rows, columns)),
        _ => candle_core::bail!("a matrix has two dimensions, not {shape:?}"),
    }
}

/// Can candle hold this format, or the numbers in it?
pub(super) fn has_format(format: Format) -> bool {
    ggml(format).is_some()
}

/// candle's name for a format; none for those that it lacks.
fn ggml(format: Format) -> Option<GgmlDType> {
    Some(match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
        Format::Iq4Nl | Format::Iq4Xs => return None,
    })
}

/// `bytes` at an address that suits every block type: they are copied into `copy` if need be.
fn aligned<'a>(bytes: &'a [u8], copy: &'a mut Vec<u8>) -> &'a [u8] {
    /// Of f32, the most that any block asks for.
    const ALIGNMENT: usize = align_of::<f32>();
    if bytes.as_ptr().align_offset(ALIGNMENT) == 0 {
        return bytes;
    }
    copy.resize(bytes.len() + ALIGNMENT, 0);
    let start = copy.as_ptr().align_offset(ALIGNMENT);
    copy[start..start + bytes.len()].copy_from_slice(bytes);
    &copy[start..start + bytes.len()]
}

impl CpuMatrix {
    fn rows_of(&self, ids: &[u32]) -> Result<Vec<f32>> {
        match &self.weights {
            CpuWeights::Dense(weights) => {
                let rows = ids.iter().map(|id| weights.chunks_exact(self.columns).nth(*id as usize));
                let rows: Option<Vec<&[f32]>> = rows.collect();
                match rows {
                    Some(rows) => Ok(rows.concat()),
                    None => candle_core::bail!("a token is beyond the {} rows of the embedding", self.rows),
                }
            }
            CpuWeights::Quantized(blocks) => match blocks.embedding(ids, self.rows, self.columns)? {
                CpuStorage::F32(values) => Ok(values),
                _ => candle_core::bail!("an embedding gives f32"),
            },
        }
    }
}

/// The product as an operation on tensors. Every number of the result is one dot product, computed in the same way whatever `n`.
/// Quantized blocks meet activations quantized row by row to 8 bits.
impl CustomOp1 for CpuMatrix {
    fn name(&self) -> &'static str {
        "matrix-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, columns) = layout.shape().dims2()?;
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("the activations are not contiguous") };
        if columns != self.columns {
            candle_core::bail!("activations of width {columns} meet a matrix of {} columns", self.columns);
        }
        let x = &storage.as_slice::<f32>()?[start..end];
        let out = match &self.weights {
            _ if n == 0 => Vec::new(),
            CpuWeights::Dense(weights) => dense_product(weights, x, columns),
            CpuWeights::Quantized(blocks) => {
                let mut out = vec![0f32; n * self.rows];
                blocks.matmul_t((n, columns, self.rows), x, &mut out)?;
                out
            }
        };
        Ok((CpuStorage::F32(out), (n, self.rows).into()))
    }
}

/// `x [n, columns]` times the transpose of `weights [rows, columns]`: `[n, rows]`. Weights are read once.
fn dense_product(weights: &[f32], x: &[f32], columns: usize) -> Vec<f32> {
    let (n, rows) = (x.len() / columns, weights.len() / columns);
    let mut transposed = vec![0f32; rows * n]; // [rows, n], so that each thread has its own stretch
    let row = |(out, weights): (&mut [f32], &[f32])| {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(columns)) {
            *out = f32::vec_dot(columns, weights, x);
        }
    };
    if n * weights.len() < PARALLEL_WORK {
        transposed.chunks_exact_mut(n).zip(weights.chunks_exact(columns)).for_each(row);
    } else {
        let per_task = (PARALLEL_WORK / 4).div_ceil(n * columns);
        let tasks = transposed.par_chunks_exact_mut(n).zip(weights.par_chunks_exact(columns));
        tasks.with_min_len(per_task).for_each(row);
    }
    if n == 1 {
        return transposed;
    }
    (0..n).flat_map(|i| transposed[i..].iter().step_by(n)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_any_address_are_brought_to_a_good_one() {
        let bytes: Vec<u8> = (0..64).collect();
        for start in 0..8 {
            let mut copy = Vec::new();
            let slice = aligned(&bytes[start..start + 32], &mut copy);
            assert_eq!((slice, slice.as_ptr().align_offset(4)), (&bytes[start..start + 32], 0));
        }
    }

    /// Activations are quantized to 8 bits in blocks of 32 to 256: some parts in a thousand of the norm of a product.
    const TOLERANCE: f32 = 0.01;

    #[test]
    fn products_and_rows_of_every_type_agree_with_dense_arithmetic() {
        let (n, rows, columns) = (5, 24, 512);
        let shape = [rows, columns];
        let dense = Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
        let x = Tensor::randn(0f32, 1.0, (n, columns), &Device::Cpu).unwrap();
        for format in Format::ALL.into_iter().filter(|format| has_format(*format)) {
            let dtype = ggml(format).unwrap();
            let quantized = QTensor::quantize(&dense, dtype).unwrap();
            let weights = quantized.dequantize(&Device::Cpu).unwrap();
            let plain = x.matmul(&weights.t().unwrap()).unwrap();
            for widen in [false, true] {
                let bytes = quantized.data().unwrap();
                let tensor = TensorView::of(format, if widen { Format::F32 } else { format }, &shape, &bytes);
                let matrix = Matrix::new(&tensor, &Device::Cpu, &|error| panic!("{error}")).unwrap();
                let exact = widen || format.is_dense();
                assert_eq!(exact, matrix.bytes() == 4 * rows * columns, "{dtype:?}");
                let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
                let error = norm(&(matrix.forward(&x).unwrap() - &plain).unwrap()) / norm(&plain);
                assert!(error < if exact { 1e-6 } else { TOLERANCE }, "{dtype:?}: {error}");
                let row = matrix.embed(&[7], &Device::Cpu).unwrap();
                assert_eq!(row.to_vec2::<f32>().unwrap(), weights.narrow(0, 7, 1).unwrap().to_vec2::<f32>().unwrap(), "{dtype:?}");
                // One row alone gives the same bits as among others.
                let alone = matrix.forward(&x.narrow(0, 3, 1).unwrap()).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(alone[0], matrix.forward(&x).unwrap().to_vec2::<f32>().unwrap()[3], "{dtype:?}");
            }
        }
    }
}
