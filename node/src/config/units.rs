//! Quantities as people write them.

use std::fmt;
use std::str::FromStr;

use plexus_types::Bytes;
use serde::{Deserialize, Deserializer, de};

/// An amount of memory as people write it: `16MiB`, `1.5 GB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) Bytes);

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tb" => 1_000_000_000_000,
            "tib" => 1 << 40,
            other => return Err(format!("{other:?} is no unit of memory")),
        };
        let not_a_size = || "not a size".to_owned();
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let whole: u64 = whole.parse().map_err(|_| not_a_size())?;
        let part: f64 =
            Some(part).filter(|part| !part.contains('.')).and_then(|part| format!("0.{part}").parse().ok()).ok_or_else(not_a_size)?;
        let bytes = whole.checked_mul(scale).and_then(|bytes| bytes.checked_add((part * scale as f64) as u64));
        bytes.map(|bytes| Self(Bytes(bytes))).ok_or_else(|| "more than 64 bits can count".to_owned())
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(|bytes| ByteSize(Bytes(bytes))).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A share of a whole: above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fraction(f64);

impl Fraction {
    /// The share, if it is one.
    pub(crate) fn new(share: f64) -> Option<Self> {
        (share > 0.0 && share <= 1.0).then_some(Self(share))
    }

    /// The share as a number.
    pub(crate) fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("not above 0 and at most 1"))
    }
}

/// Which CUDA devices a node serves on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CudaDevices {
    /// All that are found, if this binary was built for them.
    Auto,
    /// None.
    Off,
    /// These, and they must be there.
    These(Vec<u32>),
}

impl FromStr for CudaDevices {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            list => {
                let ordinals: Result<Vec<u32>, _> = list.split(',').map(|ordinal| ordinal.trim().parse()).collect();
                ordinals.map(Self::These).map_err(|_| "not a choice of devices".to_owned())
            }
        }
    }
}

impl<'de> Deserialize<'de> for CudaDevices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serde for an optional value: an empty text stands for "not set", so that `cluster.toml` can list every key.
pub(crate) fn unset_if_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(de::Error::custom) }
}

/// Serde for an optional count: 0 stands for "not set".
pub(crate) fn unset_if_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(Some(u32::deserialize(deserializer)?).filter(|count| *count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("16MiB", 16 << 20),
            ("2 GB", 2_000_000_000),
            ("4096", 4096),
            ("1kib", 1024),
            ("7b", 7),
            ("1.5 GiB", 3 << 29),
            ("0.25TB", 250_000_000_000),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, Bytes(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5.0GiB", ".", ".5", "3 parsecs", "99999999999999999999", "20000000000GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_lies_above_zero_and_not_above_one() {
        assert!(Fraction::new(0.0).is_none() && Fraction::new(1.01).is_none() && Fraction::new(f64::NAN).is_none());
        assert_eq!(Fraction::new(1.0).unwrap().get(), 1.0);
    }

    #[test]
    fn cuda_devices_are_all_none_or_a_list() {
        assert_eq!("auto".parse(), Ok(CudaDevices::Auto));
        assert_eq!("off".parse(), Ok(CudaDevices::Off));
        assert_eq!("0, 2".parse(), Ok(CudaDevices::These(vec![0, 2])));
        assert!("all".parse::<CudaDevices>().is_err());
    }
}
