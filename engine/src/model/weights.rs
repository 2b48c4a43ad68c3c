//! The weights of a model: which tensors it has, where they lie, and reading one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::CpuStorage;
use candle_core::quantized::{GgmlDType, QuantizedType};
use half::{bf16, f16};
use plexus_kernels::Format;
use plexus_types::Bytes;

use super::config::ModelConfig;
use super::storage::Storage;
use crate::error::EngineError;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorEntry {
    /// Which of the model's files.
    pub(crate) file: usize,
    pub(crate) dtype: GgmlDType,
    /// Outermost first: rows, then columns.
    pub(crate) shape: Vec<usize>,
    /// From the start of the file.
    pub(crate) offset: u64,
    /// In the file, bytes.
    pub(crate) len: u64,
}

/// Models of up to so many weights are small: they are held as f32 whatever the file has, and computed without other threads.
/// To wait for threads would cost more than they save, and far more on a machine that has other work, as where several nodes of
/// a cluster are tried on one.
const SMALL_MODEL: u64 = 16 << 20;

/// Bytes of a tensor, as the file has them.
#[derive(Debug)]
pub(crate) struct RawTensor {
    pub(crate) dtype: GgmlDType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
    /// Is it to be held as f32, even if it is quantized?
    pub(crate) widen: bool,
}

impl RawTensor {
    /// The format, as the kernels call it.
    pub(crate) fn format(&self) -> Format {
        match self.dtype {
            GgmlDType::F32 => Format::F32,
            GgmlDType::F16 => Format::F16,
            GgmlDType::BF16 => Format::Bf16,
            GgmlDType::Q4_0 => Format::Q4_0,
            GgmlDType::Q4_1 => Format::Q4_1,
            GgmlDType::Q5_0 => Format::Q5_0,
            GgmlDType::Q5_1 => Format::Q5_1,
            GgmlDType::Q8_0 => Format::Q8_0,
            GgmlDType::Q2K => Format::Q2K,
            GgmlDType::Q3K => Format::Q3K,
            GgmlDType::Q4K => Format::Q4K,
            GgmlDType::Q5K => Format::Q5K,
            GgmlDType::Q6K => Format::Q6K,
            GgmlDType::Q8_1 | GgmlDType::Q8K => unreachable!("no file holds the types of activations"),
        }
    }

