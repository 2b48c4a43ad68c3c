//! A weight matrix, dense or quantized, on the CPU or a GPU.

use std::fmt;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Module, Result, Shape, Tensor};

use crate::model::RawTensor;

/// A weight matrix `[rows, columns]`; a product takes `columns` in and gives `rows` out.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// Held as stored and used as it is: no second, repacked copy, so that memory is what the ledger says.
    Cpu(Arc<CpuMatrix>),
    /// As candle holds it on a GPU.
    Gpu(QMatMul),
}

/// Rows of blocks. A block of f32 is one number.
pub(crate) struct CpuMatrix {
    blocks: Box<dyn QuantizedType>,
    rows: usize,
    columns: usize,
}

impl fmt::Debug for CpuMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMatrix[{}, {}; {:?}]", self.rows, self.columns, self.blocks.dtype())
    }
}

impl Matrix {
    /// Brings a tensor of two dimensions onto the device.
    pub(crate) fn new(raw: RawTensor, device: &Device) -> Result<Self> {
        let [rows, columns] = raw.shape[..] else { candle_core::bail!("a matrix has two dimensions, not {:?}", raw.shape) };
        let dense = raw.to_f32();
        if !device.is_cpu() {
            let weight = match dense {
                Some(values) => QMatMul::Tensor(Tensor::from_vec(values, (rows, columns), device)?),
                None => {
                    let storage = QStorage::from_data(aligned(&raw.bytes, &mut Vec::new()).into(), device, raw.dtype)?;
                    QMatMul::from_qtensor(QTensor::new(storage, (rows, columns))?)?
                }
            };
            return Ok(Self::Gpu(weight));
        }
        let blocks: Box<dyn QuantizedType> = match dense {
            Some(values) => Box::new(values),
            None => raw.dtype.from_data(aligned(&raw.bytes, &mut Vec::new()).into()),
        };
        debug_assert_eq!(blocks.storage_size_in_bytes(), rows * columns / blocks.block_size() * blocks.dtype().type_size());
        Ok(Self::Cpu(Arc::new(CpuMatrix { blocks, rows, columns })))
    }

    /// `x [n, columns]` times the transpose of this: `[n, rows]`, f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Cpu(matrix) => x.apply_op1_no_bwd(&Product(matrix)),
            Self::Gpu(matrix) => matrix.forward(x),
        }
    }

    /// Rows `ids [n]` of this: `[n, columns]`, f32.
    pub(crate) fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        match self {
            Self::Cpu(matrix) => match matrix.blocks.embedding(ids, matrix.rows, matrix.columns)? {
                CpuStorage::F32(values) => Tensor::from_vec(values, (ids.len(), matrix.columns), device),
                _ => candle_core::bail!("an embedding gives f32"),
            },
            Self::Gpu(matrix) => matrix.embedding(&Tensor::new(ids, device)?),
        }
    }

    /// Memory held on the CPU.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Cpu(matrix) => matrix.blocks.storage_size_in_bytes() as u64,
            Self::Gpu(_) => 0,
        }
    }
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

/// The product as an operation on tensors. Quantized blocks meet activations quantized row by row to 8 bits.
struct Product<'a>(&'a CpuMatrix);

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "matrix-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, columns) = layout.shape().dims2()?;
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("the activations are not contiguous") };
        if columns != self.0.columns {
            candle_core::bail!("activations of width {columns} meet a matrix of {} columns", self.0.columns);
        }
        let mut out = vec![0f32; n * self.0.rows];
        if n > 0 {
            self.0.blocks.matmul_t((n, columns, self.0.rows), &storage.as_slice::<f32>()?[start..end], &mut out)?;
        }
        Ok((CpuStorage::F32(out), (n, self.0.rows).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;

    /// Activations are quantized to 8 bits in blocks of 32 to 256: some parts in a thousand of the norm of a product.
    const TOLERANCE: f32 = 0.01;

    #[test]
    fn products_and_rows_of_every_type_agree_with_dense_arithmetic() {
        let (n, rows, columns) = (5, 24, 512);
        let dense = Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
        let x = Tensor::randn(0f32, 1.0, (n, columns), &Device::Cpu).unwrap();
        use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        for dtype in [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K] {
            let quantized = QTensor::quantize(&dense, dtype).unwrap();
            let weights = quantized.dequantize(&Device::Cpu).unwrap();
            let bytes = quantized.data().unwrap().into_owned();
            let matrix = Matrix::new(RawTensor { dtype, shape: vec![rows, columns], bytes }, &Device::Cpu).unwrap();
            let plain = x.matmul(&weights.t().unwrap()).unwrap();
            let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            let error = norm(&(matrix.forward(&x).unwrap() - &plain).unwrap()) / norm(&plain);
            assert!(error < TOLERANCE, "{dtype:?}: {error}");
            let row = matrix.embed(&[7], &Device::Cpu).unwrap();
            assert_eq!(row.to_vec2::<f32>().unwrap(), weights.narrow(0, 7, 1).unwrap().to_vec2::<f32>().unwrap(), "{dtype:?}");
            // One row alone gives the same bits as among others.
            let alone = matrix.forward(&x.narrow(0, 3, 1).unwrap()).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(alone[0], matrix.forward(&x).unwrap().to_vec2::<f32>().unwrap()[3], "{dtype:?}");
        }
    }

    #[test]
    fn bytes_at_any_address_are_brought_to_a_good_one() {
        let bytes: Vec<u8> = (0..64).collect();
        for start in 0..8 {
            let mut copy = Vec::new();
            let slice = aligned(&bytes[start..start + 32], &mut copy);
            assert_eq!((slice, slice.as_ptr().align_offset(4)), (&bytes[start..start + 32], 0));
        }
    }
}
