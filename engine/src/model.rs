//! A model's files: everything but the weights read and checked, the weights found.
//!
//! The files are hostile until checked: each count, length and offset is compared with the file before anything is allocated,
//! and a model that we would compute wrongly is refused by the name of what is foreign to us.

mod config;
mod facts;
mod gguf;
pub(crate) mod hf;
mod memory;
mod path;
mod quantization;
mod rope;
mod safetensors;
mod split;
mod storage;
mod texts;
mod weights;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use plexus_types::{Bytes, DeviceKind, Footprint, ModelFacts, ModelKind, Sampling};

pub use config::{Activation, Family, FfnConfig, LayerConfig, ModelConfig, NormKind, NormPlacement, QkNorm, RopeConfig, RopePairs};
pub use path::ModelPath;
pub use plexus_types::Quantization;
pub use rope::RopeScaling;

pub(crate) use gguf::{Gguf, Value as GgufValue};
pub(crate) use hf::read_json;
pub(crate) use memory::{kv_element, step_tokens};
pub(crate) use rope::Rope;
pub(crate) use safetensors::{Tensors, read_tensors, unusable};
pub(crate) use storage::{Storage, read_text};
pub(crate) use texts::Texts;
pub(crate) use weights::{TensorEntry, TensorView, Weights};

use crate::codec::Codec;
use crate::embed::{EncoderFiles, Pooling, Readout, ReadoutFiles, max_seq_length};
use crate::embedded;
use crate::error::EngineError;
use crate::executor::KvPlan;

/// A model, opened: ready to encode prompts, and to be loaded by an executor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// What the decoder is.
    pub config: ModelConfig,
    /// From requests to token ids, and back to text.
    pub codec: Arc<Codec>,
    /// Memory of the weights once resident, as the executor of the device holds them: see [`Self::placed_on`].
    pub weights_bytes: Bytes,
    /// Memory that the KV pool needs on that device for each token that it can hold.
    pub kv_bytes_per_token: Bytes,
    /// How the model's makers advise to sample.
    pub defaults: Sampling,
    weights: Weights,
    /// How the vectors of a text's tokens become that of the text, if the model was made to embed.
    readout: Option<ReadoutFiles>,
    /// What the model is instead of a decoder; then `config` tells only its width, vocabulary and context, and of no layers.
    encoder: Option<Arc<EncoderFiles>>,
}

impl ModelFiles {
    /// Opens a model: reads its header, configuration, tokenizer and template.
    ///
    /// Errors: [`EngineError::Unsupported`] says by name what is foreign and what would be taken, [`EngineError::Malformed`] what
    /// contradicts itself, [`EngineError::Io`] what cannot be read.
    pub fn open(source: &ModelPath) -> Result<Self, EngineError> {
        match source {
            ModelPath::Embedded => {
                let storage = Storage::embedded("embedded:pip", embedded::PIP_GGUF);
                let advice = serde_json::from_str(embedded::PIP_GENERATION_CONFIG)
                    .map_err(|error| EngineError::malformed(Path::new("embedded:pip"), error.to_string()))?;
                let gguf = Gguf::read(&storage, 0)?;
                Self::open_gguf(vec![storage], gguf, &advice, None)
            }
            ModelPath::Path(path) if path.is_dir() => Self::open_folder(path),
            ModelPath::Path(path) => {
                let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
                if path.exists() && !is_gguf {
                    let what = format!("the file {}", path.display());
                    return Err(EngineError::unsupported(what, "a .gguf file, or a folder with config.json and *.safetensors"));
                }
                let (files, gguf) = gguf::open_set(path)?;
                Self::open_gguf(files, gguf, &serde_json::Value::Null, None)
            }
        }
    }

    fn open_folder(folder: &Path) -> Result<Self, EngineError> {
        let readout = ReadoutFiles::open(folder)?;
        let files = match EncoderFiles::open(folder)? {
            Some(encoder) => Self::open_encoder(folder, encoder, readout.unwrap_or_else(|| Pooling::Mean.into()))?,
            None => Self::open_decoder(folder, readout)?,
        };
        match max_seq_length(folder)?.filter(|_| files.readout.is_some()) {
            Some(tokens) => Ok(files.with_context_length(tokens)),
            None => Ok(files),
        }
    }

