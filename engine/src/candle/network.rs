//! Feed-forward networks, dense and of experts.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{sigmoid, silu, softmax};

use super::decoder::{Experts, FeedForward, Network};
use crate::model::Activation;

impl Network {
    /// `x [n, hidden]` gives `[n, hidden]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let activate = |x: Tensor| match self.activation {
            Activation::Silu => silu(&x),
            Activation::GeluTanh => x.gelu(),
            Activation::Gelu => x.gelu_erf(),
        };
        let up = self.up.forward(x)?;
        let inner = match &self.gate {
            Some(gate) => (activate(gate.forward(x)?)? * up)?,
            None => activate(up)?,
        };
        self.down.forward(&inner)
    }
}

impl FeedForward {
    /// `x [n, hidden]` gives `[n, hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(network) => network.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}

impl Experts {
    /// Tokens are gathered by expert. What a token gets is added in the order of the experts' indices, so that it never depends on others.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shares = softmax(&self.router.forward(x)?, D::Minus1)?.to_vec2::<f32>()?; // [n, n_experts]
        let mut by_expert: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); self.networks.len()];
        for (row, shares) in shares.iter().enumerate() {
            for (expert, share) in self.choose(shares) {
                by_expert[expert].0.push(row as u32);
                by_expert[expert].1.push(share);
            }
        }
        let mut out = x.zeros_like()?;
        for (network, (rows, shares)) in self.networks.iter().zip(by_expert) {
            if rows.is_empty() {
                continue;
            }
            let n_rows = rows.len();
            let rows = Tensor::from_vec(rows, n_rows, x.device())?;
            let shares = Tensor::from_vec(shares, (n_rows, 1), x.device())?;
            let given = network.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&shares)?;
            out = out.index_add(&rows, &given, 0)?;
        }
        match &self.shared {
            Some(shared) => out + shared.network.forward(x)?.broadcast_mul(&sigmoid(&shared.router.forward(x)?)?)?,
            None => Ok(out),
        }
    }
}
