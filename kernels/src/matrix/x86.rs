//! Kernels for x86-64.

mod avx512;
mod bytes256;
mod dense256;
mod dense512;
mod formats256;

use super::product::Kernel;
use crate::format::Format;
use crate::isa::Isa;
use std::arch::is_x86_feature_detected;

/// The kernel for `format` with the instructions of `isa`, if there is one of its own.
pub(super) fn kernel(isa: Isa, format: Format) -> Option<Kernel> {
    match isa {
        Isa::Avx512 if format.is_dense() => Some(dense512::kernel(format)),
        Isa::Avx512 => Some(avx512::kernel(format)),
        Isa::Avx2 | Isa::AvxVnni if format.is_dense() => Some(dense256::kernel(format)),
        Isa::Avx2 => Some(formats256::avx2(format)),
        Isa::AvxVnni if is_x86_feature_detected!("avxvnni") => Some(formats256::vnni(format)),
        Isa::AvxVnni => Some(formats256::vnni512(format)),
        Isa::Portable => None,
    }
}