    fn open_encoder(folder: &Path, mut encoder: EncoderFiles, readout: ReadoutFiles) -> Result<Self, EngineError> {
        readout.check(encoder.hidden)?;
        encoder.weights_bytes = encoder.weights_bytes + readout.bytes();
        let codec = Codec::for_encoder(folder, encoder.vocab_size)?;
        let weights = Weights::new(vec![Storage::open(&encoder.weights)?], BTreeMap::new(), false);
        Ok(Self {
            config: ModelConfig::of_encoder(encoder.vocab_size, encoder.max_context),
            codec: Arc::new(codec),
            weights_bytes: encoder.weights_bytes,
            kv_bytes_per_token: Bytes(0),
            defaults: Sampling::default(),
            weights,
            readout: Some(readout),
            encoder: Some(Arc::new(encoder)),
        })
    }

    fn open_decoder(folder: &Path, readout: Option<ReadoutFiles>) -> Result<Self, EngineError> {
        let generation_path = folder.join("generation_config.json");
        let advice = hf::read_json(&generation_path)?.unwrap_or_default();
        if let Some((mut config, weights)) = hf::open(folder, readout.is_some())? {
            config.eos_ids.extend(hf::eos_ids(&generation_path, &advice));
            weights.check(&config)?; // before the vocabulary, whose size is then known to be backed by the file
            let codec = Codec::from_folder(folder, config.vocab_size, &config.eos_ids, readout.is_some())?;
            let defaults = hf::read_sampling(&generation_path, &advice)?;
            return Self::assemble(config, codec, weights, defaults, readout);
        }
        let files = hf::files_ending(folder, "gguf")?;
        let first = match files.as_slice() {
            [file] => file.as_path(),
            [] => {
                let what = format!("the folder {}", folder.display());
                return Err(EngineError::unsupported(what, "a folder with config.json and *.safetensors, or with one .gguf file"));
            }
            several => gguf::first_of_set(several).ok_or_else(|| {
                let what = format!("the folder {} with several .gguf files", folder.display());
                EngineError::unsupported(what, "the path of one of them")
            })?,
        };
        let (files, gguf) = gguf::open_set(first)?;
        Self::open_gguf(files, gguf, &advice, readout)
    }

    /// What lies beside the file, in `readout`, goes before what the file itself says.
    fn open_gguf(files: Vec<Storage>, gguf: Gguf, advice: &serde_json::Value, readout: Option<ReadoutFiles>) -> Result<Self, EngineError> {
        let path = files[0].path().to_owned();
        let pooling = gguf::pooling(&path, &gguf)?;
        let readout = readout.or_else(|| pooling.map(ReadoutFiles::from));
        let (mut config, weights) = gguf::open(files, &gguf, readout.is_some())?;
        config.eos_ids.extend(hf::eos_ids(&path, advice));
        let defaults = hf::read_sampling(&path, advice)?;
        weights.check(&config)?;
        let codec = Codec::from_gguf(&path, gguf, config.vocab_size, &config.eos_ids, readout.is_some())?;
        Self::assemble(config, codec, weights, defaults, readout)
    }

    fn assemble(
        mut config: ModelConfig,
        codec: Codec,
        weights: Weights,
        defaults: Sampling,
        readout: Option<ReadoutFiles>,
    ) -> Result<Self, EngineError> {
        config.eos_ids.sort_unstable();
        config.eos_ids.dedup();
        readout.as_ref().map_or(Ok(()), |readout| readout.check(config.hidden))?;
        let files = Self {
            weights_bytes: Bytes(0),
            kv_bytes_per_token: Bytes(0),
            codec: Arc::new(codec),
            config,
            defaults,
            weights,
            readout,
            encoder: None,
        };
        Ok(files.placed_on(DeviceKind::Cpu))
    }

    /// The same model, its memory told as it is on a device of this kind: there weights may be held in another form. [`Self::open`] tells
    /// that of the host.
    #[must_use]
    pub fn placed_on(mut self, device: DeviceKind) -> Self {
        if self.encoder.is_none() {
            let readout = self.readout.as_ref().map_or(Bytes(0), ReadoutFiles::bytes);
            self.weights_bytes = memory::weights_bytes(&self.weights, &self.config, device) + readout;
            self.kv_bytes_per_token = memory::kv_bytes_per_token(&self.config, self.weights.small(), device);
        }
        self
    }

