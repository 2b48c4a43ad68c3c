//! Tensors that a file holds fused into one, taken apart: each part is a run of rows, so nothing is copied.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::{FfnConfig, ModelConfig};
use super::weights::TensorEntry;
use crate::error::EngineError;

/// Replaces `qkv`, `gate_up` (or an `up` of twice the width), `experts.gate` and so on by the tensors that they are made of.
///
/// Errors: a fused tensor whose shape is not that of its parts one after the other.
pub(super) fn split_fused(file: &Path, config: &ModelConfig, tensors: &mut BTreeMap<String, TensorEntry>) -> Result<(), EngineError> {
    let (hidden, q, kv) = (config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim);
    for (index, layer) in config.layers.iter().enumerate() {
        let mut fused = Fused { file, tensors, prefix: format!("layers.{index}.") };
        for end in ["", ".bias"] {
            let parts = [("q", q), ("k", kv), ("v", kv)].map(|(part, rows)| (format!("{part}{end}"), rows));
            fused.rows(&format!("qkv{end}"), &parts)?;
        }
        match layer.ffn {
            FfnConfig::Dense { width } => {
                for end in ["", ".bias"] {
                    let parts = ["gate", "up"].map(|part| (format!("{part}{end}"), width));
                    fused.rows(&format!("gate_up{end}"), &parts)?;
                    let alone = config.gated && !fused.has(&format!("gate{end}"));
                    if alone && fused.first_dim(&format!("up{end}")) == Some(2 * width) {
                        fused.rows(&format!("up{end}"), &parts)?;
                    }
                }
            }
            FfnConfig::Experts { n_experts, width, shared, .. } => {
                for (part, rows, columns) in [("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)] {
                    let parts = |expert| vec![(format!("experts.{expert}.{part}"), rows)];
                    fused.experts(&format!("experts.{part}"), n_experts, columns, &parts)?;
                }
                let parts = |expert| vec![(format!("experts.{expert}.gate"), width), (format!("experts.{expert}.up"), width)];
                fused.experts("experts.gate_up", n_experts, hidden, &parts)?;
                // A projection to one number may be stored as a vector.
                if shared.is_some() && fused.tensors.get(&fused.name("shared_router")).is_some_and(|entry| entry.shape == [hidden]) {
                    fused.reshape("shared_router", vec![1, hidden]);
                }
            }
        }
    }
    Ok(())
}

/// The tensors of one layer.
struct Fused<'a> {
    file: &'a Path,
    tensors: &'a mut BTreeMap<String, TensorEntry>,
    prefix: String,
}

impl Fused<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    fn has(&self, part: &str) -> bool {
        self.tensors.contains_key(&self.name(part))
    }

    fn first_dim(&self, part: &str) -> Option<usize> {
        self.tensors.get(&self.name(part)).and_then(|entry| entry.shape.first().copied())
    }

    fn reshape(&mut self, part: &str, shape: Vec<usize>) {
        if let Some(entry) = self.tensors.get_mut(&format!("{}{part}", self.prefix)) {
            entry.shape = shape;
        }
    }

    /// Takes a matrix or vector apart into runs of its rows.
    fn rows(&mut self, fused: &str, parts: &[(String, usize)]) -> Result<(), EngineError> {
        let Some(entry) = self.tensors.remove(&self.name(fused)) else { return Ok(()) };
        let n_rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if entry.shape.len() > 2 || entry.shape.first() != Some(&n_rows) {
            return Err(self.wrong(fused, &entry, &format!("{n_rows} rows")));
        }
        self.cut(&entry, n_rows, &entry.shape[1..], parts.iter().cloned())
    }

    /// Takes a tensor `[n_experts, rows, columns]` apart; each expert's rows are those of `parts`, one after the other.
    fn experts(
        &mut self,
        fused: &str,
        n_experts: usize,
        columns: usize,
        parts: &dyn Fn(usize) -> Vec<(String, usize)>,
    ) -> Result<(), EngineError> {
        let Some(entry) = self.tensors.remove(&self.name(fused)) else { return Ok(()) };
        let n_rows: usize = parts(0).iter().map(|(_, rows)| rows).sum();
        if entry.shape != [n_experts, n_rows, columns] {
            return Err(self.wrong(fused, &entry, &format!("{:?}", [n_experts, n_rows, columns])));
        }
        self.cut(&entry, n_experts * n_rows, &[columns], (0..n_experts).flat_map(parts))
    }

    /// Enters the parts of a tensor of `n_rows` rows, each row of the shape `row`.
    fn cut(
        &mut self,
        entry: &TensorEntry,
        n_rows: usize,
        row: &[usize],
        parts: impl Iterator<Item = (String, usize)>,
    ) -> Result<(), EngineError> {
        // Rows are whole blocks: the readers have checked it.
        let row_len = entry.len / n_rows as u64;
        let mut offset = entry.offset;
        for (part, rows) in parts {
            let len = rows as u64 * row_len;
            let shape = [&[rows], row].concat();
            let name = self.name(&part);
            if self.tensors.insert(name.clone(), TensorEntry { shape, offset, len, ..entry.clone() }).is_some() {
                return Err(EngineError::malformed(self.file, format!("tensor {name:?} is there both alone and fused")));
            }
            offset += len;
        }
        Ok(())
    }

    fn wrong(&self, fused: &str, entry: &TensorEntry, expected: &str) -> EngineError {
        let name = self.name(fused);
        EngineError::malformed(self.file, format!("tensor {name:?} has the shape {:?}, the configuration says {expected}", entry.shape))
    }
}
