//! Feed-forward networks, dense and of experts.

use plexus_kernels::activation::activate;
use plexus_kernels::{Activations, Product, Team, multiply};

use super::buffers::{for_rows, take_parts};
use super::weights::Network;

impl Network {
    /// What its input must be converted to.
    pub(super) fn forms(&self) -> plexus_kernels::Forms {
        self.gate.as_ref().map_or(self.up.forms(), |gate| gate.forms().and(self.up.forms()))
    }

    /// `x [n, hidden]` gives `out [n, hidden]`. `room` is what it works in.
    pub(super) fn forward(&self, team: &Team, x: &Activations, room: Room<'_>, out: &mut [f32]) {
        let (n, width) = (x.n(), self.up.rows());
        let [gate, up] = take_parts(room.work, [if self.gate.is_some() { n * width } else { 0 }, n * width]);
        match &self.gate {
            Some(linear) => multiply(
                team,
                &mut [Product { matrix: &linear.matrix, out: &mut *gate }, Product { matrix: &self.up.matrix, out: &mut *up }],
                x,
            ),
            None => multiply(team, &mut [Product { matrix: &self.up.matrix, out: &mut *up }], x),
        }
        let (gate, up) = (&*gate, &*up);
        room.inner.compute(team, n, width, self.down.forms(), &|row, inner| {
            let row = row * width..(row + 1) * width;
            match &self.gate {
                Some(linear) if linear.bias.is_none() && self.up.bias.is_none() => {
                    inner.copy_from_slice(&gate[row.clone()]);
                    activate(self.activation, inner, Some(&up[row]));
                }
                Some(linear) => {
                    inner.copy_from_slice(&gate[row.clone()]);
                    linear.finish(inner);
                    activate(self.activation, inner, None);
                    let bias = self.up.bias.iter().flatten().copied().chain(std::iter::repeat(0.0));
                    inner.iter_mut().zip(&up[row]).zip(bias).for_each(|((x, up), bias)| *x *= up + bias);
                }
                None => {
                    inner.copy_from_slice(&up[row]);
                    self.up.finish(inner);
                    activate(self.activation, inner, None);
                }
            }
        });
        multiply(team, &mut [Product { matrix: &self.down.matrix, out: &mut *out }], room.inner);
        if self.down.bias.is_some() {
            for_rows(team, out, self.down.rows(), &|_, rows| self.down.finish(rows));
        }
    }
}

/// Room for a network to work in.
#[derive(Debug)]
pub(super) struct Room<'a> {
    /// Takes the gate and up projections, `[n, width]` each.
    pub(super) work: &'a mut Vec<f32>,
    /// The input of the last product.
    pub(super) inner: &'a mut Activations,
}

impl Room<'_> {
    /// The same room, for a shorter time.
    pub(super) fn again(&mut self) -> Room<'_> {
        Room { work: self.work, inner: self.inner }
    }
}
