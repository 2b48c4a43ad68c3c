//! Numbers, and how they are shown.

use std::fmt::Write as _;
use std::time::Duration;

/// One row of a table.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// What is measured.
    pub(crate) name: String,
    /// What is aimed at; empty where the figure is there to compare with.
    pub(crate) target: &'static str,
    /// One value per run.
    pub(crate) values: Vec<f64>,
    /// Unit of the values.
    pub(crate) unit: Unit,
    /// What to hold it against: a floor or a peer of the same run.
    pub(crate) beside: String,
}

/// Unit of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Tokens per second.
    TokensPerS,
    /// Gigabytes, of 10^9 bytes, per second.
    GbPerS,
    /// MiB.
    Mib,
    /// How many times one thing is another.
    Times,
    /// A number of things.
    Count,
}

impl Figure {
    /// A figure in milliseconds.
    pub(crate) fn ms(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { name: name.into(), target, values: values.to_vec(), unit: Unit::Ms, beside: String::new() }
    }

    /// A figure in microseconds.
    pub(crate) fn us(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::Us, ..Self::ms(name, target, values) }
    }

    /// A figure in tokens per second.
    pub(crate) fn tokens_per_s(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::TokensPerS, ..Self::ms(name, target, values) }
    }

    /// A figure in gigabytes per second.
    pub(crate) fn gb_per_s(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::GbPerS, ..Self::ms(name, target, values) }
    }

    /// A figure in MiB.
    pub(crate) fn mib(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::Mib, ..Self::ms(name, target, values) }
    }

    /// A ratio of two things measured in the same run.
    pub(crate) fn times(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::Times, ..Self::ms(name, target, values) }
    }

    /// A count.
    pub(crate) fn count(name: impl Into<String>, target: &'static str, values: &[f64]) -> Self {
        Self { unit: Unit::Count, ..Self::ms(name, target, values) }
    }

    /// The same, with a remark.
    pub(crate) fn beside(self, beside: impl Into<String>) -> Self {
        Self { beside: beside.into(), ..self }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Ms if value.abs() < 10.0 => format!("{value:.3} ms"),
            Self::Ms => format!("{value:.0} ms"),
            Self::Us => format!("{value:.1} µs"),
            Self::TokensPerS if value.abs() < 100.0 => format!("{value:.1} tok/s"),
            Self::TokensPerS => format!("{value:.0} tok/s"),
            Self::GbPerS => format!("{value:.1} GB/s"),
            Self::Mib => format!("{value:.0} MiB"),
            Self::Times => format!("{value:.2} ×"),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// The figures as a Markdown table.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = String::from("| figure | target | least | median | greatest | beside it |\n|---|---|---|---|---|---|\n");
    for figure in figures {
        let show = |share| figure.unit.show(quantile(&figure.values, share));
        let (name, target, beside) = (&figure.name, figure.target, &figure.beside);
        writeln!(text, "| {name} | {target} | {} | {} | {} | {beside} |", show(0.0), show(0.5), show(1.0))
            .expect("a String takes all text");
    }
    text
}

/// A duration in milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The middle of `values`; for an even number of them the upper of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the given share of `values` lies, by nearest rank; NaN if there are none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share) as usize;
    sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::{Figure, quantile, table};

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.9, 1.0].map(|share| quantile(&values, share)), [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_row_shows_least_median_and_greatest() {
        let row = table(&[Figure::ms("start", "≤ 1 s", &[30.0, 2.5, 20.0]).beside("floor")]);
        assert!(row.ends_with("| start | ≤ 1 s | 2.500 ms | 20 ms | 30 ms | floor |\n"), "{row}");
    }
}
