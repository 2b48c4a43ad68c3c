//! Feed-forward networks, dense and of experts.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{sigmoid, silu, softmax};

use super::linear::Linear;
use crate::model::Activation;

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

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

    #[cfg(test)]
    fn matrix_bytes(&self) -> u64 {
        [Some(&self.up), Some(&self.down), self.gate.as_ref()].into_iter().flatten().map(Linear::matrix_bytes).sum()
    }
}

/// What follows attention in a layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Network),
    Experts(Experts),
}

impl FeedForward {
    /// `x [n, hidden]` gives `[n, hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(network) => network.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }

    /// Memory of the matrices.
    #[cfg(test)]
    pub(super) fn matrix_bytes(&self) -> u64 {
        match self {
            Self::Dense(network) => network.matrix_bytes(),
            Self::Experts(experts) => {
                let shared = experts.shared.iter().map(|(network, router)| network.matrix_bytes() + router.matrix_bytes());
                experts.router.matrix_bytes() + experts.networks.iter().map(Network::matrix_bytes).chain(shared).sum::<u64>()
            }
        }
    }
}

/// Several networks, of which a router chooses some for each token.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) router: Linear,
    pub(super) networks: Vec<Network>,
    pub(super) n_active: usize,
    /// Are the shares of those taken scaled to a sum of 1?
    pub(super) normalized: bool,
    /// The network that all tokens take, and the projection whose sigmoid is its share.
    pub(super) shared: Option<(Network, Linear)>,
}

impl Experts {
    /// Tokens are gathered by expert. What a token gets is added in the order of the experts' indices, so that it never depends on others.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shares = softmax(&self.router.forward(x)?, D::Minus1)?.to_vec2::<f32>()?; // [n, n_experts]
        let mut by_expert: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); self.networks.len()];
        for (row, shares) in shares.iter().enumerate() {
            for (expert, share) in choose(shares, self.n_active, self.normalized) {
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
            Some((network, router)) => out + network.forward(x)?.broadcast_mul(&sigmoid(&router.forward(x)?)?)?,
            None => Ok(out),
        }
    }
}

/// The `n` experts with the largest shares, ties to the lower index, each with its share.
fn choose(shares: &[f32], n: usize, normalized: bool) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]).then(a.cmp(b)));
    order.truncate(n);
    let sum = if normalized { order.iter().map(|expert| shares[*expert]).sum() } else { 1.0 };
    order.into_iter().map(|expert| (expert, shares[expert] / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_shares_are_taken_and_ties_go_to_the_lower_index() {
        assert_eq!(choose(&[0.25, 0.125, 0.5, 0.25], 2, false), [(2, 0.5), (0, 0.25)]);
        assert_eq!(choose(&[0.25, 0.125, 0.25, 0.125], 2, true), [(0, 0.5), (2, 0.5)]);
    }
}
