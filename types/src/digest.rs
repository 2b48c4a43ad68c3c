//! What files hold, in short.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A digest of a model's files: where it is another, so are they. Written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilesDigest(u128);

/// A text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 32 hexadecimal digits")]
pub struct InvalidDigest(String);

impl FilesDigest {
    /// Of the first bytes of a hash.
    pub fn new(hash: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(hash))
    }
}

impl fmt::Display for FilesDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<FilesDigest> for String {
    fn from(digest: FilesDigest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for FilesDigest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u128::from_str_radix(&text, 16).ok().filter(|_| is_hex).map(Self).ok_or(InvalidDigest(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_as_text_and_what_is_none_is_refused() {
        let mut hash = [0; 16];
        hash[15] = 0xab;
        let digest = FilesDigest::new(hash);
        assert_eq!(digest.to_string(), "000000000000000000000000000000ab");
        assert_eq!(FilesDigest::try_from(digest.to_string()), Ok(digest));
        for text in ["ab", "+00000000000000000000000000000ab", ""] {
            assert!(FilesDigest::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
