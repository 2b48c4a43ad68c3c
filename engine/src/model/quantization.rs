//! Quantization in place: weights held in fewer bits than their files have.

use std::fmt;
use std::str::FromStr;

use plexus_kernels::Format;
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

    fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6k",
            Self::Q4K => "q4k",
        }
    }

    /// The format in which the matrix `name` of `columns` columns is held, if the file holds it in `stored`.
    ///
    /// Routers stay as they are: they are small, and decide. So does what the file has in as few bits. Rows that are no whole number of blocks of
    /// 256 take blocks of 32, or stay.
    pub(super) fn held(self, name: &str, stored: Format, columns: usize) -> Format {
        if name.ends_with("router") {
            return stored;
        }
        let wanted = match self {
            Self::Q8_0 => Format::Q8_0,
            Self::Q6K => Format::Q6K,
            Self::Q4K if matches!(name, "embedding" | "head") => Format::Q6K,
            Self::Q4K => Format::Q4K,
        };
        let smaller = |format: &Format| match (format.row_bytes(columns), stored.row_bytes(columns)) {
            (Some(bytes), Some(stored)) => bytes < stored,
            _ => false,
        };
        [wanted, Format::Q8_0].into_iter().find(smaller).unwrap_or(stored)
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

    #[test]
    fn a_matrix_is_held_in_fewer_bits_where_its_rows_allow_it() {
        use Format::{Bf16, F32, Q4_0, Q4K, Q5K, Q6K, Q8_0};
        for (quantization, name, stored, columns, held) in [
            (Quantization::Q4K, "layers.0.q", Bf16, 1024, Q4K),
            (Quantization::Q4K, "head", Bf16, 1024, Q6K),
            (Quantization::Q4K, "embedding", Q8_0, 1024, Q6K),
            (Quantization::Q4K, "layers.0.down", F32, 96, Q8_0),
            (Quantization::Q4K, "layers.0.down", F32, 40, F32),
            (Quantization::Q4K, "layers.0.down", Q4_0, 1024, Q4_0),
            (Quantization::Q4K, "layers.0.router", Bf16, 1024, Bf16),
            (Quantization::Q4K, "layers.0.shared_router", Bf16, 1024, Bf16),
            (Quantization::Q6K, "embedding", Q8_0, 1024, Q6K),
            (Quantization::Q6K, "layers.0.q", Q5K, 1024, Q5K),
            (Quantization::Q8_0, "head", F32, 1024, Q8_0),
            (Quantization::Q8_0, "layers.0.q", Q8_0, 1024, Q8_0),
        ] {
            assert_eq!(quantization.held(name, stored, columns), held, "{quantization} of {name} in {stored}");
        }
    }
}
