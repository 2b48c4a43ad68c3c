//! What the folder of a sentence-transformers model says of its readout: `modules.json` and the folders that it names.

use std::path::Path;
use std::sync::Arc;

use plexus_kernels::format::dequantize;
use plexus_types::Bytes;
use serde_json::Value;

use super::readout::{DenseActivation, Layer, Pooling, Readout};
use crate::error::EngineError;
use crate::model::{Storage, TensorEntry, Tensors, read_json, read_tensors, unusable};

const SUPPORTED: &str = "a Transformer, a Pooling, and behind it Dense and Normalize";

/// A readout found and checked; weights are read when the model is loaded.
#[derive(Debug, Clone)]
pub(crate) struct ReadoutFiles {
    pooling: Pooling,
    layers: Vec<LayerFiles>,
}

#[derive(Debug, Clone)]
enum LayerFiles {
    Normalize,
    Dense(DenseFiles),
}

/// A dense layer in a safetensors file.
#[derive(Debug, Clone)]
struct DenseFiles {
    storage: Arc<Storage>,
    rows: usize,
    columns: usize,
    weight: TensorEntry,
    bias: Option<TensorEntry>,
    activation: DenseActivation,
}

impl From<Pooling> for ReadoutFiles {
    fn from(pooling: Pooling) -> Self {
        Self { pooling, layers: Vec::new() }
    }
}

impl ReadoutFiles {
    /// Reads what a folder says; `None` if it is of no sentence-transformers model.
    ///
    /// Errors: [`EngineError::Unsupported`] names a module, or a way of pooling, that is not served.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, EngineError> {
        let path = folder.join("modules.json");
        let Some(json) = read_json(&path)? else {
            return Ok(read_pooling(&folder.join("1_Pooling"))?.map(Self::from));
        };
        let modules = json.as_array().ok_or_else(|| EngineError::malformed(&path, "it is not a list of modules"))?;
        let mut pooling = None;
        let mut layers = Vec::new();
        for (i, module) in modules.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            let (name, kind) = (text("path"), text("type").rsplit('.').next().unwrap_or_default());
            if name.contains(['/', '\\', ':']) || name.starts_with('.') {
                return Err(EngineError::malformed(&path, format!("{name:?} does not name a folder beside it")));
            }
            match (kind, pooling) {
                ("Transformer", None) if i == 0 && name.is_empty() => {}
                ("Pooling", None) if i == 1 => {
                    let found = read_pooling(&folder.join(name))?;
                    pooling = Some(found.ok_or_else(|| EngineError::malformed(&path, format!("{name}/config.json is missing")))?);
                }
                ("Normalize", Some(_)) => layers.push(LayerFiles::Normalize),
                ("Dense", Some(_)) => layers.push(LayerFiles::Dense(DenseFiles::open(&folder.join(name))?)),
                _ => {
                    let what = format!("module {i}, {:?} in the folder {name:?} ({})", text("type"), path.display());
                    return Err(EngineError::unsupported(what, SUPPORTED));
                }
            }
        }
        let pooling = pooling.ok_or_else(|| EngineError::unsupported(format!("{} without Pooling", path.display()), SUPPORTED))?;
        Ok(Some(Self { pooling, layers }))
    }

    /// Checks that each layer takes what it is given, the first of them vectors of `width` numbers.
    pub(crate) fn check(&self, mut width: usize) -> Result<(), EngineError> {
        for layer in &self.layers {
            let LayerFiles::Dense(dense) = layer else { continue };
            if dense.columns != width {
                let reason = format!("its layer takes vectors of {} numbers and is given {width}", dense.columns);
                return Err(EngineError::malformed(dense.storage.path(), reason));
            }
            width = dense.rows;
        }
        Ok(())
    }

    /// Memory of the weights once read.
    pub(crate) fn bytes(&self) -> Bytes {
        let bytes = self.layers.iter().map(|layer| match layer {
            LayerFiles::Normalize => 0,
            LayerFiles::Dense(dense) => 4 * (dense.rows * dense.columns + dense.bias.as_ref().map_or(0, |_| dense.rows)) as u64,
        });
        Bytes(bytes.sum())
    }

    /// Reads the weights.
    pub(crate) fn read(&self) -> Result<Readout, EngineError> {
        let layers = self.layers.iter().map(|layer| match layer {
            LayerFiles::Normalize => Ok(Layer::Normalize),
            LayerFiles::Dense(dense) => dense.read(),
        });
        Ok(Readout { pooling: self.pooling, layers: layers.collect::<Result<_, EngineError>>()? })
    }
}

