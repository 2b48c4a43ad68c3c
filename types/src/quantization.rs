//! Quantization in place: weights held in fewer bits than their files have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// In which format a model's matrices are held, where their files give more bits. Written `q8_0`, `q6k` or `q4k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Quantization {
    /// 8.5 bits: no difference that could be told.
    Q8_0,
    /// 6.6 bits.
    Q6K,
    /// 4.5 bits; the embedding and the output projection have 6.6.
    Q4K,
}

/// A text that names no quantization.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no quantization; write q8_0, q6k or q4k")]
pub struct InvalidQuantization {
    /// The text.
    pub text: String,
}

impl Quantization {
    const ALL: [Self; 3] = [Self::Q8_0, Self::Q6K, Self::Q4K];

    /// Least bits that a weight takes, with its share of the scales.
    pub fn bits(self) -> f64 {
        match self {
            Self::Q8_0 => 8.5,
            Self::Q6K => 6.5625,
            Self::Q4K => 4.5,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6k",
            Self::Q4K => "q4k",
        }
    }
}

impl FromStr for Quantization {
    type Err = InvalidQuantization;

    fn from_str(text: &str) -> Result<Self, InvalidQuantization> {
        Self::ALL.into_iter().find(|known| known.name() == text).ok_or_else(|| InvalidQuantization { text: text.to_owned() })
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for Quantization {
    type Error = InvalidQuantization;
    fn try_from(text: String) -> Result<Self, InvalidQuantization> {
        text.parse()
    }
}

impl From<Quantization> for String {
    fn from(quantization: Quantization) -> String {
        quantization.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantizations_are_read_as_they_are_written() {
        for quantization in Quantization::ALL {
            assert_eq!(quantization.to_string().parse(), Ok(quantization));
        }
        assert!("Q4_K_M".parse::<Quantization>().unwrap_err().to_string().contains("q8_0, q6k or q4k"));
    }
}
