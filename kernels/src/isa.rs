//! Which instructions this machine has, asked once.

use std::sync::OnceLock;

/// A set of instructions that kernels are written for. A higher one is faster; each computes the same products within rounding, and each
/// gives a row the same bits in whatever company.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, everywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// AVX2 with byte dot products (AVX-VNNI).
    AvxVnni,
    /// AVX-512 with byte dot products, and dot products of bf16 where the machine has them.
    Avx512,
}

impl Isa {
    /// The best of this machine.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::available().last().unwrap_or(&Self::Portable))
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "on machines other than x86-64 there is nothing to add")]
        let mut isas = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512vnni");
            isas.extend(
                [(avx2, Self::Avx2), (avx2 && has!("avxvnni"), Self::AvxVnni), (avx2 && avx512, Self::Avx512)]
                    .iter()
                    .filter(|x| x.0)
                    .map(|x| x.1),
            );
        }
        isas
    }
}
