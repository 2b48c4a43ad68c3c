//! Texts to vectors: encoders of the BERT and XLM-R families, and decoders that were trained to embed.

mod encoder;
mod executor;
mod files;

pub use executor::EmbeddingExecutor;
pub use files::Pooling;

pub(crate) use files::{EncoderFiles, read_pooling};

/// Scales a vector to length 1. A vector of zeros stays one.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

impl Pooling {
    /// One vector of length 1 from those of a text's tokens, `hidden [n_tokens * width]`.
    pub(crate) fn pool(self, hidden: &[f32], width: usize) -> Vec<f32> {
        let n_tokens = hidden.len() / width;
        let token = |i: usize| hidden[i * width..(i + 1) * width].to_vec();
        let mut vector = match self {
            Self::First => token(0),
            Self::Last => token(n_tokens - 1),
            Self::Mean => {
                let mut sums = vec![0f64; width];
                for token in hidden.chunks_exact(width) {
                    sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(*x));
                }
                sums.iter().map(|sum| (sum / n_tokens as f64) as f32).collect()
            }
        };
        normalize(&mut vector);
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_pooling_takes_its_tokens() {
        let hidden = [3.0, 4.0, 0.0, 2.0, -3.0, 3.0];
        assert_eq!(Pooling::First.pool(&hidden, 2), [0.6, 0.8]);
        assert_eq!(Pooling::Last.pool(&hidden, 2), [-0.5f32.sqrt(), 0.5f32.sqrt()]);
        assert_eq!(Pooling::Mean.pool(&hidden, 2), [0.0, 1.0]);
        assert_eq!(Pooling::Mean.pool(&[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
