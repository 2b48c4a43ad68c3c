//! Kernels for x86-64.

mod avx512;
mod dense512;
mod words256;

use super::product::Kernel;
use crate::format::Format;
use crate::isa::Isa;

/// The kernel for `format` with the instructions of `isa`, if there is one of its own.
pub(super) fn kernel(isa: Isa, format: Format) -> Option<Kernel> {
    match isa {
        Isa::Avx512 if format.is_dense() => Some(dense512::kernel(format)),
        Isa::Avx512 => Some(avx512::kernel(format)),
        Isa::Avx2 | Isa::AvxVnni => Some(words256::kernel(format, isa == Isa::AvxVnni)),
        Isa::Portable | Isa::Neon => None,
    }
}
