//! The weights of a decoder, brought onto a device.

use candle_core::Device;

use super::decoder::{Decoder, Layer};
use super::linear::{Linear, Norm};
use super::matrix::{Matrix, has_format};
use super::network::{Experts, FeedForward, Network};
use super::rotation::Rotation;
use crate::error::EngineError;
use crate::model::{FfnConfig, ModelConfig, ModelFiles, NormKind, QkNorm, Weights};

/// Reads all weights onto the device, one tensor at a time. `failed` names the device in errors of the computation.
///
/// Errors: [`EngineError::Unsupported`], before anything is read, names a format that candle lacks.
pub(super) fn load(
    files: &ModelFiles,
    device: &Device,
    failed: &dyn Fn(candle_core::Error) -> EngineError,
) -> Result<Decoder, EngineError> {
    let config = &files.config;
    for tensor in config.tensors() {
        if let Some(held) = files.weights().held(&tensor.name).filter(|held| !has_format(*held)) {
            let what = format!("the format {held} of tensor {:?} on this device", tensor.name);
            return Err(EngineError::unsupported(what, "the host's processors, or the same model in another format"));
        }
    }
    let loader = Loader { config, weights: files.weights(), device, failed };
    let embedding = loader.matrix("embedding")?;
    let head = if config.tied_embeddings { embedding.clone() } else { loader.matrix("head")? };
    Ok(Decoder {
        layers: (0..config.layers.len()).map(|index| loader.layer(index)).collect::<Result<_, _>>()?,
        norm: loader.norm("norm")?,
        rotations: config.ropes.iter().map(Rotation::new).collect(),
        config: config.clone(),
        device: device.clone(),
        embedding,
        head,
    })
}

struct Loader<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights,
    device: &'a Device,
    failed: &'a dyn Fn(candle_core::Error) -> EngineError,
}

impl Loader<'_> {
    fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        Matrix::new(&self.weights.view(name, self.config)?, self.device).map_err(self.failed)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, EngineError> {
        Ok(self.weights.view(name, self.config)?.to_f32())
    }

    fn bias(&self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        let bias = format!("{name}.bias");
        if self.weights.has(&bias) { self.vector(&bias).map(Some) } else { Ok(None) }
    }

    fn linear(&self, name: &str) -> Result<Linear, EngineError> {
        Linear::new(self.matrix(name)?, self.bias(name)?, self.device).map_err(self.failed)
    }

    fn norm(&self, name: &str) -> Result<Norm, EngineError> {
        let mut weight = self.vector(name)?;
        weight.iter_mut().for_each(|weight| *weight += self.config.norm_offset);
        let bias = if self.config.norm == NormKind::Layer { self.bias(name)? } else { None };
        Norm::new(weight, bias, self.config.norm_eps, self.device).map_err(self.failed)
    }

    fn layer(&self, index: usize) -> Result<Layer, EngineError> {
        let name = |part: &str| format!("layers.{index}.{part}");
        let placement = self.config.norm_placement;
        let norm = |part: &str, wanted: bool| if wanted { self.norm(&name(part)).map(Some) } else { Ok(None) };
        Ok(Layer {
            attention_norm: norm("attention_norm", placement.before())?,
            q: self.linear(&name("q"))?,
            k: self.linear(&name("k"))?,
            v: self.linear(&name("v"))?,
            o: self.linear(&name("o"))?,
            qk_norms: match self.config.qk_norm {
                QkNorm::None => None,
                QkNorm::Head | QkNorm::Whole => Some((self.norm(&name("q_norm"))?, self.norm(&name("k_norm"))?)),
            },
            attention_post_norm: norm("attention_post_norm", placement.after())?,
            ffn_norm: norm("ffn_norm", placement.before())?,
            ffn: self.feed_forward(&self.config.layers[index].ffn, &name(""))?,
            ffn_post_norm: norm("ffn_post_norm", placement.after())?,
        })
    }

    fn feed_forward(&self, config: &FfnConfig, prefix: &str) -> Result<FeedForward, EngineError> {
        Ok(match *config {
            FfnConfig::Dense { .. } => FeedForward::Dense(self.network(prefix)?),
            FfnConfig::Experts { n_experts, n_active, normalized, shared, .. } => FeedForward::Experts(Experts {
                router: self.linear(&format!("{prefix}router"))?,
                networks: (0..n_experts).map(|e| self.network(&format!("{prefix}experts.{e}."))).collect::<Result<_, _>>()?,
                n_active,
                normalized,
                shared: match shared {
                    Some(_) => Some((self.network(&format!("{prefix}shared."))?, self.linear(&format!("{prefix}shared_router"))?)),
                    None => None,
                },
            }),
        })
    }

    fn network(&self, prefix: &str) -> Result<Network, EngineError> {
        let gate = if self.config.gated { Some(self.linear(&format!("{prefix}gate"))?) } else { None };
        let (up, down) = (self.linear(&format!("{prefix}up"))?, self.linear(&format!("{prefix}down"))?);
        Ok(Network { gate, up, down, activation: self.config.activation })
    }
}
