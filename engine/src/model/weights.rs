//! The weights of a model: which tensors it has, where they lie, and looking at one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use plexus_kernels::Format;
use plexus_kernels::format::{dequantize, quantize};
use plexus_types::{Bytes, Quantization};

use super::config::ModelConfig;
use super::quantization::{held_as, is_too_narrow};
use super::storage::Storage;
use crate::error::EngineError;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorEntry {
    /// Which of the model's files.
    pub(crate) file: usize,
    pub(crate) format: Format,
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

/// A tensor where it lies: its rows are read when they are asked for.
#[derive(Debug)]
pub(crate) struct TensorView<'a> {
    /// The format that it has there.
    pub(crate) format: Format,
    /// The format in which a device is to hold it.
    pub(crate) held: Format,
    pub(crate) shape: &'a [usize],
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    File {
        storage: &'a Storage,
        offset: u64,
        len: u64,
        /// Query and key rows of heads of this width are in pairs there and given in halves.
        pairs: Option<usize>,
    },
    #[cfg(test)]
    Memory(&'a [u8]),
}

impl<'a> TensorView<'a> {
    /// A tensor of bytes that lie in no file.
    #[cfg(test)]
    pub(crate) fn of(format: Format, held: Format, shape: &'a [usize], bytes: &'a [u8]) -> Self {
        Self { format, held, shape, place: Place::Memory(bytes) }
    }

    /// Fills `out` with some rows, as the file has them but for query and key rows, which are given in halves. A vector has a number in each
    /// row.
    pub(crate) fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), EngineError> {
        let row_len = out.len() / rows.len().max(1);
        match self.place {
            Place::File { storage, offset, pairs, .. } => {
                storage.note_taken(out.len() as u64);
                let read = |rows: Range<usize>, out: &mut [u8]| storage.read_at(offset + (rows.start * row_len) as u64, out);
                match pairs {
                    None => read(rows, out),
                    Some(head_dim) => halves_from_pairs(rows, head_dim, out, read),
                }
            }
            #[cfg(test)]
            Place::Memory(bytes) => {
                out.copy_from_slice(&bytes[rows.start * row_len..rows.end * row_len]);
                Ok(())
            }
        }
    }

    /// All of its bytes.
    fn bytes(&self) -> Result<Vec<u8>, EngineError> {
        let len = match self.place {
            Place::File { len, .. } => len as usize,
            #[cfg(test)]
            Place::Memory(bytes) => bytes.len(),
        };
        let mut bytes = vec![0; len];
        self.read(0..self.shape.first().copied().unwrap_or(1), &mut bytes)?;
        Ok(bytes)
    }

    /// The values, exactly.
    pub(crate) fn to_f32(&self) -> Result<Vec<f32>, EngineError> {
        let mut values = vec![0.0; self.shape.iter().product()];
        dequantize(self.format, &self.bytes()?, &mut values);
        Ok(values)
    }

    /// The bytes in the format in which they are to be held.
    pub(crate) fn to_held(&self) -> Result<Vec<u8>, EngineError> {
        let bytes = self.bytes()?;
        if self.held == self.format {
            return Ok(bytes);
        }
        let columns = self.shape.last().copied().unwrap_or(1);
        let row_bytes = |format: Format| format.row_bytes(columns).expect("rows are whole blocks: checked when the file was opened");
        let (from, to) = (row_bytes(self.format), row_bytes(self.held));
        let mut held = vec![0; bytes.len() / from * to];
        let mut values = vec![0.0; 2 * columns];
        // Two rows at a time, so that blocks come in pairs.
        for (bytes, out) in bytes.chunks(2 * from).zip(held.chunks_mut(2 * to)) {
            let values = &mut values[..bytes.len() / from * columns];
            dequantize(self.format, bytes, values);
            quantize(self.held, values, out);
        }
        Ok(held)
    }
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
    /// Hold matrices in fewer bits than the files have.
    quantization: Option<Quantization>,
}

