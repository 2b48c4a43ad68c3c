//! A decoder's weights in memory, read tensor by tensor.

use plexus_kernels::norm::{layer_norm, rms_norm};
use plexus_kernels::{Forms, Matrix, Team};

use super::network::{Experts, FeedForward, Network, Shared};
use crate::error::EngineError;
use crate::model::{FfnConfig, ModelConfig, ModelFiles, NormKind, QkNorm, Rope};

/// A decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Norm,
    /// Absent where the embedding is the output projection too.
    pub(super) head: Option<Matrix>,
    /// One for each of the configuration's.
    pub(super) ropes: Vec<Rope>,
}

/// A layer. Norms are there or not as the configuration says.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Option<Norm>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) qk_norms: Option<(Norm, Norm)>,
    pub(super) attention_post_norm: Option<Norm>,
    pub(super) ffn_norm: Option<Norm>,
    pub(super) ffn: FeedForward,
    pub(super) ffn_post_norm: Option<Norm>,
}

/// `x W^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    /// `[rows]`
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// What its input must be converted to.
    pub(super) fn forms(&self) -> Forms {
        Forms::of(self.matrix.format())
    }

    /// Numbers that it gives for each row.
    pub(super) fn rows(&self) -> usize {
        self.matrix.rows()
    }

    /// Adds the bias to rows of the product.
    pub(super) fn finish(&self, rows: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.matrix.bytes() + self.bias.as_ref().map_or(0, |bias| bias.len() * 4)
    }
}

/// A norm of rows as wide as its weight.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Vec<f32>,
    /// There if the mean is subtracted.
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    /// Norms each row of `x` in place.
    pub(super) fn apply(&self, x: &mut [f32]) {
        for row in x.chunks_exact_mut(self.weight.len()) {
            match &self.bias {
                Some(bias) => layer_norm(row, &self.weight, bias, self.eps),
                None => rms_norm(row, &self.weight, self.eps),
            }
        }
    }

    fn bytes(&self) -> usize {
        4 * (self.weight.len() + self.bias.as_ref().map_or(0, Vec::len))
    }
}

impl Decoder {
    /// Reads all weights, one tensor at a time; the team packs them.
    pub(super) fn load(files: &ModelFiles, team: &Team) -> Result<Self, EngineError> {
        let reader = Reader { files, team };
        let config = &files.config;
        let embedding = reader.matrix("embedding")?;
        let layers = (0..config.layers.len()).map(|index| reader.layer(index)).collect::<Result<_, _>>()?;
        let head = if config.tied_embeddings { None } else { Some(reader.matrix("head")?) };
        let ropes = config.ropes.iter().map(Rope::new).collect();
        let norm = reader.norm("norm")?;
        files.weights().release();
        Ok(Self { config: config.clone(), embedding, layers, norm, head, ropes })
    }

    /// Memory of the weights.
    pub(super) fn bytes(&self) -> usize {
        let head = self.head.as_ref().map_or(0, Matrix::bytes);
        self.embedding.bytes() + head + self.norm.bytes() + self.layers.iter().map(Layer::bytes).sum::<usize>()
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        let linears = [&self.q, &self.k, &self.v, &self.o].into_iter().map(Linear::bytes).sum::<usize>();
        let norms = [&self.attention_norm, &self.attention_post_norm, &self.ffn_norm, &self.ffn_post_norm];
        let norms = norms.into_iter().flatten().map(Norm::bytes).sum::<usize>();
        linears + norms + self.qk_norms.as_ref().map_or(0, |(q, k)| q.bytes() + k.bytes()) + self.ffn.bytes()
    }
}

impl Network {
    pub(super) fn bytes(&self) -> usize {
        [Some(&self.up), Some(&self.down), self.gate.as_ref()].into_iter().flatten().map(Linear::bytes).sum()
    }
}

