//! Which instructions this machine has, asked once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions that kernels are written for. A higher one is faster; each computes the same products within rounding, and each
/// gives a row the same bits in whatever company.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, everywhere.
    Portable,
    /// 64-bit ARM with byte dot products (ARMv8.2 with DotProd; most since 2018).
    Neon,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// AVX2 with byte dot products of 256 bits: AVX-VNNI, or the same from AVX-512.
    AvxVnni,
    /// AVX-512 with byte dot products, and dot products of bf16 where the machine has them.
    Avx512,
}

/// A set of instructions that this machine does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this machine has no {isa}; it has {}", Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "))]
pub struct IsaError {
    /// What was asked for.
    pub isa: Isa,
}

/// The name of no set of instructions.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} is no set of instructions; there are {}", Isa::ALL.map(Isa::name).join(", "))]
pub struct IsaNameError {
    /// What was given.
    pub name: String,
}

/// The place in [`Isa::ALL`] of the best that may be used.
static LIMIT: AtomicU8 = AtomicU8::new(Isa::ALL.len() as u8 - 1);

impl Isa {
    /// All there are, in their order.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// The best of this machine, within the limit of this process.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        (*BEST.get_or_init(|| *Self::available().last().unwrap_or(&Self::Portable))).min(Self::limit())
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "on machines other than these there is nothing to add")]
        let mut isas = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let vnni512 = has!("avx512vnni") && has!("avx512vl");
            let avx512 = vnni512 && has!("avx512f") && has!("avx512bw") && has!("avx512dq");
            isas.extend(
                [(avx2, Self::Avx2), (avx2 && (has!("avxvnni") || vnni512), Self::AvxVnni), (avx2 && avx512, Self::Avx512)]
                    .iter()
                    .filter(|x| x.0)
                    .map(|x| x.1),
            );
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            isas.push(Self::Neon);
        }
        isas
    }

    /// Keeps every kernel of this process from anything better than `isa`: how a machine measures what lesser ones would do. It is set before
    /// the first kernel runs, or the last bits of results change in between. Errors: the machine does not have it.
    pub fn set_limit(isa: Self) -> Result<(), IsaError> {
        if !Self::available().contains(&isa) {
            return Err(IsaError { isa });
        }
        LIMIT.store(isa as u8, Ordering::Relaxed);
        Ok(())
    }

    /// The best that [`Isa::set_limit`] allows.
    pub(crate) fn limit() -> Self {
        Self::ALL[usize::from(LIMIT.load(Ordering::Relaxed))]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Isa {
    type Err = IsaNameError;

    fn from_str(name: &str) -> Result<Self, IsaNameError> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| IsaNameError { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for (place, isa) in Isa::ALL.into_iter().enumerate() {
            assert_eq!((isa.name().parse(), isa as usize), (Ok(isa), place));
        }
        let error = "sse9".parse::<Isa>().unwrap_err();
        assert!(error.to_string().starts_with("\"sse9\" is no set of instructions; there are portable, neon, avx2"));
    }

    #[test]
    fn what_the_machine_lacks_is_no_limit() {
        assert!(Isa::available().contains(&Isa::best()));
        for isa in Isa::ALL.into_iter().filter(|isa| !Isa::available().contains(isa)) {
            assert_eq!(Isa::set_limit(isa), Err(IsaError { isa }));
        }
        assert_eq!(Isa::set_limit(Isa::best()), Ok(()));
    }
}
