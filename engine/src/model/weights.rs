//! The weights of a model: which tensors it has, where they lie, and reading one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
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

/// Bytes of a tensor, as the file has them.
#[derive(Debug)]
pub(crate) struct RawTensor {
    pub(crate) dtype: GgmlDType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl RawTensor {
    /// The values of an unquantized tensor, exactly; `None` for a quantized one.
    pub(crate) fn to_f32(&self) -> Option<Vec<f32>> {
        let bytes = &self.bytes;
        Some(match self.dtype {
            GgmlDType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            GgmlDType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            GgmlDType::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => return None,
        })
    }
}

/// Does a file keep this type as it is in memory, or is it widened to f32?
pub(crate) fn stays_quantized(dtype: GgmlDType) -> bool {
    !matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

/// The weights of a model, by their names in Hugging Face checkpoints, whatever the format.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    files: Arc<[Storage]>,
    tensors: Arc<BTreeMap<String, TensorEntry>>,
    /// Query and key rows are interleaved, as in GGUF files of the llama family, and must be put back in halves.
    interleaved: bool,
}

impl Weights {
    pub(crate) fn new(files: Vec<Storage>, tensors: BTreeMap<String, TensorEntry>, interleaved: bool) -> Self {
        Self { files: files.into(), tensors: Arc::new(tensors), interleaved }
    }

    /// The file for messages about the weights as a whole.
    pub(crate) fn path(&self) -> &Path {
        self.files[0].path()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
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
        if self.interleaved && (name.contains(".q_proj.") || name.contains(".k_proj.")) {
            bytes = halves_from_pairs(&bytes, entry.shape[0], config.head_dim);
        }
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
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
            if is_vector && self.tensors.get(&expected.name).is_some_and(|entry| stays_quantized(entry.dtype)) {
                return wrong(format!("tensor {:?} is quantized", expected.name));
            }
            known.insert(expected.name);
        }
        for name in self.tensors.keys() {
            let ignored = name.ends_with(".rotary_emb.inv_freq") || (config.tied_embeddings && name == "lm_head.weight");
            if !known.contains(name) && !ignored {
                return Err(EngineError::unsupported(
                    format!("tensor {name:?}"),
                    "decoders of the Llama, Mistral, Qwen2 and Qwen3 families without experts",
                ));
            }
        }
        Ok(())
    }

    /// Memory of all tensors once loaded: quantized ones as they are, the others as f32.
    pub(crate) fn resident_bytes(&self, config: &ModelConfig) -> Bytes {
        config
            .tensors()
            .iter()
            .filter_map(|expected| self.tensors.get(&expected.name))
            .map(
                |entry| {
                    if stays_quantized(entry.dtype) { Bytes(entry.len) } else { Bytes(entry.len / entry.dtype.type_size() as u64 * 4) }
                },
            )
            .sum()
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