impl Weights {
    pub(crate) fn new(files: Vec<Storage>, tensors: BTreeMap<String, TensorEntry>, interleaved: bool) -> Self {
        let elements = |entry: &TensorEntry| entry.shape.iter().map(|dim| *dim as u64).product::<u64>();
        let small = tensors.values().map(elements).fold(0, u64::saturating_add) <= SMALL_MODEL;
        Self { files: files.into(), tensors: Arc::new(tensors), interleaved, small, quantization: None }
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

    /// Counts the model as large from now on.
    pub(super) fn hold_as_large(&mut self) {
        self.small = false;
    }

    /// Holds matrices in fewer bits from now on. The model counts as large.
    pub(super) fn quantize(&mut self, quantization: Quantization) {
        self.quantization = Some(quantization);
        self.small = false;
    }

    /// How many matrices are held in more bits than was asked for, because their rows are too narrow, and how many there are.
    pub(super) fn too_narrow(&self) -> (usize, usize) {
        let matrices = self.tensors.iter().filter_map(|(name, entry)| match &entry.shape[..] {
            [_, columns] => Some((name, entry.format, *columns)),
            _ => None,
        });
        matrices.fold((0, 0), |(narrow, all), (name, format, columns)| {
            let is_narrow = self.quantization.is_some_and(|quantization| is_too_narrow(quantization, name, format, columns));
            (narrow + usize::from(is_narrow), all + 1)
        })
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The format in which a device is to hold a tensor; none if there is no such tensor.
    pub(crate) fn held(&self, name: &str) -> Option<Format> {
        self.tensors.get(name).map(|entry| self.held_as(name, entry))
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> Bytes {
        Bytes(self.files.iter().map(|file| file.len()).sum())
    }

    /// Bytes of tensors that have been read since the files were opened, and of all tensors. One that is read twice counts twice.
    pub(super) fn progress(&self) -> (Bytes, Bytes) {
        let all = self.tensors.values().fold(0, |sum: u64, entry| sum.saturating_add(entry.len));
        (Bytes(self.files.iter().map(Storage::taken).sum()), Bytes(all))
    }

    fn held_as(&self, name: &str, entry: &TensorEntry) -> Format {
        match (&entry.shape[..], self.quantization) {
            ([_, columns], Some(quantization)) => held_as(quantization, name, entry.format, *columns),
            ([_, _], None) if !self.small => entry.format,
            _ => Format::F32,
        }
    }

    /// A tensor as it is stored, with query and key rows in halves.
    ///
    /// Errors: there is none, or its file is no longer the one that was opened.
    pub(crate) fn view(&self, name: &str, config: &ModelConfig) -> Result<TensorView<'_>, EngineError> {
        let entry = self.tensors.get(name).ok_or_else(|| EngineError::malformed(self.path(), format!("tensor {name:?} is missing")))?;
        let storage = &self.files[entry.file];
        storage.check_unchanged()?;
        let in_pairs = self.interleaved && [".q", ".k", ".q.bias", ".k.bias"].iter().any(|end| name.ends_with(end));
        let place = Place::File { storage, offset: entry.offset, len: entry.len, pairs: in_pairs.then_some(config.head_dim) };
        Ok(TensorView { format: entry.format, held: self.held_as(name, entry), shape: &entry.shape, place })
    }

    /// Errors: a file is no longer the one that was opened, so that what was read last may not be what it should.
    pub(crate) fn check_unchanged(&self) -> Result<(), EngineError> {
        self.files.iter().try_for_each(Storage::check_unchanged)
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
            if is_vector && self.tensors.get(&expected.name).is_some_and(|entry| !entry.format.is_dense()) {
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
}

/// Row `2 i + j` of each head becomes row `j * head_dim / 2 + i`: fills `out` with these of the latter, of which `read` reads the former, some that
/// follow each other at a time. Rows are whole blocks, so this holds for quantized tensors too.
fn halves_from_pairs(
    rows: Range<usize>,
    head_dim: usize,
    out: &mut [u8],
    read: impl Fn(Range<usize>, &mut [u8]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (half, row_len) = (head_dim / 2, out.len() / rows.len().max(1));
    let mut pairs = Vec::new();
    let (mut row, mut rest) = (rows.start, out);
    while !rest.is_empty() {
        // Rows of one half of a head: their pairs follow each other.
        let (head, j, i) = (row / head_dim, row % head_dim / half, row % half);
        let n = (half - i).min(rest.len() / row_len);
        let first = head * head_dim + 2 * i;
        pairs.resize(2 * n * row_len, 0);
        read(first..first + 2 * n, &mut pairs)?;
        let (part, later) = rest.split_at_mut(n * row_len);
        for (out, pair) in part.chunks_exact_mut(row_len).zip(pairs.chunks_exact(2 * row_len)) {
            out.copy_from_slice(&pair[j * row_len..][..row_len]);
        }
        (row, rest) = (row + n, later);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_rows_become_halves_whichever_are_asked_for() {
        // Two heads of four rows, two bytes each: (0, 1), (2, 3) are pairs.
        let read = |rows: Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(&rows.flat_map(|row| [row as u8, row as u8 + 100]).collect::<Vec<_>>());
            Ok(())
        };
        let want = [0, 2, 1, 3, 4, 6, 5, 7];
        for start in 0..8 {
            for end in start..=8 {
                let mut out = vec![0; 2 * (end - start)];
                halves_from_pairs(start..end, 4, &mut out, read).unwrap();
                assert_eq!(out, want[start..end].iter().flat_map(|row| [*row, *row + 100]).collect::<Vec<u8>>());
            }
        }
    }

    #[test]
    fn a_tensor_is_converted_row_by_row() {
        let values: Vec<f32> = (0..4 * 96).map(|i| (i as f32 * 0.7).sin()).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::of(Format::F32, Format::Q8_0, &[4, 96], &bytes);
        assert_eq!(view.to_f32().unwrap(), values);
        let held = view.to_held().unwrap();
        assert_eq!(held.len(), 4 * 3 * 34);
        let again = TensorView::of(Format::Q8_0, Format::Q8_0, &[4, 96], &held);
        assert!(again.to_f32().unwrap().iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.005));
        assert_eq!(again.to_held().unwrap(), held);
    }
}
