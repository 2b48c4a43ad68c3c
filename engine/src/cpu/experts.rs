//! Tokens to experts and back.

use plexus_kernels::activation::sigmoid;
use plexus_kernels::norm::add_scaled;
use plexus_kernels::{Activations, Product, Team, multiply};

use super::buffers::{ExpertBuffers, take};
use super::network::Room;
use super::weights::Experts;

impl Experts {
    /// `buffers.normed [n, hidden]` gives `out [n, hidden]`. `input` is room for rows in the form of the products.
    ///
    /// Tokens are gathered by expert. What a token gets is added in the order of the experts' indices, so that it never depends on others.
    pub(super) fn forward(
        &self,
        team: &Team,
        hidden: usize,
        input: &mut Activations,
        mut room: Room<'_>,
        buffers: &mut ExpertBuffers,
        out: &mut [f32],
    ) {
        let n = out.len() / hidden;
        let n_experts = self.networks.len();
        let ExpertBuffers { normed, shares, given, shared_share } = buffers;
        let normed = &normed[..n * hidden];
        let shares = take(shares, n * n_experts);
        let shared_share = take(shared_share, n);
        let forms = self
            .shared
            .as_ref()
            .map_or(self.router.forms(), |shared| self.router.forms().and(shared.network.forms()).and(shared.router.forms()));
        input.load(team, normed, hidden, forms);
        multiply(team, &mut [Product { matrix: &self.router.matrix, out: &mut *shares }], input);
        match &self.shared {
            Some(shared) => {
                multiply(team, &mut [Product { matrix: &shared.router.matrix, out: &mut *shared_share }], input);
                shared.network.forward(team, input, room.again(), out);
                for (row, share) in out.chunks_exact_mut(hidden).zip(shared_share) {
                    let share = sigmoid(*share);
                    row.iter_mut().for_each(|x| *x *= share);
                }
            }
            None => out.fill(0.0),
        }
        // (expert, token, share), by expert, then by token.
        let mut taken = Vec::with_capacity(n * self.n_active);
        for (token, shares) in shares.chunks_exact_mut(n_experts).enumerate() {
            softmax(shares);
            taken.extend(self.choose(shares).map(|(expert, share)| (expert, token as u32, share)));
        }
        taken.sort_unstable_by_key(|(expert, token, _)| (*expert, *token));
        let mut rows = Vec::with_capacity(n);
        for taken in taken.chunk_by(|(a, ..), (b, ..)| a == b) {
            let network = &self.networks[taken[0].0];
            rows.clear();
            rows.extend(taken.iter().map(|(_, token, _)| *token));
            input.gather(team, normed, hidden, &rows, network.forms());
            let given = take(given, rows.len() * hidden);
            network.forward(team, input, room.again(), given);
            for (given, (_, token, share)) in given.chunks_exact(hidden).zip(taken) {
                add_scaled(&mut out[*token as usize * hidden..][..hidden], given, *share);
            }
        }
    }
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - max).exp();
        sum += *x;
    }
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one() {
        let mut x = [1.0, 2.0, 3.0, -50.0];
        softmax(&mut x);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6 && x[2] > x[1] && x[3] < 1e-20, "{x:?}");
    }
}