impl FeedForward {
    fn bytes(&self) -> usize {
        match self {
            Self::Dense(network) => network.bytes(),
            Self::Experts(experts) => {
                let shared = experts.shared.as_ref().map_or(0, |shared| shared.network.bytes() + shared.router.bytes());
                experts.router.bytes() + experts.networks.iter().map(Network::bytes).sum::<usize>() + shared
            }
        }
    }
}

/// Reads tensors of one model.
struct Reader<'a> {
    files: &'a ModelFiles,
    team: &'a Team,
}

impl Reader<'_> {
    fn malformed(&self, reason: String) -> EngineError {
        EngineError::malformed(self.files.weights().path(), reason)
    }

    fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        let tensor = self.files.weights().view(name, &self.files.config)?;
        let [rows, columns] = *tensor.shape else { return Err(self.malformed(format!("tensor {name:?} is no matrix"))) };
        Matrix::load(tensor.format, tensor.held, rows, columns, &tensor.bytes, self.team, &|done| tensor.release(done))
            .map_err(|error| self.malformed(format!("tensor {name:?}: {error}")))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, EngineError> {
        Ok(self.files.weights().view(name, &self.files.config)?.to_f32())
    }

    fn norm(&self, name: &str) -> Result<Norm, EngineError> {
        let config = &self.files.config;
        let mut weight = self.vector(name)?;
        weight.iter_mut().for_each(|weight| *weight += config.norm_offset);
        let bias = (config.norm == NormKind::Layer).then(|| self.vector(&format!("{name}.bias"))).transpose()?;
        Ok(Norm { weight, bias, eps: config.norm_eps as f32 })
    }

    fn linear(&self, name: &str) -> Result<Linear, EngineError> {
        let bias = format!("{name}.bias");
        let bias = if self.files.weights().has(&bias) { Some(self.vector(&bias)?) } else { None };
        Ok(Linear { matrix: self.matrix(name)?, bias })
    }

    fn network(&self, prefix: &str) -> Result<Network, EngineError> {
        let config = &self.files.config;
        let linear = |part: &str| self.linear(&format!("{prefix}{part}"));
        let gate = if config.gated { Some(linear("gate")?) } else { None };
        Ok(Network { gate, up: linear("up")?, down: linear("down")?, activation: config.activation.into() })
    }

    fn layer(&self, index: usize) -> Result<Layer, EngineError> {
        let config = &self.files.config;
        let name = |part: &str| format!("layers.{index}.{part}");
        let norm = |part: &str, has: bool| if has { self.norm(&name(part)).map(Some) } else { Ok(None) };
        let linear = |part: &str| self.linear(&name(part));
        let (before, after) = (config.norm_placement.before(), config.norm_placement.after());
        let qk_norms = match config.qk_norm {
            QkNorm::None => None,
            QkNorm::Head | QkNorm::Whole => Some((self.norm(&name("q_norm"))?, self.norm(&name("k_norm"))?)),
        };
        let ffn = match config.layers[index].ffn {
            FfnConfig::Dense { .. } => FeedForward::Dense(self.network(&name(""))?),
            FfnConfig::Experts { n_experts, n_active, normalized, shared, .. } => {
                let networks = (0..n_experts).map(|expert| self.network(&name(&format!("experts.{expert}."))));
                let networks = networks.collect::<Result<_, _>>()?;
                let shared = shared.map(|_| Ok(Shared { network: self.network(&name("shared."))?, router: linear("shared_router")? }));
                let shared = shared.transpose()?;
                FeedForward::Experts(Experts { router: linear("router")?, networks, n_active, normalized, shared })
            }
        };
        Ok(Layer {
            attention_norm: norm("attention_norm", before)?,
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: linear("o")?,
            qk_norms,
            attention_post_norm: norm("attention_post_norm", after)?,
            ffn_norm: norm("ffn_norm", before)?,
            ffn,
            ffn_post_norm: norm("ffn_post_norm", after)?,
        })
    }
}
