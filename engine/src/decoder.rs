//! A decoder's weights on a device: one description for all executors, and one walk over the configuration that reads them.
//!
//! An executor says how its device holds a matrix and a vector ([`LoadTensor`]), and in its own folder what is computed with them.

use std::cell::Cell;

use crate::error::EngineError;
use crate::model::{Activation, FfnConfig, ModelConfig, ModelFiles, NormKind, QkNorm, Rope, TensorView};

/// A decoder, of matrices `M` and vectors `V`.
#[derive(Debug)]
pub(crate) struct Decoder<M, V> {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: M,
    pub(crate) layers: Vec<Layer<M, V>>,
    pub(crate) norm: Norm<V>,
    /// Absent where the embedding is the output projection too.
    head: Option<M>,
    /// One for each of the configuration's.
    pub(crate) ropes: Vec<Rope>,
    /// Memory of the weights.
    pub(crate) bytes: usize,
}

/// A layer. Norms are there or not as [`ModelConfig::norm_placement`] says.
#[derive(Debug)]
pub(crate) struct Layer<M, V> {
    pub(crate) attention_norm: Option<Norm<V>>,
    pub(crate) q: Linear<M, V>,
    pub(crate) k: Linear<M, V>,
    pub(crate) v: Linear<M, V>,
    pub(crate) o: Linear<M, V>,
    /// Of queries and keys, where the family has them.
    pub(crate) qk_norms: Option<(Norm<V>, Norm<V>)>,
    pub(crate) attention_post_norm: Option<Norm<V>>,
    pub(crate) ffn_norm: Option<Norm<V>>,
    pub(crate) ffn: FeedForward<M, V>,
    pub(crate) ffn_post_norm: Option<Norm<V>>,
}

/// What follows attention in a layer.
#[derive(Debug)]
pub(crate) enum FeedForward<M, V> {
    /// One network for all tokens.
    Dense(Network<M, V>),
    /// Several, of which each token takes some.
    Experts(Experts<M, V>),
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug)]
pub(crate) struct Network<M, V> {
    pub(crate) gate: Option<Linear<M, V>>,
    pub(crate) up: Linear<M, V>,
    pub(crate) down: Linear<M, V>,
    pub(crate) activation: Activation,
}

/// Several networks, of which a router chooses some for each token.
#[derive(Debug)]
pub(crate) struct Experts<M, V> {
    pub(crate) router: Linear<M, V>,
    pub(crate) networks: Vec<Network<M, V>>,
    pub(crate) n_active: usize,
    /// Are the shares of those taken scaled to a sum of 1?
    pub(crate) normalized: bool,
    pub(crate) shared: Option<Shared<M, V>>,
}

/// The network that all tokens take besides, and the projection whose sigmoid is its share.
#[derive(Debug)]
pub(crate) struct Shared<M, V> {
    pub(crate) network: Network<M, V>,
    pub(crate) router: Linear<M, V>,
}

/// `x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear<M, V> {
    /// `[rows, columns]`
    pub(crate) matrix: M,
    /// `[rows]`
    pub(crate) bias: Option<V>,
}

/// A norm of rows as wide as its weight: of the root of the mean square without a bias, of mean and variance with one ([`NormKind`]).
#[derive(Debug)]
pub(crate) struct Norm<V> {
    pub(crate) weight: V,
    pub(crate) bias: Option<V>,
    pub(crate) eps: f32,
}

/// How an executor brings tensors onto its device.
pub(crate) trait LoadTensor {
    type Matrix;
    type Vector;

    /// A matrix of which some rows are there.
    type Begun;

