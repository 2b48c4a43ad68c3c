//! Quantities that carry their unit.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// An amount of memory or storage, in bytes. Displayed with three digits or more in the largest binary unit of which there is one, for
/// example `1.50 GiB`; what is a whole number of the next smaller one, from MiB on, is not rounded: `1000 GiB`, `1500 MiB`.
///
/// What other nodes say of themselves is added up like what is known: sums stop at the greatest amount, and differences at zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `self - other`, or zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self(0), Add::add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (1..UNITS.len()).rev().find(|unit| self.0 >> (10 * unit) > 0).unwrap_or(0);
        let shift = 10 * unit;
        let value = self.0 as f64 / (1_u64 << shift) as f64;
        let digits = if unit == 0 {
            0
        } else if value < 10.0 {
            2
        } else {
            usize::from(value < 100.0)
        };
        let is_exact = (u128::from(self.0) * 10_u128.pow(digits as u32)).trailing_zeros() as usize >= shift;
        // As somebody has written it, if nobody writes it shorter: 1500 MiB are no round number of GiB.
        if unit > 2 && !is_exact && self.0.trailing_zeros() as usize >= shift - 10 && self.0 >> (shift - 10) < 10_000 {
            return f.pad(&format!("{} {}", self.0 >> (shift - 10), UNITS[unit - 1]));
        }
        f.pad(&format!("{value:.digits$} {}", UNITS[unit]))
    }
}

/// Serde for a [`Duration`](std::time::Duration) as seconds, a number with a fraction.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// The same for an optional duration.
    pub(crate) mod option {
        use super::{Deserialize, Deserializer, Duration, Error, Serializer};

        pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => serializer.serialize_some(&duration.as_secs_f64()),
                None => serializer.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            let seconds = Option::<f64>::deserialize(deserializer)?;
            seconds.map(Duration::try_from_secs_f64).transpose().map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn sums_and_differences_of_what_others_say_stop_at_the_ends() {
        let most = Bytes(u64::MAX);
        assert_eq!(most + Bytes(1), most);
        assert_eq!([most, most, Bytes(7)].into_iter().sum::<Bytes>(), most);
        assert_eq!(Bytes(1) - Bytes(2), Bytes(0));
        assert_eq!([Bytes(1), Bytes(2)].into_iter().sum::<Bytes>() - Bytes(1), Bytes(2));
    }

    #[test]
    fn bytes_are_shown_in_few_digits_and_as_they_were_written() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1000 B"),
            (1 << 20, "1.00 MiB"),
            (24 << 30, "24.0 GiB"),
            (139 << 30, "139 GiB"),
            (1000 << 30, "1000 GiB"),
            (1500 << 30, "1500 GiB"),
            (1536 << 30, "1.50 TiB"),
            (1 << 40, "1.00 TiB"),
            (1500 << 20, "1500 MiB"),
            (4 << 30, "4.00 GiB"),
            ((12_345 << 20), "12.1 GiB"),
            ((1500 << 20) + 1, "1.46 GiB"),
            (5499 << 10, "5.37 MiB"),
            (1023 << 20, "1023 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
