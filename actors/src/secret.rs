//! The one secret of a cluster, and the keys drawn from it.
//!
//! Everything that nodes need to trust each other comes from it: the key that seals gossip, the certificate authority of the links and the
//! cookie that is their second factor. Who holds the secret is a member; a certificate says which one.

use std::fmt;

use hkdf::Hkdf;
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::Sha256;

/// Fewest bytes of a secret: as many as the keys drawn from it have.
const BYTES_MIN: usize = 32;

/// Why a text is not a cluster secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster secret has at least 32 bytes, this one has {bytes}; make one with `openssl rand -hex 32` and give every node the same")]
pub struct SecretError {
    /// Bytes that were given, after spaces at both ends were cut and hexadecimal digits were decoded.
    pub bytes: usize,
}

/// The secret that makes nodes one cluster. Never printed: its `Debug` is redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret {
    bytes: Vec<u8>,
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(redacted)")
    }
}

impl ClusterSecret {
    /// Reads the content of a secret file: hexadecimal digits or any other text, with spaces at both ends ignored.
    /// Errors: [`SecretError`] if fewer than 32 bytes are left.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let bytes = hex_bytes(text).unwrap_or_else(|| text.as_bytes().to_vec());
        if bytes.len() < BYTES_MIN { Err(SecretError { bytes: bytes.len() }) } else { Ok(Self { bytes }) }
    }

    /// A new secret from the operating system's source of chance.
    pub fn generate() -> Self {
        let mut bytes = vec![0; BYTES_MIN];
        OsRng.try_fill_bytes(&mut bytes).expect("the operating system has a source of chance");
        Self { bytes }
    }

    /// The secret in the form that [`Self::parse`] reads, to be written into a file that only its owner may read.
    pub fn expose(&self) -> String {
        self.bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Key that seals gossip (XChaCha20-Poly1305).
    pub(crate) fn gossip_key(&self) -> [u8; 32] {
        self.derive("plexus gossip key 1")
    }

    /// Names the gossip key on the wire, so that a datagram sealed with another one is told from a damaged one.
    pub(crate) fn gossip_key_id(&self) -> u8 {
        self.derive("plexus gossip key id 1")[0]
    }

    /// Second factor of a link, asked for inside its TLS session.
    pub(crate) fn link_cookie(&self) -> String {
        self.derive("plexus link cookie 1").iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Seed of the Ed25519 key of the certificate authority that signs every node's certificate.
    pub(crate) fn link_ca_seed(&self) -> [u8; 32] {
        self.derive("plexus link certificate authority 1")
    }

    fn derive(&self, label: &str) -> [u8; 32] {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(None, &self.bytes).expand(label.as_bytes(), &mut key).expect("32 bytes are fewer than HKDF-SHA256 can give");
        key
    }
}

/// The bytes that `text` spells, if it is an even number of hexadecimal digits and nothing else.
fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{ClusterSecret, SecretError};

    #[test]
    fn a_generated_secret_survives_its_file() {
        let secret = ClusterSecret::generate();
        assert_eq!(ClusterSecret::parse(&format!("{}\n", secret.expose())), Ok(secret.clone()));
        assert_ne!(ClusterSecret::generate(), secret);
    }

    #[test]
    fn a_short_secret_is_refused_with_a_remedy() {
        assert_eq!(ClusterSecret::parse("hunter2"), Err(SecretError { bytes: 7 }));
        // 32 hexadecimal digits are only 16 bytes of secret.
        let error = ClusterSecret::parse(&"ab".repeat(16)).expect_err("16 bytes are too few");
        assert_eq!(error, SecretError { bytes: 16 });
        assert!(error.to_string().contains("openssl rand -hex 32"));
        assert!(ClusterSecret::parse("a sentence of forty characters, at least").is_ok());
    }

    #[test]
    fn every_purpose_has_its_own_key_and_every_secret_its_own_keys() {
        let (one, other) = (ClusterSecret::generate(), ClusterSecret::generate());
        assert_ne!(one.gossip_key(), one.link_ca_seed());
        assert_ne!(one.gossip_key(), other.gossip_key());
        assert_ne!(one.link_cookie(), other.link_cookie());
    }

    #[test]
    fn keys_stay_what_they_are_across_versions() {
        // Python: `hmac.new(hmac.new(bytes(32), bytes(32), sha256).digest(), label + b"\x01", sha256)`, which is RFC 5869 without a salt.
        let secret = ClusterSecret::parse(&"00".repeat(32)).expect("32 bytes");
        let hex = |key: [u8; 32]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(secret.gossip_key()), "9bacd2051ed088e9c2fd8b16aa338fe67dfe0b0494e3dc94a82db02abc62c3d4");
        assert_eq!(secret.gossip_key_id(), 0xd1);
        assert_eq!(secret.link_cookie(), "5a0c31bf458c6fbf395fdde15f10550e2e1013c7f023d2ff31fc9e79148f9bb1");
        assert_eq!(hex(secret.link_ca_seed()), "af91f5c76a960dbcaf148a81a8b9e3d633f02904036bc0cc04425fab598b51bd");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = ClusterSecret::generate();
        assert!(!format!("{secret:?}").contains(&secret.expose()[..8]));
    }
}