    /// A tensor of two dimensions, in the format in which it is to be held. The name is for errors.
    fn matrix(&self, name: &str, tensor: &TensorView<'_>) -> Result<Self::Matrix, EngineError>;

    /// Goes on with a large tensor by about `bytes` of it. The matrix once all of it is there, until then `begun` is what there is of it. A device
    /// that takes a matrix only in one go gives it at once.
    fn some_rows(
        &self,
        name: &str,
        tensor: &TensorView<'_>,
        begun: &mut Option<Self::Begun>,
        bytes: usize,
    ) -> Result<Option<Self::Matrix>, EngineError>;

    /// A bias, or the weight of a norm.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, EngineError>;

    /// Memory that a matrix takes.
    fn bytes(matrix: &Self::Matrix) -> usize;
}

/// Bytes of the embedding or of the output matrix that are read in a part, which takes some milliseconds: either may be as large as ten layers.
pub(crate) const PART_BYTES: usize = 32 << 20;

/// A decoder whose weights are being read, of matrices `M`, begun ones `B`, and vectors `V`.
#[derive(Debug)]
pub(crate) struct Reading<M, B, V> {
    files: ModelFiles,
    /// Bytes of a part of a matrix.
    part_bytes: usize,
    /// The embedding, or the output matrix, as far as it is there.
    begun: Option<B>,
    embedding: Option<M>,
    layers: Vec<Layer<M, V>>,
    head: Option<M>,
    /// Memory of what was read.
    bytes: usize,
}

impl<M, B, V> Reading<M, B, V> {
    /// Nothing is read yet. A part of the embedding and of the output matrix has about `part_bytes`.
    pub(crate) fn new(files: ModelFiles, part_bytes: usize) -> Self {
        Self { files, part_bytes, begun: None, embedding: None, layers: Vec::new(), head: None, bytes: 0 }
    }

    /// Where it is read from.
    pub(crate) fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Reads the next part, one tensor at a time: some rows of the embedding, a layer, some rows of the output matrix, or what else follows the
    /// layers. Then the decoder is whole, and nothing is left here.
    pub(crate) fn read(
        &mut self,
        device: &impl LoadTensor<Matrix = M, Begun = B, Vector = V>,
    ) -> Result<Option<Decoder<M, V>>, EngineError> {
        let config = &self.files.config;
        let reader = Reader { files: &self.files, config, device, bytes: Cell::new(self.bytes) };
        let index = self.layers.len();
        if self.embedding.is_none() {
            self.embedding = reader.some_rows("embedding", &mut self.begun, self.part_bytes)?;
        } else if index < config.layers.len() {
            self.layers.push(reader.layer(index)?);
        } else if self.head.is_none() && !config.tied_embeddings {
            self.head = reader.some_rows("head", &mut self.begun, self.part_bytes)?;
        } else {
            let norm = reader.norm("norm")?;
            self.files.weights().check_unchanged()?;
            let ropes = config.ropes.iter().map(|rope| Rope::new(rope, config.max_context)).collect();
            let (layers, head) = (std::mem::take(&mut self.layers), self.head.take());
            let whole = |embedding| Decoder { config: config.clone(), embedding, layers, norm, head, ropes, bytes: reader.bytes.get() };
            return Ok(self.embedding.take().map(whole));
        }
        self.bytes = reader.bytes.get();
        Ok(None)
    }
}

impl<M, V> Decoder<M, V> {
    /// The output projection.
    pub(crate) fn head(&self) -> &M {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl<M, V> Experts<M, V> {
    /// The experts with the largest of a token's `shares [n_experts]`, ties to the lower index, each with its share.
    pub(crate) fn choose(&self, shares: &[f32]) -> impl Iterator<Item = (usize, f32)> {
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_unstable_by(|a, b| shares[*b].total_cmp(&shares[*a]).then(a.cmp(b)));
        order.truncate(self.n_active);
        let sum = if self.normalized { order.iter().map(|expert| shares[*expert]).sum() } else { 1.0 };
        order.into_iter().map(move |expert| (expert, shares[expert] / sum))
    }
}

/// Reads the tensors of one model by the names of [`ModelConfig::tensors`].
struct Reader<'a, T> {
    files: &'a ModelFiles,
    config: &'a ModelConfig,
    device: &'a T,
    /// Memory of what was read.
    bytes: Cell<usize>,
}

impl<M, V, T: LoadTensor<Matrix = M, Vector = V>> Reader<'_, T> {
    fn matrix(&self, name: &str) -> Result<M, EngineError> {
        let matrix = self.device.matrix(name, &self.files.weights().view(name, self.config)?)?;
        self.bytes.update(|bytes| bytes + T::bytes(&matrix));
        Ok(matrix)
    }

