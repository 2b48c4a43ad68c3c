//! What templates expect of Python: its JSON, its way to print numbers, its texts' methods, its dates.

mod json;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Tuple, Value, from_args};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};

pub(super) use json::to_json;

use super::sandbox::{charge, weigh};

/// Prints a value into a template's output, and charges for it.
pub(super) fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let weight = weigh(value)?;
    if value.as_object().is_some() {
        charge(3 * weight)?; // letters that are escaped
    }
    match f64::try_from(value.clone()) {
        Ok(number) if value.is_number() && !value.is_integer() => out.write_str(&float(number)).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// Python's `repr` of a number: the shortest digits, with an exponent below 0.0001 and from 10^16 on.
fn float(number: f64) -> String {
    let text = format!("{number:e}");
    match text.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// Methods of Python's texts beyond those that the template engine's own imitation has. Nothing if it is none of them.
pub(super) fn text_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let three = |found: Option<(&str, &str)>, by: &str, whole_first: bool| {
        let parts = match found {
            Some((before, behind)) => [before, by, behind],
            None if whole_first => [text, "", ""],
            None => ["", "", text],
        };
        Value::from(Tuple::from(parts.map(Value::from)))
    };
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (by,): (&str,) = from_args(args)?;
            three(text.split_once(by), by, true)
        }
        "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            three(text.rsplit_once(by), by, false)
        }
        "rsplit" => {
            let (by, times): (&str, Option<usize>) = from_args(args)?;
            let mut parts: Vec<&str> = text.rsplitn(times.map_or(usize::MAX, |times| times.saturating_add(1)), by).collect();
            parts.reverse();
            Value::from_iter(parts)
        }
        _ => return Ok(None),
    }))
}

/// Seconds since 1970, UTC.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"]; // 1970-01-01 was the first

/// Python's `strftime` for a time in UTC. Fields that templates do not use are an error, not a guess.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = chars.next();
        let bare = field == Some('-'); // `%-d`: without a zero before it
        if bare {
            field = chars.next();
        }
        let written = match field {
            Some('d') if bare => write!(out, "{day}"),
            Some('m') if bare => write!(out, "{month}"),
            Some('H') if bare => write!(out, "{hour}"),
            Some('I') if bare => write!(out, "{}", (hour + 11) % 12 + 1),
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => write!(out, "UTC"),
            Some('%') => write!(out, "%"),
            _ => {
                let message = format!("strftime_now does not know the field %{}", field.map_or_else(String::new, String::from));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
        written.expect("strings take all text");
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01, by whole 400-year cycles that begin on a 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds, format: &str| strftime(format, seconds).unwrap();
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S"), "Thursday 01 January 1970 00:00:00");
        assert_eq!(at(951_782_400, "%F %a"), "2000-02-29 Tue");
        assert_eq!(at(1_767_322_000, "%d %b %Y %I:%M %p"), "02 Jan 2026 02:46 AM");
        assert_eq!(at(4_107_542_399, "%F %T %%"), "2100-02-28 23:59:59 %");
        assert_eq!(at(1_767_322_000, "%-d.%-m. %-H %-I"), "2.1. 2 2");
        assert!(["%Q", "%-Q", "%-", "%"].into_iter().all(|format| strftime(format, 0).is_err()));
    }
}