impl DenseFiles {
    fn open(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join("config.json");
        let json = read_json(&path)?.ok_or_else(|| EngineError::malformed(&path, "it is missing"))?;
        let name = json.get("activation_function").and_then(Value::as_str);
        let activation = match name.map(|name| name.rsplit('.').next().unwrap_or_default()) {
            Some("Identity") => DenseActivation::Identity,
            Some("Tanh") | None => DenseActivation::Tanh, // what the library takes where nothing is said
            Some(_) => {
                let what = format!("a Dense layer with {} ({})", name.unwrap_or_default(), path.display());
                return Err(EngineError::unsupported(what, "Identity and Tanh"));
            }
        };
        for key in ["module_input_name", "module_output_name"] {
            if let Some(other) = json.get(key).filter(|name| !name.is_null() && name.as_str() != Some("sentence_embedding")) {
                return Err(EngineError::unsupported(format!("{key} = {other} ({})", path.display()), "sentence_embedding"));
            }
        }
        if json.get("use_residual").and_then(Value::as_bool) == Some(true) {
            return Err(EngineError::unsupported(format!("use_residual = true ({})", path.display()), "Dense layers without"));
        }
        let weights = folder.join("model.safetensors");
        if !weights.exists() {
            return Err(EngineError::unsupported(format!("a Dense layer without {}", weights.display()), "weights in model.safetensors"));
        }
        let storage = Storage::open(&weights)?;
        let wrong = |reason: String| EngineError::malformed(&weights, reason);
        let Tensors { known: mut tensors, others } = read_tensors(&storage, 0)?;
        if let Some((name, dtype)) = others.into_iter().find(|(name, _)| name.starts_with("linear.")) {
            return Err(unusable(&name, dtype));
        }
        let weight = tensors.remove("linear.weight").ok_or_else(|| wrong("linear.weight is missing".into()))?;
        let bias = tensors.remove("linear.bias");
        if let Some(name) = tensors.keys().next() {
            return Err(EngineError::unsupported(format!("tensor {name:?} ({})", weights.display()), "linear.weight and linear.bias"));
        }
        let [rows, columns] = weight.shape[..] else { return Err(wrong("linear.weight is no matrix".into())) };
        let said = ["out_features", "in_features"].map(|key| json.get(key).and_then(Value::as_u64));
        if rows == 0 || columns == 0 || said.into_iter().zip([rows, columns]).any(|(said, is)| said.is_some_and(|said| said != is as u64)) {
            return Err(wrong(format!("linear.weight is {rows} by {columns}, which its configuration does not say")));
        }
        if bias.as_ref().is_some_and(|bias| bias.shape != [rows]) || (json.get("bias") == Some(&Value::Bool(true)) && bias.is_none()) {
            return Err(wrong(format!("linear.bias is not {rows} numbers")));
        }
        Ok(Self { storage: Arc::new(storage), rows, columns, weight, bias, activation })
    }

    fn read(&self) -> Result<Layer, EngineError> {
        let values = |entry: &TensorEntry| {
            let mut bytes = vec![0; entry.len as usize];
            self.storage.read_at(entry.offset, &mut bytes)?;
            let mut values = vec![0.0; entry.shape.iter().product()];
            dequantize(entry.format, &bytes, &mut values);
            Ok::<_, EngineError>(values)
        };
        let (weight, bias) = (values(&self.weight)?, self.bias.as_ref().map(values).transpose()?);
        self.storage.check_unchanged()?;
        Ok(Layer::Dense { weight, columns: self.columns, bias, activation: self.activation })
    }
}

/// Tokens at most that the model's author has a text cut to, where `sentence_bert_config.json` says so.
///
/// The library cuts longer texts without a word; here they are refused, as what is embedded should be what was sent.
pub(crate) fn max_seq_length(folder: &Path) -> Result<Option<u32>, EngineError> {
    let path = folder.join("sentence_bert_config.json");
    let json = read_json(&path)?.unwrap_or_default();
    match json.get("max_seq_length").filter(|length| !length.is_null()) {
        None => Ok(None),
        Some(length) => match length.as_u64().map(|length| u32::try_from(length).unwrap_or(u32::MAX)) {
            Some(length) if length > 0 => Ok(Some(length)),
            _ => Err(EngineError::malformed(&path, format!("max_seq_length is {length}, which is no number of tokens"))),
        },
    }
}

/// How the `config.json` of a folder says that tokens are pooled: a flag for each way, or one word. `None` if there is none.
fn read_pooling(folder: &Path) -> Result<Option<Pooling>, EngineError> {
    let path = folder.join("config.json");
    let Some(json) = read_json(&path)? else { return Ok(None) };
    let flags = [
        ("cls_token", "cls"),
        ("mean_tokens", "mean"),
        ("lasttoken", "lasttoken"),
        ("max_tokens", "max"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("weightedmean_tokens", "weightedmean"),
    ];
    let is_on = |flag: &str| json.get(format!("pooling_mode_{flag}")).and_then(Value::as_bool) == Some(true);
    let on: Vec<&str> = match json.get("pooling_mode").and_then(Value::as_str) {
        Some(word) => vec![word],
        None => flags.into_iter().filter(|(flag, _)| is_on(flag)).map(|(_, word)| word).collect(),
    };
    match on.as_slice() {
        ["cls"] => Ok(Some(Pooling::First)),
        ["mean"] => Ok(Some(Pooling::Mean)),
        ["lasttoken"] => Ok(Some(Pooling::Last)),
        other => Err(EngineError::unsupported(format!("pooling by {other:?} ({})", path.display()), "one of cls, mean and lasttoken")),
    }
}
