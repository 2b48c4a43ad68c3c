//! An encoder on a device, computed by candle-transformers.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, xlm_roberta};

use super::files::{EncoderFamily, EncoderFiles};
use super::readout::Readout;
use super::work::Stack;
use crate::error::EngineError;

/// The weights on a device, f32.
pub(super) struct Encoder {
    network: Network,
    device: Device,
    files: EncoderFiles,
    readout: Readout,
    /// The token that fills a text up. It is masked; which one it is does not matter.
    filling: u32,
}

/// From so many tokens on a text is not filled up: it alone keeps the processor busy.
const FILLED_MAX: usize = 128;
/// Texts of one stack, at most.
const STACK_MAX: usize = 256;

enum Network {
    Bert(bert::BertModel),
    Roberta(xlm_roberta::XLMRobertaModel),
}

impl Encoder {
    /// Reads the weights. `failed` names the device in errors of the computation.
    pub(super) fn load(
        files: &EncoderFiles,
        readout: Readout,
        device: &Device,
        failed: &dyn Fn(candle_core::Error) -> EngineError,
    ) -> std::result::Result<Self, EngineError> {
        let bytes = std::fs::read(&files.weights).map_err(|source| EngineError::Io { path: files.weights.clone(), source })?;
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, device).map_err(failed)?;
        let prefix = files.prefix.trim_end_matches('.');
        let weights = if prefix.is_empty() { weights } else { weights.pp(prefix) };
        let wrong = |error: serde_json::Error| EngineError::unsupported(format!("the encoder's configuration ({error})"), "BERT and XLM-R");
        // A tensor that is missing or of another shape is the file's fault, not the device's.
        let malformed = |error: candle_core::Error| EngineError::malformed(&files.weights, error.to_string());
        let network = match files.family {
            EncoderFamily::Bert => {
                let config: bert::Config = serde_json::from_value(files.config.clone()).map_err(wrong)?;
                Network::Bert(bert::BertModel::load(weights, &config).map_err(malformed)?)
            }
            EncoderFamily::Roberta => {
                let config: xlm_roberta::Config = serde_json::from_value(files.config.clone()).map_err(wrong)?;
                Network::Roberta(xlm_roberta::XLMRobertaModel::new(&config, weights).map_err(malformed)?)
            }
        };
        let filling = files.config.get("pad_token_id").and_then(serde_json::Value::as_u64).filter(|id| *id < files.vocab_size as u64);
        Ok(Self { network, device: device.clone(), files: files.clone(), readout, filling: filling.unwrap_or(0) as u32 })
    }

    /// To how many tokens a text of so many is filled up before it is computed: a few more, so that texts of about the same length are computed
    /// together. It depends on the text alone, and on a processor the results of a row do not depend on how many rows there are, so that a text has
    /// the same vector alone and among others. A matrix of one row would be multiplied in another way: there are at least two.
    pub(super) fn padded(&self, len: usize) -> usize {
        let step = if (2..FILLED_MAX).contains(&len) { (len.next_power_of_two() / 16).max(1) } else { 1 };
        len.next_multiple_of(step).max(2).min(self.files.max_context as usize)
    }

    /// Texts that are computed together, at most. On other devices than processors the library chooses how a product is computed by the number
    /// of rows: a text is computed alone there.
    pub(super) fn stack_max(&self) -> usize {
        if self.device.is_cpu() { STACK_MAX } else { 1 }
    }

    /// The vectors of the texts of a stack, each given as its tokens.
    pub(super) fn embed(&self, stack: &Stack, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let shape = (texts.len(), stack.padded);
        let mut ids = vec![self.filling; texts.len() * stack.padded]; // [n_texts, padded]
        let mut seen = vec![0u32; ids.len()]; // 1 where a token is the text's own
        for (row, text) in texts.iter().enumerate() {
            let from = row * stack.padded;
            ids[from..from + text.len()].copy_from_slice(text);
            seen[from..from + text.len()].fill(1);
        }
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        // One mask for all, where nothing is filled up, is added faster.
        let seen = match seen.contains(&0) {
            true => Tensor::from_vec(seen, shape, &self.device)?,
            false => Tensor::ones((1, stack.padded), DType::U32, &self.device)?,
        };
        let types = ids.zeros_like()?;
        let hidden = match &self.network {
            Network::Bert(bert) => bert.forward(&ids, &types, Some(&seen))?,
            Network::Roberta(roberta) => roberta.forward(&ids, &seen, &types, None, None, None)?,
        };
        let width = hidden.dim(2)?;
        let hidden = hidden.flatten_all()?.to_vec1()?;
        let vector = |(text, rows): (&&[u32], &[f32])| {
            let mut pooled = Vec::new();
            self.readout.add(&mut pooled, &rows[..text.len() * width], width);
            self.readout.finish(&pooled, text.len())
        };
        Ok(texts.iter().zip(hidden.chunks_exact(stack.padded * width)).map(vector).collect())
    }

    /// What it was loaded from.
    pub(super) fn files(&self) -> &EncoderFiles {
        &self.files
    }
}
