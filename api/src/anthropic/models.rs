//! The model list in Anthropic's shape, for clients that send `anthropic-version`.

use plexus_types::ModelReport;
use serde::Serialize;

use crate::limits::TokenLimits;

/// `GET /v1/models`: always one page.
#[derive(Debug, Serialize)]
pub(crate) struct List<'a> {
    data: Vec<Model<'a>>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

/// One model.
#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    display_name: &'a str,
    created_at: String,
    /// Tokens of a prompt; null while unknown.
    max_input_tokens: Option<u32>,
    /// The most that `max_tokens` of a request may be; null while unknown.
    max_tokens: Option<u32>,
}

/// The whole catalogue.
pub(crate) fn list(models: &[ModelReport]) -> List<'_> {
    List {
        data: models.iter().map(one).collect(),
        has_more: false,
        first_id: models.first().map(|model| model.id.as_str()),
        last_id: models.last().map(|model| model.id.as_str()),
    }
}

/// One model.
pub(crate) fn one(model: &ModelReport) -> Model<'_> {
    let TokenLimits { input, output, .. } = TokenLimits::of(model);
    Model {
        kind: "model",
        id: model.id.as_str(),
        display_name: model.id.as_str(),
        created_at: rfc3339(model.created),
        max_input_tokens: input,
        max_tokens: output,
    }
}

/// Seconds since 1970 as a date and time in UTC. The date is counted in eras of 400 years that begin on 1 March, so that the day which
/// may be missing is the last of its year.
fn rfc3339(seconds: u64) -> String {
    const DAYS_PER_ERA: u64 = 146_097;
    const DAYS_BEFORE_1970: u64 = 719_468; // from 0000-03-01
    let (days, second) = (seconds / 86_400 + DAYS_BEFORE_1970, seconds % 86_400);
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn dates_are_right_round_leap_days_and_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_208_000, "2024-02-29T12:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_760_000_000, "2025-10-09T08:53:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