    /// The values, exactly, of a tensor that is to be held as f32; `None` if it is to stay quantized.
    pub(crate) fn to_f32(&self) -> Option<Vec<f32>> {
        let bytes = &self.bytes;
        Some(match self.dtype {
            GgmlDType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            GgmlDType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            GgmlDType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ if self.widen => {
                let blocks = self.dtype.from_data(aligned(bytes, &mut Vec::new()).into());
                match blocks.dequantize(self.shape.iter().product()) {
                    Ok(CpuStorage::F32(values)) => values,
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// The blocks of a tensor that stays quantized.
    pub(crate) fn to_blocks(&self) -> Box<dyn QuantizedType> {
        self.dtype.from_data(aligned(&self.bytes, &mut Vec::new()).into())
    }
}

/// `bytes` at an address that suits every block type: they are copied into `copy` if need be.
pub(crate) fn aligned<'a>(bytes: &'a [u8], copy: &'a mut Vec<u8>) -> &'a [u8] {
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

fn is_quantized(dtype: GgmlDType) -> bool {
    !matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

/// The weights of a model, by our own names ([`ModelConfig::tensors`]), whatever the format.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    files: Arc<[Storage]>,
    tensors: Arc<BTreeMap<String, TensorEntry>>,
    /// Query and key rows are interleaved, as in GGUF files of the llama family, and must be put back in halves.
    interleaved: bool,
    /// Not more than [`SMALL_MODEL`] weights.
    small: bool,
}

impl Weights {
    pub(crate) fn new(files: Vec<Storage>, tensors: BTreeMap<String, TensorEntry>, interleaved: bool) -> Self {
        let elements = |entry: &TensorEntry| entry.shape.iter().map(|dim| *dim as u64).product::<u64>();
        let small = tensors.values().map(elements).fold(0, u64::saturating_add) <= SMALL_MODEL;
        Self { files: files.into(), tensors: Arc::new(tensors), interleaved, small }
    }

    /// The file for messages about the weights as a whole.
    pub(crate) fn path(&self) -> &Path {
        self.files[0].path()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Is the model so small that it is held as f32 and computed on one thread?
    pub(crate) fn small(&self) -> bool {
        self.small
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a tensor as it is stored, with query and key rows in halves.
    pub(crate) fn read(&self, name: &str, config: &ModelConfig) -> Result<RawTensor, EngineError> {
        let entry = self.tensors.get(name).ok_or_else(|| EngineError::malformed(self.path(), format!("tensor {name:?} is missing")))?;
        let file = &self.files[entry.file];
        let len = usize::try_from(entry.len).map_err(|_| EngineError::malformed(file.path(), format!("tensor {name:?} is too large")))?;
        let mut bytes = vec![0; len];
        file.read_at(entry.offset, &mut bytes)?;
        if self.interleaved && [".q", ".k", ".q.bias", ".k.bias"].iter().any(|end| name.ends_with(end)) {
            bytes = halves_from_pairs(&bytes, entry.shape[0], config.head_dim);
        }
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes, widen: self.small })
    }

    /// Checks that the tensors are those of the decoder that `config` describes: none missing, none of another shape, none unknown.
    ///
    /// An unknown tensor means that the model computes something that we do not, so its answers would be wrong.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let wrong = |reason: String| Err(EngineError::malformed(self.path(), reason));
        let mut known = BTreeSet::new();
        for expected in config.tensors() {
            match self.shape(&expected.name) {
                Some(shape) if shape == expected.shape => {}
                Some(shape) => {
                    return wrong(format!(
                        "tensor {:?} has the shape {shape:?}, the configuration says {:?}",
                        expected.name, expected.shape
                    ));
                }
                None if expected.optional => {}
                None => return wrong(format!("tensor {:?} is missing", expected.name)),
            }
            let is_vector = expected.shape.len() == 1;
            if is_vector && self.tensors.get(&expected.name).is_some_and(|entry| is_quantized(entry.dtype)) {
                return wrong(format!("tensor {:?} is quantized", expected.name));
            }
            known.insert(expected.name);
        }
        for name in self.tensors.keys() {
            let ignored = name.ends_with(".rotary_emb.inv_freq") || (config.tied_embeddings && name == "head");
            if !known.contains(name) && !ignored {
                return Err(EngineError::unsupported(format!("tensor {name:?}"), "the tensors that the model's family is known to have"));
            }
        }
        Ok(())
    }

    /// Memory of all tensors once loaded: quantized ones as they are, unless the model is small, the others as f32.
    pub(crate) fn resident_bytes(&self, config: &ModelConfig) -> Bytes {
        let expected = config.tensors();
        let entries = expected.iter().filter_map(|expected| self.tensors.get(&expected.name));
        let bytes = entries.map(|entry| {
            let stays = is_quantized(entry.dtype) && !self.small;
            Bytes(if stays { entry.len } else { entry.shape.iter().map(|dim| *dim as u64).product::<u64>() * 4 })
        });
        bytes.sum()
    }
}

/// Row `2 i + j` of each head becomes row `j * head_dim / 2 + i`. Rows are whole blocks, so this holds for quantized tensors too.
fn halves_from_pairs(bytes: &[u8], n_rows: usize, head_dim: usize) -> Vec<u8> {
    let row_len = bytes.len() / n_rows;
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..n_rows / head_dim {
        for j in 0..2 {
            for i in 0..half {
                let row = head * head_dim + 2 * i + j;
                out.extend_from_slice(&bytes[row * row_len..(row + 1) * row_len]);
            }
        }
    }
    out
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

    #[test]
    fn pairs_of_rows_become_halves() {
        // Two heads of four rows, one byte each: (0, 1), (2, 3) are pairs.
        assert_eq!(halves_from_pairs(&[0, 1, 2, 3, 4, 5, 6, 7], 8, 4), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