    fn some_rows(&self, name: &str, begun: &mut Option<T::Begun>, bytes: usize) -> Result<Option<M>, EngineError> {
        let matrix = self.device.some_rows(name, &self.files.weights().view(name, self.config)?, begun, bytes)?;
        self.bytes.update(|bytes| bytes + matrix.as_ref().map_or(0, T::bytes));
        Ok(matrix)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, EngineError> {
        self.files.weights().view(name, self.config)?.to_f32()
    }

    fn hold(&self, values: Vec<f32>) -> Result<V, EngineError> {
        self.bytes.update(|bytes| bytes + size_of_val(&values[..]));
        self.device.vector(values)
    }

    fn bias(&self, name: &str) -> Result<V, EngineError> {
        self.hold(self.vector(&format!("{name}.bias"))?)
    }

    fn norm(&self, name: &str) -> Result<Norm<V>, EngineError> {
        let config = self.config;
        let weight = self.vector(name)?.into_iter().map(|weight| weight + config.norm_offset).collect();
        let bias = (config.norm == NormKind::Layer).then(|| self.bias(name)).transpose()?;
        Ok(Norm { weight: self.hold(weight)?, bias, eps: config.norm_eps as f32 })
    }

    fn linear(&self, name: &str) -> Result<Linear<M, V>, EngineError> {
        let has_bias = self.files.weights().has(&format!("{name}.bias"));
        Ok(Linear { matrix: self.matrix(name)?, bias: has_bias.then(|| self.bias(name)).transpose()? })
    }

    fn network(&self, prefix: &str) -> Result<Network<M, V>, EngineError> {
        let linear = |part: &str| self.linear(&format!("{prefix}{part}"));
        let gate = self.config.gated.then(|| linear("gate")).transpose()?;
        Ok(Network { gate, up: linear("up")?, down: linear("down")?, activation: self.config.activation })
    }

    fn feed_forward(&self, config: FfnConfig, prefix: &str) -> Result<FeedForward<M, V>, EngineError> {
        let linear = |part: &str| self.linear(&format!("{prefix}{part}"));
        let network = |part: &str| self.network(&format!("{prefix}{part}"));
        match config {
            FfnConfig::Dense { .. } => network("").map(FeedForward::Dense),
            FfnConfig::Experts { n_experts, n_active, normalized, shared, .. } => {
                let networks = (0..n_experts).map(|expert| network(&format!("experts.{expert}."))).collect::<Result<_, _>>()?;
                let shared = shared.map(|_| Ok(Shared { network: network("shared.")?, router: linear("shared_router")? })).transpose()?;
                Ok(FeedForward::Experts(Experts { router: linear("router")?, networks, n_active, normalized, shared }))
            }
        }
    }

    fn layer(&self, index: usize) -> Result<Layer<M, V>, EngineError> {
        let name = |part: &str| format!("layers.{index}.{part}");
        let linear = |part: &str| self.linear(&name(part));
        let norm = |part: &str, wanted: bool| wanted.then(|| self.norm(&name(part))).transpose();
        let (before, after) = (self.config.norm_placement.before(), self.config.norm_placement.after());
        let has_qk_norms = self.config.qk_norm != QkNorm::None;
        Ok(Layer {
            attention_norm: norm("attention_norm", before)?,
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: linear("o")?,
            qk_norms: norm("q_norm", has_qk_norms)?.zip(norm("k_norm", has_qk_norms)?),
            attention_post_norm: norm("attention_post_norm", after)?,
            ffn_norm: norm("ffn_norm", before)?,
            ffn: self.feed_forward(self.config.layers[index].ffn, &name(""))?,
            ffn_post_norm: norm("ffn_post_norm", after)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_shares_are_taken_and_ties_go_to_the_lower_index() {
        let chosen = |shares: &[f32], normalized| {
            let router = Linear { matrix: (), bias: None::<()> };
            let experts = Experts { router, networks: Vec::new(), n_active: 2, normalized, shared: None };
            experts.choose(shares).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[0.25, 0.125, 0.5, 0.25], false), [(2, 0.5), (0, 0.25)]);
        assert_eq!(chosen(&[0.25, 0.125, 0.25, 0.125], true), [(0, 0.5), (2, 0.5)]);
    }
}
