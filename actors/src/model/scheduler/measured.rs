//! What was measured for each number of sequences that take part.

/// From so many sequences on they are taken for as many.
const COUNT_MAX: usize = 32;

fn place(n_sequences: usize) -> usize {
    n_sequences.clamp(1, COUNT_MAX) - 1
}

/// What is known of a number of sequences, or else of the next fewer, or else of the next more; 0 while nothing is.
fn nearest(known: &[f32; COUNT_MAX], n_sequences: usize) -> f32 {
    let (fewer, more) = known.split_at(place(n_sequences) + 1);
    fewer.iter().rev().chain(more).find(|known| **known > 0.0).copied().unwrap_or(0.0)
}

/// Means in which the latest counts most.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Means([f32; COUNT_MAX]);

impl Means {
    /// With so many sequences, or the nearest number that is known; 0 while nothing is.
    pub(super) fn get(&self, n_sequences: usize) -> f32 {
        nearest(&self.0, n_sequences)
    }

    /// It was measured with so many.
    pub(super) fn blend(&mut self, n_sequences: usize, measured: f32) {
        super::speed::blend(&mut self.0[place(n_sequences)], measured);
    }
}

/// Times without what disturbed some of them: the lower quartile of the latest. Whatever disturbs a step makes it longer, so that few short ones say
/// more than many long ones; that all became longer shows a little later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quick {
    known: [f32; COUNT_MAX],
    latest: [Latest; COUNT_MAX],
}

impl Default for Quick {
    fn default() -> Self {
        Self { known: [0.0; COUNT_MAX], latest: [Latest::default(); COUNT_MAX] }
    }
}

impl Quick {
    /// How often it was measured lately with exactly so many.
    pub(super) fn n_measured(&self, n_sequences: usize) -> usize {
        usize::from(self.latest[place(n_sequences)].n)
    }

    /// With so many sequences, or the nearest number that is known; 0 while nothing is.
    pub(super) fn get(&self, n_sequences: usize) -> f32 {
        nearest(&self.known, n_sequences)
    }

    /// It was measured with so many.
    pub(super) fn push(&mut self, n_sequences: usize, measured: f32) {
        let place = place(n_sequences);
        self.known[place] = self.latest[place].push(measured.max(f32::EPSILON));
    }
}

/// The latest measurements.
#[derive(Debug, Clone, Copy, Default)]
struct Latest {
    /// The first `n`, of which the one at `next` is replaced next.
    values: [f32; Self::N_MAX],
    n: u8,
    next: u8,
}

impl Latest {
    const N_MAX: usize = 8;

    /// Adds one; gives the quarter point.
    fn push(&mut self, measured: f32) -> f32 {
        self.values[usize::from(self.next)] = measured;
        self.next = (self.next + 1) % Self::N_MAX as u8;
        self.n = (self.n + 1).min(Self::N_MAX as u8);
        let mut sorted = self.values;
        let sorted = &mut sorted[..usize::from(self.n)];
        sorted.sort_unstable_by(f32::total_cmp);
        sorted[(sorted.len() - 1) / 4]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_were_disturbed_are_passed_over_and_a_device_that_became_slower_is_noticed() {
        let mut quick = Quick::default();
        assert_eq!((quick.get(3), quick.n_measured(3)), (0.0, 0));
        let mut known = |measured: f32| {
            quick.push(3, measured);
            quick.get(3)
        };
        assert_eq!([9.0, 2.0, 7.0, 2.1, 8.0].map(&mut known), [9.0, 2.0, 2.0, 2.0, 2.1]);
        let after: Vec<f32> = (0..8).map(|_| known(4.0)).collect();
        assert_eq!(after, [2.1, 2.1, 2.1, 2.1, 4.0, 4.0, 4.0, 4.0]);
        assert_eq!([3.0, 3.0].map(known), [4.0, 3.0]);
        assert_eq!((quick.get(1), quick.get(30), quick.n_measured(3), quick.n_measured(1)), (3.0, 3.0, 8, 0));
    }

    #[test]
    fn what_is_not_known_of_so_many_is_taken_from_the_next_fewer() {
        let mut means = Means::default();
        [(2, 0.2), (5, 0.5), (40, 4.0)].into_iter().for_each(|(n, value)| means.blend(n, value));
        assert_eq!([1, 2, 4, 5, 31, 32, 99].map(|n| means.get(n)), [0.2, 0.2, 0.2, 0.5, 0.5, 4.0, 4.0]);
    }
}
