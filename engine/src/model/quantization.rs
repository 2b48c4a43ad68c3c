//! In which format a matrix is held, where weights are quantized in place.

use plexus_kernels::Format;
use plexus_types::Quantization;

/// The format in which the matrix `name` of `columns` columns is held, if the file holds it in `stored`.
///
/// Routers stay as they are: they are small, and decide. So does what the file has in as few bits. Rows that are no whole number of blocks of
/// 256 take blocks of 32, or stay.
pub(super) fn held_as(quantization: Quantization, name: &str, stored: Format, columns: usize) -> Format {
    if name.ends_with("router") {
        return stored;
    }
    let wanted = wanted(quantization, name);
    let smaller = |format: &Format| match (format.row_bytes(columns), stored.row_bytes(columns)) {
        (Some(bytes), Some(stored)) => bytes < stored,
        _ => false,
    };
    [wanted, Format::Q8_0].into_iter().find(smaller).unwrap_or(stored)
}

/// Is the matrix held in more bits than `quantization` says, because its rows are no whole number of the blocks that this takes?
pub(super) fn is_too_narrow(quantization: Quantization, name: &str, stored: Format, columns: usize) -> bool {
    const WHOLE: usize = 256; // columns that are whole blocks in every format
    let wanted = wanted(quantization, name);
    !name.ends_with("router") && wanted.row_bytes(columns).is_none() && wanted.row_bytes(WHOLE) < stored.row_bytes(WHOLE)
}

fn wanted(quantization: Quantization, name: &str) -> Format {
    match quantization {
        Quantization::Q8_0 => Format::Q8_0,
        Quantization::Q6K => Format::Q6K,
        Quantization::Q4K if matches!(name, "embedding" | "head") => Format::Q6K,
        Quantization::Q4K => Format::Q4K,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(held_as(quantization, name, stored, columns), held, "{quantization} of {name} in {stored}");
            let narrow = columns < 256 && !matches!(stored, Q4_0);
            assert_eq!(is_too_narrow(quantization, name, stored, columns), narrow, "{quantization} of {name} in {stored}");
        }
    }
}