    /// The same model, its matrices converted to fewer bits when they are loaded. Norms, biases and routers stay as they are, and so does what
    /// the files have in as few bits already.
    ///
    /// Errors: [`EngineError::Unsupported`] if the model is an encoder.
    pub fn quantized(mut self, quantization: Quantization) -> Result<Self, EngineError> {
        if self.encoder.is_some() {
            return Err(EngineError::unsupported(format!("an encoder quantized to {quantization}"), "encoders as their files are"));
        }
        self.weights.quantize(quantization);
        Ok(self.placed_on(DeviceKind::Cpu))
    }

    /// How many matrices [`Self::quantized`] leaves in more bits than it was told, because their rows are no whole number of the format's blocks of
    /// 256, and how many matrices there are.
    pub fn too_narrow(&self) -> (usize, usize) {
        self.weights.too_narrow()
    }

    /// The same model with a context of so many tokens, if that is fewer than it has.
    ///
    /// With LongRoPE (Phi 3.5, Phi 4 mini) the context decides how positions are told apart, in short prompts too: one of up to the length of
    /// the model's first training is computed with the short factors, a longer one with the long ones.
    #[must_use]
    pub fn with_context_length(mut self, tokens: u32) -> Self {
        self.config.max_context = tokens.clamp(1, self.config.max_context);
        self
    }

    /// The same model, held and computed as large ones are, however small it is: weights as stored, all threads. For tests.
    #[must_use]
    pub fn held_as_large(mut self) -> Self {
        self.weights.hold_as_large();
        self.placed_on(DeviceKind::Cpu)
    }

    /// Tokens that the context holds, prompt and answer together.
    pub fn context_length(&self) -> u32 {
        self.config.max_context
    }

    /// What the model is for: to embed, where its files say how its tokens' vectors are pooled.
    pub fn kind(&self) -> ModelKind {
        if self.readout.is_some() { ModelKind::Embed } else { ModelKind::Generate }
    }

    /// How the vectors of a text's tokens become that of the text, its weights read; `None` if the model was not made to embed.
    pub(crate) fn readout(&self) -> Result<Option<Readout>, EngineError> {
        self.readout.as_ref().map(ReadoutFiles::read).transpose()
    }

    /// The encoder, if the model is one.
    pub(crate) fn encoder(&self) -> Option<&EncoderFiles> {
        self.encoder.as_deref()
    }

    /// Memory that the model holds on a device, weights and KV pool together. What a step works in comes on top and is freed after it.
    pub fn footprint(&self, kv: KvPlan) -> Bytes {
        let tokens = u64::from(kv.n_blocks) * u64::from(kv.block_len);
        Bytes(self.weights_bytes.0.saturating_add(self.kv_bytes_per_token.0.saturating_mul(tokens)))
    }

    /// What the files say that others want to know, as the model is to be held.
    pub fn facts(&self) -> ModelFacts {
        let on = |kind| {
            let placed = self.clone().placed_on(kind);
            let of_encoder = placed.encoder.as_ref().map_or(Bytes(0), |encoder| encoder.working);
            let working = memory::working_bytes(&placed.config, placed.weights.small()) + of_encoder;
            Footprint { weights: placed.weights_bytes, kv_per_token: placed.kv_bytes_per_token, working }
        };
        ModelFacts {
            kind: self.kind(),
            context_length: self.context_length(),
            cpu: on(DeviceKind::Cpu),
            cuda: on(DeviceKind::Cuda),
            file_bytes: self.weights.file_bytes(),
            tools: self.codec.knows_tools(),
            reasoning: self.codec.thinks(),
            digest: None, // where files are is known to who opens them
            is_copy: false,
        }
    }

    /// How much of the weights has been read since the files were opened, from 0 to 1, by whichever clone of these: for those who watch a load.
    /// An encoder's weights are read in one go and are not counted.
    pub fn share_read(&self) -> f32 {
        let (read, all) = self.weights.progress();
        (read.0 as f64 / all.0.max(1) as f64).min(1.0) as f32
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// Name and shape of each tensor of a safetensors file, from its header.
pub(crate) fn read_safetensors_shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, EngineError> {
    let tensors = safetensors::read_tensors(&Storage::open(path)?, 0)?;
    // Integers and truth values are bookkeeping, such as positions.
    let weight = tensors.others.iter().find(|(_, dtype)| format!("{dtype:?}").starts_with('F'));
    if let Some((name, dtype)) = weight {
        return Err(safetensors::unusable(name, *dtype));
    }
    Ok(tensors.known.into_iter().map(|(name, entry)| (name, entry.shape)).collect())
}
